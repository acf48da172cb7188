//! The whole filesystem of a mount except FUSE: sessions, caches, write-back, striping, retries.
//!
//! Methods named `*_cached` and `*_buffered` never wait, so that a kernel thread may answer by them directly;
//! the others are asynchronous, each with a deadline. No lock is held across an await.

mod types;

pub use types::*;

use crate::errno::Errno;
use crate::ids::{InodeId, Uuid};
use crate::pb;
use bytes::Bytes;
use std::sync::Arc;

/// A mounted cluster.
pub struct Client {}

#[allow(unused_variables, clippy::unused_async)]
impl Client {
    /// Finds the leader and opens a session. Background tasks run on the calling tokio runtime.
    pub async fn connect(config: ClientConfig) -> Result<Arc<Client>, ConnectError> {
        Err(ConnectError::NoMasters)
    }

    /// Writes everything back, closes the session and stops. The first failure of a write-back is returned.
    pub async fn shutdown(&self) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Finds a name in a directory.
    pub async fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// [`Client::lookup`] from the caches: `None` if they do not know (also whether the name is absent).
    pub fn lookup_cached(&self, parent: InodeId, name: &[u8]) -> Option<Result<pb::Attr, Errno>> {
        None
    }

    /// The attributes of an inode, with what this mount has written and not yet committed.
    pub async fn getattr(&self, ino: InodeId) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// [`Client::getattr`] from the cache, if it may still be used.
    pub fn getattr_cached(&self, ino: InodeId) -> Option<pb::Attr> {
        None
    }

    /// Changes attributes; a new size is ordered with the data written before.
    pub async fn setattr(&self, ino: InodeId, set: SetAttr) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Creates a regular file and opens it; without `O_EXCL` one that exists is opened (and cut by `O_TRUNC`).
    pub async fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        new: NewFile,
    ) -> Result<(pb::Attr, Handle), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Creates a directory.
    pub async fn mkdir(
        &self,
        parent: InodeId,
        name: &[u8],
        new: NewNode,
    ) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Creates a FIFO, socket, device or regular file.
    pub async fn mknod(
        &self,
        parent: InodeId,
        name: &[u8],
        new: NewNode,
    ) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Creates a symbolic link.
    pub async fn symlink(
        &self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Gives an inode another name.
    pub async fn link(
        &self,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<pb::Attr, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Removes a name of anything but a directory. What is open here stays readable and writable.
    pub async fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Renames; `flags` are Linux's `RENAME_NOREPLACE` and `RENAME_EXCHANGE`.
    pub async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Opens a regular file; its attributes are asked for anew (close-to-open coherence).
    pub async fn open(&self, ino: InodeId, flags: i32) -> Result<Handle, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Reads; short only at the end of the file. The pieces are slices of what arrived, not copies.
    pub async fn read(&self, handle: Handle, off: u64, len: usize) -> Result<Vec<Bytes>, Errno> {
        Err(Errno::ENOSYS)
    }

    /// [`Client::read`] from the caches, if they hold all of it.
    pub fn read_cached(&self, handle: Handle, off: u64, len: usize) -> Option<Vec<Bytes>> {
        None
    }

    /// Buffers data, waiting for room; `off` is ignored by `O_APPEND` handles. Returns bytes taken: all.
    pub async fn write(&self, handle: Handle, off: u64, data: Bytes) -> Result<usize, Errno> {
        Err(Errno::ENOSYS)
    }

    /// [`Client::write`] if that needs no waiting.
    pub fn write_buffered(
        &self,
        handle: Handle,
        off: u64,
        data: &[u8],
    ) -> Option<Result<usize, Errno>> {
        None
    }

    /// close(2): what was written through any descriptor of the inode is committed when this returns.
    pub async fn flush(&self, handle: Handle) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// fsync(2): data durable on its chunkservers, extents and size committed by Raft.
    pub async fn fsync(&self, handle: Handle, datasync: bool) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// fsync(2) of a directory: every operation made before is committed.
    pub async fn fsync_dir(&self, ino: InodeId) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// The last reference to an open file is gone.
    pub async fn release(&self, handle: Handle) {}

    /// Entries after `cookie` (0 to begin) with their attributes, at most about `limit`, and whether that was
    /// the end. `.` and `..` are not among them.
    pub async fn readdir(
        &self,
        ino: InodeId,
        cookie: u64,
        limit: usize,
    ) -> Result<(Vec<pb::DirEntry>, bool), Errno> {
        Err(Errno::ENOSYS)
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: InodeId) -> Result<Bytes, Errno> {
        Err(Errno::ENOSYS)
    }

    /// The value of an extended attribute; `ENODATA` if there is none.
    pub async fn getxattr(&self, ino: InodeId, name: &[u8]) -> Result<Bytes, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Sets an extended attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub async fn setxattr(
        &self,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Names of the extended attributes.
    pub async fn listxattr(&self, ino: InodeId) -> Result<Vec<Bytes>, Errno> {
        Err(Errno::ENOSYS)
    }

    /// Removes an extended attribute; `ENODATA` if there is none.
    pub async fn removexattr(&self, ino: InodeId, name: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    /// Space and inode counts of the cluster.
    pub async fn statfs(&self) -> Result<pb::StatfsResult, Errno> {
        Err(Errno::ENOSYS)
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; `ENXIO` past the end.
    pub async fn lseek_data_hole(
        &self,
        handle: Handle,
        off: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        Err(Errno::ENOSYS)
    }

    /// The cluster that this client is connected to.
    pub fn cluster(&self) -> Uuid {
        Uuid([0; 16])
    }

    /// Forgets everything clean: attributes, entries, extents, data. For measurements with cold caches.
    pub fn drop_caches(&self) {}

    /// A caller who may not keep setuid and setgid bits writes through this handle: the next commit of the
    /// inode clears them. Does not wait.
    pub fn kill_priv(&self, handle: Handle) {}

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
