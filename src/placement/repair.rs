//! What one chunk needs next to be whole again.

use super::choose::{Candidate, choose_one};
use crate::ids::{Generation, ServerId};
use crate::pb;
use std::collections::{BTreeMap, BTreeSet};

/// A chunkserver as repair sees it.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// The committed state.
    pub state: pb::ServerState,
    /// Heard from lately.
    pub alive: bool,
    /// Failure domains.
    pub labels: Vec<String>,
    /// Free bytes on its working disks.
    pub free_bytes: u64,
}

impl ServerView {
    /// Whether replicas here count: silence alone does not void them, a committed death does.
    fn counts(&self) -> bool {
        matches!(self.state, pb::ServerState::Active | pb::ServerState::Draining)
    }
}

/// How far a chunk is from losing data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Health {
    /// Good shards beyond the `k` needed to read; negative: unreadable.
    pub spare: i32,
    /// Shards that must be built anew or moved.
    pub missing: u32,
}

/// The next step for a chunk.
#[derive(Clone, Debug, PartialEq)]
pub enum Repair {
    /// Whole.
    Nothing,
    /// Open, and it has lost a server: seal it at what was committed.
    Seal,
    /// Build this shard on that server from the sources, then commit the change of replicas.
    Rebuild {
        /// Shard to build.
        shard: u32,
        /// The replica that the new one takes the place of; `None` if the shard has none.
        old: Option<Generation>,
        /// Where to build.
        target: ServerId,
        /// Good replicas on servers that answer, for the target to read from.
        sources: Vec<pb::Replica>,
    },
    /// Too few good shards answer, or no server can take the new one: wait.
    Blocked,
}

/// What is wrong with a chunk. `bad` are replicas found corrupt or short, not yet dropped.
pub fn health(
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
) -> Health {
    let layout = chunk.layout.unwrap_or_default();
    let width = layout.data + layout.parity;
    let good: BTreeSet<u32> = good_replicas(chunk, servers, bad).map(|r| r.shard).collect();
    let settled: BTreeSet<u32> = good_replicas(chunk, servers, bad)
        .filter(|r| {
            // SETTLED: a copy on a server that is being emptied may stay there.
            servers[&ServerId(r.server)].state == pb::ServerState::Active || crate::bug!(SETTLED)
        })
        .map(|r| r.shard)
        .collect();
    let count = |set: &BTreeSet<u32>| u32::try_from(set.len()).unwrap_or(u32::MAX);
    Health {
        spare: count(&good).cast_signed() - layout.data.cast_signed(),
        missing: width.saturating_sub(count(&settled)),
    }
}

/// The next step for a chunk; `seed` breaks ties between targets.
pub fn plan(
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
    seed: u64,
) -> Repair {
    if chunk.state() == pb::ChunkState::Deleting || health(chunk, servers, bad).missing == 0 {
        return Repair::Nothing;
    }
    if chunk.state() == pb::ChunkState::Open {
        return Repair::Seal;
    }
    let layout = chunk.layout.unwrap_or_default();
    let sources: Vec<pb::Replica> = good_replicas(chunk, servers, bad)
        .filter(|r| servers[&ServerId(r.server)].alive)
        .copied()
        .collect();
    let distinct: BTreeSet<u32> = sources.iter().map(|r| r.shard).collect();
    if distinct.len() < layout.data as usize {
        return Repair::Blocked;
    }
    let candidates: Vec<Candidate> = servers
        .iter()
        .map(|(server, view)| Candidate {
            server: *server,
            labels: view.labels.clone(),
            free_bytes: view.free_bytes,
            alive: view.alive && view.state == pb::ServerState::Active,
            draining: false,
        })
        .collect();
    // The first that finds a place: another one may be the only one that does.
    let placed = missing_shards(chunk, servers, bad).into_iter().find_map(|shard| {
        let beside = beside(chunk, servers, bad, shard);
        choose_one(&candidates, &beside, seed).ok().map(|target| (shard, target))
    });
    let Some((shard, target)) = placed else { return Repair::Blocked };
    let old = chunk.replicas.iter().find(|r| r.shard == shard).map(|r| Generation(r.r#gen));
    Repair::Rebuild { shard, old, target, sources }
}

/// Servers that can not take this shard, as they have one of the chunk: a server may hold one, and where a bad replica
/// lies only its own successor may lie.
fn beside(
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
    shard: u32,
) -> Vec<ServerId> {
    // ROUNDABOUT: where a bad replica lies, any shard may lie.
    let others = chunk.replicas.iter().filter(|r| r.shard != shard && !crate::bug!(ROUNDABOUT));
    let good = good_replicas(chunk, servers, bad);
    others.chain(good).map(|r| ServerId(r.server)).collect()
}

fn good_replicas<'a>(
    chunk: &'a pb::Chunk,
    servers: &'a BTreeMap<ServerId, ServerView>,
    bad: &'a BTreeSet<(u64, u32)>,
) -> impl Iterator<Item = &'a pb::Replica> {
    chunk.replicas.iter().filter(|r| {
        // Planted: a dead or corrupt copy taken for a good one.
        (crate::bug!(M30) && servers.contains_key(&ServerId(r.server)))
            || (servers.get(&ServerId(r.server)).is_some_and(ServerView::counts)
                && !bad.contains(&(r.r#gen, r.shard)))
    })
}

/// Shards without a good replica on an active server: those that have no good copy at all come before those that merely
/// have to move.
fn missing_shards(
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
) -> Vec<u32> {
    let layout = chunk.layout.unwrap_or_default();
    let settled: BTreeSet<u32> = good_replicas(chunk, servers, bad)
        .filter(|r| servers[&ServerId(r.server)].state == pb::ServerState::Active)
        .map(|r| r.shard)
        .collect();
    let draining: BTreeSet<u32> = good_replicas(chunk, servers, bad)
        .map(|r| r.shard)
        .filter(|shard| !settled.contains(shard))
        .collect();
    let width = layout.data + layout.parity;
    let lost = (0..width).filter(|s| !settled.contains(s) && !draining.contains(s));
    lost.chain(draining.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(count: u64) -> BTreeMap<ServerId, ServerView> {
        (1..=count)
            .map(|id| {
                let view = ServerView {
                    state: pb::ServerState::Active,
                    alive: true,
                    labels: vec![],
                    free_bytes: 1 << 40,
                };
                (ServerId(id), view)
            })
            .collect()
    }

    fn chunk(data: u32, parity: u32) -> pb::Chunk {
        let mut chunk = pb::Chunk {
            id: 9,
            layout: Some(pb::Layout { data, parity }),
            replicas: (0..data + parity)
                .map(|shard| pb::Replica { r#gen: 100, shard, server: u64::from(shard) + 1 })
                .collect(),
            epoch: 1,
            committed_len: 4096,
            ..Default::default()
        };
        chunk.set_state(pb::ChunkState::Sealed);
        chunk
    }

    #[test]
    fn a_whole_chunk_needs_nothing() {
        let none = BTreeSet::new();
        assert_eq!(plan(&chunk(1, 1), &servers(3), &none, 1), Repair::Nothing);
        assert_eq!(health(&chunk(1, 1), &servers(3), &none), Health { spare: 1, missing: 0 });
    }

    #[test]
    fn a_dead_server_is_replaced_by_one_that_holds_nothing() {
        let mut all = servers(3);
        all.get_mut(&ServerId(2)).unwrap().state = pb::ServerState::Dead;
        let Repair::Rebuild { shard, old, target, sources } =
            plan(&chunk(1, 1), &all, &BTreeSet::new(), 1)
        else {
            panic!("a rebuild")
        };
        assert_eq!((shard, old, target), (1, Some(Generation(100)), ServerId(3)));
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].server, 1);
    }

    #[test]
    fn silence_alone_starts_no_repair_and_open_chunks_are_sealed_first() {
        let mut all = servers(3);
        all.get_mut(&ServerId(2)).unwrap().alive = false;
        assert_eq!(plan(&chunk(1, 1), &all, &BTreeSet::new(), 1), Repair::Nothing);
        all.get_mut(&ServerId(2)).unwrap().state = pb::ServerState::Dead;
        let mut open = chunk(1, 1);
        open.set_state(pb::ChunkState::Open);
        assert_eq!(plan(&open, &all, &BTreeSet::new(), 1), Repair::Seal);
    }

    #[test]
    fn a_corrupt_replica_may_be_rebuilt_where_it_lies() {
        let all = servers(2);
        let bad = BTreeSet::from([(100, 0)]);
        let Repair::Rebuild { shard: 0, target: ServerId(1), .. } =
            plan(&chunk(1, 1), &all, &bad, 1)
        else {
            panic!("a rebuild in place")
        };
    }

    #[test]
    fn too_few_shards_block() {
        let mut all = servers(7);
        for id in 1..=3 {
            all.get_mut(&ServerId(id)).unwrap().state = pb::ServerState::Dead;
        }
        assert_eq!(plan(&chunk(4, 2), &all, &BTreeSet::new(), 1), Repair::Blocked);
        assert_eq!(health(&chunk(4, 2), &all, &BTreeSet::new()), Health { spare: -1, missing: 3 });
    }

    #[test]
    fn draining_moves_a_shard_while_it_still_counts() {
        let mut all = servers(3);
        all.get_mut(&ServerId(1)).unwrap().state = pb::ServerState::Draining;
        assert_eq!(health(&chunk(1, 1), &all, &BTreeSet::new()), Health { spare: 1, missing: 1 });
        let Repair::Rebuild { shard: 0, target: ServerId(3), sources, .. } =
            plan(&chunk(1, 1), &all, &BTreeSet::new(), 1)
        else {
            panic!("a move")
        };
        assert_eq!(sources.len(), 2);
    }
}
