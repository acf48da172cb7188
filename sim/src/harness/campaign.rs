//! A sweep over days: what is done stands in a directory, and the next start goes on from there. Seeds that
//! were the first to reach a mark, or to reach it so often, are kept as a corpus; another build runs those
//! first.

use super::child::Outcome;
use super::recipe::Recipe;
use super::{Job, Scenario, files, pool};
use crate::failure::Failure;
use crate::plan::FaultClass;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Outcomes between two writes of the state.
const SAVE_EVERY: u64 = 20;

/// A counter over many seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Sum.
    pub sum: u64,
    /// Seeds in which it was not zero.
    pub seeds: u64,
}

impl Total {
    fn add(&mut self, count: u64) {
        self.sum += count;
        self.seeds += u64::from(count > 0);
    }
}

/// What is done and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The scenario.
    pub scenario: String,
    /// The build of this program that did it.
    pub build: String,
    /// Seeds done, in ranges.
    pub done: Vec<Range<u64>>,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Milliseconds that the processes took.
    pub process_ms: u64,
    /// Counters of the runs.
    pub counts: BTreeMap<String, Total>,
    /// Marks reached.
    pub marks: BTreeMap<String, Total>,
    /// Classes of faults that struck; states of older builds have none.
    #[serde(default)]
    pub classes: BTreeMap<FaultClass, Total>,
    /// Interesting seeds: what each was the first to show.
    pub corpus: BTreeMap<u64, Vec<String>>,
    /// Seeds that failed.
    pub failures: BTreeMap<u64, Failure>,
}

impl State {
    /// Seeds done.
    pub fn seeds(&self) -> u64 {
        self.done.iter().map(|range| range.end - range.start).sum()
    }

    fn is_done(&self, seed: u64) -> bool {
        self.done.iter().any(|range| range.contains(&seed))
    }

    fn mark_done(&mut self, seed: u64) {
        self.done.push(seed..seed + 1);
        self.done.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in self.done.drain(..) {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        self.done = merged;
    }

    /// What shows in a run: each mark, in steps of powers of two.
    fn features(marks: &BTreeMap<String, u64>) -> impl Iterator<Item = String> {
        marks.iter().flat_map(|(name, hits)| {
            (0..=hits.checked_ilog2().unwrap_or(0))
                .map(move |bits| format!("{name} >={}", 1u64 << bits))
        })
    }

    /// Takes a run in; true if it showed something new.
    fn take(&mut self, seen: &mut BTreeSet<String>, outcome: &Outcome) -> bool {
        let report = &outcome.report;
        self.mark_done(report.seed);
        self.simulated_ms += report.simulated_ms;
        self.process_ms += u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        for (name, count) in &report.counts {
            self.counts.entry(name.clone()).or_default().add(*count);
        }
        for (name, count) in &report.marks {
            self.marks.entry(name.clone()).or_default().add(*count);
        }
        for (class, count) in &report.classes {
            self.classes.entry(*class).or_default().add(*count);
        }
        if let Some(failure) = &report.failure {
            self.failures.insert(report.seed, failure.clone());
        }
        let new: Vec<String> =
            Self::features(&report.marks).filter(|feature| seen.insert(feature.clone())).collect();
        let interesting = !new.is_empty();
        if interesting {
            self.corpus.insert(report.seed, new);
        }
        interesting
    }

    /// The sums, as a table for people.
    pub fn table(&self, must_count: &[&str]) -> String {
        let (hours, cpu) = (self.simulated_ms as f64 / 3.6e6, self.process_ms as f64 / 3.6e6);
        let mut text = format!(
            "{}: {} seeds, {hours:.1} simulated hours in {cpu:.2} process hours, {} failures, {} seeds in the corpus\n",
            self.scenario,
            self.seeds(),
            self.failures.len(),
            self.corpus.len(),
        );
        let never = must_count.iter().filter(|name| !self.counts.contains_key(**name));
        for name in never {
            text += &format!("  {name:<48} never\n");
        }
        let marks = self.marks.iter().map(|(name, total)| (format!("mark: {name}"), total));
        let counts = self.counts.iter().map(|(name, total)| (name.clone(), total));
        let classes = self.classes.iter().map(|(class, total)| (format!("class: {class}"), total));
        for (name, Total { sum, seeds }) in counts.chain(classes).chain(marks) {
            text += &format!("  {name:<48} {sum:>12} in {seeds:>7} seeds\n");
        }
        text
    }
}

/// Where the state of a scenario's sweep lives.
fn path(dir: &Path, scenario: &str) -> PathBuf {
    dir.join(scenario).join("state.json")
}

/// What was done so far by this build; the corpus of another build is to run first.
fn load(dir: &Path, scenario: &str) -> Result<(State, Vec<u64>), String> {
    let (path, build) = (path(dir, scenario), files::build()?);
    let fresh = State { scenario: scenario.to_owned(), build, ..State::default() };
    let Some(text) = files::read_if_there(&path)? else { return Ok((fresh, Vec::new())) };
    let found: State =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    if found.build == fresh.build {
        return Ok((found, Vec::new()));
    }
    let old = path.with_file_name(format!("state-{}.json", found.build));
    files::write(&old, &text)?;
    println!(
        "another build did {} seeds: they are kept in {}, its {} interesting seeds run first",
        found.seeds(),
        old.display(),
        found.corpus.len()
    );
    Ok((fresh, found.corpus.into_keys().collect()))
}

struct Running {
    state: State,
    seen: BTreeSet<String>,
    first: VecDeque<u64>,
    next: u64,
    unsaved: u64,
    error: Option<String>,
}

/// Runs seeds that are not done yet. Stops at the first failure unless `keep_going`.
pub fn sweep(
    scenario: &Scenario,
    seeds: Range<u64>,
    dir: &Path,
    keep_going: bool,
) -> Result<State, String> {
    let (state, first) = load(dir, scenario.name)?;
    let left = seeds.clone().filter(|seed| !state.is_done(*seed)).count() as u64;
    let first: VecDeque<u64> = first.into_iter().filter(|seed| !state.is_done(*seed)).collect();
    let more = first.iter().filter(|seed| !seeds.contains(*seed)).count() as u64;
    let bar = bar(left + more);
    let seen = state.corpus.values().flatten().cloned().collect();
    let running = Running { state, seen, first, next: seeds.start, unsaved: 0, error: None };
    let running = Mutex::new(running);
    let lock = || running.lock().unwrap_or_else(PoisonError::into_inner);
    pool::each(
        || {
            let seed = lock().next_seed(seeds.end)?;
            Some(Job::new(scenario.name, seed))
        },
        |job, outcome| {
            let mut running = lock();
            let stop = running.take(dir, &job, &outcome);
            bar.set_message(running.rates());
            bar.inc(1);
            if let Some(failure) = &outcome.report.failure {
                bar.suspend(|| report(&job, failure, dir));
            }
            stop || outcome.report.failure.is_some() && !keep_going
        },
    );
    bar.finish_and_clear();
    let running = running.into_inner().unwrap_or_else(PoisonError::into_inner);
    running.save(dir)?;
    running.error.map_or(Ok(running.state), Err)
}

fn report(job: &Job, failure: &Failure, dir: &Path) {
    let Job { scenario, seed, .. } = job;
    let path = failed_path(dir, job);
    println!("seed {seed}: {:?}: {}: {}", failure.kind, failure.oracle, failure.message);
    println!("  mooseng-sim replay {}", path.display());
    println!("  mooseng-sim minimise {scenario} --seed {seed}");
}

fn failed_path(dir: &Path, job: &Job) -> PathBuf {
    dir.join(&job.scenario).join(format!("failed-{}.json", job.seed))
}

impl Running {
    fn next_seed(&mut self, end: u64) -> Option<u64> {
        loop {
            if let Some(seed) = self.first.pop_front() {
                return Some(seed);
            }
            let seed = self.next;
            if seed >= end {
                return None;
            }
            self.next += 1;
            if !self.state.is_done(seed) {
                return Some(seed);
            }
        }
    }

    /// True if there is no going on.
    fn take(&mut self, dir: &Path, job: &Job, outcome: &Outcome) -> bool {
        self.state.take(&mut self.seen, outcome);
        self.unsaved += 1;
        let mut saved = Ok(());
        if outcome.report.failure.is_some() {
            saved = Recipe::of(job, &outcome.report).save(&failed_path(dir, job));
        }
        if saved.is_ok() && self.unsaved >= SAVE_EVERY {
            self.unsaved = 0;
            saved = self.save(dir);
        }
        self.error = saved.err();
        self.error.is_some()
    }

    fn save(&self, dir: &Path) -> Result<(), String> {
        let text = serde_json::to_string(&self.state).expect("states print");
        files::write(&path(dir, &self.state.scenario), &text)
    }

    fn rates(&self) -> String {
        let state = &self.state;
        let speed = state.simulated_ms as f64 / state.process_ms.max(1) as f64;
        let hourly = state.seeds() as f64 * 3.6e6 / state.process_ms.max(1) as f64;
        format!(
            "{speed:.1}x real time, {hourly:.0} seeds a process hour, {} in the corpus, {} failed",
            state.corpus.len(),
            state.failures.len()
        )
    }
}

fn bar(seeds: u64) -> ProgressBar {
    let bar = ProgressBar::new(seeds);
    let style = "{wide_bar} {pos}/{len} seeds, {per_sec}, {elapsed} gone, {eta} to go\n{msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template"));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Report;

    fn outcome(seed: u64, marks: &[(&str, u64)]) -> Outcome {
        let marks = marks.iter().map(|(name, hits)| ((*name).to_owned(), *hits)).collect();
        let report = Report { marks, simulated_ms: 10, ..Report::empty(&Job::new("some", seed)) };
        Outcome { report, tail: Vec::new(), took: Duration::from_millis(5) }
    }

    #[test]
    fn seeds_that_show_something_new_are_kept() {
        let (mut state, mut seen) = (State::default(), BTreeSet::new());
        assert!(state.take(&mut seen, &outcome(3, &[("torn", 1)])));
        assert!(!state.take(&mut seen, &outcome(2, &[("torn", 1)])));
        assert!(state.take(&mut seen, &outcome(5, &[("torn", 5)])), "so often");
        assert!(!state.take(&mut seen, &outcome(4, &[("torn", 3)])), "it was less often");
        assert_eq!(state.corpus.keys().copied().collect::<Vec<_>>(), [3, 5]);
        assert_eq!(state.done, std::slice::from_ref(&(2..6)));
        assert_eq!((state.seeds(), state.simulated_ms, state.process_ms), (4, 40, 20));
        assert_eq!(state.marks["torn"], Total { sum: 10, seeds: 4 });
    }

    #[test]
    fn strikes_of_each_class_are_summed_and_older_states_have_none() {
        let (mut state, mut seen) = (State::default(), BTreeSet::new());
        for (seed, strikes) in [(1, 3), (2, 0), (3, 4)] {
            let mut outcome = outcome(seed, &[]);
            outcome.report.classes.insert(FaultClass::Rot, strikes);
            state.take(&mut seen, &outcome);
        }
        assert_eq!(state.classes[&FaultClass::Rot], Total { sum: 7, seeds: 2 });
        assert!(state.table(&[]).contains("class: rot "), "{}", state.table(&[]));
        let mut older = serde_json::to_value(&state).expect("prints");
        older.as_object_mut().expect("a map").remove("classes");
        let older: State = serde_json::from_value(older).expect("parses");
        assert_eq!(older, State { classes: BTreeMap::new(), ..state });
    }

    #[test]
    fn the_state_survives_its_printed_form_and_tells_what_is_left() {
        let (mut state, mut seen) = (State::default(), BTreeSet::new());
        for seed in [1, 2, 4] {
            state.take(&mut seen, &outcome(seed, &[]));
        }
        let text = serde_json::to_string(&state).expect("prints");
        let state: State = serde_json::from_str(&text).expect("parses");
        let mut running =
            Running { state, seen, first: VecDeque::from([9]), next: 0, unsaved: 0, error: None };
        let seeds: Vec<u64> = std::iter::from_fn(|| running.next_seed(6)).collect();
        assert_eq!(seeds, [9, 0, 3, 5]);
    }
}
