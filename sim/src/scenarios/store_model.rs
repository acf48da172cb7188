//! The chunk store under random programs, on a disk that loses power, fails and fills up (O8). What is
//! checked, and what not, says [`crate::models::store`].

use crate::failure::violation;
use crate::harness::Scenario;
use crate::models::store::run_program;
use crate::stats;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "store_model",
    about: "the chunk store on a disk that loses power, fails and fills up",
    seeds: 20,
    limit: Duration::from_secs(60),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "seals",
        "holes punched",
        "deletes",
        "kills",
        "power losses",
        "failed syncs",
        "replicas not readable at a start",
        "appends refused for space",
        "told to come later for want of a descriptor",
        "blocks read",
        "punches cut short",
        "replicas rebuilt",
        "rebuilds refused",
        "rebuilds cut short",
        "rebuilds overtaken",
    ],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    for number in 0..8 {
        let report = run_program(seed * 1000 + number, 60);
        let report = report.unwrap_or_else(|error| violation("O8", error));
        stats::add(stats::OPERATIONS, report.appends);
        stats::add(stats::FSYNCS, report.syncs);
        stats::add("seals", report.seals);
        stats::add("holes punched", report.punches);
        stats::add("deletes", report.deletes);
        stats::add("kills", report.kills);
        stats::add("power losses", report.power_losses);
        stats::add("failed syncs", report.failed_syncs);
        stats::add("replicas not readable at a start", report.unread);
        stats::add("appends refused for space", report.no_space);
        stats::add("told to come later for want of a descriptor", report.told_later);
        stats::add("blocks read", report.blocks);
        stats::add("punches cut short", report.punches_cut_short);
        stats::add("replicas rebuilt", report.builds);
        stats::add("rebuilds refused", report.builds_refused);
        stats::add("rebuilds cut short", report.builds_cut_short);
        stats::add("rebuilds overtaken", report.builds_overtaken);
    }
}
