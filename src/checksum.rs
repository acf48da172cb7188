//! CRC-32C (Castagnoli), by the widest instructions the processor has.

use crate::ids::ChunkId;
use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// CRC-32C of the concatenation of `parts`.
pub fn crc32c_parts(parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize() as u32
}

/// The CRC of one block at rest and on the wire. It is seeded with what the block is (chunk, shard of a k+m
/// chunk with k > 1 else 0, index of the block in the replica), so that a block at a wrong place does not
/// verify; all copies of a replicated chunk share it. A short last block counts as zero-padded to
/// [`BLOCK_BYTES`](crate::limits::BLOCK_BYTES). Never 0, which says "not written" in the CRC table.
pub fn block_crc(chunk: ChunkId, shard: u8, block: u32, data: &[u8]) -> u32 {
    static ZEROS: [u8; crate::limits::BLOCK_BYTES] = [0; crate::limits::BLOCK_BYTES];
    debug_assert!(data.len() <= ZEROS.len());
    let mut seed = [0u8; 13];
    // M24: the CRC does not say which block of which chunk it is.
    let (chunk, block) = if crate::bug!(M24) { (ChunkId(0), 0) } else { (chunk, block) };
    seed[..8].copy_from_slice(&chunk.0.to_le_bytes());
    seed[8] = shard;
    seed[9..].copy_from_slice(&block.to_le_bytes());
    let crc = if data.len() == ZEROS.len() {
        // One pass over the block: the seed's own CRC is folded in, because CRCs are linear.
        crc32c(data) ^ crc32c(&seed)
    } else {
        crc32c_parts(&[data, &ZEROS[data.len()..]]) ^ crc32c(&seed)
    };
    if crc == 0 { u32::MAX } else { crc }
}

/// What stands in the place of a block's CRC once the block was punched out of its replica (docs/DISK_FORMAT.md).
/// It says whose block it was as [`block_crc`] does, so that a damaged table is not taken for a hole. Never 0.
pub fn hole_crc(chunk: ChunkId, shard: u8, block: u32) -> u32 {
    let (chunk, block) = (chunk.0.to_le_bytes(), block.to_le_bytes());
    crc32c_parts(&[b"hole", &chunk, &[shard], &block]).max(1)
}

/// What the number that stands for a block says of the bytes that were read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// They are what was written.
    Good,
    /// It was punched out of its replica: there is nothing to be read, whatever its bytes.
    Hole,
    /// They are not what was written there.
    Bad,
}

/// Judges block `block` of a shard by its stored number `crc`, a [`block_crc`] or a [`hole_crc`].
pub fn judge(chunk: ChunkId, shard: u8, block: u32, data: &[u8], crc: u32) -> Block {
    if block_crc(chunk, shard, block, data) == crc {
        Block::Good
    } else if hole_crc(chunk, shard, block) == crc {
        Block::Hole
    } else {
        Block::Bad
    }
}

/// The CRCs of consecutive blocks of `data`, the first of which has index `first_block` in its replica
/// ([`block_crc`]); the last block may be short.
pub fn block_crcs(chunk: ChunkId, shard: u8, first_block: u32, data: &[u8]) -> Vec<u32> {
    data.chunks(crate::limits::BLOCK_BYTES)
        .zip(first_block..)
        .map(|(block, index)| block_crc(chunk, shard, index, block))
        .collect()
}
