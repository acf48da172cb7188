//! openraft's state machine over the tables: applies commands in memory, writes checkpoints off the thread,
//! takes snapshots in. A snapshot for openraft's log compaction is a durable checkpoint, nothing else.

use super::log::{Checkpointed, Log};
use super::types::{Entry, LogId, Members, Types, id_from_pb, id_to_pb, membership_from_pb};
use super::types::{Master, members_to_pb};
use super::work::DiskWork;
use crate::ids::{LogIndex, NodeId, Term};
use crate::limits::Limits;
use crate::namespace::Namespace;
use crate::pb;
use crate::tables::{Checkpoint, Db, Finished, Garbage, Install, TableError, View};
use crate::{bug, mark, seam};
use openraft::entry::EntryPayload;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// What runs the commands of the log. All its state is in the tables.
pub trait Machine: Send + 'static {
    /// Runs the command at `index`; `outcomes[i]` answers `proposals[i]`. An error is fatal to the node.
    fn apply(
        &mut self,
        term: Term,
        index: LogIndex,
        command: &pb::Command,
    ) -> Result<Vec<pb::Outcome>, TableError>;
    /// The tables.
    fn db(&self) -> &Db;
    /// The tables, for checkpoints and snapshots.
    fn db_mut(&mut self) -> &mut Db;
}

impl Machine for Namespace {
    fn apply(
        &mut self,
        term: Term,
        index: LogIndex,
        command: &pb::Command,
    ) -> Result<Vec<pb::Outcome>, TableError> {
        Namespace::apply(self, term, index, command)
    }

    fn db(&self) -> &Db {
        Namespace::db(self)
    }

    fn db_mut(&mut self) -> &mut Db {
        Namespace::db_mut(self)
    }
}

/// What a state machine has just taken in.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// Term of the entry, or of the last one that the snapshot covers.
    pub term: Term,
    /// The leader that made that entry.
    pub leader: NodeId,
    /// Its index.
    pub index: LogIndex,
    /// The state hash after it.
    pub hash: u64,
    /// Index of the entry that made the membership; 0 before the first.
    pub members_since: LogIndex,
    /// What it was.
    pub what: Taken<'a>,
}

/// Kinds of what a state machine takes in.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a> {
    /// A command, and how its proposals came out.
    Command(&'a pb::Command, &'a [pb::Outcome]),
    /// An entry that changes no table.
    Other,
    /// A snapshot in place of all entries up to the index.
    Snapshot,
}

/// Told of each entry applied and each snapshot installed.
pub type Observe = Arc<dyn Fn(&Applied<'_>) + Send + Sync>;

/// The data of a snapshot.
pub enum SnapshotBody {
    /// Only its description matters: the durable checkpoint.
    Checkpoint,
    /// All tables at one moment, to be sent; with the state hash.
    Outgoing(View),
    /// Rows received and written, not yet shown; with the state hash they must have.
    Received(Box<Install>, u64),
}

/// The machine and how far it is.
pub struct Inner<M> {
    pub machine: M,
    pub last: Option<LogId>,
    pub members: Members,
    /// What the durable checkpoint is of.
    durable: Option<(LogId, Members)>,
}

/// The state machine as the node's tasks share it. Locks are never held across an await.
pub struct Shared<M> {
    inner: Mutex<Inner<M>>,
    checkpointed: watch::Sender<Checkpointed>,
    /// Rung when a checkpoint should begin.
    pub wanted: Notify,
    /// Rung when one has been finished.
    pub finished: Notify,
    running: AtomicBool,
    /// The next checkpoint is tried even if it might not fit: the log cannot go on without it.
    pub pressed: AtomicBool,
    operations: AtomicU64,
    observe: Option<Observe>,
    /// On the node's disk.
    pub work: DiskWork,
    overlay_bytes_checkpoint: usize,
}

impl<M: Machine> Shared<M> {
    /// Over a machine whose tables are at `checkpoint`.
    pub fn new(
        machine: M,
        checkpoint: Option<&pb::CheckpointMeta>,
        limits: &Limits,
        observe: Option<Observe>,
        work: DiskWork,
    ) -> Result<(Arc<Shared<M>>, watch::Receiver<Checkpointed>), String> {
        let durable = checkpoint.map(checkpoint_position).transpose()?;
        let (last, members) = durable.clone().unzip();
        let reached = last.map_or(0, |id| id.index + 1);
        let (checkpointed, watching) = watch::channel(Some(reached));
        let inner = Inner { machine, last, members: members.unwrap_or_default(), durable };
        let shared = Shared {
            inner: Mutex::new(inner),
            checkpointed,
            wanted: Notify::new(),
            finished: Notify::new(),
            running: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            observe,
            work,
            overlay_bytes_checkpoint: limits.overlay_bytes_checkpoint,
        };
        Ok((Arc::new(shared), watching))
    }

    /// The machine and its position.
    pub fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node runs: from now on a snapshot for a peer is the current state.
    pub fn set_running(&self) {
        self.running.store(true, Ordering::Relaxed);
    }

    /// Client operations applied since the start.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Memory of rows not yet in a checkpoint, bytes.
    pub fn overlay_bytes(&self) -> usize {
        self.lock().machine.db().overlay_bytes()
    }

    /// Nothing will be durable any more: whoever waits for a checkpoint gets an error.
    pub fn give_up(&self) {
        self.checkpointed.send_replace(None);
    }

    fn observe(&self, inner: &Inner<M>, what: Taken<'_>) {
        if let (Some(observe), Some(last)) = (&self.observe, &inner.last) {
            let (term, index) = (Term(last.leader_id.term), LogIndex(last.index + 1));
            let leader = NodeId(last.leader_id.node_id);
            let hash = inner.machine.db().hash();
            let since = LogIndex(inner.members.log_id().map_or(0, |id| id.index + 1));
            observe(&Applied { term, leader, index, hash, members_since: since, what });
        }
    }

    fn apply(&self, entries: Vec<Entry>) -> Result<Vec<Vec<pb::Outcome>>, (LogId, TableError)> {
        let mut inner = self.lock();
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut outcomes = Vec::new();
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    let term = Term(entry.log_id.leader_id.term);
                    let index = LogIndex(entry.log_id.index + 1);
                    outcomes = inner
                        .machine
                        .apply(term, index, &command.command)
                        .map_err(|error| (entry.log_id, error))?;
                    self.operations.fetch_add(operations(&command.command), Ordering::Relaxed);
                }
                EntryPayload::Membership(membership) => {
                    inner.members = StoredMembership::new(Some(entry.log_id), membership.clone());
                }
            }
            inner.last = Some(entry.log_id);
            let taken = match &entry.payload {
                EntryPayload::Normal(command) => Taken::Command(&command.command, &outcomes),
                EntryPayload::Blank | EntryPayload::Membership(_) => Taken::Other,
            };
            self.observe(&inner, taken);
            results.push(outcomes);
        }
        let db = inner.machine.db();
        if db.overlay_bytes() >= self.overlay_bytes_checkpoint || db.is_squeezed() {
            self.wanted.notify_one();
        }
        Ok(results)
    }

    /// Freezes the state for a checkpoint, where there is something to write and room for it.
    fn begin(&self) -> Option<Begun> {
        let pressed = self.pressed.swap(false, Ordering::Relaxed);
        let mut inner = self.lock();
        let (last, members) = (inner.last?, inner.members.clone());
        let meta = checkpoint_meta(&last, &members, 0);
        let checkpoint = inner.machine.db_mut().begin_checkpoint(meta, pressed)?;
        Some((checkpoint, last, members))
    }

    fn set_durable(&self, inner: &mut Inner<M>, last: LogId, members: Members) {
        if inner.durable.as_ref().is_none_or(|(durable, _)| durable.index < last.index) {
            inner.durable = Some((last, members));
            self.checkpointed.send_replace(Some(last.index + 1));
        }
        self.finished.notify_waiters();
    }
}

pub(super) fn operations(command: &pb::Command) -> u64 {
    let of = |proposal: &pb::Proposal| match &proposal.kind {
        Some(pb::proposal::Kind::Batch(batch)) => batch.ops.len() as u64,
        _ => 1,
    };
    command.proposals.iter().map(of).sum()
}

fn checkpoint_position(meta: &pb::CheckpointMeta) -> Result<(LogId, Members), String> {
    let last = meta.last_applied.as_ref().ok_or("the checkpoint does not say what it is of")?;
    let members = meta.membership.as_ref().map(membership_from_pb).transpose()?;
    Ok((id_from_pb(last)?, members.unwrap_or_default()))
}

/// What the tables store with a checkpoint.
pub fn checkpoint_meta(last: &LogId, members: &Members, state_hash: u64) -> pb::CheckpointMeta {
    pb::CheckpointMeta {
        last_applied: Some(id_to_pb(last)),
        membership: Some(members_to_pb(members)),
        state_hash,
        ..pb::CheckpointMeta::default()
    }
}

/// openraft's description of a snapshot.
pub fn describe(last: LogId, members: Members) -> SnapshotMeta<u64, Master> {
    SnapshotMeta {
        last_log_id: Some(last),
        last_membership: members,
        snapshot_id: format!("{last}"),
    }
}

/// Frees what nobody reads any more where that may take its time.
async fn discard(garbage: Garbage) {
    seam::blocking(move || drop(garbage)).await;
}

fn snapshot_error(error: impl std::fmt::Display) -> StorageError<u64> {
    StorageIOError::write_snapshot(None, AnyError::error(error)).into()
}

/// How long a checkpoint that found the disk full waits.
const FULL_PAUSE: Duration = Duration::from_millis(500);
const STOPPING: &str = "this master is going down";

/// openraft's handle of the state machine.
pub struct Applier<M> {
    pub shared: Arc<Shared<M>>,
    pub log: Log,
}

/// A checkpoint, and what it is of.
type Begun = (Checkpoint, LogId, Members);

/// A checkpoint on its way to disk.
pub struct Builder<M> {
    shared: Arc<Shared<M>>,
    begun: Option<Begun>,
}

impl<M: Machine> RaftSnapshotBuilder<Types> for Builder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        if let Some((checkpoint, last, members)) = self.begun().await? {
            if bug!(M15) {
                let meta = describe(last, members);
                return Ok(Snapshot { meta, snapshot: Box::new(SnapshotBody::Checkpoint) });
            }
            let finished = self.write(checkpoint).await?;
            mark!("raft: checkpoint");
            let garbage = {
                let mut inner = self.shared.lock();
                let garbage = inner.machine.db_mut().finish_checkpoint(finished);
                self.shared.set_durable(&mut inner, last, members);
                garbage
            };
            discard(garbage).await;
        }
        let durable = self.shared.lock().durable.clone();
        let (last, members) = durable.ok_or_else(|| snapshot_error("nothing to checkpoint"))?;
        let meta = describe(last, members);
        Ok(Snapshot { meta, snapshot: Box::new(SnapshotBody::Checkpoint) })
    }
}

impl<M: Machine> Builder<M> {
    /// What is to be written; `None` if the durable checkpoint will do. Without one, a disk that has no room
    /// yet is waited for.
    async fn begun(&mut self) -> Result<Option<Begun>, StorageError<u64>> {
        while self.begun.is_none() && self.shared.lock().durable.is_none() {
            mark!("raft: the first checkpoint waits for space");
            tokio::time::sleep(FULL_PAUSE).await;
            self.shared.work.run(|| ()).await.ok_or_else(|| snapshot_error(STOPPING))?;
            self.begun = self.shared.begin();
        }
        Ok(self.begun.take())
    }

    /// Writes a checkpoint, as often as the disk is full: what frees space is applied meanwhile.
    async fn write(&self, checkpoint: Checkpoint) -> Result<Finished, StorageError<u64>> {
        let mut checkpoint = Box::new(checkpoint);
        loop {
            let write = move || {
                let written = checkpoint.write();
                (checkpoint, written)
            };
            let tried = self.shared.work.run(write).await;
            let (again, written) = tried.ok_or_else(|| snapshot_error(STOPPING))?;
            match written {
                Ok(finished) => return Ok(finished),
                Err(error) if error.is_full() => {
                    mark!("raft: checkpoint tried again");
                    tracing::warn!("{error}: the checkpoint waits for space");
                }
                Err(error) => {
                    self.shared.give_up();
                    return Err(snapshot_error(error));
                }
            }
            checkpoint = again;
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}

impl<M: Machine> Applier<M> {
    async fn install(
        &self,
        last: LogId,
        members: Members,
        install: Box<Install>,
        state_hash: u64,
    ) -> Result<(), StorageError<u64>> {
        let announced =
            self.log.with_wal(|wal| wal.announce_install(super::types::id_to_wal(&last)));
        announced.map_err(|error| snapshot_error(&error))?;
        let meta = checkpoint_meta(&last, &members, state_hash);
        let installed = self.shared.work.run(move || install.finish(meta)).await;
        let installed = installed.ok_or_else(|| snapshot_error(STOPPING))?;
        let installed = installed.map_err(snapshot_error)?;
        mark!("raft: snapshot installed");
        let garbage = {
            let mut inner = self.shared.lock();
            let garbage = inner.machine.db_mut().finish_install(installed);
            inner.last = Some(last);
            if !bug!(M14) {
                inner.members = members.clone();
            }
            self.shared.set_durable(&mut inner, last, members);
            self.shared.observe(&inner, Taken::Snapshot);
            garbage
        };
        discard(garbage).await;
        Ok(())
    }
}

impl<M: Machine> RaftStateMachine<Types> for Applier<M> {
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Members), StorageError<u64>> {
        let inner = self.shared.lock();
        Ok((inner.last, inner.members.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Vec<pb::Outcome>>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let results = {
            let entries = entries.into_iter().collect();
            self.shared.apply(entries)
        };
        seam::settle().await;
        results.map_err(|(at, error)| StorageIOError::apply(at, AnyError::new(&error)).into())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        Builder { shared: self.shared.clone(), begun: self.shared.begin() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotBody>, StorageError<u64>> {
        Err(snapshot_error("snapshots are received by the node's own calls"))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Master>,
        snapshot: Box<SnapshotBody>,
    ) -> Result<(), StorageError<u64>> {
        let (Some(last), SnapshotBody::Received(install, hash)) = (meta.last_log_id, *snapshot)
        else {
            return Err(snapshot_error("not a received snapshot"));
        };
        let installed = self.install(last, meta.last_membership.clone(), install, hash).await;
        if installed.is_err() {
            self.shared.give_up();
        }
        installed
    }

    /// While openraft starts: the durable checkpoint, behind which it may purge. Later: the state as it is
    /// now, for a follower that needs entries which are gone.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        let inner = self.shared.lock();
        if !self.shared.running.load(Ordering::Relaxed) {
            let durable = inner.durable.clone();
            return Ok(durable.map(|(last, members)| Snapshot {
                meta: describe(last, members),
                snapshot: Box::new(SnapshotBody::Checkpoint),
            }));
        }
        Ok(inner.last.map(|last| Snapshot {
            meta: describe(last, inner.members.clone()),
            snapshot: Box::new(SnapshotBody::Outgoing(inner.machine.db().view())),
        }))
    }
}
