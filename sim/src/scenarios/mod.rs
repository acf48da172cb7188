//! What is simulated. Each scenario has a file of its own.

mod disk_model;
mod journal;

use crate::harness::{Mutant, Scenario};

/// Every scenario.
pub const ALL: &[Scenario] = &[disk_model::SCENARIO, journal::SCENARIO];

/// Every planted bug and the scenario that must catch it.
pub const MUTANTS: &[Mutant] =
    &[Mutant { bug: "NOSYNC", about: "acknowledged before fsync", scenario: "journal", seeds: 20 }];

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
