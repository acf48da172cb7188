//! What one process is to run.

use crate::plan::{FaultClass, Plan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// A bug to plant.
    pub bug: Option<String>,
    /// The library's own assertions are off: only oracles may see what is wrong.
    pub no_asserts: bool,
    /// Faults and workload to carry out instead of drawing them.
    pub plan: Option<Plan>,
    /// Classes of faults to leave out.
    #[serde(default)]
    pub off: BTreeSet<FaultClass>,
}

impl Job {
    /// This seed, and nothing else.
    pub fn new(scenario: &str, seed: u64) -> Job {
        let scenario = scenario.to_owned();
        Job { scenario, seed, bug: None, no_asserts: false, plan: None, off: BTreeSet::new() }
    }

    /// The same with a planted bug.
    pub fn with_bug(self, bug: Option<&str>) -> Job {
        Job { bug: bug.map(str::to_owned), ..self }
    }
}
