//! What the node's tasks share.

use super::ProposeError;
use super::clocks::Clocks;
use super::log::Log;
use super::machine::{Machine, Shared};
use super::members::Member;
use super::propose::{Done, Reader, Waiting};
use super::purge::{self, Held};
use super::receive::Receiving;
use super::space::{Needs, Seen, Space};
use super::types::Types;
use crate::ids::{LogIndex, NodeId, Term, Uuid};
use crate::limits::Limits;
use crate::pb;
use crate::wire::Pool;
use crate::{fault, mark};
use openraft::error::Fatal;
use openraft::{Raft, ServerState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

/// Longest wait of a proposal; a client repeats it by its number afterwards.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Called once when the node cannot go on, with one line that says why.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// See the module.
pub struct Core<M> {
    pub node: NodeId,
    pub cluster: Uuid,
    pub incarnation: Uuid,
    pub limits: Arc<Limits>,
    pub raft: Raft<Types>,
    pub shared: Arc<Shared<M>>,
    pub log: Log,
    /// Followers for which the log is kept.
    pub held: Held,
    /// The way to the other masters.
    pub pool: Arc<Pool>,
    /// Their wall clocks.
    pub clocks: Arc<Clocks>,
    /// One for each entry that may be under way.
    pub slots: Arc<Semaphore>,
    pub receiving: Mutex<Receiving>,
    pub changing: Mutex<()>,
    pub proposals: mpsc::Sender<Waiting>,
    pub reads: mpsc::Sender<Reader>,
    pub fatal: FatalHook,
    /// The term of the vote, and the last entry of the log, with which this process started.
    pub began: (Term, LogIndex),
    /// The space on the disk.
    pub space: Arc<Seen>,
    pub stopping: AtomicBool,
}

impl<M: Machine> Core<M> {
    /// The leader this node knows of, and its address.
    pub fn leader(&self) -> Option<(NodeId, String)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader?;
        let master = metrics.membership_config.membership().get_node(&leader)?;
        Some((NodeId(leader), master.address.clone()))
    }

    /// The refusal that names the leader, unless that is this node.
    pub fn not_leader(&self) -> ProposeError {
        let other = self.leader().filter(|(node, _)| *node != self.node);
        ProposeError::NotLeader(other.map(|(_, address)| address))
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// The current term.
    pub fn term(&self) -> Term {
        Term(self.raft.metrics().borrow().current_term)
    }

    /// The last entry applied; 0 before the first.
    pub fn applied(&self) -> LogIndex {
        LogIndex(self.shared.lock().last.map_or(0, |id| id.index + 1))
    }

    /// Voters in the current membership.
    pub fn voters(&self) -> usize {
        self.raft.metrics().borrow().membership_config.membership().voter_ids().count()
    }

    /// Ids of the voters in the current membership.
    pub fn voter_ids(&self) -> Vec<u64> {
        self.raft.metrics().borrow().membership_config.membership().voter_ids().collect()
    }

    /// Those of the others.
    pub fn other_voters(&self) -> Vec<u64> {
        self.voter_ids().into_iter().filter(|id| *id != self.node.0).collect()
    }

    /// Whether the group is on its way from one membership to the next.
    pub fn is_between_memberships(&self) -> bool {
        let config = self.raft.metrics().borrow().membership_config.clone();
        config.membership().get_joint_config().len() > 1
    }

    /// All members.
    pub fn members(&self) -> Vec<Member> {
        let config = self.raft.metrics().borrow().membership_config.clone();
        let membership = config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let member = |(id, master): (&u64, &super::types::Master)| Member {
            node: NodeId(*id),
            address: master.address.clone(),
            incarnation: master.incarnation,
            voter: voters.contains(id),
        };
        membership.nodes().map(member).collect()
    }

    /// The log index from which the current membership counts.
    pub fn members_since(&self) -> LogIndex {
        let config = self.raft.metrics().borrow().membership_config.clone();
        LogIndex(config.log_id().map_or(0, |id| id.index + 1))
    }

    /// Proposes and waits until it is applied.
    pub async fn propose(&self, proposal: pb::Proposal) -> Result<Done, ProposeError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        if fault!("raft: queue full") {
            return Err(ProposeError::Busy);
        }
        let (answer, done) = oneshot::channel();
        let queued = self.proposals.try_send(Waiting { proposal, answer });
        queued.map_err(|_| ProposeError::Busy)?;
        match tokio::time::timeout(PROPOSE_DEADLINE, done).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ProposeError::Unknown("this master is going down".to_owned())),
            Err(_) => Err(ProposeError::Deadline),
        }
    }

    /// Confirms that this node leads, after this call; returns the term and the position that is applied.
    pub async fn read_index(&self) -> Result<(Term, LogIndex), ProposeError> {
        let (answer, done) = oneshot::channel();
        self.reads.try_send(answer).map_err(|_| ProposeError::Busy)?;
        match tokio::time::timeout(self.limits.append_deadline * 2, done).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.not_leader()),
            Err(_) => Err(ProposeError::Deadline),
        }
    }

    /// Whether this node may lead on in the term in which it was restarted, and has not applied all that was in
    /// its log then. Any of it may have been committed, and answered, before; a leader of a new term knows when
    /// its own first entry is applied, but openraft lets one that restarts go on without such an entry.
    pub fn is_behind_itself(&self) -> bool {
        let (term, last) = self.began;
        self.term() == term && self.applied() < last
    }

    /// Waits until that is over.
    pub async fn catch_up(&self) -> Result<(), ProposeError> {
        if !self.is_behind_itself() {
            return Ok(());
        }
        mark!("raft: a read waits for what the log held at the restart");
        let last = self.began.1.0.saturating_sub(1);
        let waiting = self.raft.wait(Some(self.limits.append_deadline));
        let _ = waiting.applied_index_at_least(Some(last), "a read after a restart").await;
        if self.is_behind_itself() { Err(ProposeError::Deadline) } else { Ok(()) }
    }

    /// What must fit on the disk.
    pub fn needs(&self) -> Needs {
        let log_is_low = self.log_is_low();
        let inner = self.shared.lock();
        let db = inner.machine.db();
        Needs {
            log_is_low,
            checkpoint_bytes: db.least_checkpoint_bytes(),
            pending_bytes: db.pending_checkpoint_bytes(),
        }
    }

    /// Holds proposals back while the rows of the last seconds wait for a checkpoint (rule C3): while they take
    /// much memory, or while their checkpoint might not fit on the disk if they were more. On a disk that has no
    /// room for any checkpoint that would be for ever: what frees space passes as long as the log has a segment
    /// to go on in.
    pub async fn wait_for_room(&self) {
        loop {
            let finished = self.shared.finished.notified();
            let much = self.shared.overlay_bytes() >= self.limits.overlay_bytes_max;
            if !much && (!self.is_squeezed() || self.space.is_low() && !self.log_is_low()) {
                return;
            }
            mark!("raft: proposals wait for a checkpoint");
            self.shared.wanted.notify_one();
            let _ = tokio::time::timeout(self.limits.heartbeat, finished).await;
        }
    }

    fn log_is_low(&self) -> bool {
        self.log.with_wal(|wal| wal.space_is_low())
    }

    fn is_squeezed(&self) -> bool {
        self.shared.lock().machine.db().is_squeezed()
    }
}

/// Reports the end of openraft's core, which is the end of this node.
pub async fn watch<M: Machine>(core: Arc<Core<M>>) {
    let mut metrics = core.raft.metrics();
    let why = loop {
        let changed = metrics.changed().await;
        match &metrics.borrow().running_state {
            Err(Fatal::Stopped) => return,
            Err(error) => break error.to_string(),
            Ok(()) if changed.is_err() => break "its core panicked".to_owned(),
            Ok(()) => {}
        }
    };
    core.shared.give_up();
    if !core.stopping.swap(true, Ordering::Relaxed) {
        let line = format!("master {} stops: {why}", core.node.0);
        tracing::error!("{line}");
        (core.fatal)(&line);
    }
}

/// Begins checkpoints, lets go of the log behind them, prepares log segments, watches the space on the disk, writes what waits in the log while
/// nothing else does.
pub async fn keep_house<M: Machine>(core: Arc<Core<M>>, mut space: Space) {
    let mut bytes_at_checkpoint = 0;
    let mut pause = 0u32;
    space.look(core.needs()).await;
    loop {
        tokio::select! {
            biased;
            () = core.shared.wanted.notified() => {}
            () = tokio::time::sleep(core.limits.heartbeat) => {}
        }
        space.look(core.needs()).await;
        let (bytes, log_is_low, job) = core.log.with_wal(|wal| {
            // An error has fenced the log: whoever writes next learns it.
            let _ = wal.flush();
            pause = if wal.space_is_low() { (pause + 1) % 16 } else { 0 };
            let job = if pause == 0 { wal.spare_wanted() } else { None };
            (wal.stats().bytes, wal.space_is_low(), job)
        });
        // A checkpoint lets go of the log behind it: with little space the sooner the better.
        let segments = core.limits.wal_segment_bytes;
        let low = core.space.is_low();
        let log_bytes_max = if low || core.space.is_tight() { segments / 2 } else { segments * 4 };
        let since = bytes - bytes_at_checkpoint;
        // A log without its next segment gets one of those behind a checkpoint.
        let much = since >= log_bytes_max || log_is_low && since > 0;
        core.shared.pressed.store(low && much, Ordering::Relaxed);
        let overlay = core.shared.overlay_bytes();
        let due = much || overlay >= core.limits.overlay_bytes_checkpoint || core.is_squeezed();
        if due || fault!("raft: checkpoint early") {
            bytes_at_checkpoint = bytes;
            let _ = core.raft.trigger().snapshot().await;
        }
        purge::purge(&core).await;
        if let Some(job) = job {
            let Some(spare) = core.shared.work.run(move || job.run()).await else { return };
            core.log.with_wal(|wal| wal.add_spare(spare));
        }
    }
}
