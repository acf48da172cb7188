//! What the code asks of a disk. Calls are synchronous (redb needs that); the shells call them through
//! [`super::blocking`], or inline followed by [`super::settle`].
//!
//! Paths are relative to the disk's directory, `/`-separated, without `.` or `..`. Durability is exactly
//! POSIX's: bytes are durable after [`DiskFile::sync_data`], names after [`Disk::sync_dir`] of their
//! directory, and anything not yet durable may survive a power loss in part, whole, torn, or not at all.

use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// What memory, offset and length of a direct write are aligned to, bytes.
pub const DIRECT_ALIGN: usize = 4096;

/// How [`Disk::open`] opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, for reading.
    Read,
    /// Existing file, for reading and writing.
    Write,
    /// For reading and writing, created if missing.
    Create,
    /// For reading and writing; an existing file is an error (`AlreadyExists`).
    CreateNew,
}

/// Size of the file system that holds the disk's directory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What an unprivileged writer may still take.
    pub free: u64,
}

/// Whether there is no room: on the disk, or in what its owner may use of it.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an open failed because this process, or the machine, has no more files or memory to give: the disk is as it
/// was, and the same may work a moment later.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// A directory on one disk. Errors are the operating system's (`raw_os_error` is set for EIO and ENOSPC).
pub trait Disk: Send + Sync + 'static {
    /// Opens a file. The parent directory exists.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Whether a file or directory of this name exists.
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Names in a directory, sorted. `""` is the disk's own directory.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Creates a directory and missing parents; one that exists is fine.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Renames a file, replacing `to` atomically.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the names in `dir` durable. An error that [`is_out_of_files`] is one of opening it: nothing was synced, and
    /// no sync has failed.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Free and total space.
    fn space(&self) -> io::Result<Space>;
    /// Takes the exclusive lock file `path` for the life of the handle; `WouldBlock` if a live process has it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>>;
    /// Where this is, for messages to people.
    fn describe(&self) -> String;
}

/// Held while it lives.
pub trait DiskLock: Send + Sync {}

/// An open file. All calls take explicit offsets, so one handle serves many threads.
pub trait DiskFile: Send + Sync + 'static {
    /// Current length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads at most `buf.len()` bytes; fewer only at the end of the file. Always through the kernel (pread),
    /// so that media errors are errors, not signals.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Reads exactly `buf.len()` bytes or fails with `UnexpectedEof`.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.read_at(offset, buf)? == buf.len() {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
    /// Writes all of `buf`, extending the file as needed.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Writes the concatenation of `bufs` (one system call where possible), extending the file as needed.
    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()>;
    /// As [`write_at`](DiskFile::write_at), past the page cache where it can be (O_DIRECT): `buf`, `offset` and
    /// length are multiples of [`DIRECT_ALIGN`], and disk and file system go along. Otherwise an ordinary write.
    /// Durable after [`sync_data`](DiskFile::sync_data) like any other.
    fn write_direct_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_at(offset, buf)
    }
    /// fdatasync: bytes and length written before are durable. After an error the unsynced bytes are in an
    /// unknown state and must not be trusted: the caller fences the disk, never retries.
    fn sync_data(&self) -> io::Result<()>;
    /// Starts writing back a range without waiting; a hint.
    fn writeback_hint(&self, offset: u64, len: u64);
    /// Forgets what the page cache holds of the file and the disk has too, so that what is read next comes from the
    /// disk; a hint.
    fn forget_cached(&self) {}
    /// Cuts or extends (with zeros).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves blocks for `[0, len)` without changing the length, so that later writes do not fail for space.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Frees the blocks of a range; it reads as zeros afterwards.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The range as shared mapped memory, pre-faulted; cut at the end of the file. Nobody may change bytes
    /// that are mapped (replica data is immutable once written).
    fn map(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Reads only what is in memory already (`RWF_NOWAIT`); `None` if it would block.
    fn read_resident(&self, offset: u64, len: usize) -> Option<Bytes>;
}

/// Refuses what is not a relative, `/`-separated path without empty, `.` or `..` parts (`InvalidInput`).
pub fn check_path(path: &str) -> io::Result<()> {
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.split('/').all(plain) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("not a path inside the disk: {path:?}"),
    ))
}
