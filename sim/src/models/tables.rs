//! The tables and their file, crashed everywhere.
//!
//! | asserts | source |
//! |---|---|
//! | after any crash the file opens, and holds the last acknowledged checkpoint or the one under way | a map beside the tables |
//! | its rows, its record and its state hash belong together | the map; the hash recomputed from the rows |
//! | it goes on from there: more changes, checkpoints and power losses | the same again after recovery |
//! | a disk that fails or lies gives an error, never other rows | injected EIO, rot, misdirected writes |
//! | a disk that somebody else fills at any call postpones the checkpoint, fails no reader and loses nothing | the map, at once, after the next try and after a power loss |
//!
//! It does not check what the log above makes of a checkpoint, nor time, nor several threads.

use crate::disk::{Chosen, Faults, Outcome, SimDisk};
use crate::plan::{self, FaultClass};
use crate::rng::{Ratio, Rng};
use mooseng::limits::Limits;
use mooseng::pb;
use mooseng::seam::Disk;
use mooseng::tables::{Db, Read, Table, TableError, View};
use std::collections::BTreeMap;
use std::sync::Arc;

const PATH: &str = "tables.redb";

struct Things;

impl Table for Things {
    const ID: u8 = 7;
    const NAME: &'static str = "things";
    type Key = (u64, Vec<u8>);
    type Row = pb::LookupQuery;
}

type Model = BTreeMap<(u64, Vec<u8>), pb::LookupQuery>;

/// A checkpoint: its index and the rows it holds.
type Point = (u64, Model);

/// What a run did, to see that it was not empty.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls that change the disk in one undisturbed run.
    pub changes: u64,
    /// Crashes tried, times fates.
    pub crashes: u64,
    /// Of them: recovered to the checkpoint that was under way.
    pub went_forward: u64,
    /// Errors that injected faults caused.
    pub refusals: u64,
}

/// One step of a program.
#[derive(Clone, Debug)]
enum Step {
    Put(u64, usize, usize),
    Delete(u64, usize),
    Checkpoint,
    Install,
    Reopen,
}

/// Few keys, so that they are overwritten; rows from nothing to more than a page.
fn program(rng: &mut Rng, steps: usize) -> Vec<Step> {
    let step = |rng: &mut Rng| match rng.below(40) {
        0..22 => Step::Put(rng.below(3), rng.index(90), rng.index(300)),
        22 => Step::Put(rng.below(3), rng.index(90), 3000 + rng.index(9000)),
        23..36 => Step::Delete(rng.below(3), rng.index(90)),
        36 | 37 => Step::Checkpoint,
        38 => Step::Install,
        _ => Step::Reopen,
    };
    let mut steps: Vec<Step> = (0..steps).map(|_| step(rng)).collect();
    steps.push(Step::Checkpoint);
    steps
}

fn key(group: u64, name: usize) -> (u64, Vec<u8>) {
    (group, format!("name-{:1$}", name, name % 40).into_bytes())
}

fn meta(index: u64) -> pb::CheckpointMeta {
    let last = pb::RaftLogId { term: 1, node: 1, index };
    pb::CheckpointMeta { last_applied: Some(last), ..Default::default() }
}

/// One life of the tables, with the model beside it.
struct Life {
    disk: Arc<dyn Disk>,
    limits: Limits,
    db: Db,
    model: Model,
    acknowledged: Point,
    attempted: Option<Point>,
}

impl Life {
    /// Opens, and checks that what is there is one of `expected`.
    fn open(disk: Arc<dyn Disk>, limits: Limits, expected: &[&Point]) -> Result<Life, String> {
        let (db, found) = Db::open(disk.clone(), PATH, &limits).map_err(|e| e.to_string())?;
        let index = found.and_then(|meta| meta.last_applied).map_or(0, |last| last.index);
        let point = expected.iter().find(|point| point.0 == index);
        let known: Vec<u64> = expected.iter().map(|point| point.0).collect();
        let (_, model) = point.ok_or(format!("checkpoint {index} on disk, expected {known:?}"))?;
        compare(&db.view(), model)?;
        let (model, acknowledged) = (model.clone(), (index, model.clone()));
        Ok(Life { disk, limits, db, model, acknowledged, attempted: None })
    }

    fn step(&mut self, step: &Step, index: u64) -> Result<(), TableError> {
        match step {
            Step::Put(group, name, len) => {
                let row = pb::LookupQuery { parent: index, name: vec![index as u8; *len].into() };
                let key = key(*group, *name);
                self.db.put::<Things>(&key, &row)?;
                self.model.insert(key, row);
            }
            Step::Delete(group, name) => {
                self.db.delete::<Things>(&key(*group, *name))?;
                self.model.remove(&key(*group, *name));
            }
            Step::Checkpoint => {
                self.attempted = Some((index, self.model.clone()));
                let mut begun =
                    self.db.begin_checkpoint(meta(index), false).expect("none is under way");
                drop(self.db.finish_checkpoint(begun.write()?));
                self.acknowledge();
            }
            Step::Install => {
                self.attempted = Some((index, self.model.clone()));
                let view = self.db.view();
                let meta = pb::CheckpointMeta { state_hash: view.hash(), ..meta(index) };
                drop(self.db.install(view.rows(), meta)?);
                self.acknowledge();
            }
            Step::Reopen => {
                self.db = Db::memory();
                self.db = Db::open(self.disk.clone(), PATH, &self.limits)?.0;
                self.model = self.acknowledged.1.clone();
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self) {
        if let Some(point) = self.attempted.take() {
            self.acknowledged = point;
        }
    }

    /// Runs to the end or the first error.
    fn run(&mut self, steps: &[Step], first_index: u64) -> Result<(), TableError> {
        steps.iter().zip(first_index..).try_for_each(|(step, index)| self.step(step, index))
    }
}

fn compare(view: &View, model: &Model) -> Result<(), String> {
    let rows = view.range::<Things>(&(0, Vec::new()), None);
    let rows: Model = rows.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if rows != *model {
        return Err(format!("{} rows on disk are not the {} expected", rows.len(), model.len()));
    }
    let hash = view.hash_of_rows().map_err(|error| error.to_string())?;
    if hash != view.hash() {
        return Err(format!("hash {:x} of the rows is not {:x}", hash, view.hash()));
    }
    Ok(())
}

/// Some runs write the file anew often, some seldom.
fn limits(seed: u64) -> Limits {
    let table_slack_bytes = [30 << 10, 300 << 10][seed as usize % 2];
    Limits { redb_cache_bytes: 48 << 10, table_slack_bytes, ..Limits::tiny() }
}

fn fresh(seed: u64) -> Arc<SimDisk> {
    SimDisk::new("m", 64 << 20, seed)
}

const EMPTY: Point = (0, Model::new());

/// Runs one program of `steps` steps once undisturbed, then once for each call that changes the disk, crashed
/// there; after each crash every fate of what was not synced.
pub fn crash_everywhere(seed: u64, steps: usize) -> Result<Report, String> {
    let mut rng = Rng::new(seed);
    let program = program(&mut rng, steps);
    let disk = fresh(seed);
    let mut life = Life::open(disk.handle(1), limits(seed), &[&EMPTY])?;
    life.run(&program, 1).map_err(|error| format!("undisturbed: {error}"))?;
    let changes = disk.counters().changes;
    drop(life);
    let mut report = Report { changes, ..Report::default() };
    for at in 0..changes {
        let say = |error| format!("seed {seed}, crash at change {at} of {changes}: {error}");
        crash_at(seed, &program, at, &mut report).map_err(say)?;
    }
    Ok(report)
}

/// Every program of one and of two steps before a checkpoint, on tables with one checkpoint, crashed at every
/// call that changes the disk, with every fate of what was not synced: nothing kept, everything, each unit
/// kept alone, each unit torn, and with `pairs` each two.
pub fn small_world(pairs: bool) -> Result<Report, String> {
    let steps = [Step::Put(0, 1, 50), Step::Put(1, 2, 5000), Step::Delete(0, 1), Step::Install];
    let begun = [Step::Put(0, 1, 30), Step::Put(2, 5, 200), Step::Checkpoint];
    let mut report = Report::default();
    let ones = steps.iter().map(|a| vec![a]);
    let twos = steps.iter().flat_map(|a| steps.iter().map(move |b| vec![a, b]));
    for program in ones.chain(twos) {
        let mut all: Vec<Step> = begun.to_vec();
        all.extend(program.into_iter().cloned());
        all.push(Step::Checkpoint);
        for at in 0.. {
            let disk = fresh(1);
            let mut life = Life::open(disk.handle(1), limits(1), &[&(0, Model::new())])?;
            life.run(&begun, 1).map_err(|error| error.to_string())?;
            disk.die_after(at);
            _ = life.run(&all[begun.len()..], 1 + begun.len() as u64);
            if !disk.is_dead() {
                break;
            }
            report.changes += 1;
            let expected: Vec<&Point> =
                [&life.acknowledged].into_iter().chain(&life.attempted).collect();
            every_way(&disk, &expected, pairs, &mut report)
                .map_err(|error| format!("{all:?}, crash at change {at}: {error}"))?;
        }
    }
    Ok(report)
}

fn every_way(
    disk: &Arc<SimDisk>,
    expected: &[&Point],
    pairs: bool,
    report: &mut Report,
) -> Result<(), String> {
    let (sectors, names) = disk.unsynced();
    let mut chosen = Chosen::all(sectors + names);
    chosen.retain(|chosen| pairs || chosen.kept[1].is_none());
    let chosen = chosen.into_iter().map(Outcome::Only);
    for fate in [Outcome::DropAll, Outcome::KeepAll].into_iter().chain(chosen) {
        let copy = disk.duplicate(1);
        copy.fence(10);
        copy.power_loss_as(fate);
        let life = Life::open(copy.handle(10), limits(1), expected);
        let index = life.map_err(|error| format!("{fate:?}: {error}"))?.acknowledged.0;
        report.crashes += 1;
        report.went_forward += u64::from(index != expected[0].0);
    }
    Ok(())
}

fn crash_at(seed: u64, program: &[Step], at: u64, report: &mut Report) -> Result<(), String> {
    let disk = fresh(seed);
    let mut life = Life::open(disk.handle(1), limits(seed), &[&EMPTY])?;
    disk.die_after(at);
    let died = life.run(program, 1).is_err();
    let (acknowledged, attempted) = (life.acknowledged.clone(), life.attempted.clone());
    drop(life);
    if !died {
        return Ok(());
    }
    let fates = [
        None,
        Some(Outcome::DropAll),
        Some(Outcome::KeepAll),
        Some(Outcome::Mixed),
        Some(Outcome::Mixed),
        Some(Outcome::Mixed),
    ];
    for (number, fate) in fates.into_iter().enumerate() {
        let copy = disk.duplicate(seed ^ (at << 8) ^ number as u64);
        let expected: Vec<&Point> = [&acknowledged].into_iter().chain(&attempted).collect();
        let recovered = survive(&copy, fate, &expected, seed + 2 * at);
        let index = recovered.map_err(|error| format!("fate {number} ({fate:?}): {error}"))?;
        report.crashes += 1;
        report.went_forward += u64::from(index != acknowledged.0);
    }
    Ok(())
}

/// What is left opens; then a power loss at once, more changes, a checkpoint, and a power loss again.
fn survive(
    disk: &Arc<SimDisk>,
    fate: Option<Outcome>,
    expected: &[&Point],
    seed: u64,
) -> Result<u64, String> {
    lose(disk, fate);
    let life = Life::open(disk.handle(1), limits(seed), expected)?;
    let found = life.acknowledged.clone();
    disk.fence(2);
    drop(life);
    lose(disk, Some(Outcome::Mixed));
    let mut life = Life::open(disk.handle(2), limits(seed), &[&found])
        .map_err(|error| format!("after a second power loss: {error}"))?;
    let mut more = program(&mut Rng::new(seed), 12);
    more.retain(|step| !matches!(step, Step::Reopen));
    life.run(&more, 1_000_000).map_err(|error| format!("going on: {error}"))?;
    let reached = life.acknowledged.clone();
    disk.fence(3);
    drop(life);
    lose(disk, Some(Outcome::DropAll));
    Life::open(disk.handle(3), limits(seed), &[&reached])
        .map_err(|error| format!("after going on: {error}"))?;
    Ok(found.0)
}

/// Runs one program once for each call that changes the disk, with the disk filled by somebody else from that
/// call on until somebody was refused. Returns how many were.
pub fn full_everywhere(seed: u64, steps: usize) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let program = program(&mut rng, steps);
    let mut refused = 0;
    for at in 0.. {
        let say = |error| format!("seed {seed}, full from change {at} on: {error}");
        let disk = fresh(seed);
        let mut life = Life::open(disk.handle(1), limits(seed), &[&EMPTY]).map_err(say)?;
        disk.fill_after(at);
        for (step, index) in program.iter().zip(1..) {
            refused += life.step_on_full(&disk, step, index).map_err(say)?;
        }
        let reached = life.acknowledged.clone();
        let over = disk.counters().changes < at;
        disk.fence(2);
        drop(life);
        lose(&disk, Some(Outcome::DropAll));
        Life::open(disk.handle(2), limits(seed), &[&reached]).map_err(say)?;
        if over {
            break;
        }
    }
    Ok(refused)
}

impl Life {
    /// A step on a disk that may be full: then nothing has changed, and with space it works.
    fn step_on_full(&mut self, disk: &SimDisk, step: &Step, index: u64) -> Result<u64, String> {
        let Step::Checkpoint = step else {
            return match self.step(step, index) {
                Ok(()) => Ok(0),
                Err(error) if error.is_full() => {
                    disk.relieve();
                    self.step(step, index).map_err(|error| error.to_string())?;
                    Ok(1)
                }
                Err(error) => Err(error.to_string()),
            };
        };
        self.attempted = Some((index, self.model.clone()));
        let mut begun = self.db.begin_checkpoint(meta(index), true).expect("none is under way");
        let frozen = (self.db.view(), self.model.clone());
        let mut refused = 0;
        let finished = loop {
            match begun.write() {
                Ok(finished) => break finished,
                Err(error) if error.is_full() && refused < 3 => {
                    refused += 1;
                    compare(&self.db.view(), &self.model)?;
                    // What comes meanwhile goes on top, and is not in the checkpoint.
                    for name in 0..8 {
                        let later = Step::Put(1, name, 20 * refused as usize);
                        self.step(&later, index).map_err(|error| error.to_string())?;
                    }
                    if refused > 1 {
                        disk.relieve();
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        drop(self.db.finish_checkpoint(finished));
        self.acknowledge();
        compare(&frozen.0, &frozen.1)?;
        compare(&self.db.view(), &self.model)?;
        Ok(refused)
    }
}

/// A power loss, or the end of the process.
fn lose(disk: &Arc<SimDisk>, fate: Option<Outcome>) {
    match fate {
        Some(outcome) if plan::strikes(FaultClass::PowerLoss) => disk.power_loss_as(outcome),
        _ => disk.crash(),
    }
}

/// Runs a program on a disk that fails, lies and rots now and then: each step is right or refused.
pub fn bad_disk(seed: u64, steps: usize) -> Result<Report, String> {
    let mut rng = Rng::new(seed);
    let mut report = Report::default();
    let program = program(&mut rng, steps);
    let disk = fresh(seed);
    let mut points = vec![EMPTY];
    let mut incarnation = 1;
    let mut life = Life::open(disk.handle(incarnation), limits(seed), &[&EMPTY])?;
    disk.set_faults(|faults| *faults = drawn(&mut rng));
    for (step, index) in program.iter().zip(1..) {
        if rng.chance(1, 25) {
            let len = disk.written(PATH).map_or(0, |bytes| bytes.len() as u64);
            let (at, mask) = (rng.below(len), 1 << rng.below(8));
            if plan::strikes(FaultClass::Rot) {
                disk.rot(PATH, at, mask);
            }
        }
        let stepped = life.step(step, index);
        points.extend(life.attempted.clone());
        points.push(life.acknowledged.clone());
        let right = stepped.is_ok() && right_or_refused(&life.db.view(), &life.model)?;
        if !right {
            report.refusals += 1;
            incarnation += 1;
            disk.fence(incarnation);
            lose(&disk, Some(Outcome::Mixed));
            let Some(reopened) = reopen(&disk, seed, incarnation, &points)? else {
                return Ok(report);
            };
            life = reopened;
        }
    }
    Ok(report)
}

fn drawn(rng: &mut Rng) -> Faults {
    let mut rare = |one_in| if rng.chance(1, 2) { Ratio::one_in(one_in) } else { Ratio::NEVER };
    Faults {
        read_eio: rare(300),
        write_eio: rare(400),
        sync_eio: rare(60),
        misdirect: rare(100),
        ..Faults::default()
    }
}

/// Reads everything: whether that went to the end. What it gives until then must be right.
fn right_or_refused(view: &View, model: &Model) -> Result<bool, String> {
    let mut expected = model.iter();
    for row in view.range::<Things>(&(0, Vec::new()), None) {
        let Ok((key, row)) = row else {
            return Ok(false);
        };
        if expected.next() != Some((&key, &row)) {
            return Err(format!("another row than expected at {key:?}"));
        }
    }
    match expected.next() {
        None => Ok(true),
        Some((key, _)) => Err(format!("no row at {key:?} and beyond")),
    }
}

/// Opens what a broken disk holds: `None` if that is refused. A disk that lost synced bytes may hold an older
/// checkpoint, but one that was.
fn reopen(
    disk: &Arc<SimDisk>,
    seed: u64,
    incarnation: u64,
    points: &[Point],
) -> Result<Option<Life>, String> {
    let (disk, limits) = (disk.handle(incarnation), limits(seed));
    let Ok((db, found)) = Db::open(disk.clone(), PATH, &limits) else {
        return Ok(None);
    };
    let index = found.and_then(|meta| meta.last_applied).map_or(0, |last| last.index);
    let point = points.iter().find(|point| point.0 == index);
    let (_, model) = point.ok_or(format!("a checkpoint {index} that never was"))?;
    if !right_or_refused(&db.view(), model)? {
        return Ok(None);
    }
    let (model, acknowledged) = (model.clone(), (index, model.clone()));
    Ok(Some(Life { disk, limits, db, model, acknowledged, attempted: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_postpones_checkpoints_and_changes_go_on() {
        let disk = fresh(1);
        let mut life = Life::open(disk.handle(1), limits(1), &[&EMPTY]).unwrap();
        let changes = program(&mut Rng::new(1), 60);
        let changes: Vec<Step> =
            changes.into_iter().filter(|s| matches!(s, Step::Put(..) | Step::Delete(..))).collect();
        life.run(&changes, 1).unwrap();
        life.run(&[Step::Checkpoint], 100).unwrap();
        disk.set_faults(|faults| faults.full = true);
        life.run(&changes, 200).unwrap();
        assert!(life.db.begin_checkpoint(meta(300), false).is_none());
        compare(&life.db.view(), &life.model).unwrap();
        disk.set_faults(|faults| faults.full = false);
        life.run(&[Step::Checkpoint], 400).unwrap();
        assert_eq!(life.acknowledged.0, 400);
        compare(&life.db.view(), &life.model).unwrap();
    }
}
