//! Making a replica from others' bytes. It has another name until it is whole, verified and durable, so a
//! half-built one is never taken for a replica.

use super::format::{self, BLOCK, Recorded, ReplicaId};
use super::open::{PIECE_BYTES, first_bad};
use super::replica::{Fault, Progress, Replica};
use super::{Store, StoreError};
use crate::checksum::{block_crcs, hole_crc};
use crate::seam::{DiskFile, OpenMode};
use crate::{bug, mark};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};

/// A replica under construction; dropped before [`Build::finish`] it leaves nothing behind.
pub struct Build {
    store: Arc<Store>,
    id: ReplicaId,
    file: Arc<dyn DiskFile>,
    crcs: Vec<u32>,
    finished: bool,
}

impl Store {
    /// Begins a replica of `length` bytes. What an earlier try left is replaced.
    pub fn build(self: &Arc<Store>, id: ReplicaId, length: u64) -> Result<Build, StoreError> {
        self.usable()?;
        if length > id.len_max() || !length.is_multiple_of(BLOCK) {
            return Err(StoreError::Bad(format!("replica {id} cannot be {length} bytes long")));
        }
        self.check_room(length + id.data_start())?;
        self.ensure_dir(&id.dir())?;
        match self.lock_building().entry(id) {
            Entry::Occupied(_) => return Err(StoreError::Busy(self.describe())),
            Entry::Vacant(place) => drop(place.insert(false)),
        }
        // A command that a delete has overtaken: asked after the id is entered, where disowning looks for it.
        self.not_disowned(id).inspect_err(|_| self.built(id))?;
        let opened = self.disk().open(&id.build_path(), OpenMode::Create);
        let opened = opened.map_err(|error| self.fail_open("create", error));
        let empty = |file: Arc<dyn DiskFile>| match file.set_len(0) {
            Ok(()) => Ok(file),
            Err(error) => Err(self.fail("create", error)),
        };
        let file = opened.and_then(empty).inspect_err(|_| self.built(id))?;
        Ok(Build { store: self.clone(), id, file, crcs: Vec::new(), finished: false })
    }

    fn built(&self, id: ReplicaId) {
        self.lock_building().remove(&id);
    }

    pub(super) fn lock_building(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, bool>> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody knows of this replica any more: what is being built under its id will not be finished, and an append or
    /// a rebuild that waits still does not create it. Before [`delete`](Store::delete).
    pub fn disown(&self, id: ReplicaId) {
        self.lock_deleted().insert(id);
        if let Some(disowned) = self.lock_building().get_mut(&id) {
            *disowned = true;
        }
    }
}

impl Build {
    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.crcs.len() as u64 * BLOCK
    }

    /// Adds whole blocks and their CRCs, computed here; `holes[i]`: the i-th is a hole, whatever its bytes.
    pub fn write(&mut self, data: &[u8], holes: &[bool]) -> Result<(), StoreError> {
        let (id, at) = (self.id, self.length());
        if self.store.lock_building().get(&id) != Some(&false) {
            return Err(StoreError::NoSuchReplica(id));
        }
        let end = at + data.len() as u64;
        if !end.is_multiple_of(BLOCK) || end > id.len_max() {
            return Err(StoreError::Bad(format!("replica {id}: not whole blocks")));
        }
        let first = (at / BLOCK) as u32;
        let mut crcs = block_crcs(id.chunk, id.crc_shard(), first, data);
        for (i, crc) in crcs.iter_mut().enumerate().filter(|(i, _)| holes.get(*i) == Some(&true)) {
            *crc = hole_crc(id.chunk, id.crc_shard(), first + i as u32);
        }
        let mut rest = data;
        let mut place = id.data_start() + at;
        for run in runs(holes, data.len() / BLOCK as usize) {
            let (bytes, after) = rest.split_at(run.blocks * BLOCK as usize);
            if !run.hole {
                self.file.write_at(place, bytes).map_err(|e| self.store.fail("rebuild", e))?;
                self.file.writeback_hint(place, bytes.len() as u64);
            }
            place += bytes.len() as u64;
            rest = after;
        }
        self.crcs.extend(crcs);
        Ok(())
    }

    /// Makes the replica durable, reads it back from the disk and checks every block (rule A7), and only then gives it its
    /// name, durably. Its length.
    pub fn finish(mut self) -> Result<u64, StoreError> {
        let (store, id, length) = (self.store.clone(), self.id, self.length());
        store.usable()?;
        let table = format::encode_crcs(&self.crcs);
        let header = format::encode_header(id, Recorded { synced: length, sealed: true });
        self.file
            .write_at(id.crc_at(0), &table)
            .and_then(|()| self.file.write_at(0, &header))
            .map_err(|e| store.fail("rebuild", e))?;
        // An empty replica too is as long as its CRC table.
        self.file.set_len(id.data_start() + length).map_err(|e| store.fail("rebuild", e))?;
        self.file.sync_data().map_err(|e| store.fence("rebuild", &e))?;
        // UNPROVEN: what was written is believed.
        if !bug!(UNPROVEN) {
            self.file.forget_cached();
            self.reads_back(0, &header)?;
            self.reads_back(id.crc_at(0), &table)?;
            self.verify()?;
        }
        self.give_name()?;
        let progress = Progress {
            length,
            durable: length,
            recorded: length,
            sealed: true,
            named: true,
            fault: Fault::None,
            prewritten: 0,
        };
        let building = store.lock_building();
        if building.get(&id) != Some(&false) {
            mark!("store: replica deleted while it was built");
            // Whoever takes the lock is not to wait for the disk.
            drop(building);
            self.take_back()?;
            return Err(StoreError::NoSuchReplica(id));
        }
        let before = store.lock_replicas().insert(id, Replica::new(id, progress));
        if before.is_some() {
            mark!("store: rebuilt over an older try");
        }
        store.lock_bad().remove(&id);
        drop(building);
        Ok(length)
    }

    fn give_name(&mut self) -> Result<(), StoreError> {
        let (store, id) = (&self.store, self.id);
        store
            .disk()
            .rename(&id.build_path(), &id.path())
            .map_err(|e| store.fence("rebuild", &e))?;
        self.finished = true;
        store.sync_names(&BTreeSet::from([id.dir()])).inspect_err(|_| {
            // Nobody was promised it: it is made anew, and until then it is not here.
            if !store.failed() && store.find(id).is_none() {
                let _ = self.take_back();
            }
        })
    }

    /// Removes the file under the replica's name, which may be durable: so must this be, and the delete, which is refused
    /// until this build has ended, syncs what is owed then.
    fn take_back(&self) -> Result<(), StoreError> {
        let (store, id) = (&self.store, self.id);
        let removed = store.disk().remove(&id.path());
        store.lock_unsynced().insert(id.dir());
        removed.map_err(|error| store.fence("delete", &error))
    }

    /// Whether these bytes, which no CRC of ours covers, are in the file.
    fn reads_back(&self, at: u64, wanted: &[u8]) -> Result<(), StoreError> {
        let mut there = vec![0; wanted.len()];
        self.file
            .read_exact_at(at, &mut there)
            .map_err(|e| StoreError::Read(format!("replica {}: {e}", self.id)))?;
        if there != wanted {
            mark!("store: rebuilt replica does not read back");
            let what = format!("replica {}: bytes from {at} on do not read back", self.id);
            return Err(StoreError::Corrupt(what));
        }
        Ok(())
    }

    fn verify(&self) -> Result<(), StoreError> {
        let mut buffer = vec![0; PIECE_BYTES.min(self.length() as usize)];
        let blocks_per_piece = PIECE_BYTES / BLOCK as usize;
        for (piece, crcs) in self.crcs.chunks(blocks_per_piece.max(1)).enumerate() {
            let first = piece * blocks_per_piece;
            let data = &mut buffer[..crcs.len() * BLOCK as usize];
            let at = self.id.data_start() + first as u64 * BLOCK;
            self.file
                .read_exact_at(at, data)
                .map_err(|e| StoreError::Read(format!("replica {}: {e}", self.id)))?;
            if let Some(bad) = first_bad(self.id, first as u64 * BLOCK, data, crcs) {
                mark!("store: rebuilt replica does not read back");
                let what = format!("replica {}: block {} does not read back", self.id, bad / BLOCK);
                return Err(StoreError::Corrupt(what));
            }
        }
        Ok(())
    }
}

/// Consecutive blocks that are all holes, or none of them.
struct Run {
    hole: bool,
    blocks: usize,
}

fn runs(holes: &[bool], blocks: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for block in 0..blocks {
        let hole = holes.get(block) == Some(&true);
        match runs.last_mut() {
            Some(run) if run.hole == hole => run.blocks += 1,
            _ => runs.push(Run { hole, blocks: 1 }),
        }
    }
    runs
}

impl Drop for Build {
    fn drop(&mut self) {
        if !self.finished && !self.store.failed() {
            let _ = self.store.disk().remove(&self.id.build_path());
        }
        self.store.built(self.id);
    }
}
