//! One seed in this process.

use super::panics;
use super::{Job, Scenario};
use crate::failure::{self, Failure, Kind};
use crate::plan::{self, FaultClass, Plan};
use crate::{stats, trace};
use madsim::runtime::Runtime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run tells its parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The bug that was planted.
    pub bug: Option<String>,
    /// How often its site was reached.
    pub bug_reached: u64,
    /// Rolling hash of everything that happened.
    pub hash: u64,
    /// Events in the hash.
    pub events: u64,
    /// Simulated time, milliseconds.
    pub simulated_ms: u64,
    /// Counters.
    pub counts: BTreeMap<String, u64>,
    /// Marks of rare branches.
    pub marks: BTreeMap<String, u64>,
    /// Classes of faults that struck, and how often.
    pub classes: BTreeMap<FaultClass, u64>,
    /// How it failed.
    pub failure: Option<Failure>,
    /// What was injected and done, of a run that failed.
    pub plan: Option<Plan>,
}

impl Report {
    /// Of a run that has not happened.
    pub fn empty(job: &Job) -> Report {
        Report {
            scenario: job.scenario.clone(),
            seed: job.seed,
            bug: job.bug.clone(),
            bug_reached: 0,
            hash: 0,
            events: 0,
            simulated_ms: 0,
            counts: BTreeMap::new(),
            marks: BTreeMap::new(),
            classes: BTreeMap::new(),
            failure: None,
            plan: None,
        }
    }

    /// Exit code of the process that ran it: crashes, lack of progress and wrong behaviour apart.
    pub fn exit_code(&self) -> i32 {
        self.failure.as_ref().map_or(0, |failure| failure.kind.exit_code())
    }
}

/// Runs the scenario in this process, which must not run another one afterwards.
pub fn run_here(scenario: &Scenario, job: &Job) -> Report {
    panics::watch();
    mooseng::marks::plant(job.bug.as_deref());
    mooseng::marks::assert_invariants(!job.no_asserts);
    plan::leave_out(job.off.clone());
    if let Some(plan) = &job.plan {
        plan::give(plan.clone());
    }
    let seed = job.seed;
    let mut runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
    runtime.set_time_limit(scenario.limit);
    let run = scenario.run;
    let finished = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async move {
            run(seed).await;
            trace::say(trace::Kind::Phase, "-", "the scenario is over");
        })
    }));
    let failure = finished.err().map(|panic| failure_of(panic.as_ref()));
    let (hash, events) = trace::hash();
    let report = Report {
        bug_reached: mooseng::marks::bug_reached(),
        hash,
        events,
        simulated_ms: trace::last_ns() / 1_000_000,
        counts: stats::all(),
        marks: mooseng::marks::hits().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        classes: plan::struck(),
        plan: failure.is_some().then(plan::recorded),
        failure,
        ..Report::empty(job)
    };
    // Destructors of a half-dead world tell nothing, and may panic.
    std::mem::forget(runtime);
    report
}

fn failure_of(panic: &(dyn std::any::Any + Send)) -> Failure {
    if let Some(failure) = failure::first() {
        return failure;
    }
    let message = panics::text(panic).to_owned();
    let stuck = message.contains("time limit exceeded") || message.contains("all tasks will block");
    let kind = if stuck { Kind::Liveness } else { Kind::Crash };
    let oracle = if stuck { "time limit".to_owned() } else { panics::oracle(&message) };
    trace::broken(&format!("{oracle}: {message}"));
    Failure { kind, oracle, message }
}
