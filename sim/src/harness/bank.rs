//! The bug bank: plants each bug and looks how soon the simulator sees it.

use super::{Job, Mutant, pool};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// Hunts for one planted bug begin so far apart.
const STRIDE: u64 = 1_000;

/// Hunts for each bug with the library's own assertions off.
const HUNTS_WITHOUT_ASSERTS: u64 = 3;

/// How to run the bank.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Detections looked for, each from other seeds.
    pub detections: u64,
    /// Seeds after which a hunt gives up.
    pub seeds_max: u64,
    /// Whether each hunt is repeated with the library's own assertions off.
    pub without_asserts: bool,
    /// Only this bug.
    pub only: Option<String>,
}

/// One hunt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hunt {
    /// Seeds in which the site was reached.
    reached: u64,
    /// Seeds tried, the one that caught it among them.
    tried: u64,
    /// What caught it.
    oracle: Option<String>,
    /// Whether the same seed without the bug is quiet; `None` if it was not run.
    clean: Option<bool>,
}

/// What came of one bug in one scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The bug.
    pub bug: String,
    /// What is wrong.
    pub about: String,
    /// The scenario.
    pub scenario: String,
    /// Seeds that reached its site, of those tried.
    pub reached: (u64, u64),
    /// Hunts that caught it, of all.
    pub caught: (u64, u64),
    /// By which oracle, how often.
    pub oracles: BTreeMap<String, u64>,
    /// Seeds until it was caught, sorted.
    pub seeds: Vec<u64>,
    /// Hunts that caught it with the library's own assertions off, of all; `None` if not tried.
    pub without_asserts: Option<(u64, u64)>,
    /// Seeds that fail without the bug as well.
    pub false_alarms: u64,
    /// What would catch it for certain, where this does not.
    pub needs: &'static str,
}

impl Row {
    /// Whether every hunt caught it, in a site that was reached.
    pub fn good(&self) -> bool {
        self.caught.0 == self.caught.1 && self.caught.1 > 0 && self.false_alarms == 0
    }

    /// The value below which so many per cent of the detections lie.
    pub fn percentile(&self, percent: usize) -> Option<u64> {
        let rank = (self.seeds.len() * percent).div_ceil(100);
        self.seeds.get(rank.saturating_sub(1)).copied()
    }
}

impl Hunt {
    fn say(&self) -> String {
        match &self.oracle {
            Some(oracle) => format!("caught by {oracle} after {} seeds", self.tried),
            None => format!("not caught by {} seeds, reached in {}", self.tried, self.reached),
        }
    }
}

fn hunt(mutant: &Mutant, start: u64, settings: &Settings, no_asserts: bool) -> Hunt {
    let mut hunt = Hunt::default();
    for seed in start..start + settings.seeds_max {
        let clean = Job { no_asserts, ..Job::new(mutant.scenario, seed) };
        let report = pool::run(&clean.clone().with_bug(Some(mutant.bug))).report;
        hunt.tried += 1;
        hunt.reached += u64::from(report.bug_reached > 0);
        if let Some(failure) = report.failure.filter(|_| report.bug_reached > 0) {
            hunt.oracle = Some(failure.oracle);
            hunt.clean = (!no_asserts).then(|| pool::run(&clean).report.failure.is_none());
            break;
        }
    }
    hunt
}

/// Runs the bank over these mutants.
pub fn run(mutants: &[Mutant], settings: &Settings) -> Vec<Row> {
    let chosen: Vec<&Mutant> = mutants
        .iter()
        .filter(|mutant| settings.only.as_deref().is_none_or(|only| only == mutant.bug))
        .collect();
    let modes: &[bool] = if settings.without_asserts { &[false, true] } else { &[false] };
    let mut hunts = Vec::new();
    for (at, _) in chosen.iter().enumerate() {
        for no_asserts in modes {
            let count = if *no_asserts { HUNTS_WITHOUT_ASSERTS } else { u64::MAX };
            let count = settings.detections.min(count);
            hunts.extend((0..count).map(|number| (at, *no_asserts, number)));
        }
    }
    let bar = ProgressBar::new(hunts.len() as u64);
    let style = "{wide_bar} {pos}/{len} hunts, {elapsed} gone, {eta} to go  {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template"));
    bar.enable_steady_tick(Duration::from_millis(500));
    let found = pool::map(&hunts, |(at, no_asserts, number)| {
        bar.set_message(chosen[*at].bug);
        let found = hunt(chosen[*at], 1 + number * STRIDE, settings, *no_asserts);
        bar.inc(1);
        bar.suspend(|| {
            eprintln!("{} in {}: {}", chosen[*at].bug, chosen[*at].scenario, found.say())
        });
        found
    });
    bar.finish_and_clear();
    let mut rows: Vec<Row> = chosen.iter().map(|mutant| begin(mutant)).collect();
    for ((at, no_asserts, _), hunt) in hunts.iter().zip(found) {
        rows[*at].take(*no_asserts, hunt);
    }
    for row in &mut rows {
        row.seeds.sort_unstable();
    }
    rows
}

fn begin(mutant: &Mutant) -> Row {
    Row {
        bug: mutant.bug.to_owned(),
        about: mutant.about.to_owned(),
        scenario: mutant.scenario.to_owned(),
        needs: mutant.needs,
        ..Row::default()
    }
}

impl Row {
    fn take(&mut self, no_asserts: bool, hunt: Hunt) {
        let caught = u64::from(hunt.oracle.is_some());
        self.false_alarms += u64::from(hunt.clean == Some(false));
        if no_asserts {
            let (done, of) = self.without_asserts.unwrap_or_default();
            self.without_asserts = Some((done + caught, of + 1));
            return;
        }
        self.reached = (self.reached.0 + hunt.reached, self.reached.1 + hunt.tried);
        self.caught = (self.caught.0 + caught, self.caught.1 + 1);
        if let Some(oracle) = hunt.oracle {
            *self.oracles.entry(oracle).or_default() += 1;
            self.seeds.push(hunt.tried);
        }
    }
}

/// The rows as a table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| bug | what is wrong | scenario | reached | caught | by | seeds: median | 99 % | own assertions off |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let by: Vec<String> =
            row.oracles.iter().map(|(oracle, times)| format!("{oracle} x{times}")).collect();
        let seeds = |percent| row.percentile(percent).map_or("-".to_owned(), |n| n.to_string());
        let off = row.without_asserts.map_or("-".to_owned(), |(n, of)| format!("{n}/{of}"));
        let (reached, caught) = (row.reached, row.caught);
        _ = writeln!(
            text,
            "| {} | {} | `{}` | {}/{} | {}/{} | {} | {} | {} | {off} |",
            row.bug,
            row.about,
            row.scenario,
            reached.0,
            reached.1,
            caught.0,
            caught.1,
            if by.is_empty() { "-".to_owned() } else { by.join(", ") },
            seeds(50),
            seeds(99),
        );
    }
    text
}

/// One line of sums.
pub fn summary(rows: &[Row]) -> String {
    let bugs: BTreeSet<&str> = rows.iter().map(|row| row.bug.as_str()).collect();
    let best =
        |bug: &str, good: &dyn Fn(&Row) -> bool| rows.iter().any(|row| row.bug == bug && good(row));
    let count = |good: &dyn Fn(&Row) -> bool| bugs.iter().filter(|bug| best(bug, good)).count();
    let (always, ever) = (count(&|row| row.good()), count(&|row| row.caught.0 > 0));
    let off = count(&|row| row.without_asserts.is_some_and(|(n, of)| n == of && n > 0));
    let soon = count(&|row| row.good() && row.percentile(50).is_some_and(|seeds| seeds <= 20));
    let false_alarms: u64 = rows.iter().map(|row| row.false_alarms).sum();
    let mut text = format!(
        "{} bugs: {always} caught by every hunt, {soon} of them within 20 seeds in the median, {ever} caught at all",
        bugs.len()
    );
    if rows.iter().any(|row| row.without_asserts.is_some()) {
        text += &format!("; {off} caught by every hunt with the library's own assertions off");
    }
    text + &format!("; {false_alarms} of the catching seeds fail without the bug as well\n")
}

/// The whole page.
pub fn page(rows: &[Row], settings: &Settings, absent: &[(&str, &str)]) -> String {
    let mut text = format!(
        "# The bug bank\n\n\
         Written by `mooseng-sim bank --write docs/BUG_BANK.md`. Each planted bug is a `bug!(Mnn)` in the code, compiled\n\
         only into simulations and off unless a run asks for it. For each, {} hunts from seeds {STRIDE} apart, at most {}\n\
         seeds each: how many of the seeds tried reached the site, how many hunts caught the bug, by which oracle, and\n\
         after how many seeds. \"Own assertions off\": the first of these hunts with every `invariant!` of the library switched\n\
         off, so that oracles alone see it. Every seed that caught a bug was run again without it.\n\n",
        settings.detections, settings.seeds_max
    );
    text += &summary(rows);
    text += "\n";
    text += &table(rows);
    let missed: Vec<&Row> = rows.iter().filter(|row| !row.good()).collect();
    if !missed.is_empty() {
        text += "\n## Not caught by every hunt\n\n";
        for row in missed {
            _ = writeln!(text, "- {} in `{}`: {}.", row.bug, row.scenario, row.needs);
        }
    }
    text += "\n## Without a site\n\n";
    for (bug, why) in absent {
        _ = writeln!(text, "- {bug}: {why}.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seeds: &[u64], hunts: u64) -> Row {
        let caught = (seeds.len() as u64, hunts);
        Row { bug: "M00".to_owned(), seeds: seeds.to_vec(), caught, ..Row::default() }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let row = row(&[1, 1, 2, 3, 4, 5, 6, 7, 8, 40], 10);
        assert_eq!((row.percentile(50), row.percentile(99)), (Some(4), Some(40)));
        assert_eq!(self::row(&[], 3).percentile(50), None);
    }

    #[test]
    fn a_bug_counts_as_caught_only_if_every_hunt_caught_it() {
        assert!(row(&[1, 2], 2).good());
        assert!(!row(&[1, 2], 3).good());
        assert!(!row(&[], 0).good());
        assert!(!Row { false_alarms: 1, ..row(&[1], 1) }.good());
        assert!(
            summary(&[row(&[1], 2), row(&[1, 30], 2)]).starts_with("1 bugs: 1 caught by every")
        );
    }
}
