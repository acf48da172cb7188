//! What a replica's file looks like.
//!
//! ```text
//! 0      header, first copy  (a codec record of ReplicaHeader, within one 512 B sector)
//! 2048   header, second copy
//! 4096   CRC table: u32 little-endian per 4 KiB block, 0 = never written
//! 4096 + table   data
//! ```

use crate::codec::{self, CodecError, kind};
use crate::erasure::Layout;
use crate::ids::{ChunkId, Generation};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX, SHARDS_MAX};
use crate::pb;
use prost::Message;
use std::fmt;

/// Block size as file offsets are counted.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
/// Header block; the CRC table follows.
pub(super) const HEADER_BYTES: usize = 4096;
/// Where the second copy of the header is.
const SECOND_COPY: usize = 2048;
/// A header copy lies within one sector, so a torn write leaves it old or new.
const SECTOR_BYTES: usize = 512;
/// The directory of all replicas.
pub(super) const CHUNKS: &str = "chunks";
/// Ending of a replica's file.
const DATA_ENDING: &str = ".dat";
/// Ending of a replica under construction.
pub(super) const BUILD_ENDING: &str = ".build";

const _: () = assert!(CHUNK_BYTES_MAX / BLOCK_BYTES * 4 == 64 << 10);

/// Names one shard's bytes on one server, for ever (rule A2): the chunk, the log index of the command that
/// created the replica, and the shard. `data_shards` is the layout's `k`, on which length and CRC seed depend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The chunk.
    pub chunk: ChunkId,
    /// The command that created this replica.
    pub generation: Generation,
    /// Which shard of the layout.
    pub shard: u8,
    /// `k` of the layout.
    pub data_shards: u8,
}

impl ReplicaId {
    /// From the wire; `None` if no replica can have that id.
    pub fn from_pb(raw: &pb::ReplicaId) -> Option<ReplicaId> {
        let layout = Layout::new(raw.data_shards, 0).ok()?;
        let shard = u8::try_from(raw.shard).ok().filter(|s| usize::from(*s) < SHARDS_MAX)?;
        (raw.chunk != 0 && raw.r#gen != 0).then_some(ReplicaId {
            chunk: ChunkId(raw.chunk),
            generation: Generation(raw.r#gen),
            shard,
            data_shards: layout.data() as u8,
        })
    }

    /// For the wire.
    pub fn to_pb(self) -> pb::ReplicaId {
        pb::ReplicaId {
            chunk: self.chunk.0,
            r#gen: self.generation.0,
            shard: self.shard.into(),
            data_shards: self.data_shards.into(),
        }
    }

    /// The layout as far as this replica knows it (without parity).
    fn layout(self) -> Layout {
        Layout::new(self.data_shards.into(), 0).expect("checked when the id was made")
    }

    /// What seeds the CRCs of its blocks.
    pub fn crc_shard(self) -> u8 {
        self.layout().crc_shard(self.shard.into())
    }

    /// Longest this replica may get, bytes.
    pub fn len_max(self) -> u64 {
        self.layout().shard_len_max()
    }

    /// Bytes of its CRC table, whole blocks.
    pub(super) fn table_bytes(self) -> u64 {
        (self.len_max() / BLOCK * 4).next_multiple_of(BLOCK)
    }

    /// Where its data begins in the file.
    pub(super) fn data_start(self) -> u64 {
        HEADER_BYTES as u64 + self.table_bytes()
    }

    /// Where the CRC of the block at `offset` is in the file.
    pub(super) fn crc_at(self, offset: u64) -> u64 {
        HEADER_BYTES as u64 + offset / BLOCK * 4
    }

    /// Directory of its file.
    pub(super) fn dir(self) -> String {
        format!("{CHUNKS}/{:02x}", self.chunk.0 & 0xff)
    }

    fn name(self) -> String {
        format!("{:016x}-{:x}-{}-{}", self.chunk.0, self.generation.0, self.shard, self.data_shards)
    }

    /// Its file.
    pub(super) fn path(self) -> String {
        format!("{}/{}{DATA_ENDING}", self.dir(), self.name())
    }

    /// Its file while it is being rebuilt.
    pub(super) fn build_path(self) -> String {
        format!("{}/{}{BUILD_ENDING}", self.dir(), self.name())
    }

    /// The id that a file in `chunks/xx` stands for. The name alone tells it, so that a damaged header does
    /// not hide what was lost.
    pub(super) fn from_file_name(dir: &str, file: &str) -> Option<ReplicaId> {
        let mut parts = file.strip_suffix(DATA_ENDING)?.split('-');
        let hex = |part: Option<&str>| u64::from_str_radix(part?, 16).ok();
        let (chunk, generation) = (hex(parts.next())?, hex(parts.next())?);
        let shard = parts.next()?.parse().ok()?;
        let data_shards = parts.next()?.parse().ok()?;
        let id =
            ReplicaId::from_pb(&pb::ReplicaId { chunk, r#gen: generation, shard, data_shards })?;
        (id.path() == format!("{CHUNKS}/{dir}/{file}")).then_some(id)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.chunk, self.generation, self.shard)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}/{}", self.data_shards)
    }
}

/// What the header remembers beside the id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// Bytes that were durable when the header was written; trusted after a crash.
    pub synced: u64,
    /// No more appends. The length is then `synced`, exactly.
    pub sealed: bool,
}

impl Recorded {
    fn rank(self) -> (bool, u64) {
        (self.sealed, self.synced)
    }
}

/// The header block.
pub(super) fn encode_header(id: ReplicaId, recorded: Recorded) -> Vec<u8> {
    let body = pb::ReplicaHeader {
        chunk: id.chunk.0,
        r#gen: id.generation.0,
        shard: id.shard.into(),
        data_shards: id.data_shards.into(),
        synced_len: recorded.synced,
        sealed: recorded.sealed,
    };
    let mut copy = Vec::with_capacity(SECTOR_BYTES);
    codec::encode_record(kind::REPLICA_HEADER, &body.encode_to_vec(), &mut copy);
    assert!(copy.len() <= SECTOR_BYTES);
    let mut block = vec![0; HEADER_BYTES];
    block[..copy.len()].copy_from_slice(&copy);
    block[SECOND_COPY..][..copy.len()].copy_from_slice(&copy);
    block
}

/// Why a header says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Both copies are damaged, or belong to another replica.
    Damaged,
    /// Intact, but of a version that this program does not know.
    Version(u16),
}

/// Whether a header that is damaged was never made durable: then nothing behind it was promised. A sync writes both
/// copies.
pub(super) fn never_synced(block: &[u8]) -> bool {
    let copies = [block.get(..SECTOR_BYTES), block.get(SECOND_COPY..SECOND_COPY + SECTOR_BYTES)];
    copies.into_iter().any(|copy| copy.is_none_or(|copy| copy.iter().all(|byte| *byte == 0)))
}

/// The better of the two copies.
pub(super) fn decode_header(id: ReplicaId, block: &[u8]) -> Result<Recorded, HeaderError> {
    let copies = [block.get(..SECTOR_BYTES), block.get(SECOND_COPY..SECOND_COPY + SECTOR_BYTES)];
    let mut best: Result<Recorded, HeaderError> = Err(HeaderError::Damaged);
    for copy in copies.into_iter().flatten() {
        best = match (best, decode_copy(id, copy)) {
            // Both are true statements about the past; the sealed one is the later, then the longer.
            (Ok(one), Ok(two)) => Ok(if one.rank() >= two.rank() { one } else { two }),
            (_, Err(HeaderError::Version(version))) => return Err(HeaderError::Version(version)),
            (Err(_), other) => other,
            (one, Err(_)) => one,
        };
    }
    best
}

fn decode_copy(id: ReplicaId, copy: &[u8]) -> Result<Recorded, HeaderError> {
    let (body, _) = match codec::decode_record(kind::REPLICA_HEADER, copy) {
        Ok(record) => record,
        Err(CodecError::Version(version)) => return Err(HeaderError::Version(version)),
        Err(_) => return Err(HeaderError::Damaged),
    };
    let header = pb::ReplicaHeader::decode(body).map_err(|_| HeaderError::Damaged)?;
    let written = ReplicaId::from_pb(&pb::ReplicaId {
        chunk: header.chunk,
        r#gen: header.r#gen,
        shard: header.shard,
        data_shards: header.data_shards,
    });
    let fits = header.synced_len <= id.len_max() && header.synced_len.is_multiple_of(BLOCK);
    if written != Some(id) || !fits {
        return Err(HeaderError::Damaged);
    }
    Ok(Recorded { synced: header.synced_len, sealed: header.sealed })
}

/// Table entries as bytes.
pub(super) fn encode_crcs(crcs: &[u32]) -> Vec<u8> {
    crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect()
}

/// Bytes as table entries.
pub(super) fn decode_crcs(raw: &[u8]) -> Vec<u32> {
    raw.chunks_exact(4)
        .map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        .collect()
}
