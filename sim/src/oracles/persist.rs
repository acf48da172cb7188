//! O13, persist before send: at the instant a promise leaves a machine, what it promises is in the durable
//! image of that machine's disk, as a power loss right then is sure to leave it.
//!
//! | frame | must be durable |
//! |---|---|
//! | reply to RaftVote that grants | the vote |
//! | reply to RaftAppend that accepts | every entry up to the last of the request |
//! | any reply to RaftAppend or RaftVote | what the machine accepted last, until a newer leader takes it back |
//! | reply to SubmitBatch | the entry it took effect at, on a majority of the voters |
//! | any of these replies of a master | a checkpoint that covers what is purged from its log |
//! | reply to Append with sync, to Sync | the replica up to the length named |
//!
//! A disk that was taken away keeps counting with what it held then: a majority that had promised an entry did
//! so with it, and nothing that was promised later has it in its majority. What rotted or was written elsewhere
//! is nobody's fault, so a disk to which that happened counts as holding everything, and its machine is not
//! checked any more; there are so few of them that no majority is made of them.
//!
//! Not checked: that what is durable is also right; promises that leave by other ways than frames.

use crate::disk::SimDisk;
use crate::failure::violation;
use crate::stats;
use crate::world::frames::Watcher;
use crate::world::{Role, World};
use mooseng::limits::Limits;
use mooseng::pb;
use mooseng::raft::TABLES;
use mooseng::tables::Db;
use mooseng::wal::{self, LogId, Recovered, Vote};
use mooseng::wire::calls::{RaftAppend, RaftVote, SubmitBatch};
use mooseng::wire::frame::Kind;
use mooseng::wire::hook::FrameInfo;
use mooseng::wire::{Call, Role as WireRole};
use mooseng_proptests::MemDisk;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The log position that each machine accepted last. Its clones are one.
#[derive(Clone, Default)]
pub struct Accepted(Arc<Mutex<BTreeMap<String, LogId>>>);

impl Accepted {
    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, LogId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine has another disk from now on, and another identity.
    pub fn forget(&self, node: &str) {
        self.all().remove(node);
    }

    /// A leader asks from `before` on: one that is newer may take back what lies behind that.
    fn asked(&self, node: &str, leader: (u64, u64), before: u64) {
        let mut all = self.all();
        let old = all
            .get(node)
            .is_some_and(|id| (id.term.get(), id.node.get()) != leader && id.index.get() > before);
        if old {
            all.remove(node);
        }
    }
}

/// The logs that were on disks which masters have lost, by machine. Its clones are one.
#[derive(Clone, Default)]
pub struct Lost(Arc<Mutex<BTreeMap<String, Recovered>>>);

impl Lost {
    /// A machine that is off is about to lose this disk.
    pub fn add(&self, node: &str, disk: &Arc<SimDisk>) {
        let log = log_of(node, disk);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), log);
    }

    fn held(&self, node: &str, index: u64, term: u64) -> bool {
        let lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get(node).is_some_and(|log| holds_index(log, index, term))
    }
}

/// A machine's log as it was read last.
struct Read {
    disk: Weak<SimDisk>,
    /// The version of the disk's durable image.
    version: u64,
    log: Arc<Recovered>,
}

/// How many masters must have an entry, for a leading machine and a log index.
type Majority = Box<dyn Fn(&str, u64) -> usize + Send + Sync>;

/// The oracle. Watches all frames of a world.
pub struct Persist {
    world: Weak<World>,
    /// By receiving machine and request: the log position that accepting it promises.
    appends: Mutex<BTreeMap<(String, u64), LogId>>,
    accepted: Accepted,
    lost: Lost,
    /// By machine: up to where its log is purged, and was found to be covered by its checkpoint.
    covered: Mutex<BTreeMap<String, u64>>,
    read: Mutex<BTreeMap<String, Read>>,
    majority: Majority,
}

impl Persist {
    /// `majority` tells for a leading machine and a log index how many voters make a majority of its group.
    pub fn new(
        world: &Arc<World>,
        majority: impl Fn(&str, u64) -> usize + Send + Sync + 'static,
    ) -> Persist {
        let world = Arc::downgrade(world);
        let (appends, accepted, lost, covered, read) = Default::default();
        Persist { world, appends, accepted, lost, covered, read, majority: Box::new(majority) }
    }

    /// What it knows of what machines have accepted.
    pub fn accepted(&self) -> Accepted {
        self.accepted.clone()
    }

    /// Told of disks that are taken away.
    pub fn lost(&self) -> Lost {
        self.lost.clone()
    }

    fn appends(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, u64), LogId>> {
        self.appends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, node: &str) -> Option<Arc<SimDisk>> {
        self.world.upgrade()?.disks(node).first().cloned()
    }

    /// The log as a power loss would leave it; `None` if its disk lies. It is read again when that has changed.
    fn log(&self, node: &str) -> Option<Arc<Recovered>> {
        let disk = self.disk(node).filter(|disk| !disk.lies())?;
        let version = disk.durable_version();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let of = Arc::downgrade(&disk);
        if let Some(last) = read.get(node)
            && last.version == version
            && last.disk.ptr_eq(&of)
        {
            return Some(last.log.clone());
        }
        let log = Arc::new(log_of(node, &disk));
        self.check_purged(node, &disk, &log);
        read.insert(node.to_owned(), Read { disk: of, version, log: log.clone() });
        Some(log)
    }

    /// What is not in the log any more is in the durable checkpoint.
    fn check_purged(&self, node: &str, disk: &SimDisk, log: &Recovered) {
        let Some(purged) = log.purged.map(|id| id.index.get()) else { return };
        let mut covered = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        if covered.get(node) == Some(&purged) {
            return;
        }
        stats::count("O13 purges checked");
        let checkpoint = checkpoint_of(node, disk);
        if checkpoint < purged {
            violation(
                "O13",
                format!("{node} purged its log up to {purged}, its checkpoint is at {checkpoint}"),
            );
        }
        covered.insert(node.to_owned(), purged);
    }

    /// Whether the machine has the entry, or had it when it promised it.
    fn has(&self, node: &str, index: u64, term: u64) -> bool {
        let lies = self.disk(node).is_some_and(|disk| disk.lies());
        let now = |log: Arc<Recovered>| holds_index(&log, index, term);
        lies || self.log(node).is_some_and(now) || self.lost.held(node, index, term)
    }

    /// A machine speaks as the one that accepted something: it still has that.
    fn keeps(&self, node: &str, log: &Recovered) {
        let Some(accepted) = self.accepted.all().get(node).copied() else { return };
        let installing = log.installing.is_some_and(|id| id.index >= accepted.index);
        // The order of a newer leader may have come before this one's acceptance left.
        let id = |id: LogId| (id.term.get(), id.node.get());
        let replaced = log.last().is_some_and(|last| id(last) > id(accepted));
        if !holds(log, accepted) && !installing && !replaced {
            let last = log.last();
            violation("O13", format!("{node} accepted {accepted:?} and has a log up to {last:?}"));
        }
    }

    fn vote_reply(&self, node: &str, frame: &FrameInfo<'_>) {
        let Ok(reply) = pb::RaftVoteReply::decode(frame.body) else { return };
        let Some(log) = self.log(node) else { return };
        self.keeps(node, &log);
        let (true, Some(vote)) = (reply.granted, reply.vote) else { return };
        let vote =
            Vote { term: vote.term.into(), node: vote.node.into(), committed: vote.committed };
        stats::count("O13 votes checked");
        if log.vote < Some(vote) {
            violation("O13", format!("{node} grants {vote:?}, durable is {:?}", log.vote));
        }
    }

    fn append_request(&self, node: &str, frame: &FrameInfo<'_>) {
        let Ok(request) = pb::RaftAppendRequest::decode(frame.body) else { return };
        let last = request.heads.last().and_then(|head| head.log_id).or(request.prev);
        let key = (node.to_owned(), frame.request_id);
        if let Some(vote) = request.vote {
            let before = request.prev.as_ref().map_or(0, |id| id.index);
            self.accepted.asked(node, (vote.term, vote.node), before);
        }
        if let Some(last) = last {
            self.appends().insert(key, log_id(&last));
        }
    }

    fn append_reply(&self, node: &str, frame: &FrameInfo<'_>) {
        let promised = self.appends().remove(&(node.to_owned(), frame.request_id));
        let Ok(reply) = pb::RaftAppendReply::decode(frame.body) else { return };
        let Some(log) = self.log(node) else { return };
        self.keeps(node, &log);
        use pb::raft_append_reply::Result as R;
        let promised = match reply.result() {
            R::Success => promised,
            R::Partial => reply.matched.as_ref().map(log_id),
            _ => None,
        };
        let Some(promised) = promised else { return };
        stats::count("O13 appends checked");
        if !holds(&log, promised) {
            let last = log.last();
            violation("O13", format!("{node} accepts up to {promised:?}, durable up to {last:?}"));
        }
        self.accepted.all().insert(node.to_owned(), promised);
    }

    fn batch_reply(&self, node: &str, frame: &FrameInfo<'_>) {
        let Ok(reply) = pb::BatchReply::decode(frame.body) else { return };
        let Some(world) = self.world.upgrade() else { return };
        if reply.index == 0 {
            return;
        }
        let have = |name: &&String| self.has(name, reply.index, reply.term);
        let masters = world.names(Role::Master);
        let (have, need) =
            (masters.iter().filter(have).count(), (self.majority)(node, reply.index));
        stats::count("O13 commits checked");
        if have < need {
            violation(
                "O13",
                format!(
                    "{node} answers from index {} of term {}, durable on {have} masters of {need} needed",
                    reply.index, reply.term
                ),
            );
        }
    }
}

/// The log as a power loss would leave it on this disk.
fn log_of(node: &str, disk: &Arc<SimDisk>) -> Recovered {
    match wal::inspect(disk.durable().as_ref()) {
        Ok(log) => log,
        Err(error) => {
            violation("O13", format!("{node}: a power loss now corrupts the log: {error}"))
        }
    }
}

/// The position of the checkpoint as a power loss would leave it; 0 if there is none. A copy is opened: tables write as
/// they open.
fn checkpoint_of(node: &str, disk: &SimDisk) -> u64 {
    let copy = MemDisk::default();
    if let Some(bytes) = disk.durable_read(TABLES) {
        copy.put(TABLES, bytes);
    }
    match Db::open(Arc::new(copy), TABLES, &Limits::tiny()) {
        Ok((_, meta)) => meta.and_then(|meta| meta.last_applied).map_or(0, |id| id.index),
        Err(error) => {
            violation("O13", format!("{node}: a power loss now corrupts the tables: {error}"))
        }
    }
}

fn log_id(id: &pb::RaftLogId) -> LogId {
    LogId { term: id.term.into(), node: id.node.into(), index: id.index.into() }
}

fn holds(log: &Recovered, id: LogId) -> bool {
    log.purged.is_some_and(|purged| purged.index >= id.index) || log.id_at(id.index) == Some(id)
}

fn holds_index(log: &Recovered, index: u64, term: u64) -> bool {
    let found = log.id_at(index.into());
    log.purged.is_some_and(|purged| purged.index.get() >= index)
        || found.is_some_and(|id| id.term.get() == term)
}

impl Watcher for Persist {
    fn sent(&self, node: &str, frame: &FrameInfo<'_>) {
        if frame.kind != Kind::Reply {
            return;
        }
        match (frame.from.role, frame.method) {
            (WireRole::Master, RaftVote::METHOD) => self.vote_reply(node, frame),
            (WireRole::Master, RaftAppend::METHOD) => self.append_reply(node, frame),
            (WireRole::Master, SubmitBatch::METHOD) => self.batch_reply(node, frame),
            _ => {}
        }
    }

    fn received(&self, node: &str, frame: &FrameInfo<'_>) {
        if frame.kind == Kind::Request && frame.method == RaftAppend::METHOD {
            self.append_request(node, frame);
        }
    }
}
