//! The proposer packs everything that waits into one log entry; the reader confirms leadership once for
//! everything that waits.

use super::ProposeError;
use super::core::{Core, PROPOSE_DEADLINE};
use super::machine::Machine;
use super::types::{LogCommand, Types};
use crate::ids::{LogIndex, Term};
use crate::pb;
use crate::{bug, fault, invariant, mark, maybe, seam};
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use prost::Message;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Entries under way at once in a group. On a single master one is enough: while it is being written, the
/// next one gathers.
pub const IN_FLIGHT_MAX: u32 = 2;

/// Where and how a proposal took effect.
pub type Done = (Term, LogIndex, pb::Outcome);

/// A proposal that waits for its entry.
pub struct Waiting {
    pub proposal: pb::Proposal,
    pub answer: oneshot::Sender<Result<Done, ProposeError>>,
}

/// Runs until the queue is closed.
pub async fn run<M: Machine>(core: Arc<Core<M>>, mut queue: mpsc::Receiver<Waiting>) {
    let mut held: Option<Waiting> = None;
    loop {
        let first = match held.take() {
            Some(waiting) => waiting,
            None => match queue.recv().await {
                Some(waiting) => waiting,
                None => return,
            },
        };
        core.wait_for_room().await;
        let wanted = if core.voters() > 1 { 1 } else { IN_FLIGHT_MAX };
        let slot = core.slots.clone().acquire_many_owned(wanted).await;
        let mut bytes = first.proposal.encoded_len();
        let mut batch = vec![first];
        while !fault!("raft: batch cut short")
            && let Ok(waiting) = queue.try_recv()
        {
            bytes += waiting.proposal.encoded_len();
            if bytes > core.space.entry_bytes_max(&core.limits) {
                held = Some(waiting);
                break;
            }
            batch.push(waiting);
        }
        maybe!(batch.len() > 1, "raft: proposals packed");
        let (proposals, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            // Whoever gave up does not know whether it was proposed, so it need not be.
            .filter(|waiting| !waiting.answer.is_closed())
            .map(|waiting| (waiting.proposal, waiting.answer))
            .unzip();
        if proposals.is_empty() {
            continue;
        }
        let command = pb::Command { time_ns: core.clocks.stamp_ns(), proposals };
        let term = core.term();
        match core.raft.client_write_ff(LogCommand::new(command)).await {
            Ok(written) => {
                let core = core.clone();
                seam::spawn(async move {
                    let result = fate(&core, term, written).await;
                    if fault!("raft: answer late") {
                        tokio::time::sleep(core.limits.heartbeat / 2).await;
                    }
                    drop(slot);
                    answer(&core, result, answers);
                });
            }
            Err(_) => answer(&core, None, answers),
        }
    }
}

/// What became of an entry. openraft does not always say: whom to tell of one that reached this node in
/// another leader's snapshot is forgotten. So nobody waits on once this node does not lead any more.
async fn fate<M: Machine, E>(
    core: &Core<M>,
    term: Term,
    written: impl Future<Output = Result<ClientWriteResult<Types>, E>>,
) -> Option<ClientWriteResult<Types>> {
    let mut written = std::pin::pin!(written);
    let give_up = seam::now() + PROPOSE_DEADLINE;
    loop {
        match tokio::time::timeout(core.limits.heartbeat, written.as_mut()).await {
            Ok(result) => return result.ok(),
            Err(_) if core.term() == term && core.is_leader() && seam::now() < give_up => {}
            Err(_) => {
                mark!("raft: nobody said what became of an entry");
                return None;
            }
        }
    }
}

fn answer<M: Machine>(
    core: &Core<M>,
    result: Option<ClientWriteResult<Types>>,
    answers: Vec<oneshot::Sender<Result<Done, ProposeError>>>,
) {
    let failed = match result {
        Some(Ok(response)) => {
            let term = Term(response.log_id.leader_id.term);
            let index = LogIndex(response.log_id.index + 1);
            invariant!(response.data.len() == answers.len(), "one outcome for each proposal");
            for (outcome, answer) in response.data.into_iter().zip(answers) {
                let _ = answer.send(Ok((term, index, outcome)));
            }
            return;
        }
        // An entry that was appended and then lost its leader may yet be committed by the next.
        Some(Err(ClientWriteError::ForwardToLeader(_))) => {
            let leader = core.leader().map(|(_, address)| address);
            ProposeError::Unknown(format!("the leader changed to {}", leader.unwrap_or_default()))
        }
        Some(Err(error)) => ProposeError::Unknown(error.to_string()),
        None => ProposeError::Unknown("this master leads no more".to_owned()),
    };
    for answer in answers {
        let _ = answer.send(Err(failed.clone()));
    }
}

/// Someone who waits for a linearizable read.
pub type Reader = oneshot::Sender<Result<(Term, LogIndex), ProposeError>>;

/// Runs until the queue is closed. A confirmation answers only those who asked before it began.
pub async fn run_reads<M: Machine>(core: Arc<Core<M>>, mut queue: mpsc::Receiver<Reader>) {
    while let Some(first) = queue.recv().await {
        let mut readers = vec![first];
        while let Ok(reader) = queue.try_recv() {
            readers.push(reader);
        }
        maybe!(readers.len() > 1, "raft: reads confirmed together");
        let confirmed = confirm(&core).await;
        for reader in readers {
            let _ = reader.send(confirmed.clone());
        }
    }
}

async fn confirm<M: Machine>(core: &Core<M>) -> Result<(Term, LogIndex), ProposeError> {
    if bug!(M16) {
        return Ok((core.term(), core.applied()));
    }
    let deadline = core.limits.append_deadline;
    // M18: whoever was elected answers from what it has applied so far.
    if bug!(M18) && core.is_leader() {
        return Ok((core.term(), core.applied()));
    }
    let confirmed = tokio::time::timeout(deadline, core.raft.ensure_linearizable()).await;
    let confirmed = confirmed.map_err(|_| ProposeError::Deadline)?;
    // A read changes nothing: not confirmed means certainly not done.
    confirmed.map_err(|_| core.not_leader())?;
    core.catch_up().await?;
    Ok((core.term(), core.applied()))
}
