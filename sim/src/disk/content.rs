//! The bytes of one file: what was written, and apart from it what a power loss can leave.
//!
//! For each sector changed since the last sync the bytes that are durable are kept, and a few of the
//! versions in between, because a page may have been written back at any moment. Sectors not changed are the
//! same in both images.

use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// What a disk writes whole or not at all, bytes.
pub const SECTOR: usize = 512;
/// Unit of space, bytes.
pub const BLOCK: u64 = 4096;
/// Versions between the durable and the written one that a power loss can choose.
const VERSIONS_KEPT: usize = 4;

type Sector = Box<[u8; SECTOR]>;

/// A sector that differs between the two images.
#[derive(Clone)]
struct Dirty {
    /// The durable bytes, then later versions, oldest first, without the current one.
    versions: Vec<Sector>,
    /// Its write-back failed: the page is clean, no sync will write it, and only the durable bytes survive.
    lost: bool,
}

/// How a power loss treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing un-synced survives.
    DropAll,
    /// Everything survives.
    KeepAll,
    /// Each sector on its own: dropped, kept, an earlier version, or (now and then) torn inside.
    Mixed,
    /// Nothing but what is chosen.
    Only(Chosen),
}

/// Which of the un-synced units survive a power loss. Units are counted from 0: changes of names in their
/// order, then dirty sectors, file by file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// These do.
    pub kept: [Option<usize>; 2],
    /// This one only in its first half.
    pub torn: Option<usize>,
}

impl Chosen {
    /// Every choice of up to two survivors out of so many units, and of each one torn.
    pub fn all(units: usize) -> Vec<Chosen> {
        let mut all = Vec::new();
        for a in 0..units {
            all.push(Chosen { kept: [Some(a), None], torn: None });
            all.push(Chosen { kept: [None, None], torn: Some(a) });
            all.extend((0..a).map(|b| Chosen { kept: [Some(a), Some(b)], torn: None }));
        }
        all
    }

    pub(super) fn keeps(&self, unit: usize) -> bool {
        self.kept.contains(&Some(unit))
    }
}

/// Written and durable image of one file.
#[derive(Clone, Default)]
pub struct Content {
    written: Vec<u8>,
    durable_len: u64,
    dirty: BTreeMap<u64, Dirty>,
    blocks: BTreeSet<u64>,
}

impl Content {
    /// Written length, bytes.
    pub fn len(&self) -> u64 {
        self.written.len() as u64
    }

    /// The written bytes.
    pub fn written(&self) -> &[u8] {
        &self.written
    }

    /// Space taken, bytes.
    pub fn allocated(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// Space that writing `[offset, offset + len)` would take beyond what is taken already, bytes.
    pub fn to_allocate(&self, offset: u64, len: u64) -> u64 {
        let wanted = blocks_of(offset, len);
        let have = self.blocks.range(wanted.clone()).count() as u64;
        (wanted.end - wanted.start - have) * BLOCK
    }

    /// Takes the space of `[offset, offset + len)`.
    pub fn allocate(&mut self, offset: u64, len: u64) {
        self.blocks.extend(blocks_of(offset, len));
    }

    /// Overwrites or extends.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        self.touch(from, to);
        if to > self.written.len() {
            self.written.resize(to, 0);
        }
        self.written[from..to].copy_from_slice(bytes);
        self.allocate(offset, bytes.len() as u64);
    }

    /// Cuts or extends with zeros.
    pub fn set_len(&mut self, len: u64) {
        let (old, new) = (self.written.len(), len as usize);
        if new < old {
            self.touch(new, old);
            self.blocks.split_off(&len.div_ceil(BLOCK));
        }
        self.written.resize(new, 0);
    }

    /// Zeros a range within the length and gives back whole blocks.
    pub fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let (from, to) =
            (offset.min(self.len()) as usize, end.min(self.written.len() as u64) as usize);
        if from < to {
            self.touch(from, to);
            self.written[from..to].fill(0);
        }
        let inner = offset.div_ceil(BLOCK)..end / BLOCK;
        if inner.start < inner.end {
            let gone: Vec<u64> = self.blocks.range(inner).copied().collect();
            gone.iter().for_each(|block| {
                self.blocks.remove(block);
            });
        }
    }

    /// Flips the bits of `mask` on the medium, in every version there is. False if there is no such byte.
    pub fn rot(&mut self, offset: u64, mask: u8) -> bool {
        let Some(byte) = self.written.get_mut(offset as usize) else { return false };
        *byte ^= mask;
        if let Some(dirty) = self.dirty.get_mut(&(offset / SECTOR as u64)) {
            for version in &mut dirty.versions {
                version[offset as usize % SECTOR] ^= mask;
            }
        }
        true
    }

    /// Un-synced sectors (without those whose write-back already failed).
    pub fn dirty_sectors(&self) -> usize {
        self.dirty.values().filter(|dirty| !dirty.lost).count()
    }

    /// Whether a power loss can change nothing.
    pub fn synced(&self) -> bool {
        self.dirty.is_empty() && self.durable_len == self.len()
    }

    /// fdatasync.
    pub fn sync(&mut self) {
        self.durable_len = self.len();
        self.dirty.retain(|_, dirty| dirty.lost);
    }

    /// A sync that fails: each dirty page either reached the disk or is lost, and all are clean afterwards.
    pub fn fail_sync(&mut self, rng: &mut Rng) {
        self.dirty.retain(|_, dirty| {
            let reached = !dirty.lost && rng.chance(1, 3);
            dirty.lost = true;
            !reached
        });
    }

    /// Remembers the current bytes of every sector that `[from, to)` touches.
    fn touch(&mut self, from: usize, to: usize) {
        for sector in (from / SECTOR) as u64..to.div_ceil(SECTOR) as u64 {
            let current = sector_of(&self.written, sector);
            let dirty = self.dirty.entry(sector).or_insert(Dirty { versions: vec![], lost: false });
            dirty.lost = false;
            if dirty.versions.last() == Some(&current) {
                continue;
            }
            if dirty.versions.len() == VERSIONS_KEPT {
                dirty.versions.remove(1);
            }
            dirty.versions.push(current);
        }
    }

    /// Durable length, bytes.
    pub fn durable_len(&self) -> u64 {
        self.durable_len
    }

    /// Copies durable bytes from `offset`; returns how many there are (at most `buf.len()`).
    pub fn durable_read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let len = (self.durable_len.saturating_sub(offset)).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        buf.fill(0);
        if len == 0 {
            return 0;
        }
        let from = offset as usize;
        if let Some(written) = self.written.get(from..self.written.len().min(from + len)) {
            buf[..written.len()].copy_from_slice(written);
        }
        let sectors = from / SECTOR..(from + len).div_ceil(SECTOR);
        for (sector, dirty) in self.dirty.range(sectors.start as u64..sectors.end as u64) {
            let start = *sector as usize * SECTOR;
            let (low, high) = (start.max(from), (start + SECTOR).min(from + len));
            let old = &dirty.versions[0][low - start..high - start];
            buf[low - from..high - from].copy_from_slice(old);
        }
        len
    }

    /// Becomes what the power loss leaves; that is durable then. Returns how many sectors were torn or lost.
    pub fn power_loss(&mut self, outcome: Outcome, rng: &mut Rng, unit: &mut usize) -> u64 {
        let len = match outcome {
            Outcome::DropAll => self.durable_len,
            Outcome::KeepAll => self.len(),
            Outcome::Mixed => self.surviving_len(rng),
            Outcome::Only(chosen) => self.chosen_len(chosen, *unit),
        } as usize;
        let mut image = std::mem::take(&mut self.written);
        let written_len = image.len();
        image.resize(image.len().max(len), 0);
        let mut changed = 0;
        for (sector, dirty) in std::mem::take(&mut self.dirty) {
            let at = std::mem::replace(unit, *unit + 1);
            let start = sector as usize * SECTOR;
            if start >= image.len() {
                continue;
            }
            let current = sector_of(&image[..written_len.min(image.len())], sector);
            let survivor = survivor(&dirty, &current, (outcome, at), rng);
            changed += u64::from(survivor != current);
            self.blocks.insert(start as u64 / BLOCK);
            let end = image.len().min(start + SECTOR);
            image[start..end].copy_from_slice(&survivor[..end - start]);
        }
        image.truncate(len);
        self.written = image;
        self.durable_len = len as u64;
        changed
    }

    /// Long enough for what survives.
    fn chosen_len(&self, chosen: Chosen, first: usize) -> u64 {
        let survives = |unit| chosen.keeps(unit) || chosen.torn == Some(unit);
        let last = (first..).zip(self.dirty.keys()).filter(|(unit, _)| survives(*unit)).last();
        let end = last.map_or(0, |(_, sector)| (sector + 1) * SECTOR as u64);
        self.durable_len.max(end.min(self.len()))
    }

    fn surviving_len(&self, rng: &mut Rng) -> u64 {
        let (durable, written) = (self.durable_len, self.len());
        match rng.below(3) {
            0 => durable,
            1 => written,
            // The length grew in steps, each of which may have been the last to reach the journal.
            _ if written > durable => {
                let steps = (written - durable) / SECTOR as u64;
                durable + rng.below(steps + 1) * SECTOR as u64
            }
            _ => durable,
        }
    }
}

fn survivor(
    dirty: &Dirty,
    current: &Sector,
    (outcome, unit): (Outcome, usize),
    rng: &mut Rng,
) -> Sector {
    let durable = &dirty.versions[0];
    match outcome {
        Outcome::Only(chosen) if chosen.torn == Some(unit) && !dirty.lost => {
            let mut sector = current.clone();
            sector[SECTOR / 2..].copy_from_slice(&durable[SECTOR / 2..]);
            sector
        }
        Outcome::Only(chosen) if chosen.keeps(unit) && !dirty.lost => current.clone(),
        Outcome::Only(_) => durable.clone(),
        _ if dirty.lost => durable.clone(),
        Outcome::DropAll => durable.clone(),
        Outcome::KeepAll => current.clone(),
        Outcome::Mixed => match rng.below(8) {
            0..=2 => durable.clone(),
            3..=5 => current.clone(),
            6 => rng.pick(&dirty.versions).clone(),
            _ => {
                let torn = torn(durable, current, rng);
                if plan::strikes(FaultClass::TornSectors) { torn } else { durable.clone() }
            }
        },
    }
}

/// New bytes up to a point, old ones behind it, or the other way round.
fn torn(old: &Sector, new: &Sector, rng: &mut Rng) -> Sector {
    let at = rng.range(1, (SECTOR / 64) as u64) as usize * 64;
    let (first, second) = if rng.chance(1, 2) { (new, old) } else { (old, new) };
    let mut sector = first.clone();
    sector[at..].copy_from_slice(&second[at..]);
    sector
}

/// A sector of the image, zeros behind its end.
fn sector_of(image: &[u8], sector: u64) -> Sector {
    let mut bytes = Box::new([0; SECTOR]);
    let start = sector as usize * SECTOR;
    if start < image.len() {
        let end = image.len().min(start + SECTOR);
        bytes[..end - start].copy_from_slice(&image[start..end]);
    }
    bytes
}

fn blocks_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    if len == 0 { 0..0 } else { offset / BLOCK..offset.saturating_add(len).div_ceil(BLOCK) }
}
