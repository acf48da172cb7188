//! One replica in memory.

use super::format::ReplicaId;
use super::{Status, Store, StoreError};
use crate::seam::{DiskFile, OpenMode};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

/// What is known to be wrong with a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// A block could not be read, or did not match its CRC. The disk may have failed for a moment only: when all
    /// blocks are read and match, it is well again.
    Seen,
    /// When it was opened its end could not be read: what lies beyond `length` is not known.
    Unread,
    /// Bytes that were durable are gone.
    Lost,
}

/// How far a replica has come. Only the disk's writer changes it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes appended, a multiple of the block.
    pub length: u64,
    /// Bytes that survive a loss of power; at most `length`.
    pub durable: u64,
    /// What the header says of that; at most `durable`.
    pub recorded: u64,
    /// Sealed; then all three are equal.
    pub sealed: bool,
    /// The name in its directory is durable.
    pub named: bool,
    /// What is wrong with it.
    pub fault: Fault,
    /// The file has blocks up to here, written as zeros where nothing was appended yet.
    pub prewritten: u64,
}

impl Progress {
    pub fn corrupt(&self) -> bool {
        self.fault != Fault::None
    }

    /// What its file holds beyond the length is not known, or is less than was promised: hands off.
    pub fn unknown(&self) -> bool {
        matches!(self.fault, Fault::Unread | Fault::Lost)
    }

    pub fn clean(&self) -> bool {
        self.named && self.durable == self.length
    }
}

pub(super) struct Replica {
    pub id: ReplicaId,
    progress: Mutex<Progress>,
    file: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl Replica {
    pub fn new(id: ReplicaId, progress: Progress) -> Arc<Replica> {
        Arc::new(Replica { id, progress: Mutex::new(progress), file: Mutex::new(None) })
    }

    /// Keeps an open file.
    pub fn hold(&self, file: Arc<dyn DiskFile>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }

    pub fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        crate::invariant!(progress.recorded <= progress.durable, "what is recorded is durable");
        crate::invariant!(progress.durable <= progress.length, "what is durable is there");
    }

    pub fn status(&self) -> Status {
        let now = self.progress();
        Status {
            id: self.id,
            length: now.length,
            durable: if now.named { now.durable } else { 0 },
            sealed: now.sealed,
            corrupt: now.corrupt(),
        }
    }
}

impl Store {
    /// The replica's open file; opened if need be, which closes the one opened longest ago.
    pub(super) fn file(&self, replica: &Arc<Replica>) -> Result<Arc<dyn DiskFile>, StoreError> {
        let mut slot = replica.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let path = replica.id.path();
        let read_only =
            |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EROFS | libc::EACCES));
        let opened = match self.disk().open(&path, OpenMode::Write) {
            Err(error) if read_only(&error) => self.disk().open(&path, OpenMode::Read),
            other => other,
        };
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if self.find(replica.id).is_none() => {
                StoreError::NoSuchReplica(replica.id)
            }
            _ => self.busy(&error).unwrap_or_else(|| {
                self.note_bad(replica);
                StoreError::Read(format!("{}/{path}: {error}", self.disk().describe()))
            }),
        })?;
        *slot = Some(file.clone());
        drop(slot);
        self.note_opened(replica);
        Ok(file)
    }

    /// Closes the replica's file, once nobody uses it.
    pub(super) fn let_go(&self, replica: &Arc<Replica>) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(replica)));
        replica.file.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The replica's file if it is open and nobody is opening it: never waits for the disk.
    pub(super) fn file_at_hand(replica: &Replica) -> Option<Arc<dyn DiskFile>> {
        match replica.file.try_lock() {
            Ok(slot) => slot.clone(),
            Err(TryLockError::Poisoned(slot)) => slot.into_inner().clone(),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Remembers that the replica holds an open file and closes others above the limit. Files with bytes
    /// that are not yet durable stay open: a sync through another handle may not see their write errors.
    pub(super) fn note_opened(&self, replica: &Arc<Replica>) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.push_back(Arc::downgrade(replica));
        let mut excess = opened.len().saturating_sub(self.limits().open_replicas_max);
        while excess > 0 {
            excess -= 1;
            let Some(oldest) = opened.pop_front() else { return };
            let Some(oldest) = oldest.upgrade() else { continue };
            if !oldest.progress().clean() || Arc::ptr_eq(&oldest, replica) {
                opened.push_back(Arc::downgrade(&oldest));
                continue;
            }
            oldest.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}
