//! The replicated log: openraft over [`crate::wal`], the tables and the wire; one [`RaftNode`] per master.
//!
//! Raft's core, the log and the state machine run on the runtime that calls [`RaftNode::start`]; the log is
//! synced inline, checkpoints and snapshots are written where blocking is allowed.

mod clocks;
mod core;
mod handover;
mod log;
mod machine;
mod members;
mod network;
mod propose;
mod purge;
mod receive;
mod runtime;
mod space;
#[cfg(all(test, not(feature = "sim")))]
mod tests;
mod types;
mod work;

pub use self::core::FatalHook;
pub use machine::{Applied, Machine, Observe, Taken};
pub use members::{Member, join};
pub use propose::Done;
pub use space::RESERVE;

use self::core::Core;
use crate::ids::{LogIndex, NodeId, Term, Uuid};
use crate::limits::Limits;
use crate::namespace::Namespace;
use crate::pb;
use crate::seam::{self, Disk};
use crate::tables::{Db, TableError, View};
use crate::wal::{self, Wal, WalError};
use crate::wire::{Incoming, Outgoing, Peer, Pool, Refusal};
use crate::{bug, mark};
use clocks::Clocks;
use log::Log;
use machine::{Applier, Shared};
use network::Peers;
use openraft::{Config, SnapshotPolicy};
use purge::Held;
use space::Space;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use types::Master;
use work::DiskWork;

/// The file of the tables on the master's disk.
pub const TABLES: &str = "tables.redb";

/// What a node needs to start.
#[derive(Clone)]
pub struct RaftConfig {
    /// Its id, from the log (1 for the first).
    pub node: NodeId,
    /// The cluster it belongs to.
    pub cluster: Uuid,
    /// Of its data directory.
    pub incarnation: Uuid,
    /// host:port at which peers reach it.
    pub address: String,
    pub limits: Arc<Limits>,
    pub disk: Arc<dyn Disk>,
    /// Begin a group of which this node is the only member, if its log is empty.
    pub bootstrap: bool,
    /// Called once when the node cannot go on.
    pub fatal: FatalHook,
    /// Sees every position the state machine passes, for the simulator.
    pub observe: Option<Observe>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Log(#[from] WalError),
    #[error(transparent)]
    Tables(#[from] TableError),
    /// The directory is not what this node id stands for (rule B4).
    #[error("{0}")]
    Identity(String),
    /// What this node id promised is not there any more (rule B4).
    #[error("{0}")]
    Lost(String),
    #[error("raft: {0}")]
    Raft(String),
}

impl StartError {
    /// Whether what this node had made durable is lost or spoiled: under this id it must not take part again, but
    /// the others of its group have all of it.
    pub fn is_damage(&self) -> bool {
        match self {
            StartError::Log(error) => matches!(error, WalError::Corrupt { .. }),
            StartError::Tables(error) => error.is_corrupt(),
            StartError::Lost(_) => true,
            StartError::Identity(_) | StartError::Raft(_) => false,
        }
    }
}

/// Why a proposal or a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not done. The leader's address, if known.
    #[error("not the leader")]
    NotLeader(Option<String>),
    /// Certainly not done: too much waits already.
    #[error("too much is waiting")]
    Busy,
    /// Certainly not done: it is not allowed.
    #[error("refused: {0}")]
    Refused(String),
    /// It may have been, or may yet be, done.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It may have been, or may yet be, done.
    #[error("no answer before the deadline")]
    Deadline,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftCounters {
    /// fdatasync calls of the log.
    pub fsyncs: u64,
    /// Log entries appended.
    pub entries: u64,
    /// Client operations applied: each operation of a batch counts.
    pub operations: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
}

/// What to do about a master that lost what it promised.
const REPLACE: &str = "remove this master from the group and start a new one in an empty directory with \
                       --join; a single master is restored from its backup";

/// Makes an empty log in a data directory that is about to get a node id. A node whose log is missing
/// refuses to start, so this comes before the id is written down (rule B4).
pub fn prepare(disk: &Arc<dyn Disk>, limits: &Limits) -> Result<(), WalError> {
    Wal::open(disk.clone(), limits).map(drop)
}

/// One master's part of the group.
pub struct RaftNode<M: Machine = Namespace> {
    core: Arc<Core<M>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl RaftNode<Namespace> {
    /// [`RaftNode::start_with`] the namespace.
    pub async fn start(
        config: RaftConfig,
        pool: Arc<Pool>,
    ) -> Result<Arc<RaftNode<Namespace>>, StartError> {
        let limits = config.limits.clone();
        RaftNode::start_with(config, pool, |db| Namespace::new(db, limits)).await
    }

    /// Runs `look` on the namespace. Nothing is applied meanwhile: be short.
    pub fn with_namespace<R>(&self, look: impl FnOnce(&Namespace) -> R) -> R {
        self.with_machine(look)
    }
}

impl<M: Machine> RaftNode<M> {
    /// Opens log and tables, re-applies what is known to be committed, and takes part. `machine` makes the
    /// state machine over the tables.
    pub async fn start_with(
        config: RaftConfig,
        pool: Arc<Pool>,
        machine: impl FnOnce(Db) -> M,
    ) -> Result<Arc<RaftNode<M>>, StartError> {
        check_present(&config)?;
        let work = DiskWork::default();
        let space = Space::new(config.disk.clone(), &config.limits, work.clone());
        let wal = Wal::open(config.disk.clone(), &config.limits)?;
        let (db, checkpoint) = Db::open(config.disk.clone(), TABLES, &config.limits)?;
        seam::settle().await;
        check_not_rolled_back(&config, &wal, checkpoint.as_ref())?;
        let observe = config.observe.clone();
        let (shared, checkpointed) =
            Shared::new(machine(db), checkpoint.as_ref(), &config.limits, observe, work)
                .map_err(StartError::Identity)?;
        let began = (
            Term(wal.vote().map_or(0, |vote| vote.term.0)),
            wal.last().map_or(LogIndex(0), |id| id.index),
        );
        let log = Log::new(wal, &config.limits, checkpointed);
        let held = Held::default();
        let clocks = Arc::new(Clocks::new(config.limits.clock_off_max));
        let peers = Peers {
            pool: pool.clone(),
            limits: config.limits.clone(),
            incarnation: config.incarnation,
            log: log.clone(),
            held: held.clone(),
            clocks: clocks.clone(),
            raft: Arc::default(),
        };
        let itself = peers.raft.clone();
        let raft = openraft::Raft::new(
            config.node.0,
            Arc::new(openraft_config(&config)?),
            peers,
            log.clone(),
            Applier { shared: shared.clone(), log: log.clone() },
        )
        .await
        .map_err(|e| broken(&shared, e.to_string()))?;
        let _ = itself.set(raft.clone());
        shared.set_running();
        check_membership(&config, &raft)?;
        begin_group(&config, &raft).await?;
        let waiting = config.limits.proposals_waiting_max;
        let (proposals, proposed) = mpsc::channel(waiting);
        let (reads, asked) = mpsc::channel(waiting);
        let core = Arc::new(Core {
            node: config.node,
            cluster: config.cluster,
            incarnation: config.incarnation,
            limits: config.limits,
            raft,
            shared,
            log,
            held,
            pool,
            clocks,
            slots: Arc::new(tokio::sync::Semaphore::new(propose::IN_FLIGHT_MAX as usize)),
            receiving: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            proposals,
            reads,
            fatal: config.fatal,
            began,
            space: space.seen(),
            stopping: AtomicBool::new(false),
        });
        let tasks = begin(&core, proposed, asked, space);
        Ok(Arc::new(RaftNode { core, tasks: Mutex::new(tasks) }))
    }

    /// Proposes and waits until it is applied here: term and index at which it took effect, and the outcome.
    pub async fn propose(&self, proposal: pb::Proposal) -> Result<Done, ProposeError> {
        self.core.propose(proposal).await
    }

    /// A linearizable point: this node was confirmed to lead after the call began, and everything committed
    /// before is applied. A [`RaftNode::view`] taken afterwards answers reads.
    pub async fn read_index(&self) -> Result<(Term, LogIndex), ProposeError> {
        self.core.read_index().await
    }

    /// The state as it is now.
    pub fn view(&self) -> View {
        self.core.shared.lock().machine.db().view()
    }

    /// The state as it is now, and the index of the last entry applied to it.
    pub fn view_at(&self) -> (LogIndex, View) {
        let inner = self.core.shared.lock();
        (LogIndex(inner.last.map_or(0, |id| id.index + 1)), inner.machine.db().view())
    }

    /// Runs `look` on the state machine. Nothing is applied meanwhile: be short.
    pub fn with_machine<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        look(&self.core.shared.lock().machine)
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.core.node
    }

    /// The last entry applied; 0 before the first.
    pub fn applied(&self) -> LogIndex {
        self.core.applied()
    }

    /// The leader this node knows of, and its address.
    pub fn leader(&self) -> Option<(NodeId, String)> {
        self.core.leader()
    }

    /// What was found to be corrupt in the tables' file.
    pub fn corruption(&self) -> Option<String> {
        self.core.shared.lock().machine.db().corruption()
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.core.is_leader()
    }

    /// Whether this node leads and has applied an entry of its own term, so that it knows everything that
    /// was committed before.
    pub fn is_leader_ready(&self) -> bool {
        let term = self.core.term();
        let last = self.core.shared.lock().last;
        let own = last.is_some_and(|id| id.leader_id.term == term.0);
        self.is_leader() && own && !self.core.is_behind_itself()
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.core.term()
    }

    /// All members.
    pub fn members(&self) -> Vec<Member> {
        self.core.members()
    }

    /// Whether the group is on its way from one membership to the next: commits then need a majority of both.
    pub fn is_between_memberships(&self) -> bool {
        self.core.is_between_memberships()
    }

    /// The log index from which these members count.
    pub fn members_since(&self) -> LogIndex {
        self.core.members_since()
    }

    /// Takes a new master in: registers it in the log and replicates to it; it becomes a voter when it has
    /// caught up. Leader only. The same incarnation gets the same id.
    pub async fn add_master(
        &self,
        address: String,
        incarnation: Uuid,
    ) -> Result<NodeId, ProposeError> {
        members::add(&self.core, address, incarnation).await
    }

    /// Takes a master out of the group. Leader only.
    pub async fn remove_master(&self, node: NodeId) -> Result<(), ProposeError> {
        members::remove(&self.core, node).await
    }

    /// Answers the calls RaftVote, RaftAppend, RaftSnapshot, Join, Leader and StandForElection.
    pub async fn handle(&self, peer: Arc<Peer>, request: Incoming) -> Result<Outgoing, Refusal> {
        self.core.handle(&peer, request).await
    }

    /// Whether the disk is nearly full: only what frees space should be proposed.
    pub fn space_is_low(&self) -> bool {
        self.core.space.is_low()
    }

    /// Counters.
    pub fn metrics(&self) -> RaftCounters {
        let stats = self.core.log.with_wal(|wal| wal.stats());
        RaftCounters {
            fsyncs: stats.fsyncs,
            entries: self.core.log.entries(),
            operations: self.core.shared.operations(),
            log_bytes: stats.bytes,
        }
    }

    /// Stops taking part. What was acknowledged is durable already.
    pub async fn shutdown(&self) {
        self.core.stopping.store(true, Ordering::Relaxed);
        for task in self.take_tasks() {
            task.abort();
            let _ = task.await;
        }
        self.core.shared.give_up();
        let _ = self.core.raft.shutdown().await;
        self.core.shared.work.end().await;
        // A log that cannot be written has said so.
        let _ = self.core.log.with_wal(Wal::close);
        // Nothing of this node writes to the directory from here on: it may be opened again at once.
        self.core.shared.lock().machine.db_mut().retire();
    }

    fn take_tasks(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<M: Machine> Drop for RaftNode<M> {
    fn drop(&mut self) {
        self.take_tasks().iter().for_each(JoinHandle::abort);
    }
}

/// The tasks of a node.
fn begin<M: Machine>(
    core: &Arc<Core<M>>,
    proposed: mpsc::Receiver<propose::Waiting>,
    asked: mpsc::Receiver<propose::Reader>,
    space: Space,
) -> Vec<JoinHandle<()>> {
    vec![
        seam::spawn(propose::run(core.clone(), proposed)),
        seam::spawn(propose::run_reads(core.clone(), asked)),
        seam::spawn(self::core::watch(core.clone())),
        seam::spawn(self::core::keep_house(core.clone(), space)),
        seam::spawn(members::promote(core.clone())),
        seam::spawn(handover::run(core.clone())),
    ]
}

/// Rule B4: an empty directory never starts under a known id.
fn check_present(config: &RaftConfig) -> Result<(), StartError> {
    let found = wal::inspect(&*config.disk)?;
    if !found.live.is_empty() || bug!(M20) {
        return Ok(());
    }
    mark!("raft: empty directory refused");
    Err(StartError::Lost(format!(
        "{} holds no log although it belongs to master {}: what this master promised is lost; {REPLACE}",
        config.disk.describe(),
        config.node.0,
    )))
}

/// Rule B4: a log that ends before the checkpoint was rolled back (a restored image); tables behind what was
/// purged from the log lack entries that are gone.
fn check_not_rolled_back(
    config: &RaftConfig,
    wal: &Wal,
    checkpoint: Option<&pb::CheckpointMeta>,
) -> Result<(), StartError> {
    let applied = checkpoint.and_then(|meta| meta.last_applied).map_or(0, |id| id.index);
    let index = |id: Option<wal::LogId>| id.map_or(0, |id| id.index.0);
    let remedy = format!("an older copy of one of them was restored: {REPLACE}");
    let place = config.disk.describe();
    if applied > index(wal.last()).max(index(wal.installing())) {
        return Err(StartError::Lost(format!(
            "{place}: the log ends at {}, before the checkpoint at {applied}; {remedy}",
            index(wal.last()),
        )));
    }
    if applied < index(wal.purged()) {
        return Err(StartError::Lost(format!(
            "{place}: the tables are at {applied}, but the log begins behind {}; {remedy}",
            index(wal.purged()),
        )));
    }
    Ok(())
}

/// Rule B4: the group must know this node by this directory.
fn check_membership(
    config: &RaftConfig,
    raft: &openraft::Raft<types::Types>,
) -> Result<(), StartError> {
    let members = raft.metrics().borrow().membership_config.clone();
    match members.membership().get_node(&config.node.0) {
        Some(member) if member.incarnation != config.incarnation => {
            Err(StartError::Identity(format!(
                "{} is not the directory with which master {} joined; {REPLACE}",
                config.disk.describe(),
                config.node.0,
            )))
        }
        _ => Ok(()),
    }
}

/// openraft could not begin: with these tables, or for another reason.
fn broken<M: Machine>(shared: &Shared<M>, why: String) -> StartError {
    let corruption = shared.lock().machine.db().corruption();
    corruption.map_or(StartError::Raft(why), |what| StartError::Lost(format!("{what}; {REPLACE}")))
}

async fn begin_group(
    config: &RaftConfig,
    raft: &openraft::Raft<types::Types>,
) -> Result<(), StartError> {
    let failed = |e: &dyn std::fmt::Display| StartError::Raft(e.to_string());
    if !config.bootstrap || raft.is_initialized().await.map_err(|e| failed(&e))? {
        return Ok(());
    }
    let master = Master { address: config.address.clone(), incarnation: config.incarnation };
    let members = BTreeMap::from([(config.node.0, master)]);
    raft.initialize(members).await.map_err(|e| failed(&e))
}

fn openraft_config(config: &RaftConfig) -> Result<Config, StartError> {
    let limits = &config.limits;
    let ms =
        |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // After a leader's last sign a follower waits for openraft's lease (its longest election timeout) and
    // then for its own election timeout: together between `election_min` and `election_max`.
    let longest = ms(limits.election_max) / 2;
    let shortest = ms(limits.election_min).saturating_sub(longest).max(longest / 2);
    Config {
        cluster_name: config.cluster.to_string(),
        // openraft looks at its clocks every one and a half intervals, also to send heartbeats.
        heartbeat_interval: (ms(limits.heartbeat) * 2 / 3).max(1),
        election_timeout_min: shortest,
        election_timeout_max: longest,
        install_snapshot_timeout: ms(limits.append_deadline),
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::Never,
        // Its own policy never purges: `purge` does.
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1,
        ..Config::default()
    }
    .validate()
    .map_err(|e| StartError::Raft(e.to_string()))
}
