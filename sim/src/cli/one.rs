//! Subcommands about one run.

use super::{How, find, print_result};
use mooseng_sim::harness::{self, Job, Recipe, Report, minimise, timeline as page};
use mooseng_sim::log_lines;
use mooseng_sim::{plan, scenarios, trace};
use std::path::Path;

/// Runs it in this process.
fn here(job: &Job, keep: trace::Keep) -> Result<Report, String> {
    log_lines::install();
    let scenario = find(&job.scenario)?;
    trace::keep(keep);
    Ok(harness::run_here(scenario, job))
}

pub fn run(job: &Job, quiet: bool, operations: bool, save: Option<&Path>) -> Result<i32, String> {
    let keep = trace::Keep { print: !quiet, print_operations: operations, all: false };
    let report = here(job, keep)?;
    print_result(&report);
    if let Some(path) = save {
        let drawn = Job { plan: Some(plan::recorded()), ..job.clone() };
        Recipe::of(&drawn, &report).save(path)?;
        println!("to carry it out again: mooseng-sim replay {}", path.display());
    }
    if report.failure.is_some() && job.bug.is_none() && job.off.is_empty() {
        println!("reproduce: {}", harness::reproduce(&job.scenario, job.seed));
    }
    Ok(report.exit_code())
}

pub fn replay(file: &Path, times: u64, quiet: bool) -> Result<i32, String> {
    let recipe = Recipe::load(file)?;
    if times > 1 {
        return replay_often(&recipe, times);
    }
    let keep = trace::Keep { print: !quiet, ..trace::Keep::default() };
    let report = here(&recipe.job, keep)?;
    print_result(&report);
    compare(&recipe, &report).unwrap_or_else(|why| println!("{why}"));
    Ok(report.exit_code())
}

fn replay_often(recipe: &Recipe, times: u64) -> Result<i32, String> {
    find(&recipe.job.scenario)?;
    let jobs = vec![recipe.job.clone(); usize::try_from(times).unwrap_or(usize::MAX)];
    let reports = harness::map(&jobs, |job| harness::run_child(job).report);
    for report in &reports {
        compare(recipe, report)?;
    }
    let last = reports.last().ok_or("nothing was run")?;
    print_result(last);
    println!("{times} runs, all as the file says");
    Ok(last.exit_code())
}

/// Another build may do something else; then the file is out of date.
fn compare(recipe: &Recipe, report: &Report) -> Result<(), String> {
    if report.failure != recipe.failure {
        return Err(format!("the file says it fails with {:?}", recipe.failure));
    }
    if (report.hash, report.events) != (recipe.hash, recipe.events) {
        let (hash, events) = (recipe.hash, recipe.events);
        return Err(format!("the file says hash {hash:016x} over {events} events: another build?"));
    }
    Ok(())
}

pub fn minimise(job: &Job, runs: u64, output: &Path) -> Result<i32, String> {
    find(&job.scenario)?;
    let found = minimise::minimise(job, runs, |text| println!("{text}"))?;
    found.recipe.save(output)?;
    let plan = found.recipe.job.plan.clone().unwrap_or_default();
    let (strikes, frames, operations) = plan.size();
    let before = found.before;
    println!(
        "\nafter {} runs: {strikes} of {} strikes, {frames} of {} frame faults, {operations} of {} operations\n",
        found.runs, before.0, before.1, before.2
    );
    print!("{}", minimise::describe(&plan));
    let Some(failure) = &found.recipe.failure else {
        return Err("the smallest plan does not fail any more: not deterministic?".to_owned());
    };
    println!("\n{:?}: {}: {}", failure.kind, failure.oracle, failure.message);
    println!("replay: mooseng-sim replay {}", output.display());
    Ok(failure.kind.exit_code())
}

pub fn timeline(what: &str, how: &How, output: &Path) -> Result<i32, String> {
    let job = match scenarios::find(what) {
        Some(_) => how.job(what),
        None if what.ends_with(".json") => Recipe::load(Path::new(what))?.job,
        None => return Err(format!("{what:?} is neither a scenario nor a file of `minimise`")),
    };
    let report = here(&job, trace::Keep { all: true, ..trace::Keep::default() })?;
    let entries = trace::lines();
    harness::files::write(output, &page::page(&job, &report, &entries))?;
    print_result(&report);
    println!("{} lines drawn in {}", entries.len(), output.display());
    Ok(report.exit_code())
}
