//! A chunkserver is drained under a mount that has files open and knows where their chunks were.
//!
//! Checked: what it reads next, of places that it has not read before, is what was written, without an error, although
//! the server it asks has the chunk no more (O2, O3). Not checked: other faults meanwhile (`damage_chaos`).

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, reaches};
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::world::{Options, World};
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "moved_away",
    about: "chunks move to other servers under a mount that knows where they were",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["chunkservers emptied", "files read after a drain"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;
const FILES: usize = 6;
/// More than what is read ahead of the first block.
const BYTES: usize = 3 << 20;
const OPENED: u8 = 1;
const MOVED: u8 = 2;
const OVER: u8 = 3;

async fn run(seed: u64) {
    let mut rng = Rng::new(seed).fork("drain");
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    // One copy: whoever does not find it there has nobody else to ask.
    let world = World::new(Options { data: 1, parity: 0, tiny: false, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = Arc::new(AtomicU8::new(0));
    let steps = step.clone();
    mount(&world, 1, move |context, config| {
        let step = steps.clone();
        Box::pin(async move {
            let writer = connect(&context, &config).await;
            let reader = connect(&context, &config).await;
            let open = open_all(&writer, &reader).await;
            let open = open.unwrap_or_else(|e| violation("O7", format!("on a calm day: {e:?}")));
            step.store(OPENED, Ordering::Relaxed);
            wait(&step, MOVED).await;
            for (number, handle) in open.into_iter().enumerate() {
                let half = BYTES / 2;
                match reader.read(handle, half as u64, half).await {
                    Ok(found) if found.concat() == bytes(number)[half..] => {
                        stats::count("files read after a drain");
                    }
                    found => {
                        let found = found.map(|pieces| pieces.concat().len());
                        violation("O3", format!("file {number} after a drain: {found:?}"));
                    }
                }
            }
            step.store(OVER, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    wait(&step, OPENED).await;
    if plan::strikes(FaultClass::Drain) {
        cluster.drain(&world, rng.range(1, 4) as u32).await;
        cluster.empties(&world).await;
    }
    // For the old replicas to be deleted.
    tokio::time::sleep(Duration::from_millis(rng.range(0, 5_000))).await;
    step.store(MOVED, Ordering::Relaxed);
    wait(&step, OVER).await;
}

fn bytes(number: usize) -> Vec<u8> {
    (0..BYTES).map(|at| (at ^ (at >> 11) ^ number) as u8).collect()
}

/// Files written by one mount, and opened by the other, which has read the first block of each.
async fn open_all(writer: &Arc<Client>, reader: &Arc<Client>) -> Result<Vec<Handle>, Errno> {
    let mut open = Vec::new();
    for number in 0..FILES {
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let (attr, handle) = writer.create(ROOT, format!("f{number}").as_bytes(), new).await?;
        writer.write(handle, 0, bytes(number).into()).await?;
        writer.fsync(handle, false).await?;
        writer.release(handle).await;
        let handle = reader.open(InodeId(attr.inode), READ_ONLY).await?;
        reader.read(handle, 0, 4096).await?;
        open.push(handle);
    }
    Ok(open)
}

async fn wait(step: &AtomicU8, wanted: u8) {
    reaches(step, wanted, 2 * CONVERGED).await;
}
