//! Runs scenarios: one process per seed, many at once, and adds up what they report.

pub mod bank;
pub mod campaign;
mod child;
pub mod classes;
pub mod files;
mod job;
mod kept;
pub mod minimise;
mod panics;
mod pool;
mod recipe;
mod run;
mod share;
mod sweep;
mod table;
pub mod timeline;

pub use child::{Outcome, child_main, spawn};
pub use job::Job;
pub use pool::{map, run as run_child};
pub use recipe::Recipe;
pub use run::{Report, run_here};
pub use share::Share;
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
    /// Seeds of a sweep unless `MOOSENG_SEEDS` says otherwise; 0 for one that does not pass yet and that only
    /// `mooseng-sim` runs.
    pub seeds: u64,
    /// Simulated time after which a run counts as stuck.
    pub limit: Duration,
    /// Counters that must not be zero after a sweep.
    pub must_count: &'static [&'static str],
    /// What it does.
    pub run: Body,
}

/// A planted bug with a scenario that should catch it.
pub struct Mutant {
    /// Name of its `bug!` site, for instance "M01".
    pub bug: &'static str,
    /// What is wrong, a few words.
    pub about: &'static str,
    /// The scenario.
    pub scenario: &'static str,
    /// Seeds within which the test suite must catch it; 0 if the scenario does not catch it reliably.
    pub seeds: u64,
    /// Of one that is not caught reliably: what would catch it.
    pub needs: &'static str,
}

impl Mutant {
    /// One that is caught within so many seeds.
    pub const fn caught(
        bug: &'static str,
        about: &'static str,
        scenario: &'static str,
        seeds: u64,
    ) -> Mutant {
        Mutant { bug, about, scenario, seeds, needs: "more seeds" }
    }

    /// One that is not caught reliably.
    pub const fn missed(
        bug: &'static str,
        about: &'static str,
        scenario: &'static str,
        needs: &'static str,
    ) -> Mutant {
        Mutant { bug, about, scenario, seeds: 0, needs }
    }
}

/// The line that runs exactly this seed again.
pub fn reproduce(test: &str, seed: u64) -> String {
    format!("MOOSENG_SEED={seed} cargo test --features sim -- {test}")
}
