//! The write-ahead log crashed at every change of its disk, and, in `wal_faults`, on disks that fail, and rotten
//! (O8). What is checked, and what not, says [`crate::models::wal`].

use crate::failure::violation;
use crate::harness::Scenario;
use crate::models::wal::{crash_everywhere, failing_disk, rot_everywhere};
use crate::stats;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "wal_model",
    about: "the log crashed at every change of its disk",
    seeds: 4,
    limit: Duration::from_secs(60),
    must_count: &["crashes"],
    run: |seed| Box::pin(run(seed)),
};

pub const FAULTS: Scenario = Scenario {
    name: "wal_faults",
    about: "the log on disks that fail, and with one byte rotten, at many places in turn",
    must_count: &["errors", "refused"],
    run: |seed| Box::pin(faults(seed)),
    ..SCENARIO
};

fn or_fail<T>(report: Result<T, String>) -> T {
    report.unwrap_or_else(|error| violation("O8", error))
}

async fn run(seed: u64) {
    let crashed = or_fail(crash_everywhere(seed, 60));
    stats::add("crashes", crashed.crashes);
}

async fn faults(seed: u64) {
    for number in 0..5 {
        stats::add("errors", or_fail(failing_disk(seed * 1000 + number, 120)).errors);
    }
    stats::add("refused", or_fail(rot_everywhere(seed, 50, 13)).refused);
}
