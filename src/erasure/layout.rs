//! Where a logical byte of a chunk rests.

use crate::limits::{
    BLOCK_BYTES, CELL_BYTES, CHUNK_BYTES_MAX, DATA_SHARDS_MAX, FRAME_PAYLOAD_BYTES_MAX, SHARDS_MAX,
};
use crate::pb;
use std::fmt;
use std::str::FromStr;

const _: () = assert!(SHARDS_MAX <= u8::MAX as usize);
const _: () = assert!(CELL_BYTES <= FRAME_PAYLOAD_BYTES_MAX);

/// `k` data shards and `m` parity shards, `1 <= k <= DATA_SHARDS_MAX`, `k + m <= SHARDS_MAX`. Replication is
/// `1+m`: one copy and `m` more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layout {
    data: u8,
    parity: u8,
}

/// A layout that cannot be; says why in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "layout {0} is not possible: write it as k+m, with 1 to {DATA_SHARDS_MAX} data shards and at most {SHARDS_MAX} shards in all"
)]
pub struct LayoutError(String);

/// A run of logical bytes that rests in one shard without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which shard (always a data shard; for copies 0, and any other holds the same bytes).
    pub shard: usize,
    /// Where in the shard, bytes.
    pub shard_off: u64,
    /// Where in the chunk, bytes.
    pub logical_off: u64,
    /// How many bytes.
    pub len: u64,
}

impl Layout {
    /// `data` + `parity`, if within bounds.
    pub fn new(data: u32, parity: u32) -> Result<Layout, LayoutError> {
        let refuse = || LayoutError(format!("{data}+{parity}"));
        let k = usize::try_from(data).map_err(|_| refuse())?;
        let m = usize::try_from(parity).map_err(|_| refuse())?;
        if k == 0 || k > DATA_SHARDS_MAX || k.saturating_add(m) > SHARDS_MAX {
            return Err(refuse());
        }
        Ok(Layout { data: k as u8, parity: m as u8 })
    }

    /// Replication with this many copies, at least one.
    pub fn copies(copies: u32) -> Result<Layout, LayoutError> {
        Layout::new(1, copies.wrapping_sub(1))
    }

    /// `k`.
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// `m`.
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// `k + m`.
    pub fn shards(self) -> usize {
        self.data() + self.parity()
    }

    /// How many shards may be lost without losing a byte.
    pub fn tolerates(self) -> usize {
        self.parity()
    }

    /// Whether every shard is a plain copy (`k = 1`).
    pub fn is_copies(self) -> bool {
        self.data == 1
    }

    /// Logical bytes that are written as one: a stripe (`k` cells), or a block when shards are copies.
    pub fn stripe_bytes(self) -> u64 {
        if self.is_copies() { BLOCK_BYTES as u64 } else { (self.data() * CELL_BYTES) as u64 }
    }

    /// Length at rest of each shard of a chunk with `logical` bytes: the same for all shards of a layout.
    /// Copies are padded to a whole block, cells of the last stripe to whole cells.
    pub fn shard_len(self, logical: u64) -> u64 {
        let unit = if self.is_copies() { BLOCK_BYTES } else { CELL_BYTES };
        logical.div_ceil(self.stripe_bytes()) * unit as u64
    }

    /// Length of the longest shard that a chunk of this layout may have.
    pub fn shard_len_max(self) -> u64 {
        self.shard_len(CHUNK_BYTES_MAX as u64)
    }

    /// The shard and the offset in it where a logical byte rests. For copies shard 0 stands for all.
    pub fn locate(self, logical_off: u64) -> (usize, u64) {
        if self.is_copies() {
            return (0, logical_off);
        }
        let stripe = logical_off / self.stripe_bytes();
        let within = logical_off % self.stripe_bytes();
        let (shard, column) = (within / CELL_BYTES as u64, within % CELL_BYTES as u64);
        (shard as usize, stripe * CELL_BYTES as u64 + column)
    }

    /// The logical byte that a shard's byte is; `None` in parity shards.
    pub fn logical(self, shard: usize, shard_off: u64) -> Option<u64> {
        if self.is_copies() {
            return Some(shard_off);
        }
        if shard >= self.data() {
            return None;
        }
        let (stripe, column) = (shard_off / CELL_BYTES as u64, shard_off % CELL_BYTES as u64);
        Some(stripe * self.stripe_bytes() + (shard * CELL_BYTES) as u64 + column)
    }

    /// Cuts the logical bytes `[off, off + len)` into runs that rest in one shard each, in logical order.
    pub fn pieces(self, off: u64, len: u64) -> impl Iterator<Item = Piece> {
        let end = off.saturating_add(len);
        let mut at = off;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (shard, shard_off) = self.locate(at);
            let room = if self.is_copies() {
                end - at
            } else {
                (CELL_BYTES as u64 - at % CELL_BYTES as u64).min(end - at)
            };
            let piece = Piece { shard, shard_off, logical_off: at, len: room };
            at += room;
            Some(piece)
        })
    }

    /// What seeds the block CRCs of a shard ([`block_crc`](crate::checksum::block_crc)): the shard's index, or
    /// 0 for copies, so that copies can take each other's place.
    pub fn crc_shard(self, shard: usize) -> u8 {
        if self.is_copies() { 0 } else { shard as u8 }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Layout {
    type Err = LayoutError;

    /// From `k+m`, for example `1+1` (two copies) or `4+2`.
    fn from_str(text: &str) -> Result<Layout, LayoutError> {
        let refuse = || LayoutError(format!("{text:?}"));
        let (data, parity) = text.split_once('+').ok_or_else(refuse)?;
        let number = |part: &str| part.trim().parse::<u32>().map_err(|_| refuse());
        Layout::new(number(data)?, number(parity)?)
    }
}

impl From<Layout> for pb::Layout {
    fn from(layout: Layout) -> pb::Layout {
        pb::Layout { data: layout.data.into(), parity: layout.parity.into() }
    }
}

impl TryFrom<&pb::Layout> for Layout {
    type Error = LayoutError;

    fn try_from(raw: &pb::Layout) -> Result<Layout, LayoutError> {
        Layout::new(raw.data, raw.parity)
    }
}

impl TryFrom<pb::Layout> for Layout {
    type Error = LayoutError;

    fn try_from(raw: pb::Layout) -> Result<Layout, LayoutError> {
        Layout::try_from(&raw)
    }
}
