//! O5, the invariants of Raft, from the frames between masters, from what they apply, and from their disks.
//!
//! - Election safety: what is sent under a leader's id (term and node) comes from that node alone.
//! - Log matching: an entry of one id has one content and one predecessor, wherever it is sent.
//! - What is committed stays: at an index all machines apply the same entry, also after restarts.
//! - Leader completeness: a leader that comes up after an entry was applied anywhere never sends another one
//!   at its index, nor relies on another one there.
//! - Votes only rise: a machine that answers a vote has a durable one not below the highest it ever had.
//!
//! A leader's id has two parts because openraft lets a node of a higher number win in the same term.
//!
//! Not checked: what stays inside a machine; snapshots beyond their state (O4); that commits wait for a
//! majority's disks (O13).

use super::Applies;
use crate::failure::violation;
use crate::stats;
use crate::world::World;
use crate::world::frames::Watcher;
use mooseng::checksum::crc32c;
use mooseng::pb;
use mooseng::raft::{Applied, Taken};
use mooseng::wal::{self, Vote};
use mooseng::wire::calls::{RaftAppend, RaftVote};
use mooseng::wire::frame::Kind;
use mooseng::wire::hook::FrameInfo;
use mooseng::wire::{Call, Role};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Term and node.
type Leader = (u64, u64);
/// Index and the leader that made it.
type Id = (u64, Leader);

#[derive(Clone, Copy, PartialEq, Debug)]
struct Entry {
    before: Option<Id>,
    crc: u32,
}

#[derive(Clone, Copy)]
struct Committed {
    leader: Leader,
    /// Of its command; `None` for other entries.
    crc: Option<u32>,
    /// The newest leader anybody had heard of when it was first applied.
    newest: Leader,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Id, Entry>,
    committed: BTreeMap<u64, Committed>,
    newest: Leader,
    votes: BTreeMap<String, Vote>,
}

/// The oracle; its clones are one.
#[derive(Clone)]
pub struct Raft(Weak<World>, Arc<Mutex<State>>);

fn leader_of(id: &pb::RaftLogId) -> Leader {
    (id.term, id.node)
}

fn id_of(id: &pb::RaftLogId) -> Id {
    (id.index, leader_of(id))
}

impl Raft {
    /// Over the machines of a world.
    pub fn new(world: &Arc<World>) -> Raft {
        Raft(Arc::downgrade(world), Arc::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine has another disk from now on, and another identity.
    pub fn forget(&self, node: &str) {
        self.state().votes.remove(node);
    }

    fn append(&self, node: &str, frame: &FrameInfo<'_>) {
        let Ok(request) = pb::RaftAppendRequest::decode(frame.body) else { return };
        let Some(vote) = request.vote else { return };
        let leader = (vote.term, vote.node);
        if frame.from.node != vote.node || !vote.committed {
            violation("O5", format!("{node}, master {}, sends as {vote:?}", frame.from.node));
        }
        let mut state = self.state();
        state.newest = state.newest.max(leader);
        let mut before = request.prev.as_ref().map(id_of);
        if let Some(id) = before {
            state.fits(leader, id, node);
        }
        let payload = frame.payload.concat();
        let mut at = 0;
        for head in &request.heads {
            let Some(id) = head.log_id.as_ref().map(id_of) else { return };
            let bytes = payload.get(at..at + head.len as usize).unwrap_or_default();
            at += head.len as usize;
            stats::count("O5 entries checked");
            state.fits(leader, id, node);
            state.matches(id, Entry { before, crc: crc32c(bytes) }, node);
            before = Some(id);
        }
    }

    fn vote_reply(&self, node: &str) {
        let Some(world) = self.0.upgrade() else { return };
        let disks = world.disks(node);
        let Some(disk) = disks.first() else { return };
        // A log that a power loss would corrupt is the business of O13.
        let Ok(log) = wal::inspect(disk.durable().as_ref()) else { return };
        let Some(vote) = log.vote else { return };
        stats::count("O5 votes checked");
        let mut state = self.state();
        let highest = state.votes.entry(node.to_owned()).or_insert(vote);
        if vote < *highest {
            violation("O5", format!("the vote of {node} falls from {highest:?} to {vote:?}"));
        }
        *highest = vote;
    }
}

impl State {
    /// Leader completeness: `id` is in the log of `leader`.
    fn fits(&self, leader: Leader, id: Id, node: &str) {
        let Some(committed) = self.committed.get(&id.0) else { return };
        if leader > committed.newest && id.1 != committed.leader {
            violation(
                "O5",
                format!(
                    "{node} leads as {leader:?} and has an entry of {:?} at {}, where one of {:?} was committed",
                    id.1, id.0, committed.leader
                ),
            );
        }
    }

    fn matches(&mut self, id: Id, entry: Entry, node: &str) {
        let first = *self.entries.entry(id).or_insert(entry);
        // A follower whose log begins there is sent no predecessor.
        let differs = first.before.zip(entry.before).is_some_and(|(a, b)| a != b);
        if first.crc != entry.crc || differs {
            violation("O5", format!("{node} sends {id:?} as {entry:?}, it was {first:?}"));
        }
        if first.before.is_none() {
            self.entries.insert(id, entry);
        }
    }
}

impl Applies for Raft {
    fn applied(&self, node: &str, applied: &Applied<'_>) {
        let crc = match applied.what {
            Taken::Command(command, _) => Some(crc32c(&command.encode_to_vec())),
            Taken::Other => None,
            Taken::Snapshot => return,
        };
        let leader = (applied.term.get(), applied.leader.get());
        let mut state = self.state();
        let newest = state.newest;
        let now = Committed { leader, crc, newest };
        let index = applied.index.get();
        let first = *state.committed.entry(index).or_insert(now);
        if (first.leader, first.crc) != (leader, crc) {
            let before = first.leader;
            violation(
                "O5",
                format!(
                    "{node} applies an entry of {leader:?} at {index}, before it was one of {before:?}"
                ),
            );
        }
        stats::count("O5 entries applied");
    }
}

impl Watcher for Raft {
    fn sent(&self, node: &str, frame: &FrameInfo<'_>) {
        match (frame.from.role, frame.method, frame.kind) {
            (Role::Master, RaftAppend::METHOD, Kind::Request) => self.append(node, frame),
            (Role::Master, RaftVote::METHOD, Kind::Reply) => self.vote_reply(node),
            _ => {}
        }
    }
}
