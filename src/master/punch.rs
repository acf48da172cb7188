//! Gives back the space of what nothing refers to in chunks that are still in use: finds dead ranges by the
//! reverse index, commits them as holes, and has every server of the chunk free them (rule A6).

use super::Shared;
use super::repair::{self, enter};
use super::rpc::refusal;
use super::soft::Beat;
use crate::erasure::Layout;
use crate::ids::{ChunkId, ServerId};
use crate::limits::{BLOCK_BYTES, Limits};
use crate::namespace::tables::{Chunks, Garbage, Holes, Punching};
use crate::namespace::{HOLES_MAX, dead_ranges, hole_unit};
use crate::pb::{self, ChunkState, Hole};
use crate::seam;
use crate::tables::{Read, TableError};
use crate::wire::{Refusal, calls};
use std::sync::Arc;

/// Chunks whose garbage, or whose servers, are looked at in one round.
const LOOK_CHUNKS: usize = 64;
/// Chunks whose dead ranges are computed in one round; each may have thousands of extents.
const PUNCH_CHUNKS: usize = 8;
/// Chunks whose servers are told in one round.
const TELL_CHUNKS: usize = 16;
/// A server with room for less than so many chunks runs full.
const FULL_CHUNKS: u64 = 4;

/// One round.
pub(super) async fn round(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let fatal = |error: TableError| shared.broken(&error);
    for (chunk, garbage) in wasteful(shared).map_err(fatal)? {
        let command = map_holes(shared, &chunk, garbage).map_err(fatal)?;
        let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::PunchChunk(command)) };
        shared.raft.propose(proposal).await.map_err(refusal)?;
    }
    for (chunk, row) in to_tell(shared).map_err(fatal)? {
        tell(shared, chunk, row);
    }
    Ok(())
}

/// Garbage in one chunk that is worth a command.
fn threshold(shared: &Shared) -> u64 {
    let Limits { chunk_bytes, punch_garbage_bytes, .. } = *shared.limits;
    let low = chunk_bytes as u64 * FULL_CHUNKS;
    // One whose disks have all failed has nothing to give back.
    let works = |beat: &Beat| beat.disks.iter().any(|disk| !disk.failed);
    let full = |beat: &Beat| works(beat) && beat.free_bytes() < low;
    let full = shared.soft().servers.values().any(full);
    if full { BLOCK_BYTES as u64 } else { punch_garbage_bytes }
}

/// Sealed chunks with garbage enough, and how much; goes on where it stopped.
fn wasteful(shared: &Shared) -> Result<Vec<(pb::Chunk, u64)>, TableError> {
    let view = shared.raft.view();
    let worth = threshold(shared);
    let from = ChunkId(std::mem::take(&mut shared.soft().cursors.garbage));
    let mut found = Vec::new();
    for (seen, row) in view.range::<Garbage>(&from, None).enumerate() {
        let (id, row) = row?;
        if seen == LOOK_CHUNKS || found.len() == PUNCH_CHUNKS {
            shared.soft().cursors.garbage = id.get();
            break;
        }
        let chunk = if row.bytes < worth { None } else { view.get::<Chunks>(&id)? };
        let sealed = chunk.filter(|chunk| chunk.state() == ChunkState::Sealed);
        found.extend(sealed.map(|chunk| (chunk, row.bytes)));
    }
    Ok(found)
}

/// The command that makes holes of all that is dead in a chunk.
fn map_holes(
    shared: &Shared,
    chunk: &pb::Chunk,
    garbage: u64,
) -> Result<pb::PunchChunkCmd, TableError> {
    let view = shared.raft.view();
    let known = view.get::<Holes>(&ChunkId(chunk.id))?.unwrap_or_default();
    let holes = largest(dead_ranges(&view, chunk)?, &known.holes);
    Ok(pb::PunchChunkCmd { chunk: chunk.id, version: known.version, holes, garbage })
}

/// At most [`HOLES_MAX`] of the dead ranges: those with holes already, then the largest.
fn largest(mut dead: Vec<Hole>, known: &[Hole]) -> Vec<Hole> {
    if dead.len() > HOLES_MAX {
        let punched = |range: &Hole| {
            let at = known.partition_point(|hole| hole.end <= range.from);
            known.get(at).is_some_and(|hole| hole.from < range.end)
        };
        dead.sort_by_key(|range| (!punched(range), u64::MAX - (range.end - range.from)));
        dead.truncate(HOLES_MAX);
        dead.sort_by_key(|range| range.from);
    }
    dead
}

/// Chunks whose servers may lack holes and are all there to be told; goes on where it stopped.
fn to_tell(shared: &Shared) -> Result<Vec<(pb::Chunk, pb::HolesRow)>, TableError> {
    let view = shared.raft.view();
    let from = ChunkId(std::mem::take(&mut shared.soft().cursors.punching));
    let mut found = Vec::new();
    for (seen, row) in view.range::<Punching>(&from, None).enumerate() {
        let (id, _) = row?;
        if seen == LOOK_CHUNKS || found.len() == TELL_CHUNKS {
            shared.soft().cursors.punching = id.get();
            break;
        }
        let row = view.get::<Holes>(&id)?.unwrap_or_default();
        // With one of them away the others would be told again and again.
        let chunk = view.get::<Chunks>(&id)?.filter(|chunk| reachable(shared, chunk));
        found.extend(chunk.map(|chunk| (chunk, row)));
    }
    Ok(found)
}

fn reachable(shared: &Shared, chunk: &pb::Chunk) -> bool {
    let soft = shared.soft();
    chunk.replicas.iter().all(|replica| soft.alive(ServerId(replica.server), &shared.limits))
}

/// Where the holes are in every shard.
fn in_shards(chunk: &pb::Chunk, holes: &[Hole]) -> Vec<Hole> {
    let layout = chunk.layout.and_then(|layout| Layout::try_from(layout).ok());
    let Some(layout) = layout else { return Vec::new() };
    let unit = hole_unit(chunk);
    let at = |logical: u64| layout.shard_len(logical / unit * unit);
    holes.iter().map(|hole| Hole { from: at(hole.from), end: at(hole.end) }).collect()
}

/// Has every server of the chunk free its holes, then commits that they did.
fn tell(shared: &Arc<Shared>, chunk: pb::Chunk, row: pb::HolesRow) {
    let Some(claim) = enter(shared, chunk.id) else { return };
    let shared = shared.clone();
    seam::spawn(async move {
        let holes = in_shards(&chunk, &row.holes);
        let mut all = true;
        for replica in &chunk.replicas {
            all &= punch(&shared, &chunk, replica, holes.clone()).await;
        }
        if all {
            let command =
                pb::PunchedCmd { chunk: chunk.id, epoch: chunk.epoch, version: row.version };
            let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::Punched(command)) };
            if let Err(error) = shared.raft.propose(proposal).await {
                tracing::debug!(chunk = chunk.id, %error, "punched holes not recorded yet");
            }
            crate::mark!("servers freed holes");
        }
        drop(claim);
    });
}

/// Whether the replica has the holes now. A server that has not heard of the seal yet refuses.
async fn punch(
    shared: &Shared,
    chunk: &pb::Chunk,
    replica: &pb::Replica,
    holes: Vec<Hole>,
) -> bool {
    let address = repair::address(shared, ServerId(replica.server));
    let Some(address) = address.filter(|_| shared.raft.is_leader_ready()) else { return false };
    let request = pb::PunchRequest {
        replica: Some(repair::replica_id(chunk, replica)),
        term: shared.raft.term().get(),
        holes,
    };
    let deadline = shared.limits.chunk_write_deadline;
    match shared.pool.call::<calls::Punch>(&address, &request, vec![], deadline).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(chunk = chunk.id, %error, "holes not punched yet");
            false
        }
    }
}
