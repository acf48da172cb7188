//! What is simulated. Each scenario has a file of its own.

mod cluster_chaos;
mod disk_model;
mod failover;
mod journal;
mod namespace_chaos;
mod raft_chaos;
mod tables_model;

use crate::harness::{Mutant, Scenario};

/// Every scenario.
pub const ALL: &[Scenario] = &[
    disk_model::SCENARIO,
    journal::SCENARIO,
    raft_chaos::SCENARIO,
    cluster_chaos::SCENARIO,
    failover::SCENARIO,
    namespace_chaos::SCENARIO,
    tables_model::SCENARIO,
];

/// Every planted bug and the scenario that must catch it.
pub const MUTANTS: &[Mutant] = &[
    Mutant { bug: "NOSYNC", about: "acknowledged before fsync", scenario: "journal", seeds: 20 },
    Mutant {
        bug: "M01",
        about: "append acknowledged before log fsync",
        scenario: "raft_chaos",
        seeds: 20,
    },
    Mutant {
        bug: "M02",
        about: "vote granted before vote fsync",
        scenario: "raft_chaos",
        seeds: 20,
    },
    Mutant {
        bug: "M21",
        about: "chunk acknowledged before fsync",
        scenario: "cluster_chaos",
        seeds: 10,
    },
    Mutant {
        bug: "M12",
        about: "checkpoint published before its fsync",
        scenario: "tables_model",
        seeds: 6,
    },
    Mutant { bug: "M39", about: "retry applied twice", scenario: "raft_chaos", seeds: 20 },
    Mutant {
        bug: "M16",
        about: "deposed leader serves a local read",
        scenario: "namespace_chaos",
        seeds: 20,
    },
    Mutant {
        bug: "M44",
        about: "rename into its own subtree",
        scenario: "namespace_chaos",
        seeds: 20,
    },
    Mutant {
        bug: "M45",
        about: "readdir cookie skips or repeats",
        scenario: "namespace_chaos",
        seeds: 20,
    },
    Mutant {
        bug: "M47",
        about: "unlinked open file collected early",
        scenario: "namespace_chaos",
        seeds: 20,
    },
];

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
