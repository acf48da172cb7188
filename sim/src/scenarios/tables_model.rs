//! The tables and their file, crashed at every change of the disk, and on disks that fail, fill up, lie and rot (O8).
//! What is checked, and what not, says [`crate::models::tables`].

use crate::failure::violation;
use crate::harness::Scenario;
use crate::models::tables::{bad_disk, crash_everywhere, full_everywhere};
use crate::stats;
use mooseng::marks;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "tables_model",
    about: "the table file crashed at every change of its disk, and on disks that fail, lie and rot",
    seeds: 6,
    limit: Duration::from_secs(60),
    must_count: &[
        "crashes",
        "recovered forward",
        "refused",
        "refused for space",
        "table file spoiled by a full disk",
        "table file not written anew, the disk is full",
        "table file written anew",
        "table slots differ at open",
        "table block refused",
    ],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    let report = crash_everywhere(seed, 70).unwrap_or_else(|error| violation("O8", error));
    stats::add("crashes", report.crashes);
    stats::add("recovered forward", report.went_forward);
    let refused = full_everywhere(seed, 70).unwrap_or_else(|error| violation("O8", error));
    stats::add("refused for space", refused);
    for number in 0..15 {
        let report = bad_disk(seed * 1000 + number, 150);
        stats::add("refused", report.unwrap_or_else(|error| violation("O8", error)).refusals);
    }
    for (mark, hits) in marks::hits() {
        if mark.starts_with("table") {
            stats::add(mark, hits);
        }
    }
}
