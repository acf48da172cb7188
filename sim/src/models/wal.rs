//! The write-ahead log, crashed everywhere.
//!
//! | asserts | source |
//! |---|---|
//! | after any crash the log opens, and says what it said after some step between the last one known durable and the last one begun | a list beside the log |
//! | the vote is never older than the last one saved, nor newer than the last one begun | the same |
//! | it goes on from there, and survives the next crash | the same again after recovery |
//! | a failed write or sync fences the log: nothing is acknowledged afterwards | injected EIO |
//! | a rotten log is refused, or has lost nothing but what no later record vouched for | injected rot |
//!
//! It does not check what Raft makes of the log, nor time.

use crate::disk::{Chosen, Outcome, SimDisk};
use crate::plan::{self, FaultClass};
use crate::rng::{Ratio, Rng};
use mooseng::ids::{LogIndex, NodeId, Term};
use mooseng::limits::Limits;
use mooseng::wal::{self, Entry, LogId, Vote, Wal, WalError};
use std::sync::Arc;

/// What a run did, to see that it was not empty.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls that change the disk in one undisturbed run.
    pub changes: u64,
    /// Crashes tried, times fates.
    pub crashes: u64,
    /// Logs that were refused as rotten.
    pub refused: u64,
    /// Errors that injected faults caused.
    pub errors: u64,
}

/// One step of a program.
#[derive(Clone, Debug)]
enum Step {
    Append(u64, usize),
    Vote,
    Truncate(usize),
    Purge(usize),
    PurgeBeyond(u64),
    Install,
    Committed,
    Flush,
    Sync,
    Spare,
    Reopen,
}

/// What the log must say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Vote>,
    term: u64,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn last(&self) -> u64 {
        let last = self.entries.last().map(|entry| entry.id).or(self.purged);
        last.map_or(0, |id| id.index.0)
    }

    fn id(&self, index: u64) -> LogId {
        LogId { term: Term(self.term), node: NodeId(self.term % 3), index: LogIndex(index) }
    }

    fn append(&mut self, len: usize) {
        let id = self.id(self.last() + 1);
        let payload = (0..len).map(|at| (id.index.0 as usize * 31 + at * 7 + len) as u8).collect();
        self.entries.push(Entry { id, payload });
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Append(count, len) => (0..*count).for_each(|_| self.append(*len)),
            Step::Vote => {
                self.term += 1;
                let node = NodeId(self.term % 3);
                self.vote = Some(Vote { term: Term(self.term), node, committed: false });
            }
            Step::Truncate(back) => {
                self.entries.truncate(self.entries.len().saturating_sub(*back));
            }
            Step::Purge(keep) => {
                let gone = self.entries.len().saturating_sub(*keep);
                if let Some(entry) = self.entries.drain(..gone).next_back() {
                    self.purged = Some(entry.id);
                }
            }
            Step::PurgeBeyond(by) => {
                self.purged = Some(self.id(self.last() + by));
                self.entries.clear();
            }
            _ => {}
        }
    }

    /// What `wal` says; its term is the model's business.
    fn of(wal: &Wal, term: u64) -> Result<Model, WalError> {
        let entries = wal.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX)?;
        Ok(Model { vote: wal.vote(), term, purged: wal.purged(), entries })
    }
}

fn program(rng: &mut Rng, steps: usize) -> Vec<Step> {
    let step = |rng: &mut Rng| match rng.below(40) {
        0..12 => Step::Append(rng.range(1, 4), rng.index(400)),
        12 => Step::Append(1, 1500 + rng.index(6000)),
        13..24 => Step::Sync,
        24..26 => Step::Flush,
        26..28 => Step::Vote,
        28..30 => Step::Truncate(rng.index(4)),
        30..34 => Step::Purge(rng.index(6)),
        34 => Step::PurgeBeyond(rng.range(1, 9)),
        35 => Step::Install,
        36 | 37 => Step::Committed,
        38 => Step::Spare,
        _ => Step::Reopen,
    };
    (0..steps).map(|_| step(rng)).collect()
}

fn limits() -> Limits {
    Limits { wal_segment_bytes: 4 << 10, ..Limits::tiny() }
}

/// A log beside its model.
struct Life {
    disk: Arc<SimDisk>,
    incarnation: u64,
    wal: Wal,
    model: Model,
    /// Every state from the last durable one to the newest begun.
    possible: Vec<Model>,
}

impl Life {
    /// Opens what the disk holds; it must say one of `expected`.
    fn open(disk: &Arc<SimDisk>, incarnation: u64, expected: &[Model]) -> Result<Life, String> {
        let wal = Wal::open(disk.handle(incarnation), &limits()).map_err(|e| e.to_string())?;
        let term = expected.iter().map(|model| model.term).max().unwrap_or(0);
        let found = Model::of(&wal, term).map_err(|e| e.to_string())?;
        if !survives(&found, expected) {
            return Err(format!("{found:?} is none of {expected:?}"));
        }
        let (disk, possible) = (disk.clone(), vec![found.clone()]);
        Ok(Life { disk, incarnation, wal, model: found, possible })
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        if matches!(step, Step::Reopen) {
            // The process ended: what it wrote is in the page cache, so that nothing is lost but what was
            // never written. The old handle must not count any more.
            self.disk.crash();
            self.incarnation += 1;
            self.disk.fence(self.incarnation);
            let expected = self.possible.clone();
            let life = Life::open(&self.disk, self.incarnation, &expected);
            *self = life?;
            return Ok(());
        }
        let before = self.model.clone();
        if let Step::Append(count, len) = step {
            for _ in 0..*count {
                self.model.append(*len);
                self.possible.push(self.model.clone());
            }
        } else {
            self.model.apply(step);
            self.possible.push(self.model.clone());
        }
        self.perform(&before, step).map_err(|error| format!("{step:?}: {error}"))?;
        if matches!(step, Step::Sync | Step::Vote | Step::Install) {
            self.possible = vec![self.model.clone()];
        }
        Ok(())
    }

    fn perform(&mut self, before: &Model, step: &Step) -> Result<(), WalError> {
        let (wal, after) = (&mut self.wal, &self.model);
        match step {
            Step::Append(..) => wal.append(&after.entries[before.entries.len()..]),
            Step::Vote => wal.save_vote(after.vote.expect("voted")),
            Step::Truncate(_) => wal.truncate(LogIndex(after.last() + 1)),
            Step::Purge(_) | Step::PurgeBeyond(_) if after.purged == before.purged => Ok(()),
            Step::Purge(_) | Step::PurgeBeyond(_) => wal.purge(after.purged.expect("purged")),
            Step::Install => wal.announce_install(after.id(after.last() + 5)),
            Step::Committed => wal.last().map_or(Ok(()), |last| wal.save_committed(last)),
            Step::Flush => wal.flush(),
            Step::Sync => wal.sync(),
            Step::Spare => {
                if let Some(job) = wal.spare_wanted() {
                    wal.add_spare(job.run());
                }
                Ok(())
            }
            Step::Reopen => Ok(()),
        }
    }

    fn run(&mut self, program: &[Step]) -> Result<(), String> {
        program.iter().try_for_each(|step| self.step(step))
    }
}

fn survives(found: &Model, possible: &[Model]) -> bool {
    let newest = possible.iter().map(|model| model.vote).max().flatten();
    possible.iter().any(|model| {
        let same = model.purged == found.purged && model.entries == found.entries;
        same && model.vote <= found.vote && found.vote <= newest
    })
}

fn fresh(seed: u64) -> Arc<SimDisk> {
    SimDisk::new("m", 16 << 20, seed)
}

/// Runs one program of `steps` steps once undisturbed, then once for each call that changes the disk, crashed
/// there; after each crash every fate of what was not synced.
pub fn crash_everywhere(seed: u64, steps: usize) -> Result<Report, String> {
    let program = program(&mut Rng::new(seed), steps);
    let disk = fresh(seed);
    let mut life = Life::open(&disk, 1, &[Model::default()])?;
    life.run(&program).map_err(|error| format!("undisturbed: {error}"))?;
    let changes = disk.counters().changes;
    let mut report = Report { changes, ..Report::default() };
    for at in 0..changes {
        crash_at(seed, &program, at, &mut report)
            .map_err(|error| format!("seed {seed}, crash at change {at} of {changes}: {error}"))?;
    }
    Ok(report)
}

/// Every step that changes something, in a small form.
const SMALL: [Step; 9] = [
    Step::Append(1, 40),
    Step::Append(2, 700),
    Step::Vote,
    Step::Truncate(1),
    Step::Purge(1),
    Step::PurgeBeyond(2),
    Step::Install,
    Step::Committed,
    Step::Sync,
];

/// Every program of one and of two steps, on a log with two entries, crashed at every call that changes the
/// disk, with every fate of what was not synced: nothing kept, everything, each choice of up to two units,
/// each unit torn.
pub fn small_world() -> Result<Report, String> {
    let begun = [Step::Append(2, 60), Step::Vote, Step::Sync];
    let mut report = Report::default();
    let ones = SMALL.iter().map(|a| vec![a]);
    let twos = SMALL.iter().flat_map(|a| SMALL.iter().map(move |b| vec![a, b]));
    for program in ones.chain(twos) {
        let steps: Vec<Step> = begun.iter().chain(program).chain([&Step::Sync]).cloned().collect();
        let disk = fresh(1);
        let mut life = Life::open(&disk, 1, &[Model::default()])?;
        life.run(&begun)?;
        let from = disk.counters().changes;
        life.run(&steps[begun.len()..]).map_err(|error| format!("undisturbed: {error}"))?;
        let to = disk.counters().changes;
        report.changes += to - from;
        for at in from..to {
            crash_every_way(&steps, at, &mut report)
                .map_err(|error| format!("{steps:?}, crash at change {at} of {to}: {error}"))?;
        }
    }
    Ok(report)
}

fn crash_every_way(program: &[Step], at: u64, report: &mut Report) -> Result<(), String> {
    let disk = fresh(1);
    disk.die_after(at);
    let Ok(mut life) = Life::open(&disk, 1, &[Model::default()]) else { return Ok(()) };
    if life.run(program).is_ok() {
        return Ok(());
    }
    let (sectors, names) = disk.unsynced();
    let chosen = Chosen::all(sectors + names).into_iter().map(Outcome::Only);
    for fate in [Outcome::DropAll, Outcome::KeepAll].into_iter().chain(chosen) {
        let copy = disk.duplicate(at);
        lose(&copy, Some(fate), 10);
        let life = Life::open(&copy, 10, &life.possible);
        let found = life.map_err(|error| format!("{fate:?}: {error}"))?.model;
        // What was recovered stays.
        lose(&copy, Some(Outcome::DropAll), 11);
        Life::open(&copy, 11, &[found]).map_err(|error| format!("{fate:?}, again: {error}"))?;
        report.crashes += 1;
    }
    Ok(())
}

fn crash_at(seed: u64, program: &[Step], at: u64, report: &mut Report) -> Result<(), String> {
    let disk = fresh(seed);
    disk.die_after(at);
    let possible = match Wal::open(disk.handle(1), &limits()) {
        Err(_) => vec![Model::default()],
        Ok(wal) => {
            let (model, possible) = (Model::default(), vec![Model::default()]);
            let disk = disk.clone();
            let mut life = Life { disk, incarnation: 1, wal, model, possible };
            if life.run(program).is_ok() {
                return Ok(());
            }
            life.possible
        }
    };
    let mixed = [Some(Outcome::Mixed); 4];
    let fates = [None, Some(Outcome::DropAll), Some(Outcome::KeepAll)].into_iter().chain(mixed);
    for (number, fate) in fates.enumerate() {
        let copy = disk.duplicate(seed ^ (at << 8) ^ number as u64);
        survive(&copy, fate, &possible, seed + at)
            .map_err(|error| format!("fate {number} ({fate:?}): {error}"))?;
        report.crashes += 1;
    }
    Ok(())
}

/// What is left opens; then a power loss at once, more steps, and a power loss again.
fn survive(
    disk: &Arc<SimDisk>,
    fate: Option<Outcome>,
    expected: &[Model],
    seed: u64,
) -> Result<(), String> {
    lose(disk, fate, 10);
    let life = Life::open(disk, 10, expected)?;
    let found = life.model.clone();
    lose(disk, Some(Outcome::Mixed), 11);
    let mut life = Life::open(disk, 11, &[found]).map_err(|e| format!("once more: {e}"))?;
    life.run(&program(&mut Rng::new(seed), 10)).map_err(|e| format!("going on: {e}"))?;
    let possible = life.possible.clone();
    drop(life);
    lose(disk, Some(Outcome::Mixed), 100);
    Life::open(disk, 100, &possible).map_err(|e| format!("after going on: {e}"))?;
    Ok(())
}

fn lose(disk: &Arc<SimDisk>, fate: Option<Outcome>, incarnation: u64) {
    disk.fence(incarnation);
    match fate {
        Some(outcome) if plan::strikes(FaultClass::PowerLoss) => disk.power_loss_as(outcome),
        _ => disk.crash(),
    }
    disk.revive();
}

/// Runs a program on a disk whose reads, writes and syncs fail now and then; after each error a power loss.
pub fn failing_disk(seed: u64, steps: usize) -> Result<Report, String> {
    let mut rng = Rng::new(seed);
    let mut report = Report::default();
    let disk = fresh(seed);
    let mut life = Life::open(&disk, 1, &[Model::default()])?;
    disk.set_faults(|faults| {
        faults.write_eio = Ratio::one_in(60);
        faults.sync_eio = Ratio::one_in(40);
    });
    for step in program(&mut rng, steps) {
        if life.step(&step).is_ok() {
            continue;
        }
        report.errors += 1;
        // Whatever comes now, nothing more is acknowledged.
        if life.wal.append(&[]).and_then(|()| life.wal.sync()).is_ok()
            && !matches!(step, Step::Reopen)
        {
            return Err(format!("{step:?} failed and the log goes on"));
        }
        let possible = life.possible.clone();
        let incarnation = life.incarnation + 1;
        let faults = disk.faults();
        disk.set_faults(|faults| *faults = Default::default());
        lose(&disk, Some(Outcome::Mixed), incarnation);
        life = Life::open(&disk, incarnation, &possible)
            .map_err(|error| format!("after an error at {step:?}: {error}"))?;
        disk.set_faults(|now| *now = faults);
    }
    Ok(report)
}

/// Rots one byte of a log that was left alone, at every place in turn that `stride` reaches: refused, or as it
/// is, or as it once was.
pub fn rot_everywhere(seed: u64, steps: usize, stride: usize) -> Result<Report, String> {
    let mut report = Report::default();
    let disk = fresh(seed);
    let mut life = Life::open(&disk, 1, &[Model::default()])?;
    let mut history = vec![Model::default()];
    for step in program(&mut Rng::new(seed), steps).iter().chain([&Step::Sync]) {
        life.step(step)?;
        history.extend(life.possible.clone());
    }
    let model = life.model.clone();
    for path in disk.paths().into_iter().filter(|path| path.starts_with("wal/")) {
        let len = disk.written(&path).map_or(0, |bytes| bytes.len());
        for at in (0..len).step_by(stride) {
            let copy = disk.duplicate(seed);
            copy.fence(5);
            if !plan::strikes(FaultClass::Rot) || !copy.rot(&path, at as u64, 0x10) {
                continue;
            }
            let Ok(found) = wal::inspect(copy.handle(5).as_ref()) else {
                report.refused += 1;
                continue;
            };
            let say = |what: &str| format!("{path} rotten at {at}: {what}");
            if found.vote != model.vote {
                return Err(say(&format!("vote {:?}, not {:?}", found.vote, model.vote)));
            }
            let ids = || found.entries.iter().map(|entry| entry.id);
            let was = |past: &Model| {
                past.purged == found.purged && past.entries.iter().map(|entry| entry.id).eq(ids())
            };
            if !history.iter().any(was) {
                return Err(say("it says what it never said"));
            }
        }
    }
    Ok(report)
}
