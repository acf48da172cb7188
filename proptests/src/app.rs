//! An application that does the model's operations on a mount, in a real cluster or a simulated one.

use crate::{FsOp, FsOut, Ino, ModelFs, Stat};
use bytes::Bytes;
use mooseng::client::{Client, Handle, NewFile, NewNode, SetAttr, SetTime};
use mooseng::errno::Errno;
use mooseng::ids::InodeId;
use mooseng::pb::{self, FileKind};
use std::collections::BTreeMap;
use std::sync::Arc;

const O_RDONLY: i32 = 0;
const O_RDWR: i32 = 2;
const O_CREAT: i32 = 0o100;
const O_EXCL: i32 = 0o200;

/// What the application knows: which real inode and handle the model's numbers stand for.
pub struct App {
    /// The mount.
    pub client: Arc<Client>,
    inos: BTreeMap<Ino, u64>,
    handles: BTreeMap<u64, Handle>,
}

impl App {
    /// An application that has done nothing yet, on an empty filesystem.
    pub fn new(client: Arc<Client>) -> App {
        App { client, inos: BTreeMap::from([(1, 1)]), handles: BTreeMap::new() }
    }

    /// The same files through another mount.
    pub fn through(&self, client: Arc<Client>) -> App {
        App { client, inos: self.inos.clone(), handles: BTreeMap::new() }
    }

    /// Another mount takes the place of this one, whose open files are gone.
    pub fn remount(&mut self, client: Arc<Client>) {
        self.handles.clear();
        self.client = client;
    }

    /// Syncs whatever is open.
    pub async fn sync(&self) -> Result<(), Errno> {
        for handle in self.handles.values() {
            self.client.fsync(*handle, false).await?;
        }
        Ok(())
    }

    fn real(&self, ino: Ino) -> InodeId {
        InodeId(self.inos.get(&ino).copied().unwrap_or(1 << 50))
    }

    /// Times are the leader's and not compared here.
    fn stat(&self, attr: &pb::Attr) -> FsOut {
        let ino = self.inos.iter().find(|(_, real)| **real == attr.inode);
        FsOut::Stat(Stat::of(*ino.expect("a known inode").0, attr)).timeless()
    }

    fn handle(&self, handle: u64) -> Result<Handle, Errno> {
        self.handles.get(&handle).copied().ok_or(Errno::EBADF)
    }

    /// One operation of the model, with the answer in its terms: no times, which are the leader's.
    pub async fn run(&mut self, op: &FsOp) -> Result<FsOut, Errno> {
        let client = self.client.clone();
        let attr = match op {
            FsOp::Lookup { parent, name } => client.lookup(self.real(*parent), name).await?,
            FsOp::Getattr { ino } => client.getattr(self.real(*ino)).await?,
            FsOp::Create { .. } => self.create(op).await?,
            FsOp::Link { ino, parent, name } => {
                client.link(self.real(*ino), self.real(*parent), name).await?
            }
            FsOp::Chmod { ino, mode } => {
                let set = SetAttr { mode: Some(*mode & 0o7777), ..SetAttr::default() };
                client.setattr(self.real(*ino), set).await?
            }
            FsOp::Chown { ino, uid, gid } => {
                let set = SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() };
                client.setattr(self.real(*ino), set).await?
            }
            FsOp::Truncate { ino, size } => {
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                client.setattr(self.real(*ino), set).await?
            }
            FsOp::Utimens { ino, atime, mtime } => {
                let (atime, mtime) = (atime.map(SetTime::At), mtime.map(SetTime::At));
                let set = SetAttr { atime, mtime, ..SetAttr::default() };
                let attr = client.setattr(self.real(*ino), set).await?;
                assert!(atime.is_none_or(|time| time == SetTime::At(attr.atime_ns)));
                assert!(mtime.is_none_or(|time| time == SetTime::At(attr.mtime_ns)));
                attr
            }
            other => return self.run_other(other).await,
        };
        Ok(self.stat(&attr))
    }

    async fn create(&mut self, op: &FsOp) -> Result<pb::Attr, Errno> {
        let FsOp::Create { parent, name, ino, kind, mode, uid, gid, target } = op else {
            panic!("{op:?}");
        };
        let (parent, mode, uid, gid) = (self.real(*parent), *mode, *uid, *gid);
        let new = NewNode { kind: *kind, mode, uid, gid, rdev: 0 };
        let attr = match kind {
            FileKind::Regular => {
                let flags = O_CREAT | O_EXCL | O_RDWR;
                let new = NewFile { mode, uid, gid, flags };
                let (attr, handle) = self.client.create(parent, name, new).await?;
                self.client.release(handle).await;
                attr
            }
            FileKind::Directory => self.client.mkdir(parent, name, new).await?,
            FileKind::Symlink => self.client.symlink(parent, name, target, uid, gid).await?,
            _ => self.client.mknod(parent, name, new).await?,
        };
        self.inos.insert(*ino, attr.inode);
        Ok(attr)
    }

    async fn run_other(&mut self, op: &FsOp) -> Result<FsOut, Errno> {
        let client = self.client.clone();
        match op {
            FsOp::Unlink { parent, name } => client.unlink(self.real(*parent), name).await?,
            FsOp::Rmdir { parent, name } => client.rmdir(self.real(*parent), name).await?,
            FsOp::Rename { parent, name, new_parent, new_name, flags } => {
                let (from, to) = (self.real(*parent), self.real(*new_parent));
                client.rename(from, name, to, new_name, *flags).await?;
            }
            FsOp::Open { ino, handle, .. } => {
                let open = client.open(self.real(*ino), O_RDWR).await?;
                self.handles.insert(*handle, open);
            }
            FsOp::Close { handle } => {
                let open = self.handles.remove(handle).ok_or(Errno::EBADF)?;
                client.flush(open).await?;
                client.release(open).await;
            }
            FsOp::Read { handle, off, len } => {
                return self.read(*handle, *off, *len).await.map(FsOut::Data);
            }
            FsOp::Write { handle, off, data } => {
                let written =
                    client.write(self.handle(*handle)?, *off, Bytes::copy_from_slice(data));
                assert_eq!(written.await?, data.len());
            }
            FsOp::Fsync { handle } => client.fsync(self.handle(*handle)?, false).await?,
            FsOp::Setxattr { ino, name, value, flags } => {
                client.setxattr(self.real(*ino), name, value, *flags).await?;
            }
            FsOp::Removexattr { ino, name } => client.removexattr(self.real(*ino), name).await?,
            look => return self.look(look).await,
        }
        Ok(FsOut::Unit)
    }

    async fn look(&self, op: &FsOp) -> Result<FsOut, Errno> {
        let client = &self.client;
        Ok(match op {
            FsOp::Readdir { ino } => FsOut::Entries(self.readdir(self.real(*ino)).await?),
            FsOp::Readlink { ino } => FsOut::Data(client.readlink(self.real(*ino)).await?.to_vec()),
            FsOp::Getxattr { ino, name } => {
                FsOut::Data(client.getxattr(self.real(*ino), name).await?.to_vec())
            }
            FsOp::Listxattr { ino } => {
                let names = client.listxattr(self.real(*ino)).await?;
                FsOut::Names(names.iter().map(|name| name.to_vec()).collect())
            }
            other => panic!("{other:?}"),
        })
    }

    async fn read(&self, handle: u64, off: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let len = usize::try_from(len).expect("a small read");
        Ok(self.client.read(self.handle(handle)?, off, len).await?.concat())
    }

    async fn readdir(&self, dir: InodeId) -> Result<Vec<(Vec<u8>, Ino, FileKind)>, Errno> {
        let (mut cookie, mut entries) = (0, Vec::new());
        loop {
            let (page, end) = self.client.readdir(dir, cookie, 3).await?;
            for entry in page {
                cookie = entry.cookie;
                let FsOut::Stat(stat) = self.stat(&entry.attr.expect("attributes")) else {
                    panic!("no attributes");
                };
                entries.push((entry.name.to_vec(), stat.ino, entry.kind()));
            }
            if end {
                entries.sort();
                return Ok(entries);
            }
        }
    }

    /// Whether everything that has a name, seen through this mount, is the model's; what is not.
    pub async fn compare(&mut self, model: &ModelFs) -> Result<(), String> {
        for (ino, node) in model.nodes().iter().filter(|(_, node)| node.nlink > 0) {
            self.same(FsOp::Getattr { ino: *ino }, model).await?;
            match node.kind {
                FileKind::Regular => {
                    let data = self.whole(*ino, node.data.len() + 1).await;
                    let data = data.map_err(|errno| format!("reading {ino}: {errno}"))?;
                    if data != node.data {
                        return Err(format!("the bytes of {ino} differ"));
                    }
                }
                FileKind::Directory => self.same(FsOp::Readdir { ino: *ino }, model).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn same(&mut self, op: FsOp, model: &ModelFs) -> Result<(), String> {
        let found = self.run(&op).await;
        let expected = model.clone().apply(&op).map(FsOut::timeless);
        if found == expected { Ok(()) } else { Err(format!("{op:?}: {found:?}, not {expected:?}")) }
    }

    async fn whole(&self, ino: Ino, len: usize) -> Result<Vec<u8>, Errno> {
        let handle = self.client.open(self.real(ino), O_RDONLY).await?;
        let data = self.client.read(handle, 0, len).await;
        self.client.release(handle).await;
        Ok(data?.concat())
    }
}

/// Calls that the kernel never passes on: it opens FIFOs and sockets itself, does not cut them, and has no way to open
/// or cut by name what is gone (the masters may know it until the lazy end of its last use is told).
pub fn kernel_answers(model: &ModelFs, op: &FsOp) -> bool {
    let (FsOp::Open { ino, .. } | FsOp::Truncate { ino, .. }) = op else { return false };
    model.nodes().get(ino).is_none_or(|node| node.kind != FileKind::Regular)
}

/// Of an inode that it saw unlinked a mount may show the last attributes: fstat(2) of what is still open.
pub fn is_last_glimpse(op: &FsOp, found: &Result<FsOut, Errno>) -> bool {
    let looks = matches!(op, FsOp::Getattr { .. } | FsOp::Chown { uid: None, gid: None, .. });
    looks && matches!(found, Ok(FsOut::Stat(stat)) if stat.nlink == 0)
}
