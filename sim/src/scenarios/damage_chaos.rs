//! [`super::cluster_chaos`] with more than crashes: disks that fail, fill up, rot, lie or are lost, frames that
//! vanish, clients frozen beyond their session, masters and chunkservers that come, and come back empty.
//!
//! Checked: what `cluster_chaos` checks, and O6 with every rotten shard repaired. What is lost for good stays
//! within the budget of `world::damage`. Not checked: damage beyond it.

use super::cluster_chaos;
use crate::harness::Scenario;
use crate::stats;
use crate::world::Options;
use crate::world::damage::DamageOptions;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "damage_chaos",
    about: "a whole cluster stores files while disks fail, rot and are lost and machines come and go",
    seeds: 100,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "blocks checked",
        "O6 chunks checked",
        "damage: black hole",
        "damage: half open",
        "damage: fsync fails",
        "damage: write fails",
        "damage: reads fail",
        "damage: a master's disk fails",
        "damage: disk full",
        "damage: rot",
        "damage: misdirected writes",
        "damage: disk lost",
        "damage: old disk returns",
        "damage: client frozen",
        "damage: master wiped",
        "damage: master added",
        "damage: chunkserver added",
        "damage: misdirected reads",
        "damage: master lost its log",
        "damage: chunkserver drained",
        "damage: chunkserver long away",
        "chunkservers emptied",
        "fault: EIO on read",
        "fault: EIO on write",
        "fault: EIO on fsync",
        "fault: no space",
        "fault: misdirected write",
        "fault: misdirected read",
        "fault: bytes rotted",
        "fault: frame vanished",
    ],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    let drawn = cluster_chaos::options(seed);
    // One server more than the layout needs, so that a lost one can be replaced.
    let parity = drawn.parity.max(1);
    let chunkservers = drawn.chunkservers.max(drawn.data + parity + 1);
    let damage = DamageOptions::draw(seed, (drawn.data, parity));
    let chaos_ms = drawn.chaos_ms * 2;
    let options = Options { parity, chunkservers, damage, chaos_ms, tiny: true, ..drawn };
    cluster_chaos::work(options).await;
}
