//! [`super::cluster_chaos`] in which only the calls suffer by which masters and chunkservers learn of each other's
//! state: connections break at them, and at appends, so that chunks are given up and sealed; handlers are dropped on
//! the way; a leader or two die early on.
//!
//! Checked: what `cluster_chaos` checks; what matters here is convergence (O6, O7): whoever missed a word hears it
//! later. Not checked: faults of other calls (`frame_chaos`); crashes of others (`cluster_chaos`).

use super::cluster_chaos;
use crate::cluster::full::Cluster;
use crate::harness::Scenario;
use crate::plan::{self, FaultClass};
use crate::rng::{Ratio, Rng};
use crate::stats;
use crate::world::{NetOptions, Options, World};
use std::sync::Arc;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "told_late",
    about: "chunks are sealed and leaders change and the calls that tell of it are lost",
    seeds: 16,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "O6 chunks checked",
        "fault: leader killed",
        "fault: handler dropped",
        "fault: connection cut",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Calls that carry such a word, and the one whose failure makes a writer give its chunk up.
const CALLS: [&str; 5] = ["Heartbeat", "Report", "ReportChunk", "Seal", "Append"];

async fn run(seed: u64) {
    let drawn = cluster_chaos::options(seed);
    let mut rng = Rng::new(seed).fork("lost words");
    let only = CALLS.map(str::to_owned).to_vec();
    let cut = Ratio::one_in(rng.range(4, 12) as u32);
    let (cancel, never) = (Ratio::one_in(1), Ratio::NEVER);
    let net = drawn.net.clone();
    let net = NetOptions { lose: never, duplicate: never, delay: never, cut, cancel, only, ..net };
    let (masters, chunkservers) = (3, drawn.chunkservers.max(drawn.parity + 2));
    let mut options = Options { masters, chunkservers, net, ..drawn };
    options.faults.kinds.clear();
    options.points = false;
    // With tiny limits what servers report of themselves from time to time would put all right soon.
    options.tiny = false;
    cluster_chaos::work_with(options, |world, cluster| {
        tokio::spawn(end_leaders(world.clone(), cluster.clone(), rng));
    })
    .await;
}

/// Kills a leader or two early on, so that the last one is not heard, and does not hear, for most of the time.
async fn end_leaders(world: Arc<World>, cluster: Cluster, mut rng: Rng) {
    for _ in 0..rng.range(1, 3) {
        tokio::time::sleep(Duration::from_millis(rng.range(300, 1500))).await;
        let leader = cluster.leader_name(&world).filter(|_| plan::strikes(FaultClass::Kill));
        let Some(leader) = leader.filter(|_| !world.frames.is_quiet()) else { continue };
        stats::count("fault: leader killed");
        world.kill(&leader);
        tokio::time::sleep(Duration::from_millis(rng.range(50, 500))).await;
        world.restart(&leader).await;
    }
}
