//! Reading whole blocks with their stored CRCs. Nobody here looks at the bytes: whoever asked verifies them.

use super::format::{self, BLOCK, ReplicaId};
use super::open::PIECE_BYTES;
use super::replica::{Fault, Replica};
use super::{Store, StoreError};
use crate::checksum::{Block, judge};
use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::mark;
use crate::seam::DiskFile;
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// Bytes from which on mapped memory is cheaper than a copy.
const MAP_BYTES: usize = 128 << 10;

/// Whole blocks of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Where they begin in the replica.
    pub offset: u64,
    /// Length of the replica; the blocks are cut there.
    pub length: u64,
    /// One per block, as stored.
    pub crcs: Vec<u32>,
    /// The bytes, unverified.
    pub data: Bytes,
}

struct Span {
    replica: Arc<Replica>,
    from: u64,
    to: u64,
    length: u64,
    sealed: bool,
}

impl Span {
    fn bytes(&self) -> usize {
        (self.to - self.from) as usize
    }

    fn crc_bytes(&self) -> usize {
        self.bytes() / BLOCK as usize * 4
    }

    fn blocks(&self, crcs: &[u8], data: Bytes) -> Blocks {
        let crcs = format::decode_crcs(crcs);
        Blocks { offset: self.from, length: self.length, crcs, data }
    }
}

/// The CRCs after the data: a block that is punched meanwhile is then known to be a hole.
fn read_span(file: &dyn DiskFile, id: ReplicaId, span: &Span) -> io::Result<(Vec<u8>, Bytes)> {
    let start = id.data_start() + span.from;
    let data = if span.sealed && span.bytes() >= MAP_BYTES {
        file.map(start, span.bytes())?
    } else {
        let mut data = vec![0; span.bytes()];
        file.read_exact_at(start, &mut data)?;
        data.into()
    };
    if data.len() != span.bytes() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut crcs = vec![0; span.crc_bytes()];
    file.read_exact_at(id.crc_at(span.from), &mut crcs)?;
    Ok((crcs, data))
}

impl Store {
    /// The blocks that cover `[offset, offset + len)`, if they are in memory; `None` if reading would block, and so would
    /// opening the file: a disk that hangs must not keep the thread that asks, which serves other disks too.
    pub fn read_resident(
        &self,
        id: ReplicaId,
        offset: u64,
        len: u64,
    ) -> Result<Option<Blocks>, StoreError> {
        let span = self.span(id, offset, len)?;
        if span.bytes() == 0 {
            return Ok(Some(span.blocks(&[], Bytes::new())));
        }
        let Some(file) = Store::file_at_hand(&span.replica) else { return Ok(None) };
        let Some(data) = file
            .read_resident(id.data_start() + span.from, span.bytes())
            .filter(|data| data.len() == span.bytes())
        else {
            return Ok(None);
        };
        let crcs = file
            .read_resident(id.crc_at(span.from), span.crc_bytes())
            .filter(|crcs| crcs.len() == span.crc_bytes());
        Ok(crcs.map(|crcs| span.blocks(&crcs, data)))
    }

    /// The blocks that cover `[offset, offset + len)`; may block for the disk. Large reads of sealed replicas
    /// are mapped memory (an open one may yet be cut short, which mapped memory does not survive).
    pub fn read(&self, id: ReplicaId, offset: u64, len: u64) -> Result<Blocks, StoreError> {
        let span = self.span(id, offset, len)?;
        if span.bytes() == 0 {
            return Ok(span.blocks(&[], Bytes::new()));
        }
        let file = self.file(&span.replica)?;
        let error = match read_span(&*file, id, &span) {
            Ok((crcs, data)) => return Ok(span.blocks(&crcs, data)),
            Err(error) => error,
        };
        // A seal may have cut off what was being read: then its length says so by now. There is no second seal.
        if self.span(id, offset, len)?.to < span.to {
            mark!("store: read again what a seal has cut");
            return self.read(id, offset, len);
        }
        mark!("store: read failed");
        self.note_bad(&span.replica);
        Err(StoreError::Read(format!("{}/{}: {error}", self.describe(), id.path())))
    }

    fn span(&self, id: ReplicaId, offset: u64, len: u64) -> Result<Span, StoreError> {
        let replica = self.found(id)?;
        let now = replica.progress();
        let from = (offset / BLOCK * BLOCK).min(now.length);
        let end = offset.saturating_add(len).min(now.length).next_multiple_of(BLOCK);
        let to = end.min(now.length).max(from);
        if to - from > FRAME_PAYLOAD_BYTES_MAX as u64 {
            return Err(StoreError::Bad(format!("read of {len} bytes from {id}: too long")));
        }
        Ok(Span { replica, from, to, length: now.length, sealed: now.sealed })
    }

    /// Reads one replica through the kernel and checks every block; the indexes of the bad ones. A bad one
    /// makes the replica corrupt and puts it on the list of what the master must hear of; if there is none, what
    /// was wrong before was the disk's trouble of a moment, and the replica is good again.
    pub fn verify(&self, id: ReplicaId) -> Result<Vec<u32>, StoreError> {
        let mut bad = Vec::new();
        let mut at = 0;
        while let Some(next) = self.verify_piece(id, at, &mut bad)? {
            at = next;
        }
        if bad.is_empty() {
            self.acquit(id)?;
        }
        Ok(bad)
    }

    fn acquit(&self, id: ReplicaId) -> Result<(), StoreError> {
        let replica = self.found(id)?;
        if replica.progress().fault == Fault::Seen {
            mark!("store: doubted replica is good");
            replica.update(|progress| progress.fault = Fault::None);
            self.lock_bad().remove(&id);
        }
        Ok(())
    }

    /// Checks the blocks from `at`, at most 1 MiB of them; where to go on, `None` at the end.
    pub fn verify_piece(
        &self,
        id: ReplicaId,
        at: u64,
        bad: &mut Vec<u32>,
    ) -> Result<Option<u64>, StoreError> {
        let replica = self.found(id)?;
        let length = replica.progress().length;
        let to = length.min(at + PIECE_BYTES as u64);
        if at >= to {
            return Ok(None);
        }
        let file = self.file(&replica)?;
        let mut found = bad_blocks(&*file, id, at, to);
        if !found.is_empty() {
            // A seal may have cut off what was being read: then it is no part of the replica, and by now its length says so.
            mark!("store: bad block looked at again");
            found = bad_blocks(&*file, id, at, to.min(replica.progress().length));
        }
        if let Some(first) = found.first()
            && self.find(id).is_some()
        {
            mark!("store: bad block found");
            tracing::warn!("{}/{}: block {first} is bad", self.describe(), id.path());
            self.note_bad(&replica);
        }
        bad.append(&mut found);
        Ok(Some(to))
    }
}

/// Which of the blocks in `[at, to)` can not be read or do not match their CRCs, which are read after the data, as in
/// [`read_span`].
fn bad_blocks(file: &dyn DiskFile, id: ReplicaId, at: u64, to: u64) -> Vec<u32> {
    let blocks = to.saturating_sub(at) / BLOCK;
    let mut data = vec![0; (blocks * BLOCK) as usize];
    let whole = file.read_exact_at(id.data_start() + at, &mut data).is_ok();
    let read: Vec<bool> = (at..)
        .step_by(BLOCK as usize)
        .zip(data.chunks_mut(BLOCK as usize))
        .map(|(at, block)| whole || file.read_exact_at(id.data_start() + at, block).is_ok())
        .collect();
    let mut table = vec![0; (blocks * 4) as usize];
    let readable = file.read_exact_at(id.crc_at(at), &mut table).is_ok();
    let crcs = format::decode_crcs(&table);
    let is_good = |i: usize, block: &[u8]| {
        let index = (at / BLOCK) as u32 + i as u32;
        match judge(id.chunk, id.crc_shard(), index, block, crcs[i]) {
            Block::Good => readable && read[i],
            Block::Hole => readable,
            Block::Bad => false,
        }
    };
    let blocks = data.chunks(BLOCK as usize).enumerate();
    let bad = blocks.filter(|(i, block)| !is_good(*i, block));
    bad.map(|(i, _)| (at / BLOCK) as u32 + i as u32).collect()
}
