//! Where things are in the table file.
//!
//! ```text
//! 0            head: a record that names the file (id, block size, blocks of a group); written once
//! 4096         root slot A }  redb's own header (its bytes 0..4080), written to A and B in turn
//! 8192         root slot B }
//! 12288        group 0:  CRC slot A | CRC slot B | 1020 data blocks        each box 4096 bytes
//! + 4186112    group 1:  CRC slot A | CRC slot B | 1020 data blocks
//! ...
//!
//! a slot:  | "MNGs" | CRC32C | generation u64 | 4080 bytes: redb's header, or 1020 CRCs |
//!          0        4        8                16                                   4096
//! ```
//! redb sees one run of bytes: block 0 is its header, block b > 0 is data block (b - 1) % 1020 of group
//! (b - 1) / 1020. A CRC of 0 says that the block was never written. Integers are little-endian. A slot of
//! zeros has generation 0 and is intact.

use crate::checksum::crc32c_parts;
use crate::limits::BLOCK_BYTES;

/// A block, as offset and length are counted.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of a slot that are its own.
pub(super) const PAYLOAD_BYTES: usize = BLOCK_BYTES - 16;
/// Data blocks of a group.
pub(super) const GROUP_BLOCKS: u64 = (PAYLOAD_BYTES / 4) as u64;
const ROOT: u64 = BLOCK;
const GROUPS: u64 = 3 * BLOCK;
const GROUP_BYTES: u64 = (GROUP_BLOCKS + 2) * BLOCK;
const MAGIC: [u8; 4] = *b"MNGs";
/// What the slot CRC of the root is seeded with, in place of a group's number.
const ROOT_NUMBER: u32 = u32::MAX;

const _: () = assert!(GROUP_BLOCKS == 1020);

/// Which pair of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// redb's header.
    Root,
    /// The CRCs of a group.
    Group(u32),
}

impl Place {
    /// Offset of one of the two slots.
    pub(super) fn slot_offset(self, copy: usize) -> u64 {
        let first = match self {
            Place::Root => ROOT,
            Place::Group(group) => GROUPS + u64::from(group) * GROUP_BYTES,
        };
        first + copy as u64 * BLOCK
    }

    fn seed(self, file_id: u64) -> [u8; 12] {
        let number = match self {
            Place::Root => ROOT_NUMBER,
            Place::Group(group) => group,
        };
        seed(file_id, number)
    }
}

fn seed(file_id: u64, number: u32) -> [u8; 12] {
    let mut seed = [0; 12];
    seed[..8].copy_from_slice(&file_id.to_le_bytes());
    seed[8..].copy_from_slice(&number.to_le_bytes());
    seed
}

/// The group of a data block (numbered from 1).
pub(super) fn group_of(block: u64) -> u32 {
    u32::try_from((block - 1) / GROUP_BLOCKS).expect("fewer than 2^32 groups")
}

/// Data blocks of a group: the first, and one past the last it has room for.
pub(super) fn blocks_of(group: u32) -> std::ops::Range<u64> {
    let first = u64::from(group) * GROUP_BLOCKS + 1;
    first..first + GROUP_BLOCKS
}

/// Offset in the file of a data block (numbered from 1).
pub(super) fn block_offset(block: u64) -> u64 {
    let at = block - 1;
    GROUPS + at / GROUP_BLOCKS * GROUP_BYTES + (2 + at % GROUP_BLOCKS) * BLOCK
}

/// How many blocks from this one on lie side by side in the file.
pub(super) fn run_of(block: u64) -> u64 {
    GROUP_BLOCKS - (block - 1) % GROUP_BLOCKS
}

/// Length of a file in which redb sees this many blocks.
pub(super) fn file_bytes(blocks: u64) -> u64 {
    if blocks <= 1 { GROUPS } else { block_offset(blocks - 1) + BLOCK }
}

/// How many whole blocks redb sees in a file of this length; 0 if it is too short for a header.
pub(super) fn blocks_in(file_bytes: u64) -> u64 {
    let Some(body) = file_bytes.checked_sub(GROUPS) else {
        return 0;
    };
    let (full, rest) = (body / GROUP_BYTES, body % GROUP_BYTES / BLOCK);
    1 + full * GROUP_BLOCKS + rest.saturating_sub(2)
}

/// The CRC of a data block, seeded with its place; never 0.
pub(super) fn block_crc(file_id: u64, block: u64, data: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&file_id.to_le_bytes());
    place[8..].copy_from_slice(&block.to_le_bytes());
    // CRCs are linear: folding the seed's own in afterwards is as good as one run over both.
    let crc = crate::checksum::crc32c(data) ^ crate::checksum::crc32c(&place);
    if crc == 0 { u32::MAX } else { crc }
}

/// A slot as it lies on disk.
pub(super) fn encode_slot(
    file_id: u64,
    place: Place,
    generation: u64,
    payload: &[u8; PAYLOAD_BYTES],
) -> Vec<u8> {
    let mut slot = vec![0; BLOCK_BYTES];
    slot[..4].copy_from_slice(&MAGIC);
    slot[8..16].copy_from_slice(&generation.to_le_bytes());
    slot[16..].copy_from_slice(payload);
    let crc = crc32c_parts(&[&place.seed(file_id), &slot[8..]]);
    slot[4..8].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// Generation and payload of an intact slot.
pub(super) fn decode_slot(file_id: u64, place: Place, slot: &[u8]) -> Option<(u64, &[u8])> {
    if slot.len() != BLOCK_BYTES {
        return None;
    }
    if slot.iter().all(|byte| *byte == 0) {
        return Some((0, &slot[16..]));
    }
    let stored = u32::from_le_bytes(slot[4..8].try_into().ok()?);
    let intact = slot[..4] == MAGIC && stored == crc32c_parts(&[&place.seed(file_id), &slot[8..]]);
    intact.then_some((u64::from_le_bytes(slot[8..16].try_into().ok()?), &slot[16..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_slots_never_overlap_and_lengths_go_both_ways() {
        let mut next = GROUPS;
        for block in 1..5000 {
            if (block - 1) % GROUP_BLOCKS == 0 {
                let group = Place::Group(group_of(block));
                assert_eq!((group.slot_offset(0), group.slot_offset(1)), (next, next + BLOCK));
                next += 2 * BLOCK;
            }
            assert_eq!(block_offset(block), next);
            assert!(blocks_of(group_of(block)).contains(&block));
            assert_eq!(block_offset(block + run_of(block) - 1), next + (run_of(block) - 1) * BLOCK);
            next += BLOCK;
            assert_eq!(file_bytes(block + 1), next);
            for odd in [0, 1, BLOCK - 1] {
                assert_eq!(blocks_in(next + odd), block + 1);
            }
        }
        assert_eq!((blocks_in(GROUPS - 1), blocks_in(GROUPS), file_bytes(1)), (0, 1, GROUPS));
    }

    #[test]
    fn a_slot_is_refused_when_flipped_moved_or_of_another_file() {
        let payload = [7; PAYLOAD_BYTES];
        let slot = encode_slot(1, Place::Group(3), 9, &payload);
        assert_eq!(decode_slot(1, Place::Group(3), &slot), Some((9, &payload[..])));
        assert_eq!(decode_slot(1, Place::Group(4), &slot), None);
        assert_eq!(decode_slot(1, Place::Root, &slot), None);
        assert_eq!(decode_slot(2, Place::Group(3), &slot), None);
        for byte in 0..slot.len() {
            let mut bad = slot.clone();
            bad[byte] ^= 0x10;
            assert_eq!(decode_slot(1, Place::Group(3), &bad), None, "byte {byte}");
        }
    }
}
