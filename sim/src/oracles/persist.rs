//! O13, persist before send: at the instant a promise leaves a machine, what it promises is in the durable
//! image of that machine's disk, as a power loss right then is sure to leave it.
//!
//! | frame | must be durable |
//! |---|---|
//! | reply to RaftVote that grants | the vote |
//! | reply to RaftAppend that accepts | every entry up to the last of the request |
//! | reply to SubmitBatch | the entry it took effect at, on a majority of the voters |
//! | reply to Append with sync, to Sync | the replica up to the length named |
//!
//! Not checked: that what is durable is also right; promises that leave by other ways than frames.

use crate::disk::SimDisk;
use crate::failure::violation;
use crate::stats;
use crate::world::frames::Watcher;
use crate::world::{Role, World};
use mooseng::pb;
use mooseng::wal::{self, LogId, Recovered, Vote};
use mooseng::wire::calls::{RaftAppend, RaftVote, SubmitBatch};
use mooseng::wire::frame::Kind;
use mooseng::wire::hook::FrameInfo;
use mooseng::wire::{Call, Role as WireRole};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The oracle. Watches all frames of a world.
pub struct Persist {
    world: Weak<World>,
    /// By receiving machine and request: the log position that accepting it promises.
    appends: Mutex<BTreeMap<(String, u64), LogId>>,
    /// How many masters must have an entry.
    majority: Box<dyn Fn(&str, u64) -> usize + Send + Sync>,
}

impl Persist {
    /// `majority` tells for a leading machine and a log index how many voters make a majority of its group.
    pub fn new(
        world: &Arc<World>,
        majority: impl Fn(&str, u64) -> usize + Send + Sync + 'static,
    ) -> Persist {
        let world = Arc::downgrade(world);
        Persist { world, appends: Mutex::default(), majority: Box::new(majority) }
    }

    fn appends(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, u64), LogId>> {
        self.appends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disks(&self, node: &str) -> Vec<Arc<SimDisk>> {
        self.world.upgrade().map_or_else(Vec::new, |world| world.disks(node))
    }

    /// The log as a power loss would leave it.
    fn log(&self, node: &str) -> Option<Recovered> {
        let disks = self.disks(node);
        let image = disks.first()?.durable();
        match wal::inspect(image.as_ref()) {
            Ok(log) => Some(log),
            Err(error) => {
                violation("O13", format!("{node}: a power loss now corrupts the log: {error}"))
            }
        }
    }

    fn vote_reply(&self, node: &str, frame: &FrameInfo<'_>) {
        let Ok(reply) = pb::RaftVoteReply::decode(frame.body) else { return };
        let (true, Some(vote), Some(log)) = (reply.granted, reply.vote, self.log(node)) else {
            return;
        };
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
        if let Some(last) = last {
            self.appends().insert(key, log_id(&last));
        }
    }

    fn append_reply(&self, node: &str, frame: &FrameInfo<'_>) {
        let promised = self.appends().remove(&(node.to_owned(), frame.request_id));
        let Ok(reply) = pb::RaftAppendReply::decode(frame.body) else { return };
        use pb::raft_append_reply::Result as R;
        let promised = match reply.result() {
            R::Success => promised,
            R::Partial => reply.matched.as_ref().map(log_id),
            _ => None,
        };
        let (Some(promised), Some(log)) = (promised, self.log(node)) else { return };
        stats::count("O13 appends checked");
        if !holds(&log, promised) {
            let last = log.last();
            violation("O13", format!("{node} accepts up to {promised:?}, durable up to {last:?}"));
        }
    }

    fn batch_reply(&self, node: &str, frame: &FrameInfo<'_>) {
        let Ok(reply) = pb::BatchReply::decode(frame.body) else { return };
        let Some(world) = self.world.upgrade() else { return };
        if reply.index == 0 {
            return;
        }
        let have = |name: &&String| {
            let log = self.log(name);
            log.is_some_and(|log| holds_index(&log, reply.index, reply.term))
        };
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
