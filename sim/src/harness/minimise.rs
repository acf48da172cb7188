//! The smallest fault plan and workload that still fails in the same way: delta debugging over the plan that a
//! failing run wrote down, each candidate run again in a process of its own.

use super::recipe::Recipe;
use super::{Job, pool};
use crate::failure::Failure;
use crate::plan::{Plan, Planned, Strike};
use std::sync::atomic::{AtomicU64, Ordering};

/// What was found.
pub struct Minimised {
    /// The smallest that fails.
    pub recipe: Recipe,
    /// Strikes, frame faults and operations of the run as the seed drew it.
    pub before: (usize, usize, u64),
    /// Runs that it took.
    pub runs: u64,
}

/// Looks for the smallest plan of this failing job, in at most about so many runs.
pub fn minimise(job: &Job, runs_max: u64, tell: impl Fn(&str) + Sync) -> Result<Minimised, String> {
    let first = pool::run(job).report;
    let Some(failure) = first.failure.clone() else {
        return Err(format!("{} with seed {} does not fail", job.scenario, job.seed));
    };
    let recipe = Recipe::of(job, &first);
    let plan = recipe.job.plan.clone().ok_or("the run died without telling its plan")?;
    tell(&format!("fails: {}: {}", failure.oracle, failure.message));
    let again = pool::run(&recipe.job).report;
    if (again.hash, again.events) != (first.hash, first.events) {
        return Err(format!(
            "the plan, carried out, is another run: hash {:016x}, drawn {:016x}",
            again.hash, first.hash
        ));
    }
    let before = plan.size();
    let search = Search { job, failure, runs: AtomicU64::new(2), runs_max, tell: &tell };
    let plan = search.shrink(plan);
    let small = Job { plan: Some(plan), ..job.clone() };
    let last = pool::run(&small).report;
    let recipe =
        Recipe { failure: last.failure.clone(), hash: last.hash, events: last.events, job: small };
    let runs = search.runs.load(Ordering::Relaxed) + 1;
    Ok(Minimised { recipe, before, runs })
}

struct Search<'a> {
    job: &'a Job,
    failure: Failure,
    runs: AtomicU64,
    runs_max: u64,
    tell: &'a (dyn Fn(&str) + Sync),
}

impl Search<'_> {
    fn exhausted(&self) -> bool {
        self.runs.load(Ordering::Relaxed) >= self.runs_max
    }

    /// Whether it fails in the same way.
    fn fails(&self, plan: &Plan) -> bool {
        if self.exhausted() {
            return false;
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        let job = Job { plan: Some(plan.clone()), ..self.job.clone() };
        pool::run(&job).report.failure.is_some_and(|found| same(&found, &self.failure))
    }

    /// Which of the candidates is the first that fails; they are tried side by side.
    fn first_failing(&self, candidates: &[Plan]) -> Option<usize> {
        let at_once = pool::cores();
        candidates.chunks(at_once).enumerate().find_map(|(number, some)| {
            let fail = pool::map(some, |plan| self.fails(plan));
            fail.iter().position(|fails| *fails).map(|at| number * at_once + at)
        })
    }

    fn shrink(&self, mut plan: Plan) -> Plan {
        loop {
            let before = plan.clone();
            for (what, pass) in PASSES {
                plan = pass(self, plan);
                let (strikes, frames, operations) = plan.size();
                (self.tell)(&format!(
                    "{what}: {strikes} strikes, {frames} frame faults, {operations} operations, {} runs so far",
                    self.runs.load(Ordering::Relaxed)
                ));
            }
            if plan == before || self.exhausted() {
                return plan;
            }
        }
    }

    /// Leaves out as many of `all` as it can: `without` builds the plan that keeps those marked true.
    fn leave_out(
        &self,
        plan: Plan,
        count: usize,
        without: impl Fn(&Plan, &[bool]) -> Plan,
    ) -> Plan {
        let mut kept = vec![true; count];
        let (whole, mut best) = (plan.clone(), plan);
        let mut size = count;
        while size > 0 {
            let mut from = 0;
            while from < count {
                let candidates: Vec<Vec<bool>> = (from..count)
                    .step_by(size)
                    .map(|at| {
                        let mut fewer = kept.clone();
                        fewer[at..(at + size).min(count)].fill(false);
                        fewer
                    })
                    .filter(|fewer| *fewer != kept)
                    .collect();
                let mut plans: Vec<Plan> =
                    candidates.iter().map(|kept| without(&whole, kept)).collect();
                let Some(at) = self.first_failing(&plans) else { break };
                // Those before it were all needed.
                from = kept.iter().zip(&candidates[at]).position(|(a, b)| a != b).unwrap_or(0);
                kept.clone_from(&candidates[at]);
                best = plans.swap_remove(at);
            }
            size /= 2;
        }
        best
    }
}

type Pass = fn(&Search<'_>, Plan) -> Plan;

const PASSES: [(&str, Pass); 8] = [
    ("fewer frame faults", fewer_frames),
    ("fewer strikes", fewer_strikes),
    ("less damage", less_damage),
    ("fewer fault points", fewer_points),
    ("fewer operations", fewer_operations),
    ("single operations", single_operations),
    ("a plainer world", plainer_world),
    ("plainer strikes", plainer_strikes),
];

/// Same kind, same oracle; panics say the same up to their first number.
fn same(a: &Failure, b: &Failure) -> bool {
    let head = |failure: &Failure| {
        let text = if failure.by_panic() { failure.message.as_str() } else { "" };
        text.split(|c: char| c.is_ascii_digit()).next().unwrap_or("").to_owned()
    };
    a.kind == b.kind && a.oracle == b.oracle && head(a) == head(b)
}

fn fewer_frames(search: &Search<'_>, plan: Plan) -> Plan {
    let count = plan.frames.len();
    search.leave_out(plan, count, |plan, kept| {
        let frames = plan.frames.iter().zip(kept).filter(|(_, kept)| **kept);
        Plan { frames: frames.map(|(fault, _)| fault.clone()).collect(), ..plan.clone() }
    })
}

/// A strike that is left out leaves its wait behind, so that the others keep their times.
fn fewer_strikes(search: &Search<'_>, plan: Plan) -> Plan {
    let count = plan.strikes();
    search.leave_out(plan, count, |plan, kept| {
        let mut kept = kept.iter();
        let mut strikes = plan.strikes.clone();
        for planned in strikes.iter_mut().filter(|planned| planned.strike.is_some()) {
            if !kept.next().expect("one for each strike") {
                planned.strike = None;
            }
        }
        Plan { strikes, ..plan.clone() }
    })
}

fn less_damage(search: &Search<'_>, plan: Plan) -> Plan {
    let count = plan.damage.len();
    search.leave_out(plan, count, |plan, kept| {
        let damage = plan.damage.iter().zip(kept).filter(|(_, kept)| **kept);
        let damage = damage.map(|((number, what), _)| (*number, what.clone())).collect();
        Plan { damage, ..plan.clone() }
    })
}

fn fewer_points(search: &Search<'_>, plan: Plan) -> Plan {
    let count = plan.points.len();
    search.leave_out(plan, count, |plan, kept| {
        let points = plan.points.iter().zip(kept).filter(|(_, kept)| **kept);
        let points = points.map(|((name, fires), _)| (name.clone(), *fires)).collect();
        Plan { points, ..plan.clone() }
    })
}

/// Each client's operations: none, or only those up to some number, or from some number on.
fn fewer_operations(search: &Search<'_>, mut plan: Plan) -> Plan {
    let clients: Vec<String> = plan.programs.keys().cloned().collect();
    for client in clients {
        let with = |plan: &Plan, range: std::ops::Range<u64>| {
            let mut plan = plan.clone();
            plan.programs.insert(client.clone(), range);
            plan
        };
        let range = plan.programs[&client].clone();
        if range.is_empty() {
            continue;
        }
        let none = with(&plan, 0..0);
        if search.fails(&none) {
            plan = none;
            continue;
        }
        // Not all failures are monotonous in it: each step is checked, none is assumed.
        let mut step = (range.end - range.start) / 2;
        while step > 0 {
            let now = plan.programs[&client].clone();
            let candidates = [now.start..now.end.saturating_sub(step), now.start + step..now.end];
            let mut plans: Vec<Plan> = candidates
                .into_iter()
                .filter(|fewer| fewer.start < fewer.end)
                .map(|fewer| with(&plan, fewer))
                .collect();
            match search.first_failing(&plans) {
                Some(at) => plan = plans.swap_remove(at),
                None => step /= 2,
            }
        }
    }
    plan
}

/// Of the operations that are left each client leaves out as many as it can, wherever they stand.
fn single_operations(search: &Search<'_>, mut plan: Plan) -> Plan {
    for (client, range) in plan.programs.clone() {
        let before = plan.skipped.get(&client).cloned().unwrap_or_default();
        let left: Vec<u64> = range.filter(|number| !before.contains(number)).collect();
        plan = search.leave_out(plan, left.len(), |plan, kept| {
            let mut skipped = before.clone();
            skipped.extend(left.iter().zip(kept).filter(|(_, kept)| !**kept).map(|(at, _)| at));
            let mut plan = plan.clone();
            plan.skipped.insert(client.clone(), skipped);
            plan
        });
    }
    plan
}

/// Clocks without drift or offset, quick messages, fewer machines.
fn plainer_world(search: &Search<'_>, mut plan: Plan) -> Plan {
    let changes: [fn(&mut crate::world::Options); 8] = [
        |options| options.clock.drift_ppm_max = 0,
        |options| options.clock.offset_ms_max = 0,
        |options| (options.net.latency_us_min, options.net.latency_us_max) = (500, 501),
        |options| options.masters = 1,
        |options| options.masters = options.masters.min(3),
        |options| options.chunkservers = (options.data + options.parity).max(1),
        |options| options.chunkservers = options.chunkservers.saturating_sub(1).max(1),
        |options| options.clients = options.clients.saturating_sub(1).max(1),
    ];
    for change in changes {
        loop {
            let mut plainer = plan.clone();
            let Some(options) = &mut plainer.options else { return plan };
            change(options);
            if plainer == plan || !search.fails(&plainer) {
                break;
            }
            plan = plainer;
        }
    }
    plan
}

/// A kill at a moment instead of inside a call; no waits behind the last strike; one wait instead of several.
fn plainer_strikes(search: &Search<'_>, mut plan: Plan) -> Plan {
    let merged = Plan { strikes: merge_waits(&plan.strikes), ..plan.clone() };
    if merged != plan && search.fails(&merged) {
        plan = merged;
    }
    for at in 0..plan.strikes.len() {
        let Some(Strike::Down { node, power, inside: Some(_), back_ms }) = &plan.strikes[at].strike
        else {
            continue;
        };
        let strike =
            Strike::Down { node: node.clone(), power: *power, inside: None, back_ms: *back_ms };
        let mut plainer = plan.clone();
        plainer.strikes[at].strike = Some(strike);
        if search.fails(&plainer) {
            plan = plainer;
        }
    }
    plan
}

fn merge_waits(strikes: &[Planned]) -> Vec<Planned> {
    let (mut merged, mut waited) = (Vec::new(), 0);
    for planned in strikes {
        waited += planned.pause_ms;
        if planned.strike.is_some() {
            merged.push(Planned { pause_ms: waited, ..planned.clone() });
            waited = 0;
        }
    }
    merged
}

/// The plan as a short list for people.
pub fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    if let Some(options) = &plan.options {
        text += &format!(
            "world: {} masters, {} chunkservers, {} clients, layout {}+{}, {} limits, {}-{} us a message\n",
            options.masters,
            options.chunkservers,
            options.clients,
            options.data,
            options.parity,
            if options.tiny { "tiny" } else { "production" },
            options.net.latency_us_min,
            options.net.latency_us_max,
        );
    }
    for (client, range) in &plan.programs {
        let skipped = plan.skipped.get(client);
        let left = |at: &u64| !skipped.is_some_and(|skipped| skipped.contains(at));
        let left: Vec<u64> = range.clone().filter(left).map(|at| at + 1).collect();
        text += &match (&left[..], skipped.is_some_and(|skipped| !skipped.is_empty())) {
            ([], _) => format!("{client}: performs nothing before the world heals\n"),
            ([first, .., last], false) => {
                format!("{client}: performs its operations {first} to {last}\n")
            }
            (some, _) => format!("{client}: of its operations performs {some:?}\n"),
        };
    }
    let mut at = 0;
    for Planned { pause_ms, strike } in &plan.strikes {
        at += pause_ms;
        if let Some(strike) = strike {
            text += &format!("after {at} ms: {strike}\n");
        }
    }
    for (number, what) in &plan.damage {
        text += &format!("step {number} of further damage: {what}\n");
    }
    for (name, fires) in &plan.points {
        text += &format!("fault point \"{name}\", once in {} times\n", fires.out_of);
    }
    for fault in &plan.frames {
        text += &format!("{fault}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[test]
    fn waits_are_merged_and_strikes_keep_their_times() {
        let lag = Strike::Lag { least_ms: 1, most_ms: 2, ms: 3 };
        let wait = |pause_ms| Planned { pause_ms, strike: None };
        let strikes =
            [wait(5), Planned { pause_ms: 7, strike: Some(lag.clone()) }, wait(9), wait(1)];
        assert_eq!(merge_waits(&strikes), [Planned { pause_ms: 12, strike: Some(lag) }]);
    }

    #[test]
    fn failures_are_the_same_by_oracle_and_panics_by_their_words() {
        let failure = |oracle: &str, message: &str| Failure {
            kind: Kind::Crash,
            oracle: oracle.to_owned(),
            message: message.to_owned(),
        };
        assert!(same(&failure("O3", "one"), &failure("O3", "two")));
        assert!(!same(&failure("O3", "one"), &failure("O4", "one")));
        assert!(same(&failure("panic", "index 3 of 4"), &failure("panic", "index 9 of 1")));
        assert!(!same(&failure("panic", "index 3"), &failure("panic", "key 3")));
    }
}
