//! What can go wrong with a simulated disk, and what did.

use super::{SECTOR, State, gone};
use crate::plan::{self, FaultClass};
use crate::rng::Ratio;
use crate::trace;
use std::io;
use std::time::Duration;

/// Faults drawn at each call. `next_*` strike that many coming calls for certain, before any draw.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Faults {
    /// A read fails with EIO.
    pub read_eio: Ratio,
    /// A write fails with EIO after a part of it.
    pub write_eio: Ratio,
    /// A sync fails with EIO; its dirty pages are lost or not, and clean.
    pub sync_eio: Ratio,
    /// A write goes to another place of its file and reports success.
    pub misdirect: Ratio,
    /// A call takes up to `slow_ms_max`.
    pub slow: Ratio,
    /// Longest time of a slow call.
    pub slow_ms_max: u64,
    /// Every call that needs new space fails with ENOSPC.
    pub full: bool,
    /// Calls that need new space to fail with ENOSPC, although the disk says that it has some: another program
    /// fills it at the same time.
    pub next_enospc: u32,
    /// Calls that open a file or a directory to fail with EMFILE.
    #[serde(default)]
    pub next_emfile: u32,
    /// Reads to fail.
    pub next_read_eio: u32,
    /// Writes to fail.
    pub next_write_eio: u32,
    /// Syncs to fail.
    pub next_sync_eio: u32,
    /// Writes to misdirect.
    pub next_misdirect: u32,
    /// Reads that give what is elsewhere in the file, and report success.
    pub next_misread: u32,
    /// Where set, the coming reads, writes and syncs that `next_*` speaks of are those of paths with this in them;
    /// where it ends in `/`, syncs of directories whose path (with a `/` behind it) begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
}

/// What a call is about.
#[derive(Clone, Copy)]
pub(super) enum Of<'a> {
    /// A file, by its number.
    File(u64),
    /// A directory.
    Dir(&'a str),
}

/// What was done and injected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub reads: u64,
    /// Calls that change the disk: writes, syncs, names.
    pub changes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// fdatasyncs that succeeded.
    pub syncs: u64,
    /// Directory syncs that succeeded.
    pub dir_syncs: u64,
    /// Injected: EIO on read.
    pub read_eio: u64,
    /// Injected: EIO on write.
    pub write_eio: u64,
    /// Injected: EIO on sync.
    pub sync_eio: u64,
    /// Injected or reached: no space.
    pub enospc: u64,
    /// Injected: no descriptor left for an open.
    pub emfile: u64,
    /// Injected: slow calls.
    pub slow: u64,
    /// Injected: misdirected writes.
    pub misdirected: u64,
    /// Injected: reads of what is elsewhere.
    pub misread: u64,
    /// Injected: rotten bytes.
    pub rotten: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Sectors that a power loss dropped or tore.
    pub sectors_lost: u64,
    /// Creates, renames and removes that a power loss undid.
    pub names_lost: u64,
}

impl Counters {
    /// Calls that failed or lied, and bytes that changed by themselves: whoever meets one may end for it.
    pub fn failures(&self) -> u64 {
        let errors = self.read_eio + self.write_eio + self.sync_eio + self.enospc + self.emfile;
        errors + self.misread + self.changed_unasked()
    }

    /// Those that a chunkserver which runs bears: it goes on without the descriptor, the space or the bytes.
    pub fn bearable(&self) -> u64 {
        self.read_eio + self.enospc + self.emfile
    }

    /// Changes of the durable image: what changes it counts here.
    pub fn durable_changes(&self) -> u64 {
        self.syncs + self.dir_syncs + self.sync_eio + self.power_losses + self.rotten
    }

    /// Times that content changed and its writer could not know it.
    pub fn changed_unasked(&self) -> u64 {
        self.misdirected + self.rotten
    }
}

/// An operation that changes the disk, for the trace.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What.
    pub kind: &'static str,
    /// The path, where the operation is on a name.
    pub path: &'a str,
    /// The file's number, where it is on a file.
    pub file: u64,
    /// Offset or new length, bytes.
    pub offset: u64,
    /// The bytes written.
    pub bytes: &'a [u8],
    /// Whether it succeeded.
    pub ok: bool,
}

impl State {
    /// At the start of every call: fenced handles and dead disks answer nothing.
    pub(super) fn admit(&self, incarnation: u64) -> io::Result<()> {
        let dead = self.dies_at.is_some_and(|at| self.counters.changes >= at);
        if incarnation < self.incarnation || dead { Err(gone()) } else { Ok(()) }
    }

    /// In every call that opens something.
    pub(super) fn admit_open(&mut self) -> io::Result<()> {
        if self.faults.next_emfile == 0 {
            return Ok(());
        }
        self.faults.next_emfile -= 1;
        self.counters.emfile += 1;
        Err(io::Error::from_raw_os_error(24)) // EMFILE
    }

    /// At the start of every call that changes the disk.
    pub(super) fn admit_change(&mut self, incarnation: u64) -> io::Result<()> {
        self.admit(incarnation)?;
        self.counters.changes += 1;
        if self.fills_at.is_some_and(|at| self.counters.changes > at) {
            self.fills_at = None;
            self.taken = self.free();
        }
        self.spend(0, 0);
        Ok(())
    }

    /// The calling task owes between `low` and `high` microseconds, and more if the disk is slow. What it calls
    /// before it pays happens at one moment here, and would be spread over that time: of such calls the slow
    /// ones take no longer in all than one of them may, or a start made of twenty calls on a disk that was slow
    /// for a moment would take a minute, also after the disk is quick again.
    pub(super) fn spend(&mut self, low: u64, high: u64) {
        let mut micros = self.rng.range(low, high);
        let is_slow = self.rng.hit(self.faults.slow);
        if is_slow {
            self.counters.slow += 1;
            let most = self.faults.slow_ms_max.max(2) * 1000;
            let slow = self.rng.range(1, self.faults.slow_ms_max.max(2)) * 1000;
            let owed = u64::try_from(mooseng::seam::owed().as_micros()).unwrap_or(u64::MAX);
            micros += slow.min(most.saturating_sub(owed));
        }
        if micros > 0 {
            mooseng::seam::owe(Duration::from_micros(micros));
        }
        if is_slow {
            let owed = u64::try_from(mooseng::seam::owed().as_nanos()).unwrap_or(u64::MAX);
            self.slow_until_ns = trace::now_ns().saturating_add(owed);
        }
    }

    /// Bytes that can still be taken.
    pub(super) fn free(&self) -> u64 {
        let free = self.capacity.saturating_sub(self.used() + self.taken);
        if self.faults.full { 0 } else { free }
    }

    /// Whether `next_*` mean a call about this.
    fn aimed(&self, of: Of<'_>) -> bool {
        let Some(only) = &self.faults.only else { return true };
        match of {
            Of::Dir(dir) => only.ends_with('/') && format!("{dir}/").starts_with(only.as_str()),
            Of::File(_) if only.ends_with('/') => false,
            Of::File(number) => self.names.path_of(number).is_some_and(|path| path.contains(only)),
        }
    }

    pub(super) fn strikes(&mut self, fault: Fault, of: Of<'_>) -> bool {
        let aimed = self.aimed(of);
        let faults = &mut self.faults;
        let (next, ratio, count) = match fault {
            Fault::Read => {
                (&mut faults.next_read_eio, faults.read_eio, &mut self.counters.read_eio)
            }
            Fault::Write => {
                (&mut faults.next_write_eio, faults.write_eio, &mut self.counters.write_eio)
            }
            Fault::Sync => {
                (&mut faults.next_sync_eio, faults.sync_eio, &mut self.counters.sync_eio)
            }
            Fault::Misdirect => {
                (&mut faults.next_misdirect, faults.misdirect, &mut self.counters.misdirected)
            }
        };
        // What was told to happen for certain was asked about by whom told it.
        let told = aimed && *next > 0;
        let hit = told || (self.rng.hit(ratio) && plan::strikes(fault.class()));
        *next -= u32::from(told);
        *count += u64::from(hit);
        hit
    }

    /// Where in a file of `length` bytes a read of `len` bytes at `from` really reads.
    pub(super) fn read_from(
        &mut self,
        of: Of<'_>,
        from: usize,
        len: usize,
        length: usize,
    ) -> usize {
        let room = len > 0 && elsewhere(from, len, length, 0) != from;
        if self.faults.next_misread == 0 || !room || !self.aimed(of) {
            return from;
        }
        self.faults.next_misread -= 1;
        self.counters.misread += 1;
        elsewhere(from, len, length, self.rng.index(length))
    }

    pub(super) fn report(&mut self, event: &Event<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(event);
        }
    }
}

/// Another place at the beginning of a sector for `len` of `length` bytes, which were meant for `at`; `at` if there is
/// none.
pub(super) fn elsewhere(at: usize, len: usize, length: usize, draw: usize) -> usize {
    let sectors = length.saturating_sub(len) / SECTOR + 1;
    let sector = draw % sectors;
    let other = if sector * SECTOR == at { (sector + 1) % sectors } else { sector };
    if len < length { other * SECTOR } else { at }
}

#[derive(Clone, Copy)]
pub(super) enum Fault {
    Read,
    Write,
    Sync,
    Misdirect,
}

impl Fault {
    fn class(self) -> FaultClass {
        match self {
            Fault::Read => FaultClass::EioOnRead,
            Fault::Write => FaultClass::EioOnWrite,
            Fault::Sync => FaultClass::EioOnFsync,
            Fault::Misdirect => FaultClass::MisdirectedWrite,
        }
    }
}
