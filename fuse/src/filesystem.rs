//! The kernel's requests, one method each.

use crate::convert::{errno, file_attr, file_type, kind_of_mode, set_time};
use crate::counters::Request as Kind;
use crate::directory::{DOTS, Directories, Directory, change_of};
use crate::shared::{Granted, Shared, empty, pieces, xattr};
use crate::virtual_xattr::{self, Name};
use bytes::Bytes;
use fuser::*;
use mooseng::client::{Handle, Manner, NewFile, NewNode, SetAttr};
use mooseng::errno::Errno as Failure;
use mooseng::ids::InodeId;
use mooseng::limits::NAME_BYTES_MAX;
use mooseng::pb::{DirEntry, FileKind};
use mooseng::seam;
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest write request, bytes.
const MAX_WRITE: u32 = 1 << 20;
/// Background requests (read-ahead, releases, direct I/O) the kernel keeps under way.
const MAX_BACKGROUND: u16 = 64;
/// What statfs(2) counts in.
const STATFS_BLOCK: u32 = 4096;

/// Asked for at INIT where the kernel has it. The writeback cache is not: with it the kernel ignores the
/// cluster's sizes and times of files it has cached.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

pub(crate) struct MooseFilesystem {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    directories: Directories,
}

impl MooseFilesystem {
    pub(crate) fn new(shared: Arc<Shared>, runtime: tokio::runtime::Handle) -> MooseFilesystem {
        MooseFilesystem { shared, runtime, directories: Directories::default() }
    }

    fn count(&self, kind: Kind) {
        self.shared.counters.count(kind);
    }

    fn inline(&self) {
        self.shared.counters.count(Kind::Inline);
    }

    /// Carries a request out: here until it must wait, so that what it asks of others leaves on this thread,
    /// then on the runtime. The kernel bounds how many there are.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Shared>) -> F) {
        let _runtime = self.runtime.enter();
        seam::spawn_eager(work(self.shared.clone()));
    }
}

fn inode(ino: INodeNo) -> InodeId {
    InodeId(ino.0)
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

impl Filesystem for MooseFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut granted = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_BIG_WRITES;
        granted |= config.capabilities() & InitFlags::FUSE_MAX_PAGES;
        for flag in WANTED {
            match config.add_capabilities(flag) {
                Ok(()) => granted |= flag,
                Err(_) => tracing::info!("this kernel lacks {flag:?}"),
            }
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = self.shared.granted.set(Granted {
            flags: granted.iter_names().map(|(name, _)| name).collect(),
            max_write: MAX_WRITE,
            max_background: MAX_BACKGROUND,
            protocol: config.kernel_abi().to_string(),
        });
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Kind::Lookup);
        let parent = inode(parent);
        if let Some(outcome) = self.shared.client.lookup_cached(parent, name.as_bytes()) {
            self.inline();
            return self.shared.entry(reply, parent, outcome);
        }
        let name = bytes(name);
        self.spawn(|shared| async move {
            let outcome = shared.client.lookup(parent, &name).await;
            shared.entry(reply, parent, outcome);
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, _nlookup: u64) {
        self.count(Kind::Forget);
        self.shared.view.forget(ino.0);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Kind::Getattr);
        let ino = inode(ino);
        if let Some(attr) = self.shared.client.getattr_cached(ino) {
            self.inline();
            return self.shared.attr(reply, Ok(attr));
        }
        self.spawn(|shared| async move {
            let outcome = shared.client.getattr(ino).await;
            shared.attr(reply, outcome);
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Kind::Setattr);
        // fuser hides the kernel's own word for this: a change of size clears setuid and setgid unless the
        // caller is privileged. What a change of owner clears is the namespace's business.
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_priv: size.is_some() && request.uid() != 0,
        };
        self.spawn(|shared| async move {
            let outcome = shared.client.setattr(inode(ino), set).await;
            shared.attr(reply, outcome);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Kind::Readlink);
        self.spawn(|shared| async move {
            match shared.client.readlink(inode(ino)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Kind::Mknod);
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let (uid, gid) = (request.uid(), request.gid());
        let new = NewNode { kind, mode: mode & 0o7777, uid, gid, rdev };
        let name = bytes(name);
        self.spawn(|shared| async move {
            let outcome = shared.client.mknod(inode(parent), &name, new).await;
            shared.entry(reply, inode(parent), outcome);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Kind::Mkdir);
        let (uid, gid) = (request.uid(), request.gid());
        let new = NewNode { kind: FileKind::Directory, mode: mode & 0o7777, uid, gid, rdev: 0 };
        let name = bytes(name);
        self.spawn(|shared| async move {
            let outcome = shared.client.mkdir(inode(parent), &name, new).await;
            shared.entry(reply, inode(parent), outcome);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Kind::Unlink);
        let name = bytes(name);
        self.spawn(|shared| async move {
            empty(reply, shared.client.unlink(inode(parent), &name).await);
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Kind::Rmdir);
        let name = bytes(name);
        self.spawn(|shared| async move {
            empty(reply, shared.client.rmdir(inode(parent), &name).await);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.count(Kind::Symlink);
        let (uid, gid) = (request.uid(), request.gid());
        let (name, target) = (bytes(link_name), bytes(target.as_os_str()));
        self.spawn(|shared| async move {
            let outcome = shared.client.symlink(inode(parent), &name, &target, uid, gid).await;
            shared.entry(reply, inode(parent), outcome);
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Rename);
        if flags.contains(RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let (name, new_name, flags) = (bytes(name), bytes(new_name), flags.bits());
        self.spawn(|shared| async move {
            let (from, to) = (inode(parent), inode(new_parent));
            empty(reply, shared.client.rename(from, &name, to, &new_name, flags).await);
        });
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.count(Kind::Link);
        let name = bytes(new_name);
        self.spawn(|shared| async move {
            let outcome = shared.client.link(inode(ino), inode(new_parent), &name).await;
            shared.entry(reply, inode(new_parent), outcome);
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Kind::Open);
        self.spawn(|shared| async move {
            let outcome = shared.client.open(inode(ino), flags.0).await;
            shared.opened(inode(ino), flags.0, reply, outcome);
        });
    }

    fn read(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Kind::Read);
        let (handle, len) = (Handle(handle.0), size as usize);
        if let Some(data) = self.shared.client.read_cached(handle, offset, len) {
            self.inline();
            return pieces(reply, &data);
        }
        self.spawn(|shared| async move {
            match shared.client.read(handle, offset, len).await {
                Ok(data) => pieces(reply, &data),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Kind::Write);
        let handle = Handle(handle.0);
        // Pages that the kernel writes back belong where they are, whichever handle it takes for them; a write past
        // its cache says itself what it wants (RWF_DSYNC, O_APPEND set or cleared since the open).
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let wants = |flag: i32| !cached && flags.0 & flag != 0;
        let manner = Manner {
            appends: wants(libc::O_APPEND),
            synchronous: wants(libc::O_SYNC | libc::O_DSYNC),
        };
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            self.shared.client.kill_priv(handle);
        }
        let written = |reply: ReplyWrite, outcome: Result<usize, Failure>| match outcome {
            Ok(count) => reply.written(count as u32),
            Err(error) => reply.error(errno(error)),
        };
        if let Some(outcome) = self.shared.client.write_buffered(handle, offset, data, manner) {
            self.inline();
            return written(reply, outcome);
        }
        let data = Bytes::copy_from_slice(data);
        self.spawn(|shared| async move {
            let outcome = shared.client.write_so(handle, offset, data, manner).await;
            written(reply, outcome);
        });
    }

    fn flush(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Flush);
        self.spawn(|shared| async move {
            empty(reply, shared.client.flush(Handle(handle.0)).await);
        });
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Release);
        self.spawn(|shared| async move {
            shared.client.release(Handle(handle.0)).await;
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Fsync);
        self.spawn(|shared| async move {
            empty(reply, shared.client.fsync(Handle(handle.0), datasync).await);
        });
    }

    fn opendir(&self, _: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Kind::Opendir);
        reply.opened(FileHandle(self.directories.open()), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.count(Kind::Readdir);
        let directory = self.directories.get(handle.0);
        let cookie = offset.saturating_sub(DOTS);
        let change = change_of(&self.shared.client, inode(ino));
        if let Some(entries) = directory.take(cookie, self.shared.ttl, change) {
            self.inline();
            return fill(reply, ino, offset, &directory, entries);
        }
        self.spawn(|shared| async move {
            let found = directory.after(&shared.client, inode(ino), cookie, shared.ttl).await;
            match found {
                Ok(entries) => fill(reply, ino, offset, &directory, entries),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.count(Kind::Readdirplus);
        let directory = self.directories.get(handle.0);
        let cookie = offset.saturating_sub(DOTS);
        let change = change_of(&self.shared.client, inode(ino));
        if let Some(entries) = directory.take(cookie, self.shared.ttl, change) {
            self.inline();
            return fill_plus(reply, &self.shared, ino, offset, &directory, entries);
        }
        self.spawn(|shared| async move {
            let found = directory.after(&shared.client, inode(ino), cookie, shared.ttl).await;
            match found {
                Ok(entries) => fill_plus(reply, &shared, ino, offset, &directory, entries),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Releasedir);
        self.directories.close(handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Fsyncdir);
        self.spawn(|shared| async move {
            empty(reply, shared.client.fsync_dir(inode(ino)).await);
        });
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Kind::Statfs);
        self.spawn(|shared| async move {
            let space = match shared.client.statfs().await {
                Ok(space) => space,
                Err(error) => return reply.error(errno(error)),
            };
            let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK);
            let (total, free) = (blocks(space.total_bytes), blocks(space.free_bytes));
            let files_free = space.max_inodes.saturating_sub(space.inodes);
            let name = NAME_BYTES_MAX as u32;
            let (files, block) = (space.max_inodes, STATFS_BLOCK);
            reply.statfs(total, free, free, files, files_free, block, name, block);
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Setxattr);
        match virtual_xattr::parse(name.as_bytes()) {
            Some(Name::DropCaches) => {
                self.shared.client.drop_caches();
                return reply.ok();
            }
            Some(Name::Acl) => return reply.error(Errno::EOPNOTSUPP),
            Some(_) => return reply.error(Errno::EPERM),
            None => {}
        }
        let (name, value) = (bytes(name), Bytes::copy_from_slice(value));
        self.spawn(|shared| async move {
            let outcome = shared.client.setxattr(inode(ino), &name, &value, flags as u32).await;
            empty(reply, outcome);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Kind::Getxattr);
        match virtual_xattr::parse(name.as_bytes()) {
            Some(Name::Mount) => return xattr(reply, size, Ok(self.shared.about.as_bytes())),
            Some(Name::Stats) => return xattr(reply, size, Ok(self.shared.stats().as_bytes())),
            Some(Name::Acl) => return reply.error(Errno::EOPNOTSUPP),
            Some(_) => return reply.error(Errno::ENODATA),
            None => {}
        }
        let name = bytes(name);
        self.spawn(|shared| async move {
            let outcome = shared.client.getxattr(inode(ino), &name).await;
            xattr(reply, size, outcome.as_deref().map_err(|error| *error));
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Kind::Listxattr);
        self.spawn(|shared| async move {
            let outcome = shared.client.listxattr(inode(ino)).await.map(|names| {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                list
            });
            xattr(reply, size, outcome.as_deref().map_err(|error| *error));
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Kind::Removexattr);
        match virtual_xattr::parse(name.as_bytes()) {
            Some(Name::Acl) => return reply.error(Errno::EOPNOTSUPP),
            Some(_) => return reply.error(Errno::ENODATA),
            None => {}
        }
        let name = bytes(name);
        self.spawn(|shared| async move {
            empty(reply, shared.client.removexattr(inode(ino), &name).await);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Kind::Create);
        let (uid, gid) = (request.uid(), request.gid());
        // A file that somebody else has made there just now is opened by an ordinary open, which checks permissions: the
        // kernel looks the name up again when it hears ESTALE.
        let exclusive = flags & libc::O_EXCL != 0;
        let new = NewFile { mode: mode & 0o7777, uid, gid, flags: flags | libc::O_EXCL };
        let name = bytes(name);
        self.spawn(|shared| async move {
            let outcome = match shared.client.create(inode(parent), &name, new).await {
                Err(Failure::EEXIST) if !exclusive => Err(Failure::ESTALE),
                other => other,
            };
            shared.created(inode(parent), flags, reply, outcome);
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Kind::Other);
        reply.error(Errno::ENOTTY);
    }

    /// ENOSYS makes the kernel answer EOPNOTSUPP from now on without asking.
    fn fallocate(
        &self,
        _: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Other);
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Kind::Lseek);
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.spawn(|shared| async move {
            let handle = Handle(handle.0);
            match shared.client.lseek_data_hole(handle, offset, whence).await {
                Ok(at) => reply.offset(at as i64),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    /// ENOSYS makes the kernel copy through the page cache from now on without asking.
    fn copy_file_range(
        &self,
        _: &Request,
        _ino_in: INodeNo,
        _handle_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _handle_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Kind::Other);
        reply.error(Errno::ENOSYS);
    }
}

fn fill(
    mut reply: ReplyDirectory,
    ino: INodeNo,
    offset: u64,
    directory: &Directory,
    mut entries: std::collections::VecDeque<DirEntry>,
) {
    let mut full = false;
    for (at, dot) in dots(offset) {
        full = full || reply.add(ino, at, FileType::Directory, dot);
    }
    let mut after = offset.saturating_sub(DOTS);
    while !full && let Some(entry) = entries.front() {
        let name = OsStr::from_bytes(&entry.name);
        full = reply.add(INodeNo(entry.inode), entry.cookie + DOTS, file_type(entry.kind()), name);
        if !full {
            after = entry.cookie;
            entries.pop_front();
        }
    }
    directory.keep(after, entries);
    reply.ok();
}

fn fill_plus(
    mut reply: ReplyDirectoryPlus,
    shared: &Shared,
    ino: INodeNo,
    offset: u64,
    directory: &Directory,
    mut entries: std::collections::VecDeque<DirEntry>,
) {
    let mut full = false;
    for (at, dot) in dots(offset) {
        // The kernel takes nothing but name and kind of these two.
        let attr = file_attr(&mooseng::pb::Attr {
            inode: ino.0,
            kind: FileKind::Directory.into(),
            ..Default::default()
        });
        full = full || reply.add(ino, at, dot, &shared.ttl, &attr, Generation(0));
    }
    let mut after = offset.saturating_sub(DOTS);
    while !full && let Some(entry) = entries.front() {
        // What was fetched with the name may be older than what this mount did to the file since.
        let known = shared.client.known_attr(InodeId(entry.inode));
        let attr = known.or(entry.attr).unwrap_or_default();
        let name = OsStr::from_bytes(&entry.name);
        let (child, at) = (INodeNo(entry.inode), entry.cookie + DOTS);
        let ttl = shared.ttl_of(Some(inode(ino)), entry.inode);
        full = reply.add(child, at, name, &ttl, &file_attr(&attr), Generation(0));
        if !full {
            shared.view.told(attr.inode, attr.change);
            after = entry.cookie;
            entries.pop_front();
        }
    }
    directory.keep(after, entries);
    reply.ok();
}

/// Which of `.` and `..` come after `offset`, with their own offsets.
fn dots(offset: u64) -> impl Iterator<Item = (u64, &'static str)> {
    [(1, "."), (2, "..")].into_iter().filter(move |(at, _)| *at > offset)
}
