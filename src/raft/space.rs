//! A master's disk that fills up. A file of reserved blocks is kept on it. When little is left beside that
//! file, it is given up and only what frees space should be proposed: its blocks hold the log and the
//! checkpoints of those commands. When enough is free again, the file comes back.

use super::work::DiskWork;
use crate::limits::{BLOCK_BYTES, Limits};
use crate::seam::{Disk, DiskFile, OpenMode};
use crate::{bug, mark};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The file of reserved blocks on the master's disk.
pub const RESERVE: &str = "reserve";

/// Watches the space on one master's disk.
pub struct Space {
    disk: Arc<dyn Disk>,
    work: DiskWork,
    /// Kept free, and kept in reserve, beside what a checkpoint takes: a log segment. Not kept free beside a table file with
    /// room inside for every checkpoint.
    segment_bytes: u64,
    held: Option<Arc<dyn DiskFile>>,
    looked: bool,
    seen: Arc<Seen>,
}

/// What the log and the tables need.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The log could not prepare its next segment.
    pub log_is_low: bool,
    /// What even a checkpoint of little takes, bytes.
    pub checkpoint_bytes: u64,
    /// What the checkpoint of what has changed takes, bytes.
    pub pending_bytes: u64,
}

/// What was seen last, for everybody.
#[derive(Debug)]
pub struct Seen {
    low: AtomicBool,
    tight: AtomicBool,
    free: AtomicU64,
}

impl Seen {
    /// Whether only what frees space should be proposed.
    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// Whether the log's next segment might find no room, so that its old ones should be free for it soon.
    pub fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// Most bytes of one entry: its changes must leave room for their checkpoint, and a byte of it may change a
    /// row, which copies a page.
    pub fn entry_bytes_max(&self, limits: &Limits) -> usize {
        let fits = usize::try_from(self.free.load(Ordering::Relaxed) / BLOCK_BYTES as u64);
        fits.unwrap_or(usize::MAX).clamp(512, limits.entry_bytes_max)
    }
}

impl Space {
    /// Nothing is known, or touched, before the first look.
    pub fn new(disk: Arc<dyn Disk>, limits: &Limits, work: DiskWork) -> Space {
        Space {
            disk,
            work,
            segment_bytes: limits.wal_segment_bytes,
            held: None,
            looked: false,
            seen: Arc::new(Seen { low: false.into(), tight: false.into(), free: u64::MAX.into() }),
        }
    }

    /// What [`Space::look`] saw last.
    pub fn seen(&self) -> Arc<Seen> {
        self.seen.clone()
    }

    /// Looks at the disk. One that cannot say is not full.
    pub async fn look(&mut self, needs: Needs) {
        if !std::mem::replace(&mut self.looked, true) && self.disk.exists(RESERVE).unwrap_or(false)
        {
            // An earlier process held it: it is taken anew, or there is no room for it any more.
            self.release();
        }
        let free = self.disk.space().map_or(u64::MAX, |space| space.free);
        // A table file with room inside asks nothing of the disk for its checkpoints, and segments of the log are used again
        // behind them. It keeps the room however few rows are left: a segment may never come free beside it.
        let beside_file = match needs.checkpoint_bytes {
            // WALLED: the file's room inside is no room.
            0 if !bug!(WALLED) => 0,
            least => least + self.segment_bytes,
        };
        let margin = beside_file.max(needs.pending_bytes);
        let short = free < margin || needs.log_is_low;
        if self.held.is_some() && short {
            self.release();
        } else if self.held.is_none() && !short {
            // Not all of what is beside it: else the next write would make space low again.
            let beside = free.saturating_sub(margin);
            let wanted = self.segment_bytes + needs.checkpoint_bytes;
            // Half of what is wanted will do: low space must not outlast by much what made it low. A table
            // file that has room inside keeps it when rows go, so that little more may ever come free beside
            // it: then anything will.
            let least = if needs.checkpoint_bytes > 0 { wanted / 2 } else { BLOCK_BYTES as u64 };
            self.take((beside - beside / 4).min(wanted), least).await;
        }
        self.seen.free.store(free, Ordering::Relaxed);
        self.seen.tight.store(free < self.segment_bytes, Ordering::Relaxed);
        let low = self.held.is_none();
        if low != self.seen.low.swap(low, Ordering::Relaxed) {
            self.tell(low, free);
        }
    }

    fn release(&mut self) {
        // The name first: the blocks go with the last handle.
        if let Err(error) = self.disk.remove(RESERVE) {
            tracing::debug!(%error, "the reserve keeps its name until the next start");
        }
        self.held = None;
    }

    async fn take(&mut self, bytes: u64, least: u64) {
        if bytes < least {
            return;
        }
        let disk = self.disk.clone();
        let taken = self.work.run(move || -> io::Result<Arc<dyn DiskFile>> {
            let file = disk.open(RESERVE, OpenMode::Create)?;
            file.reserve(bytes)?;
            Ok(file)
        });
        match taken.await {
            Some(Ok(file)) => self.held = Some(file),
            Some(Err(error)) => tracing::debug!(%error, "no reserve"),
            None => {}
        }
    }

    fn tell(&self, low: bool, free: u64) {
        let place = self.disk.describe();
        if low {
            mark!("raft: space is low");
            tracing::warn!(
                "{place} is nearly full ({free} bytes left): until there is room again only what frees space is accepted"
            );
        } else {
            mark!("raft: space is back");
            tracing::info!("{place} has room again ({free} bytes)");
        }
    }
}
