//! The second place of the vote: two records in one file, written in turn, so that neither a torn write here
//! nor a rotten record in the log can lose it. Each also names the newest segment that is durable, so that a
//! log whose last segments are gone is not taken for a shorter one.

use super::record::{self, Header, Kind};
use super::recover::DIR;
use super::{Vote, WalError};
use crate::seam::{Disk, DiskFile, OpenMode};
use std::io;
use std::sync::Arc;

const BLOCK_BYTES: u64 = 4096;

fn path() -> String {
    format!("{DIR}/vote")
}

/// What the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// The higher of the votes that verify.
    pub vote: Option<Vote>,
    /// Number of the newest record that verifies.
    pub sequence: u64,
    /// Generation of the newest segment known to be durable; 0 if none.
    pub segment: u64,
}

/// Reads the file; a missing or damaged one says nothing.
pub fn read(disk: &dyn Disk) -> Result<Slots, WalError> {
    let read = || -> io::Result<Slots> {
        if !disk.exists(&path())? {
            return Ok(Slots::default());
        }
        let file = disk.open(&path(), OpenMode::Read)?;
        let mut bytes = vec![0; 2 * BLOCK_BYTES as usize];
        let got = file.read_at(0, &mut bytes)?;
        bytes.truncate(got);
        let mut slots = Slots::default();
        for at in [0, BLOCK_BYTES as usize] {
            let parsed = record::parse(&bytes, at).filter(|found| found.header.kind == Kind::Vote);
            let Some(parsed) = parsed else { continue };
            let body = &bytes[parsed.body_at..parsed.body_at + parsed.body_len];
            // Before the first vote the records name only the segment.
            let vote = record::decode_vote(body).filter(|vote| *vote != Vote::default());
            slots.vote = slots.vote.max(vote);
            slots.segment = slots.segment.max(parsed.header.index);
            slots.sequence = slots.sequence.max(parsed.header.sequence);
        }
        Ok(slots)
    };
    read().map_err(|e| WalError::io(disk, &path(), "read", &e))
}

/// The open file.
pub struct VoteFile {
    file: Arc<dyn DiskFile>,
    sequence: u64,
}

impl VoteFile {
    /// Opens or creates it. The caller makes the directory durable.
    pub fn open(disk: &dyn Disk, slots: Slots) -> Result<VoteFile, WalError> {
        let open = || {
            let file = disk.open(&path(), OpenMode::Create)?;
            if file.len()? < 2 * BLOCK_BYTES {
                file.write_at(0, &[0; 2 * BLOCK_BYTES as usize])?;
                file.sync_data()?;
            }
            Ok(file)
        };
        let file = open().map_err(|e| WalError::io(disk, &path(), "create", &e))?;
        Ok(VoteFile { file, sequence: slots.sequence })
    }

    /// Writes the vote and the newest durable segment over the older record. Not durable before
    /// [`VoteFile::sync`].
    pub fn write(&mut self, vote: &Vote, segment: u64) -> io::Result<()> {
        self.sequence += 1;
        let header = Header {
            kind: Kind::Vote,
            generation: 0,
            sequence: self.sequence,
            durable: 0,
            index: segment,
        };
        let at = (self.sequence % 2) * BLOCK_BYTES;
        let mut bytes = Vec::new();
        record::encode(&mut bytes, at, &header, &[&record::encode_vote(vote)]);
        self.file.write_at(at, &bytes)
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Where it is, for messages.
    pub fn path() -> String {
        path()
    }
}
