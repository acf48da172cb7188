//! What changes a replica: append, sync, seal, delete. One thread at a time calls these.

use super::format::{self, BLOCK, CHUNKS, Recorded, ReplicaId};
use super::replica::{Progress, Replica};
use super::{Store, StoreError};
use crate::checksum::block_crc;
use crate::limits::BLOCK_BYTES;
use crate::seam::{self, DiskFile, OpenMode};
use crate::{bug, mark};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Appends shorter than this go into blocks that were written as zeros before: a sync that makes a file longer
/// changes the file system's metadata and takes about twice as long (measured on ext4: 240 against 130 us).
const PREWRITE_BELOW: usize = 64 << 10;
/// Bytes written as zeros at a time: as many as the replica has already, within these bounds.
const PREWRITE_MIN: u64 = 128 << 10;
/// See [`PREWRITE_MIN`].
const PREWRITE_MAX: u64 = 1 << 20;

/// Bytes of an append from which on it is written past the page cache: less work for the processor, and the sync
/// finds it written.
const DIRECT_BYTES: usize = 256 << 10;
/// Bytes of an append from which on their write-back is started early, so that the sync has less to wait for.
const WRITEBACK_BYTES: usize = 256 << 10;

/// Bytes for the end of a replica whose CRCs were checked.
#[derive(Clone, Debug)]
pub struct Append {
    id: ReplicaId,
    offset: u64,
    data: Bytes,
    crcs: Vec<u32>,
    create: bool,
}

impl Append {
    /// Checks shape and CRCs, in one pass over the data. `offset` is on a block boundary, there is one CRC per
    /// block, and only the last block may be short (it is padded with zeros). `create`: the replica may be new.
    pub fn checked(
        id: ReplicaId,
        offset: u64,
        data: Bytes,
        crcs: Vec<u32>,
        create: bool,
    ) -> Result<Append, StoreError> {
        let append = Append { id, offset, data, crcs, create };
        if !offset.is_multiple_of(BLOCK) {
            return Err(StoreError::Bad(format!("append to {id} at {offset}: not on a block")));
        }
        if append.crcs.len() != append.data.len().div_ceil(BLOCK_BYTES) {
            return Err(StoreError::Bad(format!("append to {id}: not one CRC per block")));
        }
        if offset.checked_add(append.padded()).is_none_or(|end| end > id.len_max()) {
            return Err(StoreError::Bad(format!("append to {id} at {offset}: beyond the longest")));
        }
        let blocks = append.data.chunks(BLOCK_BYTES).zip(&append.crcs);
        for (index, (block, crc)) in (offset / BLOCK..).zip(blocks) {
            if block_crc(id.chunk, id.crc_shard(), index as u32, block) != *crc {
                mark!("store: append damaged on its way");
                let what = format!("append to {id}: block {index} does not match its CRC");
                return Err(StoreError::Corrupt(what));
            }
        }
        Ok(append)
    }

    /// Which replica.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Where it begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of the replica after it.
    pub fn end(&self) -> u64 {
        self.offset + self.padded()
    }

    /// Bytes it brings.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    fn padded(&self) -> u64 {
        (self.data.len() as u64).next_multiple_of(BLOCK)
    }
}

impl Store {
    /// Appends, not yet durably; the replica's new length. Rule A1: only at the current length; an exact
    /// duplicate of what is there is answered as done. Rule A4: it starts a block of its own, so that no block
    /// is ever written twice.
    pub fn append(&self, append: &Append) -> Result<u64, StoreError> {
        self.usable()?;
        let replica = match self.find(append.id) {
            Some(replica) => replica,
            None if append.create && append.offset == 0 => self.create(append)?,
            None => return Err(StoreError::NoSuchReplica(append.id)),
        };
        let now = replica.progress();
        if now.corrupt() {
            return Err(StoreError::Corrupt(format!("replica {} is damaged", append.id)));
        }
        if now.sealed || append.offset != now.length {
            return self.answer_again(&replica, now, append);
        }
        if append.data.is_empty() {
            return Ok(now.length);
        }
        self.check_room(append.padded())?;
        let file = self.file(&replica)?;
        let prewritten = self.prewrite(&replica, &*file, append);
        // HALF: only a full disk is heeded.
        if let Err(error) = prewritten.and_then(|()| self.write_blocks(&*file, append))
            && (seam::is_full(&error) || !bug!(HALF))
        {
            return Err(self.undo(&replica, &*file, append, error));
        }
        replica.update(|progress| progress.length = append.end());
        Ok(append.end())
    }

    /// Makes the file longer than a short append needs, so that the syncs of those to come are quick.
    fn prewrite(&self, replica: &Replica, file: &dyn DiskFile, append: &Append) -> io::Result<()> {
        let now = replica.progress();
        if append.data.len() >= PREWRITE_BELOW || append.end() <= now.prewritten {
            return Ok(());
        }
        let bytes = now.length.clamp(PREWRITE_MIN, PREWRITE_MAX).min(self.limits().prewrite_bytes);
        let upto = (append.offset + bytes).min(append.id.len_max());
        if upto <= append.end() || self.check_room(bytes).is_err() {
            return Ok(());
        }
        mark!("store: blocks written as zeros");
        let mut at = append.end();
        while at < upto {
            let len = (upto - at).min(ZEROS.len() as u64);
            file.write_at(append.id.data_start() + at, &ZEROS[..len as usize])?;
            at += len;
        }
        replica.update(|progress| progress.prewritten = upto);
        Ok(())
    }

    fn write_blocks(&self, file: &dyn DiskFile, append: &Append) -> io::Result<()> {
        let start = append.id.data_start() + append.offset;
        let padding = append.padded() as usize - append.data.len();
        if padding == 0 && append.data.len() >= DIRECT_BYTES {
            file.write_direct_at(start, &append.data)?;
        } else if padding == 0 {
            file.write_at(start, &append.data)?;
        } else {
            mark!("store: short block padded");
            file.write_vectored_at(start, &[&append.data, &ZEROS[..padding]])?;
        }
        file.write_at(append.id.crc_at(append.offset), &format::encode_crcs(&append.crcs))?;
        if append.data.len() >= WRITEBACK_BYTES {
            file.writeback_hint(start, append.padded());
        }
        Ok(())
    }

    /// After a failed append nothing of it may be seen: the file ends where it ended before.
    fn undo(
        &self,
        replica: &Replica,
        file: &dyn DiskFile,
        append: &Append,
        error: io::Error,
    ) -> StoreError {
        let (start, length) = (append.id.data_start(), append.offset);
        let answer = self.fail("append", error);
        if self.failed() {
            return answer;
        }
        // M34: the file was made longer already and stays so, with only a part of the bytes in it.
        if bug!(M34) {
            let _ = file.set_len(start + append.end());
            replica.update(|progress| progress.length = append.end());
            return answer;
        }
        match file.set_len(start + length) {
            Ok(()) => {
                replica.update(|progress| progress.prewritten = 0);
                answer
            }
            Err(error) => self.fence("append", &error),
        }
    }

    /// A request at another offset than the end: done already, or wrong.
    fn answer_again(
        &self,
        replica: &Arc<Replica>,
        now: Progress,
        append: &Append,
    ) -> Result<u64, StoreError> {
        let wrong = StoreError::WrongOffset {
            id: append.id,
            offset: append.offset,
            length: now.length,
            sealed: now.sealed,
        };
        if append.end() > now.length {
            return Err(wrong);
        }
        let mut stored = vec![0; append.crcs.len() * 4];
        let file = self.file(replica)?;
        file.read_exact_at(append.id.crc_at(append.offset), &mut stored)
            .map_err(|error| StoreError::Read(format!("{}: {error}", append.id)))?;
        if format::decode_crcs(&stored) != append.crcs {
            return Err(wrong);
        }
        mark!("store: duplicate append answered as done");
        Ok(now.length)
    }

    fn create(&self, append: &Append) -> Result<Arc<Replica>, StoreError> {
        let id = append.id;
        self.not_disowned(id)?;
        self.check_room(append.padded() + id.data_start())?;
        self.ensure_dir(&id.dir())?;
        let opened = self.disk().open(&id.path(), OpenMode::Create);
        let file = opened.map_err(|e| self.fail_open("create", e))?;
        // A file that is not in the index is a leftover of a create that failed.
        let header = format::encode_header(id, Recorded::default());
        if let Err(error) = file.set_len(0).and_then(|()| file.write_at(0, &header)) {
            let answer = self.fail("create", error);
            let _ = self.disk().remove(&id.path());
            self.lock_unsynced().insert(id.dir());
            return Err(answer);
        }
        let replica = Replica::new(id, Progress::default());
        replica.hold(file);
        self.lock_replicas().insert(id, replica.clone());
        // Whoever deletes it disowns it first and then looks whether it is here: one of the two sees the other.
        if let Err(answer) = self.not_disowned(id) {
            self.lock_replicas().remove(&id);
            let _ = self.disk().remove(&id.path());
            self.lock_unsynced().insert(id.dir());
            return Err(answer);
        }
        self.note_opened(&replica);
        Ok(replica)
    }

    pub(super) fn not_disowned(&self, id: ReplicaId) -> Result<(), StoreError> {
        // LATECOMER: an append or a rebuild that a delete has overtaken makes the replica anew.
        if !self.lock_deleted().contains(id) || bug!(LATECOMER) {
            return Ok(());
        }
        mark!("store: append or rebuild came after the delete");
        Err(StoreError::NoSuchReplica(id))
    }

    pub(super) fn ensure_dir(&self, dir: &str) -> Result<(), StoreError> {
        if self.lock_dirs().contains_key(dir) {
            return Ok(());
        }
        self.disk().create_dir(dir).map_err(|e| self.fail_open("create directory", e))?;
        self.lock_dirs().insert(dir.to_owned(), false);
        Ok(())
    }

    pub(super) fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let space = self.disk().space().map_err(|e| self.fail("statfs", e))?;
        if space.free < bytes + self.reserve_bytes(space.total) {
            mark!("store: only the reserve is left");
            return Err(StoreError::NoSpace(self.describe()));
        }
        Ok(())
    }

    /// Makes everything appended so far to these replicas durable: one fdatasync each, their names too the
    /// first time. Answers the durable length of each, in order.
    pub fn sync(&self, ids: &[ReplicaId]) -> Vec<Result<u64, StoreError>> {
        let synced: Vec<_> = ids.iter().map(|id| self.sync_data(*id)).collect();
        let fresh = synced.iter().flatten().map(|(replica, _)| replica);
        let unnamed: BTreeSet<String> =
            fresh.filter(|r| !r.progress().named).map(|r| r.id.dir()).collect();
        let named = self.sync_names(&unnamed);
        synced
            .into_iter()
            .map(|synced| {
                let (replica, length) = synced?;
                named.clone()?;
                replica.update(|progress| {
                    progress.durable = progress.durable.max(length);
                    progress.named = true;
                });
                Ok(length)
            })
            .collect()
    }

    fn sync_data(&self, id: ReplicaId) -> Result<(Arc<Replica>, u64), StoreError> {
        let replica = self.found(id)?;
        let now = replica.progress();
        if now.durable == now.length && now.named {
            return Ok((replica, now.length));
        }
        self.usable()?;
        // M21: the append is called durable although it is only in memory.
        if bug!(M21) {
            return Ok((replica, now.length));
        }
        let file = self.file(&replica)?;
        // Only what an earlier sync made durable is recorded; it rides along with this one.
        if now.durable >= now.recorded + self.limits().recorded_lag_bytes {
            let recorded = Recorded { synced: now.durable, sealed: false };
            file.write_at(0, &format::encode_header(id, recorded))
                .map_err(|e| self.fence("header", &e))?;
            replica.update(|progress| progress.recorded = now.durable);
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        match file.sync_data() {
            // M22: the failed sync is taken for done, as if a retry had worked.
            Err(_) if bug!(M22) => Ok((replica, now.length)),
            Err(error) => Err(self.fence("sync", &error)),
            Ok(()) => Ok((replica, now.length)),
        }
    }

    /// Makes the names in these directories durable, and the directories' own where they are new.
    pub(super) fn sync_names(&self, dirs: &BTreeSet<String>) -> Result<(), StoreError> {
        if dirs.is_empty() {
            return Ok(());
        }
        let fresh = |known: &BTreeMap<String, bool>| -> Vec<String> {
            known.iter().filter(|(_, durable)| !**durable).map(|(dir, _)| dir.clone()).collect()
        };
        let new = fresh(&self.lock_dirs());
        let failed =
            |e: io::Error| self.busy(&e).unwrap_or_else(|| self.fence("sync of a directory", &e));
        if new.iter().any(|dir| dirs.contains(dir)) {
            self.disk().sync_dir(CHUNKS).map_err(failed)?;
            // Only those that were there before the sync.
            let mut known = self.lock_dirs();
            known.extend(new.into_iter().map(|dir| (dir, true)));
        }
        for dir in dirs {
            self.disk().sync_dir(dir).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the replica at `length` (rounded up to a block) for ever and durably; what is beyond is cut off.
    /// Refused if less is there, or if it is sealed at another length.
    pub fn seal(&self, id: ReplicaId, length: u64) -> Result<u64, StoreError> {
        self.usable()?;
        let replica = self.found(id)?;
        let now = replica.progress();
        let asked = length.min(id.len_max()).next_multiple_of(BLOCK);
        // M25: sealed where it happens to end.
        let asked = if bug!(M25) { now.length } else { asked };
        if now.length < asked {
            return Err(StoreError::NotDurable { id, length: now.length, wanted: length });
        }
        if now.sealed {
            let what = format!("replica {id} is sealed at {}, not at {length}", now.length);
            return if now.length == asked { Ok(asked) } else { Err(StoreError::Bad(what)) };
        }
        // Long enough it would be, but it is not sealed, and whoever asks must not take it for that.
        if now.corrupt() {
            return Err(StoreError::Corrupt(format!("replica {id} is damaged")));
        }
        self.sync(&[id]).swap_remove(0)?;
        self.end_at(&replica, asked)?;
        // Readers open it anew: this one may hold a second descriptor, for writes past the page cache.
        self.let_go(&replica);
        Ok(asked)
    }

    fn end_at(&self, replica: &Arc<Replica>, asked: u64) -> Result<(), StoreError> {
        let (id, now, file) = (replica.id, replica.progress(), self.file(replica)?);
        // The sealed header is durable before anything is cut, and says what counts from then on.
        let recorded = Recorded { synced: asked, sealed: true };
        file.write_at(0, &format::encode_header(id, recorded))
            .and_then(|()| file.sync_data())
            .map_err(|e| self.fence("seal", &e))?;
        replica.update(|progress| {
            *progress = Progress {
                length: asked,
                durable: asked,
                recorded: asked,
                sealed: true,
                prewritten: 0,
                ..*progress
            };
        });
        crate::maybe!(asked < now.length, "store: seal cut off an uncommitted tail");
        if asked < now.length.max(now.prewritten) {
            file.set_len(id.data_start() + asked).map_err(|e| self.fence("seal", &e))?;
        }
        Ok(())
    }

    /// Removes replicas durably; one that is not here counts as removed. [`StoreError::Busy`] while one of them is being
    /// built, which puts its file there and takes it away again.
    pub fn delete(&self, ids: &[ReplicaId]) -> Result<(), StoreError> {
        self.usable()?;
        ids.iter().try_for_each(|id| self.not_being_built(*id))?;
        // What an earlier call removed and could not sync is owed still: asked again, it finds nothing to remove.
        let mut dirs = std::mem::take(&mut *self.lock_unsynced());
        for id in ids {
            if self.lock_replicas().remove(id).is_none() {
                mark!("store: replica to delete is gone already");
                continue;
            }
            self.lock_bad().remove(id);
            match self.disk().remove(&id.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.fence("delete", &error));
                }
                _ => drop(dirs.insert(id.dir())),
            }
        }
        self.sync_names(&dirs).inspect_err(|_| self.lock_unsynced().extend(dirs))
    }

    /// [`StoreError::Busy`] while this replica is being built.
    pub(super) fn not_being_built(&self, id: ReplicaId) -> Result<(), StoreError> {
        // HASTY: what is being built counts as removed.
        if !self.lock_building().contains_key(&id) || bug!(HASTY) {
            return Ok(());
        }
        mark!("store: delete refused during a build");
        Err(StoreError::Busy(self.describe()))
    }

    pub(super) fn lock_unsynced(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes everything durable and records it, so that the next start has nothing to check.
    pub fn close(&self) -> Result<(), StoreError> {
        self.usable()?;
        let all: Vec<Arc<Replica>> = self.lock_replicas().values().cloned().collect();
        for replica in all {
            let now = replica.progress();
            let recorded = now.clean() && now.recorded == now.length;
            if (recorded && now.prewritten <= now.length) || now.unknown() {
                continue;
            }
            self.sync(&[replica.id]).swap_remove(0)?;
            let recorded = Recorded { synced: now.length, sealed: false };
            let file = self.file(&replica)?;
            file.write_at(0, &format::encode_header(replica.id, recorded))
                .and_then(|()| match now.prewritten > now.length {
                    true => file.set_len(replica.id.data_start() + now.length),
                    false => Ok(()),
                })
                .map_err(|e| self.fence("header", &e))?;
            replica.update(|progress| {
                (progress.recorded, progress.prewritten) = (now.length, 0);
            });
        }
        Ok(())
    }
}
