//! A shard of an erasure-coded file is rotten, and the server of another one does not answer for a while: one shard
//! is lost, which the code bears, as soon as the other server answers again.
//!
//! Checked: a reader waits for that, and reads what was written (O3). Not checked: repair.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, reaches};
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::world::{Options, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::limits::CELL_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "rot_while_away",
    about: "one shard is rotten and the server of another is silent for a while: readers wait, no EIO",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["read while one was silent"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;
/// Shards: two of data, one of parity.
const DATA: usize = 2;
const WRITTEN: u8 = 1;
const DAMAGED: u8 = 2;
const OVER: u8 = 3;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let options = Options { data: DATA as u32, parity: 1, tiny: false, ..drawn.calm() };
    let world = World::new(options);
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = Arc::new(AtomicU8::new(0));
    let steps = step.clone();
    mount(&world, 1, move |context, config| {
        let step = steps.clone();
        Box::pin(async move {
            let client = connect(&context, &config).await;
            let bytes = vec![7; 2 * DATA * CELL_BYTES];
            let inode = write(&client, &bytes).await;
            let inode = inode.unwrap_or_else(|e| violation("O7", format!("on a calm day: {e:?}")));
            // By another mount, which has nothing in memory and has asked nobody yet.
            let other = connect(&context, &config).await;
            step.store(WRITTEN, Ordering::Relaxed);
            wait(&step, DAMAGED).await;
            read(&other, inode, &bytes).await;
            step.store(OVER, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    wait(&step, WRITTEN).await;
    let mut rng = Rng::new(seed).fork("rot");
    let victims = shards(&world);
    let silent = rng.below(DATA as u64) as usize;
    let rotten = (silent + 1 + rng.below(DATA as u64) as usize) % (DATA + 1);
    if plan::strikes(FaultClass::Rot) {
        let (name, path) = &victims[rotten];
        let disk = world.disks(name)[0].clone();
        let len = disk.written(path).map_or(0, |bytes| bytes.len() as u64);
        (0..len).step_by(512).for_each(|at| _ = disk.rot(path, at, 1));
    }
    let (name, _) = &victims[silent];
    if plan::strikes(FaultClass::Pause) {
        world.pause(name);
    }
    step.store(DAMAGED, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(rng.range(3_000, 6_000))).await;
    world.resume(name);
    wait(&step, OVER).await;
}

/// By shard: the machine and the file.
fn shards(world: &Arc<World>) -> Vec<(String, String)> {
    let mut found: Vec<(u32, String, String)> = Vec::new();
    for number in 1..=world.options.chunkservers {
        let name = format!("s{number}");
        let files = world.disks(&name)[0].paths();
        found.extend(
            files.into_iter().filter_map(|path| Some((shard_of(&path)?, name.clone(), path))),
        );
    }
    found.sort();
    found.into_iter().map(|(_, name, path)| (name, path)).collect()
}

/// Of a file named after chunk, generation, shard and data shards, if it is one of ours.
fn shard_of(path: &str) -> Option<u32> {
    let name = path.rsplit('/').next()?.strip_suffix(".dat")?;
    let parts: Vec<&str> = name.split('-').collect();
    let ours = parts.last()?.parse() == Ok(DATA);
    parts.get(2).filter(|_| ours)?.parse().ok()
}

/// Whole stripes, synced.
async fn write(client: &Arc<Client>, bytes: &[u8]) -> Result<InodeId, Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (attr, handle) = client.create(ROOT, b"file", new).await?;
    client.write(handle, 0, bytes.to_vec().into()).await?;
    client.fsync(handle, false).await?;
    client.release(handle).await;
    Ok(InodeId(attr.inode))
}

/// All of it, although one server is silent at first.
async fn read(client: &Arc<Client>, inode: InodeId, bytes: &[u8]) {
    let read = async {
        let handle = client.open(inode, READ_ONLY).await?;
        client.read(handle, 0, bytes.len()).await
    };
    match read.await {
        Ok(found) if found.concat() == bytes => stats::count("read while one was silent"),
        Ok(_) => violation("O3", "what is read is not what was written"),
        Err(errno) => {
            violation("O3", format!("one shard of three is damaged, and reading ends in {errno:?}"))
        }
    }
}

async fn wait(step: &AtomicU8, wanted: u8) {
    reaches(step, wanted, CONVERGED).await;
}
