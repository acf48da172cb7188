//! The state machine against the model filesystem, which shares no code with it: random programs of two
//! clients with repeated requests, expiring sessions, truncations, replaced chunks and purges; the same
//! answers, every invariant after each command, and the same states when the log is applied again (O1, O4,
//! O10 without a cluster). Not checked: what masters, clients and chunkservers do with it.

use crate::failure::violation;
use crate::harness::Scenario;
use crate::{stats, world};
use mooseng::limits::Limits;
use mooseng::marks;
use mooseng_proptests::machine::run_seed;
use std::panic::catch_unwind;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "namespace_model",
    about: "the state machine against the model filesystem, without a cluster",
    seeds: 10,
    limit: Duration::from_secs(60),
    must_count: &[
        stats::OPERATIONS,
        "commit refused by rule A3",
        "session expired",
        "retry answered from the reply table",
        "deletion of a referenced chunk refused",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Operations of a program.
const STEPS: u32 = 300;

async fn run(seed: u64) {
    world::install_clocks();
    match catch_unwind(|| run_seed(seed, STEPS, Limits::tiny()).log.len()) {
        Ok(commands) => stats::add(stats::OPERATIONS, commands as u64),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            violation("O1", text);
        }
    }
    for (mark, hits) in marks::hits() {
        stats::add(mark, hits);
    }
}
