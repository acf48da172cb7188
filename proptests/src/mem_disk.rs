//! A disk in memory, without faults and without a difference between written and durable: for tests that only
//! ask what code makes of the bytes in its files, in either world.

use bytes::Bytes;
use mooseng::seam::disk::{DiskLock, Space, check_path};
use mooseng::seam::{Disk, DiskFile, OpenMode};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const EBADF: i32 = 9;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EFBIG: i32 = 27;
/// Larger files are refused, whatever the bytes in them claim.
const FILE_BYTES_MAX: u64 = 64 << 20;
const SPACE: Space = Space { total: 1 << 40, free: 1 << 39 };

type Content = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct State {
    files: BTreeMap<String, Content>,
    dirs: BTreeSet<String>,
    locks: BTreeSet<String>,
}

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn check_dir(&self, dir: &str) -> io::Result<()> {
        let mut above = Some(dir).filter(|dir| !dir.is_empty());
        while let Some(path) = above {
            if self.files.contains_key(path) {
                return Err(os(ENOTDIR));
            }
            above = path.rsplit_once('/').map(|(dir, _)| dir);
        }
        match dir.is_empty() || self.dirs.contains(dir) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file(&self, path: &str) -> io::Result<Content> {
        if self.dirs.contains(path) {
            return Err(os(EISDIR));
        }
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl MemDisk {
    /// Paths and bytes of all files.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = locked(&self.0);
        state.files.iter().map(|(path, bytes)| (path.clone(), locked(bytes).clone())).collect()
    }

    /// Puts a file there, with the directories above it.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let mut state = locked(&self.0);
        let ends = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        state.dirs.extend(ends);
        state.files.insert(path.to_owned(), Arc::new(Mutex::new(bytes)));
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        check_path(path)?;
        let mut state = locked(&self.0);
        state.check_dir(parent(path))?;
        let content = match (state.file(path), mode) {
            (Ok(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(content), _) => content,
            (Err(error), OpenMode::Create | OpenMode::CreateNew)
                if error.kind() == io::ErrorKind::NotFound =>
            {
                state.files.entry(path.to_owned()).or_default().clone()
            }
            (Err(error), _) => return Err(error),
        };
        Ok(Arc::new(MemFile { content, writes: mode != OpenMode::Read }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        check_path(path)?;
        let state = locked(&self.0);
        Ok(state.files.contains_key(path) || state.dirs.contains(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = locked(&self.0);
        state.check_dir(dir)?;
        let inside = |path: &&String| parent(path) == dir;
        let names = state.files.keys().chain(&state.dirs).filter(inside);
        let names: BTreeSet<&str> = names
            .map(|path| path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name))
            .collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        check_path(dir)?;
        let mut state = locked(&self.0);
        let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
        for path in ends.map(|end| &dir[..end]) {
            if state.files.contains_key(path) {
                return Err(os(ENOTDIR));
            }
            state.dirs.insert(path.to_owned());
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        let mut state = locked(&self.0);
        state.file(path)?;
        state.files.remove(path);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(from)?;
        check_path(to)?;
        let mut state = locked(&self.0);
        let content = state.file(from)?;
        state.check_dir(parent(to))?;
        if state.dirs.contains(to) {
            return Err(os(EISDIR));
        }
        state.files.remove(from);
        state.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        locked(&self.0).check_dir(dir)
    }

    fn space(&self) -> io::Result<Space> {
        Ok(SPACE)
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        check_path(path)?;
        if !locked(&self.0).locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock(self.clone(), path.to_owned())))
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

struct MemLock(MemDisk, String);

impl DiskLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        locked(&self.0.0).locks.remove(&self.1);
    }
}

struct MemFile {
    content: Content,
    writes: bool,
}

impl MemFile {
    /// Changes the bytes, of which there are then at most `len` more than before.
    fn change(&self, len: u64, work: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if !self.writes {
            return Err(os(EBADF));
        }
        if len > FILE_BYTES_MAX {
            return Err(os(EFBIG));
        }
        work(&mut locked(&self.content));
        Ok(())
    }
}

impl DiskFile for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.content).len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let content = locked(&self.content);
        let from = content.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let len = buf.len().min(content.len() - from);
        buf[..len].copy_from_slice(&content[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        self.change(end, |content| {
            if buf.is_empty() {
                return;
            }
            let (from, to) = (offset as usize, end as usize);
            if content.len() < to {
                content.resize(to, 0);
            }
            content[from..to].copy_from_slice(buf);
        })
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.write_at(offset, &bufs.concat())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn writeback_hint(&self, _offset: u64, _len: u64) {}

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(len, |content| content.resize(len as usize, 0))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.change(len, |_| {})
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(0, |content| {
            let have = content.len() as u64;
            let (from, to) = (offset.min(have), offset.saturating_add(len).min(have));
            content[from as usize..to as usize].fill(0);
        })
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let content = locked(&self.content);
        let from = content.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let to = content.len().min(from.saturating_add(len));
        Ok(Bytes::copy_from_slice(&content[from..to]))
    }

    fn read_resident(&self, offset: u64, len: usize) -> Option<Bytes> {
        self.map(offset, len).ok()
    }
}
