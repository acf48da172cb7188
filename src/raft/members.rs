//! Masters come and go at run time: a joining one gets a node id from the log, follows as a learner, and
//! becomes a voter when it has caught up.

use super::ProposeError;
use super::core::Core;
use super::machine::Machine;
use super::types::{Master, Types};
use crate::ids::{NodeId, Uuid};
use crate::limits::Limits;
use crate::wire::{CallError, Pool, RefusalCode, calls};
use crate::{bug, fault, mark};
use crate::{namespace, pb};
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{ChangeMembers, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// A learner this close behind is promoted.
const CAUGHT_UP_ENTRIES: u64 = 64;
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

type Changed = Result<ClientWriteResponse<Types>, RaftError<u64, ClientWriteError<u64, Master>>>;

/// A member of the group as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    pub address: String,
    pub incarnation: Uuid,
    /// A voter; otherwise it still catches up.
    pub voter: bool,
}

/// Asks the masters, one after another, to take this new one in; returns its node id and the cluster. To be called before
/// [`super::RaftNode::start`], and again with the same incarnation if it fails: the id stays the same.
pub async fn join(
    pool: &Arc<Pool>,
    masters: &[String],
    cluster: Option<Uuid>,
    incarnation: Uuid,
    address: &str,
    limits: &Limits,
) -> Result<(NodeId, Uuid), String> {
    let request = pb::JoinRequest {
        cluster: cluster.map(|cluster| cluster.bytes()).unwrap_or_default(),
        incarnation: incarnation.bytes(),
        address: address.to_owned(),
    };
    let mut last = "no master is known".to_owned();
    for master in masters {
        let mut target = master.clone();
        for _ in 0..3 {
            let deadline = CHANGE_DEADLINE;
            let call = pool.call::<calls::Join>(&target, &request, Vec::new(), deadline);
            match call.await {
                Ok((reply, _)) => match Uuid::from_bytes(&reply.cluster) {
                    Some(cluster) if reply.errno == 0 && reply.node != 0 => {
                        return Ok((NodeId(reply.node), cluster));
                    }
                    _ => last = format!("{target}: {}", reply.error),
                },
                Err(CallError::Refused(refusal))
                    if refusal.code == RefusalCode::NotLeader && !refusal.message.is_empty() =>
                {
                    target = refusal.message;
                    continue;
                }
                Err(error) => last = format!("{target}: {error}"),
            }
            tokio::time::sleep(limits.retry_pause_max).await;
        }
    }
    Err(format!("no master took this one in: {last}"))
}

/// Registers a master in the log and begins to replicate to it. The same incarnation gets the same id.
pub async fn add<M: Machine>(
    core: &Core<M>,
    address: String,
    incarnation: Uuid,
) -> Result<NodeId, ProposeError> {
    // Only the founder's disk says what the cluster is to be: nobody else may lead before it is written down.
    if !is_founded(core)? && !bug!(EAGER) {
        mark!("raft: a master is to join a cluster that is being founded");
        return Err(ProposeError::Refused("the cluster is being founded".to_owned()));
    }
    let command = pb::RegisterMasterCmd {
        incarnation: incarnation.bytes(),
        address: address.clone(),
        node: 0,
    };
    let kind = Some(pb::proposal::Kind::RegisterMaster(command));
    let (_, _, outcome) = core.propose(pb::Proposal { kind }).await?;
    let node = match outcome.kind {
        Some(pb::outcome::Kind::Id(id)) if outcome.errno == 0 => NodeId(id),
        _ => return Err(ProposeError::Unknown(format!("refused: errno {}", outcome.errno))),
    };
    let known = core.members().into_iter().any(|member| member.node == node);
    if !known {
        let master = Master { address, incarnation };
        let nodes = BTreeMap::from([(node.0, master)]);
        change(core, || core.raft.change_membership(ChangeMembers::AddNodes(nodes.clone()), true))
            .await?;
    }
    Ok(node)
}

fn is_founded<M: Machine>(core: &Core<M>) -> Result<bool, ProposeError> {
    let view = core.shared.lock().machine.db().view();
    let founded = namespace::cluster(&view).map_err(|e| ProposeError::Refused(e.to_string()))?;
    Ok(founded.is_some())
}

/// Takes a master out of the group. Its id is never used again.
pub async fn remove<M: Machine>(core: &Core<M>, node: NodeId) -> Result<(), ProposeError> {
    let members = core.members();
    let Some(member) = members.iter().find(|member| member.node == node) else {
        return Ok(());
    };
    if member.voter && members.iter().filter(|member| member.voter).count() == 1 {
        return Err(ProposeError::Refused("the last voter cannot be removed".to_owned()));
    }
    if member.voter {
        enough_answer(core, &members, node)?;
    }
    let ids = BTreeSet::from([node.0]);
    change(core, || {
        let removal = match member.voter {
            true => ChangeMembers::RemoveVoters(ids.clone()),
            false => ChangeMembers::RemoveNodes(ids.clone()),
        };
        core.raft.change_membership(removal, false)
    })
    .await
}

/// Refuses to take a voter out if no majority of those before or of those that would be left answers: the change could not
/// be committed, nor taken back.
fn enough_answer<M: Machine>(
    core: &Core<M>,
    members: &[Member],
    without: NodeId,
) -> Result<(), ProposeError> {
    let before: Vec<NodeId> = members.iter().filter(|m| m.voter).map(|m| m.node).collect();
    let left: Vec<NodeId> = before.iter().copied().filter(|node| *node != without).collect();
    let lately = core.limits.election_max * 3;
    for group in [before, left] {
        let answers = |node: &&NodeId| **node == core.node || core.clocks.answers(node.0, lately);
        let silent = group.len() - group.iter().filter(answers).count();
        if silent * 2 >= group.len() {
            return Err(ProposeError::Refused(format!(
                "of {} masters whose word is needed {silent} do not answer: start them first",
                group.len()
            )));
        }
    }
    Ok(())
}

/// One change of the membership at a time, repeated while an earlier one is still being committed.
async fn change<M: Machine, F: Future<Output = Changed>>(
    core: &Core<M>,
    begin: impl Fn() -> F,
) -> Result<(), ProposeError> {
    let work = async {
        let _alone = core.changing.lock().await;
        loop {
            match begin().await {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                ))) => tokio::time::sleep(core.limits.heartbeat).await,
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                    return Err(core.not_leader());
                }
                Err(error) => return Err(ProposeError::Unknown(error.to_string())),
            }
        }
    };
    let deadline = match fault!("raft: change of members given up") {
        true => core.limits.heartbeat / 8,
        false => CHANGE_DEADLINE,
    };
    let result = tokio::time::timeout(deadline, work).await;
    result.unwrap_or(Err(ProposeError::Deadline))
}

/// On the leader: members whose place another one has taken go, and learners that have caught up become voters.
pub async fn promote<M: Machine>(core: Arc<Core<M>>) {
    loop {
        tokio::time::sleep(core.limits.heartbeat * 2).await;
        // GHOST: whoever was replaced still counts.
        if let Some(node) = superseded(&core).filter(|_| !bug!(GHOST)) {
            mark!("raft: a member whose place was taken is removed");
            match remove(&core, node).await {
                Ok(()) => {
                    tracing::info!(%node, "a master was replaced by a new one at its address")
                }
                Err(error) => tracing::info!(%node, %error, "a replaced master could not go yet"),
            }
        }
        if is_half_changed(&core) && !bug!(HALFWAY) {
            mark!("raft: a change of members is finished");
            let none = BTreeSet::new();
            let changed = change(&core, || {
                core.raft.change_membership(ChangeMembers::AddVoterIds(none.clone()), true)
            });
            match changed.await {
                Ok(()) => tracing::info!("finished a change of the group that another had begun"),
                Err(error) => tracing::info!(%error, "a change of the group is not finished yet"),
            }
        }
        if let Some(node) = caught_up(&core) {
            let ids = BTreeSet::from([node.0]);
            let changed = change(&core, || {
                core.raft.change_membership(ChangeMembers::AddVoterIds(ids.clone()), true)
            });
            match changed.await {
                Ok(()) => tracing::info!(%node, "a master has joined the group"),
                Err(error) => tracing::info!(%node, %error, "a master could not join yet"),
            }
        }
    }
}

/// Whether the group is between two memberships and nobody here is changing it: whoever was has gone, or given up, after
/// the first of the two steps, and openraft (0.9.25) does the second only for whoever began. Until it is done every
/// commit needs a majority of both.
fn is_half_changed<M: Machine>(core: &Core<M>) -> bool {
    core.is_leader() && core.changing.try_lock().is_ok() && core.is_between_memberships()
}

/// A member at whose address a later one is reached: its data directory is gone. A voter stays until that one votes
/// in its place, so that there are never fewer.
fn superseded<M: Machine>(core: &Core<M>) -> Option<NodeId> {
    if !core.is_leader() {
        return None;
    }
    let members = core.members();
    let place_taken = |member: &&Member| {
        members.iter().any(|other| {
            let later = other.address == member.address && other.node > member.node;
            later && (other.voter || !member.voter)
        })
    };
    members.iter().find(place_taken).map(|member| member.node)
}

fn caught_up<M: Machine>(core: &Core<M>) -> Option<NodeId> {
    let metrics = core.raft.metrics();
    let metrics = metrics.borrow();
    if metrics.state != ServerState::Leader {
        return None;
    }
    let replication = metrics.replication.as_ref()?;
    let last = metrics.last_log_index?;
    let membership = metrics.membership_config.membership();
    let near = |id: &u64| {
        let matched = replication.get(id).copied().flatten();
        matched.is_some_and(|matched| matched.index + CAUGHT_UP_ENTRIES >= last)
    };
    membership.learner_ids().find(near).map(NodeId)
}
