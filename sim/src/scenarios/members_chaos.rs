//! [`super::cluster_chaos`] in which nothing fails but that masters and chunkservers come and go, often:
//! chunkservers that are away until they count as dead, lose their disk, return with an old one, are drained or
//! join; masters that join, or lose their disk or their log.
//!
//! Checked: what `cluster_chaos` checks. Not checked: the same beside other faults (`damage_chaos`).

use super::cluster_chaos;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use crate::world::Options;
use crate::world::damage::{DamageKind, DamageOptions};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "members_chaos",
    about: "a whole cluster stores files while masters and chunkservers come and go",
    seeds: 12,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "blocks checked",
        "O6 chunks checked",
        "damage: disk lost",
        "damage: old disk returns",
        "damage: master wiped",
        "damage: master added",
        "damage: chunkserver added",
        "damage: master lost its log",
        "damage: chunkserver drained",
        "damage: chunkserver long away",
        "chunkservers emptied",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// What strikes here.
const KINDS: [DamageKind; 8] = [
    DamageKind::LoseDisk,
    DamageKind::OldDisk,
    DamageKind::LoseMaster,
    DamageKind::BareMaster,
    DamageKind::AddMaster,
    DamageKind::AddServer,
    DamageKind::Drain,
    DamageKind::LongAway,
];

async fn run(seed: u64) {
    let drawn = cluster_chaos::options(seed).calm().with_points();
    let parity = drawn.parity.max(1);
    let chunkservers = drawn.chunkservers.max(drawn.data + parity + 1);
    let mut rng = Rng::new(seed).fork("members options");
    // Each kind is off in a third of the runs.
    let mut kinds = KINDS.to_vec();
    kinds.retain(|_| rng.chance(2, 3));
    let victims = DamageOptions::draw(seed, (drawn.data, parity)).victims;
    let damage = DamageOptions { pause_ms: rng.range(300, 1_500), kinds, victims };
    // Several times as long as it takes to count as dead.
    let chaos_ms = rng.range(15_000, 30_000);
    let options = Options { parity, chunkservers, damage, chaos_ms, tiny: true, ..drawn };
    cluster_chaos::work(options).await;
}
