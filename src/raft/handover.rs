//! Rule B3: a leader whose wall clock is far from the masters' median hands over to one whose clock is near.
//!
//! Never at the price of a leader: it leads on while nobody fit is known, and stands for election like the others.

use super::core::Core;
use super::machine::Machine;
use super::propose::IN_FLIGHT_MAX;
use super::types::{LogId, id_to_pb};
use crate::wire::{CallError, calls};
use crate::{bug, mark, pb, seam};
use std::sync::Arc;

/// Looks from one comparison of the leader's own clock to the next.
const LOOKS: u64 = 10;
/// Comparisons in a row that must find it wrong.
const WRONG_ROUNDS: u32 = 2;
/// Comparisons left out after an attempt, which makes proposals wait.
const REST_ROUNDS: u32 = 30;
/// Whoever is further behind is not waited for.
const BEHIND_MAX: u64 = 64;

/// Keeps the clocks' median up to date and acts on it, for the life of the node.
pub async fn run<M: Machine>(core: Arc<Core<M>>) {
    let limits = &core.limits;
    let mut rounds = Rounds::default();
    for look in 1u64.. {
        tokio::time::sleep(limits.heartbeat).await;
        if core.is_leader() {
            core.clocks.look(core.node.0, &core.voter_ids());
        }
        if look % LOOKS == 0 {
            rounds.next(&core).await;
        }
    }
}

/// What earlier comparisons came to.
#[derive(Default)]
struct Rounds {
    wrong: u32,
    rest: u32,
    warned: bool,
}

impl Rounds {
    async fn next<M: Machine>(&mut self, core: &Core<M>) {
        self.rest = self.rest.saturating_sub(1);
        let Some(off_ms) = core.clocks.off_by().filter(|_| core.is_leader()) else {
            (self.wrong, self.warned) = (0, false);
            return;
        };
        self.wrong += 1;
        // DREAMER: a leader never gives up for its clock.
        if self.wrong < WRONG_ROUNDS || self.rest > 0 || bug!(DREAMER) {
            return;
        }
        let near = core.clocks.near(&core.other_voters());
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                off_ms,
                masters_near = ?near,
                "the wall clock of this master is far from the masters' median: it stamps by that, and lets one that is near it lead"
            );
        }
        if !near.iter().any(|id| matched(core, *id, BEHIND_MAX).is_some()) {
            mark!("raft: a wrong clock leads on");
            return;
        }
        // Also after one that succeeded: where clocks disagree, leadership must not go round.
        hand_over(core, &near).await;
        // Also one whose clock is wrong stands for election: another leader may be found later, one is needed now.
        core.raft.runtime_config().elect(true);
        self.rest = REST_ROUNDS;
    }
}

/// How far this follower's log is known to be whole, if it is at most so many entries behind.
fn matched<M>(core: &Core<M>, node: u64, behind_max: u64) -> Option<LogId> {
    let metrics = core.raft.metrics();
    let metrics = metrics.borrow();
    let matched = metrics.replication.as_ref()?.get(&node).copied().flatten()?;
    (matched.index + behind_max >= metrics.last_log_index?).then_some(matched)
}

/// Lets what is under way end and holds back the rest until another leads: its log must be as long as this one's.
async fn hand_over<M: Machine>(core: &Core<M>, near: &[u64]) {
    let (pause, poll) = (core.limits.election_min, core.limits.heartbeat / 10);
    let term = core.term();
    let idle = tokio::time::timeout(pause, core.slots.acquire_many(IN_FLIGHT_MAX)).await;
    let Ok(Ok(_held)) = idle else { return };
    let give_up = seam::now() + pause;
    let (node, last) = loop {
        let whole = near.iter().find_map(|id| Some((*id, matched(core, *id, 0)?)));
        match whole {
            Some(whole) => break whole,
            None if seam::now() >= give_up || !core.is_leader() => return,
            None => tokio::time::sleep(poll).await,
        }
    };
    // This one must not stand before the other has won.
    core.raft.runtime_config().elect(false);
    if let Err(CallError::Refused(refusal)) = ask(core, node, last).await {
        tracing::info!(node, %refusal, "this master does not take over");
        return;
    }
    let give_up = seam::now() + core.limits.election_max;
    while core.is_leader() && core.term() == term {
        if seam::now() >= give_up {
            return;
        }
        tokio::time::sleep(poll).await;
    }
    mark!("raft: a wrong clock hands over");
}

/// Asks a follower to stand for election. Asked twice it does so once: the term is over then.
async fn ask<M: Machine>(core: &Core<M>, node: u64, last: LogId) -> Result<(), CallError> {
    let member = core.members().into_iter().find(|member| member.node.0 == node);
    let Some(member) = member else {
        return Err(CallError::NotSent("it is no member any more".to_owned()));
    };
    let request = pb::StandRequest {
        term: core.term().0,
        last_log: Some(id_to_pb(&last)),
        from_incarnation: core.incarnation.bytes(),
        to: node,
        to_incarnation: member.incarnation.bytes(),
    };
    let deadline = core.limits.election_min;
    let call =
        core.pool.call::<calls::StandForElection>(&member.address, &request, Vec::new(), deadline);
    call.await.map(drop)
}
