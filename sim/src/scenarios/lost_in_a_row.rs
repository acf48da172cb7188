//! [`super::cluster_chaos`] in which nothing fails but that heartbeats of chunkservers are lost, up to eight in a
//! row, again and again.
//!
//! Checked: what `cluster_chaos` checks, and that no chunkserver is declared dead: it is called so after twelve
//! heartbeats' time. Not checked: loss of anything else (`frame_chaos`).

use super::cluster_chaos;
use super::frame_chaos::AllSpeak;
use crate::harness::Scenario;
use crate::rng::{Ratio, Rng};
use crate::stats;
use crate::world::{NetOptions, Options};
use std::sync::Arc;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "lost_in_a_row",
    about: "heartbeats are lost many in a row, and nobody is declared dead for it",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &[stats::OPERATIONS, stats::FSYNCS, "O6 chunks checked", "fault: request lost"],
    run: |seed| Box::pin(run(seed)),
};

/// The most that may be lost in a row. One that is not answered costs half a second at most, and the answer that
/// comes at last may be that somebody else leads; with the pause before the first this is below
/// `server_dead`, 6 s, by more than a second.
const MOST: u32 = 8;

async fn run(seed: u64) {
    let drawn = cluster_chaos::options(seed).calm();
    let mut rng = Rng::new(seed).fork("heartbeats");
    let lose = Ratio::one_in(rng.range(1, 6) as u32);
    let lost_in_a_row = rng.range(u64::from(MOST) - 2, u64::from(MOST) + 1) as u32;
    let only = vec!["Heartbeat".to_owned()];
    let net = NetOptions { lose, lost_in_a_row, only, ..drawn.net.clone() };
    let (masters, chunkservers) = (drawn.masters.max(3), drawn.chunkservers.max(drawn.parity + 2));
    // Half as long again as it takes to count as dead, or twice.
    let chaos_ms = rng.range(9_000, 13_000);
    let options = Options { masters, chunkservers, net, chaos_ms, tiny: true, ..drawn };
    cluster_chaos::work_with(options, |world, cluster| {
        cluster.appliers.add(Arc::new(AllSpeak(world.frames.clone())));
    })
    .await;
}
