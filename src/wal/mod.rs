//! The write-ahead log of a master: log entries, votes, truncations and purges in one ordered stream of
//! records, in segment files that are written with zeros once and then recycled, made durable by one
//! fdatasync for everything waiting.
//!
//! Rule C1: each record carries the sequence number up to which the stream was durable when it was written.
//! What does not verify at or below the highest such watermark is corruption, and the log refuses to open;
//! what does not verify above it was never acknowledged: a torn tail, and is cut. The vote also rests in a
//! file of its own and at the head of every segment.
//!
//! Any error of a write or a sync fences the log for good: what the disk holds is unknown, so nothing is
//! tried again.

mod record;
mod recover;
mod segments;
#[cfg(test)]
mod testdisk;
#[cfg(test)]
mod tests;
mod vote_file;

pub use recover::Recovered;
pub use segments::{Spare, SpareJob};

use crate::ids::{LogIndex, NodeId, Term};
use crate::limits::Limits;
use crate::seam::{self, Disk};
use crate::{bug, fault, invariant, mark};
use bytes::Bytes;
use record::{Head, Header, Kind, SECTOR_BYTES};
use recover::Located;
use segments::Segments;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use vote_file::VoteFile;

/// For whom a node voted, and whether that leader was elected. Ordered as Raft orders votes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    pub term: Term,
    pub node: NodeId,
    pub committed: bool,
}

/// Names a log entry. Ordered by term, leader, index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    /// Term of the leader that appended it first.
    pub term: Term,
    /// That leader.
    pub node: NodeId,
    pub index: LogIndex,
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: LogId,
    pub payload: Bytes,
}

/// Why the log cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The system said no. Writing again would be a lie: the log is fenced.
    #[error("cannot {what} {file}: {message}")]
    Io { file: String, what: &'static str, message: String, full: bool },
    /// What was durable does not verify.
    #[error(
        "{file}: {detail}; this master may have lost what it promised and must not take part again: remove it \
         from the group and start a new one in an empty directory with --join; a single master is restored \
         from its backup"
    )]
    Corrupt { file: String, detail: String },
    /// An earlier error fenced the log.
    #[error("the log was fenced after an error: {0}")]
    Fenced(String),
}

impl WalError {
    fn io(disk: &dyn Disk, path: &str, what: &'static str, error: &io::Error) -> WalError {
        let full = seam::is_full(error);
        WalError::Io {
            file: format!("{}/{path}", disk.describe()),
            what,
            message: error.to_string(),
            full,
        }
    }
}

/// Counters since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// fdatasync calls on segments and on the vote file.
    pub fsyncs: u64,
    /// Bytes of records and padding written.
    pub bytes: u64,
}

/// Reads a log directory, for instance a disk's durable image, without changing it: vote, last entry, purged
/// and committed position, and where each entry lies.
pub fn inspect(disk: &dyn Disk) -> Result<Recovered, WalError> {
    recover::recover(disk)
}

impl Recovered {
    /// The last entry; the purged position if there is none.
    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.id).or(self.purged)
    }

    /// The entry at this index.
    pub fn id_at(&self, index: LogIndex) -> Option<LogId> {
        self.entries.iter().map(|entry| entry.id).find(|id| id.index == index)
    }
}

/// The open log. One owner; calls are synchronous and ordered.
pub struct Wal {
    disk: Arc<dyn Disk>,
    segments: Segments,
    vote_file: VoteFile,
    /// The segment that the vote's file names as durable.
    named: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    installing: Option<LogId>,
    entries: VecDeque<Located>,
    /// Records not yet written, which will lie at `offset` of the active segment.
    waiting: Vec<u8>,
    offset: u64,
    sequence: u64,
    durable: u64,
    fenced: Option<String>,
    stats: WalStats,
}

impl Wal {
    /// Opens the log in this disk's directory `wal`, or begins one. What was found is durable when this
    /// returns, also what only the page cache held.
    pub fn open(disk: Arc<dyn Disk>, limits: &Limits) -> Result<Wal, WalError> {
        let found = recover::recover(&*disk)?;
        let segments = Segments::open(disk.clone(), limits.wal_segment_bytes, &found)?;
        let vote_file = VoteFile::open(&*disk, found.vote_file)?;
        segments.sync_dir()?;
        let fresh = found.live.is_empty();
        let mut wal = Wal {
            segments,
            vote_file,
            named: found.vote_file.segment,
            vote: found.vote,
            committed: found.committed,
            purged: found.purged,
            installing: found.installing,
            entries: found.entries,
            waiting: Vec::new(),
            offset: record::round_up(found.end as usize, SECTOR_BYTES) as u64,
            sequence: found.last_sequence,
            durable: found.last_sequence,
            fenced: None,
            stats: WalStats::default(),
            disk,
        };
        if !fresh {
            wal.segments.rewrite(found.unvouched_from, &found.unvouched)?;
        }
        if fresh || found.torn {
            if found.torn {
                mark!("wal: torn tail cut");
            }
            wal.begin_segment(found.sequence_seen, 0)?;
        }
        wal.push(Kind::Mark, 0, &[])?;
        if let Some(vote) = wal.vote {
            wal.save_vote(vote)?;
        }
        wal.sync()?;
        Ok(wal)
    }

    /// The last vote saved.
    pub fn vote(&self) -> Option<Vote> {
        self.vote
    }

    /// The highest committed position saved; it may lag behind what is committed.
    pub fn committed(&self) -> Option<LogId> {
        self.committed
    }

    /// The last entry that was purged.
    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// The checkpoint that was announced last by [`Wal::announce_install`].
    pub fn installing(&self) -> Option<LogId> {
        self.installing
    }

    /// The last entry; the purged position if there is none.
    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.id).or(self.purged)
    }

    /// The entry at this index; `None` if it was purged or is not there yet.
    pub fn id_at(&self, index: LogIndex) -> Option<LogId> {
        self.position(index.0).map(|at| self.entries[at].id)
    }

    /// Counters.
    pub fn stats(&self) -> WalStats {
        self.stats
    }

    /// Adds entries, each directly after the last. Durable after [`Wal::sync`].
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), WalError> {
        for entry in entries {
            let expected = self.last().map_or(1, |id| id.index.0 + 1);
            invariant!(entry.id.index.0 == expected, "a log has no holes");
            let prefix = record::encode_id(&entry.id);
            let body_at = self.push(Kind::Entry, expected, &[&prefix, &entry.payload])?;
            self.segments.note_entry(expected);
            self.entries.push_back(Located {
                id: entry.id,
                generation: self.segments.generation(),
                offset: body_at + prefix.len() as u64,
                len: entry.payload.len(),
            });
        }
        Ok(())
    }

    /// Saves the vote, in the stream and in its own file; durable when this returns.
    pub fn save_vote(&mut self, vote: Vote) -> Result<(), WalError> {
        self.push(Kind::Vote, 0, &[&record::encode_vote(&vote)])?;
        self.vote = Some(vote);
        if bug!(M02) {
            return self.flush();
        }
        // M03: the vote waits for the entries after it.
        if bug!(M03) {
            return Ok(());
        }
        self.sync()?;
        self.write_vote_file()
    }

    fn write_vote_file(&mut self) -> Result<(), WalError> {
        // ONCE: the log holds the vote, and nothing else does.
        if bug!(ONCE) {
            self.named = self.segments.generation();
            return Ok(());
        }
        let (vote, segment) = (self.vote.unwrap_or_default(), self.segments.generation());
        let written = self.vote_file.write(&vote, segment).and_then(|()| self.vote_file.sync());
        self.stats.fsyncs += 1;
        written.map_err(|e| self.fence(&VoteFile::path(), "write the vote to", &e))?;
        self.named = segment;
        Ok(())
    }

    /// Ends a clean run: a last record vouches for all before it, so that rot in the last entry is not taken
    /// for a torn tail.
    pub fn close(&mut self) -> Result<(), WalError> {
        self.sync()?;
        self.push(Kind::Mark, 0, &[])?;
        self.sync()
    }

    /// Removes the entries from `from` on: they conflict with the leader's. Goes into the stream; the next
    /// sync makes it durable.
    pub fn truncate(&mut self, from: LogIndex) -> Result<(), WalError> {
        let first = self.purged.map_or(0, |id| id.index.0) + 1;
        invariant!(from.0 >= first, "what is purged was committed and cannot conflict");
        self.push(Kind::Truncate, from.0, &[])?;
        self.entries.truncate((from.0 - first) as usize);
        Ok(())
    }

    /// Segments that hold what the log needs.
    pub fn segments(&self) -> u64 {
        self.segments.generation() + 1 - self.segments.first_generation()
    }

    /// Forgets entries up to and including `upto`, which a durable checkpoint covers. `upto` may lie beyond
    /// the last entry: then the log goes on behind it. Segments that hold nothing else are recycled once the
    /// next sync has made this durable.
    pub fn purge(&mut self, upto: LogId) -> Result<(), WalError> {
        if self.purged.is_some_and(|id| id.index >= upto.index) {
            return Ok(());
        }
        let needed = self.segments.first_needed(upto.index.0);
        self.push(Kind::Purge, upto.index.0, &[&recover::encode_purge(&upto, needed)])?;
        self.purged = Some(upto);
        while self.entries.front().is_some_and(|entry| entry.id.index <= upto.index) {
            self.entries.pop_front();
        }
        self.segments.retire_before(needed, self.sequence);
        Ok(())
    }

    /// Notes what is committed. Travels with whatever is written next; never synced for its own sake.
    pub fn save_committed(&mut self, committed: LogId) -> Result<(), WalError> {
        if self.committed.is_some_and(|id| id.index >= committed.index) {
            return Ok(());
        }
        let body = record::encode_id(&committed);
        self.push(Kind::Committed, committed.index.0, &[&body])?;
        self.committed = Some(committed);
        Ok(())
    }

    /// Notes, durably, that a checkpoint up to `upto` from outside this log is about to be installed, so that
    /// a checkpoint ahead of the log is not mistaken for a log that was rolled back (rule B4).
    pub fn announce_install(&mut self, upto: LogId) -> Result<(), WalError> {
        self.push(Kind::Install, upto.index.0, &[&record::encode_id(&upto)])?;
        self.installing = Some(upto);
        self.sync()
    }

    /// Writes what waits, without making it durable.
    pub fn flush(&mut self) -> Result<(), WalError> {
        self.check_fence()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.segments.active().file.write_at(self.offset, &self.waiting) {
            return Err(self.fence(&self.segments.active().path(), "write", &error));
        }
        self.offset += self.waiting.len() as u64;
        self.stats.bytes += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Makes everything so far durable with one fdatasync.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check_fence()?;
        if self.durable == self.sequence {
            return Ok(());
        }
        // What is durable now is never written again: the next record starts in a fresh sector.
        let end = self.offset as usize + self.waiting.len();
        let padding = record::round_up(end, SECTOR_BYTES) - end;
        self.waiting.resize(self.waiting.len() + padding, 0);
        self.flush()?;
        if bug!(M01) {
            return Ok(());
        }
        self.stats.fsyncs += 1;
        // LOGEIO: an EIO is taken for something that the next fsync puts right.
        if let Err(error) = self.segments.active().file.sync_data()
            && !(error.raw_os_error() == Some(libc::EIO) && bug!(LOGEIO))
        {
            return Err(self.fence(&self.segments.active().path(), "sync", &error));
        }
        self.durable = self.sequence;
        self.segments.release(self.durable);
        // The first sync in a segment made its head durable: from now on it must not be missing.
        if self.named == self.segments.generation() { Ok(()) } else { self.write_vote_file() }
    }

    /// Entries in `[from, to)` that are there, in order, stopping after `bytes_max` bytes but never before
    /// the first. Verified against their checksums.
    pub fn read(
        &self,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, WalError> {
        let first = self.purged.map_or(0, |id| id.index.0) + 1;
        let mut out = Vec::new();
        let mut bytes = 0;
        for index in from.0.max(first)..to.0 {
            let Some(at) = self.position(index) else { break };
            let located = &self.entries[at];
            if bytes > 0 && bytes + located.len > bytes_max {
                break;
            }
            bytes += located.len.max(1);
            out.push(Entry { id: located.id, payload: self.payload(located)? });
        }
        Ok(out)
    }

    /// Work that makes a segment ready before it is needed; run it where blocking is allowed and hand its
    /// result to [`Wal::add_spare`].
    pub fn spare_wanted(&mut self) -> Option<SpareJob> {
        self.segments.spare_wanted()
    }

    /// Takes a prepared segment, or learns why there is none.
    pub fn add_spare(&mut self, spare: Result<Spare, WalError>) {
        self.segments.add_spare(spare);
    }

    /// The disk had no room for the next spare segment: only work that frees space should be proposed.
    pub fn space_is_low(&self) -> bool {
        self.segments.space_is_low()
    }

    fn position(&self, index: u64) -> Option<usize> {
        let first = self.entries.front()?.id.index.0;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        (at < self.entries.len()).then_some(at)
    }

    fn payload(&self, located: &Located) -> Result<Bytes, WalError> {
        let before = record::HEADER_BYTES + record::ENTRY_PREFIX_BYTES;
        let start = located.offset - before as u64;
        let active = located.generation == self.segments.generation();
        if active && start >= self.offset {
            let at = (located.offset - self.offset) as usize;
            return Ok(Bytes::copy_from_slice(&self.waiting[at..at + located.len]));
        }
        let segment = self.segments.get(located.generation);
        let mut bytes = vec![0; before + located.len];
        let read = segment.file.read_exact_at(start, &mut bytes);
        read.map_err(|e| WalError::io(&*self.disk, &segment.path(), "read", &e))?;
        let parsed = record::parse_piece(&bytes, start as usize, true);
        if parsed.is_none_or(|parsed| parsed.header.index != located.id.index.0) {
            return Err(WalError::Corrupt {
                file: format!("{}/{}", self.disk.describe(), segment.path()),
                detail: format!("entry {} at byte {start} does not verify", located.id.index),
            });
        }
        Ok(Bytes::from(bytes).slice(before..))
    }

    /// Adds one record to what waits; returns the offset of its body in the active segment.
    fn push(&mut self, kind: Kind, index: u64, body: &[&[u8]]) -> Result<u64, WalError> {
        self.check_fence()?;
        let len = body.iter().map(|part| part.len()).sum();
        let bytes = record::record_bytes(len);
        let at = self.offset + self.waiting.len() as u64;
        let len = self.segments.active().len;
        let early = at > len / 4 && fault!("wal: segment cut early");
        if early || at + bytes as u64 > len {
            self.sync()?;
            self.begin_segment(self.sequence, bytes)?;
        }
        Ok(self.encode(kind, index, body))
    }

    fn encode(&mut self, kind: Kind, index: u64, body: &[&[u8]]) -> u64 {
        self.sequence += 1;
        let header = Header {
            kind,
            generation: self.segments.generation(),
            sequence: self.sequence,
            durable: self.durable,
            index,
        };
        let at = self.offset + self.waiting.len() as u64;
        record::encode(&mut self.waiting, at, &header, body);
        at + record::HEADER_BYTES as u64
    }

    /// Goes on in the next segment, which will also hold a record of `bytes`. Everything before is durable,
    /// so that only the last segment can ever have a torn tail.
    fn begin_segment(&mut self, sequence_seen: u64, bytes: usize) -> Result<(), WalError> {
        let previous_generation = self.segments.generation();
        let previous_sequence = self.sequence;
        let begun = self.segments.begin((SECTOR_BYTES + bytes) as u64);
        if let Err(error) = begun {
            self.fenced = Some(error.to_string());
            return Err(error);
        }
        self.sequence = sequence_seen;
        self.offset = 0;
        let head = Head {
            first_generation: self.segments.first_generation(),
            previous_generation,
            previous_sequence,
            file_bytes: self.segments.active().len,
            vote: self.vote,
            purged: self.purged,
            committed: self.committed,
        };
        self.encode(Kind::Head, 0, &[&head.encode()]);
        Ok(())
    }

    fn check_fence(&self) -> Result<(), WalError> {
        self.fenced.clone().map_or(Ok(()), |why| Err(WalError::Fenced(why)))
    }

    fn fence(&mut self, path: &str, what: &'static str, error: &io::Error) -> WalError {
        let error = WalError::io(&*self.disk, path, what, error);
        self.fenced = Some(error.to_string());
        error
    }
}
