//! The chunk store under random programs.
//!
//! | asserts | source |
//! |---|---|
//! | what a sync or a seal answers as durable is in the durable image at that moment (O13 of the store) | `inspect` of the image |
//! | an append that was refused leaves nothing behind; one that was answered is read back with CRCs that match | a length beside each replica |
//! | a seal ends a replica where it was asked to | the same |
//! | a block is refused at any place but its own | another replica's id |
//! | what was punched, and nothing else, is a hole; the rest of the replica reads as before | blocks beside each replica |
//! | a punch that a power loss cuts short leaves each block as it was, or a hole | the same |
//! | a replica that was made from others' bytes is whole, or refused | injected misdirected writes |
//! | what counts as durable after a kill is in the durable image, a rebuild that the kill cut short too | the same |
//! | after kills and power losses lengths are at least what was durable, deleted replicas stay away | the same |
//! | what was deleted while it was built stays away | the same |
//! | an append to a deleted replica does not create it again, nor does a rebuild | the same |
//! | a disk that is full while the store starts stays in use | injected ENOSPC |
//! | without a descriptor to open with everything works or is told to come later, and nothing counts as bad for it | injected EMFILE |
//! | after a failed sync nothing is acknowledged any more | injected EIO |
//! | what could not be read at a start is there when it can be read | injected EIO |
//!
//! It does not check rot, other misdirected writes (their CRCs are the readers' business), nor several threads.

use crate::disk::SimDisk;
use crate::plan::{self, FaultClass};
use crate::rng::{Ratio, Rng};
use bytes::Bytes;
use mooseng::checksum::{block_crcs, hole_crc};
use mooseng::ids::{ChunkId, Generation};
use mooseng::limits::{BLOCK_BYTES, Limits};
use mooseng::pb::Hole;
use mooseng::store::{Append, ReplicaId, Store, StoreError, assemble, inspect};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a run did, to see that it was not empty.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Report {
    pub appends: u64,
    pub syncs: u64,
    pub seals: u64,
    pub punches: u64,
    pub deletes: u64,
    pub kills: u64,
    pub power_losses: u64,
    pub failed_syncs: u64,
    pub unread: u64,
    pub no_space: u64,
    pub told_later: u64,
    pub blocks: u64,
    pub punches_cut_short: u64,
    pub builds: u64,
    pub builds_refused: u64,
    pub builds_cut_short: u64,
    pub builds_overtaken: u64,
}

/// What is known about a replica.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    length: u64,
    durable: u64,
    sealed: bool,
}

/// What is tried twice.
enum Job {
    Append(Append),
    Sync,
    Seal(u64),
    Read(u64),
    Delete,
    Build,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Job::Append(_) => "append",
            Job::Sync => "sync",
            Job::Seal(_) => "seal",
            Job::Read(_) => "read",
            Job::Delete => "delete",
            Job::Build => "build",
        })
    }
}

struct Life {
    disk: Arc<SimDisk>,
    incarnation: u64,
    store: Arc<Store>,
    known: BTreeMap<ReplicaId, Known>,
    deleted: BTreeSet<ReplicaId>,
    /// Blocks that were punched.
    holes: BTreeSet<(ReplicaId, u64)>,
    /// Blocks that a power loss met while they were punched.
    half_punched: BTreeSet<(ReplicaId, u64)>,
    rng: Rng,
    /// Which starts have failing reads.
    starts: Rng,
    /// Which starts have no room.
    brims: Rng,
    /// Where kills cut rebuilds short, and what was rebuilt last so.
    cuts: Rng,
    cut: Option<ReplicaId>,
    /// When a delete overtakes a build.
    overtakes: Rng,
    report: Report,
    next_chunk: u64,
}

/// Runs one program.
pub fn run_program(seed: u64, steps: usize) -> Result<Report, String> {
    let disk = SimDisk::new("store", 64 << 20, seed);
    let store = open(&disk, 1)?;
    let mut life = Life {
        disk,
        incarnation: 1,
        store,
        known: BTreeMap::new(),
        deleted: BTreeSet::new(),
        holes: BTreeSet::new(),
        half_punched: BTreeSet::new(),
        rng: Rng::new(seed).fork("program"),
        starts: Rng::new(seed).fork("starts"),
        brims: Rng::new(seed).fork("brims"),
        cuts: Rng::new(seed).fork("cuts"),
        cut: None,
        overtakes: Rng::new(seed).fork("overtakes"),
        report: Report::default(),
        next_chunk: 1,
    };
    for step in 0..steps {
        life.step().map_err(|error| format!("seed {seed}, step {step}: {error}"))?;
    }
    Ok(life.report)
}

fn open(disk: &Arc<SimDisk>, incarnation: u64) -> Result<Arc<Store>, String> {
    disk.fence(incarnation);
    let claimed = assemble(vec![disk.handle(incarnation)], None, &[]);
    let claimed = claimed.map_err(|error| error.to_string())?.disks.swap_remove(0);
    let store = Store::open(claimed, Arc::new(Limits::tiny()));
    Ok(Arc::new(store.map_err(|error| error.to_string())?))
}

/// The replicas that a loss of power now is sure to leave.
fn inspect_durable(disk: &Arc<SimDisk>) -> Result<BTreeMap<ReplicaId, u64>, String> {
    let image = inspect(&*disk.durable()).map_err(|error| error.to_string())?;
    Ok(image.into_iter().collect())
}

fn id_of(chunk: u64) -> ReplicaId {
    // One in three is a shard of a k+m chunk.
    let (shard, data_shards) = if chunk.is_multiple_of(3) { (2, 4) } else { (0, 1) };
    ReplicaId { chunk: ChunkId(chunk), generation: Generation(7), shard, data_shards }
}

/// The bytes that belong at a place of a replica.
fn fill(id: ReplicaId, offset: u64, len: usize) -> Bytes {
    let byte = |at: u64| (at ^ (at >> 8) ^ (at >> 12) ^ id.chunk.0.wrapping_mul(31)) as u8;
    (offset..offset + len as u64).map(byte).collect()
}

/// An append of so many bytes that belong there.
fn append_of(id: ReplicaId, at: u64, len: usize) -> Result<Append, String> {
    let data = fill(id, at, len);
    let crcs = block_crcs(id.chunk, id.crc_shard(), (at / BLOCK) as u32, &data);
    Append::checked(id, at, data, crcs, true).map_err(|error| format!("append {id}: {error}"))
}

impl Life {
    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(100) {
            0..40 => self.append(),
            40..54 => self.sync(),
            54..58 if plan::strikes(FaultClass::OutOfFiles) => self.cramped(),
            54..58 => Ok(()),
            58..62 => self.seal(),
            62..66 => self.punch(),
            66..68 => match self.overtakes.chance(1, 3) {
                true => self.overtaken_build(),
                false => self.delete(),
            },
            68..71 => self.rebuild(),
            71..78 => self.read(),
            78..84 => self.misplace(),
            84..88 => self.full_disk(),
            88..92 if plan::strikes(FaultClass::Kill) => match self.cuts.chance(1, 2) {
                true => self.cut_rebuild(),
                false => self.restart(false),
            },
            92..97 if plan::strikes(FaultClass::PowerLoss) => self.restart(true),
            88..97 => Ok(()),
            _ => self.failing_sync(),
        }
    }

    /// A replica that takes appends; a new one if there is none, or sometimes.
    fn growing(&mut self) -> ReplicaId {
        let open = |known: &Known| !known.sealed && known.length < 24 * BLOCK;
        let ids: Vec<ReplicaId> =
            self.known.iter().filter(|(_, known)| open(known)).map(|(id, _)| *id).collect();
        if ids.is_empty() || self.rng.chance(1, 5) {
            self.next_chunk += 1;
            return id_of(self.next_chunk - 1);
        }
        *self.rng.pick(&ids)
    }

    fn any(&mut self) -> Option<(ReplicaId, Known)> {
        let live = self.known.iter().filter(|(_, known)| known.length > 0);
        let live: Vec<(ReplicaId, Known)> = live.map(|(id, known)| (*id, *known)).collect();
        (!live.is_empty()).then(|| *self.rng.pick(&live))
    }

    fn append(&mut self) -> Result<(), String> {
        let id = self.growing();
        let at = self.known.get(&id).map_or(0, |known| known.length);
        let len = self.rng.range(1, 6) as usize * BLOCK_BYTES;
        match self.store.append(&append_of(id, at, len)?) {
            Ok(length) if length == at + len as u64 => {
                self.known.entry(id).or_default().length = length;
                self.report.appends += 1;
                Ok(())
            }
            Ok(length) => Err(format!("append {id} of {len} at {at}: answered {length}")),
            Err(StoreError::NoSpace(_)) => {
                self.report.no_space += 1;
                self.refused(id, at)
            }
            Err(error) => Err(format!("append {id}: {error}")),
        }
    }

    /// Nothing of a refused append may be seen.
    fn refused(&self, id: ReplicaId, at: u64) -> Result<(), String> {
        let length = self.store.status(id).map_or(0, |status| status.length);
        if length != at {
            return Err(format!("{id} has {length} bytes after an append at {at} was refused"));
        }
        match self.store.verify(id) {
            Ok(bad) if !bad.is_empty() => Err(format!("{id}: bad blocks {bad:?}")),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), String> {
        let Some((id, known)) = self.any() else { return Ok(()) };
        let durable = self.store.sync(&[id]).swap_remove(0);
        let durable = durable.map_err(|error| format!("sync {id}: {error}"))?;
        if durable < known.length {
            return Err(format!("sync {id}: {durable} of {} bytes", known.length));
        }
        self.report.syncs += 1;
        self.promised(id, durable)
    }

    /// What was answered is durable now.
    fn promised(&mut self, id: ReplicaId, durable: u64) -> Result<(), String> {
        let found = inspect_durable(&self.disk)?.get(&id).copied().unwrap_or(0);
        if found < durable {
            return Err(format!("{id}: {durable} bytes promised, {found} durable"));
        }
        self.known.entry(id).or_default().durable = durable;
        Ok(())
    }

    fn seal(&mut self) -> Result<(), String> {
        let Some((id, known)) = self.any() else { return Ok(()) };
        if known.sealed {
            return Ok(());
        }
        let length = self.rng.range(1, known.length / BLOCK + 1) * BLOCK;
        let sealed = self.store.seal(id, length).map_err(|error| format!("seal {id}: {error}"))?;
        let status = self.store.status(id).ok_or_else(|| format!("{id} is gone when sealed"))?;
        if (sealed, status.length, status.sealed) != (length, length, true) {
            return Err(format!("{id} sealed at {length}: answered {sealed}, is {status:?}"));
        }
        self.report.seals += 1;
        self.known.insert(id, Known { length, durable: length, sealed: true });
        self.promised(id, length)
    }

    fn punch(&mut self) -> Result<(), String> {
        let sealed = self.known.iter().filter(|(_, known)| known.sealed && known.length > BLOCK);
        let sealed: Vec<(ReplicaId, u64)> =
            sealed.map(|(id, known)| (*id, known.length / BLOCK)).collect();
        if sealed.is_empty() {
            return Ok(());
        }
        let (id, blocks) = *self.rng.pick(&sealed);
        let from = self.rng.range(0, blocks);
        let end = self.rng.range(from, blocks) + 1;
        let cut_short = self.rng.chance(1, 2) && plan::strikes(FaultClass::PowerLoss);
        if cut_short {
            self.disk.die_after(self.rng.below(5));
        }
        let punched = self.store.punch(id, &[Hole { from: from * BLOCK, end: end * BLOCK }]);
        if cut_short {
            self.report.punches_cut_short += u64::from(punched.is_err());
            self.disk.revive();
            self.half_punched.extend((from..end).map(|block| (id, block)));
            return self.restart(true);
        }
        punched.map_err(|error| format!("punch {id}: {error}"))?;
        self.report.punches += 1;
        self.holes.extend((from..end).map(|block| (id, block)));
        self.check_bytes(id, blocks * BLOCK)
    }

    /// A replica made from others' bytes, on a disk that may write them elsewhere: it is whole, or refused.
    fn rebuild(&mut self) -> Result<(), String> {
        let id = id_of(self.next_chunk);
        self.next_chunk += 1;
        let blocks = self.rng.range(2, 9) as usize;
        let (bytes, lost) = (fill(id, 0, blocks * BLOCK_BYTES), self.disk.counters().misdirected);
        let (first, rest) = bytes.split_at(self.rng.range(1, blocks as u64) as usize * BLOCK_BYTES);
        if self.rng.chance(1, 2) {
            self.disk.set_faults(|faults| faults.misdirect = Ratio::one_in(4));
        }
        let built = self.store.build(id, bytes.len() as u64).and_then(|mut build| {
            build.write(first, &[])?;
            build.write(rest, &[])?;
            build.finish()
        });
        self.disk.set_faults(|faults| faults.misdirect = Ratio::NEVER);
        let lost = self.disk.counters().misdirected - lost;
        match (built, self.store.status(id)) {
            (Ok(length), Some(status)) if length == bytes.len() as u64 && status.sealed => {
                self.report.builds += 1;
                self.known.insert(id, Known { length, durable: length, sealed: true });
                self.promised(id, length)?;
                self.check_bytes(id, length)
            }
            (Err(_), None) if lost > 0 => {
                self.report.builds_refused += 1;
                Ok(())
            }
            (built, status) => {
                Err(format!("rebuild {id}: {built:?}, {lost} writes went astray: {status:?}"))
            }
        }
    }

    fn delete(&mut self) -> Result<(), String> {
        let Some((id, _)) = self.any() else { return Ok(()) };
        self.store.disown(id);
        self.store.delete(&[id]).map_err(|error| format!("delete {id}: {error}"))?;
        self.report.deletes += 1;
        self.known.remove(&id);
        self.deleted.insert(id);
        match self.store.append(&append_of(id, 0, BLOCK_BYTES)?) {
            Err(StoreError::NoSuchReplica(_)) => {}
            late => return Err(format!("append to {id}, which is deleted: {late:?}")),
        }
        match self.store.build(id, BLOCK).map(drop) {
            Err(StoreError::NoSuchReplica(_)) => {}
            late => return Err(format!("rebuild of {id}, which is deleted: {late:?}")),
        }
        match self.store.status(id) {
            Some(status) => Err(format!("{id} is deleted and there: {status:?}")),
            None => Ok(()),
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let Some((id, known)) = self.any() else { return Ok(()) };
        self.check_bytes(id, known.length)
    }

    fn check_bytes(&mut self, id: ReplicaId, length: u64) -> Result<(), String> {
        let blocks =
            self.store.read(id, 0, length).map_err(|error| format!("read {id}: {error}"))?;
        self.report.blocks += blocks.data.len() as u64 / BLOCK;
        let (wanted, shard) = (fill(id, 0, length as usize), id.crc_shard());
        let mut crcs = block_crcs(id.chunk, shard, 0, &wanted);
        for (index, data) in blocks.data.chunks(BLOCK_BYTES).enumerate() {
            let (at, block) = (index * BLOCK_BYTES, (id, index as u64));
            let hole = hole_crc(id.chunk, shard, index as u32);
            if self.half_punched.contains(&block) && blocks.crcs[index] == hole {
                self.half_punched.remove(&block);
                self.holes.insert(block);
            }
            if self.holes.contains(&block) {
                crcs[index] = hole;
            } else if *data != wanted[at..at + data.len()] {
                return Err(format!("{id}: other bytes than were appended in block {index}"));
            }
        }
        if blocks.crcs != crcs {
            return Err(format!("{id}: CRCs do not match"));
        }
        Ok(())
    }

    /// A block with its CRC, brought to another place.
    fn misplace(&mut self) -> Result<(), String> {
        let Some((id, _)) = self.any() else { return Ok(()) };
        if self.holes.contains(&(id, 0)) {
            return Ok(());
        }
        let blocks = self.store.read(id, 0, 1).map_err(|error| format!("read {id}: {error}"))?;
        let other = ReplicaId { chunk: ChunkId(id.chunk.0 + 3000), ..id };
        let places = [(id, BLOCK), (other, 0), (other, 2 * BLOCK)];
        let (to, offset) = *self.rng.pick(&places);
        match Append::checked(to, offset, blocks.data, blocks.crcs, true) {
            Ok(_) => Err(format!("the first block of {id} is taken for one of {to} at {offset}")),
            Err(_) => Ok(()),
        }
    }

    /// Another program fills the disk just now.
    fn full_disk(&mut self) -> Result<(), String> {
        let full = plan::strikes(FaultClass::FullDisk);
        self.disk.set_faults(|faults| faults.next_enospc = u32::from(full));
        let done = self.append();
        self.disk.set_faults(|faults| faults.next_enospc = 0);
        done
    }

    /// The process has no descriptor left for the next opens: what needs one is told to come later, and then works.
    fn cramped(&mut self) -> Result<(), String> {
        let (id, job) = self.cramped_job()?;
        self.disk.set_faults(|faults| faults.next_emfile = 1);
        let first = self.try_job(id, &job);
        self.disk.set_faults(|faults| faults.next_emfile = 0);
        match first {
            Err(StoreError::Busy(_)) => self.report.told_later += 1,
            Ok(_) => {}
            Err(error) => return Err(format!("{job} of {id} without a descriptor: {error}")),
        }
        let bad = self.store.list(None, usize::MAX).iter().any(|status| status.corrupt);
        if self.store.failed() || bad || !self.store.take_bad().is_empty() {
            return Err(format!("{job} of {id} without a descriptor: something counts as bad"));
        }
        let again = self.try_job(id, &job);
        let length = again.map_err(|error| format!("{job} of {id} after that: {error}"))?;
        self.did(id, job, length)
    }

    fn cramped_job(&mut self) -> Result<(ReplicaId, Job), String> {
        let (kind, existing) = (self.rng.below(6), self.any());
        let (id, known) = match (kind, existing) {
            (0..2, _) | (_, None) => {
                let id = self.growing();
                let at = self.known.get(&id).map_or(0, |known| known.length);
                return Ok((id, Job::Append(append_of(id, at, BLOCK_BYTES)?)));
            }
            (_, Some(existing)) => existing,
        };
        Ok(match kind {
            2 if !known.sealed => (id, Job::Seal(known.length)),
            3 => (id, Job::Delete),
            4 => {
                self.next_chunk += 1;
                (id_of(self.next_chunk - 1), Job::Build)
            }
            5 if !known.sealed => (id, Job::Sync),
            _ => (id, Job::Read(known.length)),
        })
    }

    /// Does a job, also one that is done already; the length of the replica.
    fn try_job(&self, id: ReplicaId, job: &Job) -> Result<u64, StoreError> {
        match job {
            Job::Append(append) => self.store.append(append),
            Job::Sync => self.store.sync(&[id]).swap_remove(0),
            Job::Seal(length) => self.store.seal(id, *length),
            Job::Read(length) => self.store.read(id, 0, *length).map(|_| *length),
            Job::Delete => self.store.delete(&[id]).map(|()| 0),
            Job::Build => {
                let mut build = self.store.build(id, BLOCK)?;
                build.write(&fill(id, 0, BLOCK_BYTES), &[])?;
                build.finish()
            }
        }
    }

    /// What is known after a job.
    fn did(&mut self, id: ReplicaId, job: Job, length: u64) -> Result<(), String> {
        match job {
            Job::Append(_) => self.known.entry(id).or_default().length = length,
            Job::Read(_) => return self.check_bytes(id, length),
            Job::Sync => return self.promised(id, length),
            Job::Seal(_) | Job::Build => {
                self.known.insert(id, Known { length, durable: length, sealed: true });
                return self.promised(id, length);
            }
            Job::Delete => {
                self.known.remove(&id);
                self.deleted.insert(id);
                if inspect_durable(&self.disk)?.contains_key(&id) {
                    return Err(format!("{id} is deleted, not durably"));
                }
            }
        }
        Ok(())
    }

    /// A replica is deleted while it is built.
    fn overtaken_build(&mut self) -> Result<(), String> {
        let id = id_of(self.next_chunk);
        self.next_chunk += 1;
        let refused = |error: StoreError| format!("build of {id}: {error}");
        let mut build = self.store.build(id, BLOCK).map_err(refused)?;
        build.write(&fill(id, 0, BLOCK_BYTES), &[]).map_err(refused)?;
        self.store.disown(id);
        let early = self.store.delete(&[id]);
        if let Ok(length) = build.finish() {
            return Err(format!("{id} was deleted, and {length} bytes of it were built"));
        }
        // Asked again until it is done.
        early.or_else(|_| self.store.delete(&[id])).map_err(|e| format!("delete {id}: {e}"))?;
        self.report.builds_overtaken += 1;
        self.did(id, Job::Delete, 0)
    }

    /// A rebuild in whose middle the process is killed.
    fn cut_rebuild(&mut self) -> Result<(), String> {
        let id = id_of(self.next_chunk);
        self.next_chunk += 1;
        self.disk.die_after(self.cuts.below(30));
        let built = self.store.build(id, BLOCK).and_then(|mut build| {
            build.write(&fill(id, 0, BLOCK_BYTES), &[])?;
            build.finish()
        });
        self.disk.revive();
        self.report.builds_cut_short += u64::from(built.is_err());
        self.cut = Some(id);
        self.restart(false)?;
        self.cut = None;
        let whole = Known { length: BLOCK, durable: BLOCK, sealed: true };
        match self.store.status(id) {
            Some(status) if status.length == BLOCK && status.sealed => {
                self.known.insert(id, whole);
                self.check_bytes(id, BLOCK)
            }
            None if built.is_err() => Ok(()),
            status => Err(format!("rebuild {id}: {built:?}, then killed: {status:?}")),
        }
    }

    fn restart(&mut self, power: bool) -> Result<(), String> {
        self.incarnation += 1;
        match power {
            true => self.disk.power_loss(),
            false => self.disk.crash(),
        }
        let counter = if power { &mut self.report.power_losses } else { &mut self.report.kills };
        *counter += 1;
        self.start()?;
        self.known.retain(|_, known| known.durable > 0 || known.length > 0);
        let ids: Vec<ReplicaId> = self.known.keys().copied().collect();
        for id in ids {
            self.check_survivor(id)?;
        }
        let durable = inspect_durable(&self.disk)?;
        for status in self.store.list(None, usize::MAX) {
            let known = self.known.contains_key(&status.id) || self.cut == Some(status.id);
            let there = durable.get(&status.id).copied().unwrap_or(0);
            if there < status.durable {
                return Err(format!("{there} bytes of {status:?} are durable after a start"));
            }
            // The first append of a replica may have been refused and its empty file left.
            if !known && (status.length > 0 || self.deleted.contains(&status.id)) {
                return Err(format!("{status:?} is back"));
            }
        }
        Ok(())
    }

    /// Opens the store, now and then while reads fail. Afterwards they do not, and what was not read is.
    fn start(&mut self) -> Result<(), String> {
        let one_in = self.starts.range(1, 8) as u32;
        if self.starts.chance(1, 2) {
            self.disk.set_faults(|faults| faults.read_eio = Ratio::one_in(one_in));
        }
        let full = self.brims.chance(1, 3) && plan::strikes(FaultClass::FullDisk);
        self.disk.set_faults(|faults| faults.full = full);
        let opened = open(&self.disk, self.incarnation);
        self.disk.set_faults(|faults| (faults.read_eio, faults.full) = (Ratio::NEVER, false));
        if full && opened.as_ref().is_ok_and(|store| store.failed()) {
            return Err("a disk without room was taken out of use at a start".to_owned());
        }
        // One that can not read what the disk is does not start.
        self.store = opened.or_else(|_| open(&self.disk, self.incarnation))?;
        for status in self.store.list(None, usize::MAX).iter().filter(|status| status.corrupt) {
            self.report.unread += 1;
            let reviewed = self.store.review(status.id);
            reviewed.map_err(|error| format!("review {}: {error}", status.id))?;
        }
        Ok(())
    }

    fn check_survivor(&mut self, id: ReplicaId) -> Result<(), String> {
        let known = self.known[&id];
        let Some(status) = self.store.status(id) else {
            self.known.remove(&id);
            return if known.durable == 0 { Ok(()) } else { Err(format!("{id} is gone")) };
        };
        if status.length < known.durable || status.length > known.length || status.corrupt {
            return Err(format!("{known:?} became {status:?}"));
        }
        if known.sealed && (status.length != known.length || !status.sealed) {
            return Err(format!("sealed {known:?} became {status:?}"));
        }
        let (length, sealed) = (status.length, status.sealed);
        self.known.insert(id, Known { length, durable: status.durable, sealed });
        if length > 0 { self.check_bytes(id, length) } else { Ok(()) }
    }

    /// A failed sync ends the disk's use; what it promised before holds after the next start.
    fn failing_sync(&mut self) -> Result<(), String> {
        let Some((id, known)) = self.any() else { return Ok(()) };
        let nothing = known.sealed || known.durable == known.length;
        if nothing || !plan::strikes(FaultClass::EioOnFsync) {
            return Ok(());
        }
        self.disk.set_faults(|faults| faults.next_sync_eio = 1);
        let synced = self.store.sync(&[id]).swap_remove(0);
        self.disk.set_faults(|faults| faults.next_sync_eio = 0);
        self.report.failed_syncs += 1;
        match synced {
            Ok(durable) => {
                self.promised(id, durable)?;
                Err(format!("a failed sync of {id} was answered with {durable}"))
            }
            Err(_) if !self.store.failed() => Err("a disk that failed is still in use".to_owned()),
            Err(_) => self.restart(plan::strikes(FaultClass::PowerLoss)),
        }
    }
}
