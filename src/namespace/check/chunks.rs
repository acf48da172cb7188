//! Chunks, their replicas and every index over them.

use super::{Verdict, all, hold, same};
use crate::ids::{ChunkId, ServerId, SessionId};
use crate::namespace::chunks::is_degraded;
use crate::namespace::holes::hole_unit;
use crate::namespace::tables::{
    Chunks, Counters, Degraded, Deletable, Deleting, Doomed, Extents, Garbage, Holes, OpenChunks,
    PendingReplicas, Punching, Refs, ServerChunks, ServerUuids, Servers,
};
use crate::pb::{Chunk, ChunkState, EmptyRow, Hole, RefRow, Replica, extent::Source};
use crate::tables::Read;
use std::collections::BTreeMap;

type Index<K> = BTreeMap<K, EmptyRow>;

pub(super) fn check(read: &impl Read) -> Verdict {
    let chunks = all::<Chunks>(read)?;
    references(read, &chunks)?;
    indexes(read, &chunks)?;
    let servers = all::<Servers>(read)?;
    let by_uuid = servers.values().map(|row| (row.uuid.to_vec(), row.id)).collect();
    let stored = all::<ServerUuids>(read)?.into_iter().map(|(k, row)| (k, row.id)).collect();
    same("server by uuid", &stored, &by_uuid)?;
    for (id, chunk) in &chunks {
        sane(*id, chunk)?;
        for replica in &chunk.replicas {
            let known = servers.contains_key(&ServerId(replica.server));
            hold!(known, "{id}: a replica on unknown server {}", replica.server);
        }
    }
    let next = read.get::<Counters>(&0)?.unwrap_or_default().next_id;
    let last = chunks.keys().next_back().map_or(0, |id| id.get());
    hold!(last < next || chunks.is_empty(), "chunk {last} lies beyond id {next}");
    holes(read, &chunks)?;
    repairs(read, &chunks)
}

/// Holes are whole units of sealed chunks, apart from each other, and nothing refers to them.
fn holes(read: &impl Read, chunks: &BTreeMap<ChunkId, Chunk>) -> Verdict {
    let state = |id: &ChunkId| chunks.get(id).map_or(ChunkState::Unspecified, Chunk::state);
    let maps = all::<Holes>(read)?;
    for (id, row) in &maps {
        hold!(state(id) == ChunkState::Sealed, "{id} has a map of holes and is {:?}", state(id));
        let Some(chunk) = chunks.get(id) else { continue };
        let unit = hole_unit(chunk);
        for hole in &row.holes {
            let whole = hole.from.is_multiple_of(unit) && hole.end.is_multiple_of(unit);
            hold!(whole && hole.from < hole.end, "{id}: a hole of {hole:?}, of units of {unit}");
        }
        let apart = row.holes.windows(2).all(|pair| pair[0].end < pair[1].from);
        hold!(apart, "{id}: holes touch or are out of order");
    }
    for ((id, off, inode, at), row) in all::<Refs>(read)? {
        let meets = |hole: &Hole| hole.from < off + row.len && off < hole.end;
        let hole = maps.get(&id).and_then(|map| map.holes.iter().find(|hole| meets(hole)));
        hold!(hole.is_none(), "{inode} at {at} refers to {id} at {off}, a hole: {hole:?}");
    }
    for (id, _) in all::<Punching>(read)? {
        hold!(maps.contains_key(&id), "{id} is being punched and has no holes");
    }
    for (id, _) in all::<Garbage>(read)? {
        let stored = matches!(state(&id), ChunkState::Open | ChunkState::Sealed);
        hold!(stored, "{id} has garbage and is {:?}", state(&id));
    }
    Ok(())
}

/// The reverse index is exactly the extents; each lies within what commits vouch for.
fn references(read: &impl Read, chunks: &BTreeMap<ChunkId, Chunk>) -> Verdict {
    let mut refs = BTreeMap::new();
    for ((inode, off), extent) in all::<Extents>(read)? {
        let Some(Source::Chunk(range)) = &extent.source else { continue };
        let id = ChunkId(range.chunk);
        let chunk = chunks.get(&id);
        let state = chunk.map_or(ChunkState::Unspecified, Chunk::state);
        let stored = matches!(state, ChunkState::Open | ChunkState::Sealed);
        hold!(stored, "{inode} at {off} refers to {id}, which is {state:?}");
        let (end, len) = (range.off + extent.len, chunk.map_or(0, |c| c.committed_len));
        hold!(end <= len, "{inode} at {off} refers to {id} up to {end} of {len}");
        refs.insert((id, range.off, inode, off), RefRow { len: extent.len });
    }
    same("reference", &all::<Refs>(read)?, &refs)
}

fn indexes(read: &impl Read, chunks: &BTreeMap<ChunkId, Chunk>) -> Verdict {
    let mut open: Index<(SessionId, ChunkId)> = Index::new();
    let mut homes: Index<(ServerId, ChunkId)> = Index::new();
    let (mut degraded, mut deletable, mut deleting) = (Index::new(), Index::new(), Index::new());
    let refs = all::<Refs>(read)?;
    let referenced: Index<ChunkId> = refs.keys().map(|key| (key.0, EmptyRow {})).collect();
    for (id, chunk) in chunks {
        homes.extend(chunk.replicas.iter().map(|r| ((ServerId(r.server), *id), EmptyRow {})));
        if is_degraded(chunk) {
            degraded.insert(*id, EmptyRow {});
        }
        match chunk.state() {
            ChunkState::Open => drop(open.insert((SessionId(chunk.session), *id), EmptyRow {})),
            ChunkState::Deleting => drop(deleting.insert(*id, EmptyRow {})),
            _ if !referenced.contains_key(id) => drop(deletable.insert(*id, EmptyRow {})),
            _ => {}
        }
    }
    same("open chunk", &all::<OpenChunks>(read)?, &open)?;
    same("chunk by server", &all::<ServerChunks>(read)?, &homes)?;
    same("degraded chunk", &all::<Degraded>(read)?, &degraded)?;
    same("deletable chunk", &all::<Deletable>(read)?, &deletable)?;
    same("deleting chunk", &all::<Deleting>(read)?, &deleting)
}

fn sane(id: ChunkId, chunk: &Chunk) -> Verdict {
    hold!(chunk.id == id.get(), "{id}: the row names another chunk");
    hold!(chunk.state() != ChunkState::Unspecified, "{id} is in no state");
    let shards = chunk.layout.map_or(0, |layout| layout.data + layout.parity);
    for (i, replica) in chunk.replicas.iter().enumerate() {
        hold!(replica.shard < shards, "{id}: shard {} of {shards}", replica.shard);
        let others = &chunk.replicas[..i];
        let shard_twice = others.iter().any(|r| r.shard == replica.shard);
        hold!(!shard_twice, "{id}: shard {} twice", replica.shard);
        let server_twice = others.iter().any(|r| r.server == replica.server);
        hold!(!server_twice, "{id}: server {} twice", replica.server);
    }
    hold!(!chunk.replicas.is_empty(), "{id} has no replicas");
    Ok(())
}

/// A replica is in its set, under construction or doomed: one of them.
fn repairs(read: &impl Read, chunks: &BTreeMap<ChunkId, Chunk>) -> Verdict {
    let pending = all::<PendingReplicas>(read)?;
    let member = |id: &ChunkId, replica: &Replica| {
        chunks.get(id).is_some_and(|c| c.replicas.contains(replica))
    };
    for ((id, generation), row) in &pending {
        let state = chunks.get(id).map_or(ChunkState::Unspecified, Chunk::state);
        hold!(state == ChunkState::Sealed, "repair of {id}, which is {state:?}");
        let same = row.replica.is_some_and(|r| r.r#gen == generation.get() && !member(id, &r));
        hold!(same, "{id}: pending replica {generation} is wrong or in the set");
    }
    for ((server, id, generation), row) in all::<Doomed>(read)? {
        let key = |r: &Replica| r.r#gen == generation.get() && r.server == server.get();
        let same = row.replica.is_some_and(|r| key(&r) && !member(&id, &r));
        hold!(same, "{id}: doomed replica {generation} is wrong or in the set");
        hold!(!pending.contains_key(&(id, generation)), "{id}: {generation} doomed and pending");
    }
    Ok(())
}
