//! openraft's log storage over [`crate::wal`]: everything is written inline and durable before it is
//! answered. Recent entries stay decoded in memory.

use super::machine::operations;
use super::types::{
    Entry, LogId, Types, Vote, entry_bytes, entry_from_bytes, id_from_wal, id_to_wal,
    vote_from_wal, vote_to_wal,
};
use crate::ids::LogIndex;
use crate::limits::Limits;
use crate::pb;
use crate::wal::{self, Wal, WalError};
use crate::{bug, mark, seam};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, EntryPayload, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError,
};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The log of this node. Clones share it.
#[derive(Clone)]
pub struct Log {
    state: Arc<Mutex<State>>,
    /// Log position up to which a durable checkpoint reaches; an error once there will be none.
    checkpointed: watch::Receiver<Checkpointed>,
}

/// How far the durable checkpoint reaches, as a wal index; `None` after a failure.
pub type Checkpointed = Option<u64>;

struct State {
    wal: Wal,
    /// The newest entries, without gaps, up to the last.
    recent: VecDeque<(Entry, usize)>,
    recent_bytes: usize,
    recent_bytes_max: usize,
    entries: u64,
}

fn write_error(error: WalError) -> StorageError<u64> {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

fn read_error(error: impl std::fmt::Display) -> StorageError<u64> {
    StorageIOError::read_logs(AnyError::error(error)).into()
}

impl Log {
    /// Over an open wal.
    pub fn new(wal: Wal, limits: &Limits, checkpointed: watch::Receiver<Checkpointed>) -> Log {
        let state = State {
            wal,
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_bytes_max: limits.log_cache_bytes,
            entries: 0,
        };
        Log { state: Arc::new(Mutex::new(state)), checkpointed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the wal.
    pub fn with_wal<R>(&self, work: impl FnOnce(&mut Wal) -> R) -> R {
        work(&mut self.state().wal)
    }

    /// Whether this very entry is in the log, or may have been: of what lies before the last purged one
    /// nothing is known.
    pub fn holds(&self, id: &LogId) -> bool {
        let id = id_to_wal(id);
        let state = self.state();
        match state.wal.purged() {
            Some(purged) if id.index < purged.index => true,
            Some(purged) if id.index == purged.index => id == purged,
            _ => state.wal.id_at(id.index) == Some(id),
        }
    }

    /// Entries appended since the start.
    pub fn entries(&self) -> u64 {
        self.state().entries
    }
}

/// What a decoded entry takes in memory, roughly: its bytes twice, and every message in it with an allocation
/// or two of its own. Small operations take many times their encoded length.
fn memory(entry: &Entry, encoded: usize) -> usize {
    const ALLOCATION: usize = 32;
    let EntryPayload::Normal(command) = &entry.payload else {
        return size_of::<(Entry, usize)>() + encoded * 4;
    };
    let proposals = command.command.proposals.len();
    let ops = operations(&command.command) as usize;
    size_of::<(Entry, usize)>()
        + size_of::<pb::Command>()
        + proposals * (size_of::<pb::Proposal>() + 2 * ALLOCATION)
        + ops * (size_of::<pb::Op>() + 3 * ALLOCATION)
        + encoded * 2
}

impl State {
    fn append(&mut self, entries: Vec<Entry>) -> Result<(), WalError> {
        let records: Vec<wal::Entry> = entries
            .iter()
            .map(|entry| wal::Entry {
                id: id_to_wal(&entry.log_id),
                payload: entry_bytes(&entry.payload),
            })
            .collect();
        self.wal.append(&records)?;
        self.wal.sync()?;
        self.entries += entries.len() as u64;
        for (entry, record) in entries.into_iter().zip(records) {
            let bytes = memory(&entry, record.payload.len());
            self.recent_bytes += bytes;
            self.recent.push_back((entry, bytes));
        }
        while self.recent_bytes > self.recent_bytes_max && self.recent.len() > 1 {
            self.drop_oldest();
        }
        Ok(())
    }

    fn drop_oldest(&mut self) {
        if let Some((_, bytes)) = self.recent.pop_front() {
            self.recent_bytes -= bytes;
        }
    }

    fn truncate(&mut self, from: &LogId) -> Result<(), WalError> {
        self.wal.truncate(id_to_wal(from).index)?;
        while self.recent.back().is_some_and(|(entry, _)| entry.log_id.index >= from.index) {
            if let Some((_, bytes)) = self.recent.pop_back() {
                self.recent_bytes -= bytes;
            }
        }
        Ok(())
    }

    fn purge(&mut self, upto: &LogId) -> Result<(), WalError> {
        self.wal.purge(id_to_wal(upto))?;
        while self.recent.front().is_some_and(|(entry, _)| entry.log_id.index <= upto.index) {
            self.drop_oldest();
        }
        self.wal.sync()
    }

    /// Entries in `[from, to)`, openraft's indexes, from memory where possible; stops after `bytes_max`.
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, String> {
        let recent_from = self.recent.front().map_or(u64::MAX, |(entry, _)| entry.log_id.index);
        let mut out = Vec::new();
        let mut bytes = 0;
        if from < recent_from {
            mark!("raft: log entries read from disk");
            let (from, to) = (LogIndex(from + 1), LogIndex(to.min(recent_from).saturating_add(1)));
            for entry in self.wal.read(from, to, bytes_max).map_err(|e| e.to_string())? {
                bytes += entry.payload.len();
                let log_id = id_from_wal(entry.id);
                out.push(entry_from_bytes(log_id, entry.payload)?);
            }
        }
        let mut next = out.last().map_or(from, |entry| entry.log_id.index + 1);
        if next < recent_from && self.recent.is_empty() || next < recent_from.min(to) {
            return Ok(out);
        }
        while next < to && (out.is_empty() || bytes < bytes_max) {
            let at = usize::try_from(next - recent_from).unwrap_or(usize::MAX);
            let Some((entry, len)) = self.recent.get(at) else { break };
            bytes += len;
            out.push(entry.clone());
            next += 1;
        }
        Ok(out)
    }
}

/// The half-open range of indexes that `range` means.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// Most bytes of entries that one append call to a follower carries (it carries one at least).
const REPLICATE_BYTES_MAX: usize = 1 << 20;

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        let (from, to) = bounds(&range);
        let entries = self.state().read(from, to, usize::MAX);
        seam::settle().await;
        entries.map_err(read_error)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        let entries = self.state().read(start, end, REPLICATE_BYTES_MAX);
        seam::settle().await;
        entries.map_err(read_error)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let state = self.state();
        Ok(LogState {
            last_purged_log_id: state.wal.purged().map(id_from_wal),
            last_log_id: state.wal.last().map(id_from_wal),
        })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError<u64>> {
        let saved = self.state().wal.save_vote(vote_to_wal(vote));
        seam::settle().await;
        saved.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError<u64>> {
        Ok(self.state().wal.vote().map(vote_from_wal))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError<u64>> {
        let Some(committed) = committed else { return Ok(()) };
        self.state().wal.save_committed(id_to_wal(&committed)).map_err(write_error)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError<u64>> {
        let state = self.state();
        let (committed, last) = (state.wal.committed(), state.wal.last());
        // M08: after a restart whatever is in the log is applied.
        if bug!(M08) {
            return Ok(last.map(id_from_wal));
        }
        // After a snapshot was installed the two may name entries of different ages: never beyond the log.
        let known = committed.filter(|id| last.is_some_and(|last| id.index <= last.index));
        Ok(known.map(id_from_wal))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let appended = {
            let entries = entries.into_iter().collect();
            self.state().append(entries)
        };
        seam::settle().await;
        appended.map_err(write_error)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError<u64>> {
        mark!("raft: conflicting entries truncated");
        self.state().truncate(&log_id).map_err(write_error)
    }

    /// openraft asks for this as soon as a snapshot is on its way into the state machine; entries may go only
    /// when it is durable there.
    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError<u64>> {
        let needed = upto.index + 1;
        let reached = self
            .checkpointed
            .wait_for(|durable| durable.is_none_or(|durable| durable >= needed))
            .await
            .map(|durable| durable.is_some());
        if !reached.unwrap_or(false) {
            return Err(read_error("no checkpoint covers the entries to purge"));
        }
        let purged = self.state().purge(&upto);
        seam::settle().await;
        purged.map_err(write_error)
    }
}
