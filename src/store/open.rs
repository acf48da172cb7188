//! Starting: what is on the disk, and how much of it counts.

use super::deleted::Deleted;
use super::format::{
    self, BLOCK, BUILD_ENDING, CHUNKS, HEADER_BYTES, HeaderError, Recorded, ReplicaId,
};
use super::replica::{Fault, Progress, Replica};
use super::superblock::{Claimed, DiskError};
use super::{Load, Status, StoreError};
use crate::checksum::{Block, judge};
use crate::ids::Uuid;
use crate::limits::Limits;
use crate::seam::{self, Disk, DiskFile, OpenMode};
use crate::{bug, mark};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bytes read at a time where blocks are checked.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// The chunk store of one disk. Reads may come from any thread; what writes is called by one thread at a time
/// (the [`Writer`](super::Writer)).
pub struct Store {
    claimed: Claimed,
    limits: Arc<Limits>,
    replicas: Mutex<BTreeMap<ReplicaId, Arc<Replica>>>,
    pub(super) opened: Mutex<VecDeque<Weak<Replica>>>,
    /// Directories under `chunks` that exist; true once their own name is durable.
    pub(super) dirs: Mutex<BTreeMap<String, bool>>,
    /// What is being built, and whether it was disowned since.
    pub(super) building: Mutex<BTreeMap<ReplicaId, bool>>,
    /// Directories that names were removed from, not yet durably.
    pub(super) unsynced: Mutex<BTreeSet<String>>,
    deleted: Mutex<Deleted>,
    failed: AtomicBool,
    pub(super) syncs: AtomicU64,
    bad: Mutex<BTreeSet<ReplicaId>>,
}

impl Store {
    /// Opens the store on a disk that [`assemble`](super::assemble) claimed, and recovers what a crash left:
    /// the recorded length of each replica is trusted, blocks beyond it must match their CRCs, the file is cut
    /// at the first that does not, and what remains is made durable. Files that are not replicas are left
    /// alone (rule A2: what nobody knows is never deleted), except half-built ones of our own.
    pub fn open(claimed: Claimed, limits: Arc<Limits>) -> Result<Store, DiskError> {
        let store = Store {
            claimed,
            limits,
            replicas: Mutex::default(),
            opened: Mutex::default(),
            dirs: Mutex::default(),
            building: Mutex::default(),
            unsynced: Mutex::default(),
            deleted: Mutex::default(),
            failed: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            bad: Mutex::default(),
        };
        let disk = store.disk().clone();
        let at = |what: &str, error: io::Error| {
            DiskError::new(&*disk, what, &error.to_string(), "check the disk and its permissions")
        };
        disk.create_dir(CHUNKS).map_err(|e| at(CHUNKS, e))?;
        disk.sync_dir("").map_err(|e| at("", e))?;
        let mut unknown = 0;
        for dir in disk.list(CHUNKS).map_err(|e| at(CHUNKS, e))? {
            let path = format!("{CHUNKS}/{dir}");
            let files = match disk.list(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    unknown += 1;
                    continue;
                }
                other => other.map_err(|e| at(&path, e))?,
            };
            store.sync_found(&path).map_err(|e| at(&path, e))?;
            store.lock_dirs().insert(path, true);
            for file in files {
                unknown += u64::from(!store.adopt(&dir, &file)?);
            }
        }
        disk.sync_dir(CHUNKS).map_err(|e| at(CHUNKS, e))?;
        if unknown > 0 {
            mark!("store: unknown file left alone");
            tracing::warn!(
                "{}: {unknown} files in {CHUNKS} are no replicas; left alone",
                disk.describe()
            );
        }
        Ok(store)
    }

    /// Makes the names in a directory durable: whoever made them may have been killed before it did, and from here on
    /// what is found under them counts as durable. Only a want of descriptors is an error.
    fn sync_found(&self, dir: &str) -> io::Result<()> {
        // UNNAMED: a name that is there is taken for one that stays.
        if bug!(UNNAMED) {
            return Ok(());
        }
        match self.disk().sync_dir(dir) {
            Err(error) if self.busy(&error).is_some() => Err(error),
            Err(error) => {
                // What is on the disk is served; nothing new is accepted.
                let _ = self.fence("recovery", &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Takes a file into the store; whether it is one of ours.
    fn adopt(&self, dir: &str, file: &str) -> Result<bool, DiskError> {
        if file.ends_with(BUILD_ENDING) {
            mark!("store: half-built replica removed");
            let path = format!("{CHUNKS}/{dir}/{file}");
            if let Err(error) = self.disk().remove(&path) {
                tracing::warn!("{}/{path}: {error}", self.disk().describe());
            }
            return Ok(true);
        }
        let Some(id) = ReplicaId::from_file_name(dir, file) else { return Ok(false) };
        let progress = self.look(id).map_err(|error| {
            let why = error.to_string();
            DiskError::new(&**self.disk(), &id.path(), &why, "use the program that wrote it")
        })?;
        let replica = Replica::new(id, progress);
        if progress.corrupt() {
            mark!("store: damaged replica found at start");
            self.note_bad(&replica);
        }
        self.lock_replicas().insert(id, replica);
        Ok(true)
    }

    /// What a replica's file holds, made durable.
    fn look(&self, id: ReplicaId) -> Result<Progress, ExamineError> {
        let found = examine(&**self.disk(), id)?;
        let mut progress = found.progress();
        match self.recover(id, &found) {
            // Whoever looks next does all of it again.
            Err(error) if self.busy(&error).is_some() => return Err(ExamineError::Io(error)),
            Ok(true) => progress.recorded = progress.length,
            // A disk without room says nothing about itself: one more look when it has some.
            Err(error) if seam::is_full(&error) && !bug!(BRIMFUL) => {
                mark!("store: no room to recover a replica");
                progress.durable = progress.recorded;
                progress.fault = Fault::Unread;
            }
            Ok(false) => {
                progress.durable = progress.recorded;
                if !progress.corrupt() {
                    progress.fault = Fault::Unread;
                }
            }
            Err(error) => {
                // What is on the disk is served; nothing new is accepted.
                let _ = self.fence("recovery", &error);
                progress.durable = progress.recorded;
            }
        }
        Ok(progress)
    }

    /// Looks again at a replica whose end could not be read when it was opened: what can be read by now counts.
    /// Nothing happens to others. Called by the [`Writer`](super::Writer).
    pub fn review(&self, id: ReplicaId) -> Result<u64, StoreError> {
        self.usable()?;
        let replica = self.found(id)?;
        if replica.progress().fault == Fault::Unread {
            let looked = self.look(id).map_err(|error| {
                let busy = error.io().and_then(|error| self.busy(error));
                let read =
                    || StoreError::Read(format!("{}/{}: {error}", self.describe(), id.path()));
                busy.unwrap_or_else(read)
            })?;
            if !looked.corrupt() {
                mark!("store: end of a replica read later");
                self.lock_bad().remove(&id);
            }
            replica.update(|progress| *progress = looked);
        }
        Ok(replica.progress().length)
    }

    /// Makes what was found durable, so that from here on length and durable length are one. Of a damaged one
    /// nothing is changed (false): its end may be there and only not be readable now.
    fn recover(&self, id: ReplicaId, found: &Found) -> io::Result<bool> {
        if found.fault != Fault::None {
            return Ok(false);
        }
        let end = id.data_start() + found.length;
        let rest = found.file_len > end || found.table_end > found.length;
        if found.sealed {
            if rest {
                self.disk().open(&id.path(), OpenMode::Write)?.set_len(end)?;
            }
            return Ok(true);
        }
        if rest || found.damaged_header || found.length > found.recorded {
            mark!("store: unsynced tail recovered");
            let file = self.disk().open(&id.path(), OpenMode::Write)?;
            if rest {
                mark!("store: tail cut at the first bad block");
                file.set_len(end)?;
                let stale = found.table_end.saturating_sub(found.length);
                file.write_at(id.crc_at(found.length), &vec![0; (stale / BLOCK * 4) as usize])?;
            }
            if !rewrite_tail(&*file, id, found)? {
                return Ok(false);
            }
            file.sync_data()?;
            let recorded = Recorded { synced: found.length, sealed: false };
            file.write_at(0, &format::encode_header(id, recorded))?;
        }
        Ok(true)
    }

    /// The disk, for what lies beside the replicas.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        self.claimed.disk()
    }

    pub(super) fn claimed(&self) -> &Claimed {
        &self.claimed
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// This disk's name for ever.
    pub fn uuid(&self) -> Uuid {
        self.claimed.uuid()
    }

    /// Where the disk is, for people.
    pub fn describe(&self) -> String {
        self.disk().describe()
    }

    /// Whether the disk was taken out of use by a failed write or sync.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// fdatasyncs of replicas since the start.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// What the disk holds and can take.
    pub fn load(&self) -> Load {
        let space = self.disk().space().unwrap_or_default();
        let free = space.free.saturating_sub(self.reserve_bytes(space.total));
        let failed = self.failed();
        let replicas = self.lock_replicas().len() as u64;
        let free = if failed { 0 } else { free };
        Load { disk: self.uuid(), total: space.total, free, failed, replicas }
    }

    /// What one replica is like, if it is here.
    pub fn status(&self, id: ReplicaId) -> Option<Status> {
        self.find(id).map(|replica| self.judged(replica.status()))
    }

    /// At most `max` replicas in the order of their ids, from the first after `after`.
    pub fn list(&self, after: Option<ReplicaId>, max: usize) -> Vec<Status> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let replicas = self.lock_replicas();
        let page = replicas.range((from, Bound::Unbounded)).take(max);
        page.map(|(_, replica)| self.judged(replica.status())).collect()
    }

    /// On a failed disk nothing counts as good any more.
    fn judged(&self, status: Status) -> Status {
        Status { corrupt: status.corrupt || self.failed(), ..status }
    }

    /// Replicas found damaged since they were last taken.
    pub fn take_bad(&self) -> Vec<ReplicaId> {
        std::mem::take(&mut *self.lock_bad()).into_iter().collect()
    }

    /// Puts replicas back that could not be reported.
    pub fn restore_bad(&self, ids: impl IntoIterator<Item = ReplicaId>) {
        self.lock_bad().extend(ids);
    }

    pub(super) fn note_bad(&self, replica: &Replica) {
        replica.update(|progress| {
            if progress.fault == Fault::None {
                progress.fault = Fault::Seen;
            }
        });
        self.lock_bad().insert(replica.id);
    }

    pub(super) fn find(&self, id: ReplicaId) -> Option<Arc<Replica>> {
        self.lock_replicas().get(&id).cloned()
    }

    pub(super) fn found(&self, id: ReplicaId) -> Result<Arc<Replica>, StoreError> {
        self.find(id).ok_or(StoreError::NoSuchReplica(id))
    }

    pub(super) fn lock_replicas(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Arc<Replica>>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_dirs(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_deleted(&self) -> MutexGuard<'_, Deleted> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_bad(&self) -> MutexGuard<'_, BTreeSet<ReplicaId>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns an error of a write into the store's answer: a full disk is refused and stays in use, anything
    /// else takes the disk out of use, because nobody knows what is on it now. There is no retry.
    pub(super) fn fail(&self, what: &str, error: io::Error) -> StoreError {
        if seam::is_full(&error) {
            mark!("store: disk full");
            return StoreError::NoSpace(self.describe());
        }
        self.fence(what, &error)
    }

    /// As [`fail`](Store::fail) for a call that opens a file or a directory.
    pub(super) fn fail_open(&self, what: &str, error: io::Error) -> StoreError {
        self.busy(&error).unwrap_or_else(|| self.fail(what, error))
    }

    /// The answer to an open that failed for want of descriptors or memory: later. It says nothing about the disk.
    pub(super) fn busy(&self, error: &io::Error) -> Option<StoreError> {
        // CRAMPED: it is taken for the disk's failure.
        if !seam::is_out_of_files(error) || bug!(CRAMPED) {
            return None;
        }
        mark!("store: no descriptor left");
        Some(StoreError::Busy(self.describe()))
    }

    /// Takes the disk out of use.
    pub(super) fn fence(&self, what: &str, error: &io::Error) -> StoreError {
        if !self.failed.swap(true, Ordering::AcqRel) {
            mark!("store: disk fenced");
            tracing::error!("{}: {what}: {error}: disk taken out of use", self.describe());
            let all: Vec<ReplicaId> = self.lock_replicas().keys().copied().collect();
            self.lock_bad().extend(all);
        }
        StoreError::DiskFailed(self.describe())
    }

    pub(super) fn usable(&self) -> Result<(), StoreError> {
        if self.failed() { Err(StoreError::DiskFailed(self.describe())) } else { Ok(()) }
    }

    /// Kept free so that deletes, seals and headers still work on a full disk.
    pub(super) fn reserve_bytes(&self, total: u64) -> u64 {
        self.limits.disk_reserve_bytes.min(total / 20)
    }
}

/// Writes the blocks beyond the recorded length again, byte for byte: after a failed sync the kernel keeps
/// them in memory as if they were on the disk, and a later sync of them would promise nothing. False if they can
/// not be read again, or not as they were: what has not been judged is not written.
fn rewrite_tail(file: &dyn DiskFile, id: ReplicaId, found: &Found) -> io::Result<bool> {
    let mut at = found.recorded;
    while at < found.length {
        let len = (found.length - at).min(PIECE_BYTES as u64);
        let mut piece = vec![0; len as usize];
        let mut crcs = vec![0; (len / BLOCK * 4) as usize];
        let read = file.read_exact_at(id.data_start() + at, &mut piece);
        if read.and_then(|()| file.read_exact_at(id.crc_at(at), &mut crcs)).is_err() {
            return Ok(false);
        }
        if first_bad(id, at, &piece, &format::decode_crcs(&crcs)).is_some() {
            mark!("store: unsynced tail read otherwise");
            return Ok(false);
        }
        file.write_at(id.data_start() + at, &piece)?;
        file.write_at(id.crc_at(at), &crcs)?;
        at += len;
    }
    Ok(true)
}

/// Where the first of the blocks from `at` on is that does not match its CRC.
pub(super) fn first_bad(id: ReplicaId, at: u64, data: &[u8], crcs: &[u32]) -> Option<u64> {
    let places = (at..).step_by(BLOCK as usize);
    let mut blocks = places.zip(data.chunks(BLOCK as usize).zip(crcs));
    let bad = |(place, (block, crc)): &(u64, (&[u8], &u32))| {
        judge(id.chunk, id.crc_shard(), (place / BLOCK) as u32, block, **crc) == Block::Bad
    };
    blocks.find(bad).map(|(place, _)| place)
}

/// What a replica's file turned out to hold; nothing was changed.
#[derive(Default)]
pub(super) struct Found {
    pub length: u64,
    recorded: u64,
    sealed: bool,
    fault: Fault,
    damaged_header: bool,
    file_len: u64,
    /// Length that the last used entry of the CRC table stands for.
    table_end: u64,
}

impl Found {
    fn progress(&self) -> Progress {
        Progress {
            length: self.length,
            durable: self.length,
            recorded: self.recorded,
            sealed: self.sealed,
            named: true,
            fault: self.fault,
            prewritten: 0,
        }
    }
}

/// Why a file could not be judged.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExamineError {
    /// The disk failed on the file itself (not on bytes in it).
    #[error("{0}")]
    Io(io::Error),
    /// A version that this program does not know.
    #[error("format version {0} is not known")]
    Version(u16),
}

impl ExamineError {
    fn io(&self) -> Option<&io::Error> {
        match self {
            ExamineError::Io(error) => Some(error),
            ExamineError::Version(_) => None,
        }
    }
}

/// Judges one replica's file by the rules of recovery, reading only.
pub(super) fn examine(disk: &dyn Disk, id: ReplicaId) -> Result<Found, ExamineError> {
    let file = disk.open(&id.path(), OpenMode::Read).map_err(ExamineError::Io)?;
    let file_len = file.len().map_err(ExamineError::Io)?;
    let mut bytes = vec![0; HEADER_BYTES];
    // One that can not be read may say that all of it counts.
    let Ok(read) = file.read_at(0, &mut bytes) else {
        mark!("store: header unreadable");
        return Ok(Found { fault: Fault::Unread, file_len, ..Found::default() });
    };
    let bytes = &bytes[..read];
    let header = match format::decode_header(id, bytes) {
        Err(HeaderError::Version(version)) => return Err(ExamineError::Version(version)),
        Err(HeaderError::Damaged) => None,
        Ok(recorded) => Some(recorded),
    };
    maybe_damaged(id, header);
    let Recorded { synced, sealed } = header.unwrap_or_default();
    let whole = file_len.saturating_sub(id.data_start()) / BLOCK * BLOCK;
    let mut found = Found {
        length: synced.min(whole),
        recorded: synced.min(whole),
        sealed,
        fault: if whole < synced { Fault::Lost } else { Fault::None },
        damaged_header: header.is_none(),
        file_len,
        table_end: 0,
    };
    if !sealed && found.fault == Fault::None {
        verify_tail(&*file, id, whole.min(id.len_max()), &mut found);
        // What the header said is not known: a bad block may be rot among what counts, and no torn end.
        let once_synced = header.is_none() && !format::never_synced(bytes);
        if once_synced && found.length < found.table_end {
            mark!("store: header and a block damaged");
            found.fault = Fault::Unread;
        }
    }
    if found.table_end == 0 {
        found.table_end = found.length;
    }
    Ok(found)
}

fn maybe_damaged(id: ReplicaId, header: Option<Recorded>) {
    if header.is_none() {
        mark!("store: header damaged, blocks decide");
        tracing::warn!("{}: header is damaged; its blocks are checked instead", id.path());
    }
}

/// Extends `found.length` over the blocks beyond the recorded length that match their CRCs.
fn verify_tail(file: &dyn DiskFile, id: ReplicaId, whole: u64, found: &mut Found) {
    let from = found.recorded;
    let mut table = vec![0; ((id.len_max() - from) / BLOCK * 4) as usize];
    // Without the table nobody knows what is there: it is not nothing.
    let Ok(read) = file.read_at(id.crc_at(from), &mut table) else {
        mark!("store: CRC table unreadable");
        // TABLE: it is taken for an empty one, so that what lies beyond is cut off.
        if !bug!(TABLE) {
            found.fault = Fault::Unread;
        }
        return;
    };
    let crcs = format::decode_crcs(&table[..read]);
    let used = crcs.iter().rposition(|crc| *crc != 0).map_or(0, |last| last + 1);
    found.table_end = from + used as u64 * BLOCK;
    let end = whole.min(found.table_end);
    let mut buffer = vec![0; PIECE_BYTES.min((end.saturating_sub(from)) as usize)];
    while found.length < end {
        let len = (end - found.length).min(buffer.len() as u64) as usize;
        let piece = &mut buffer[..len];
        if file.read_exact_at(id.data_start() + found.length, piece).is_err() {
            mark!("store: unsynced tail unreadable");
            found.fault = Fault::Unread;
            return;
        }
        let its = &crcs[((found.length - from) / BLOCK) as usize..];
        if let Some(bad) = first_bad(id, found.length, piece, its) {
            found.length = bad;
            return;
        }
        found.length += len as u64;
    }
}
