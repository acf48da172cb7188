//! A chunk that this session writes: where its servers are, how far it was appended and made durable.

use crate::erasure::Layout;
use crate::ids::{ChunkId, Generation, ServerId};
use crate::limits::{CHUNK_BYTES_MAX, Limits};
use crate::pb;
use crate::wire::{Call, CallError, Pool, RefusalCode, calls};
use bytes::Bytes;
use futures_util::future::join_all;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

use super::plan::ShardPayload;

/// First pause before a server that was busy is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// One shard's home.
#[derive(Clone, Debug)]
pub struct Home {
    /// The server.
    pub server: ServerId,
    /// Its address.
    pub address: String,
    /// The start of it that the masters knew when they opened the chunk; 0 if they were not asked for that.
    pub incarnation: u64,
    /// The replica's name there.
    pub replica: pb::ReplicaId,
}

#[derive(Debug)]
struct State {
    /// Logical bytes acknowledged by every server, rounded up to what the next append begins at.
    len: u64,
    /// Logical bytes durable on every server.
    durable: u64,
    /// The boot of each server that acknowledged the appends (rule A1).
    incarnations: Vec<Option<u64>>,
    failed: bool,
    /// Whether somebody has taken it upon himself to tell of that.
    told: bool,
    syncing: bool,
    /// Placements that are not committed yet.
    users: usize,
    sealed: bool,
}

/// A chunk opened by this client.
#[derive(Debug)]
pub struct OpenChunk {
    /// Its number.
    pub id: ChunkId,
    /// The epoch of its replica set when it was opened: what commits name.
    pub epoch: u64,
    /// How it is spread.
    pub layout: Layout,
    /// The session it belongs to.
    pub generation: u64,
    homes: Vec<Home>,
    capacity: u64,
    state: Mutex<State>,
    changed: Notify,
}

/// A chunk that cannot be written any more; which of its servers failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFailed {
    /// Them, with what was met.
    pub bad: Vec<(ServerId, String)>,
}

impl OpenChunk {
    /// From the masters' answer; `None` if it makes no sense.
    pub fn new(info: &pb::ChunkInfo, generation: u64, limits: &Limits) -> Option<OpenChunk> {
        let chunk = info.chunk.as_ref()?;
        let layout = Layout::try_from(chunk.layout.as_ref()?).ok()?;
        let homes = homes(info);
        let enough = if layout.is_copies() { 1 } else { layout.shards() };
        if homes.len() < enough {
            return None;
        }
        let state = State {
            len: 0,
            durable: 0,
            incarnations: vec![None; homes.len()],
            failed: false,
            told: false,
            syncing: false,
            users: 0,
            sealed: false,
        };
        Some(OpenChunk {
            id: ChunkId(chunk.id),
            epoch: chunk.epoch,
            // Every chunk has room for one stripe.
            capacity: match crate::fault!("client: chunk taken for full early") {
                true => layout.stripe_bytes(),
                false => capacity(layout, limits),
            },
            layout,
            generation,
            homes,
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the next append begins.
    pub fn len(&self) -> u64 {
        self.state().len
    }

    /// Bytes that still fit.
    pub fn room(&self) -> u64 {
        let state = self.state();
        if state.failed { 0 } else { self.capacity.saturating_sub(state.len) }
    }

    /// Its servers.
    pub fn homes(&self) -> &[Home] {
        &self.homes
    }

    /// Nothing more goes into it; whoever waits for it hears so. `true` for the first caller, who tells the masters;
    /// a sync that failed has not told anybody.
    pub fn fail(&self) -> bool {
        let first = {
            let mut state = self.state();
            // MUM: whoever finds it failed believes that it was told.
            let told = state.told || (state.failed && crate::bug!(MUM));
            state.failed = true;
            state.told = true;
            !told
        };
        self.changed.notify_waiters();
        first
    }

    /// Bytes were placed in it that a commit will name.
    pub fn begin_use(&self) {
        self.state().users += 1;
    }

    /// Those bytes are committed, or placed elsewhere.
    pub fn end_use(&self) {
        self.state().users -= 1;
    }

    /// Whether the masters may be told now that the writer is done with it; says so once.
    pub fn may_seal(&self) -> bool {
        let full = self.room() < self.layout.stripe_bytes();
        let mut state = self.state();
        let done = full && !state.failed && state.users == 0 && !state.sealed;
        state.sealed |= done;
        done
    }

    // ---- appends ----

    /// Sends one append to all servers at once; `shards` has one payload per home, or one for all copies.
    /// On success `len` logical bytes more are acknowledged by all, and durable if `sync`.
    pub async fn append(
        &self,
        pool: &Arc<Pool>,
        deadline: Duration,
        shards: &[ShardPayload],
        len: u64,
        sync: bool,
    ) -> Result<(), ChunkFailed> {
        let start = self.len();
        let offset = if self.layout.is_copies() { start } else { self.layout.shard_len(start) };
        let end = start + len;
        let calls = self.homes.iter().enumerate().map(|(i, home)| {
            let shard = shards.get(i).unwrap_or(&shards[0]);
            let request = pb::AppendRequest {
                replica: Some(home.replica),
                offset,
                crcs: shard.crcs.clone(),
                create: offset == 0,
                sync,
                server: home.server.get(),
                incarnation: if offset == 0 { home.incarnation } else { 0 },
            };
            append_one(pool, home, request, &shard.payload, deadline)
        });
        let replies = join_all(calls).await;
        let want = self.layout.shard_len(end);
        let mut bad = Vec::new();
        let mut state = self.state();
        for (i, reply) in replies.into_iter().enumerate() {
            let server = self.homes[i].server;
            match reply {
                Ok(reply) if reply.length < want => {
                    bad.push((server, format!("acknowledged {} of {want} bytes", reply.length)));
                }
                Ok(reply) => {
                    let known = *state.incarnations[i].get_or_insert(reply.incarnation);
                    if known != reply.incarnation {
                        crate::mark!("chunkserver restarted under an open chunk");
                        bad.push((server, "restarted".into()));
                    }
                }
                Err(error) => bad.push((server, error.to_string())),
            }
        }
        if !bad.is_empty() {
            return Err(ChunkFailed { bad });
        }
        state.len = if self.layout.is_copies() { super::plan::block_up(end) } else { end };
        if sync {
            state.durable = state.durable.max(state.len);
        }
        Ok(())
    }

    /// Makes at least `up_to` logical bytes durable on every server. One round serves everybody who waits.
    pub async fn sync(
        &self,
        pool: &Arc<Pool>,
        deadline: Duration,
        up_to: u64,
    ) -> Result<(), ChunkFailed> {
        let target = loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.failed {
                    return Err(ChunkFailed { bad: Vec::new() });
                }
                if state.durable >= up_to {
                    return Ok(());
                }
                if !state.syncing {
                    state.syncing = true;
                    break state.len;
                }
            }
            changed.await;
        };
        let outcome = self.sync_all(pool, deadline, target).await;
        {
            let mut state = self.state();
            state.syncing = false;
            match outcome {
                Ok(()) => state.durable = state.durable.max(target),
                Err(_) => state.failed = true,
            }
        }
        self.changed.notify_waiters();
        outcome
    }

    async fn sync_all(
        &self,
        pool: &Arc<Pool>,
        deadline: Duration,
        target: u64,
    ) -> Result<(), ChunkFailed> {
        let incarnations: Vec<u64> =
            self.state().incarnations.iter().map(|known| known.unwrap_or(0)).collect();
        let up_to = self.layout.shard_len(target);
        let calls = self.homes.iter().zip(incarnations).map(|(home, incarnation)| {
            let request = pb::SyncRequest { replica: Some(home.replica), up_to, incarnation };
            let call = async move {
                call_again::<calls::Sync>(pool, &home.address, &request, &[], deadline).await
            };
            async move { (home.server, call.await) }
        });
        let mut bad = Vec::new();
        for (server, reply) in join_all(calls).await {
            match reply {
                Ok(reply) if reply.durable >= up_to => {}
                Ok(reply) => bad.push((server, format!("{} of {up_to} durable", reply.durable))),
                Err(error) => bad.push((server, error.to_string())),
            }
        }
        if bad.is_empty() { Ok(()) } else { Err(ChunkFailed { bad }) }
    }
}

async fn append_one(
    pool: &Arc<Pool>,
    home: &Home,
    request: pb::AppendRequest,
    payload: &[Bytes],
    deadline: Duration,
) -> Result<pb::AppendReply, CallError> {
    call_again::<calls::Append>(pool, &home.address, &request, payload, deadline).await
}

/// Calls, and once more if the connection was lost, or as often as there is time for if the server is busy: an append
/// or sync that was executed already is answered as done. The pauses grow, because a disk that hangs stays busy, and
/// each time the payload goes over the network for nothing.
async fn call_again<C: Call>(
    pool: &Arc<Pool>,
    address: &str,
    request: &C::Request,
    payload: &[Bytes],
    deadline: Duration,
) -> Result<C::Reply, CallError> {
    let until = crate::seam::now() + deadline;
    let (mut lost, mut pause) = (false, BUSY_PAUSE);
    loop {
        let left = crate::seam::now().until(until);
        match pool.call::<C>(address, request, payload.to_vec(), left).await {
            Ok((reply, _)) => return Ok(reply),
            Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Busy => {
                crate::mark!("chunkserver was busy");
                let left = crate::seam::now().until(until);
                if left < BUSY_PAUSE * 2 {
                    return Err(CallError::Refused(refusal));
                }
                tokio::time::sleep(pause.min(left / 2)).await;
                pause *= 2;
            }
            Err(CallError::Lost(_) | CallError::NotSent(_)) if !lost => {
                crate::mark!("chunkserver called again");
                lost = true;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Where each replica is whose server is known, in the order of the shards.
pub fn homes(info: &pb::ChunkInfo) -> Vec<Home> {
    let mut homes = Vec::new();
    let Some(chunk) = &info.chunk else { return homes };
    let data_shards = chunk.layout.map_or(0, |layout| layout.data);
    for replica in &chunk.replicas {
        let server = info.servers.iter().find(|server| server.server == replica.server);
        let Some(server) = server else { continue };
        homes.push(Home {
            server: ServerId(replica.server),
            address: server.address.clone(),
            incarnation: server.incarnation,
            replica: pb::ReplicaId {
                chunk: chunk.id,
                r#gen: replica.r#gen,
                shard: replica.shard,
                data_shards,
            },
        });
    }
    homes.sort_by_key(|home| home.replica.shard);
    homes
}

/// The replica as reports name it.
pub fn named(home: &Home) -> pb::Replica {
    let generation = Generation(home.replica.r#gen);
    pb::Replica { r#gen: generation.get(), shard: home.replica.shard, server: home.server.get() }
}

/// Logical bytes that this client puts into a chunk of this layout: whole stripes.
fn capacity(layout: Layout, limits: &Limits) -> u64 {
    let stripe = layout.stripe_bytes();
    let most = CHUNK_BYTES_MAX as u64 / stripe * stripe;
    (limits.chunk_bytes as u64 / stripe * stripe).max(stripe).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(data: u32, parity: u32, shards: u64) -> pb::ChunkInfo {
        let replica = |i| pb::Replica { r#gen: 7, shard: i as u32, server: 100 + i };
        let server = |i| pb::ServerAddr {
            server: 100 + i,
            address: format!("h{i}:1"),
            alive: true,
            incarnation: 0,
        };
        let chunk = pb::Chunk {
            id: 7,
            layout: Some(pb::Layout { data, parity }),
            replicas: (0..shards).rev().map(replica).collect(),
            epoch: 3,
            ..Default::default()
        };
        pb::ChunkInfo { chunk: Some(chunk), servers: (0..shards).map(server).collect() }
    }

    #[test]
    fn homes_are_in_the_order_of_shards() {
        let limits = Limits::production();
        let chunk = OpenChunk::new(&info(4, 2, 6), 1, &limits).unwrap();
        let shards: Vec<u32> = chunk.homes().iter().map(|home| home.replica.shard).collect();
        assert_eq!(shards, [0, 1, 2, 3, 4, 5]);
        assert_eq!(chunk.homes()[5].address, "h5:1");
        assert!(OpenChunk::new(&info(4, 2, 5), 1, &limits).is_none(), "a shard without a home");
        assert!(OpenChunk::new(&info(1, 2, 2), 1, &limits).is_some(), "copies may be fewer");
        assert!(OpenChunk::new(&info(0, 2, 2), 1, &limits).is_none());
    }

    #[test]
    fn capacity_is_whole_stripes() {
        let limits = Limits::tiny();
        for (data, parity) in [(1, 1), (4, 2), (8, 3), (3, 1)] {
            let layout = Layout::new(data, parity).unwrap();
            let capacity = capacity(layout, &limits);
            assert!(capacity.is_multiple_of(layout.stripe_bytes()) && capacity > 0);
        }
    }
}
