//! A failure in a file: what to run, and what comes of it.

use super::{Job, Report};
use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `mooseng-sim replay` takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What to run.
    pub job: Job,
    /// How it fails.
    pub failure: Option<Failure>,
    /// Hash of everything that happens.
    pub hash: u64,
    /// Events in the hash.
    pub events: u64,
}

impl Recipe {
    /// Of a run of `job` that ended in `report`; what was drawn in it becomes its plan.
    pub fn of(job: &Job, report: &Report) -> Recipe {
        let plan = report.plan.clone().or(job.plan.clone());
        Recipe {
            job: Job { plan, ..job.clone() },
            failure: report.failure.clone(),
            hash: report.hash,
            events: report.events,
        }
    }

    /// Writes it, for people and machines.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).expect("recipes print");
        super::files::write(path, &text)
    }

    /// Reads one.
    pub fn load(path: &Path) -> Result<Recipe, String> {
        let text = super::files::read(path)?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }
}
