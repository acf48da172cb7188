use super::testdisk::{Keep, TestDisk};
use super::*;
use crate::seam::OpenMode;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Planted mistakes are switched per process: tests that plant one hold this, and so do their controls.
static PLANTED: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    PLANTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limits() -> Limits {
    Limits { wal_segment_bytes: 4 << 10, ..Limits::tiny() }
}

fn open(disk: &TestDisk) -> Result<Wal, WalError> {
    Wal::open(Arc::new(disk.clone()), &limits())
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term: Term(term), node: NodeId(1), index: LogIndex(index) }
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let payload = (0..len).map(|at| (index as usize * 31 + at * 7 + term as usize) as u8).collect();
    Entry { id: id(term, index), payload }
}

fn vote(term: u64, node: u64) -> Vote {
    Vote { term: Term(term), node: NodeId(node), committed: false }
}

/// What a log must say: the obvious model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
enum Op {
    Append(u64, usize, usize),
    Vote(u64),
    Truncate(usize),
    Purge(usize),
    PurgeBeyond(u64, u64),
    Committed,
    Flush,
    Sync,
    Spare,
}

impl Model {
    fn last(&self) -> u64 {
        let last = self.entries.last().map(|entry| entry.id).or(self.purged);
        last.map_or(0, |id| id.index.0)
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(term, count, len) => {
                for _ in 0..*count {
                    self.entries.push(entry(*term, self.last() + 1, *len));
                }
            }
            Op::Vote(term) => self.vote = Some(vote(*term, 2)),
            Op::Truncate(back) => {
                self.entries.truncate(self.entries.len().saturating_sub(*back));
            }
            Op::Purge(keep) => {
                let gone = self.entries.len().saturating_sub(*keep);
                if let Some(entry) = self.entries.drain(..gone).next_back() {
                    self.purged = Some(entry.id);
                }
            }
            Op::PurgeBeyond(term, by) => {
                self.purged = Some(id(*term, self.last() + by));
                self.entries.clear();
            }
            Op::Committed | Op::Flush | Op::Sync | Op::Spare => {}
        }
    }

    fn of(wal: &Wal) -> Result<Model, WalError> {
        let entries = wal.read(LogIndex(0), LogIndex(u64::MAX), usize::MAX)?;
        Ok(Model { vote: wal.vote(), purged: wal.purged(), entries })
    }
}

/// Runs `op`; `before` is the model before it.
fn run(wal: &mut Wal, before: &Model, op: &Op) -> Result<(), WalError> {
    let mut after = before.clone();
    after.apply(op);
    match op {
        Op::Append(..) => wal.append(&after.entries[before.entries.len()..]),
        Op::Vote(term) => wal.save_vote(vote(*term, 2)),
        Op::Truncate(_) => wal.truncate(LogIndex(after.last() + 1)),
        Op::Purge(_) | Op::PurgeBeyond(..) if after.purged == before.purged => Ok(()),
        Op::Purge(_) | Op::PurgeBeyond(..) => wal.purge(after.purged.expect("something purged")),
        Op::Committed if before.last() == 0 => Ok(()),
        Op::Committed => wal.save_committed(wal.last().expect("there is a last entry")),
        Op::Flush => wal.flush(),
        Op::Sync => wal.sync(),
        Op::Spare => {
            if let Some(job) = wal.spare_wanted() {
                wal.add_spare(job.run());
            }
            Ok(())
        }
    }
}

fn script() -> Vec<Op> {
    use Op::{Append, Committed, Flush, Purge, PurgeBeyond, Spare, Sync, Truncate, Vote};
    vec![
        Vote(1),
        Append(1, 2, 100),
        Sync,
        Committed,
        Append(1, 1, 700),
        Flush,
        Append(1, 2, 30),
        Sync,
        Spare,
        Truncate(2),
        Append(2, 3, 400),
        Vote(3),
        Append(3, 4, 300),
        Sync,
        Committed,
        Append(3, 3, 900),
        Sync,
        Purge(4),
        Append(3, 1, 10),
        Sync,
        Append(3, 6, 600),
        Flush,
        Purge(2),
        Truncate(1),
        Append(4, 1, 5000),
        Sync,
        PurgeBeyond(5, 7),
        Append(5, 2, 50),
        Sync,
        Vote(9),
        Append(9, 9, 500),
        Purge(1),
        Sync,
        Append(9, 3, 500),
        Sync,
    ]
}

/// The models between the last one known durable and the newest, and the highest vote.
struct Ran {
    possible: Vec<Model>,
    died: bool,
}

/// Runs the script against a disk until it dies.
fn run_script(wal: &mut Wal, disk: &TestDisk, start: Model, script: &[Op]) -> Ran {
    let mut model = start.clone();
    let mut possible = vec![start];
    for op in script {
        let result = run(wal, &model, op);
        // A batch may survive in part: each of its entries is a step.
        if let Op::Append(term, count, len) = op {
            for _ in 1..*count {
                model.apply(&Op::Append(*term, 1, *len));
                possible.push(model.clone());
            }
            model.apply(&Op::Append(*term, 1, *len));
        } else {
            model.apply(op);
        }
        possible.push(model.clone());
        match result {
            Err(error) => {
                assert!(disk.died(), "{op:?}: {error}");
                assert!(matches!(wal.sync(), Err(WalError::Fenced(_)) | Ok(())), "fenced");
                return Ran { possible, died: true };
            }
            Ok(()) if matches!(op, Op::Sync | Op::Vote(_)) => possible = vec![model.clone()],
            Ok(()) => {}
        }
    }
    Ran { possible, died: false }
}

/// Whether `found` is one of the states that may survive. A vote may be ahead of the stream: it has a second
/// place.
fn survives(found: &Model, possible: &[Model]) -> bool {
    let newest_vote = possible.iter().map(|model| model.vote).max().flatten();
    possible.iter().any(|model| {
        model.purged == found.purged
            && model.entries == found.entries
            && model.vote <= found.vote
            && found.vote <= newest_vote
    })
}

fn keeps() -> Vec<Keep> {
    let torn = (0..12).map(|seed| Keep::Torn(seed * 7919 + 3));
    [Keep::Nothing, Keep::Everything].into_iter().chain(torn).collect()
}

/// Crash at every I/O, with everything that can be left of it; the survivor goes on, crashes again, and its
/// survivor still says what it must. Returns what went wrong first.
fn crash_everywhere() -> Result<u64, String> {
    let mut worlds = 0;
    for ios in 0.. {
        let disk = TestDisk::default();
        disk.die_after(ios);
        let ran = match open(&disk) {
            Ok(mut wal) => run_script(&mut wal, &disk, Model::default(), &script()),
            Err(_) => Ran { possible: vec![Model::default()], died: true },
        };
        for keep in keeps() {
            worlds += 1;
            let first = disk.reborn(keep);
            let at = format!("io {ios}, {keep:?}");
            let mut wal = open(&first).map_err(|e| format!("{at}: {e}"))?;
            let found = Model::of(&wal).map_err(|e| format!("{at}: {e}"))?;
            if !survives(&found, &ran.possible) {
                return Err(format!("{at}: {found:?} is none of {:?}", ran.possible));
            }
            first.die_after(3 + ios % 5);
            let again = [Op::Append(20, 2, 90), Op::Sync, Op::Append(20, 1, 800), Op::Sync];
            let ran = run_script(&mut wal, &first, found, &again);
            let second = first.reborn(keep);
            let wal = open(&second).map_err(|e| format!("{at}, again: {e}"))?;
            let found = Model::of(&wal).map_err(|e| format!("{at}, again: {e}"))?;
            if !survives(&found, &ran.possible) {
                return Err(format!("{at}, again: {found:?}"));
            }
        }
        if !ran.died {
            return Ok(worlds);
        }
    }
    unreachable!("the script ends")
}

#[test]
fn survives_a_crash_at_every_io() {
    let _alone = alone();
    let worlds = crash_everywhere().expect("no crash loses or invents anything");
    assert!(worlds > 800, "only {worlds} worlds");
}

#[test]
fn planted_mistakes_are_found_by_the_crash_test() {
    let _alone = alone();
    for bug in ["M01", "M02", "M09", "M11"] {
        crate::marks::plant(Some(bug));
        let found = crash_everywhere();
        crate::marks::plant(None);
        assert!(found.is_err(), "{bug} was not found");
    }
}

fn filled(disk: &TestDisk) -> Model {
    let mut wal = open(disk).expect("opens");
    let mut model = Model::default();
    for op in script() {
        run(&mut wal, &model, &op).expect("works");
        model.apply(&op);
    }
    model
}

#[test]
fn reopens_with_the_same_content_and_recycles_segments() {
    let _alone = alone();
    let disk = TestDisk::default();
    let model = filled(&disk);
    for _ in 0..20 {
        let wal = open(&disk).expect("opens");
        assert_eq!(Model::of(&wal).expect("readable"), model);
        let seen = inspect(&disk).expect("readable");
        assert_eq!(seen.vote, model.vote);
        assert_eq!(seen.last(), model.entries.last().map(|entry| entry.id));
    }
    let files = disk.list("wal").expect("lists").len();
    assert!(files <= 8, "{files} files");
}

#[test]
fn rot_below_the_watermark_is_refused_and_named() {
    let _alone = alone();
    let disk = TestDisk::default();
    filled(&disk);
    drop(open(&disk).expect("opens"));
    let found = inspect(&disk).expect("readable");
    for located in &found.entries {
        let path = recover::slot_path(found.live[&located.generation].slot);
        disk.flip(&path, located.offset as usize);
        let error = open(&disk).err().expect("refused");
        assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(&path), "{error}");
        crate::marks::plant(Some("M10"));
        let taken = inspect(&disk);
        crate::marks::plant(None);
        assert!(taken.is_ok(), "M10 takes it for a torn tail");
        disk.flip(&path, located.offset as usize);
    }
    open(&disk).expect("opens again");
}

#[test]
fn after_a_clean_end_every_entry_is_vouched_for() {
    let _alone = alone();
    let disk = TestDisk::default();
    let mut wal = open(&disk).expect("opens");
    wal.append(&[entry(1, 1, 64), entry(1, 2, 64)]).expect("appended");
    wal.close().expect("closed");
    drop(wal);
    let found = inspect(&disk).expect("readable");
    let path = recover::slot_path(0);
    disk.flip(&path, found.entries[1].offset as usize);
    assert!(matches!(inspect(&disk), Err(WalError::Corrupt { .. })), "the last entry was durable");
    disk.flip(&path, found.entries[1].offset as usize);
    disk.flip(&path, found.end as usize - 10);
    let cut = inspect(&disk).expect("the end is a torn tail");
    assert_eq!(cut.last(), Some(id(1, 2)));
}

/// What lies behind the cut is gone with all that vouched for it: only the length tells.
#[test]
fn a_segment_that_was_cut_is_refused_wherever() {
    let _alone = alone();
    let disk = TestDisk::default();
    filled(&disk);
    let found = inspect(&disk).expect("readable");
    for live in found.live.values() {
        let path = recover::slot_path(live.slot);
        let len = disk.open(&path, OpenMode::Read).and_then(|file| file.len()).expect("a file");
        for cut in (0..len).step_by(256) {
            let copy = disk.reborn(Keep::Everything);
            copy.cut(&path, cut as usize);
            let error = open(&copy).err().expect("refused");
            assert!(matches!(error, WalError::Corrupt { .. }), "{cut}: {error}");
            assert!(error.to_string().contains(".log"), "{error}");
        }
    }
}

#[test]
fn a_rotten_head_is_refused() {
    let _alone = alone();
    let disk = TestDisk::default();
    filled(&disk);
    drop(open(&disk).expect("opens"));
    drop(open(&disk).expect("opens"));
    let found = inspect(&disk).expect("readable");
    for live in found.live.values() {
        let path = recover::slot_path(live.slot);
        disk.flip(&path, 60);
        assert!(matches!(open(&disk), Err(WalError::Corrupt { .. })), "{path}");
        disk.flip(&path, 60);
    }
}

#[test]
fn a_missing_segment_is_noticed_also_the_last() {
    let _alone = alone();
    let disk = TestDisk::default();
    filled(&disk);
    let found = inspect(&disk).expect("readable");
    assert!(found.live.len() > 1, "several segments");
    for live in found.live.values() {
        let copy = disk.reborn(Keep::Everything);
        copy.remove(&recover::slot_path(live.slot)).expect("removed");
        assert!(matches!(open(&copy), Err(WalError::Corrupt { .. })), "slot {}", live.slot);
    }
}

#[test]
fn one_rotten_vote_is_not_lost() {
    let _alone = alone();
    let disk = TestDisk::default();
    let mut wal = open(&disk).expect("opens");
    wal.save_vote(vote(7, 3)).expect("saved");
    drop(wal);
    // The last record of the stream: nothing vouches for it, so it goes as a torn tail; the file still knows.
    let found = inspect(&disk).expect("readable");
    let slot = found.live.values().next_back().expect("a segment").slot;
    let copy = disk.reborn(Keep::Everything);
    copy.flip(&recover::slot_path(slot), found.end as usize - 10);
    assert_eq!(open(&copy).expect("opens").vote(), Some(vote(7, 3)));
    for at in [0, 4096] {
        let copy = disk.reborn(Keep::Everything);
        copy.flip("wal/vote", at + 50);
        assert_eq!(open(&copy).expect("opens").vote(), Some(vote(7, 3)));
    }
}

#[test]
fn a_full_disk_is_seen_before_it_hurts() {
    let _alone = alone();
    let disk = TestDisk::default();
    let mut wal = open(&disk).expect("opens");
    let job = wal.spare_wanted().expect("wants a spare");
    assert!(wal.spare_wanted().is_none(), "one at a time");
    wal.add_spare(job.run());
    disk.set_full(true);
    let mut index = 0;
    while !wal.space_is_low() {
        index += 1;
        wal.append(&[entry(1, index, 300)]).expect("there is a spare");
        wal.sync().expect("synced");
        if let Some(job) = wal.spare_wanted() {
            wal.add_spare(job.run());
        }
    }
    wal.purge(id(1, index)).expect("purging needs no room");
    wal.sync().expect("synced");
    assert!(!wal.space_is_low(), "recycled segments are room");
    wal.append(&[entry(1, index + 1, 3000)]).expect("goes on in a recycled segment");
}

#[test]
fn a_spare_that_fails_is_not_a_full_disk() {
    let _alone = alone();
    let disk = TestDisk::default();
    let mut wal = open(&disk).expect("opens");
    let job = wal.spare_wanted().expect("wants a spare");
    disk.die_after(0);
    wal.add_spare(job.run());
    assert!(!wal.space_is_low());
    assert!(wal.spare_wanted().is_none(), "not again at once");
    assert!((0..100).any(|_| wal.spare_wanted().is_some()), "but later");
}

#[test]
fn unreadable_entries_are_errors() {
    let _alone = alone();
    let disk = TestDisk::default();
    let mut wal = open(&disk).expect("opens");
    wal.append(&[entry(1, 1, 64), entry(1, 2, 64)]).expect("appended");
    assert_eq!(wal.read(LogIndex(1), LogIndex(3), 1).expect("reads").len(), 1);
    assert_eq!(wal.read(LogIndex(1), LogIndex(9), 4096).expect("reads").len(), 2);
    wal.sync().expect("synced");
    let found = inspect(&disk).expect("readable");
    disk.flip(&recover::slot_path(0), found.entries[1].offset as usize);
    assert!(wal.read(LogIndex(1), LogIndex(2), 4096).is_ok());
    assert!(matches!(wal.read(LogIndex(2), LogIndex(3), 4096), Err(WalError::Corrupt { .. })));
}
