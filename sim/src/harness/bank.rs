//! The bug bank: plants each bug and looks how soon the simulator sees it.

use super::kept::Kept;
use super::{Job, Mutant, Report, pool};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Hunts for one planted bug begin so far apart.
const STRIDE: u64 = 1_000;

/// Seeds within which the median hunt must catch a bug.
const MEDIAN_MAX: u64 = 20;
/// The middle of fewer hunts says nothing: `--quick` has one.
const MEDIAN_OF: usize = 5;

/// So many bugs in a hundred must be caught by every hunt with the library's own assertions off.
const BLIND_PERCENT: usize = 90;

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
    /// Where the hunts that ended are kept, so that the next start goes on from there.
    pub state: Option<PathBuf>,
}

/// Which hunt for a bug of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Which {
    bug: String,
    scenario: String,
    no_asserts: bool,
    number: u64,
}

/// One hunt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Hunt {
    /// Seeds in which the site was reached.
    reached: u64,
    /// Seeds tried, the one that caught it among them.
    tried: u64,
    /// Seeds that ended in another way than by an oracle, where only oracles count.
    otherwise: u64,
    /// What caught it.
    oracle: Option<String>,
    /// Whether the seed that caught it fails without the bug as well.
    alarm: bool,
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
    /// Hunts in which an oracle caught it with the library's own assertions off, of all; `None` if not tried.
    pub without_asserts: Option<(u64, u64)>,
    /// Seeds of those hunts that panicked, died or did not end, which no oracle sees.
    pub otherwise: u64,
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
            Some(oracle) => {
                let alarm = if self.alarm { ", and without the bug as well" } else { "" };
                format!("caught by {oracle} after {} seeds{alarm}", self.tried)
            }
            None => format!("not caught by {} seeds, reached in {}", self.tried, self.reached),
        }
    }
}

/// What runs do.
type Run = dyn Fn(&Job) -> Report + Sync;

/// Runs without a bug, each once: many bugs are caught by the same seed.
struct Clean<'a> {
    run: &'a Run,
    failed: Mutex<BTreeMap<(String, u64, bool), bool>>,
}

impl Clean<'_> {
    fn fails(&self, job: &Job) -> bool {
        let lock = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (job.scenario.clone(), job.seed, job.no_asserts);
        let known = lock().get(&key).copied();
        known.unwrap_or_else(|| {
            let failed = (self.run)(job).failure.is_some();
            lock().insert(key, failed);
            failed
        })
    }
}

/// Looks for a seed that catches the bug. With the library's own assertions off only an oracle does: a panic, a
/// process that dies and a run without end are counted apart, and the hunt goes on.
fn hunt(mutant: &Mutant, seeds: Range<u64>, no_asserts: bool, clean: &Clean<'_>) -> Hunt {
    let mut hunt = Hunt::default();
    for seed in seeds {
        let without = Job { no_asserts, ..Job::new(mutant.scenario, seed) };
        let report = (clean.run)(&without.clone().with_bug(Some(mutant.bug)));
        hunt.tried += 1;
        hunt.reached += u64::from(report.bug_reached > 0);
        let Some(failure) = report.failure.filter(|_| report.bug_reached > 0) else { continue };
        if no_asserts && !failure.by_oracle() {
            hunt.otherwise += 1;
            continue;
        }
        hunt.oracle = Some(failure.oracle);
        hunt.alarm = clean.fails(&without);
        break;
    }
    hunt
}

/// Runs the bank over these mutants.
pub fn run(mutants: &[Mutant], settings: &Settings) -> Result<Vec<Row>, String> {
    let chosen: Vec<&Mutant> = mutants
        .iter()
        .filter(|mutant| settings.only.as_deref().is_none_or(|only| only == mutant.bug))
        .collect();
    let modes: &[bool] = if settings.without_asserts { &[false, true] } else { &[false] };
    let kept = Kept::<(Which, Hunt)>::load(
        settings.state.as_deref(),
        &format!("at most {} seeds", settings.seeds_max),
    )?;
    let done: BTreeSet<&Which> = kept.done().iter().map(|(which, _)| which).collect();
    let mut wanted = Vec::new();
    for mutant in &chosen {
        for no_asserts in modes {
            wanted.extend((0..settings.detections).map(|number| {
                let (bug, scenario) = (mutant.bug.to_owned(), mutant.scenario.to_owned());
                (*mutant, Which { bug, scenario, no_asserts: *no_asserts, number })
            }));
        }
    }
    let left: Vec<&(&Mutant, Which)> =
        wanted.iter().filter(|(_, which)| !done.contains(which)).collect();
    let bar = ProgressBar::new(left.len() as u64);
    let style = "{wide_bar} {pos}/{len} hunts, {elapsed} gone, {eta} to go  {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template"));
    bar.enable_steady_tick(Duration::from_millis(500));
    let clean = Clean { run: &|job| pool::run(job).report, failed: Mutex::default() };
    let kept = Mutex::new(kept);
    let hunted = pool::map(&left, |(mutant, which)| {
        bar.set_message(mutant.bug);
        let start = 1 + which.number * STRIDE;
        let found = hunt(mutant, start..start + settings.seeds_max, which.no_asserts, &clean);
        bar.inc(1);
        bar.suspend(|| eprintln!("{} in {}: {}", mutant.bug, mutant.scenario, found.say()));
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((which.clone(), found))
    });
    bar.finish_and_clear();
    hunted.into_iter().collect::<Result<(), String>>()?;
    let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    let found: BTreeMap<&Which, &Hunt> = kept.done().iter().map(|(which, h)| (which, h)).collect();
    let mut rows: Vec<Row> = chosen.iter().map(|mutant| begin(mutant)).collect();
    let each = settings.detections as usize * modes.len();
    for (row, wanted) in rows.iter_mut().zip(wanted.chunks(each)) {
        for (_, which) in wanted {
            row.take(which.no_asserts, found[which].clone());
        }
        row.seeds.sort_unstable();
    }
    Ok(rows)
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
        self.false_alarms += u64::from(hunt.alarm);
        self.otherwise += hunt.otherwise;
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
        let off = row.without_asserts.map_or("-".to_owned(), |(n, of)| match row.otherwise {
            0 => format!("{n}/{of}"),
            otherwise => format!("{n}/{of}, {otherwise} seeds ended otherwise"),
        });
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

fn bugs(rows: &[Row]) -> BTreeSet<&str> {
    rows.iter().map(|row| row.bug.as_str()).collect()
}

/// Bugs for which one of their scenarios is good.
fn count(rows: &[Row], good: impl Fn(&Row) -> bool) -> usize {
    let best = |bug: &&str| rows.iter().any(|row| row.bug == *bug && good(row));
    bugs(rows).into_iter().filter(best).count()
}

/// Whether every hunt with the library's own assertions off ended by an oracle.
fn blind(row: &Row) -> bool {
    row.without_asserts.is_some_and(|(n, of)| n == of && n > 0)
}

fn soon(row: &Row) -> bool {
    row.percentile(50).is_some_and(|seeds| seeds <= MEDIAN_MAX)
}

/// What the bank promises and does not hold, one line each: every hunt catches its bug, half of them within 20
/// seeds, no catching seed fails without the bug, and oracles alone catch nine bugs of ten.
pub fn breaches(rows: &[Row]) -> Vec<String> {
    let mut breaches = Vec::new();
    for row in rows {
        let (name, (caught, of)) = (format!("{} in {}", row.bug, row.scenario), row.caught);
        if caught < of || caught == 0 {
            breaches.push(format!("{name}: caught by {caught} of {of} hunts"));
        }
        if row.seeds.len() >= MEDIAN_OF && !soon(row) {
            let median = row.percentile(50).unwrap_or_default();
            breaches.push(format!("{name}: {median} seeds in the median"));
        }
        if row.false_alarms > 0 {
            let alarms = row.false_alarms;
            breaches.push(format!("{name}: {alarms} catching seeds fail without it as well"));
        }
    }
    let (off, all) = (count(rows, blind), bugs(rows).len());
    let tried = rows.iter().any(|row| row.without_asserts.is_some());
    if tried && off * 100 < all * BLIND_PERCENT {
        breaches.push(format!("oracles alone catch {off} of {all} bugs: below {BLIND_PERCENT} %"));
    }
    breaches
}

/// One line of sums.
pub fn summary(rows: &[Row]) -> String {
    let (always, ever) = (count(rows, Row::good), count(rows, |row| row.caught.0 > 0));
    let (off, soon) = (count(rows, blind), count(rows, |row| row.good() && soon(row)));
    let false_alarms: u64 = rows.iter().map(|row| row.false_alarms).sum();
    let mut text = format!(
        "{} bugs: {always} caught by every hunt, {soon} of them within 20 seeds in the median, {ever} caught at all",
        bugs(rows).len()
    );
    if rows.iter().any(|row| row.without_asserts.is_some()) {
        text += &format!(
            "; {off} caught by an oracle in every hunt with the library's own assertions off"
        );
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
         after how many seeds. \"own assertion\" is an `invariant!` of the library; \"panic in\" a file or a crate is another\n\
         assertion or an unwrap there. \"Own assertions off\": the same hunts with every `invariant!` of the library switched\n\
         off. There only an oracle counts: seeds that panicked, died or did not end are counted apart, and the hunt went\n\
         on. Every seed that caught a bug was run again without it, with the same assertions on or off.\n\n",
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
    use crate::failure::{Failure, Kind};

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

    #[test]
    fn with_assertions_off_only_an_oracle_catches() {
        let run = |job: &Job| {
            let (kind, oracle) = match job.seed {
                5 => (Kind::Correctness, "O3"),
                seed if seed % 2 == 0 => (Kind::Liveness, "time limit"),
                _ => (Kind::Crash, "panic in src/wal/mod.rs"),
            };
            let failure = Failure { kind, oracle: oracle.to_owned(), message: String::new() };
            let failure = Some(failure).filter(|_| job.bug.is_some());
            Report { failure, bug_reached: 1, ..Report::empty(job) }
        };
        let mutant = Mutant::caught("M00", "nothing", "journal", 5);
        let clean = Clean { run: &run, failed: Mutex::default() };
        let on = hunt(&mutant, 1..100, false, &clean);
        assert_eq!((on.oracle.as_deref(), on.tried), (Some("panic in src/wal/mod.rs"), 1));
        let off = hunt(&mutant, 1..100, true, &clean);
        assert_eq!((off.oracle.as_deref(), off.tried, off.otherwise), (Some("O3"), 5, 4));
        assert_eq!(hunt(&mutant, 6..9, true, &clean).oracle, None);
    }

    #[test]
    fn each_promise_of_the_bank_can_be_broken() {
        let off = |caught, of| Row { without_asserts: Some((caught, of)), ..row(&[1, 20], 2) };
        assert_eq!(breaches(&[off(2, 2)]), Vec::<String>::new());
        assert_eq!(breaches(&[row(&[1, 20], 2)]), Vec::<String>::new());
        assert!(breaches(&[row(&[1], 2)])[0].contains("caught by 1 of 2"));
        assert_eq!(breaches(&[row(&[21, 30], 2)]), Vec::<String>::new());
        let late = breaches(&[row(&[1, 2, 21, 30, 40], 5)]);
        assert!(late[0].contains("21 seeds in the median"), "{late:?}");
        assert!(breaches(&[Row { false_alarms: 1, ..row(&[1], 1) }])[0].contains("without it"));
        assert!(breaches(&[off(1, 2)])[0].contains("0 of 1 bugs"));
    }
}
