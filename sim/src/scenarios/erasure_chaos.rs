//! [`super::cluster_chaos`] with erasure-coded files only, and one chunkserver more than a stripe is wide: clients
//! write whole stripes, forget what they have cached, and read degraded whenever a server is away.
//!
//! Checked and not checked: as there.

use super::cluster_chaos;
use crate::harness::Scenario;
use crate::stats;
use crate::world::Options;
use mooseng::marks;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "erasure_chaos",
    about: "a whole cluster stores erasure-coded files through kills, power losses and partitions",
    seeds: 80,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "blocks checked",
        "O6 chunks of k+m checked",
        "degraded read",
        "fault: kill",
        "fault: power loss",
    ],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    let drawn = cluster_chaos::options(seed);
    let (data, parity) = [(4, 2), (2, 1), (3, 2), (2, 2)][(seed % 4) as usize];
    let chunkservers = data + parity + 1;
    cluster_chaos::work(Options { data, parity, chunkservers, ..drawn }).await;
    stats::add("degraded read", marks::hits().get("degraded read").copied().unwrap_or(0));
}
