//! Many seeds of one scenario, as many processes at once as there are cores.

use super::child::Outcome;
use super::{Job, Mutant, Scenario, Share, pool, reproduce, table};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `MOOSENG_SEED`: exactly that one. `MOOSENG_SEEDS`: so many from 1, or a range `500..1000`.
pub fn seeds_from_env(default: u64) -> Result<Range<u64>, String> {
    let number =
        |text: &str| text.trim().parse::<u64>().map_err(|_| format!("not a seed: {text:?}"));
    if let Ok(seed) = std::env::var("MOOSENG_SEED") {
        let seed = number(&seed)?;
        return Ok(seed..seed + 1);
    }
    match std::env::var("MOOSENG_SEEDS") {
        Err(_) => Ok(1..default + 1),
        Ok(text) => match text.split_once("..") {
            Some((from, to)) => Ok(number(from)?..number(to)?),
            None => Ok(1..number(&text)? + 1),
        },
    }
}

/// Runs the seeds; stops at the first outcome that `enough` accepts. In seed order.
fn run_all(
    scenario: &str,
    bug: Option<&str>,
    seeds: Range<u64>,
    enough: impl Fn(&Outcome) -> bool + Sync,
) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    pool::each(
        || {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            (seed < seeds.end).then(|| Job::new(scenario, seed).with_bug(bug))
        },
        |_, outcome| {
            let stop = enough(&outcome);
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
            stop
        },
    );
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.report.seed);
    outcomes
}

/// Runs the scenario over seeds, prints what was done and injected, and fails with the first failing seed or
/// with what never happened, or with a share that all of them together miss.
pub fn sweep(scenario: &Scenario, shares: &[Share]) -> Result<(), String> {
    let seeds = seeds_from_env(scenario.seeds)?;
    let single = seeds.end - seeds.start == 1;
    let outcomes = run_all(scenario.name, None, seeds, |outcome| outcome.report.failure.is_some());
    print!("{}", table::of(scenario, &outcomes));
    if let Some(failed) = outcomes.iter().find(|outcome| outcome.report.failure.is_some()) {
        return Err(describe(failed, scenario.name));
    }
    let sum = |name: &str| {
        outcomes.iter().filter_map(|outcome| outcome.report.counts.get(name)).sum::<u64>()
    };
    for share in shares.iter().filter(|share| share.scenario == scenario.name) {
        println!("  {}", share.judge(sum)?);
    }
    let missing: Vec<&&str> = scenario.must_count.iter().filter(|name| sum(name) == 0).collect();
    if single || missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = missing.iter().map(|name| format!("{name:?}")).collect();
    Err(format!("this sweep never saw {}: it proves less than it claims", missing.join(", ")))
}

fn describe(outcome: &Outcome, test: &str) -> String {
    let report = &outcome.report;
    let mut text = outcome.tail.join("\n");
    if let Some(failure) = &report.failure {
        text += &format!("\n\nseed {}: {:?}: ", report.seed, failure.kind);
        text += &format!("{}: {}", failure.oracle, failure.message);
    }
    text + &format!("\nreproduce: {}", reproduce(test, report.seed))
}

/// Plants a bug and looks for a seed that catches it, and that is quiet without it.
pub fn hunt(mutant: &Mutant) -> Result<(), String> {
    let seeds = seeds_from_env(0)?;
    let single = std::env::var("MOOSENG_SEED").is_ok();
    let seeds = if single { seeds } else { 1..mutant.seeds + 1 };
    let caught = |outcome: &Outcome| outcome.report.failure.is_some();
    let outcomes = run_all(mutant.scenario, Some(mutant.bug), seeds, caught);
    let tried = outcomes.len();
    let reached = outcomes.iter().filter(|outcome| outcome.report.bug_reached > 0).count();
    let found = outcomes.iter().find(|outcome| caught(outcome) && outcome.report.bug_reached > 0);
    let name = format!("{} ({}) in {}", mutant.bug, mutant.about, mutant.scenario);
    match found.and_then(|outcome| outcome.report.failure.as_ref().map(|f| (outcome, f))) {
        Some((outcome, failure)) => {
            let (seed, oracle) = (outcome.report.seed, &failure.oracle);
            println!("{name}: caught by {oracle} at seed {seed}, {tried} seeds tried");
            println!("    {}", failure.message);
            match pool::run(&Job::new(mutant.scenario, seed)).report.failure {
                Some(alarm) => Err(format!(
                    "{name}: seed {seed} fails without it as well: {}: {}",
                    alarm.oracle, alarm.message
                )),
                None => Ok(()),
            }
        }
        None => {
            Err(format!("{name}: not caught in {tried} seeds; its site was reached in {reached}"))
        }
    }
}

/// Runs one seed several times: every process must do exactly the same (oracle O12).
pub fn determinism(scenario: &Scenario, seed: u64, processes: u64) -> Result<(), String> {
    let jobs: Vec<Job> = (0..processes).map(|_| Job::new(scenario.name, seed)).collect();
    let outcomes = pool::map(&jobs, pool::run);
    let first = &outcomes[0];
    let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    for other in &outcomes[1..] {
        if other.report != first.report {
            return Err(difference(first, other, scenario.name));
        }
    }
    let (hash, events) = (first.report.hash, first.report.events);
    println!(
        "{} seed {seed}: {} of {processes} processes agree, hash {hash:016x} over {events} events, {took:.1?} in all",
        scenario.name,
        outcomes.len(),
    );
    Ok(())
}

fn difference(a: &Outcome, b: &Outcome, name: &str) -> String {
    let lines = a.tail.iter().zip(&b.tail).find(|(a, b)| a != b);
    let shown = match lines {
        Some((a, b)) => format!("first lines that differ among the last:\n  {a}\n  {b}"),
        None => "the last lines of the timelines are the same".to_owned(),
    };
    let (x, y) = (&a.report, &b.report);
    format!(
        "O12: two processes of seed {} differ: hash {:016x} over {} events, {:016x} over {}; {shown}\nreproduce: {}",
        x.seed,
        x.hash,
        x.events,
        y.hash,
        y.events,
        reproduce(&format!("determinism_{name}"), x.seed)
    )
}
