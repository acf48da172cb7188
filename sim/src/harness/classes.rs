//! What each class of faults is good for: planted bugs that are seen with it and not without it. A class of
//! which that holds for no bug has not shown that it proves anything.
//!
//! Each bug in its scenario, over the same seeds: with every class; with none; and, for each class that struck in
//! all runs that saw the bug, without this one, and with this one alone. A class that did not strike in one of
//! those runs is not needed: the run without it is the same one. A bug that is seen too seldom proves nothing: any
//! change of a run may hide it.

use super::kept::Kept;
use super::{Job, Mutant, Report, pool};
use crate::plan::FaultClass;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Runs with every class that must see the bug. By chance alone, as many seeds without a class would all miss
/// it once in twenty times.
const SAMPLES: usize = 3;

/// How to look.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seeds, from 1.
    pub seeds: u64,
    /// Of a bug that so few do not see often enough: as many as do, but at most so many.
    pub seeds_max: u64,
    /// Only this bug.
    pub bug: Option<String>,
    /// Only this scenario.
    pub scenario: Option<String>,
    /// Where what is done is kept, so that the next start goes on from there.
    pub state: Option<PathBuf>,
}

/// Some seeds of a bug under some classes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Seeds tried, until one saw it.
    pub tried: u64,
    /// The one that did, and the oracle.
    pub by: Option<(u64, String)>,
}

/// One class and one bug.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Without this class.
    pub without: Seen,
    /// With this class alone.
    pub alone: Seen,
}

/// One bug in one scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The bug.
    pub bug: String,
    /// What is wrong.
    pub about: String,
    /// The scenario.
    pub scenario: String,
    /// With every class: the first that saw it.
    pub all: Seen,
    /// Seeds that saw it with every class, until there were enough, and how many were tried for that.
    pub often: (u64, u64),
    /// With none; not tried if it is not seen often enough with all.
    pub none: Seen,
    /// Each class that struck in all of the runs that saw it; empty if it is seen with none.
    pub classes: BTreeMap<FaultClass, Pair>,
    /// Classes that struck in any run with all.
    pub struck: BTreeSet<FaultClass>,
    /// Runs that fail without the bug as well: seed and classes that were off.
    pub noise: Vec<(u64, BTreeSet<FaultClass>)>,
}

impl Row {
    /// Whether it is seen often enough for what is said of its classes.
    pub fn enough(&self) -> bool {
        self.often.0 >= SAMPLES as u64
    }

    /// Classes without which the bug is not seen.
    pub fn needs(&self) -> impl Iterator<Item = FaultClass> {
        self.seen_by(|pair| pair.without.by.is_none())
    }

    /// Classes that suffice.
    pub fn suffices(&self) -> impl Iterator<Item = FaultClass> {
        self.seen_by(|pair| pair.alone.by.is_some())
    }

    fn seen_by(&self, which: impl Fn(&Pair) -> bool) -> impl Iterator<Item = FaultClass> {
        self.classes.iter().filter(move |(_, pair)| which(pair)).map(|(class, _)| *class)
    }

    fn name(&self) -> String {
        format!("{} in `{}`", self.bug, self.scenario)
    }

    /// In a few words.
    pub fn say(&self) -> String {
        let (bug, scenario) = (&self.bug, &self.scenario);
        match (&self.all.by, &self.none.by) {
            _ if !self.enough() => format!(
                "{bug} in {scenario}: seen by {} of {} seeds, too seldom",
                self.often.0, self.often.1
            ),
            (_, Some((seed, oracle))) => {
                format!("{bug} in {scenario}: seen by {oracle} without any fault, seed {seed}")
            }
            _ => format!(
                "{bug} in {scenario}: needs {}; alone {} of {} suffice",
                list(self.needs(), "nothing"),
                list(self.suffices(), "nothing"),
                self.classes.len(),
            ),
        }
    }
}

/// Their names; `none` if there are none.
fn list(classes: impl Iterator<Item = FaultClass>, none: &str) -> String {
    let classes: Vec<FaultClass> = classes.collect();
    if classes.is_empty() { none.to_owned() } else { names(&classes) }
}

fn names(classes: &[FaultClass]) -> String {
    let names: Vec<String> = classes.iter().map(|class| format!("{class}")).collect();
    names.join(", ")
}

/// Looks at one bug. `run` runs one job.
struct Look<'a> {
    mutant: &'a Mutant,
    seeds: u64,
    seeds_max: u64,
    run: &'a dyn Fn(&Job) -> Report,
    row: Row,
    /// Seeds that saw it with every class.
    good: Vec<u64>,
}

impl<'a> Look<'a> {
    fn new(
        mutant: &'a Mutant,
        (seeds, seeds_max): (u64, u64),
        run: &'a dyn Fn(&Job) -> Report,
    ) -> Look<'a> {
        let row = Row {
            bug: mutant.bug.to_owned(),
            about: mutant.about.to_owned(),
            scenario: mutant.scenario.to_owned(),
            ..Row::default()
        };
        Look { mutant, seeds, seeds_max, run, row, good: Vec::new() }
    }

    /// The report of a run that saw the bug, and not something that is there without it.
    fn sees(&mut self, seed: u64, off: &BTreeSet<FaultClass>) -> (Option<String>, Report) {
        let clean = Job { off: off.clone(), ..Job::new(self.mutant.scenario, seed) };
        let report = (self.run)(&clean.clone().with_bug(Some(self.mutant.bug)));
        let failure = report.failure.clone().filter(|_| report.bug_reached > 0);
        let Some(failure) = failure else { return (None, report) };
        if (self.run)(&clean).failure.is_some() {
            self.row.noise.push((seed, off.clone()));
            return (None, report);
        }
        (Some(failure.oracle), report)
    }

    /// Tries all seeds until one sees it, first those that did with every class.
    fn first(&mut self, off: &BTreeSet<FaultClass>) -> Seen {
        let others = (1..=self.seeds).filter(|seed| !self.good.contains(seed));
        let seeds: Vec<u64> = self.good.iter().copied().chain(others).collect();
        let mut seen = Seen::default();
        for seed in seeds {
            seen.tried += 1;
            if let (Some(oracle), _) = self.sees(seed, off) {
                seen.by = Some((seed, oracle));
                break;
            }
        }
        seen
    }

    fn whole(mut self) -> Row {
        let mut struck: Option<BTreeSet<FaultClass>> = None;
        for seed in 1..=self.seeds.max(self.seeds_max) {
            self.row.often.1 = seed;
            let (oracle, report) = self.sees(seed, &BTreeSet::new());
            let here: BTreeSet<FaultClass> = report.classes.keys().copied().collect();
            self.row.struck.extend(&here);
            let Some(oracle) = oracle else { continue };
            if self.row.all.by.is_none() {
                self.row.all = Seen { tried: seed, by: Some((seed, oracle)) };
            }
            struck = Some(struck.map_or(here.clone(), |other| &other & &here));
            self.good.push(seed);
            self.row.often.0 += 1;
            if self.good.len() == SAMPLES {
                break;
            }
        }
        let Some(struck) = struck.filter(|_| self.row.enough()) else { return self.row };
        self.seeds = self.seeds.max(self.row.often.1);
        self.row.none = self.first(&FaultClass::all().collect());
        if self.row.none.by.is_none() {
            for class in struck {
                let without = self.first(&BTreeSet::from([class]));
                let alone = self.first(&class.alone());
                self.row.classes.insert(class, Pair { without, alone });
            }
        }
        self.row
    }
}

/// Looks at these bugs; the rows of all that are chosen.
pub fn run(mutants: &[Mutant], settings: &Settings) -> Result<Vec<Row>, String> {
    let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|w| w == name);
    let chosen: Vec<&Mutant> = mutants
        .iter()
        .filter(|m| is(&settings.bug, m.bug) && is(&settings.scenario, m.scenario))
        .collect();
    let seeds = (settings.seeds, settings.seeds_max);
    let kept = Kept::<Row>::load(settings.state.as_deref(), &format!("{seeds:?} seeds"))?;
    let of =
        |row: &Row, m: &Mutant| (row.bug.as_str(), row.scenario.as_str()) == (m.bug, m.scenario);
    let left: Vec<&Mutant> = chosen
        .iter()
        .copied()
        .filter(|mutant| !kept.done().iter().any(|row| of(row, mutant)))
        .collect();
    let kept = Mutex::new(kept);
    let done = pool::map(&left, |mutant| {
        let row = Look::new(mutant, seeds, &|job| pool::run(job).report).whole();
        eprintln!("{}", row.say());
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(row)
    });
    done.into_iter().collect::<Result<(), String>>()?;
    let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    let row = |mutant: &&Mutant| kept.done().iter().find(|row| of(row, mutant)).cloned();
    Ok(chosen.iter().filter_map(row).collect())
}

/// What the rows say of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worth {
    /// Bugs that are not seen without it.
    pub needed: Vec<String>,
    /// Bugs that it shows alone.
    pub alone: Vec<String>,
    /// Whether it struck at all.
    pub struck: bool,
}

/// Each class with what it is good for.
pub fn worth(rows: &[Row]) -> BTreeMap<FaultClass, Worth> {
    let mut all: BTreeMap<FaultClass, Worth> =
        FaultClass::all().map(|class| (class, Worth::default())).collect();
    let mut add = |class: FaultClass, what: &dyn Fn(&mut Worth)| {
        what(all.get_mut(&class).expect("every class"));
    };
    for row in rows {
        row.needs().for_each(|class| add(class, &|worth| worth.needed.push(row.name())));
        row.suffices().for_each(|class| add(class, &|worth| worth.alone.push(row.name())));
        row.struck.iter().for_each(|class| add(*class, &|worth| worth.struck = true));
    }
    all
}

/// One line of sums.
pub fn summary(rows: &[Row]) -> String {
    let worth = worth(rows);
    let count = |is: &dyn Fn(&Worth) -> bool| worth.values().filter(|worth| is(worth)).count();
    let calm = rows.iter().filter(|row| row.none.by.is_some()).count();
    let missed = rows.iter().filter(|row| !row.enough()).count();
    format!(
        "{} classes: {} are needed by a planted bug, {} more show one alone, {} never struck; of {} bugs in their \
         scenarios {calm} are seen without any fault, {missed} too seldom\n",
        worth.len(),
        count(&|worth| !worth.needed.is_empty()),
        count(&|worth| worth.needed.is_empty() && !worth.alone.is_empty()),
        count(&|worth| !worth.struck),
        rows.len(),
    )
}

/// The classes as a table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| class | bugs that are not seen without it | bugs that it shows alone |\n|---|---|---|\n",
    );
    let list = |bugs: &[String]| match bugs.is_empty() {
        true => "-".to_owned(),
        false => bugs.join(", "),
    };
    for (class, worth) in worth(rows) {
        _ = writeln!(text, "| {class} | {} | {} |", list(&worth.needed), list(&worth.alone));
    }
    text
}

/// The classes that are needed by no bug, and why.
pub fn unproven(rows: &[Row]) -> String {
    let mut text = String::new();
    for (class, worth) in worth(rows) {
        let why = match (worth.needed.is_empty(), worth.struck, worth.alone.is_empty()) {
            (false, ..) => continue,
            (_, false, _) => "struck in no run",
            (_, _, false) => "others show the same bugs",
            _ => "every bug is seen without it, and none by it alone",
        };
        _ = writeln!(text, "- {class}: {why}.");
    }
    text
}

/// The bugs as a table in Markdown.
pub fn bugs(rows: &[Row]) -> String {
    let mut text =
        String::from("| bug | scenario | seen | needs | shown alone by |\n|---|---|---|---|---|\n");
    for row in rows {
        let seen = match (&row.all.by, &row.none.by) {
            _ if !row.enough() => {
                format!("by {} of {} seeds: too seldom", row.often.0, row.often.1)
            }
            (_, Some((seed, oracle))) => format!("by {oracle} without any fault, seed {seed}"),
            (Some((seed, oracle)), None) => {
                format!("by {oracle}, seed {seed}, {} of {} seeds", row.often.0, row.often.1)
            }
            (None, None) => String::new(),
        };
        let (needs, alone) = (list(row.needs(), "-"), list(row.suffices(), "-"));
        _ = writeln!(text, "| {} | `{}` | {seen} | {needs} | {alone} |", row.bug, row.scenario);
    }
    text
}

/// Runs that failed without the bug.
pub fn noise(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for (seed, off) in &row.noise {
            let off: Vec<FaultClass> = off.iter().copied().collect();
            _ = writeln!(text, "- `{}`, seed {seed}, without {}", row.scenario, names(&off));
        }
    }
    text
}

/// The whole page.
pub fn page(rows: &[Row], settings: &Settings) -> String {
    let mut text = format!(
        "# What each class of faults is good for\n\n\
         Written by `mooseng-sim classes --write docs/FAULT_CLASSES.md`. Each planted bug of [the bank](BUG_BANK.md) in each\n\
         of its scenarios: with every class of faults until {SAMPLES} seeds have seen it; then, over the same seeds and at\n\
         least seeds 1 to {}, with none, and, for each class that struck in all runs that saw the bug, without it and with it\n\
         alone. A run that fails without the bug as well does not count, nor does a bug that fewer than {SAMPLES} of {} seeds\n\
         see. A class is proven if some bug is seen with all classes and not seen, by any of these seeds, without it.\n\n",
        settings.seeds,
        settings.seeds_max.max(settings.seeds),
    );
    text += &summary(rows);
    text += "\n";
    text += &table(rows);
    text += "\n## Unproven\n\n";
    text += &unproven(rows);
    text += "\n## By bug\n\n";
    text += &bugs(rows);
    let noise = noise(rows);
    if !noise.is_empty() {
        text += "\n## Failed without the bug as well\n\n";
        text += &noise;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Failure, Kind};
    use crate::plan::FaultClass::{Blackout, Kill, Lag, PowerLoss, Rot};

    const BUG: Mutant = Mutant::caught("M00", "something", "journal", 1);

    /// A world in which some classes strike in every run, and the bug is seen if `seen` says so.
    fn looked(
        strike: &[FaultClass],
        seen: impl Fn(u64, &dyn Fn(FaultClass) -> bool) -> bool,
    ) -> Row {
        let run = |job: &Job| {
            let on = |class: FaultClass| strike.contains(&class) && !job.off.contains(&class);
            let failure = (job.bug.is_some() && seen(job.seed, &on)).then(|| Failure {
                kind: Kind::Correctness,
                oracle: "O3".to_owned(),
                message: "gone".to_owned(),
            });
            let classes = strike.iter().copied().filter(|class| on(*class)).map(|class| (class, 1));
            let report = Report::empty(job);
            Report { failure, bug_reached: 1, classes: classes.collect(), ..report }
        };
        Look::new(&BUG, (6, 6), &run).whole()
    }

    #[test]
    fn a_class_is_needed_if_nothing_else_shows_the_bug() {
        let row = looked(&[Kill, Rot], |seed, on| seed > 2 && on(Rot));
        assert_eq!(row.needs().collect::<Vec<_>>(), [Rot]);
        assert_eq!(row.suffices().collect::<Vec<_>>(), [Rot]);
        assert_eq!(row.all, Seen { tried: 3, by: Some((3, "O3".to_owned())) });
        assert_eq!(row.none, Seen { tried: 6, by: None });
        assert_eq!(row.classes[&Rot].without.tried, 6, "all seeds were tried");
        assert_eq!(row.classes[&Kill].without.by, Some((3, "O3".to_owned())), "a good seed first");
        let worth = worth(&[row]);
        assert_eq!(worth[&Rot].needed, ["M00 in `journal`"]);
        assert!(worth[&Kill].struck && worth[&Kill].needed.is_empty() && !worth[&Lag].struck);
    }

    #[test]
    fn a_bug_that_is_seen_seldom_takes_more_seeds_or_says_nothing() {
        let often = looked(&[Kill], |seed, on| seed.is_multiple_of(2) && on(Kill));
        assert_eq!((often.often, often.classes[&Kill].without.tried), ((3, 6), 6));
        let seldom = looked(&[Kill], |seed, on| seed.is_multiple_of(3) && on(Kill));
        assert_eq!((seldom.often, seldom.classes.len()), ((2, 6), 0));
        assert!(bugs(&[seldom]).contains("by 2 of 6 seeds: too seldom"));
        let run = |job: &Job| {
            let seen = job.bug.is_some() && job.seed.is_multiple_of(4) && !job.off.contains(&Kill);
            let failure = seen.then(|| Failure {
                kind: Kind::Correctness,
                oracle: "O3".to_owned(),
                message: "gone".to_owned(),
            });
            let classes = [(Kill, 1)].into();
            Report { failure, bug_reached: 1, classes, ..Report::empty(job) }
        };
        let row = Look::new(&BUG, (5, 20), &run).whole();
        assert_eq!((row.often, row.classes[&Kill].without.tried), ((3, 12), 12));
    }

    #[test]
    fn one_of_two_suffices_and_neither_is_needed() {
        let row = looked(&[PowerLoss, Blackout], |_, on| on(PowerLoss) || on(Blackout));
        assert_eq!(row.needs().count(), 0);
        assert_eq!(row.suffices().collect::<Vec<_>>(), [PowerLoss, Blackout]);
        let text = unproven(&[row]);
        assert!(text.contains("- blackout: others show the same bugs."), "{text}");
        assert!(text.contains("- lag: struck in no run."), "{text}");
    }

    #[test]
    fn both_of_two_may_be_needed() {
        let row = looked(&[Kill, Lag], |_, on| on(Kill) && on(Lag));
        assert_eq!(row.needs().collect::<Vec<_>>(), [Kill, Lag]);
        assert_eq!(row.suffices().count(), 0);
    }

    #[test]
    fn a_bug_that_needs_no_fault_proves_nothing() {
        let row = looked(&[Kill], |_, _| true);
        assert!(row.classes.is_empty() && row.none.by.is_some());
        assert!(row.say().contains("without any fault"));
    }

    #[test]
    fn a_run_that_fails_without_the_bug_does_not_count() {
        let run = |job: &Job| {
            let failure = Failure {
                kind: Kind::Liveness,
                oracle: "O7".to_owned(),
                message: "stuck".to_owned(),
            };
            Report { failure: Some(failure), bug_reached: 1, ..Report::empty(job) }
        };
        let row = Look::new(&BUG, (2, 2), &run).whole();
        assert_eq!((row.all.by.is_none(), row.noise.len()), (true, 2));
        assert!(noise(&[row]).contains("`journal`, seed 2"));
    }

    #[test]
    fn a_class_must_strike_in_every_run_that_saw_the_bug() {
        let run = |job: &Job| {
            let class = if job.seed == 1 { Kill } else { Rot };
            let failure = job.bug.is_some().then(|| Failure {
                kind: Kind::Crash,
                oracle: "panic".to_owned(),
                message: "index".to_owned(),
            });
            let off = job.off.len() == FaultClass::all().count();
            let (failure, classes) = (failure.filter(|_| !off), [(class, 1), (Lag, 2)].into());
            Report { failure, bug_reached: 1, classes, ..Report::empty(job) }
        };
        let row = Look::new(&BUG, (5, 5), &run).whole();
        assert_eq!(row.classes.keys().collect::<Vec<_>>(), [&Lag]);
        assert_eq!(row.struck, BTreeSet::from([Kill, Rot, Lag]));
    }
}
