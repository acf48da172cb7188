//! Simulations, one process per seed. `MOOSENG_SEEDS=1000` sets the seeds per scenario, `MOOSENG_SEED=7` runs
//! exactly one. Also: planted bugs that must be caught, and the same seed in several processes.

use libtest_mimic::{Arguments, Failed, Trial};
use mooseng_sim::{harness, scenarios};

/// Processes that must agree on one seed, unless `MOOSENG_PROCESSES` says otherwise.
const PROCESSES: u64 = 2;

fn main() {
    harness::child_main(scenarios::ALL);
    let mut trials = Vec::new();
    for scenario in scenarios::ALL.iter().filter(|scenario| scenario.seeds > 0) {
        trials
            .push(Trial::test(scenario.name, || Ok(harness::sweep(scenario, scenarios::SHARES)?)));
        let name = format!("determinism_{}", scenario.name);
        trials.push(Trial::test(name, || determinism(scenario)));
    }
    for mutant in scenarios::MUTANTS.iter().filter(|mutant| mutant.seeds > 0) {
        let name = format!("mutant_{}_{}", mutant.bug.to_lowercase(), mutant.scenario);
        trials.push(Trial::test(name, || Ok(harness::hunt(mutant)?)));
    }
    let mut args = Arguments::from_args();
    // The line that reproduces a failure names a scenario: its mutants are not meant.
    args.exact |= args.filter.as_deref().is_some_and(|name| scenarios::find(name).is_some());
    libtest_mimic::run(&args, trials).exit();
}

fn determinism(scenario: &harness::Scenario) -> Result<(), Failed> {
    let processes = match std::env::var("MOOSENG_PROCESSES") {
        Ok(text) => {
            text.parse().map_err(|_| format!("MOOSENG_PROCESSES: not a number: {text:?}"))?
        }
        Err(_) => PROCESSES,
    };
    for seed in harness::seeds_from_env(1)? {
        harness::determinism(scenario, seed, processes)?;
    }
    Ok(())
}
