//! The tables over a real file, against a BTreeMap.

use super::tests::{Names, dentry};
use super::*;
use crate::ids::InodeId;
use crate::limits::Limits;
use crate::pb;
use crate::seam::Disk;
use crate::seam::real::RealDisk;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

type Model = BTreeMap<(InodeId, Bytes), pb::DentryRow>;

/// A directory that goes when the test ends well.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> (Scratch, Arc<RealDisk>) {
        let path = std::env::temp_dir().join(format!("mooseng-{}-{name}", std::process::id()));
        let disk = RealDisk::create(&path).unwrap();
        (Scratch(path), disk)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Numbers that repeat.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn meta(index: u64) -> pb::CheckpointMeta {
    let last = pb::RaftLogId { term: 1, node: 1, index };
    pb::CheckpointMeta { last_applied: Some(last), ..Default::default() }
}

fn key(rng: &mut Lcg, names: u64) -> (InodeId, Bytes) {
    let name = rng.below(names);
    let long = if name.is_multiple_of(7) { "a-long-name-that-does-not-fit-inline-" } else { "n" };
    (InodeId(rng.below(4)), format!("{long}{name}").into())
}

fn compare(view: &View, model: &Model, rng: &mut Lcg) {
    let (from, to) = (key(rng, 60), key(rng, 60));
    let rows: Vec<_> = view.range::<Names>(&from, Some(&to)).map(|row| row.unwrap()).collect();
    let expected = if from < to { model.range(from..to.clone()).collect() } else { Vec::new() };
    assert!(rows.iter().map(|(key, row)| (key, row)).eq(expected));
    let last = view.last_before::<Names>(&to).unwrap();
    let expected = model.range(..to.clone()).next_back();
    assert_eq!(last.as_ref().map(|(key, row)| (key, row)), expected);
    assert_eq!(view.get::<Names>(&to).unwrap().as_ref(), model.get(&to));
    assert_eq!(view.contains::<Names>(&to).unwrap(), model.contains_key(&to));
}

fn compare_all(view: &View, model: &Model) {
    let start = (InodeId(0), Bytes::new());
    let rows = view.range::<Names>(&start, None).map(|row| row.unwrap());
    assert!(rows.eq(model.clone()));
    assert_eq!(view.hash_of_rows().unwrap(), view.hash());
}

/// One life of a random history: changes, views that stay as they were, checkpoints begun, written and
/// finished at different times, snapshots installed.
struct History {
    db: Db,
    model: Model,
    rng: Lcg,
    running: Option<Checkpoint>,
    written: Option<Finished>,
    /// What the disk holds.
    durable: (u64, Model),
    pending: (u64, Model),
    kept: Vec<(View, Model)>,
}

impl History {
    fn step(&mut self, index: u64) {
        let names = 60;
        match self.rng.below(40) {
            0..16 => {
                let (key, row) = (key(&mut self.rng, names), dentry(self.rng.below(1 << 40)));
                self.db.put::<Names>(&key, &row).unwrap();
                self.model.insert(key, row);
            }
            16..28 => {
                let key = key(&mut self.rng, names);
                self.db.delete::<Names>(&key).unwrap();
                self.model.remove(&key);
            }
            28..34 => compare(&self.db.view(), &self.model, &mut self.rng),
            34 => self.kept.push((self.db.view(), self.model.clone())),
            35 => {
                if let Some((view, model)) = self.kept.pop() {
                    compare_all(&view, &model);
                }
            }
            36 | 37 => self.checkpoint(index),
            38 => self.checkpoint(index),
            _ if self.rng.below(6) == 0 => self.install(index),
            _ => {}
        }
    }

    fn checkpoint(&mut self, index: u64) {
        if let Some(finished) = self.written.take() {
            drop(self.db.finish_checkpoint(finished));
        } else if let Some(mut checkpoint) = self.running.take() {
            self.written = Some(checkpoint.write().unwrap());
            self.durable = self.pending.clone();
        } else {
            self.running = self.db.begin_checkpoint(meta(index), false);
            assert!(self.running.is_some());
            assert!(self.db.begin_checkpoint(meta(index), false).is_none());
            self.pending = (index, self.model.clone());
        }
    }

    /// Installs an older view of itself; a checkpoint under way becomes void, whenever it is written.
    fn install(&mut self, index: u64) {
        let (view, model) = self.kept.pop().unwrap_or((self.db.view(), self.model.clone()));
        let meta = pb::CheckpointMeta { state_hash: view.hash(), ..meta(index) };
        drop(self.db.install(view.rows(), meta).unwrap());
        if let Some(finished) = self.written.take() {
            drop(self.db.finish_checkpoint(finished));
        }
        if let Some(mut checkpoint) = self.running.take() {
            drop(self.db.finish_checkpoint(checkpoint.write().unwrap()));
        }
        self.model = model.clone();
        self.durable = (index, model);
    }
}

#[test]
fn random_histories_agree_with_a_map_across_checkpoints_installs_and_restarts() {
    let limits = Limits::tiny();
    for seed in 0..5 {
        let (_scratch, disk) = Scratch::new(&format!("history-{seed}"));
        let mut durable = (0, Model::new());
        for life in 0..6 {
            let (db, found) = Db::open(disk.clone(), "tables.redb", &limits).unwrap();
            let at = found.as_ref().map_or(0, |meta| meta.last_applied.unwrap().index);
            assert_eq!(at, durable.0);
            let mut history = History {
                db,
                model: durable.1.clone(),
                rng: Lcg(seed * 100 + life),
                running: None,
                written: None,
                pending: durable.clone(),
                durable,
                kept: Vec::new(),
            };
            compare_all(&history.db.view(), &history.model);
            (0..1500).for_each(|step| history.step(life * 10_000 + step + 1));
            compare_all(&history.db.view(), &history.model);
            durable = history.durable;
        }
    }
}

#[test]
fn applying_and_reading_go_on_while_a_checkpoint_is_written_on_another_thread() {
    let (_scratch, disk) = Scratch::new("threads");
    let limits = Limits { table_slack_bytes: 1 << 20, ..Limits::tiny() };
    let (mut db, _) = Db::open(disk.clone(), "tables.redb", &limits).unwrap();
    let (mut model, mut rng) = (Model::new(), Lcg(3));
    let change = |db: &mut Db, rng: &mut Lcg, model: &mut Model, value| {
        let key = key(rng, 4000);
        if rng.below(3) == 0 {
            db.delete::<Names>(&key).unwrap();
            model.remove(&key);
        } else {
            db.put::<Names>(&key, &dentry(value)).unwrap();
            model.insert(key, dentry(value));
        }
    };
    for round in 0..12 {
        (0..800).for_each(|_| change(&mut db, &mut rng, &mut model, round));
        let mut begun = db.begin_checkpoint(meta(round), false).unwrap();
        let before = (db.view(), model.clone());
        let writer = std::thread::spawn(move || begun.write().unwrap());
        while !writer.is_finished() {
            (0..20).for_each(|_| change(&mut db, &mut rng, &mut model, round + 100));
            compare(&db.view(), &model, &mut rng);
            compare(&before.0, &before.1, &mut rng);
        }
        drop(db.finish_checkpoint(writer.join().unwrap()));
        compare_all(&db.view(), &model);
        compare_all(&before.0, &before.1);
    }
}

/// A file with rows, and where it is.
fn filled(name: &str, rows: u64) -> (Scratch, Arc<RealDisk>, Model) {
    let (scratch, disk) = Scratch::new(name);
    let (mut db, _) = Db::open(disk.clone(), "tables.redb", &Limits::tiny()).unwrap();
    let mut model = Model::new();
    let mut rng = Lcg(rows);
    for round in 0..3 {
        for _ in 0..rows {
            let (key, row) = (key(&mut rng, 1000), dentry(round));
            db.put::<Names>(&key, &row).unwrap();
            model.insert(key, row);
        }
        let finished = db.begin_checkpoint(meta(round), false).unwrap().write().unwrap();
        drop(db.finish_checkpoint(finished));
    }
    (scratch, disk, model)
}

/// What a whole read of the file gives.
fn read_all(disk: &Arc<RealDisk>) -> Result<(u64, Model), TableError> {
    let (db, meta) = Db::open(disk.clone(), "tables.redb", &Limits::tiny())?;
    let rows: Result<Model, _> = db.range::<Names>(&(InodeId(0), Bytes::new()), None).collect();
    let rows = rows?;
    assert_eq!(db.view().hash_of_rows()?, db.hash());
    Ok((meta.unwrap().last_applied.unwrap().index, rows))
}

#[test]
fn a_damaged_block_gives_the_right_rows_or_a_refusal_never_wrong_ones() {
    let (_scratch, disk, model) = filled("rot", 1500);
    let path = format!("{}/tables.redb", disk.describe());
    let good = std::fs::read(&path).unwrap();
    let (mut refused, mut right) = (0, 0);
    let mut rng = Lcg(1);
    for block in 0..good.len() / 4096 {
        let mut bad = good.clone();
        let at = block * 4096 + rng.below(4096) as usize;
        bad[at] ^= 1 << rng.below(8);
        if rng.below(4) == 0 {
            bad[block * 4096..][..4096].fill(0);
        }
        std::fs::write(&path, &bad).unwrap();
        match read_all(&disk) {
            Ok(rows) => {
                assert_eq!(rows, (2, model.clone()), "block {block}");
                right += 1;
            }
            Err(error) => {
                assert!(error.is_corrupt(), "block {block}: {error}");
                assert!(error.to_string().contains("tables.redb"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 30 && right > 30, "refused {refused}, right {right}");
    for len in [0, 1, 4096, 8192, 12288, 16384, 20480, good.len() / 2, good.len() - 4096] {
        std::fs::write(&path, &good[..len]).unwrap();
        let error = read_all(&disk).expect_err("cut");
        assert!(error.is_corrupt(), "cut to {len}: {error}");
    }
}

#[test]
fn a_file_cut_while_its_process_was_killed_is_refused() {
    let (_scratch, disk, _) = filled("killed", 1500);
    let path = format!("{}/tables.redb", disk.describe());
    let (db, _) = Db::open(disk.clone(), "tables.redb", &Limits::tiny()).unwrap();
    let open = std::fs::read(&path).unwrap();
    drop(db);
    std::fs::write(&path, &open).unwrap();
    assert_eq!(read_all(&disk).unwrap().0, 2);
    for blocks in 0..open.len() / 4096 {
        std::fs::write(&path, &open[..blocks * 4096]).unwrap();
        let error = read_all(&disk).expect_err("cut");
        assert!(error.is_corrupt(), "cut to {blocks} blocks: {error}");
    }
}

#[test]
fn a_block_of_another_place_is_refused() {
    let (_scratch, disk, model) = filled("moved", 1500);
    let path = format!("{}/tables.redb", disk.describe());
    let good = std::fs::read(&path).unwrap();
    let blocks = good.len() / 4096;
    let mut refused = 0;
    for block in (3..blocks - 1).step_by(3) {
        let mut bad = good.clone();
        let (to, from) = (block * 4096, (block + 1) * 4096);
        bad.copy_within(from..from + 4096, to);
        std::fs::write(&path, &bad).unwrap();
        match read_all(&disk) {
            Ok(rows) => assert_eq!(rows, (2, model.clone()), "block {block}"),
            Err(error) => refused += u32::from(error.is_corrupt()),
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn the_file_does_not_grow_without_bound() {
    let limits = Limits { table_slack_bytes: 1 << 20, ..Limits::tiny() };
    let (_scratch, disk) = Scratch::new("growth");
    let (mut db, _) = Db::open(disk.clone(), "tables.redb", &limits).unwrap();
    let mut rng = Lcg(5);
    let mut most = 0;
    for round in 0..60 {
        for _ in 0..400 {
            let key = (InodeId(rng.below(4000)), Bytes::from_static(b"a-name-of-usual-length"));
            db.put::<Names>(&key, &dentry(round)).unwrap();
        }
        let finished = db.begin_checkpoint(meta(round), false).unwrap().write().unwrap();
        drop(db.finish_checkpoint(finished));
        most = most.max(db.file_bytes());
    }
    let rows = db.range::<Names>(&(InodeId(0), Bytes::new()), None).count() as u64;
    assert!(rows > 3900);
    let bound = 4 * rows * 60 + (1 << 20) + (1 << 20);
    assert!(most < bound, "{most} bytes for {rows} rows, bound {bound}");
    assert!(crate::marks::hits().contains_key("table file written anew"));
}

#[test]
fn a_snapshot_with_other_rows_than_its_hash_says_is_refused() {
    let (_scratch, disk, model) = filled("bad-snapshot", 100);
    let (mut db, _) = Db::open(disk.clone(), "tables.redb", &Limits::tiny()).unwrap();
    let view = db.view();
    let meta = pb::CheckpointMeta { state_hash: view.hash(), ..meta(9) };
    let error = db.install(view.rows().skip(1), meta.clone()).err().unwrap();
    assert!(matches!(error, TableError::Snapshot(_)), "{error}");
    let mut unsorted: Vec<_> = view.rows().collect::<Result<_, _>>().unwrap();
    unsorted.swap(3, 4);
    let error = db.install(unsorted.into_iter().map(Ok), meta).err().unwrap();
    assert!(matches!(error, TableError::Snapshot(_)), "{error}");
    compare_all(&db.view(), &model);
    drop((db, view));
    assert_eq!(read_all(&disk).unwrap(), (2, model));
    assert!(!disk.exists("tables.redb.install").unwrap());
}

/// Both had one file, which the older one cut when it was let go.
#[test]
fn a_snapshot_that_came_to_nothing_takes_nothing_from_the_next_one() {
    let (_scratch, disk, model) = filled("two-installs", 4000);
    let (mut db, _) = Db::open(disk.clone(), "tables.redb", &Limits::tiny()).unwrap();
    let view = db.view();
    let rows: Vec<_> = view.rows().collect::<Result<_, _>>().unwrap();
    let meta = pb::CheckpointMeta { state_hash: view.hash(), ..meta(9) };
    for kept in [0, rows.len() / 3, rows.len()] {
        let push = |install: &mut Install, rows: &[(Vec<u8>, Vec<u8>)]| {
            rows.iter().for_each(|(key, row)| install.push(key, row).unwrap());
        };
        let rows: Vec<(Vec<u8>, Vec<u8>)> =
            rows.iter().map(|(key, row)| (key.to_vec(), row.to_vec())).collect();
        let mut older = db.begin_install().unwrap();
        push(&mut older, &rows);
        let mut newer = db.begin_install().unwrap();
        push(&mut newer, &rows[..kept]);
        drop(older);
        push(&mut newer, &rows[kept..]);
        let installed = newer.finish(meta.clone()).unwrap();
        drop(db.finish_install(installed));
        compare_all(&db.view(), &model);
    }
    drop((db, view));
    assert_eq!(read_all(&disk).unwrap(), (9, model));
}

#[test]
fn a_discarded_file_is_an_empty_start() {
    let (_scratch, disk, _) = filled("discard", 10);
    Db::discard(&*disk, "tables.redb").unwrap();
    Db::discard(&*disk, "tables.redb").unwrap();
    let (db, found) = Db::open(disk, "tables.redb", &Limits::tiny()).unwrap();
    assert_eq!((found, db.hash(), db.file_bytes()), (None, 0, 0));
}
