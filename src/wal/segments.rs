//! The segment files: those that count, by generation, the last of them being written to; those free to be
//! used again; those that will be free once their purge is durable.

use super::WalError;
use super::recover::{DIR, Recovered, slot_path};
use crate::seam::{Disk, DiskFile, OpenMode};
use crate::{bug, mark};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Free segments kept; more are removed.
const FREE_MAX: usize = 2;
/// So often no other spare is asked for after one that failed.
const SPARE_WAIT: u32 = 16;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A segment file.
pub struct Segment {
    pub slot: u64,
    pub file: Arc<dyn DiskFile>,
    /// Bytes written before, so that writing again changes no metadata.
    pub len: u64,
    /// Highest log index written; 0 if none.
    pub last_index: u64,
}

impl Segment {
    /// Its path on the disk.
    pub fn path(&self) -> String {
        slot_path(self.slot)
    }
}

/// Writes the next spare segment.
pub struct SpareJob {
    disk: Arc<dyn Disk>,
    slot: u64,
    len: u64,
}

/// A segment that is ready to be used.
pub struct Spare(Segment);

impl SpareJob {
    /// Creates the file, writes it with zeros and makes it and its name durable. A half-made one is removed.
    pub fn run(self) -> Result<Spare, WalError> {
        let made = prepare(&*self.disk, self.slot, self.len);
        if made.is_err() {
            let _ = self.disk.remove(&slot_path(self.slot));
        }
        made.map(Spare)
    }
}

/// All segment files of a log.
pub struct Segments {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    live: BTreeMap<u64, Segment>,
    free: Vec<Segment>,
    /// With the sequence of the purge that retired them.
    retired: Vec<(u64, Segment)>,
    next_slot: u64,
    generation_seen: u64,
    preparing: bool,
    space_is_low: bool,
    /// So often no spare is wanted, after one that failed.
    wait: u32,
}

impl Segments {
    /// Opens what was found.
    pub fn open(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        found: &Recovered,
    ) -> Result<Segments, WalError> {
        let made = disk.create_dir(DIR).and_then(|()| disk.sync_dir(""));
        made.map_err(|e| WalError::io(&*disk, DIR, "create", &e))?;
        let mut live = BTreeMap::new();
        for (generation, segment) in &found.live {
            live.insert(*generation, open(&*disk, segment.slot, segment.last_index)?);
        }
        let mut free = Vec::new();
        for slot in &found.free_slots {
            let segment = open(&*disk, *slot, 0)?;
            // A process may have been killed while it wrote the zeros: their length is to last.
            let synced = segment.file.sync_data();
            synced.map_err(|e| WalError::io(&*disk, &segment.path(), "sync", &e))?;
            free.push(segment);
        }
        let slots = live.values().chain(&free).map(|segment| segment.slot);
        Ok(Segments {
            next_slot: slots.max().map_or(0, |slot| slot + 1),
            // The first generation is a random number: nobody can plant bytes in an entry that look like a
            // record of this log.
            generation_seen: match found.generation_seen {
                0 => crate::seam::rng::random_range(1, 1 << 40),
                seen => seen,
            },
            segment_bytes: segment_bytes.next_multiple_of(super::SECTOR_BYTES as u64),
            disk,
            live,
            free,
            retired: Vec::new(),
            preparing: false,
            space_is_low: false,
            wait: 0,
        })
    }

    /// Generation of the segment being written; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.live.keys().next_back().copied().unwrap_or(0)
    }

    /// Generation of the oldest segment that counts.
    pub fn first_generation(&self) -> u64 {
        self.live.keys().next().copied().unwrap_or(0)
    }

    /// The segment being written.
    pub fn active(&self) -> &Segment {
        self.live.values().next_back().expect("an open log has a segment")
    }

    /// A segment that counts.
    pub fn get(&self, generation: u64) -> &Segment {
        &self.live[&generation]
    }

    /// An entry went into the active segment.
    pub fn note_entry(&mut self, index: u64) {
        let mut last = self.live.last_entry().expect("an open log has a segment");
        let segment = last.get_mut();
        segment.last_index = segment.last_index.max(index);
    }

    /// The oldest generation that holds an entry above `purged`, or the active one.
    pub fn first_needed(&self, purged: u64) -> u64 {
        let needed = self.live.iter().find(|(_, segment)| segment.last_index > purged);
        needed.map_or(self.generation(), |(generation, _)| *generation)
    }

    /// Segments below `generation` no longer count; they become free when `sequence` is durable.
    pub fn retire_before(&mut self, generation: u64, sequence: u64) {
        let needed = self.live.split_off(&generation);
        for (_, segment) in std::mem::replace(&mut self.live, needed) {
            self.retired.push((sequence, segment));
        }
    }

    /// Everything up to `durable` is durable: what was retired by then is free.
    pub fn release(&mut self, durable: u64) {
        let (freed, waiting): (Vec<_>, Vec<_>) =
            self.retired.drain(..).partition(|(sequence, _)| *sequence <= durable);
        self.retired = waiting;
        for (_, segment) in freed {
            if self.free.len() < FREE_MAX {
                self.free.push(segment);
            } else {
                // Without its name it only wastes space until the next start; so no error is one.
                let _ = self.disk.remove(&segment.path());
            }
            self.space_is_low = false;
        }
    }

    /// Makes another segment the active one, with room for at least `bytes`.
    pub fn begin(&mut self, bytes: u64) -> Result<(), WalError> {
        let len = self.segment_bytes.max(bytes.next_multiple_of(super::SECTOR_BYTES as u64));
        let segment = match self.free.pop() {
            Some(segment) if segment.len >= len => {
                mark!("wal: segment recycled");
                segment
            }
            Some(segment) => prepare(&*self.disk, segment.slot, len)?,
            None => {
                let slot = self.next_slot;
                self.next_slot += 1;
                prepare(&*self.disk, slot, len)?
            }
        };
        self.generation_seen += 1;
        self.live.insert(self.generation_seen, Segment { last_index: 0, ..segment });
        Ok(())
    }

    /// Writes bytes of the active segment again that were read and verified: after a failed sync of an earlier
    /// process the page cache may call them clean although the disk never got them.
    pub fn rewrite(&self, from: u64, bytes: &[u8]) -> Result<(), WalError> {
        let active = self.active();
        let rewrite = || {
            active.file.write_at(from, bytes)?;
            active.file.sync_data()
        };
        rewrite().map_err(|e| WalError::io(&*self.disk, &active.path(), "rewrite the tail of", &e))
    }

    /// Makes the names durable.
    pub fn sync_dir(&self) -> Result<(), WalError> {
        self.disk.sync_dir(DIR).map_err(|e| WalError::io(&*self.disk, DIR, "sync", &e))
    }

    /// A job if no segment is free and none is being prepared.
    pub fn spare_wanted(&mut self) -> Option<SpareJob> {
        if !self.free.is_empty() || !self.retired.is_empty() || self.preparing {
            return None;
        }
        if self.wait > 0 {
            self.wait -= 1;
            return None;
        }
        self.preparing = true;
        self.next_slot += 1;
        Some(SpareJob {
            disk: self.disk.clone(),
            slot: self.next_slot - 1,
            len: self.segment_bytes,
        })
    }

    /// The job's result. A spare that could not be made is no error of the log.
    pub fn add_spare(&mut self, spare: Result<Spare, WalError>) {
        self.preparing = false;
        match spare {
            Ok(spare) => {
                self.space_is_low = false;
                self.free.push(spare.0);
            }
            Err(WalError::Io { full: true, .. }) => self.space_is_low = true,
            // Not for want of room: nobody is to be refused for it. Who needs the segment and can not make it
            // either, ends the log.
            Err(_) => self.wait = SPARE_WAIT,
        }
    }

    /// The last spare could not be made for want of room.
    pub fn space_is_low(&self) -> bool {
        self.space_is_low
    }
}

fn open(disk: &dyn Disk, slot: u64, last_index: u64) -> Result<Segment, WalError> {
    let path = slot_path(slot);
    let open = || {
        let file = disk.open(&path, OpenMode::Write)?;
        let len = file.len()?;
        Ok(Segment { slot, file, len, last_index })
    };
    open().map_err(|e| WalError::io(disk, &path, "open", &e))
}

/// A file of zeros: what is written into it later changes no metadata, which makes fdatasync cheap.
fn prepare(disk: &dyn Disk, slot: u64, len: u64) -> Result<Segment, WalError> {
    let path = slot_path(slot);
    let make = || -> io::Result<Segment> {
        let file = disk.open(&path, OpenMode::Create)?;
        let mut at = 0;
        while at < len {
            let piece = usize::try_from(len - at).unwrap_or(usize::MAX).min(ZEROS.len());
            file.write_at(at, &ZEROS[..piece])?;
            at += piece as u64;
        }
        file.sync_data()?;
        if !bug!(M11) {
            disk.sync_dir(DIR)?;
        }
        Ok(Segment { slot, file, len, last_index: 0 })
    };
    make().map_err(|e| WalError::io(disk, &path, "prepare", &e))
}
