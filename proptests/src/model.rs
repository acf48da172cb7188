//! The model: a filesystem whose every rule is spelled out in the most obvious way, on plain maps. It shares
//! no code with the state machine that it judges.

use crate::ops::{FsOp, FsOut, Ino, Kind, Stat};
use mooseng::errno::Errno;
use std::collections::BTreeMap;

/// The root directory's number.
pub const ROOT: Ino = 1;
const NAME_MAX: usize = 255;
const TARGET_MAX: usize = 4095;
const FILE_MAX: u64 = 1 << 60;
const XATTR_VALUE_MAX: usize = 65536;
const XATTRS_MAX: usize = 256;
const LINKS_MAX: u32 = 65_000;

/// One inode.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    /// Regular files.
    pub data: Vec<u8>,
    /// Symlinks.
    pub target: Vec<u8>,
    /// Directories.
    pub entries: BTreeMap<Vec<u8>, Ino>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Handles open on it.
    pub opens: u32,
}

/// The filesystem. Set `now` before an operation: it is what the operation's timestamps become.
#[derive(Clone, Debug)]
pub struct ModelFs {
    /// Nanoseconds since 1970 of the next operation.
    pub now: i64,
    nodes: BTreeMap<Ino, Node>,
    handles: BTreeMap<u64, (usize, Ino)>,
    next_ino: Ino,
    next_handle: u64,
}

type Outcome = Result<FsOut, Errno>;

impl Default for ModelFs {
    fn default() -> ModelFs {
        ModelFs::new(0)
    }
}

impl ModelFs {
    /// An empty filesystem: a root directory of mode 0755.
    pub fn new(now: i64) -> ModelFs {
        let root = Node { nlink: 2, ..node(Kind::Directory, 0o755, (0, 0), now) };
        let nodes = BTreeMap::from([(ROOT, root)]);
        ModelFs { now, nodes, handles: BTreeMap::new(), next_ino: ROOT + 1, next_handle: 1 }
    }

    /// Runs one operation.
    pub fn apply(&mut self, op: &FsOp) -> Outcome {
        match op {
            FsOp::Lookup { parent, name } => self.lookup(*parent, name),
            FsOp::Getattr { ino } => self.stat(*ino),
            FsOp::Create { parent, name, ino, kind, mode, uid, gid, target } => {
                let mut new = node(*kind, mode & 0o7777, (*uid, *gid), self.now);
                new.target.clone_from(target);
                self.create(*parent, name, *ino, new)
            }
            FsOp::Link { ino, parent, name } => self.link(*ino, *parent, name),
            FsOp::Unlink { parent, name } => self.unlink(*parent, name),
            FsOp::Rmdir { parent, name } => self.rmdir(*parent, name),
            FsOp::Rename { parent, name, new_parent, new_name, flags } => {
                self.rename((*parent, name), (*new_parent, new_name), *flags)
            }
            FsOp::Chmod { ino, mode } => self.change(*ino, |node| node.mode = mode & 0o7777),
            FsOp::Chown { ino, uid, gid } => self.chown(*ino, *uid, *gid),
            FsOp::Truncate { ino, size } => self.truncate(*ino, *size),
            FsOp::Utimens { ino, atime, mtime } => self.change(*ino, |node| {
                node.atime = atime.unwrap_or(node.atime);
                node.mtime = mtime.unwrap_or(node.mtime);
            }),
            FsOp::Open { client, ino, handle } => self.open(*client, *ino, *handle),
            FsOp::Close { handle } => self.close(*handle),
            FsOp::Read { handle, off, len } => self.read(*handle, *off, *len),
            FsOp::Write { handle, off, data } => self.write(*handle, *off, data),
            FsOp::Fsync { handle } => self.handle(*handle).map(|_| FsOut::Unit),
            FsOp::Readdir { ino } => self.readdir(*ino),
            FsOp::Readlink { ino } => self.readlink(*ino),
            FsOp::Setxattr { ino, name, value, flags } => self.setxattr(*ino, name, value, *flags),
            FsOp::Getxattr { ino, name } => self.getxattr(*ino, name),
            FsOp::Listxattr { ino } => {
                Ok(FsOut::Names(self.node(*ino)?.xattrs.keys().cloned().collect()))
            }
            FsOp::Removexattr { ino, name } => self.removexattr(*ino, name),
        }
    }

    /// A client is gone: its handles are closed.
    pub fn end_client(&mut self, client: usize) {
        let mine = self.handles.iter().filter(|(_, (owner, _))| *owner == client);
        for handle in mine.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            let _ = self.close(handle);
        }
    }

    /// A client holds an inode of any kind open, by a fresh handle.
    pub fn hold(&mut self, client: usize, ino: Ino) -> Result<u64, Errno> {
        self.node_mut(ino)?.opens += 1;
        let handle = self.next_handle;
        self.handles.insert(handle, (client, ino));
        self.next_handle += 1;
        Ok(handle)
    }

    // ---- looking around, for generators and comparisons ----

    /// Every inode, by number.
    pub fn nodes(&self) -> &BTreeMap<Ino, Node> {
        &self.nodes
    }

    /// Every open handle: its client and inode.
    pub fn handles(&self) -> &BTreeMap<u64, (usize, Ino)> {
        &self.handles
    }

    /// The next inode number to give; numbers are never used twice.
    pub fn fresh_ino(&self) -> Ino {
        self.next_ino
    }

    /// The next handle to give.
    pub fn fresh_handle(&self) -> u64 {
        self.next_handle
    }

    /// The directory that holds this directory.
    pub fn parent_of(&self, dir: Ino) -> Option<Ino> {
        let holds =
            |node: &Node| node.kind == Kind::Directory && node.entries.values().any(|i| *i == dir);
        self.nodes.iter().find(|(_, node)| holds(node)).map(|(ino, _)| *ino)
    }

    // ---- helpers ----

    fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::ESTALE)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    fn dir(&self, ino: Ino) -> Result<&Node, Errno> {
        let node = self.node(ino)?;
        if node.kind == Kind::Directory { Ok(node) } else { Err(Errno::ENOTDIR) }
    }

    /// A directory to change a name in.
    fn live_dir(&self, ino: Ino, name: &[u8]) -> Result<&Node, Errno> {
        let dir = self.dir(ino)?;
        if dir.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let forbidden = name.is_empty() || name == b"." || name == b"..";
        if forbidden || name.contains(&b'/') || name.contains(&0) {
            return Err(Errno::EINVAL);
        }
        Ok(dir)
    }

    fn handle(&self, handle: u64) -> Result<Ino, Errno> {
        self.handles.get(&handle).map(|(_, ino)| *ino).ok_or(Errno::EBADF)
    }

    fn stat(&self, ino: Ino) -> Outcome {
        let node = self.node(ino)?;
        let size = match node.kind {
            Kind::Regular => node.data.len() as u64,
            Kind::Symlink => node.target.len() as u64,
            _ => 0,
        };
        Ok(FsOut::Stat(Stat {
            ino,
            kind: node.kind,
            mode: node.mode,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            size,
            atime: node.atime,
            mtime: node.mtime,
            ctime: node.ctime,
        }))
    }

    fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Node)) -> Outcome {
        let now = self.now;
        let node = self.node_mut(ino)?;
        node.ctime = now;
        change(node);
        self.stat(ino)
    }

    /// The directory's content changed.
    fn touch(&mut self, dir: Ino) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.mtime = now;
            node.ctime = now;
        }
    }

    fn drop_if_unused(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|node| node.nlink == 0 && node.opens == 0) {
            self.nodes.remove(&ino);
        }
    }

    /// An inode lost a name.
    fn lose_name(&mut self, ino: Ino) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.ctime = now;
            node.nlink = if node.kind == Kind::Directory { 0 } else { node.nlink - 1 };
        }
        self.drop_if_unused(ino);
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.kind == Kind::Directory)
    }

    /// Directories' links: their own two and one from each subdirectory.
    fn recount(&mut self, dir: Ino) {
        let Some(node) = self.nodes.get(&dir) else { return };
        let subdirs = node.entries.values().filter(|ino| self.is_dir(**ino)).count();
        let links = 2 + u32::try_from(subdirs).unwrap_or(u32::MAX);
        if let Some(node) = self.nodes.get_mut(&dir)
            && node.nlink > 0
        {
            node.nlink = links;
        }
    }

    // ---- names ----

    fn lookup(&self, parent: Ino, name: &[u8]) -> Outcome {
        let dir = self.dir(parent)?;
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        match name {
            b"." => self.stat(parent),
            b".." => self.stat(self.parent_of(parent).unwrap_or(parent)),
            _ => self.stat(*dir.entries.get(name).ok_or(Errno::ENOENT)?),
        }
    }

    fn create(&mut self, parent: Ino, name: &[u8], ino: Ino, mut new: Node) -> Outcome {
        let dir = self.live_dir(parent, name)?;
        if dir.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if new.kind == Kind::Directory && dir.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK);
        }
        if new.kind == Kind::Symlink && new.target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if new.target.len() > TARGET_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if dir.mode & 0o2000 != 0 {
            new.gid = dir.gid;
            if new.kind == Kind::Directory {
                new.mode |= 0o2000;
            }
        }
        new.nlink = if new.kind == Kind::Directory { 2 } else { 1 };
        self.nodes.insert(ino, new);
        self.next_ino = self.next_ino.max(ino + 1);
        self.node_mut(parent)?.entries.insert(name.to_vec(), ino);
        self.recount(parent);
        self.touch(parent);
        self.stat(ino)
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Outcome {
        let node = self.node(ino)?;
        let dir = self.live_dir(parent, name)?;
        if dir.entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if node.kind == Kind::Directory {
            return Err(Errno::EPERM);
        }
        if node.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if node.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK);
        }
        self.node_mut(parent)?.entries.insert(name.to_vec(), ino);
        self.touch(parent);
        self.change(ino, |node| node.nlink += 1)
    }

    fn unlink(&mut self, parent: Ino, name: &[u8]) -> Outcome {
        let ino = *self.live_dir(parent, name)?.entries.get(name).ok_or(Errno::ENOENT)?;
        if self.is_dir(ino) {
            return Err(Errno::EISDIR);
        }
        self.node_mut(parent)?.entries.remove(name);
        self.touch(parent);
        self.lose_name(ino);
        Ok(FsOut::Unit)
    }

    fn rmdir(&mut self, parent: Ino, name: &[u8]) -> Outcome {
        let ino = *self.live_dir(parent, name)?.entries.get(name).ok_or(Errno::ENOENT)?;
        if !self.is_dir(ino) {
            return Err(Errno::ENOTDIR);
        }
        if !self.node(ino)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.node_mut(parent)?.entries.remove(name);
        self.recount(parent);
        self.touch(parent);
        self.lose_name(ino);
        Ok(FsOut::Unit)
    }

    /// Whether `ino` is `top` or somewhere below it.
    fn is_inside(&self, ino: Ino, top: Ino) -> bool {
        ino == top || self.parent_of(ino).is_some_and(|parent| self.is_inside(parent, top))
    }

    fn rename(&mut self, old: (Ino, &[u8]), new: (Ino, &[u8]), flags: u32) -> Outcome {
        if flags > 2 {
            return Err(Errno::EINVAL);
        }
        let (noreplace, exchange) = (flags == 1, flags == 2);
        // Both directories first, then both names.
        self.live_dir(old.0, b"x")?;
        self.live_dir(new.0, b"x")?;
        let source = self.live_dir(old.0, old.1)?.entries.get(old.1).copied();
        let target = self.live_dir(new.0, new.1)?.entries.get(new.1).copied();
        let source = source.ok_or(Errno::ENOENT)?;
        if noreplace && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        if self.is_dir(source) && self.is_inside(new.0, source) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target {
            if self.is_dir(target) && self.is_inside(old.0, target) {
                return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            if target == source {
                return Ok(FsOut::Unit);
            }
            if !exchange {
                self.may_replace(source, target)?;
            }
        }
        self.node_mut(old.0)?.entries.remove(old.1);
        self.node_mut(new.0)?.entries.insert(new.1.to_vec(), source);
        self.change(source, |_| ())?;
        if let Some(target) = target {
            if exchange {
                self.node_mut(old.0)?.entries.insert(old.1.to_vec(), target);
                self.change(target, |_| ())?;
            } else {
                self.lose_name(target);
            }
        }
        for dir in [old.0, new.0] {
            self.recount(dir);
            self.touch(dir);
        }
        Ok(FsOut::Unit)
    }

    fn may_replace(&self, source: Ino, target: Ino) -> Result<(), Errno> {
        match (self.is_dir(source), self.is_dir(target)) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.node(target)?.entries.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn readdir(&self, ino: Ino) -> Outcome {
        let entries = self.dir(ino)?.entries.iter();
        let with_kind = entries.map(|(name, ino)| Ok((name.clone(), *ino, self.node(*ino)?.kind)));
        Ok(FsOut::Entries(with_kind.collect::<Result<_, Errno>>()?))
    }

    fn readlink(&self, ino: Ino) -> Outcome {
        let node = self.node(ino)?;
        if node.kind == Kind::Symlink {
            Ok(FsOut::Data(node.target.clone()))
        } else {
            Err(Errno::EINVAL)
        }
    }

    // ---- attributes and content ----

    fn chown(&mut self, ino: Ino, uid: Option<u32>, gid: Option<u32>) -> Outcome {
        self.change(ino, |node| {
            if node.kind != Kind::Directory && (uid.is_some() || gid.is_some()) {
                node.mode &= !0o4000;
                if node.mode & 0o010 != 0 {
                    node.mode &= !0o2000;
                }
                node.xattrs.remove(&b"security.capability"[..]);
            }
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
        })
    }

    fn regular(&self, ino: Ino) -> Result<(), Errno> {
        match self.node(ino)?.kind {
            Kind::Regular => Ok(()),
            Kind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn truncate(&mut self, ino: Ino, size: u64) -> Outcome {
        self.regular(ino)?;
        if size > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        let now = self.now;
        self.change(ino, |node| {
            node.data.resize(usize::try_from(size).expect("small files only"), 0);
            node.mtime = now;
        })
    }

    fn open(&mut self, client: usize, ino: Ino, handle: u64) -> Outcome {
        self.regular(ino)?;
        self.node_mut(ino)?.opens += 1;
        self.handles.insert(handle, (client, ino));
        self.next_handle = self.next_handle.max(handle + 1);
        Ok(FsOut::Unit)
    }

    fn close(&mut self, handle: u64) -> Outcome {
        let ino = self.handle(handle)?;
        self.handles.remove(&handle);
        self.node_mut(ino)?.opens -= 1;
        self.drop_if_unused(ino);
        Ok(FsOut::Unit)
    }

    fn read(&self, handle: u64, off: u64, len: u64) -> Outcome {
        let data = &self.node(self.handle(handle)?)?.data;
        let size = data.len() as u64;
        let (from, to) = (off.min(size), off.saturating_add(len).min(size));
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        Ok(FsOut::Data(data[range].to_vec()))
    }

    fn write(&mut self, handle: u64, off: u64, bytes: &[u8]) -> Outcome {
        let ino = self.handle(handle)?;
        let end = off.checked_add(bytes.len() as u64).filter(|end| *end <= FILE_MAX);
        let end = usize::try_from(end.ok_or(Errno::EFBIG)?).expect("small files only");
        if bytes.is_empty() {
            return Ok(FsOut::Unit);
        }
        let now = self.now;
        let node = self.node_mut(ino)?;
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[end - bytes.len()..end].copy_from_slice(bytes);
        node.mtime = now;
        node.ctime = now;
        Ok(FsOut::Unit)
    }

    // ---- xattrs ----

    fn setxattr(&mut self, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Outcome {
        if flags > 2 {
            return Err(Errno::EINVAL);
        }
        vet_xattr(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(Errno::E2BIG);
        }
        let node = self.node(ino)?;
        let exists = node.xattrs.contains_key(name);
        if flags == 1 && exists {
            return Err(Errno::EEXIST);
        }
        if flags == 2 && !exists {
            return Err(Errno::ENODATA);
        }
        if !exists && node.xattrs.len() >= XATTRS_MAX {
            return Err(Errno::ENOSPC);
        }
        self.change(ino, |node| drop(node.xattrs.insert(name.to_vec(), value.to_vec())))?;
        Ok(FsOut::Unit)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Outcome {
        vet_xattr(name)?;
        let value = self.node(ino)?.xattrs.get(name);
        Ok(FsOut::Data(value.ok_or(Errno::ENODATA)?.clone()))
    }

    fn removexattr(&mut self, ino: Ino, name: &[u8]) -> Outcome {
        vet_xattr(name)?;
        if !self.node(ino)?.xattrs.contains_key(name) {
            return Err(Errno::ENODATA);
        }
        self.change(ino, |node| drop(node.xattrs.remove(name)))?;
        Ok(FsOut::Unit)
    }
}

fn vet_xattr(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
        return Err(Errno::ERANGE);
    }
    Ok(())
}

fn node(kind: Kind, mode: u32, (uid, gid): (u32, u32), now: i64) -> Node {
    Node {
        kind,
        mode,
        uid,
        gid,
        nlink: 0,
        atime: now,
        mtime: now,
        ctime: now,
        data: Vec::new(),
        target: Vec::new(),
        entries: BTreeMap::new(),
        xattrs: BTreeMap::new(),
        opens: 0,
    }
}
