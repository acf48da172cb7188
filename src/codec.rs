//! Framed, versioned, checksummed records: how everything that is not a table row rests on disk.
//!
//! ```text
//!  0        4      6         8        12       16            16 + length
//!  +--------+------+---------+--------+--------+----------------+
//!  | "MNGr" | kind | version | length | CRC32C | body           |     integers little-endian
//!  +--------+------+---------+--------+--------+----------------+
//! ```
//! The CRC covers bytes 0..12 and the body. These 16 bytes mean the same in every version, so that a newer
//! record is told from a damaged one.

use crate::checksum::crc32c_parts;
use crate::seam::{Disk, OpenMode};
use std::io;

const MAGIC: [u8; 4] = *b"MNGr";
const VERSION: u16 = 1;
/// Bytes before a record's body.
pub const HEADER_BYTES: usize = 16;
/// Longest body of a record that is a file of its own, bytes.
pub const FILE_BODY_BYTES_MAX: usize = 16 << 20;

/// What a record is; no number is ever used again for another thing.
pub mod kind {
    /// `superblock` of a master's data directory.
    pub const MASTER_SUPERBLOCK: u16 = 1;
    /// `superblock` of a chunkserver's disk.
    pub const CHUNK_DISK_SUPERBLOCK: u16 = 2;
    /// Head of a replica's file.
    pub const REPLICA_HEADER: u16 = 3;
    /// Head of a log segment.
    pub const WAL_SEGMENT: u16 = 4;
    /// A record of the log.
    pub const WAL_RECORD: u16 = 5;
    /// Head of the table file.
    pub const TABLE_FILE: u16 = 6;
    /// Head of a snapshot stream.
    pub const SNAPSHOT: u16 = 7;
    /// The Raft vote.
    pub const VOTE: u16 = 8;
    /// The highest term that a chunkserver has seen.
    pub const HIGHEST_TERM: u16 = 9;
    /// First number that tests may use.
    pub const TEST: u16 = 0xff00;
}

/// Why bytes are not the record that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than the header or its length field ask for.
    #[error("record is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        need: usize,
    },
    /// It does not begin like a record.
    #[error("not a record: bad magic number")]
    Magic,
    /// Header or body changed since it was written.
    #[error("record is damaged: CRC is {computed:08x}, stored {stored:08x}")]
    Checksum {
        /// CRC in the header.
        stored: u32,
        /// CRC of what is there.
        computed: u32,
    },
    /// Intact, but written by a later program.
    #[error("record has format version {0}, this program knows up to {VERSION}")]
    Version(u16),
    /// Intact, but another thing.
    #[error("record is of kind {found}, expected {expected}")]
    Kind {
        /// The kind asked for.
        expected: u16,
        /// The kind found.
        found: u16,
    },
    /// Intact, but its body is not the message.
    #[error("record holds no such message: {0}")]
    Message(#[from] prost::DecodeError),
    /// A file holds more than its one record.
    #[error("{0} bytes follow the record")]
    Trailing(u64),
    /// The disk failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Which file it was.
    #[error("{file}: {error}")]
    File {
        /// Where, for people.
        file: String,
        /// What.
        error: Box<CodecError>,
    },
}

impl CodecError {
    /// Whether the bytes are wrong, as opposed to a disk that did not give them.
    pub fn is_damage(&self) -> bool {
        match self {
            CodecError::Io(_) => false,
            CodecError::File { error, .. } => error.is_damage(),
            _ => true,
        }
    }
}

/// Appends a record to `out`. The body is at most 4 GiB.
pub fn encode_record(kind: u16, body: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(body.len()).expect("a record's body is below 4 GiB");
    let start = out.len();
    out.reserve(HEADER_BYTES + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c_parts(&[&out[start..], body]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
}

/// The body of the record at the start of `bytes`, and how many bytes the record takes.
pub fn decode_record(kind: u16, bytes: &[u8]) -> Result<(&[u8], usize), CodecError> {
    let short = |need| CodecError::Short { have: bytes.len(), need };
    let header = bytes.get(..HEADER_BYTES).ok_or_else(|| short(HEADER_BYTES))?;
    if header[..4] != MAGIC {
        return Err(CodecError::Magic);
    }
    let need = HEADER_BYTES.saturating_add(le32(&header[8..12]) as usize);
    let body = bytes.get(HEADER_BYTES..need).ok_or_else(|| short(need))?;
    let stored = le32(&header[12..16]);
    let computed = crc32c_parts(&[&header[..12], body]);
    if stored != computed {
        return Err(CodecError::Checksum { stored, computed });
    }
    let version = u16::from_le_bytes([header[6], header[7]]);
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let found = u16::from_le_bytes([header[4], header[5]]);
    if found != kind {
        return Err(CodecError::Kind { expected: kind, found });
    }
    Ok((body, need))
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Replaces a file by one record, durably and whole: after a crash there is the old file or the new one.
pub fn write_file(
    disk: &dyn Disk,
    path: &str,
    kind: u16,
    message: &impl prost::Message,
) -> io::Result<()> {
    let mut record = Vec::new();
    encode_record(kind, &message.encode_to_vec(), &mut record);
    let temporary = format!("{path}.new");
    let file = disk.open(&temporary, OpenMode::Create)?;
    file.set_len(0)?;
    file.write_at(0, &record)?;
    file.sync_data()?;
    drop(file);
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent(path))
}

/// The message in a file written by [`write_file`]; `None` if there is no such file. Errors name the file.
/// What it returns is durable, also if the writer was killed before it could say so.
pub fn read_file<M: prost::Message + Default>(
    disk: &dyn Disk,
    path: &str,
    kind: u16,
) -> Result<Option<M>, CodecError> {
    read_message(disk, path, kind).map_err(|error| CodecError::File {
        file: format!("{}/{path}", disk.describe()),
        error: Box::new(error),
    })
}

fn read_message<M: prost::Message + Default>(
    disk: &dyn Disk,
    path: &str,
    kind: u16,
) -> Result<Option<M>, CodecError> {
    let file = match disk.open(path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    disk.sync_dir(parent(path))?;
    let len = file.len()?;
    let most = (HEADER_BYTES + FILE_BODY_BYTES_MAX) as u64;
    let mut bytes = vec![0; len.min(most) as usize];
    file.read_exact_at(0, &mut bytes)?;
    let (body, used) = decode_record(kind, &bytes)?;
    if used as u64 != len {
        return Err(CodecError::Trailing(len - used as u64));
    }
    Ok(Some(M::decode(body)?))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        encode_record(kind::TEST, body, &mut out);
        out.drain(..6);
        out
    }

    #[test]
    fn a_record_comes_back_with_its_length() {
        for body in [&b""[..], b"x", &[7; 5000]] {
            let mut bytes = record(body);
            let used = bytes.len();
            bytes.extend_from_slice(b"what follows");
            assert_eq!(decode_record(kind::TEST, &bytes).unwrap(), (body, used));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let good = record(b"some body");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_record(kind::TEST, &bad).is_err(), "bit {bit}");
        }
        for cut in 0..good.len() {
            assert!(matches!(
                decode_record(kind::TEST, &good[..cut]),
                Err(CodecError::Short { have, .. }) if have == cut
            ));
        }
    }

    #[test]
    fn a_newer_version_and_another_kind_are_not_called_damage_of_bytes() {
        let mut newer = record(b"body");
        newer[6] = 9;
        let crc = crc32c_parts(&[&newer[..12], b"body"]);
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(decode_record(kind::TEST, &newer), Err(CodecError::Version(9))));
        assert!(matches!(
            decode_record(kind::TEST + 1, &record(b"body")),
            Err(CodecError::Kind { expected: 0xff01, found: 0xff00 })
        ));
    }

    #[test]
    fn a_length_beyond_the_bytes_allocates_nothing() {
        let mut bytes = record(b"body");
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode_record(kind::TEST, &bytes), Err(CodecError::Short { .. })));
    }

    #[test]
    fn the_directory_of_a_path() {
        assert_eq!(parent("a/b/c"), "a/b");
        assert_eq!(parent("c"), "");
    }
}
