//! Brings chunks back to full redundancy: seals those that lost a server, drops replicas found bad, has
//! missing shards rebuilt and commits each change only after the copy was verified (rule A7).

use super::Shared;
use super::leader;
use super::rpc::refusal;
use super::servers;
use crate::erasure::Layout;
use crate::errno::Errno;
use crate::ids::{ChunkId, Generation, ServerId, Term};
use crate::namespace::tables::{Chunks, Degraded, PendingReplicas, ServerChunks};
use crate::pb;
use crate::placement::{self, Health, Repair, ServerView};
use crate::seam;
use crate::tables::{Read, TableError};
use crate::wire::{Refusal, Role, calls};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Chunks looked at in one round of each scan.
const SCAN_CHUNKS: usize = 128;
/// Seals told again in one round.
const TELL_CHUNKS: usize = 32;
/// Replicas found bad that are remembered until they are dealt with; more are found again.
const BAD_MAX: usize = 16 << 10;
/// Chunks with a check or seal on the wire at once.
const BUSY_MAX: usize = 256;
/// Deadline of one rebuild: a whole chunk at 2 MB/s.
const REBUILD_DEADLINE: Duration = Duration::from_secs(32);
/// Deadline of reading one replica through to verify it.
const VERIFY_DEADLINE: Duration = Duration::from_secs(10);

/// Length at rest that a shard of a sealed chunk must have.
pub(super) fn shard_len(chunk: &pb::Chunk, _shard: u32) -> u64 {
    let layout = chunk.layout.unwrap_or_default();
    Layout::try_from(&layout).map_or(0, |l| l.shard_len(chunk.committed_len))
}

/// Remembers that a chunkserver found one of its replicas bad.
pub(super) fn found_bad(shared: &Shared, replica: &pb::ReplicaId) {
    let mut soft = shared.soft();
    if soft.bad.len() < BAD_MAX || soft.bad.contains_key(&replica.chunk) {
        tracing::warn!(
            chunk = replica.chunk,
            generation = replica.r#gen,
            shard = replica.shard,
            "bad replica"
        );
        soft.bad.entry(replica.chunk).or_default().insert((replica.r#gen, replica.shard));
    }
}

/// How a replica is named on the wire.
pub(super) fn replica_id(chunk: &pb::Chunk, replica: &pb::Replica) -> pb::ReplicaId {
    pb::ReplicaId {
        chunk: chunk.id,
        r#gen: replica.r#gen,
        shard: replica.shard,
        data_shards: chunk.layout.unwrap_or_default().data,
    }
}

/// A client could not use a replica: its server reads it through, and a bad one is replaced.
pub(super) fn suspect(shared: &Arc<Shared>, chunk: &pb::Chunk, named: &pb::Replica) {
    if let Some(replica) = named_by(chunk, named.r#gen, named.shard) {
        verify(shared, chunk, replica, |shared, id, good| {
            if !good {
                found_bad(shared, id);
            }
        });
    }
}

/// The server of a replica that was found bad says that it is good: true if it then reads through.
pub(super) fn acquit(shared: &Arc<Shared>, chunk: &pb::Chunk, named: &pb::ReplicaId) {
    if let Some(replica) = named_by(chunk, named.r#gen, named.shard) {
        verify(shared, chunk, replica, |shared, id, good| {
            if good {
                crate::mark!("bad replica is good again");
                forget_bad(shared, id.chunk, (id.r#gen, id.shard));
            }
        });
    }
}

/// Too few good replicas answer. One that was found bad may have been its disk's trouble of a moment: now and then
/// its server reads one of them through again.
fn try_again(shared: &Arc<Shared>, chunk: &pb::Chunk, bad: &BTreeSet<(u64, u32)>) {
    let rounds = shared.limits.server_dead.as_millis() / leader::ROUND.as_millis();
    let named: Vec<&pb::Replica> =
        chunk.replicas.iter().filter(|r| bad.contains(&(r.r#gen, r.shard))).collect();
    let rounds = u64::try_from(rounds).unwrap_or(u64::MAX);
    if named.is_empty() || seam::rng::random_range(0, rounds) > 0 {
        return;
    }
    let at = seam::rng::random_range(0, named.len() as u64) as usize;
    acquit(shared, chunk, &replica_id(chunk, named[at]));
}

fn named_by(chunk: &pb::Chunk, generation: u64, shard: u32) -> Option<pb::Replica> {
    chunk.replicas.iter().find(|r| r.r#gen == generation && r.shard == shard).copied()
}

/// Has a replica read through by its server; no answer says nothing.
fn verify(
    shared: &Arc<Shared>,
    chunk: &pb::Chunk,
    replica: pb::Replica,
    judge: impl FnOnce(&Shared, &pb::ReplicaId, bool) + Send + 'static,
) {
    let Some(claim) = enter(shared, chunk.id) else { return };
    let (id, wanted) = (replica_id(chunk, &replica), shard_len(chunk, replica.shard));
    let (server, chunk) = (ServerId(replica.server), chunk.clone());
    let shared = shared.clone();
    seam::spawn(async move {
        let request = pb::StatRequest { replicas: vec![id], verify: true };
        if let Some(address) = address(&shared, server)
            && let Ok((reply, _)) =
                shared.pool.call::<calls::Stat>(&address, &request, vec![], VERIFY_DEADLINE).await
            && let Some(state) = reply.states.first()
        {
            let sealed = chunk.state() == pb::ChunkState::Sealed;
            let short = sealed && state.length < wanted;
            let bad = state.corrupt || (sealed && wanted > 0 && !state.present) || short;
            judge(&shared, &id, !bad);
        }
        drop(claim);
    });
}

/// Commits the seal of an open chunk at what was committed, and tells its servers to cut the rest.
pub(super) async fn seal(shared: &Arc<Shared>, chunk: &pb::Chunk) -> Result<(), Refusal> {
    announce(shared, &[ChunkId(chunk.id)]);
    let command = pb::SealChunkCmd { chunk: chunk.id };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::SealChunk(command)) };
    let (_, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
    crate::mark!("chunk sealed by the master");
    if let Some(pb::outcome::Kind::Chunk(sealed)) = outcome.kind {
        tell_sealed(shared, &sealed);
    }
    Ok(())
}

/// These are about to be sealed: their servers are told also if whoever asks for it is dropped before he can.
pub(super) fn announce(shared: &Shared, chunks: &[ChunkId]) {
    // HUSH: nobody else tells.
    if !crate::bug!(HUSH) {
        chunks.iter().for_each(|id| tell_later(shared, id.get()));
    }
}

/// [`tell_sealed`] of those among the chunks that are sealed; those that are not yet are looked at again.
pub(super) fn tell_all_sealed(shared: &Arc<Shared>, chunks: &[ChunkId]) {
    let view = shared.raft.view();
    for id in chunks {
        // A table that can not be read ends this master elsewhere; the next full report tells the rest.
        let Ok(Some(chunk)) = view.get::<Chunks>(id) else { continue };
        match chunk.state() {
            pb::ChunkState::Open => tell_later(shared, chunk.id),
            pb::ChunkState::Sealed => tell_sealed(shared, &chunk),
            _ => {}
        }
    }
}

/// Tells the servers of a sealed chunk its final length. Those that did not hear it are told again; a new leader
/// learns from their first full report who did not.
pub(super) fn tell_sealed(shared: &Arc<Shared>, chunk: &pb::Chunk) {
    let Some(claim) = enter(shared, chunk.id) else {
        tell_later(shared, chunk.id);
        return;
    };
    shared.soft().untold.remove(&chunk.id);
    let (shared, chunk) = (shared.clone(), chunk.clone());
    seam::spawn(async move {
        for replica in &chunk.replicas {
            let server = ServerId(replica.server);
            let Some(address) = address(&shared, server) else { continue };
            if !shared.soft().alive(server, &shared.limits) {
                tell_later(&shared, chunk.id);
                continue;
            }
            let length = shard_len(&chunk, replica.shard);
            let id = replica_id(&chunk, replica);
            let request =
                pb::SealRequest { replica: Some(id), length, term: shared.raft.term().get() };
            let deadline = shared.limits.chunk_write_deadline;
            match shared.pool.call::<calls::Seal>(&address, &request, vec![], deadline).await {
                Ok((reply, _)) if reply.length < length => found_bad(&shared, &id),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(chunk = chunk.id, %error, "seal not delivered");
                    tell_later(&shared, chunk.id);
                }
            }
        }
        drop(claim);
    });
}

fn tell_later(shared: &Shared, chunk: u64) {
    let mut soft = shared.soft();
    // Beyond the bound the next leader's first reports tell.
    if soft.untold.len() < BAD_MAX {
        crate::mark!("seal to be told again");
        soft.untold.insert(chunk);
    }
}

/// One round: looks at a bounded part of what may need work and starts the most endangered first.
pub(super) async fn round(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let fatal = |error: TableError| shared.broken(&error);
    let views = servers::views(shared).map_err(fatal)?;
    let mut found: Vec<(Health, pb::Chunk)> = Vec::new();
    for id in work(shared, &views).map_err(fatal)? {
        let Some(chunk) = shared.raft.view().get::<Chunks>(&ChunkId(id)).map_err(fatal)? else {
            shared.soft().bad.remove(&id);
            continue;
        };
        let bad = known_bad(shared, &chunk);
        found.push((placement::health(&chunk, &views, &bad), chunk));
    }
    found.sort_by_key(|(health, chunk)| (health.spare, chunk.id));
    for (_, chunk) in found {
        // A bad replica stays in the chunk until a verified copy takes its place: the others may turn out to
        // be no better, and one that lay on a failed disk may be good once its server has started again.
        let bad = known_bad(shared, &chunk);
        match placement::plan(&chunk, &views, &bad, seam::rng::random_u64()) {
            Repair::Nothing => {}
            Repair::Seal => seal(shared, &chunk).await?,
            Repair::Blocked => {
                crate::mark!("repair blocked");
                try_again(shared, &chunk, &bad);
            }
            Repair::Rebuild { shard, old, target, sources } => {
                start_rebuild(shared, chunk, shard, old, target, sources);
            }
        }
    }
    give_up_unneeded(shared, &views).await?;
    // After the repairs, which need the same chunks for themselves.
    let untold = shared.soft().take_untold(TELL_CHUNKS);
    tell_all_sealed(shared, &untold.into_iter().map(ChunkId).collect::<Vec<_>>());
    Ok(())
}

fn known_bad(shared: &Shared, chunk: &pb::Chunk) -> BTreeSet<(u64, u32)> {
    shared.soft().bad.get(&chunk.id).cloned().unwrap_or_default()
}

/// Chunks that may need something: degraded ones, those on dead or draining servers, those with a replica
/// found bad. Each source goes on where it stopped last time.
fn work(
    shared: &Shared,
    views: &BTreeMap<ServerId, ServerView>,
) -> Result<BTreeSet<u64>, TableError> {
    let view = shared.raft.view();
    let mut soft = shared.soft();
    let mut chunks: BTreeSet<u64> = soft.some_bad(SCAN_CHUNKS).into_iter().collect();
    let from = soft.cursors.degraded;
    soft.cursors.degraded = 0;
    for row in view.range::<Degraded>(&ChunkId(from), None).take(SCAN_CHUNKS) {
        let (id, _) = row?;
        chunks.insert(id.get());
        soft.cursors.degraded = id.get() + 1;
    }
    for (server, state) in views {
        if state.state == pb::ServerState::Active {
            continue;
        }
        let from = soft.cursors.leaving.remove(server).unwrap_or(0);
        let (from, end) = ((*server, ChunkId(from)), (ServerId(server.get() + 1), ChunkId(0)));
        for row in view.range::<ServerChunks>(&from, Some(&end)).take(SCAN_CHUNKS) {
            let ((_, id), _) = row?;
            chunks.insert(id.get());
            soft.cursors.leaving.insert(*server, id.get() + 1);
        }
    }
    Ok(chunks)
}

async fn drop_replica(
    shared: &Shared,
    chunk: &pb::Chunk,
    replica: &pb::Replica,
) -> Result<(), Refusal> {
    let command = pb::DropReplicaCmd {
        chunk: chunk.id,
        epoch: chunk.epoch,
        r#gen: replica.r#gen,
        shard: replica.shard,
    };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::DropReplica(command)) };
    shared.raft.propose(proposal).await.map_err(refusal).map(drop)
}

/// Whether a replica is remembered as bad.
pub(super) fn is_bad(shared: &Shared, replica: &pb::ReplicaId) -> bool {
    let soft = shared.soft();
    soft.bad.get(&replica.chunk).is_some_and(|bad| bad.contains(&(replica.r#gen, replica.shard)))
}

/// A replica is not bad any more, or not there.
fn forget_bad(shared: &Shared, chunk: u64, replica: (u64, u32)) {
    let mut soft = shared.soft();
    if let Some(bad) = soft.bad.get_mut(&chunk) {
        bad.remove(&replica);
        if bad.is_empty() {
            soft.bad.remove(&chunk);
        }
    }
}

fn start_rebuild(
    shared: &Arc<Shared>,
    chunk: pb::Chunk,
    shard: u32,
    old: Option<Generation>,
    target: ServerId,
    sources: Vec<pb::Replica>,
) {
    if shared.soft().repairs >= shared.limits.repairs_at_once {
        return;
    }
    let Some(mut claim) = enter(shared, chunk.id) else { return };
    shared.soft().repairs += 1;
    claim.rebuilds = true;
    let shared = shared.clone();
    seam::spawn(async move {
        let id = chunk.id;
        match rebuild(&shared, &claim, &chunk, shard, old, target, &sources).await {
            Ok(()) => tracing::info!(chunk = id, shard, %target, "replica rebuilt"),
            Err(error) => {
                tracing::warn!(chunk = id, shard, %target, error, "rebuild failed; it is tried again")
            }
        }
        drop(claim);
    });
}

/// Gives up copies that earlier attempts (of this leader or another) began and did not finish. What they
/// wrote is deleted by its own id.
async fn give_up_pending(shared: &Shared, chunk: &pb::Chunk) -> Result<(), Refusal> {
    let view = shared.raft.view();
    let from = (ChunkId(chunk.id), Generation(0));
    let to = (ChunkId(chunk.id + 1), Generation(0));
    let mut stale = Vec::new();
    for row in view.range::<PendingReplicas>(&from, Some(&to)) {
        let (_, row) = row.map_err(|error| shared.broken(&error))?;
        stale.extend(row.replica);
    }
    for replica in stale {
        crate::mark!("unfinished repair copy given up");
        drop_replica(shared, chunk, &replica).await?;
    }
    Ok(())
}

/// Gives up the unfinished copies of chunks that became whole without them: a server came back, or a replica
/// turned out to be good. Goes on where it stopped.
async fn give_up_unneeded(
    shared: &Arc<Shared>,
    views: &BTreeMap<ServerId, ServerView>,
) -> Result<(), Refusal> {
    let fatal = |error: TableError| shared.broken(&error);
    let view = shared.raft.view();
    let from = std::mem::take(&mut shared.soft().cursors.pending);
    let mut chunks = BTreeSet::new();
    for (at, row) in view.range::<PendingReplicas>(&from, None).take(SCAN_CHUNKS).enumerate() {
        let ((id, generation), _) = row.map_err(fatal)?;
        chunks.insert(id);
        if at + 1 == SCAN_CHUNKS {
            shared.soft().cursors.pending = (id, Generation(generation.get() + 1));
        }
    }
    for id in chunks {
        let Some(chunk) = view.get::<Chunks>(&id).map_err(fatal)? else { continue };
        let bad = known_bad(shared, &chunk);
        let whole = placement::plan(&chunk, views, &bad, 0) == Repair::Nothing;
        if whole && let Some(_claim) = enter(shared, chunk.id) {
            crate::mark!("unfinished repair copy not needed any more");
            give_up_pending(shared, &chunk).await?;
        }
    }
    Ok(())
}

async fn rebuild(
    shared: &Shared,
    claim: &Claim,
    chunk: &pb::Chunk,
    shard: u32,
    old: Option<Generation>,
    target: ServerId,
    sources: &[pb::Replica],
) -> Result<(), String> {
    let told = |error: Refusal| error.to_string();
    give_up_pending(shared, chunk).await.map_err(told)?;
    let command = pb::AllocReplicaCmd { chunk: chunk.id, shard, server: target.get() };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::AllocReplica(command)) };
    let (term, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal).map_err(told)?;
    let Some(pb::outcome::Kind::Id(generation)) = outcome.kind else {
        return Err(format!("no generation for the copy: {}", Errno::new(outcome.errno)));
    };
    let replica = pb::Replica { r#gen: generation, shard, server: target.get() };
    let address_of = |server| address(shared, server).ok_or("a server without address");
    let mut from = Vec::with_capacity(sources.len());
    for source in sources {
        let address = address_of(ServerId(source.server))?;
        from.push(pb::RebuildSource { replica: Some(replica_id(chunk, source)), address });
    }
    let request = pb::RebuildRequest {
        target: Some(replica_id(chunk, &replica)),
        layout: chunk.layout,
        sealed_len: chunk.committed_len,
        sources: from,
        term: term.get(),
    };
    let to = address_of(target)?;
    let (reply, _) = shared
        .pool
        .call::<calls::Rebuild>(&to, &request, vec![], REBUILD_DEADLINE)
        .await
        .map_err(|error| error.to_string())?;
    reply.corrupt.iter().for_each(|bad| found_bad(shared, bad));
    if reply.length < shard_len(chunk, shard) {
        return Err(format!(
            "the copy has {} bytes, {} are needed",
            reply.length,
            shard_len(chunk, shard)
        ));
    }
    if crate::fault!("master: repair given up before its commit") {
        return Err("given up".to_owned());
    }
    // Whoever leads since may have given this copy up, and had it deleted.
    if !claim.holds() {
        return Err("another term began meanwhile".to_owned());
    }
    let command = pb::ReplaceReplicaCmd {
        chunk: chunk.id,
        epoch: chunk.epoch,
        old_gen: old.map_or(0, Generation::get),
        replica: Some(replica),
    };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::ReplaceReplica(command)) };
    let (_, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal).map_err(told)?;
    Errno::check(outcome.errno)
        .map_err(|errno| format!("the chunk has changed meanwhile: {errno}"))?;
    crate::mark!("replica rebuilt");
    if let Some(old) = old {
        forget_bad(shared, chunk.id, (old.get(), shard));
    }
    Ok(())
}

/// A server's address, if it is committed. Of one that counts, nobody else is spoken to there: a machine that lost its
/// disk answers at the same address, has nothing and knows nothing of who it was.
pub(super) fn address(shared: &Shared, server: ServerId) -> Option<String> {
    let row = shared.raft.view().get::<crate::namespace::tables::Servers>(&server);
    let row = row.ok().flatten()?;
    let counts = matches!(row.state(), pb::ServerState::Active | pb::ServerState::Draining);
    if counts && !crate::bug!(STANDIN) {
        shared.pool.expect(&row.address, Role::Chunkserver, server.get());
    }
    Some(row.address)
}

/// A chunk that one task works on; others leave it alone until this is dropped, or this master leads in another term
/// and knows nothing of what it once began.
pub(super) struct Claim {
    shared: Arc<Shared>,
    chunk: u64,
    term: Term,
    /// It counts as a rebuild under way.
    rebuilds: bool,
}

impl Claim {
    /// Whether this master still leads in the term of the claim.
    fn holds(&self) -> bool {
        self.shared.raft.is_leader() && self.shared.raft.term() == self.term
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut soft = self.shared.soft();
        if soft.term == self.term {
            soft.busy.remove(&self.chunk);
            soft.repairs -= usize::from(self.rebuilds);
        }
    }
}

/// Claims a chunk for one task at a time.
pub(super) fn enter(shared: &Arc<Shared>, chunk: u64) -> Option<Claim> {
    let mut soft = shared.soft();
    let term = soft.term;
    let free = soft.busy.len() < BUSY_MAX && soft.busy.insert(chunk);
    free.then(|| Claim { shared: shared.clone(), chunk, term, rebuilds: false })
}
