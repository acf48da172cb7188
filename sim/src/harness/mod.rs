//! Runs scenarios: one process per seed, many at once, and adds up what they report.

mod child;
mod job;
mod run;
mod sweep;
mod table;

pub use child::{Outcome, child_main, spawn};
pub use job::Job;
pub use run::{Report, run_here};
pub use sweep::{determinism, hunt, seeds_from_env, sweep};

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// The body of a scenario: runs on the simulation's first task, fails through [`crate::failure`].
pub type Body = fn(u64) -> Pin<Box<dyn Future<Output = ()>>>;

/// Something to simulate.
pub struct Scenario {
    /// Name; also the name of the test.
    pub name: &'static str,
    /// What it does, one line.
    pub about: &'static str,
    /// Seeds of a sweep unless `MOOSENG_SEEDS` says otherwise.
    pub seeds: u64,
    /// Simulated time after which a run counts as stuck.
    pub limit: Duration,
    /// Counters that must not be zero after a sweep.
    pub must_count: &'static [&'static str],
    /// What it does.
    pub run: Body,
}

/// A planted bug with the scenario that must catch it.
pub struct Mutant {
    /// Name of its `bug!` site, for instance "M01".
    pub bug: &'static str,
    /// What is wrong, a few words.
    pub about: &'static str,
    /// The scenario.
    pub scenario: &'static str,
    /// Seeds within which it must be caught.
    pub seeds: u64,
}

/// The line that runs exactly this seed again.
pub fn reproduce(test: &str, seed: u64) -> String {
    format!("MOOSENG_SEED={seed} cargo test --features sim -- {test}")
}
