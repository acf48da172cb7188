//! Runs one scenario with one seed and prints its timeline.

use clap::Parser;
use mooseng_sim::{harness, scenarios, trace};

/// One simulated run: the same seed does the same in every process.
#[derive(Parser)]
#[command(name = "mooseng-sim")]
struct Args {
    /// Scenario; without one, lists them.
    scenario: Option<String>,
    /// Seed.
    #[arg(long, env = "MOOSENG_SEED", default_value_t = 1)]
    seed: u64,
    /// Plant this bug, for instance M01.
    #[arg(long)]
    bug: Option<String>,
    /// Print only the result.
    #[arg(long)]
    quiet: bool,
}

fn main() {
    let args = Args::parse();
    let Some(name) = args.scenario else {
        for scenario in scenarios::ALL {
            println!("{:<16} {}", scenario.name, scenario.about);
        }
        return;
    };
    let Some(scenario) = scenarios::find(&name) else {
        eprintln!("mooseng-sim: no scenario is called {name:?}; run without arguments to see them");
        std::process::exit(2);
    };
    if !args.quiet {
        trace::keep(trace::Keep { print: true, ..trace::Keep::default() });
    }
    let report = harness::run_here(
        scenario,
        &harness::Job::new(scenario.name, args.seed).with_bug(args.bug.as_deref()),
    );
    for (name, count) in &report.counts {
        println!("{name:<36} {count:>10}");
    }
    let (ms, hash, events) = (report.simulated_ms, report.hash, report.events);
    println!("{ms} simulated ms, hash {hash:016x} over {events} events");
    if let Some(failure) = &report.failure {
        println!("{:?}: {}: {}", failure.kind, failure.oracle, failure.message);
        println!("reproduce: {}", harness::reproduce(scenario.name, args.seed));
        std::process::exit(failure.kind.exit_code());
    }
}
