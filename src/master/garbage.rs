//! Gives space back: purges the rows of deleted files and the pins of ended sessions in bounded steps, deletes chunks that nothing refers
//! to, and replicas that a committed command took out of service. A replica is deleted only by its id and
//! only by a leader that has applied an entry of its own term (rule A2).

use super::Shared;
use super::repair::{self, enter};
use super::rpc::refusal;
use crate::bug;
use crate::ids::{ChunkId, Generation, InodeId, ServerId, SessionId};
use crate::namespace::tables::{
    Chunks, Deletable, Deleting, Doomed, Orphans, SessionPins, Sessions,
};
use crate::pb;
use crate::seam;
use crate::tables::{Read, TableError};
use crate::wire::{CallError, Refusal, RefusalCode, calls};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Files purged and chunks deleted in one round.
const STEP: usize = 64;

/// One round.
pub(super) async fn round(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let fatal = |error: TableError| shared.broken(&error);
    let view = shared.raft.view();
    let mut proposals = Vec::new();
    for row in view.range::<Orphans>(&Default::default(), None).take(STEP) {
        let (inode, _) = row.map_err(fatal)?;
        let max_extents = shared.limits.purge_extents;
        proposals.push(pb::proposal::Kind::PurgeInode(pb::PurgeInodeCmd {
            inode: inode.get(),
            max_extents,
        }));
    }
    for session in ending(shared).map_err(fatal)? {
        let command = pb::EndSessionCmd { session: session.get(), expired: true };
        proposals.push(pb::proposal::Kind::EndSession(command));
    }
    for row in view.range::<Deletable>(&ChunkId(0), None).take(STEP) {
        let (chunk, _) = row.map_err(fatal)?;
        proposals.push(pb::proposal::Kind::DeleteChunk(pb::DeleteChunkCmd { chunk: chunk.get() }));
    }
    for kind in proposals {
        shared.raft.propose(pb::Proposal { kind: Some(kind) }).await.map_err(refusal)?;
    }
    let (deleting, doomed) = (deleting(shared).map_err(fatal)?, doomed(shared).map_err(fatal)?);
    by_chunk(deleting.into_iter().chain(doomed)).into_iter().for_each(|work| delete(shared, work));
    Ok(())
}

/// What has to go of one chunk is one piece of work, as one task at a time has the chunk: a replica on a server that
/// never comes back would be first in each round, and keep all others of its chunk waiting.
fn by_chunk(work: impl Iterator<Item = pb::Chunk>) -> Vec<pb::Chunk> {
    // CROWDED: each replica is a piece of its own.
    if bug!(CROWDED) {
        return work.collect();
    }
    let mut chunks: BTreeMap<u64, pb::Chunk> = BTreeMap::new();
    for chunk in work {
        match chunks.entry(chunk.id) {
            Entry::Occupied(mut first) => first.get_mut().replicas.extend(chunk.replicas),
            Entry::Vacant(first) => _ = first.insert(chunk),
        }
    }
    chunks.into_values().collect()
}

/// Sessions that ended and still have pins; goes on where it stopped.
fn ending(shared: &Shared) -> Result<Vec<SessionId>, TableError> {
    let view = shared.raft.view();
    let mut next = std::mem::take(&mut shared.soft().cursors.pinning);
    let mut found = Vec::new();
    for _ in 0..STEP {
        let pin = view.range::<SessionPins>(&(next, InodeId(0)), None).next().transpose()?;
        let Some(((session, _), _)) = pin else { return Ok(found) };
        if view.get::<Sessions>(&session)?.is_none_or(|row| row.ended) {
            found.push(session);
        }
        next = SessionId(session.get() + 1);
    }
    shared.soft().cursors.pinning = next;
    Ok(found)
}

/// Replicas that a committed command took out of their chunks, as if each were a chunk of its own; goes on
/// where it stopped.
fn doomed(shared: &Shared) -> Result<Vec<pb::Chunk>, TableError> {
    let view = shared.raft.view();
    let from = std::mem::take(&mut shared.soft().cursors.doomed);
    let mut found = Vec::new();
    for row in view.range::<Doomed>(&from, None).take(STEP) {
        let ((server, id, generation), row) = row?;
        shared.soft().cursors.doomed = (server, id, Generation(generation.get() + 1));
        // NAMELESS: a replica is named by its chunk, as long as there is one.
        let layout = match bug!(NAMELESS) {
            true => view.get::<Chunks>(&id)?.and_then(|chunk| chunk.layout),
            false => Some(pb::Layout { data: row.data_shards, parity: 0 }),
        };
        found.push(pb::Chunk {
            id: id.get(),
            layout,
            replicas: row.replica.into_iter().collect(),
            ..Default::default()
        });
    }
    Ok(found)
}

/// Chunks whose deletion is committed and not yet confirmed by every server; goes on where it stopped.
fn deleting(shared: &Shared) -> Result<Vec<pb::Chunk>, TableError> {
    let view = shared.raft.view();
    let from = ChunkId(shared.soft().cursors.deleting);
    let mut next = 0;
    let mut chunks = Vec::new();
    for row in view.range::<Deleting>(&from, None).take(STEP) {
        let (id, _) = row?;
        next = id.get() + 1;
        chunks.extend(view.get::<Chunks>(&id)?);
    }
    // LITTER: whoever was not asked, or did not answer, is not asked again.
    shared.soft().cursors.deleting = if bug!(LITTER) { next.max(from.get()) } else { next };
    Ok(chunks)
}

/// Has every reachable server delete its replica, then commits which are gone.
fn delete(shared: &Arc<Shared>, chunk: pb::Chunk) {
    let Some(claim) = enter(shared, chunk.id) else { return };
    let shared = shared.clone();
    seam::spawn(async move {
        let mut gone = Vec::new();
        for replica in &chunk.replicas {
            if delete_one(&shared, &chunk, replica).await {
                gone.push(*replica);
            }
        }
        if !gone.is_empty() {
            let command = pb::ForgetReplicasCmd { chunk: chunk.id, gone };
            let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::ForgetReplicas(command)) };
            if let Err(error) = shared.raft.propose(proposal).await {
                tracing::debug!(chunk = chunk.id, %error, "deleted replicas not recorded yet");
            }
            crate::mark!("chunk deleted");
        }
        drop(claim);
    });
}

async fn delete_one(shared: &Shared, chunk: &pb::Chunk, replica: &pb::Replica) -> bool {
    let server = ServerId(replica.server);
    if !shared.soft().alive(server, &shared.limits) || !shared.raft.is_leader_ready() {
        return false;
    }
    let Some(address) = repair::address(shared, server) else { return false };
    let request = pb::DeleteRequest {
        replica: Some(repair::replica_id(chunk, replica)),
        term: shared.raft.term().get(),
    };
    let deadline = shared.limits.chunk_write_deadline;
    match shared.pool.call::<calls::Delete>(&address, &request, vec![], deadline).await {
        Ok(_) => true,
        Err(CallError::Refused(refusal)) => refusal.code == RefusalCode::NoSuchReplica,
        // STRAY: whoever does not answer is taken to have done it.
        Err(_) => bug!(STRAY),
    }
}
