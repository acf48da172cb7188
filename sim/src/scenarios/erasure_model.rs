//! The erasure code against its definition: whatever shards are lost, as many as the layout tolerates, come
//! back as they were, by whole reconstruction and by the combination that degraded reads use; parity that was
//! encoded into buffers that held something else is the same (O8). Not checked: CRCs, and who calls it.

use crate::failure::violation;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use mooseng::erasure::{Codec, Layout};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "erasure_model",
    about: "the erasure code gives back every shard that it may lose",
    seeds: 5,
    limit: Duration::from_secs(60),
    must_count: &["stripes", "shards lost"],
    run: |seed| Box::pin(run(seed)),
};

/// Longest cell: several columns of the codec.
const CELL_MAX: u64 = 70_000;

async fn run(seed: u64) {
    let mut rng = Rng::new(seed).fork("erasure model");
    for _ in 0..12 {
        stripe(&mut rng).unwrap_or_else(|error| violation("O8", error));
        stats::count("stripes");
    }
}

fn stripe(rng: &mut Rng) -> Result<(), String> {
    let layout = Layout::new(rng.range(1, 9) as u32, rng.range(1, 5) as u32);
    let layout = layout.map_err(|error| error.to_string())?;
    let (k, m, len) = (layout.data(), layout.parity(), rng.range(1, CELL_MAX) as usize);
    let mut bytes = || (0..len).map(|_| rng.u64() as u8).collect::<Vec<u8>>();
    let cells: Vec<Vec<u8>> = (0..k).map(|_| bytes()).collect();
    let slices: Vec<&[u8]> = cells.iter().map(Vec::as_slice).collect();
    let codec = Codec::new(layout);
    let mut parity: Vec<Vec<u8>> = (0..m).map(|_| bytes()).collect();
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode_into(&slices, &mut outputs);
    let whole: Vec<Vec<u8>> = cells.into_iter().chain(parity).collect();
    let mut order: Vec<usize> = (0..k + m).collect();
    rng.shuffle(&mut order);
    let (lost, left) = order.split_at(rng.range(1, m as u64 + 1) as usize);
    stats::add("shards lost", lost.len() as u64);
    let mut shards: Vec<Option<Vec<u8>>> = whole.iter().cloned().map(Some).collect();
    lost.iter().for_each(|shard| shards[*shard] = None);
    codec.reconstruct(&mut shards).map_err(|error| error.to_string())?;
    for shard in lost {
        if shards[*shard].as_ref() != Some(&whole[*shard]) {
            return Err(format!("{layout:?}: shard {shard} of {len} bytes comes back changed"));
        }
        let mut sources = left[..k].to_vec();
        sources.sort_unstable();
        let data: Vec<&[u8]> = sources.iter().map(|source| whole[*source].as_slice()).collect();
        let combination = codec.combination(&sources, *shard).map_err(|error| error.to_string())?;
        let mut out = vec![0; len];
        combination.apply(&data, &mut out);
        if out != whole[*shard] {
            return Err(format!("{layout:?}: shard {shard} from {sources:?} is another"));
        }
    }
    Ok(())
}
