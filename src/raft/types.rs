//! The types that openraft is instantiated with, and their forms on the wire and on disk.
//!
//! openraft counts log entries from 0; everywhere else in this crate the first entry has index 1, so that 0
//! can mean "none". The conversions are here and nowhere else.

use super::machine::SnapshotBody;
use super::runtime::Runtime;
use crate::ids::{LogIndex, NodeId, Term, Uuid};
use crate::pb;
use crate::wal;
use bytes::Bytes;
use openraft::entry::EntryPayload;
use openraft::raft::responder::OneshotResponder;
use openraft::{CommittedLeaderId, LeaderId, Membership, StoredMembership};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// openraft's type parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = LogCommand;
    type R = Vec<pb::Outcome>;
    type NodeId = u64;
    type Node = Master;
    type Entry = openraft::Entry<Types>;
    type SnapshotData = SnapshotBody;
    type AsyncRuntime = Runtime;
    type Responder = OneshotResponder<Types>;
}

pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type Entry = openraft::Entry<Types>;
pub type Members = StoredMembership<u64, Master>;

/// A member of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// host:port of its listener.
    pub address: String,
    /// Of its data directory: peers refuse any other under its id.
    pub incarnation: Uuid,
}

impl Default for Master {
    fn default() -> Master {
        Master { address: String::new(), incarnation: Uuid([0; 16]) }
    }
}

const TAG_BLANK: u8 = 0;
const TAG_COMMAND: u8 = 1;
const TAG_MEMBERSHIP: u8 = 2;

/// A command as it travels and rests (a tag, then the encoded message), and decoded.
#[derive(Clone)]
pub struct LogCommand {
    pub tagged: Bytes,
    pub command: Arc<pb::Command>,
}

impl LogCommand {
    /// Encodes once; log, cache and network share the bytes.
    pub fn new(command: pb::Command) -> LogCommand {
        let mut tagged = Vec::with_capacity(1 + command.encoded_len());
        tagged.push(TAG_COMMAND);
        command.encode(&mut tagged).expect("a Vec takes any message");
        LogCommand { tagged: tagged.into(), command: Arc::new(command) }
    }
}

impl fmt::Debug for LogCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} proposals, {} bytes", self.command.proposals.len(), self.tagged.len())
    }
}

/// The payload of an entry as it travels and rests.
pub fn entry_bytes(payload: &EntryPayload<Types>) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[TAG_BLANK]),
        EntryPayload::Normal(command) => command.tagged.clone(),
        EntryPayload::Membership(membership) => {
            let mut out = vec![TAG_MEMBERSHIP];
            let message = membership_to_pb(membership, None);
            message.encode(&mut out).expect("a Vec takes any message");
            out.into()
        }
    }
}

/// The inverse of [`entry_bytes`].
pub fn entry_from_bytes(log_id: LogId, tagged: Bytes) -> Result<Entry, String> {
    let bad = |error: prost::DecodeError| format!("log entry {}: {error}", log_id.index + 1);
    let payload = match tagged.first() {
        Some(&TAG_BLANK) => EntryPayload::Blank,
        Some(&TAG_COMMAND) => {
            let command = Arc::new(pb::Command::decode(tagged.slice(1..)).map_err(bad)?);
            EntryPayload::Normal(LogCommand { tagged, command })
        }
        Some(&TAG_MEMBERSHIP) => {
            let message = pb::RaftMembership::decode(&tagged[1..]).map_err(bad)?;
            EntryPayload::Membership(membership_from_pb(&message)?.membership().clone())
        }
        _ => return Err(format!("log entry {}: unknown kind", log_id.index + 1)),
    };
    Ok(Entry { log_id, payload })
}

/// For the log.
pub fn vote_to_wal(vote: &Vote) -> wal::Vote {
    let (term, node) = (Term(vote.leader_id.term), NodeId(vote.leader_id.node_id));
    wal::Vote { term, node, committed: vote.committed }
}

/// From the log.
pub fn vote_from_wal(vote: wal::Vote) -> Vote {
    let leader_id = LeaderId::new(vote.term.0, vote.node.0);
    Vote { leader_id, committed: vote.committed }
}

/// For the log.
pub fn id_to_wal(id: &LogId) -> wal::LogId {
    wal::LogId {
        term: Term(id.leader_id.term),
        node: NodeId(id.leader_id.node_id),
        index: LogIndex(id.index + 1),
    }
}

/// From the log.
pub fn id_from_wal(id: wal::LogId) -> LogId {
    LogId::new(CommittedLeaderId::new(id.term.0, id.node.0), id.index.0.saturating_sub(1))
}

/// For a message.
pub fn vote_to_pb(vote: &Vote) -> pb::RaftVote {
    pb::RaftVote {
        term: vote.leader_id.term,
        node: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// From a message.
pub fn vote_from_pb(vote: &Option<pb::RaftVote>) -> Result<Vote, String> {
    let vote = vote.as_ref().ok_or("a vote is missing")?;
    let leader_id = LeaderId::new(vote.term, vote.node);
    Ok(Vote { leader_id, committed: vote.committed })
}

/// For a message.
pub fn id_to_pb(id: &LogId) -> pb::RaftLogId {
    let leader = &id.leader_id;
    pb::RaftLogId { term: leader.term, node: leader.node_id, index: id.index + 1 }
}

/// From a message.
pub fn id_from_pb(id: &pb::RaftLogId) -> Result<LogId, String> {
    let index = id.index.checked_sub(1).ok_or("a log id has index 0")?;
    Ok(LogId::new(CommittedLeaderId::new(id.term, id.node), index))
}

/// From a message; absent is none.
pub fn opt_id_from_pb(id: &Option<pb::RaftLogId>) -> Result<Option<LogId>, String> {
    id.as_ref().map(id_from_pb).transpose()
}

fn membership_to_pb(
    membership: &Membership<u64, Master>,
    log_id: Option<&LogId>,
) -> pb::RaftMembership {
    let configs = membership.get_joint_config().iter();
    let nodes = membership.nodes().map(|(id, master)| pb::RaftNode {
        id: *id,
        address: master.address.clone(),
        incarnation: master.incarnation.bytes(),
    });
    pb::RaftMembership {
        configs: configs
            .map(|voters| pb::RaftConfig { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: nodes.collect(),
        log_id: log_id.map(id_to_pb),
    }
}

/// For messages and checkpoints, with the log id at which it was decided.
pub fn members_to_pb(members: &Members) -> pb::RaftMembership {
    membership_to_pb(members.membership(), members.log_id().as_ref())
}

/// From messages and checkpoints.
pub fn membership_from_pb(message: &pb::RaftMembership) -> Result<Members, String> {
    let mut nodes = BTreeMap::new();
    for node in &message.nodes {
        let incarnation = Uuid::from_bytes(&node.incarnation).ok_or("a member's incarnation")?;
        nodes.insert(node.id, Master { address: node.address.clone(), incarnation });
    }
    let configs: Vec<BTreeSet<u64>> =
        message.configs.iter().map(|config| config.voters.iter().copied().collect()).collect();
    if configs.iter().flatten().any(|voter| !nodes.contains_key(voter)) {
        return Err("a voter is not a member".to_owned());
    }
    let log_id = opt_id_from_pb(&message.log_id)?;
    Ok(StoredMembership::new(log_id, Membership::new(configs, nodes)))
}
