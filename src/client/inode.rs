//! An inode as this mount knows it, and the bounded table of them.

use super::dirs::Dir;
use super::extents::ExtentMap;
use super::pieces::PieceMap;
use crate::errno::Errno;
use crate::ids::InodeId;
use crate::pb::Attr;
use crate::seam::Mono;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Bytes that were taken out of the dirty map and are on their way to be committed.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Counts the flights of an inode.
    pub number: u64,
    /// What is under way, by file offset.
    pub pieces: Arc<BTreeMap<u64, Bytes>>,
    /// Bytes in it.
    pub bytes: usize,
    /// When it is committed, and all before it are, every write up to this one is.
    pub upto: u64,
}

impl Flight {
    fn end(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(off, data)| off + data.len() as u64)
    }
}

/// What only regular files have.
#[derive(Debug, Default)]
pub struct FileData {
    /// Where committed bytes are.
    pub extents: ExtentMap,
    /// Written and not under way.
    pub dirty: PieceMap,
    /// Under way, oldest first; commits happen in this order.
    pub flights: VecDeque<Flight>,
    /// Number of the last flight that began.
    pub last_flight: u64,
    /// Counts writes.
    pub written: u64,
    /// Every write up to this one is committed.
    pub committed: u64,
    /// Writes up to this one are to be committed now.
    pub wanted: u64,
    /// Failed write-backs so far; every open file description is told of each once.
    pub failures: u64,
    /// Why the last one failed.
    pub failure: Option<Errno>,
    /// Flights up to this one were under way when one of them failed: they cover nothing.
    pub tainted: u64,
    /// Before this a failed write-back is not tried again unless somebody waits for it.
    pub retry_at: Mono,
    /// While above 0 no flight begins: somebody orders a change of size with the data.
    pub frozen: u32,
    /// When the oldest dirty byte was written.
    pub dirty_since: Option<Mono>,
    /// Wall clock of the last write, nanoseconds since 1970: what stat says until the commit has a time.
    pub written_at: i64,
    /// Open file descriptions here.
    pub opens: u32,
    /// Since when it is open.
    pub opened_at: Mono,
    /// The masters keep the inode for this session even without a name.
    pub pinned: bool,
    /// Its inline pieces are counted among those of closed files.
    pub inline_kept: bool,
    /// The next commit clears setuid and setgid.
    pub kill_priv: bool,
}

impl FileData {
    /// Whether there is anything to commit.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.flights.is_empty()
    }

    /// Writes up to this one are committed when all flights under way have landed.
    pub fn covered(&self) -> u64 {
        let sound = self.flights.iter().filter(|flight| flight.number > self.tainted);
        sound.map(|flight| flight.upto).max().unwrap_or(0).max(self.committed)
    }

    /// Whether the masters are to be told that nobody here has it open any more, which is said once.
    pub fn let_go(&mut self) -> bool {
        self.opens == 0 && std::mem::take(&mut self.pinned)
    }

    /// End of what is not committed.
    pub fn dirty_end(&self) -> u64 {
        let flights = self.flights.iter().map(Flight::end).max().unwrap_or(0);
        self.dirty.end().max(flights)
    }

    /// Bytes that are not committed.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty.bytes() + self.flights.iter().map(|flight| flight.bytes).sum::<usize>()
    }
}

/// The mutable part of an inode.
#[derive(Debug, Default)]
pub struct State {
    /// As the masters last said.
    pub attr: Option<Attr>,
    /// Until when `attr` may be used without asking.
    pub attr_until: Mono,
    /// Names, if it is a directory that was looked into.
    pub dir: Option<Box<Dir>>,
    /// Data, if it is a regular file that was opened.
    pub file: Option<Box<FileData>>,
}

impl State {
    /// Attributes with what this mount wrote and has not committed.
    pub fn view(&self) -> Option<Attr> {
        let mut attr = self.attr?;
        if let Some(file) = &self.file
            && file.is_dirty()
        {
            attr.size = attr.size.max(file.dirty_end());
            attr.mtime_ns = attr.mtime_ns.max(file.written_at);
            attr.ctime_ns = attr.ctime_ns.max(file.written_at);
        }
        Some(attr)
    }

    /// [`State::view`] while it may be used without asking.
    pub fn fresh(&self, now: Mono) -> Option<Attr> {
        if now < self.attr_until { self.view() } else { None }
    }

    /// The masters' word on the attributes; older ones than those known count for nothing.
    pub fn learn(&mut self, attr: &Attr, until: Mono) {
        let known = self.attr.map_or(0, |known| known.change);
        if self.attr.is_some() && attr.change < known {
            return;
        }
        self.attr = Some(*attr);
        self.attr_until = self.attr_until.max(until);
        if let Some(file) = &mut self.file
            && file.extents.change != attr.change
        {
            file.extents.reset(attr.change);
        }
    }

    /// The data part, made when first needed.
    pub fn file(&mut self) -> &mut FileData {
        let change = self.attr.map_or(0, |attr| attr.change);
        self.file.get_or_insert_with(|| {
            let mut file = Box::<FileData>::default();
            file.extents.reset(change);
            file
        })
    }

    /// The directory part, made when first needed.
    pub fn dir(&mut self) -> &mut Dir {
        self.dir.get_or_insert_default()
    }

    /// Size as this mount sees it.
    pub fn size(&self) -> u64 {
        self.view().map_or(0, |attr| attr.size)
    }

    fn is_busy(&self) -> bool {
        self.file.as_ref().is_some_and(|f| f.opens > 0 || f.pinned || f.is_dirty())
    }
}

/// An inode that this mount has met.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub id: InodeId,
    state: Mutex<State>,
    /// Told when flights end, and when an error was recorded.
    pub changed: Notify,
    used: AtomicBool,
}

impl Inode {
    fn new(id: InodeId) -> Inode {
        Inode { id, state: Mutex::default(), changed: Notify::new(), used: AtomicBool::new(true) }
    }

    /// Its state; held for a moment only, never while waiting.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` gives something; it is asked again whenever the inode changed.
    pub async fn wait_until<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.lock()) {
                return value;
            }
            changed.await;
        }
    }
}

/// The inodes that are remembered: a bounded number beside those in use.
#[derive(Debug)]
pub struct Table {
    inodes: Mutex<Inodes>,
    inodes_max: usize,
    /// Names in all directories.
    names: AtomicU32,
}

#[derive(Debug, Default)]
struct Inodes {
    map: BTreeMap<InodeId, Arc<Inode>>,
    /// Where the search for something to forget goes on.
    hand: InodeId,
}

impl Table {
    /// An empty table.
    pub fn new(inodes_max: usize) -> Table {
        Table { inodes: Mutex::default(), inodes_max, names: AtomicU32::new(0) }
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode, if it is remembered.
    pub fn get(&self, id: InodeId) -> Option<Arc<Inode>> {
        let inode = self.inodes().map.get(&id).cloned()?;
        inode.used.store(true, Ordering::Relaxed);
        Some(inode)
    }

    /// The inode, remembered from now on.
    pub fn get_or_new(&self, id: InodeId) -> Arc<Inode> {
        let mut inodes = self.inodes();
        if let Some(inode) = inodes.map.get(&id) {
            inode.used.store(true, Ordering::Relaxed);
            return inode.clone();
        }
        let inode = Arc::new(Inode::new(id));
        inodes.map.insert(id, inode.clone());
        if inodes.map.len() > self.inodes_max {
            inodes.forget_some(self.inodes_max);
        }
        inode
    }

    /// Every inode remembered now.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.inodes().map.values().cloned().collect()
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.inodes().map.len()
    }

    /// Names were added to directories; answers whether there are too many in all, in which case the caller
    /// forgets some.
    pub fn added_names(&self, count: usize) -> bool {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let names = self.names.fetch_add(count, Ordering::Relaxed).saturating_add(count);
        names as usize > self.inodes_max * 2
    }

    /// Forgets the names of all directories but one, and of that too if it alone has too many: they are asked for
    /// again when needed.
    pub fn forget_names(&self, but: InodeId) {
        for inode in self.all() {
            if let Some(dir) = &mut inode.lock().dir
                && (inode.id != but || dir.len() > self.inodes_max)
            {
                dir.clear();
            }
        }
        self.names.store(0, Ordering::Relaxed);
    }
}

impl Inodes {
    /// Second chance: goes round, forgets what was not used since it last came by and nobody holds.
    fn forget_some(&mut self, keep: usize) {
        let surplus = self.map.len().saturating_sub(keep) + keep / 32;
        let mut tries = surplus * 4 + 8;
        let mut forgotten = 0;
        while forgotten < surplus && tries > 0 {
            tries -= 1;
            let next = self.map.range(InodeId(self.hand.0 + 1)..).next().map(|(id, _)| *id);
            let Some(id) = next.or_else(|| self.map.first_key_value().map(|(id, _)| *id)) else {
                return;
            };
            self.hand = id;
            let inode = &self.map[&id];
            let idle = Arc::strong_count(inode) == 1 && !inode.used.swap(false, Ordering::Relaxed);
            if idle && !inode.lock().is_busy() {
                self.map.remove(&id);
                forgotten += 1;
            }
        }
        crate::maybe!(forgotten > 0, "inode forgotten by the client");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stays_bounded_and_keeps_what_is_in_use() {
        let table = Table::new(16);
        let open = table.get_or_new(InodeId(5));
        open.lock().file().opens = 1;
        drop(open);
        let held = table.get_or_new(InodeId(6));
        for id in 100..1000 {
            table.get_or_new(InodeId(id));
        }
        assert!(table.len() <= 40, "{}", table.len());
        assert!(table.get(InodeId(5)).is_some());
        assert!(table.get(held.id).is_some());
    }

    #[test]
    fn attributes_never_go_back() {
        let mut state = State::default();
        let attr = |change, size| Attr { inode: 9, change, size, ..Attr::default() };
        state.learn(&attr(5, 10), Mono(100));
        state.learn(&attr(4, 99), Mono(200));
        assert_eq!(state.fresh(Mono(50)).unwrap().size, 10);
        assert!(state.fresh(Mono(100)).is_none());
        state.learn(&attr(6, 20), Mono(300));
        assert_eq!(state.fresh(Mono(250)).unwrap().size, 20);
    }

    #[test]
    fn dirty_data_shows_in_the_attributes() {
        let mut state = State::default();
        state.learn(&Attr { inode: 9, change: 1, size: 10, ..Attr::default() }, Mono(100));
        state.file().dirty.write(5, &[1; 20]);
        state.file().written_at = 77;
        let attr = state.view().unwrap();
        assert_eq!((attr.size, attr.mtime_ns), (25, 77));
    }
}
