//! A file is cut by one while another syncs it, on the same mount.
//!
//! Checked: whoever syncs has an answer soon, and no error (O7, O11). Not checked: what is in the file.

use crate::cluster::full::{Cluster, connect, errand};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{NetOptions, Options, World};
use mooseng::client::{Client, NewFile, SetAttr};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "cut_and_close",
    about: "a file is cut while another one syncs it",
    seeds: 4,
    limit: Duration::from_secs(900),
    must_count: &["files cut under a sync"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const ROUNDS: u64 = 30;
/// Enough for a flight each.
const PIECE: usize = 40_000;
const PIECES: u64 = 6;
/// Within which a sync is answered on a calm day.
const SOON: Duration = Duration::from_secs(10);

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let calm = Options { data: 1, parity: 1, tiny: true, ..drawn.calm() };
    let net = NetOptions { latency_us_min: 2_000, latency_us_max: 10_000, ..calm.net.clone() };
    let world = World::new(Options { net, ..calm });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let rounds = errand(&world, 1, move |context, config| async move {
        let client = connect(&context, &config).await;
        let mut rng = Rng::new(seed).fork("cut");
        for number in 0..ROUNDS {
            if let Err(errno) = round(&client, number, &mut rng).await {
                violation("O11", format!("round {number} on a calm day: {errno:?}"));
            }
        }
        client
    });
    rounds.ends(Duration::from_secs(800), "the rounds do not end").await;
}

async fn round(client: &Arc<Client>, number: u64, rng: &mut Rng) -> Result<(), Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (attr, handle) = client.create(ROOT, format!("{number}").as_bytes(), new).await?;
    for piece in 0..rng.range(2, PIECES + 1) {
        // Apart from each other.
        client.write(handle, piece * 3 * PIECE as u64, vec![1; PIECE].into()).await?;
    }
    let wait = Duration::from_millis(rng.below(80));
    let cut = async {
        tokio::time::sleep(wait).await;
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        client.setattr(InodeId(attr.inode), set).await
    };
    let asked = trace::now_ns();
    let (synced, cut) = tokio::join!(client.fsync(handle, false), cut);
    let took = Duration::from_nanos(trace::now_ns() - asked);
    if took > SOON {
        violation("O7", format!("syncing and cutting took {took:?}: {synced:?}, {cut:?}"));
    }
    stats::count("files cut under a sync");
    client.release(handle).await;
    synced.and(cut.map(drop))
}
