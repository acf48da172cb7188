//! Subcommands about many runs.

use mooseng_sim::harness::{
    Scenario, bank as harness_bank, campaign, classes as harness_classes, files,
};
use mooseng_sim::scenarios;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub fn sweep(
    scenario: &Scenario,
    seeds: Range<u64>,
    dir: &Path,
    keep_going: bool,
) -> Result<i32, String> {
    let state = campaign::sweep(scenario, seeds, dir, keep_going)?;
    print!("{}", state.table(scenario.must_count));
    let sum = |name: &str| state.counts.get(name).map_or(0, |total| total.sum);
    let shares = scenarios::SHARES.iter().filter(|share| share.scenario == scenario.name);
    let shares: Vec<Result<String, String>> = shares.map(|share| share.judge(sum)).collect();
    for Ok(line) | Err(line) in &shares {
        println!("{line}");
    }
    if let Some((seed, failure)) = state.failures.iter().next() {
        println!("first failure: seed {seed}: {}: {}", failure.oracle, failure.message);
        return Ok(failure.kind.exit_code());
    }
    let missing: Vec<&&str> = scenario.must_count.iter().filter(|name| sum(name) == 0).collect();
    if missing.is_empty() {
        return Ok(i32::from(shares.iter().any(Result::is_err)));
    }
    println!("this sweep never saw {missing:?}: it proves less than it claims");
    Ok(1)
}

/// The bug bank.
#[derive(clap::Args)]
pub struct BankArgs {
    /// One detection for each bug instead of ten.
    #[arg(long)]
    quick: bool,
    /// Only this bug.
    #[arg(long)]
    only: Option<String>,
    /// Each hunt a second time with the library's own assertions off.
    #[arg(long)]
    no_asserts: bool,
    /// Seeds after which a hunt gives up.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Keep the hunts that ended in this file, and go on from there.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Write the page with the table to this file.
    #[arg(long)]
    write: Option<PathBuf>,
}

pub fn bank(args: &BankArgs) -> Result<i32, String> {
    let settings = harness_bank::Settings {
        detections: if args.quick { 1 } else { 10 },
        seeds_max: args.seeds,
        without_asserts: args.no_asserts,
        only: args.only.clone(),
        state: args.state.clone(),
    };
    let rows = harness_bank::run(scenarios::MUTANTS, &settings)?;
    if rows.is_empty() {
        return Err(format!("no planted bug is called {:?}", args.only.as_deref().unwrap_or("")));
    }
    print!("{}", harness_bank::table(&rows));
    print!("\n{}", harness_bank::summary(&rows));
    if let Some(path) = &args.write {
        files::write(path, &harness_bank::page(&rows, &settings, scenarios::ABSENT))?;
    }
    let breaches = harness_bank::breaches(&rows);
    for breach in &breaches {
        println!("the bank does not hold: {breach}");
    }
    Ok(i32::from(!breaches.is_empty()))
}

/// What each class of faults is good for.
#[derive(clap::Args)]
pub struct ClassesArgs {
    /// Seeds of each bug with and without each class.
    #[arg(long, default_value_t = 25)]
    seeds: u64,
    /// More, up to so many, for a bug that those do not see often enough.
    #[arg(long, default_value_t = 100)]
    seeds_max: u64,
    /// Only this bug.
    #[arg(long)]
    only: Option<String>,
    /// Only this scenario.
    #[arg(long)]
    scenario: Option<String>,
    /// Keep what is done in this file, and go on from there.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Write the page with the tables to this file.
    #[arg(long)]
    write: Option<PathBuf>,
}

pub fn classes(args: &ClassesArgs) -> Result<i32, String> {
    let settings = harness_classes::Settings {
        seeds: args.seeds,
        seeds_max: args.seeds_max,
        bug: args.only.clone(),
        scenario: args.scenario.clone(),
        state: args.state.clone(),
    };
    let rows = harness_classes::run(scenarios::MUTANTS, &settings)?;
    if rows.is_empty() {
        return Err("no planted bug is called that, or not in that scenario".to_owned());
    }
    print!("{}\n{}", harness_classes::table(&rows), harness_classes::bugs(&rows));
    print!("\n{}", harness_classes::summary(&rows));
    if let Some(path) = &args.write {
        files::write(path, &harness_classes::page(&rows, &settings))?;
    }
    Ok(0)
}
