//! One record of the log, as bytes.
//!
//! ```text
//!  0 magic "MWAL"   4 crc32c          8 kind  9 version  10 zero   12 body length
//! 16 generation    24 sequence      32 durable           40 log index
//! 48 body ... zero padding to 8 bytes
//! ```
//! All numbers are little-endian. The CRC covers the record's offset in its segment, then everything after
//! the CRC field up to the end of the body. `generation` names the segment's current use, `sequence` numbers
//! records through all segments, `durable` is the highest sequence known to be durable when this one was
//! written.

use super::{LogId, Vote};
use crate::bug;
use crate::checksum::crc32c_parts;
use crate::ids::{LogIndex, NodeId, Term};

/// Bytes before the body.
pub const HEADER_BYTES: usize = 48;
/// Records start on this boundary.
pub const ALIGN: usize = 8;
/// What follows a sync starts on this boundary, so that a durable sector is never written again.
pub const SECTOR_BYTES: usize = 512;
const MAGIC: [u8; 4] = *b"MWAL";
const VERSION: u8 = 1;
/// No log was ever written that counts further: a record that claims more is none, and what is added to a number of
/// a record does not overflow.
const NUMBER_MAX: u64 = u64::MAX >> 1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// First record of a segment.
    Head = 1,
    /// A log entry: term, node, payload.
    Entry = 2,
    /// The vote.
    Vote = 3,
    /// Entries from this index on are gone (they conflicted with the leader's).
    Truncate = 4,
    /// Entries up to this one are gone (a durable checkpoint covers them).
    Purge = 5,
    /// Everything up to here is committed.
    Committed = 6,
    /// A checkpoint up to here is about to become durable from outside the log.
    Install = 7,
    /// Nothing but the watermark it carries.
    Mark = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::{Committed, Entry, Head, Install, Mark, Purge, Truncate, Vote};
        [Head, Entry, Vote, Truncate, Purge, Committed, Install, Mark]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub kind: Kind,
    pub generation: u64,
    pub sequence: u64,
    pub durable: u64,
    pub index: u64,
}

/// A record that verified: its header and where its body lies in the segment.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    pub header: Header,
    pub body_at: usize,
    pub body_len: usize,
}

impl Parsed {
    /// Offset of the byte after the record, padding included.
    pub fn end(&self) -> usize {
        round_up(self.body_at + self.body_len, ALIGN)
    }
}

/// `value` raised to a multiple of `to` (a power of two).
pub fn round_up(value: usize, to: usize) -> usize {
    (value + to - 1) & !(to - 1)
}

/// Bytes that a record with this body takes.
pub fn record_bytes(body_len: usize) -> usize {
    round_up(HEADER_BYTES + body_len, ALIGN)
}

/// Appends the record to `out`; it will lie at `offset` of its segment.
pub fn encode(out: &mut Vec<u8>, offset: u64, header: &Header, body: &[&[u8]]) {
    let start = out.len();
    let body_len: usize = body.iter().map(|part| part.len()).sum();
    out.reserve(record_bytes(body_len));
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[header.kind as u8, VERSION, 0, 0]);
    out.extend_from_slice(&u32::try_from(body_len).expect("bounded by a segment").to_le_bytes());
    for number in [header.generation, header.sequence, header.durable, header.index] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    body.iter().for_each(|part| out.extend_from_slice(part));
    let crc = crc32c_parts(&[&offset.to_le_bytes(), &out[start + 8..]]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_bytes(body_len), 0);
}

/// The record at `offset` of `segment`, if one verifies there.
pub fn parse(segment: &[u8], offset: usize) -> Option<Parsed> {
    segment.get(offset..).and_then(|bytes| parse_piece(bytes, offset, true))
}

/// The record that `bytes` begin with, which were read at `offset` of their segment. Without `verify` (a
/// planted mistake) a torn record is taken for whole.
pub fn parse_piece(bytes: &[u8], offset: usize, verify: bool) -> Option<Parsed> {
    let head = bytes.get(..HEADER_BYTES)?;
    if head[..4] != MAGIC || head[9] != VERSION {
        return None;
    }
    let body_len = u32_at(head, 12) as usize;
    let body_at = offset + HEADER_BYTES;
    let covered = bytes.get(8..HEADER_BYTES.checked_add(body_len)?)?;
    let crc = crc32c_parts(&[&(offset as u64).to_le_bytes(), covered]);
    // SECTOR: one that lies in a sector is taken to be there whole or not at all.
    let sector = |at: usize| at / SECTOR_BYTES;
    let in_one = || sector(offset) == sector(body_at + body_len - 1) && bug!(SECTOR);
    if verify && crc != u32_at(head, 4) && !in_one() {
        return None;
    }
    let header = Header {
        kind: Kind::from_byte(head[8])?,
        generation: u64_at(head, 16),
        sequence: u64_at(head, 24),
        durable: u64_at(head, 32),
        index: u64_at(head, 40),
    };
    let numbers = [header.generation, header.sequence, header.durable, header.index];
    numbers.iter().all(|number| *number <= NUMBER_MAX).then_some(Parsed {
        header,
        body_at,
        body_len,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Bytes of an encoded vote.
pub const VOTE_BYTES: usize = 17;
/// Bytes of term and node, which stand before an entry's payload.
pub const ENTRY_PREFIX_BYTES: usize = 16;

/// Term, node, committed.
pub fn encode_vote(vote: &Vote) -> [u8; VOTE_BYTES] {
    let mut out = [0; VOTE_BYTES];
    out[..8].copy_from_slice(&vote.term.0.to_le_bytes());
    out[8..16].copy_from_slice(&vote.node.0.to_le_bytes());
    out[16] = u8::from(vote.committed);
    out
}

/// The inverse of [`encode_vote`].
pub fn decode_vote(body: &[u8]) -> Option<Vote> {
    (body.len() == VOTE_BYTES && body[16] <= 1).then(|| Vote {
        term: Term(u64_at(body, 0)),
        node: NodeId(u64_at(body, 8)),
        committed: body[16] == 1,
    })
}

/// Term and node; the index stands in the record's header.
pub fn encode_id(id: &LogId) -> [u8; ENTRY_PREFIX_BYTES] {
    let mut out = [0; ENTRY_PREFIX_BYTES];
    out[..8].copy_from_slice(&id.term.0.to_le_bytes());
    out[8..].copy_from_slice(&id.node.0.to_le_bytes());
    out
}

/// The inverse of [`encode_id`]; more bytes may follow.
pub fn decode_id(index: u64, body: &[u8]) -> Option<LogId> {
    (body.len() >= ENTRY_PREFIX_BYTES && index <= NUMBER_MAX).then(|| LogId {
        term: Term(u64_at(body, 0)),
        node: NodeId(u64_at(body, 8)),
        index: LogIndex(index),
    })
}

/// Body of a segment's first record: all that earlier segments might have said and that still counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Generation of the oldest segment that is still needed.
    pub first_generation: u64,
    /// Generation of the segment before this one; 0 if this is the first ever.
    pub previous_generation: u64,
    /// Sequence of the last record that counts in the segment before.
    pub previous_sequence: u64,
    /// Length of the segment's file, which was durable before this: a shorter one was cut.
    pub file_bytes: u64,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
}

const NUMBERS_BYTES: usize = 4 * 8;
const HEAD_BYTES: usize = NUMBERS_BYTES + 1 + VOTE_BYTES + 2 * (1 + 8 + ENTRY_PREFIX_BYTES);

// A head fits into one sector: it is there wholly or not at all.
const _: () = assert!(HEADER_BYTES + HEAD_BYTES <= SECTOR_BYTES);

impl Head {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        let (first, previous) = (self.first_generation, self.previous_generation);
        for number in [first, previous, self.previous_sequence, self.file_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(u8::from(self.vote.is_some()));
        out.extend_from_slice(&encode_vote(&self.vote.unwrap_or_default()));
        for id in [self.purged, self.committed] {
            out.push(u8::from(id.is_some()));
            let id = id.unwrap_or_default();
            out.extend_from_slice(&id.index.0.to_le_bytes());
            out.extend_from_slice(&encode_id(&id));
        }
        out
    }

    /// The inverse of [`Head::encode`].
    pub fn decode(body: &[u8]) -> Option<Head> {
        if body.len() != HEAD_BYTES {
            return None;
        }
        let id = |at: usize| match body[at] {
            0 => Some(None),
            _ => decode_id(u64_at(body, at + 1), &body[at + 9..]).map(Some),
        };
        let purged_at = NUMBERS_BYTES + 1 + VOTE_BYTES;
        Some(Head {
            first_generation: u64_at(body, 0),
            previous_generation: u64_at(body, 8),
            previous_sequence: u64_at(body, 16),
            file_bytes: u64_at(body, 24),
            vote: match body[NUMBERS_BYTES] {
                0 => None,
                _ => Some(decode_vote(&body[NUMBERS_BYTES + 1..purged_at])?),
            },
            purged: id(purged_at)?,
            committed: id(purged_at + 9 + ENTRY_PREFIX_BYTES)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_log_reaches_are_no_record() {
        for (at, number) in (0..4).flat_map(|at| [(at, NUMBER_MAX), (at, NUMBER_MAX + 1)]) {
            let mut numbers = [1; 4];
            numbers[at] = number;
            let [generation, sequence, durable, index] = numbers;
            let header = Header { kind: Kind::Mark, generation, sequence, durable, index };
            let mut bytes = Vec::new();
            encode(&mut bytes, 0, &header, &[b"body"]);
            assert_eq!(parse(&bytes, 0).is_some(), number <= NUMBER_MAX);
        }
        assert_eq!(decode_id(u64::MAX, &[0; ENTRY_PREFIX_BYTES]), None);
    }
}
