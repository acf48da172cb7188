//! The disk and its files as one process sees them.

use super::faults::{Fault, Of, elsewhere};
use super::names::{Node, parent};
use super::{Event, File, SimDisk, State, gone, no_such_file};
use bytes::Bytes;
use mooseng::seam::disk::{Disk, DiskFile, DiskLock, OpenMode, Space, check_path};
use std::io;
use std::sync::{Arc, MutexGuard};

const EIO: i32 = 5;
const EBADF: i32 = 9;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
/// Larger files are a mistake of the code under test.
const FILE_BYTES_MAX: u64 = 1 << 30;

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

pub(super) struct Handle {
    disk: Arc<SimDisk>,
    incarnation: u64,
}

impl Handle {
    pub(super) fn new(disk: Arc<SimDisk>, incarnation: u64) -> Handle {
        Handle { disk, incarnation }
    }

    fn admitted(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        state.admit(self.incarnation)?;
        Ok(state)
    }

    /// Does one change of names and reports it.
    fn change(
        &self,
        kind: &'static str,
        path: &str,
        work: impl FnOnce(&mut State) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.disk.state();
        state.admit_change(self.incarnation)?;
        let result = work(&mut state);
        let ok = result.is_ok();
        state.report(&Event { kind, path, file: 0, offset: 0, bytes: &[], ok });
        result
    }
}

/// The directory above `path` must exist.
fn check_parent(state: &State, path: &str) -> io::Result<()> {
    check_dir(state, parent(path))
}

fn check_dir(state: &State, dir: &str) -> io::Result<()> {
    match state.names.get(dir) {
        Some(Node::Dir) => Ok(()),
        Some(Node::File(_)) => Err(os(ENOTDIR)),
        None if below_a_file(state, dir) => Err(os(ENOTDIR)),
        None => Err(no_such_file()),
    }
}

fn below_a_file(state: &State, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at);
    ends.into_iter().any(|end| matches!(state.names.get(&path[..end]), Some(Node::File(_))))
}

fn unlink(state: &mut State, path: &str) {
    if let Some(Node::File(number)) = state.names.get(path)
        && let Some(file) = state.files.get_mut(&number)
    {
        file.linked = false;
    }
}

impl Disk for Handle {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        check_path(path)?;
        let mut state = self.admitted()?;
        state.admit_open()?;
        check_parent(&state, path)?;
        let number = match (state.names.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Node::Dir), _) => return Err(os(EISDIR)),
            (Some(Node::File(number)), _) => number,
            (None, OpenMode::Read | OpenMode::Write) => return Err(no_such_file()),
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                state.admit_change(self.incarnation)?;
                let number = state.next_file;
                state.next_file += 1;
                state.files.insert(number, File { linked: true, ..File::default() });
                state.names.change(vec![(path.to_owned(), Some(Node::File(number)))]);
                let event =
                    Event { kind: "create", path, file: number, offset: 0, bytes: &[], ok: true };
                state.report(&event);
                number
            }
        };
        if let Some(file) = state.files.get_mut(&number) {
            file.open += 1;
        }
        drop(state);
        let (disk, incarnation) = (self.disk.clone(), self.incarnation);
        Ok(Arc::new(OpenFile { disk, incarnation, number, writes: mode != OpenMode::Read }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        check_path(path)?;
        Ok(self.admitted()?.names.get(path).is_some())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut state = self.admitted()?;
        state.admit_open()?;
        check_dir(&state, dir)?;
        Ok(state.names.list(dir))
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        check_path(dir)?;
        self.change("mkdir", dir, |state| {
            let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
            for path in ends.map(|end| &dir[..end]) {
                match state.names.get(path) {
                    Some(Node::Dir) => {}
                    Some(Node::File(_)) => return Err(os(ENOTDIR)),
                    None => state.names.change(vec![(path.to_owned(), Some(Node::Dir))]),
                }
            }
            // As the real one, which opens what it made.
            state.admit_open()
        })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        self.change("remove", path, |state| {
            state.file_at(path)?;
            unlink(state, path);
            state.names.change(vec![(path.to_owned(), None)]);
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(from)?;
        check_path(to)?;
        self.change("rename", to, |state| {
            let number = state.file_at(from)?;
            check_parent(state, to)?;
            if state.names.get(to) == Some(Node::Dir) {
                return Err(os(EISDIR));
            }
            if from != to {
                unlink(state, to);
                let names =
                    vec![(from.to_owned(), None), (to.to_owned(), Some(Node::File(number)))];
                state.names.change(names);
            }
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.change("sync_dir", dir, |state| {
            state.admit_open()?;
            check_dir(state, dir)?;
            state.spend(100, 300);
            if state.strikes(Fault::Sync, Of::Dir(dir)) {
                return Err(os(EIO));
            }
            state.names.sync(dir);
            state.counters.dir_syncs += 1;
            state.collect();
            Ok(())
        })
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.admitted()?;
        Ok(Space { total: state.capacity, free: state.free() })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        check_path(path)?;
        let mut state = self.admitted()?;
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locks.insert(path.to_owned(), self.incarnation);
        drop(state);
        let (disk, incarnation, path) = (self.disk.clone(), self.incarnation, path.to_owned());
        Ok(Box::new(Lock { disk, incarnation, path }))
    }

    fn describe(&self) -> String {
        self.disk.name.clone()
    }
}

struct Lock {
    disk: Arc<SimDisk>,
    incarnation: u64,
    path: String,
}

impl DiskLock for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        // Not what a later incarnation holds.
        if state.locks.get(&self.path) == Some(&self.incarnation) {
            state.locks.remove(&self.path);
        }
    }
}

struct OpenFile {
    disk: Arc<SimDisk>,
    incarnation: u64,
    number: u64,
    writes: bool,
}

impl OpenFile {
    fn admitted(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        state.admit(self.incarnation)?;
        if state.files.contains_key(&self.number) { Ok(state) } else { Err(gone()) }
    }

    /// Does one change of this file and reports it.
    fn change(
        &self,
        kind: &'static str,
        offset: u64,
        bytes: &[u8],
        work: impl FnOnce(&mut State) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.writes {
            return Err(os(EBADF));
        }
        let mut state = self.admitted()?;
        state.admit_change(self.incarnation)?;
        let result = work(&mut state);
        let (file, ok) = (self.number, result.is_ok());
        state.report(&Event { kind, path: "", file, offset, bytes, ok });
        result
    }

    /// Whether there is space for `[offset, offset + len)`.
    fn fits(&self, state: &mut State, offset: u64, len: u64) -> bool {
        let free = state.free();
        let needed = state.content(self.number).to_allocate(offset, len);
        let taken = needed > 0 && state.faults.next_enospc > 0;
        state.faults.next_enospc -= u32::from(taken);
        let fits = needed <= free && !taken;
        state.counters.enospc += u64::from(!fits);
        fits
    }

    fn write(&self, state: &mut State, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if offset.saturating_add(len) > FILE_BYTES_MAX {
            return Err(os(EFBIG));
        }
        if !self.fits(state, offset, len) {
            // What fits into the block already there may have been written.
            let block = super::BLOCK - offset % super::BLOCK;
            let content = state.content(self.number);
            let part = block.min(len) * u64::from(content.to_allocate(offset, 1) == 0);
            let part = state.rng.below(part + 1) as usize;
            state.content(self.number).write(offset, &bytes[..part]);
            return Err(os(ENOSPC));
        }
        if state.strikes(Fault::Write, Of::File(self.number)) {
            let part = state.rng.index(bytes.len() + 1);
            state.content(self.number).write(offset, &bytes[..part]);
            return Err(os(EIO));
        }
        state.counters.writes += 1;
        state.counters.bytes_written += len;
        let length = state.content(self.number).len().max(offset + len);
        let goes = |draw| elsewhere(offset as usize, bytes.len(), length as usize, draw) as u64;
        // What fills the whole file can go nowhere else.
        if goes(0) == offset || !state.strikes(Fault::Misdirect, Of::File(self.number)) {
            state.content(self.number).write(offset, bytes);
            return Ok(());
        }
        let to = goes(state.rng.index(length as usize));
        let content = state.content(self.number);
        content.set_len(length);
        content.write(to, bytes);
        Ok(())
    }

    /// What a read gives; one of a page in memory does not reach the disk, and can not fail there.
    fn read(&self, offset: u64, len: usize, resident: bool) -> io::Result<Bytes> {
        let mut state = self.admitted()?;
        let of = Of::File(self.number);
        state.counters.reads += 1;
        let cold = state.rng.chance(1, 16);
        state.spend(0, if cold { 200 } else { 0 });
        if !resident && state.strikes(Fault::Read, of) {
            return Err(os(EIO));
        }
        let length = state.content(self.number).written().len();
        let from = length.min(usize::try_from(offset).unwrap_or(usize::MAX));
        let len = length.min(from.saturating_add(len)) - from;
        let from = state.read_from(of, from, len, length);
        Ok(Bytes::copy_from_slice(&state.content(self.number).written()[from..from + len]))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        // After a crash nothing is open; later incarnations count anew.
        if self.incarnation >= state.incarnation
            && let Some(file) = state.files.get_mut(&self.number)
        {
            file.open = file.open.saturating_sub(1);
        }
    }
}

impl DiskFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.admitted()?.content(self.number).len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.map(offset, buf.len())?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.change("write", offset, buf, |state| self.write(state, offset, buf))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.write_at(offset, &bufs.concat())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.admitted()?;
        state.admit_change(self.incarnation)?;
        state.spend(100, 300);
        let ok = !state.strikes(Fault::Sync, Of::File(self.number));
        let State { rng, files, counters, .. } = &mut *state;
        if let Some(file) = files.get_mut(&self.number) {
            if ok { file.content.sync() } else { file.content.fail_sync(rng) }
        }
        counters.syncs += u64::from(ok);
        let (kind, file) = ("sync", self.number);
        state.report(&Event { kind, path: "", file, offset: 0, bytes: &[], ok });
        if ok { Ok(()) } else { Err(os(EIO)) }
    }

    fn writeback_hint(&self, _offset: u64, _len: u64) {}

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change("set_len", len, &[], |state| {
            if len > FILE_BYTES_MAX {
                return Err(os(EFBIG));
            }
            state.content(self.number).set_len(len);
            Ok(())
        })
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.change("reserve", len, &[], |state| {
            if !self.fits(state, 0, len) {
                return Err(os(ENOSPC));
            }
            state.content(self.number).allocate(0, len);
            Ok(())
        })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change("punch", offset, &len.to_le_bytes(), |state| {
            state.content(self.number).punch(offset, len);
            Ok(())
        })
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.read(offset, len, false)
    }

    fn read_resident(&self, offset: u64, len: usize) -> Option<Bytes> {
        let resident = self.admitted().ok()?.rng.chance(3, 4);
        if resident { self.read(offset, len, true).ok() } else { None }
    }
}
