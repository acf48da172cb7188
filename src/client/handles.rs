//! Open files.

use super::inode::{Inode, State};
use super::readahead::ReadAhead;
use super::types::{Handle, Manner};
use crate::errno::Errno;
use crate::seam::Mono;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An open file description.
#[derive(Debug)]
pub struct OpenFile {
    /// What it is open on.
    pub inode: Arc<Inode>,
    /// Linux open flags.
    pub flags: i32,
    /// Failed write-backs that its holder was told of.
    told: AtomicU64,
    /// How it is read.
    pub ahead: Mutex<ReadAhead>,
}

impl OpenFile {
    /// Whether reads are allowed.
    pub fn readable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    /// Whether writes are allowed.
    pub fn writable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether writes go to the end of the file.
    pub fn appends(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    /// Whether a write returns only when it is committed.
    pub fn synchronous(&self) -> bool {
        self.flags & (libc::O_SYNC | libc::O_DSYNC) != 0
    }

    /// How it writes if nothing else is asked for.
    pub fn manner(&self) -> Manner {
        Manner { appends: self.appends(), synchronous: self.synchronous() }
    }

    /// The failure that this description was not told of yet: each is told once, by the next fsync or close.
    pub fn failure(&self, state: &mut State) -> Result<(), Errno> {
        let Some(file) = &state.file else { return Ok(()) };
        let told = self.told.swap(file.failures, Ordering::AcqRel);
        match file.failure {
            Some(errno) if file.failures > told => Err(errno),
            _ => Ok(()),
        }
    }
}

/// Open files by handle.
#[derive(Debug, Default)]
pub struct Handles {
    open: Mutex<BTreeMap<u64, Arc<OpenFile>>>,
    next: AtomicU64,
}

impl Handles {
    fn map(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<OpenFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens. Failures from before are not this description's to hear.
    pub fn open(&self, inode: Arc<Inode>, flags: i32, now: Mono) -> Handle {
        let told = {
            let mut state = inode.lock();
            let file = state.file();
            if file.opens == 0 {
                file.opened_at = now;
            }
            file.opens += 1;
            file.failures
        };
        let handle = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let file = OpenFile { inode, flags, told: told.into(), ahead: Mutex::default() };
        self.map().insert(handle, Arc::new(file));
        Handle(handle)
    }

    /// The open file of a handle.
    pub fn get(&self, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        self.map().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// Closes; `true` with the inode if this was its last open file here.
    pub fn close(&self, handle: Handle) -> Option<(Arc<OpenFile>, bool)> {
        let file = self.map().remove(&handle.0)?;
        let last = {
            let mut state = file.inode.lock();
            let data = state.file();
            data.opens -= 1;
            data.opens == 0
        };
        Some((file, last))
    }

    /// Inodes that are open.
    pub fn inodes(&self) -> Vec<Arc<Inode>> {
        let mut inodes: BTreeMap<_, Arc<Inode>> = BTreeMap::new();
        for file in self.map().values() {
            inodes.entry(file.inode.id).or_insert_with(|| file.inode.clone());
        }
        inodes.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::inode::Table;
    use super::*;
    use crate::ids::InodeId;

    #[test]
    fn each_description_hears_of_a_failure_once() {
        let table = Table::new(16);
        let handles = Handles::default();
        let inode = table.get_or_new(InodeId(3));
        let a = handles.get(handles.open(inode.clone(), libc::O_RDWR, Mono(1))).unwrap();
        let b = handles.get(handles.open(inode.clone(), libc::O_RDWR, Mono(1))).unwrap();
        let mut state = inode.lock();
        assert_eq!(a.failure(&mut state), Ok(()));
        state.file().failures += 1;
        state.file().failure = Some(Errno::ENOSPC);
        assert_eq!(a.failure(&mut state), Err(Errno::ENOSPC));
        assert_eq!(a.failure(&mut state), Ok(()));
        assert_eq!(b.failure(&mut state), Err(Errno::ENOSPC));
        drop(state);
        let late = handles.get(handles.open(inode.clone(), libc::O_RDWR, Mono(1))).unwrap();
        assert_eq!(late.failure(&mut inode.lock()), Ok(()));
    }
}
