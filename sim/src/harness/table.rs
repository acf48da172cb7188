//! What a sweep did, as one table.

use super::Scenario;
use super::child::Outcome;
use crate::plan::FaultClass;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// The table of a sweep: for each counter the sum over all seeds and the number of seeds that had it.
pub fn of(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for name in scenario.must_count {
        counts.insert(name, (0, 0));
    }
    for outcome in outcomes {
        for (name, count) in &outcome.report.counts {
            let row = counts.entry(name).or_default();
            row.0 += count;
            row.1 += u64::from(*count > 0);
        }
    }
    let mut classes: BTreeMap<FaultClass, (u64, u64)> = BTreeMap::new();
    for (class, strikes) in outcomes.iter().flat_map(|outcome| &outcome.report.classes) {
        let row = classes.entry(*class).or_default();
        *row = (row.0 + strikes, row.1 + u64::from(*strikes > 0));
    }
    let simulated: u64 = outcomes.iter().map(|outcome| outcome.report.simulated_ms).sum();
    let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    let mut text = format!(
        "\n{}: {} seeds, {:.1} simulated seconds in {:.1} process seconds\n",
        scenario.name,
        outcomes.len(),
        simulated as f64 / 1000.0,
        took.as_secs_f64()
    );
    for (name, (sum, seeds)) in counts {
        let flag = if sum == 0 { "  <- never" } else { "" };
        _ = writeln!(text, "  {name:<36} {sum:>10}  in {seeds:>4} seeds{flag}");
    }
    for (class, (strikes, seeds)) in classes {
        _ = writeln!(
            text,
            "  {:<36} {strikes:>10}  in {seeds:>4} seeds",
            format!("class: {class}")
        );
    }
    text
}
