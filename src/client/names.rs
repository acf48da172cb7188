//! Operations on names and attributes.

use super::removals::Removal;
use super::types::{Handle, NewFile, NewNode, SetAttr, SetTime};
use super::{Client, inode::Inode};
use crate::errno::Errno;
use crate::ids::InodeId;
use crate::limits::FILE_BYTES_MAX;
use crate::pb::{self, Attr, FileKind, op::Op, query::Query, query_result::Result as Found};
use crate::seam;
use bytes::Bytes;
use std::sync::Arc;

/// Entries of a directory asked for at a time, with attributes.
const PAGE_ENTRIES: usize = 1024;
/// An inode that stays open for longer is kept by the masters even if somebody else removes its last name.
const PIN_AFTER: std::time::Duration = std::time::Duration::from_millis(200);

impl Client {
    // ---- looking ----

    /// Finds a name in a directory.
    pub async fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr, Errno> {
        if let Some(known) = self.meta.find(parent, name) {
            return known;
        }
        let query = Query::Lookup(pb::LookupQuery {
            parent: parent.get(),
            name: Bytes::copy_from_slice(name),
        });
        let answer = self.queries.ask_raw(query).await?;
        let found = match &answer.result.result {
            Some(Found::Attr(attr)) if answer.result.errno == 0 => Some(*attr),
            _ => None,
        };
        let errno = answer.result.errno;
        let dir = answer.result.dir.as_ref();
        if found.is_some() || errno == Errno::ENOENT.get() {
            self.meta.looked_up(parent, name, dir, found.as_ref(), answer.asked);
            self.maybe_prefetch(parent, found.is_some());
        }
        Errno::check(errno)?;
        let attr = found.ok_or(Errno::EIO)?;
        let view = self.meta.table.get(InodeId(attr.inode)).and_then(|inode| inode.lock().view());
        Ok(view.unwrap_or(attr))
    }

    /// [`Client::lookup`] from the caches: `None` if they do not know (also whether the name is absent).
    pub fn lookup_cached(&self, parent: InodeId, name: &[u8]) -> Option<Result<Attr, Errno>> {
        self.meta.find(parent, name)
    }

    /// How long what this mount knows of an inode, and with `parent` of its name there, may be used without asking:
    /// nobody above may be told to use it for longer (rule E4).
    pub fn usable_for(&self, parent: Option<InodeId>, ino: InodeId) -> std::time::Duration {
        self.meta.usable_for(parent, ino)
    }

    /// When lookups in a directory keep having to ask, reads a page of it with attributes.
    fn maybe_prefetch(&self, parent: InodeId, found: bool) {
        let Some(inode) = self.meta.table.get(parent) else { return };
        let now = seam::now();
        let cookie = inode.lock().dir().missed(found, now, self.limits.attr_ttl);
        let (Some(cookie), Some(me)) = (cookie, self.me.upgrade()) else { return };
        crate::mark!("directory read ahead");
        self.runtime.spawn(async move {
            let _ = me.page(parent, cookie, PAGE_ENTRIES).await;
            inode.lock().dir().read_done();
        });
    }

    /// The attributes of an inode, with what this mount has written and not yet committed.
    pub async fn getattr(&self, ino: InodeId) -> Result<Attr, Errno> {
        match self.getattr_cached(ino) {
            Some(attr) => Ok(attr),
            None => self.getattr_fresh(ino).await,
        }
    }

    /// [`Client::getattr`] from the cache, if it may still be used.
    pub fn getattr_cached(&self, ino: InodeId) -> Option<Attr> {
        self.meta.table.get(ino)?.lock().fresh(seam::now())
    }

    /// What this mount last knew of an inode, with what it has written, however old.
    pub fn known_attr(&self, ino: InodeId) -> Option<Attr> {
        self.meta.table.get(ino)?.lock().view()
    }

    /// Entries after `cookie` (0 to begin) with their attributes, at most about `limit`, and whether that was
    /// the end. `.` and `..` are not among them.
    pub async fn readdir(
        &self,
        ino: InodeId,
        cookie: u64,
        limit: usize,
    ) -> Result<(Vec<pb::DirEntry>, bool), Errno> {
        let mut page = self.page(ino, cookie, limit).await?;
        for entry in &mut page.entries {
            let known = self.meta.table.get(InodeId(entry.inode));
            if let Some(view) = known.and_then(|inode| inode.lock().view()) {
                entry.attr = Some(view);
            }
        }
        Ok((page.entries, page.end))
    }

    async fn page(
        &self,
        ino: InodeId,
        cookie: u64,
        limit: usize,
    ) -> Result<pb::ReaddirResult, Errno> {
        let most = PAGE_ENTRIES.min(self.limits.inodes_cached_max / 2).max(1);
        let query = Query::Readdir(pb::ReaddirQuery {
            inode: ino.get(),
            cookie,
            limit: limit.clamp(1, most) as u32,
            with_attrs: true,
        });
        let answer = self.queries.ask(query).await?;
        let dir = answer.result.dir;
        let Some(Found::Readdir(page)) = answer.result.result else { return Err(Errno::EIO) };
        self.meta.listed(ino, cookie, dir.as_ref(), &page, answer.asked);
        Ok(page)
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: InodeId) -> Result<Bytes, Errno> {
        let query = Query::Readlink(pb::ReadlinkQuery { inode: ino.get() });
        data(self.queries.ask(query).await?)
    }

    /// The value of an extended attribute; `ENODATA` if there is none.
    pub async fn getxattr(&self, ino: InodeId, name: &[u8]) -> Result<Bytes, Errno> {
        let name = Bytes::copy_from_slice(name);
        let query = Query::Getxattr(pb::GetxattrQuery { inode: ino.get(), name });
        data(self.queries.ask(query).await?)
    }

    /// Names of the extended attributes.
    pub async fn listxattr(&self, ino: InodeId) -> Result<Vec<Bytes>, Errno> {
        let query = Query::Listxattr(pb::ListxattrQuery { inode: ino.get() });
        match self.queries.ask(query).await?.result.result {
            Some(Found::Names(found)) => Ok(found.names),
            None => Ok(Vec::new()),
            _ => Err(Errno::EIO),
        }
    }

    /// Space and inode counts of the cluster.
    pub async fn statfs(&self) -> Result<pb::StatfsResult, Errno> {
        match self.queries.ask(Query::Statfs(pb::StatfsQuery {})).await?.result.result {
            Some(Found::Statfs(found)) => Ok(found),
            _ => Err(Errno::EIO),
        }
    }

    // ---- changing attributes ----

    /// Changes attributes; a new size is ordered with the data written before.
    pub async fn setattr(&self, ino: InodeId, set: SetAttr) -> Result<Attr, Errno> {
        if set.is_empty() {
            return self.getattr(ino).await;
        }
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Errno::EFBIG);
        }
        let inode = self.meta.table.get_or_new(ino);
        if let Some(size) = set.size {
            return self.resize(&inode, set, size).await;
        }
        // A commit gives the file its own time: it must not come after a time that was asked for.
        if set.mtime.is_some() {
            self.commit_all(&inode).await?;
        }
        // Bits that are set from here on are not those that earlier writes take away.
        let killed = set.mode.is_some()
            && inode.lock().file.as_mut().is_some_and(|file| std::mem::take(&mut file.kill_priv));
        let done = self.session.run(setattr_op(ino, &set)).await;
        if killed && done.is_err() {
            inode.lock().file().kill_priv = true;
        }
        done?;
        let view = inode.lock().view();
        view.ok_or(Errno::EIO)
    }

    /// Truncates or extends: after the flights that are under way, before any that begins later. Dirty bytes
    /// behind the new end are dropped once the masters have cut the file.
    async fn resize(&self, inode: &Arc<Inode>, set: SetAttr, size: u64) -> Result<Attr, Errno> {
        if set.mtime.is_some() {
            self.commit_all(inode).await?;
        }
        self.freeze(inode).await?;
        let thaw = Thaw { client: self, inode };
        self.session.run(setattr_op(inode.id, &set)).await?;
        {
            let mut state = inode.lock();
            let file = state.file();
            let dropped = file.dirty.truncate(size);
            if !file.is_dirty() {
                file.committed = file.written;
                file.dirty_since = None;
            }
            self.meta.dirty.changed(dropped, 0);
        }
        self.meta.dirty.remove(inode);
        drop(thaw);
        let view = inode.lock().view();
        view.ok_or(Errno::EIO)
    }

    /// Sets an extended attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub async fn setxattr(
        &self,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        let op = Op::Setxattr(pb::SetxattrOp {
            inode: ino.get(),
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            flags,
        });
        self.session.run(op).await.map(|_| ())
    }

    /// Removes an extended attribute; `ENODATA` if there is none.
    pub async fn removexattr(&self, ino: InodeId, name: &[u8]) -> Result<(), Errno> {
        let name = Bytes::copy_from_slice(name);
        let op = Op::Removexattr(pb::RemovexattrOp { inode: ino.get(), name });
        self.session.run(op).await.map(|_| ())
    }

    // ---- making ----

    /// Creates a regular file and opens it; without `O_EXCL` one that exists is opened (and cut by `O_TRUNC`).
    pub async fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        new: NewFile,
    ) -> Result<(Attr, Handle), Errno> {
        let node = NewNode {
            kind: FileKind::Regular,
            mode: new.mode,
            uid: new.uid,
            gid: new.gid,
            rdev: 0,
        };
        let result = self.session.execute(create_op(parent, name, node, &[], true)).await?;
        let attr = match (result.errno, result.attr) {
            (0, Some(attr)) => attr,
            (errno, _) if errno != Errno::EEXIST.get() || new.flags & libc::O_EXCL != 0 => {
                Errno::check(errno)?;
                return Err(Errno::EIO);
            }
            (_, known) => {
                crate::mark!("create found the file there");
                let attr = match known {
                    Some(attr) => attr,
                    None => self.lookup(parent, name).await?,
                };
                let ino = InodeId(attr.inode);
                let handle = self.open(ino, new.flags & !libc::O_CREAT).await?;
                return Ok((self.getattr(ino).await?, handle));
            }
        };
        let inode = self.meta.table.get_or_new(InodeId(attr.inode));
        if !self.classes.knows(attr.class) {
            // Inherited from the directory, and younger than this mount: its layout decides where bytes go.
            crate::mark!("created in a class not known yet");
            if let Err(errno) = self.classes.refresh(&self.queries).await {
                self.unpin(&inode, false);
                return Err(errno);
            }
        }
        let handle = self.handles.open(inode, new.flags, seam::now());
        Ok((attr, handle))
    }

    /// Creates a directory.
    pub async fn mkdir(&self, parent: InodeId, name: &[u8], new: NewNode) -> Result<Attr, Errno> {
        let new = NewNode { kind: FileKind::Directory, ..new };
        self.make(create_op(parent, name, new, &[], false)).await
    }

    /// Creates a FIFO, socket, device or regular file.
    pub async fn mknod(&self, parent: InodeId, name: &[u8], new: NewNode) -> Result<Attr, Errno> {
        match new.kind {
            FileKind::Directory | FileKind::Symlink | FileKind::Unspecified => Err(Errno::EINVAL),
            _ => self.make(create_op(parent, name, new, &[], false)).await,
        }
    }

    /// Creates a symbolic link.
    pub async fn symlink(
        &self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<Attr, Errno> {
        let new = NewNode { kind: FileKind::Symlink, mode: 0o777, uid, gid, rdev: 0 };
        self.make(create_op(parent, name, new, target, false)).await
    }

    /// Gives an inode another name. What was written to it before is committed first (rule B5).
    pub async fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> Result<Attr, Errno> {
        if let Some(inode) = self.meta.table.get(ino) {
            self.commit_all(&inode).await?;
        }
        let name = Bytes::copy_from_slice(name);
        self.make(Op::Link(pb::LinkOp { inode: ino.get(), parent: parent.get(), name })).await
    }

    async fn make(&self, op: Op) -> Result<Attr, Errno> {
        self.session.run(op).await?.attr.ok_or(Errno::EIO)
    }

    // ---- removing and renaming ----

    /// Removes a name of anything but a directory. What is open here stays readable and writable.
    pub async fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), Errno> {
        let unasked = self.unasked(parent, name);
        let pin = unasked.is_none();
        let name = Bytes::copy_from_slice(name);
        let op = Op::Unlink(pb::UnlinkOp { parent: parent.get(), name, pin });
        let result = self.session.run(op).await?;
        drop(unasked);
        let victim = result.victim.or(result.attr);
        self.settle_pin(victim, pin);
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<(), Errno> {
        let name = Bytes::copy_from_slice(name);
        let op = Op::Rmdir(pb::RmdirOp { parent: parent.get(), name });
        self.session.run(op).await.map(|_| ())
    }

    /// Renames; `flags` are Linux's `RENAME_NOREPLACE` and `RENAME_EXCHANGE`. What was written to the renamed
    /// file before is committed first (rule B5), so that no crash shows the new name with old data.
    pub async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        self.commit_named(parent, name).await?;
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.commit_named(new_parent, new_name).await?;
        }
        let unasked = self.unasked(new_parent, new_name);
        let pin_victim = unasked.is_none();
        let op = Op::Rename(pb::RenameOp {
            parent: parent.get(),
            name: Bytes::copy_from_slice(name),
            new_parent: new_parent.get(),
            new_name: Bytes::copy_from_slice(new_name),
            flags,
            pin_victim,
        });
        let result = self.session.run(op).await?;
        drop(unasked);
        if flags & libc::RENAME_EXCHANGE == 0 {
            self.settle_pin(result.victim, pin_victim);
        }
        Ok(())
    }

    /// Commits what was written to the file of this name. If the name is not known, everything is committed:
    /// it might be any of the dirty files.
    async fn commit_named(&self, parent: InodeId, name: &[u8]) -> Result<(), Errno> {
        if self.meta.dirty.bytes() == 0 {
            return Ok(());
        }
        let known = match self.meta.hint(parent, name) {
            Some(inode) => Some(inode),
            None => match self.lookup(parent, name).await {
                Ok(attr) => self.meta.table.get(InodeId(attr.inode)),
                Err(Errno::ENOENT) => return Ok(()),
                Err(_) => None,
            },
        };
        match known {
            Some(inode) => {
                crate::maybe!(
                    inode.lock().file.as_ref().is_some_and(|f| f.is_dirty()),
                    "dirty file renamed"
                );
                self.commit_all(&inode).await
            }
            None => self.commit_everything().await,
        }
    }

    /// A removal of this name without a word to the masters that the inode is open here, as it is not; `None` if it
    /// might be.
    fn unasked(&self, parent: InodeId, name: &[u8]) -> Option<Removal<'_>> {
        let (Some(inode), Some(Ok(_))) =
            (self.meta.hint(parent, name), self.meta.find(parent, name))
        else {
            // Absent, out of date or never seen: keeping too much is put right by the answer.
            return None;
        };
        let removal = self.removals.begin(inode.id);
        (!is_open(&inode)).then_some(removal)
    }

    /// After a removal that asked for a pin: it stays while the file is open here.
    fn settle_pin(&self, victim: Option<Attr>, asked: bool) {
        let Some(victim) = victim.filter(|_| asked) else { return };
        let inode = self.meta.table.get_or_new(InodeId(victim.inode));
        inode.lock().file().pinned = true;
        // Whoever is opening it hears that it is let go.
        let _removal = self.removals.begin(inode.id);
        self.unpin(&inode, victim.nlink == 0);
    }

    /// Asks the masters to keep the inode, and waits: ESTALE if it is gone.
    async fn pin(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        self.session.run(Op::Pin(pb::PinOp { inode: inode.id.get() })).await.map(drop)
    }

    /// The inode is not open here any more.
    pub(super) fn unpin(&self, inode: &Arc<Inode>, now: bool) {
        if inode.lock().file().let_go() {
            self.session.submit_lazy(Op::Unpin(pb::UnpinOp { inode: inode.id.get() }));
            if now {
                self.session.kick();
            }
        }
    }

    /// Asks the masters to keep what has been open for a while.
    pub(super) fn pin_open_files(&self) {
        let now = seam::now();
        for inode in self.handles.inodes() {
            let wanted = {
                let mut state = inode.lock();
                let file = state.file();
                let due = file.opens > 0 && now.since(file.opened_at) >= PIN_AFTER;
                let wanted = due && !file.pinned;
                file.pinned |= due;
                wanted
            };
            if wanted {
                self.session.submit_lazy(Op::Pin(pb::PinOp { inode: inode.id.get() }));
            }
        }
    }

    // ---- opening ----

    /// Opens a regular file; its attributes are asked for anew (close-to-open coherence), and with them where
    /// its data is.
    pub async fn open(&self, ino: InodeId, flags: i32) -> Result<Handle, Errno> {
        let inode = self.meta.table.get_or_new(ino);
        let opening = self.removals.open();
        let attr = match self.load_extents(&inode, 0).await {
            Ok(attr) => attr,
            // REOPEN: whoever has it open takes what he knows of it for what it last was.
            Err(Errno::ESTALE) if crate::bug!(REOPEN) && is_open(&inode) => {
                inode.lock().view().ok_or(Errno::ESTALE)?
            }
            // Nothing keeps it any more: removed elsewhere, perhaps after changes that this mount never saw.
            // Whoever opens now would have to see the last of it, so what is known of it here must not do.
            Err(Errno::ESTALE) => {
                self.meta.gone(&inode);
                return Err(Errno::ESTALE);
            }
            Err(errno) => return Err(errno),
        };
        if !self.classes.knows(attr.class) {
            self.classes.refresh(&self.queries).await?;
        }
        let handle = self.handles.open(inode.clone(), flags, seam::now());
        // UNHELD: nobody asks whether it was removed meanwhile.
        let removed = opening.may_be_removed(ino) && !crate::bug!(UNHELD);
        drop(opening);
        if removed && let Err(errno) = self.pin(&inode).await {
            crate::mark!("file removed while it was opened");
            self.release(handle).await;
            return Err(errno);
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if flags & libc::O_TRUNC != 0 && writes {
            let cut = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(errno) = self.setattr(ino, cut).await {
                self.release(handle).await;
                return Err(errno);
            }
        }
        Ok(handle)
    }
}

/// Lets flights begin again, also when the caller is dropped.
struct Thaw<'a> {
    client: &'a Client,
    inode: &'a Arc<Inode>,
}

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.client.thaw(self.inode);
    }
}

fn is_open(inode: &Inode) -> bool {
    inode.lock().file.as_ref().is_some_and(|file| file.opens > 0)
}

fn data(answer: super::query::Answer) -> Result<Bytes, Errno> {
    match answer.result.result {
        Some(Found::Data(data)) => Ok(data),
        // An empty value may travel as nothing at all.
        None => Ok(Bytes::new()),
        _ => Err(Errno::EIO),
    }
}

fn create_op(parent: InodeId, name: &[u8], new: NewNode, target: &[u8], pin: bool) -> Op {
    Op::Create(pb::CreateOp {
        parent: parent.get(),
        name: Bytes::copy_from_slice(name),
        kind: new.kind.into(),
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        rdev: new.rdev,
        target: Bytes::copy_from_slice(target),
        pin,
        ..pb::CreateOp::default()
    })
}

fn setattr_op(ino: InodeId, set: &SetAttr) -> Op {
    let at = |time: Option<SetTime>| match time {
        Some(SetTime::At(ns)) => Some(ns),
        _ => None,
    };
    Op::Setattr(pb::SetattrOp {
        inode: ino.get(),
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime_ns: at(set.atime),
        mtime_ns: at(set.mtime),
        atime_now: set.atime == Some(SetTime::Now),
        mtime_now: set.mtime == Some(SetTime::Now),
        kill_priv: set.kill_priv,
        class: None,
    })
}
