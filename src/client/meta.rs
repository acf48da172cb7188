//! What this mount knows of the namespace: attributes, names, extents. Filled by every answer of the masters,
//! kept true through this mount's own operations, usable for the time to live.

use super::dirs::Known;
use super::inline::InlineKept;
use super::inode::{Inode, State, Table};
use crate::errno::Errno;
use crate::ids::InodeId;
use crate::limits::Limits;
use crate::pb::{self, Attr, FileKind, OpResult, op};
use crate::seam::{self, Mono};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Inline pieces of closed files may take this part of what the cache of chunk bytes may take.
const INLINE_SHARE: usize = 8;

/// Bytes of all inodes that are written and not committed.
#[derive(Debug, Default)]
pub struct Dirty {
    bytes: AtomicUsize,
    inodes: Mutex<BTreeMap<InodeId, Arc<Inode>>>,
    /// Told when bytes were committed or given up.
    pub room: Notify,
    /// Failed write-backs.
    pub failed: AtomicU64,
    /// Bytes given up with nobody left to be told.
    pub lost: AtomicU64,
}

impl Dirty {
    /// Bytes that wait to be committed.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Bytes were written; `before` and `after` are what one inode holds.
    pub fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.bytes.fetch_add(after - before, Ordering::AcqRel);
        } else {
            self.bytes.fetch_sub(before - after, Ordering::AcqRel);
            self.room.notify_waiters();
        }
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<InodeId, Arc<Inode>>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode has dirty bytes (from now on).
    pub fn add(&self, inode: &Arc<Inode>) {
        self.map().insert(inode.id, inode.clone());
    }

    /// The inode is clean, unless it was written meanwhile.
    pub fn remove(&self, inode: &Inode) {
        let mut map = self.map();
        let still = inode.lock().file.as_ref().is_some_and(|file| file.is_dirty());
        if !still {
            map.remove(&inode.id);
        }
    }

    /// Inodes with dirty bytes.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.map().values().cloned().collect()
    }
}

/// The caches.
#[derive(Debug)]
pub struct Meta {
    /// Inodes.
    pub table: Table,
    /// What is to be written back.
    pub dirty: Dirty,
    /// Closed files with pieces in memory.
    pub inline_kept: InlineKept,
    /// Bounds and times.
    pub limits: Arc<Limits>,
}

impl Meta {
    /// Empty caches.
    pub fn new(limits: Arc<Limits>) -> Meta {
        Meta {
            table: Table::new(limits.inodes_cached_max),
            dirty: Dirty::default(),
            inline_kept: InlineKept::new(limits.data_cache_bytes / INLINE_SHARE),
            limits,
        }
    }

    /// Until when an answer to what was asked at `asked` may be used.
    pub fn until(&self, asked: Mono) -> Mono {
        // FOGGY: for longer than that.
        let times = if crate::bug!(FOGGY) { 5 } else { 1 };
        asked + self.limits.attr_ttl * times
    }

    /// How long an inode's attributes, and with `parent` the names in that directory, may be used without asking.
    pub fn usable_for(&self, parent: Option<InodeId>, id: InodeId) -> Duration {
        let now = seam::now();
        let attrs = self.table.get(id).map_or(Mono(0), |inode| inode.lock().attr_until);
        let names = parent.map(|parent| {
            let parent = self.table.get(parent);
            let until = parent.and_then(|dir| Some(dir.lock().dir.as_ref()?.usable_until()));
            until.unwrap_or(Mono(0))
        });
        now.until(attrs.min(names.unwrap_or(attrs)))
    }

    /// Attributes that the masters gave.
    pub fn learn(&self, attr: &Attr, asked: Mono) -> Arc<Inode> {
        let inode = self.table.get_or_new(InodeId(attr.inode));
        inode.lock().learn(attr, self.until(asked));
        inode
    }

    /// What is known of a name, with the attributes of what it names.
    pub fn find(&self, parent: InodeId, name: &[u8]) -> Option<Result<Attr, Errno>> {
        if crate::fault!("client: name not remembered") {
            return None;
        }
        let now = seam::now();
        let known = self.table.get(parent)?.lock().dir.as_ref()?.get(name, now);
        match known {
            Known::Is(inode) => self.table.get(inode)?.lock().fresh(now).map(Ok),
            Known::Absent => Some(Err(Errno::ENOENT)),
            Known::No => None,
        }
    }

    /// The inode that a name had when it was last seen; may be out of date.
    pub fn hint(&self, parent: InodeId, name: &[u8]) -> Option<Arc<Inode>> {
        let inode = self.table.get(parent)?.lock().dir.as_ref()?.hint(name)?;
        self.table.get(inode)
    }

    /// The answer to a lookup.
    pub fn looked_up(
        &self,
        parent: InodeId,
        name: &[u8],
        dir: Option<&Attr>,
        found: Option<&Attr>,
        asked: Mono,
    ) {
        if let Some(attr) = found {
            self.learn(attr, asked);
        }
        let Some(dir) = dir else { return };
        let inode = self.learn(dir, asked);
        let until = self.until(asked);
        let mut state = inode.lock();
        if state.dir().observe(dir.change, until) {
            state.dir().record(name, found.map(|attr| InodeId(attr.inode)));
            drop(state);
            self.bound_names(parent, 1);
        }
    }

    /// A page of a directory, read from `cookie` on.
    pub fn listed(
        &self,
        ino: InodeId,
        cookie: u64,
        dir: Option<&Attr>,
        page: &pb::ReaddirResult,
        asked: Mono,
    ) {
        for entry in &page.entries {
            if let Some(attr) = &entry.attr {
                self.learn(attr, asked);
            }
        }
        let Some(dir) = dir else { return };
        let inode = self.learn(dir, asked);
        let until = self.until(asked);
        let mut state = inode.lock();
        if state.dir().observe(dir.change, until) {
            let names = page.entries.iter().map(|e| (&e.name[..], InodeId(e.inode)));
            let next = page.entries.last().map_or(cookie, |entry| entry.cookie);
            state.dir().page(cookie, names, next, page.end);
            drop(state);
            self.bound_names(ino, page.entries.len());
        }
    }

    fn bound_names(&self, dir: InodeId, added: usize) {
        if self.table.added_names(added) {
            crate::mark!("names forgotten by the client");
            self.table.forget_names(dir);
        }
    }

    // ---- own operations ----

    /// The masters executed (or refused) an operation of this client. Called in the order of the stream,
    /// before the caller hears of it.
    pub fn applied(&self, op: &op::Op, result: &OpResult, asked: Mono) {
        let ok = result.errno == 0;
        if ok {
            self.names_changed(op, result, asked);
            self.data_changed(op, result);
        } else if let op::Op::Create(create) = op
            && let (Some(attr), Some(dir)) = (&result.attr, &result.parent)
        {
            self.looked_up(InodeId(create.parent), &create.name, Some(dir), Some(attr), asked);
        }
        let attrs = [&result.attr, &result.parent, &result.new_parent, &result.victim];
        for attr in attrs.into_iter().flatten() {
            self.learn(attr, asked);
        }
        if let op::Op::Create(create) = op
            && ok
            && let Some(attr) = &result.attr
        {
            self.created(create, attr, asked);
        }
    }

    fn created(&self, create: &pb::CreateOp, attr: &Attr, asked: Mono) {
        let inode = self.table.get_or_new(InodeId(attr.inode));
        let mut state = inode.lock();
        match attr.kind() {
            FileKind::Directory => state.dir().created(attr.change, self.until(asked)),
            FileKind::Regular => {
                let file = state.file();
                file.extents = super::extents::ExtentMap::of_new_file(attr.change);
                file.extents.commit(&create.extents);
                file.pinned = create.pin;
            }
            _ => {}
        }
    }

    /// The masters keep an inode for this session that nobody here waits for any more: whether it is to be let go. If it
    /// is open its last close does that.
    pub fn let_go(&self, id: InodeId) -> bool {
        let inode = self.table.get_or_new(id);
        let mut state = inode.lock();
        let file = state.file();
        file.pinned = true;
        file.let_go()
    }

    fn names_changed(&self, op: &op::Op, result: &OpResult, asked: Mono) {
        let target = result.attr.as_ref().map(|attr| InodeId(attr.inode));
        let parent = result.parent.as_ref();
        match op {
            op::Op::Create(op) => self.own(parent, &[(&op.name, target)], asked),
            op::Op::Link(op) => self.own(parent, &[(&op.name, target)], asked),
            op::Op::Unlink(op) => self.own(parent, &[(&op.name, None)], asked),
            op::Op::Rmdir(op) => self.own(parent, &[(&op.name, None)], asked),
            op::Op::Rename(op) => self.renamed(op, result, target, asked),
            _ => {}
        }
    }

    fn renamed(&self, op: &pb::RenameOp, result: &OpResult, moved: Option<InodeId>, asked: Mono) {
        let exchange = op.flags & libc::RENAME_EXCHANGE != 0;
        let victim = result.victim.as_ref().map(|attr| InodeId(attr.inode));
        let left = if exchange { victim } else { None };
        let old: (&[u8], Option<InodeId>) = (&op.name, left);
        let new: (&[u8], Option<InodeId>) = (&op.new_name, moved);
        if moved.is_none() || (exchange && victim.is_none()) {
            self.forget_dir(InodeId(op.parent));
            self.forget_dir(InodeId(op.new_parent));
        } else if op.parent == op.new_parent {
            let both = if op.name == op.new_name { vec![new] } else { vec![old, new] };
            self.own(result.parent.as_ref().or(result.new_parent.as_ref()), &both, asked);
        } else {
            self.own(result.parent.as_ref(), &[old], asked);
            self.own(result.new_parent.as_ref(), &[new], asked);
        }
    }

    fn own(&self, dir: Option<&Attr>, names: &[(&[u8], Option<InodeId>)], asked: Mono) {
        let Some(attr) = dir else { return };
        let inode = self.table.get_or_new(InodeId(attr.inode));
        inode.lock().dir().own(names, attr.change, self.until(asked));
        self.bound_names(inode.id, names.len());
    }

    /// Keeps the extent map true through this client's own commit, truncation or change of attributes, if
    /// nobody else changed the file in between.
    fn data_changed(&self, op: &op::Op, result: &OpResult) {
        let Some(attr) = &result.attr else { return };
        let Some(inode) = self.table.get(InodeId(attr.inode)) else { return };
        let mut state = inode.lock();
        if let op::Op::Pin(_) = op {
            state.file().pinned = true;
        }
        let Some(file) = &mut state.file else { return };
        let (known, version) = (file.extents.change, attr.change);
        tracing::trace!(inode = attr.inode, known, version, "own change");
        // Only an operation that raised the counter itself can have been the one step between the two.
        if known + 1 != version {
            return;
        }
        match op {
            op::Op::Commit(commit) => file.extents.commit(&commit.extents),
            op::Op::Setattr(set) => {
                if let Some(size) = set.size {
                    file.extents.truncate(size);
                }
            }
            op::Op::Link(_) | op::Op::Setxattr(_) | op::Op::Removexattr(_) => {}
            _ => return,
        }
        file.extents.change = attr.change;
    }

    /// Nobody knows whether an operation was executed: what it may have changed is asked for again.
    pub fn unknown(&self, op: &op::Op) {
        match op {
            op::Op::Create(op) => self.forget_dir(InodeId(op.parent)),
            op::Op::Link(op) => {
                self.forget_dir(InodeId(op.parent));
                self.forget(InodeId(op.inode));
            }
            op::Op::Unlink(op) => self.forget_name(InodeId(op.parent), &op.name),
            op::Op::Rmdir(op) => self.forget_name(InodeId(op.parent), &op.name),
            op::Op::Rename(op) => {
                self.forget_name(InodeId(op.parent), &op.name);
                self.forget_name(InodeId(op.new_parent), &op.new_name);
            }
            op::Op::Setattr(op) => self.forget(InodeId(op.inode)),
            op::Op::Commit(op) => self.forget(InodeId(op.inode)),
            _ => {}
        }
    }

    fn forget_name(&self, parent: InodeId, name: &[u8]) {
        if let Some(inode) = self.hint(parent, name) {
            self.forget(inode.id);
        }
        self.forget_dir(parent);
    }

    fn forget_dir(&self, id: InodeId) {
        if let Some(inode) = self.table.get(id) {
            let mut state = inode.lock();
            if let Some(dir) = &mut state.dir {
                dir.clear();
            }
            state.attr_until = Mono(0);
        }
    }

    /// The inode's attributes and extents are to be asked for again.
    pub fn forget(&self, id: InodeId) {
        if let Some(inode) = self.table.get(id) {
            let mut state = inode.lock();
            state.attr_until = Mono(0);
            let change = state.attr.map_or(0, |attr| attr.change);
            if let Some(file) = &mut state.file {
                file.extents.reset(change);
            }
        }
    }

    /// The masters do not know the inode any more: names that still lead to it are asked for again. What is known of it
    /// stays while it is open, and where nobody here could tell that it is: the kernel opens pipes, sockets and devices
    /// itself, and keeps directories that somebody works in.
    pub fn gone(&self, inode: &Inode) {
        let mut state = inode.lock();
        state.attr_until = Mono(0);
        let is_file = |attr: &pb::Attr| attr.kind() == pb::FileKind::Regular;
        let removed_here = state.attr.is_some_and(|attr| attr.nlink == 0 && !is_file(&attr));
        if !removed_here && state.file.as_ref().is_none_or(|file| file.opens == 0) {
            state.attr = None;
        }
    }

    /// Forgets everything that is clean.
    pub fn drop_clean(&self) {
        for inode in self.table.all() {
            let mut state = inode.lock();
            state.attr_until = Mono(0);
            let change = state.attr.map_or(0, |attr| attr.change);
            if let Some(file) = &mut state.file {
                file.extents.reset(change);
            }
            if let Some(dir) = &mut state.dir {
                dir.clear();
            }
        }
    }

    // ---- write-back failures ----

    /// The session ended: its dirty data may not be written by another (rule B1), so it is lost, and every
    /// open file description hears of it.
    pub fn session_lost(&self) {
        for inode in self.table.all() {
            let mut state = inode.lock();
            let Some(file) = &mut state.file else { continue };
            file.pinned = false;
            if file.is_dirty() {
                crate::mark!("dirty data lost with the session");
                self.give_up(&mut state, Errno::EIO);
            }
            drop(state);
            self.dirty.remove(&inode);
            inode.changed.notify_waiters();
        }
    }

    /// Drops what is dirty and records why, for whoever has the file open.
    pub fn give_up(&self, state: &mut State, errno: Errno) {
        let Some(file) = &mut state.file else { return };
        self.failed(file, errno);
        self.drop_dirty(state);
    }

    /// Drops what is dirty, whose loss is recorded; what nobody is left to be told of is counted and logged.
    pub fn drop_dirty(&self, state: &mut State) {
        let Some(file) = &mut state.file else { return };
        let bytes = file.dirty_bytes();
        file.dirty.take();
        file.flights.clear();
        file.dirty_since = None;
        file.committed = file.written;
        let nobody = file.opens == 0;
        self.dirty.changed(bytes, 0);
        if nobody && bytes > 0 {
            self.dirty.lost.fetch_add(bytes as u64, Ordering::Relaxed);
            tracing::error!(bytes, "written data lost, and nobody has the file open");
        }
    }

    /// Records a failed write-back.
    pub fn failed(&self, file: &mut super::inode::FileData, errno: Errno) {
        file.failures += 1;
        file.failure = Some(errno);
        self.dirty.failed.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::extents::Source;
    use super::*;

    fn attr(change: u64) -> Attr {
        Attr { inode: 9, kind: FileKind::Regular.into(), change, size: 100, ..Attr::default() }
    }

    fn result(change: u64) -> OpResult {
        OpResult { attr: Some(attr(change)), ..OpResult::default() }
    }

    fn known(meta: &Meta) -> Option<Source> {
        let inode = meta.table.get(InodeId(9)).expect("known");
        let found = inode.lock().file().extents.lookup(0, 100);
        found[0].2.clone()
    }

    /// The names of one directory alone must be bounded too, whether they are listed or come and go.
    #[test]
    fn the_names_of_one_directory_are_bounded() {
        let limits = Limits::tiny();
        let most = limits.inodes_cached_max * 3;
        let meta = Meta::new(Arc::new(limits));
        let dir = |change| Attr { inode: 1, change, kind: FileKind::Directory.into(), ..attr(1) };
        let known = |meta: &Meta| meta.table.get(InodeId(1)).expect("known").lock().dir().len();
        for page in 0..50u64 {
            let entry = |n: u64| pb::DirEntry {
                name: format!("{page}-{n}").into(),
                inode: 100 + n,
                cookie: page * 8 + n + 1,
                ..Default::default()
            };
            let page_ =
                pb::ReaddirResult { entries: (0..8).map(entry).collect(), ..Default::default() };
            meta.listed(InodeId(1), page * 8, Some(&dir(5)), &page_, Mono(0));
            assert!(known(&meta) <= most, "{} names listed", known(&meta));
        }
        for change in 6..500 {
            let name = format!("gone {change}");
            meta.own(Some(&dir(change)), &[(name.as_bytes(), None)], Mono(0));
            assert!(known(&meta) <= most, "{} names that came and went", known(&meta));
        }
    }

    /// An unpin, which changes nothing, was taken for the one step that another client's commit had made: the
    /// old extents were believed to be true for the new version of the file.
    #[test]
    fn anothers_commit_is_not_taken_for_an_own_operation() {
        let meta = Meta::new(Arc::new(Limits::tiny()));
        let inode = meta.learn(&attr(5), Mono(0));
        assert!(inode.lock().file().extents.load(5, 0, u64::MAX, &[]));
        assert_eq!(known(&meta), Some(Source::Hole));
        let setxattr = op::Op::Setxattr(pb::SetxattrOp { inode: 9, ..Default::default() });
        meta.applied(&setxattr, &result(6), Mono(0));
        assert_eq!(known(&meta), Some(Source::Hole), "an own change of something else");
        meta.applied(&op::Op::Unpin(pb::UnpinOp { inode: 9 }), &result(6), Mono(0));
        assert_eq!(known(&meta), Some(Source::Hole), "nobody changed it");
        meta.applied(&op::Op::Unpin(pb::UnpinOp { inode: 9 }), &result(7), Mono(0));
        assert_eq!(known(&meta), None, "somebody else changed it");
    }
}
