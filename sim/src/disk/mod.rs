//! A simulated disk. It outlives the node that uses it and keeps two images apart: what was written, which a
//! killed process leaves behind, and what is durable, which is all that a power loss is sure to leave.
//!
//! Handles carry the incarnation of the process that took them; after [`SimDisk::fence`] older ones are
//! refused, so that destructors of a killed node change nothing. Nothing here needs a running simulation:
//! the time that calls take is owed to `mooseng::seam::owe`.

mod content;
mod durable;
mod faults;
mod handle;
mod names;
#[cfg(test)]
mod tests;

pub use content::{BLOCK, Chosen, Outcome, SECTOR};
pub use faults::{Counters, Event, Faults};

use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use content::Content;
use mooseng::seam::Disk;
use names::{Names, Node};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One disk.
pub struct SimDisk {
    name: String,
    state: Mutex<State>,
}

type Observer = Box<dyn FnMut(&Event<'_>) + Send>;

/// Of a disk where its size does not matter.
pub const DISK_BYTES: u64 = 256 << 20;

struct State {
    rng: Rng,
    capacity: u64,
    files: BTreeMap<u64, File>,
    next_file: u64,
    names: Names,
    locks: BTreeMap<String, u64>,
    incarnation: u64,
    faults: Faults,
    counters: Counters,
    dies_at: Option<u64>,
    fills_at: Option<u64>,
    /// The end of the last slow call, by the simulation's clock.
    slow_until_ns: u64,
    /// What another program took, bytes.
    taken: u64,
    observer: Option<Observer>,
}

#[derive(Clone, Default)]
struct File {
    content: Content,
    linked: bool,
    open: u32,
}

/// The error of a disk that is gone, or of a handle whose process is.
fn gone() -> io::Error {
    io::Error::from_raw_os_error(19) // ENODEV
}

/// A power loss of names or of content; returns what was lost. If everything is to be kept, the same numbers
/// are drawn nevertheless, so that what comes later is the same.
fn lose<T: Clone>(
    what: &mut T,
    keeps: bool,
    power_loss: fn(&mut T, Outcome, &mut Rng, &mut usize) -> u64,
    (outcome, rng, unit): (Outcome, &mut Rng, &mut usize),
) -> u64 {
    if !keeps {
        return power_loss(what, outcome, rng, unit);
    }
    let mut whole = what.clone();
    power_loss(what, outcome, rng, unit);
    power_loss(&mut whole, Outcome::KeepAll, &mut rng.clone(), &mut 0);
    *what = whole;
    0
}

fn no_such_file() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl SimDisk {
    /// An empty disk of so many bytes.
    pub fn new(name: &str, capacity_bytes: u64, seed: u64) -> Arc<SimDisk> {
        let state = State {
            rng: Rng::new(seed).fork(name),
            capacity: capacity_bytes,
            files: BTreeMap::new(),
            next_file: 1,
            names: Names::default(),
            locks: BTreeMap::new(),
            incarnation: 0,
            faults: Faults::default(),
            counters: Counters::default(),
            dies_at: None,
            fills_at: None,
            slow_until_ns: 0,
            taken: 0,
            observer: None,
        };
        Arc::new(SimDisk { name: name.to_owned(), state: Mutex::new(state) })
    }

    /// A copy of both images with its own seed and without faults, to try several futures of one past.
    pub fn duplicate(&self, seed: u64) -> Arc<SimDisk> {
        let copy = SimDisk::new(&self.name, self.state().capacity, seed);
        {
            let (from, mut to) = (self.state(), copy.state());
            to.files = from.files.clone();
            to.next_file = from.next_file;
            to.names = from.names.clone();
            to.files.values_mut().for_each(|file| file.open = 0);
        }
        copy
    }

    /// A copy that holds nothing but this file.
    pub fn with_only(&self, path: &str, seed: u64) -> Arc<SimDisk> {
        let copy = self.duplicate(seed);
        {
            let mut state = copy.state();
            state.names.keep_only(path);
            let named = state.names.files();
            state.files.retain(|number, _| named.contains(number));
        }
        copy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk as the process of this incarnation sees it.
    pub fn handle(self: &Arc<SimDisk>, incarnation: u64) -> Arc<dyn Disk> {
        Arc::new(handle::Handle::new(self.clone(), incarnation))
    }

    /// From now on handles of incarnations below this one are refused, and what they locked is free.
    pub fn fence(&self, incarnation: u64) {
        let mut state = self.state();
        state.incarnation = state.incarnation.max(incarnation);
        let current = state.incarnation;
        state.locks.retain(|_, holder| *holder >= current);
        state.slow_until_ns = 0;
    }

    /// The process is gone (kill -9): the page cache survives whole, so nothing changes but that files
    /// without a name go. Fence the disk for the next incarnation as well.
    pub fn crash(&self) {
        let mut state = self.state();
        state.files.values_mut().for_each(|file| file.open = 0);
        state.locks.clear();
        state.collect();
    }

    /// The power is gone: un-synced sectors and names are kept, dropped or torn, as the seed says.
    pub fn power_loss(&self) {
        self.power_loss_as(Outcome::Mixed);
    }

    /// A power loss with a chosen outcome.
    pub fn power_loss_as(&self, outcome: Outcome) {
        let mut state = self.state();
        let State { rng, files, names, counters, .. } = &mut *state;
        let mut unit = 0;
        let keeps = names.pending() > 0 && !plan::strikes(FaultClass::LostNames);
        let loss = (outcome, &mut *rng, &mut unit);
        counters.names_lost += lose(names, keeps, Names::power_loss, loss);
        let unsynced = files.values().any(|file| !file.content.synced());
        let keeps = unsynced && !plan::strikes(FaultClass::LostSectors);
        for file in files.values_mut() {
            let loss = (outcome, &mut *rng, &mut unit);
            counters.sectors_lost += lose(&mut file.content, keeps, Content::power_loss, loss);
            file.open = 0;
        }
        counters.power_losses += 1;
        let linked = names.written_files();
        for (number, file) in files.iter_mut() {
            file.linked = linked.contains(number);
        }
        state.locks.clear();
        state.collect();
    }

    /// When the running process will have waited for all slow calls that it has made, by the simulation's clock.
    pub fn slow_until_ns(&self) -> u64 {
        self.state().slow_until_ns
    }

    /// Changes the faults that are drawn from now on.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// The faults as they are.
    pub fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// After `more` further calls that change the disk (writes, syncs, names) every call fails, until
    /// [`SimDisk::revive`]: a crash at exactly that point, for code that cannot be stopped inside a call.
    pub fn die_after(&self, more: u64) {
        let mut state = self.state();
        state.dies_at = Some(state.counters.changes + more);
    }

    /// Whether it died as [`SimDisk::die_after`] said.
    pub fn is_dead(&self) -> bool {
        let state = self.state();
        state.dies_at.is_some_and(|at| state.counters.changes >= at)
    }

    /// After `more` further calls that change the disk another program takes all space that is free at that
    /// moment, also between two calls of one piece of work, until [`SimDisk::relieve`].
    pub fn fill_after(&self, more: u64) {
        let mut state = self.state();
        state.fills_at = Some(state.counters.changes + more);
    }

    /// Another program takes what is free but for so many bytes, what this file holds counted among them, until
    /// [`SimDisk::relieve`].
    pub fn leave_free(&self, bytes: u64, file: &str) {
        let mut state = self.state();
        let number = state.file_at(file).ok();
        let held = number.map_or(0, |number| state.content(number).allocated());
        let others = state.used() - held;
        state.taken = state.capacity.saturating_sub(others + bytes);
    }

    /// The other program gives the space back.
    pub fn relieve(&self) {
        let mut state = self.state();
        (state.fills_at, state.taken) = (None, 0);
    }

    /// Answers again.
    pub fn revive(&self) {
        self.state().dies_at = None;
    }

    /// Flips bits of one byte of a file for good: reading again does not heal it, overwriting does. False if
    /// the file has no such byte.
    pub fn rot(&self, path: &str, offset: u64, mask: u8) -> bool {
        let mut state = self.state();
        let rotten = match state.file_at(path) {
            Ok(number) => state.content(number).rot(offset, mask),
            Err(_) => false,
        };
        state.counters.rotten += u64::from(rotten);
        rotten
    }

    /// What was done and injected so far.
    pub fn counters(&self) -> Counters {
        self.state().counters.clone()
    }

    /// Whether what was written may be gone although nobody failed to keep it: bytes have rotted, or writes went
    /// elsewhere.
    pub fn lies(&self) -> bool {
        self.state().counters.changed_unasked() > 0
    }

    /// Differs whenever the durable image does.
    pub fn durable_version(&self) -> u64 {
        self.state().counters.durable_changes()
    }

    /// Called with every operation that changes the disk, while the disk is locked.
    pub fn observe(&self, observer: impl FnMut(&Event<'_>) + Send + 'static) {
        self.state().observer = Some(Box::new(observer));
    }

    /// What a power loss right now is sure to leave of a file; `None` if its name is not durable.
    pub fn durable_read(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let Node::File(number) = state.names.get_durable(path)? else { return None };
        let content = &state.files.get(&number)?.content;
        let mut bytes = vec![0; content.durable_len() as usize];
        content.durable_read(0, &mut bytes);
        Some(bytes)
    }

    /// Durable names in a directory, sorted.
    pub fn durable_list(&self, dir: &str) -> Vec<String> {
        self.state().names.list_durable(dir)
    }

    /// The durable image as a disk to read from (it changes as the disk does); costs no simulated time.
    pub fn durable(self: &Arc<SimDisk>) -> Arc<dyn Disk> {
        Arc::new(durable::DurableImage(self.clone()))
    }

    /// Written paths of all files, sorted.
    pub fn paths(&self) -> Vec<String> {
        self.state().names.paths()
    }

    /// The written bytes of a file, without cost or faults.
    pub fn written(&self, path: &str) -> Option<Vec<u8>> {
        let mut state = self.state();
        let number = state.file_at(path).ok()?;
        Some(state.content(number).written().to_vec())
    }

    /// Un-synced sectors and un-synced names.
    pub fn unsynced(&self) -> (usize, usize) {
        let state = self.state();
        let sectors = state.files.values().map(|file| file.content.dirty_sectors()).sum();
        (sectors, state.names.pending())
    }
}

impl State {
    fn file_at(&self, path: &str) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(number)) => Ok(number),
            Some(Node::Dir) => Err(io::Error::from_raw_os_error(21)), // EISDIR
            None => Err(no_such_file()),
        }
    }

    fn content(&mut self, number: u64) -> &mut Content {
        &mut self.files.entry(number).or_default().content
    }

    fn used(&self) -> u64 {
        let held = self.files.values().filter(|file| file.linked || file.open > 0);
        held.map(|file| file.content.allocated()).sum()
    }

    /// Forgets files that nothing can reach any more.
    fn collect(&mut self) {
        if self.files.values().all(|file| file.linked || file.open > 0) {
            return;
        }
        let named = self.names.files();
        self.files.retain(|number, file| file.linked || file.open > 0 || named.contains(number));
    }
}
