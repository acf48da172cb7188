//! The subcommands. A run that fails gives the exit code of its kind: 10 the code crashed, 11 something that
//! must happen did not, 12 something happened that must not. 2 is a mistake in the command, 1 a bank that
//! does not hold or a sweep that never saw what it must.

mod many;
mod one;

use clap::{Parser, Subcommand};
use mooseng_sim::harness::{Job, Report, Scenario};
use mooseng_sim::plan::FaultClass;
use mooseng_sim::scenarios;
use std::ops::Range;
use std::path::PathBuf;

/// Simulated clusters: the same seed does the same in every process.
#[derive(Parser)]
#[command(
    name = "mooseng-sim",
    after_help = "Exit codes of runs: 0 fine, 10 a crash, 11 no progress, 12 wrong behaviour."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Subcommand)]
enum Command {
    /// Lists scenarios and planted bugs.
    List,
    /// Runs one seed and prints its timeline.
    Run {
        #[command(flatten)]
        which: Which,
        /// Print only the result.
        #[arg(long)]
        quiet: bool,
        /// Clients' operations in the timeline as well.
        #[arg(long)]
        operations: bool,
        /// Write what was drawn to a file that `replay` takes.
        #[arg(long)]
        save: Option<PathBuf>,
    },
    /// Carries out what a file says: of `minimise`, of a failure in a sweep, or of `run --save`.
    Replay {
        /// The file.
        file: PathBuf,
        /// So often, each in a process of its own; all must do the same.
        #[arg(long, default_value_t = 1)]
        times: u64,
        /// Print only the result.
        #[arg(long)]
        quiet: bool,
    },
    /// Runs many seeds, over days if need be: what is done stands in a directory.
    Sweep {
        /// The scenario.
        scenario: String,
        /// The seeds, for instance 1..1000; the last one is not run.
        #[arg(long, value_parser = seeds)]
        seeds: Range<u64>,
        /// The directory.
        #[arg(long)]
        state: PathBuf,
        /// Go on after a failure.
        #[arg(long)]
        keep_going: bool,
    },
    /// Plants each bug of the bank and looks how soon it is seen.
    Bank(many::BankArgs),
    /// Plants each bug of the bank without each class of faults, and with it alone.
    Classes(many::ClassesArgs),
    /// Looks for the smallest fault plan and workload with which a seed still fails.
    Minimise {
        #[command(flatten)]
        which: Which,
        /// At most about so many runs.
        #[arg(long, default_value_t = 400)]
        runs: u64,
        /// Where the result goes.
        #[arg(short, long, default_value = "minimised.json")]
        output: PathBuf,
    },
    /// Draws one run as a page for a browser.
    Timeline {
        /// The scenario, or a file that `replay` takes.
        what: String,
        #[command(flatten)]
        how: How,
        /// The page.
        #[arg(short, long, default_value = "timeline.html")]
        output: PathBuf,
    },
}

/// Which run.
#[derive(clap::Args)]
struct Which {
    /// The scenario.
    scenario: String,
    #[command(flatten)]
    how: How,
}

/// Which run of a scenario.
#[derive(clap::Args)]
struct How {
    /// The seed.
    #[arg(long, env = "MOOSENG_SEED", default_value_t = 1)]
    seed: u64,
    /// Plant this bug, for instance M01.
    #[arg(long)]
    bug: Option<String>,
    /// Switch the library's own assertions off.
    #[arg(long)]
    no_asserts: bool,
    /// Leave these classes of faults out, for instance kill,rot; an unknown one is answered with all.
    #[arg(long, value_delimiter = ',')]
    without: Vec<FaultClass>,
    /// Leave out all classes of faults but this one and what it needs.
    #[arg(long, conflicts_with = "without")]
    alone: Option<FaultClass>,
}

impl How {
    fn job(&self, scenario: &str) -> Job {
        let job = Job::new(scenario, self.seed).with_bug(self.bug.as_deref());
        let without = || self.without.iter().copied().collect();
        let off = self.alone.map_or_else(without, FaultClass::alone);
        Job { no_asserts: self.no_asserts, off, ..job }
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not a range such as 1..1000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(format!("{text} is empty")) } else { Ok(range) }
}

fn find(name: &str) -> Result<&'static Scenario, String> {
    scenarios::find(name)
        .ok_or_else(|| format!("no scenario is called {name:?}; `mooseng-sim list` shows them"))
}

impl Args {
    /// Does it; the exit code.
    pub fn run(self) -> Result<i32, String> {
        match self.command {
            Command::List => list(),
            Command::Run { which, quiet, operations, save } => {
                one::run(&which.how.job(&which.scenario), quiet, operations, save.as_deref())
            }
            Command::Replay { file, times, quiet } => one::replay(&file, times, quiet),
            Command::Sweep { scenario, seeds, state, keep_going } => {
                many::sweep(find(&scenario)?, seeds, &state, keep_going)
            }
            Command::Bank(args) => many::bank(&args),
            Command::Classes(args) => many::classes(&args),
            Command::Minimise { which, runs, output } => {
                one::minimise(&which.how.job(&which.scenario), runs, &output)
            }
            Command::Timeline { what, how, output } => one::timeline(&what, &how, &output),
        }
    }
}

fn list() -> Result<i32, String> {
    println!("scenarios:");
    for scenario in scenarios::ALL {
        println!("  {:<18} {}", scenario.name, scenario.about);
    }
    println!("planted bugs:");
    for mutant in scenarios::MUTANTS {
        println!("  {:<6} {:<18} {}", mutant.bug, mutant.scenario, mutant.about);
    }
    Ok(0)
}

/// The end of a run for people.
fn print_result(report: &Report) {
    for (name, count) in &report.counts {
        println!("{name:<36} {count:>10}");
    }
    let (ms, hash, events) = (report.simulated_ms, report.hash, report.events);
    println!("{ms} simulated ms, hash {hash:016x} over {events} events");
    if let Some(bug) = &report.bug {
        println!("the site of {bug} was reached {} times", report.bug_reached);
    }
    if let Some(failure) = &report.failure {
        println!("{:?}: {}: {}", failure.kind, failure.oracle, failure.message);
    }
}
