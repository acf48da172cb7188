//! What is simulated. Each scenario has a file of its own.

mod another_disk;
mod append_turns;
mod beyond_budget;
mod busy_leader;
mod calm_day;
mod catching_up;
mod client_model;
mod cluster_chaos;
mod cut_and_close;
mod damage;
mod damage_chaos;
mod deposed_leader;
mod disk_model;
mod erasure_chaos;
mod erasure_model;
mod error_reporting;
mod failover;
mod founder_dies;
mod frame_chaos;
mod given_up;
mod half_changed;
mod hung_disk;
mod journal;
mod late_session;
mod lost_in_a_row;
mod master_full;
mod members_chaos;
mod moved_away;
mod mutants;
mod namespace_chaos;
mod namespace_model;
mod next_session;
mod no_majority;
mod outlived;
mod placement_model;
mod raft_chaos;
mod removed_elsewhere;
mod replaced_under_open;
mod rot_while_away;
mod rotten_source;
mod servers_fail;
mod servers_full;
mod single_fault;
mod small_raft;
mod store_model;
mod tables_model;
mod told_late;
mod wal_model;
mod wrong_clock;

use crate::harness::{Mutant, Scenario, Share};

/// Every scenario.
pub const ALL: &[Scenario] = &[
    disk_model::SCENARIO,
    journal::SCENARIO,
    raft_chaos::SCENARIO,
    cluster_chaos::SCENARIO,
    failover::SCENARIO,
    namespace_chaos::SCENARIO,
    namespace_chaos::MEMBERS,
    damage_chaos::SCENARIO,
    frame_chaos::SCENARIO,
    members_chaos::SCENARIO,
    erasure_chaos::SCENARIO,
    small_raft::SCENARIO,
    single_fault::SCENARIO,
    error_reporting::SCENARIO,
    catching_up::SCENARIO,
    error_reporting::FSYNC_ERRORS,
    cluster_chaos::LONG,
    append_turns::SCENARIO,
    deposed_leader::SCENARIO,
    removed_elsewhere::SCENARIO,
    told_late::SCENARIO,
    lost_in_a_row::SCENARIO,
    late_session::SCENARIO,
    next_session::SCENARIO,
    no_majority::SCENARIO,
    rot_while_away::SCENARIO,
    servers_fail::SCENARIO,
    servers_full::SCENARIO,
    hung_disk::SCENARIO,
    tables_model::SCENARIO,
    wal_model::SCENARIO,
    wal_model::FAULTS,
    store_model::SCENARIO,
    namespace_model::SCENARIO,
    client_model::SCENARIO,
    moved_away::SCENARIO,
    outlived::SCENARIO,
    rotten_source::SCENARIO,
    another_disk::SCENARIO,
    founder_dies::SCENARIO,
    beyond_budget::SCENARIO,
    busy_leader::SCENARIO,
    cut_and_close::SCENARIO,
    given_up::SCENARIO,
    half_changed::SCENARIO,
    replaced_under_open::SCENARIO,
    erasure_model::SCENARIO,
    placement_model::SCENARIO,
    damage::SCENARIO,
    master_full::SCENARIO,
    master_full::TIGHT,
    wrong_clock::SCENARIO,
];

/// Every planted bug with the scenarios that should catch it.
pub const MUTANTS: &[Mutant] = mutants::ALL;
/// What all runs of a sweep must show together.
pub const SHARES: &[Share] = &[failover::GAPS];
/// Bugs of the bank without a site, and why.
pub const ABSENT: &[(&str, &str)] = mutants::ABSENT;

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_names_a_scenario_and_stands_once() {
        for (at, mutant) in MUTANTS.iter().enumerate() {
            assert!(find(mutant.scenario).is_some(), "{}: {}", mutant.bug, mutant.scenario);
            let same =
                |other: &Mutant| (other.bug, other.scenario) == (mutant.bug, mutant.scenario);
            assert!(!MUTANTS[..at].iter().any(same), "{} twice in {}", mutant.bug, mutant.scenario);
        }
    }

    #[test]
    fn the_whole_bank_is_accounted_for() {
        for number in 1..=54 {
            let bug = format!("M{number:02}");
            let planted = MUTANTS.iter().any(|mutant| mutant.bug == bug);
            let absent = ABSENT.iter().any(|(absent, _)| *absent == bug);
            assert!(planted != absent, "{bug}: planted {planted}, absent {absent}");
        }
    }
}
