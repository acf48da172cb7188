//! Holes: blocks of a sealed replica whose space is given back.

use super::format::{self, BLOCK, ReplicaId};
use super::{Store, StoreError};
use crate::checksum::hole_crc;
use crate::pb::Hole;
use crate::seam::DiskFile;
use crate::{bug, mark};
use std::ops::Range;

impl Store {
    /// Frees ranges of a sealed replica, whole blocks of it. First their entries in the CRC table say so,
    /// durably; only then do their bytes go. After a crash between the two they only take space, until the
    /// caller, who was not answered, asks again.
    pub fn punch(&self, id: ReplicaId, holes: &[Hole]) -> Result<(), StoreError> {
        self.usable()?;
        let replica = self.found(id)?;
        let now = replica.progress();
        let whole = |hole: &Hole| {
            hole.from.is_multiple_of(BLOCK)
                && hole.end.is_multiple_of(BLOCK)
                && hole.from <= hole.end
                && hole.end <= now.length
        };
        if !now.sealed || !holes.iter().all(whole) {
            let what = format!("replica {id} is open, or shorter than a hole, or a hole not whole");
            return Err(StoreError::Bad(what));
        }
        let file = self.file(&replica)?;
        // M33: the hole begins, and ends, a block too late.
        let slip =
            if bug!(M33) && holes.last().is_some_and(|h| h.end < now.length) { BLOCK } else { 0 };
        // Also where they say so already: a process that was killed may have written them, and synced nothing.
        for hole in holes {
            self.mark_hole(&*file, id, hole.from + slip..hole.end + slip)?;
        }
        // UNMAPPED: the table's word and the bytes' end are made durable together.
        if !bug!(UNMAPPED) {
            mark!("store: holes punched");
            file.sync_data().map_err(|e| self.fence("holes", &e))?;
        }
        for hole in holes.iter().filter(|hole| hole.from < hole.end) {
            file.punch_hole(id.data_start() + hole.from + slip, hole.end - hole.from)
                .map_err(|e| self.fence("punch", &e))?;
        }
        file.sync_data().map_err(|e| self.fence("punch", &e))
    }

    /// Makes the table say that these blocks are holes.
    fn mark_hole(
        &self,
        file: &dyn DiskFile,
        id: ReplicaId,
        hole: Range<u64>,
    ) -> Result<(), StoreError> {
        let blocks = hole.start / BLOCK..hole.end / BLOCK;
        let crcs: Vec<u32> =
            blocks.map(|block| hole_crc(id.chunk, id.crc_shard(), block as u32)).collect();
        let entries = format::encode_crcs(&crcs);
        file.write_at(id.crc_at(hole.start), &entries).map_err(|e| self.fence("holes", &e))
    }
}
