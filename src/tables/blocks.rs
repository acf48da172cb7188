//! redb's storage: blocks with CRCs over a file of the seam's disk.
//!
//! **What makes it safe to crash.** Between two successful syncs nothing is written to bytes that the state
//! of the first sync needs:
//! - redb copies on write: it never writes to a page that its last durable commit reaches;
//! - its header and the CRCs of each group lie in two slots; what a sync writes goes to the slot that the
//!   last sync did not rely on, and after the sync the roles change.
//!
//! So whatever becomes of un-synced writes (kept, lost, torn at any byte), the newest intact slots describe
//! a state in which every page of the last durable commit verifies. Blocks that redb wrote but never
//! committed may not verify; redb does not read them before it writes them again.
//!
//! **What keeps it safe from rot.** A block is checked against its CRC, seeded with file and place, on each
//! read, and the root says how many blocks the file has at least, so that a cut one is refused.
//! [`Blocks::settle`] brings the second slots up to date, so that a rotten slot is replaced by its twin
//! and never by an older state. After the first error every call fails.
//!
//! **What a full disk does.** A transaction on a file that readers use must not fail them. From the first
//! write that finds no space on, nothing of it reaches the file any more: what redb believes written is kept
//! in memory, as it may read it again, and [`Blocks::is_spoiled`] says that the commit is none. The file is
//! as if power had been lost; it is opened anew for the next attempt, while readers go on in the old one.

use super::fault::Fault;
use super::layout::*;
use crate::codec::{self, kind};
use crate::limits::BLOCK_BYTES;
use crate::pb;
use crate::seam::{self, DiskFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where in the root's payload the least number of blocks stands, behind redb's header.
const LEAST_AT: usize = PAYLOAD_BYTES - 8;

/// The blocks of one table file.
pub(super) struct Blocks {
    file: Arc<dyn DiskFile>,
    id: u64,
    fault: Arc<Fault>,
    state: Mutex<State>,
    retired: AtomicBool,
    /// Whether a full disk spoils the transaction in place of failing the file.
    in_place: AtomicBool,
}

/// Held shortly, never across the disk.
struct State {
    /// CRC of every block, by number; 0 = never written. Entry 0 stands for redb's header.
    crcs: Vec<u32>,
    /// How many of them are not 0.
    written: u64,
    header: Box<[u8; PAYLOAD_BYTES]>,
    /// Which of the two slots holds what the last sync made durable.
    current: BTreeMap<Place, usize>,
    /// Changed since the last sync.
    dirty: BTreeSet<Place>,
    /// Durable in one slot only, with this generation.
    single: BTreeMap<Place, u64>,
    generation: u64,
    /// Blocks that the last sync made durable; the next root slot says that the file has at least these.
    durable_blocks: u64,
    /// Since the disk was full: the blocks that were written after that, by number.
    set_aside: Option<BTreeMap<u64, Box<[u8]>>>,
}

impl Blocks {
    /// A new, empty file: the head is written, nothing is durable yet.
    pub(super) fn create(
        file: Arc<dyn DiskFile>,
        id: u64,
        fault: Arc<Fault>,
    ) -> io::Result<Blocks> {
        let head = pb::TableFileHead {
            file_id: id,
            block_bytes: BLOCK as u32,
            group_blocks: GROUP_BLOCKS as u32,
        };
        let mut record = Vec::new();
        codec::encode_record(kind::TABLE_FILE, &prost::Message::encode_to_vec(&head), &mut record);
        record.resize(BLOCK_BYTES, 0);
        fault.note(file.set_len(0))?;
        fault.note(file.set_len(file_bytes(0)))?;
        fault.note(file.write_at(0, &record))?;
        Ok(Blocks::over(file, id, fault, State::new()))
    }

    fn over(file: Arc<dyn DiskFile>, id: u64, fault: Arc<Fault>, state: State) -> Blocks {
        let (retired, in_place) = (false.into(), false.into());
        Blocks { file, id, fault, state: Mutex::new(state), retired, in_place }
    }

    /// An existing file. What a killed process left un-synced is made durable before it is relied on.
    pub(super) fn open(file: Arc<dyn DiskFile>, fault: Arc<Fault>) -> io::Result<Blocks> {
        fault.note(file.sync_data())?;
        let mut head = vec![0; BLOCK_BYTES];
        let len = fault.note(file.len())?;
        let blocks = blocks_in(len);
        if blocks < 2 {
            return Err(fault.corrupt(format!("cut to {len} bytes")));
        }
        fault.note(file.read_exact_at(0, &mut head))?;
        let id = read_head(&head).map_err(|detail| fault.corrupt(detail))?;
        let mut state = State::new();
        state.crcs.resize(blocks as usize, 0);
        let blocks = Blocks::over(file, id, fault, state);
        blocks.load()?;
        blocks.sync()?;
        Ok(blocks)
    }

    /// Bytes of blocks that hold something: what the file takes on disk, holes apart.
    pub(super) fn written_bytes(&self) -> u64 {
        self.state().written * BLOCK
    }

    /// The file has been replaced: reads go on for those who still look, nothing is written any more.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// From now on readers use the file: see above for what a full disk does then.
    pub(super) fn write_in_place(&self) {
        self.in_place.store(true, Ordering::Release);
    }

    /// Whether the disk was full during a transaction, which has not been written.
    pub(super) fn is_spoiled(&self) -> bool {
        self.state().set_aside.is_some()
    }

    /// The outcome of a write to the file; `false` if it found a full disk, now or before.
    fn written(&self, outcome: io::Result<()>) -> io::Result<bool> {
        match outcome {
            Err(error) if self.bears(&error) => {
                crate::mark!("table file spoiled by a full disk");
                self.state().set_aside.get_or_insert_default();
                Ok(false)
            }
            outcome => self.fault.note(outcome).map(|()| true),
        }
    }

    fn bears(&self, error: &io::Error) -> bool {
        seam::is_full(error) && self.in_place.load(Ordering::Acquire)
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.check_writable()?;
        if self.is_spoiled() {
            return Ok(());
        }
        let (generation, slots, blocks) = self.state().take_dirty(self.id);
        // The root last: its slots have their space, so that a full disk strikes before it or not at all.
        for (place, copy, slot) in slots.iter().rev() {
            if !self.written(self.file.write_at(place.slot_offset(*copy), slot))? {
                return Ok(());
            }
        }
        if !crate::bug!(M12) {
            self.fault.note(self.file.sync_data())?;
        }
        let mut state = self.state();
        state.durable_blocks = blocks;
        for (place, copy, _) in slots {
            state.current.insert(place, copy);
            state.single.insert(place, generation);
        }
        Ok(())
    }

    /// Brings the second slots up to date, durably, so that each state has two witnesses.
    pub(super) fn settle(&self) -> io::Result<()> {
        self.fault.check()?;
        let twins = self.state().take_single(self.id);
        if twins.is_empty() || self.is_spoiled() {
            return Ok(());
        }
        for (place, copy, slot) in &twins {
            match self.file.write_at(place.slot_offset(*copy), slot) {
                Err(error) if self.bears(&error) => {
                    // What was committed stays so; the next transaction brings the twin.
                    crate::mark!("table slot without a twin on a full disk");
                    self.state().dirty.insert(*place);
                }
                outcome => self.fault.note(outcome)?,
            }
        }
        self.fault.note(self.file.sync_data())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all slots. Pairs whose slots differ are marked to be written anew.
    fn load(&self) -> io::Result<()> {
        let last = group_of(self.state().crcs.len() as u64 - 1);
        let places = (0..=last).map(Place::Group).chain([Place::Root]);
        let mut pair = vec![0; 2 * BLOCK_BYTES];
        for place in places {
            self.fault.note(self.file.read_exact_at(place.slot_offset(0), &mut pair))?;
            self.load_pair(place, &pair)?;
        }
        Ok(())
    }

    fn load_pair(&self, place: Place, pair: &[u8]) -> io::Result<()> {
        let (a, b) = pair.split_at(BLOCK_BYTES);
        let slots = [decode_slot(self.id, place, a), decode_slot(self.id, place, b)];
        let generations = slots.map(|slot| slot.map(|(generation, _)| generation));
        let newest = usize::from(generations[1] > generations[0]);
        let Some((generation, payload)) = slots[newest] else {
            return Err(self.fault.corrupt(format!("{place:?}: neither slot is intact")));
        };
        if place == Place::Root && generation == 0 {
            return Err(self.fault.corrupt("it has no header".to_owned()));
        }
        let mut state = self.state();
        let (blocks, least) = (state.crcs.len() as u64, State::least_blocks(payload));
        if place == Place::Root && blocks < least {
            let detail = format!("cut to {blocks} blocks of {least}");
            return Err(self.fault.corrupt(detail));
        }
        state.durable_blocks = blocks;
        state.generation = state.generation.max(generation);
        state.current.insert(place, newest);
        if generations[0] != generations[1] {
            crate::mark!("table slots differ at open");
            state.dirty.insert(place);
        }
        state.fill(place, payload);
        Ok(())
    }

    fn read_blocks(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut block, mut rest) = (first, out);
        while !rest.is_empty() {
            let run = (run_of(block) * BLOCK).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(run as usize);
            if !self.state().was_set_aside(block, now) {
                self.fault.note(self.file.read_exact_at(block_offset(block), now))?;
                self.verify(block, now)?;
            }
            (block, rest) = (block + run / BLOCK, later);
        }
        Ok(())
    }

    fn verify(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let count = data.len() / BLOCK_BYTES;
        let expected = self.state().crcs[first as usize..][..count].to_vec();
        for ((data, expected), block) in data.chunks(BLOCK_BYTES).zip(expected).zip(first..) {
            // NAKED: a block is what the disk says that it is.
            if expected != block_crc(self.id, block, data) && !crate::bug!(NAKED) {
                crate::mark!("table block refused");
                let what = if expected == 0 { "was never written" } else { "fails its CRC" };
                let detail = format!("block {block} (at byte {}) {what}", block_offset(block));
                return Err(self.fault.corrupt(detail));
            }
        }
        Ok(())
    }

    fn write_blocks(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let crcs = data.chunks(BLOCK_BYTES).zip(first..);
        let crcs: Vec<u32> = crcs.map(|(data, block)| block_crc(self.id, block, data)).collect();
        self.state().set_crcs(first, &crcs);
        let (mut block, mut rest) = (first, data);
        while !rest.is_empty() {
            let run = (run_of(block) * BLOCK).min(rest.len() as u64);
            let (now, later) = rest.split_at(run as usize);
            if self.is_spoiled() || !self.written(self.file.write_at(block_offset(block), now))? {
                self.state().set_aside(block, now);
            }
            (block, rest) = (block + run / BLOCK, later);
        }
        Ok(())
    }

    /// A retired file refuses writes: redb then closes it without a last commit.
    fn check_writable(&self) -> io::Result<()> {
        if self.retired.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.fault.check()
    }

    fn check_range(&self, offset: u64, len: usize) -> io::Result<()> {
        self.fault.check()?;
        let end = offset.saturating_add(len as u64);
        if end > self.state().crcs.len() as u64 * BLOCK {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let in_header = end <= LEAST_AT as u64;
        if in_header
            || (offset >= BLOCK && offset.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK))
        {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not whole blocks"))
    }
}

fn read_head(block: &[u8]) -> Result<u64, String> {
    let (body, _) = codec::decode_record(kind::TABLE_FILE, block).map_err(|e| e.to_string())?;
    let head = <pb::TableFileHead as prost::Message>::decode(body).map_err(|e| e.to_string())?;
    if (u64::from(head.block_bytes), u64::from(head.group_blocks)) != (BLOCK, GROUP_BLOCKS) {
        return Err("its blocks have another size".to_owned());
    }
    Ok(head.file_id)
}

impl redb::StorageBackend for Blocks {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().crcs.len() as u64 * BLOCK)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, out.len())?;
        if offset < BLOCK {
            out.copy_from_slice(&self.state().header[offset as usize..][..out.len()]);
            return Ok(());
        }
        self.read_blocks(offset / BLOCK, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        if !len.is_multiple_of(BLOCK) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not whole blocks"));
        }
        // Before the file is cut, the root must no longer say that it is longer.
        if self.state().resize(len / BLOCK) {
            self.sync()?;
        }
        if !self.is_spoiled() {
            self.written(self.file.set_len(file_bytes(len / BLOCK)))?;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.check_range(offset, data.len())?;
        if offset < BLOCK {
            self.state().set_header(offset as usize, data);
            return Ok(());
        }
        self.write_blocks(offset / BLOCK, data)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table file {:016x}", self.id)
    }
}

fn written(crcs: &[u32]) -> u64 {
    crcs.iter().filter(|crc| **crc != 0).count() as u64
}

type Slots = Vec<(Place, usize, Vec<u8>)>;

impl State {
    fn new() -> State {
        State {
            crcs: Vec::new(),
            written: 0,
            header: Box::new([0; PAYLOAD_BYTES]),
            current: BTreeMap::new(),
            dirty: BTreeSet::new(),
            single: BTreeMap::new(),
            generation: 0,
            durable_blocks: 0,
            set_aside: None,
        }
    }

    fn set_aside(&mut self, first: u64, data: &[u8]) {
        let blocks = data.chunks(BLOCK_BYTES).zip(first..);
        let blocks = blocks.map(|(data, block)| (block, data.into()));
        self.set_aside.get_or_insert_default().extend(blocks);
    }

    /// Whether these blocks, which are written and read together, were set aside; then `out` is filled.
    fn was_set_aside(&self, first: u64, out: &mut [u8]) -> bool {
        let Some(aside) = &self.set_aside else { return false };
        for (out, block) in out.chunks_mut(BLOCK_BYTES).zip(first..) {
            let Some(data) = aside.get(&block) else { return false };
            out.copy_from_slice(data);
        }
        true
    }

    fn set_header(&mut self, offset: usize, data: &[u8]) {
        self.header[offset..offset + data.len()].copy_from_slice(data);
        self.dirty.insert(Place::Root);
    }

    fn set_crcs(&mut self, first: u64, crcs: &[u32]) {
        let places = &mut self.crcs[first as usize..][..crcs.len()];
        self.written -= written(places);
        places.copy_from_slice(crcs);
        self.written += written(places);
        let last = first + crcs.len() as u64 - 1;
        self.dirty.extend((group_of(first)..=group_of(last)).map(Place::Group));
    }

    /// Cuts or extends, and says whether it cut; what is cut away is unwritten when it comes back.
    fn resize(&mut self, blocks: u64) -> bool {
        let cut = blocks < self.crcs.len() as u64;
        if cut {
            self.written -= written(&self.crcs[blocks as usize..]);
            let groups = if blocks > 1 { group_of(blocks - 1) + 1 } else { 0 };
            let gone = Place::Group(groups);
            self.current.split_off(&gone);
            self.dirty.split_off(&gone);
            self.single.split_off(&gone);
            self.dirty.extend(groups.checked_sub(1).map(Place::Group));
            self.dirty.insert(Place::Root);
            self.durable_blocks = self.durable_blocks.min(blocks);
        }
        self.crcs.resize(blocks as usize, 0);
        cut
    }

    /// The number behind redb's header in the root's payload.
    fn least_blocks(payload: &[u8]) -> u64 {
        u64::from_le_bytes(payload[LEAST_AT..].try_into().expect("eight bytes"))
    }

    /// Takes what a slot says into memory.
    fn fill(&mut self, place: Place, payload: &[u8]) {
        let Place::Group(group) = place else {
            self.header.copy_from_slice(payload);
            return;
        };
        let blocks = blocks_of(group);
        let end = blocks.end.min(self.crcs.len() as u64);
        let entries = &mut self.crcs[blocks.start as usize..end as usize];
        self.written -= written(entries);
        for (entry, raw) in entries.iter_mut().zip(payload.chunks(4)) {
            *entry = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        }
        self.written += written(entries);
    }

    fn payload(&self, place: Place) -> Box<[u8; PAYLOAD_BYTES]> {
        let Place::Group(group) = place else {
            let mut payload = self.header.clone();
            payload[LEAST_AT..].copy_from_slice(&self.durable_blocks.to_le_bytes());
            return payload;
        };
        let mut payload = Box::new([0; PAYLOAD_BYTES]);
        let blocks = blocks_of(group);
        let end = blocks.end.min(self.crcs.len() as u64);
        let entries = &self.crcs[blocks.start as usize..end as usize];
        for (raw, entry) in payload.chunks_mut(4).zip(entries) {
            raw.copy_from_slice(&entry.to_le_bytes());
        }
        payload
    }

    /// The slots that the next sync writes: each beside the one that the last sync relied on. Generations
    /// rise over the whole file, so that a group that was cut off and came back is newer than its old self.
    fn take_dirty(&mut self, file_id: u64) -> (u64, Slots, u64) {
        let dirty = std::mem::take(&mut self.dirty);
        self.generation += 1;
        let slots = dirty.into_iter().map(|place| {
            let copy = self.current.get(&place).map_or(0, |copy| 1 - copy);
            (place, copy, encode_slot(file_id, place, self.generation, &self.payload(place)))
        });
        (self.generation, slots.collect(), self.crcs.len() as u64)
    }

    /// The slots that bring each pair to one generation. A place that changed again waits for its sync.
    fn take_single(&mut self, file_id: u64) -> Slots {
        let single = std::mem::take(&mut self.single);
        let twins = single.into_iter().filter(|(place, _)| !self.dirty.contains(place));
        let twins = twins.map(|(place, generation)| {
            let copy = self.current.get(&place).map_or(0, |copy| 1 - copy);
            (place, copy, encode_slot(file_id, place, generation, &self.payload(place)))
        });
        twins.collect()
    }
}
