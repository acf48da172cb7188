//! How bytes of files are laid out in an append: packed one after another, cut into blocks with a CRC each,
//! and, for chunks of k+m shards, into cells with their parity. Nothing here waits.

use crate::checksum::block_crc;
use crate::erasure::{Codec, Layout};
use crate::ids::ChunkId;
use crate::limits::{BLOCK_BYTES, CELL_BYTES};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

const BLOCK: u64 = BLOCK_BYTES as u64;
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// Parts shorter than this are copied together instead of becoming a slice of the payload each.
const GATHER_BELOW: usize = 16 << 10;

/// Rounds up to the next block.
pub fn block_up(offset: u64) -> u64 {
    offset.next_multiple_of(BLOCK)
}

/// A queue of bytes that is cut from the front without copying where possible.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    parts: VecDeque<Bytes>,
    len: u64,
}

impl Rope {
    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds at the end.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.len += part.len() as u64;
            self.parts.push_back(part);
        }
    }

    /// Adds all of another at the end.
    pub fn append(&mut self, other: Rope) {
        other.parts.into_iter().for_each(|part| self.push(part));
    }

    /// Adds zeros at the end, at most a block.
    fn pad(&mut self, len: u64) {
        self.push(Bytes::from_static(&ZEROS[..len as usize]));
    }

    /// Cuts `len` bytes (at most all) off the front, moving whole parts.
    pub fn split_to(&mut self, len: u64) -> Rope {
        let mut out = Rope::default();
        while out.len < len {
            let Some(mut part) = self.parts.pop_front() else { break };
            let want = (len - out.len) as usize;
            if part.len() > want {
                let head = part.split_to(want);
                self.parts.push_front(part);
                out.push(head);
            } else {
                out.push(part);
            }
        }
        self.len -= out.len;
        out
    }

    /// Cuts `len` bytes off the front as one slice; copies only what lies in several parts.
    fn take(&mut self, len: usize) -> Bytes {
        let front = self.parts.front_mut();
        if let Some(part) = front
            && part.len() >= len
        {
            let head = part.split_to(len);
            if part.is_empty() {
                self.parts.pop_front();
            }
            self.len -= len as u64;
            return head;
        }
        let mut gathered = BytesMut::with_capacity(len);
        self.split_to(len as u64).parts.iter().for_each(|part| gathered.extend_from_slice(part));
        gathered.freeze()
    }

    /// Length of the first part.
    fn front_len(&self) -> usize {
        self.parts.front().map_or(0, Bytes::len)
    }
}

impl FromIterator<Bytes> for Rope {
    fn from_iter<T: IntoIterator<Item = Bytes>>(parts: T) -> Rope {
        let mut rope = Rope::default();
        parts.into_iter().for_each(|part| rope.push(part));
        rope
    }
}

/// What goes to one shard in one append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardPayload {
    /// Bytes, in pieces.
    pub payload: Vec<Bytes>,
    /// One CRC per block.
    pub crcs: Vec<u32>,
    /// Length of the payload.
    pub len: u64,
}

/// Packs runs of several files into one append of a chunk of copies.
#[derive(Debug)]
pub struct Packer {
    start: u64,
    rope: Rope,
    limit: u64,
}

impl Packer {
    /// An append that begins at `start` (a block's boundary) and holds at most `limit` bytes (whole blocks).
    pub fn new(start: u64, limit: u64) -> Packer {
        debug_assert!(start.is_multiple_of(BLOCK) && limit.is_multiple_of(BLOCK));
        Packer { start, rope: Rope::default(), limit }
    }

    /// Bytes packed.
    pub fn len(&self) -> u64 {
        self.rope.len()
    }

    /// Takes as much of the run's front as there is room for; answers where in the chunk it went and how
    /// much, or `None` when the append is full. A run of a block or more begins on a block's boundary, so
    /// that reading a block of the file needs one block of the chunk.
    pub fn pack(&mut self, run: &mut Rope) -> Option<(u64, u64)> {
        let aligned = block_up(self.rope.len());
        let begin = if run.len() >= BLOCK { aligned } else { self.rope.len() };
        let room = self.limit.saturating_sub(begin);
        if room == 0 || run.is_empty() || (run.len() < BLOCK && run.len() > room) {
            return None;
        }
        self.rope.pad(begin - self.rope.len());
        let part = run.split_to(room);
        let len = part.len();
        self.rope.append(part);
        Some((self.start + begin, len))
    }

    /// The payload, the same for every copy.
    pub fn finish(mut self, chunk: ChunkId) -> ShardPayload {
        let mut out = ShardPayload { len: self.rope.len(), ..ShardPayload::default() };
        let mut gathered = BytesMut::new();
        while !self.rope.is_empty() {
            let whole = self.rope.front_len() / BLOCK_BYTES * BLOCK_BYTES;
            if whole >= GATHER_BELOW
                || (whole > 0 && gathered.is_empty() && self.rope.parts.len() == 1)
            {
                flush(&mut gathered, &mut out.payload);
                out.payload.push(self.rope.take(whole));
                continue;
            }
            let block = self.rope.len().min(BLOCK) as usize;
            if gathered.is_empty() && self.rope.parts.len() == 1 {
                out.payload.push(self.rope.take(block));
                continue;
            }
            let part = self.rope.split_to(block as u64);
            part.parts.iter().for_each(|part| gathered.extend_from_slice(part));
        }
        flush(&mut gathered, &mut out.payload);
        let first = (self.start / BLOCK) as u32;
        out.crcs = crcs(chunk, 0, first, &out.payload);
        out
    }
}

fn flush(gathered: &mut BytesMut, payload: &mut Vec<Bytes>) {
    if !gathered.is_empty() {
        payload.push(gathered.split().freeze());
    }
}

/// CRCs of consecutive blocks; every part but the last is a whole number of blocks.
fn crcs(chunk: ChunkId, shard: u8, first: u32, payload: &[Bytes]) -> Vec<u32> {
    let blocks = payload.iter().flat_map(|part| part.chunks(BLOCK_BYTES));
    (first..).zip(blocks).map(|(block, data)| block_crc(chunk, shard, block, data)).collect()
}

/// Cuts whole stripes, which begin at stripe `first_stripe` of the chunk, into cells, and computes parity.
/// One payload per shard, data shards first.
pub fn stripes(codec: &Codec, chunk: ChunkId, first_stripe: u64, data: Rope) -> Vec<ShardPayload> {
    let layout = codec.layout();
    debug_assert!(data.len().is_multiple_of(layout.stripe_bytes()));
    let count = (data.len() / layout.stripe_bytes()) as usize;
    let mut data = data;
    let mut shards: Vec<Vec<Bytes>> = vec![Vec::with_capacity(count); layout.shards()];
    for _ in 0..count {
        let cells: Vec<Bytes> = (0..layout.data()).map(|_| data.take(CELL_BYTES)).collect();
        let slices: Vec<&[u8]> = cells.iter().map(|cell| &cell[..]).collect();
        let parity = codec.encode(&slices);
        let all = cells.into_iter().chain(parity.into_iter().map(Bytes::from));
        shards.iter_mut().zip(all).for_each(|(shard, cell)| shard.push(cell));
    }
    let first = (first_stripe * (CELL_BYTES / BLOCK_BYTES) as u64) as u32;
    let finish = |(shard, payload): (usize, Vec<Bytes>)| ShardPayload {
        crcs: crcs(chunk, layout.crc_shard(shard), first, &payload),
        len: (count * CELL_BYTES) as u64,
        payload,
    };
    shards.into_iter().enumerate().map(finish).collect()
}

/// The layout that holds what does not fill a stripe: as many losses survived, by plain copies.
pub fn partial_layout(layout: Layout) -> Layout {
    Layout::copies(layout.parity() as u32 + 1).unwrap_or(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(parts: &[usize]) -> Rope {
        let mut at = 0u8;
        parts
            .iter()
            .map(|len| {
                let part: Vec<u8> = (0..*len).map(|i| at.wrapping_add((i % 251) as u8)).collect();
                at = at.wrapping_add(17);
                Bytes::from(part)
            })
            .collect()
    }

    fn flat(rope: &Rope) -> Vec<u8> {
        rope.parts.iter().flat_map(|part| part.to_vec()).collect()
    }

    #[test]
    fn ropes_are_cut_at_any_place() {
        let all = flat(&rope(&[10, 20, 30]));
        for cut in 0..=60 {
            let mut rest = rope(&[10, 20, 30]);
            let head = rest.split_to(cut);
            assert_eq!((head.len(), rest.len()), (cut, 60 - cut));
            assert_eq!([flat(&head), flat(&rest)].concat(), all);
            let mut rest = rope(&[10, 20, 30]);
            assert_eq!(rest.take(cut as usize), all[..cut as usize]);
            assert_eq!(rest.len(), 60 - cut);
        }
    }

    /// Unpacks what was packed and compares every run and CRC.
    fn check_pack(runs: &[Rope], start: u64, limit: u64) {
        let mut packer = Packer::new(start, limit);
        let mut placed = Vec::new();
        for run in runs {
            let mut left = run.clone();
            while let Some((off, len)) = packer.pack(&mut left) {
                placed.push((
                    flat(run)[(run.len() - left.len() - len) as usize..][..len as usize].to_vec(),
                    off,
                ));
            }
        }
        assert!(packer.len() <= limit);
        let out = packer.finish(ChunkId(9));
        let bytes: Vec<u8> = out.payload.concat();
        assert_eq!(bytes.len() as u64, out.len);
        for (data, off) in placed {
            let at = (off - start) as usize;
            assert_eq!(bytes[at..at + data.len()], data);
            assert!(
                data.len() < BLOCK_BYTES || off.is_multiple_of(BLOCK) || data.len() as u64 == limit
            );
        }
        let want: Vec<u32> = (start as u32 / 4096..)
            .zip(bytes.chunks(BLOCK_BYTES))
            .map(|(block, data)| block_crc(ChunkId(9), 0, block, data))
            .collect();
        assert_eq!(out.crcs, want);
        let (_, all_but_last) = out.payload.split_last().unwrap();
        assert!(all_but_last.iter().all(|part| part.len().is_multiple_of(BLOCK_BYTES)));
    }

    #[test]
    fn packs_runs_with_their_crcs() {
        check_pack(&[rope(&[100]), rope(&[5000]), rope(&[30, 40])], 8192, 1 << 20);
        check_pack(&[rope(&[1 << 20])], 0, 1 << 20);
        check_pack(&[rope(&[4096, 4096, 4096]), rope(&[1])], 4096, 1 << 20);
        check_pack(&[rope(&[70_000, 10, 70_000, 3])], 0, 1 << 20);
        check_pack(&[rope(&[10_000]), rope(&[10_000])], 0, 16384);
        check_pack(&[rope(&[4095]), rope(&[10])], 0, 4096);
    }

    #[test]
    fn large_parts_are_not_copied() {
        let big = rope(&[1 << 20]);
        let at = big.parts[0].as_ptr();
        let mut packer = Packer::new(0, 4 << 20);
        packer.pack(&mut big.clone());
        let out = packer.finish(ChunkId(1));
        assert_eq!(out.payload.len(), 1);
        assert_eq!(out.payload[0].as_ptr(), at);
    }

    #[test]
    fn a_full_append_takes_no_more() {
        let mut packer = Packer::new(0, 8192);
        let mut run = rope(&[20_000]);
        assert_eq!(packer.pack(&mut run), Some((0, 8192)));
        assert_eq!(packer.pack(&mut run), None);
        assert_eq!(run.len(), 20_000 - 8192);
        let mut packer = Packer::new(0, 4096);
        packer.pack(&mut rope(&[4000]));
        assert_eq!(packer.pack(&mut rope(&[200])), None, "a short run is not split");
    }

    #[test]
    fn stripes_decode_from_any_k() {
        let layout = Layout::new(4, 2).unwrap();
        let codec = Codec::new(layout);
        let data = rope(&[100_000, 2 * 4 * CELL_BYTES - 100_000]);
        let all = flat(&data);
        let shards = stripes(&codec, ChunkId(5), 3, data);
        assert_eq!(shards.len(), 6);
        let columns: Vec<Vec<u8>> = shards.iter().map(|shard| shard.payload.concat()).collect();
        for (shard, column) in columns.iter().enumerate() {
            let first = 3 * (CELL_BYTES / BLOCK_BYTES) as u32;
            for (i, block) in column.chunks(BLOCK_BYTES).enumerate() {
                let crc = block_crc(ChunkId(5), shard as u8, first + i as u32, block);
                assert_eq!(shards[shard].crcs[i], crc);
            }
        }
        let mut lost: Vec<Option<Vec<u8>>> = columns.into_iter().map(Some).collect();
        (lost[0], lost[3]) = (None, None);
        codec.reconstruct(&mut lost).unwrap();
        let mut logical = Vec::new();
        for stripe in 0..2 {
            for shard in &lost[..4] {
                logical.extend_from_slice(
                    &shard.as_ref().unwrap()[stripe * CELL_BYTES..][..CELL_BYTES],
                );
            }
        }
        assert_eq!(logical, all);
    }
}
