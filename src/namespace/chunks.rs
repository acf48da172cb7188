//! Chunks: opened by a session, sealed, given other replicas, deleted. Each change of a replica set raises
//! the chunk's epoch; each replica is named by the generation of the command that made it (rule A2).

use super::state::{Outcome, State};
use super::tables::{
    ChunkRequests, Chunks, Degraded, Deletable, Deleting, Doomed, OpenChunks, PendingReplicas,
    ServerChunks, Servers, Sessions,
};
use super::{CHUNK_REQUESTS_KEPT, OPEN_CHUNKS_MAX, PENDING_REPLICAS_MAX};
use crate::errno::Errno;
use crate::ids::{ChunkId, Generation, ServerId, SessionId};
use crate::limits::{DATA_SHARDS_MAX, SHARDS_MAX};
use crate::pb::{
    self, Chunk, ChunkState, EmptyRow, Layout, OpResult, PendingReplicaRow, Replica, ServerState,
};
use crate::tables::Read;

/// Shards of a layout that can be; EINVAL otherwise.
pub(super) fn vet_layout(layout: Option<&Layout>) -> Result<usize, Errno> {
    let layout = layout.ok_or(Errno::EINVAL)?;
    let data = layout.data as usize;
    let shards = data.saturating_add(layout.parity as usize);
    let good = (1..=DATA_SHARDS_MAX).contains(&data) && shards <= SHARDS_MAX;
    if good { Ok(shards) } else { Err(Errno::EINVAL) }
}

fn shards_of(chunk: &Chunk) -> usize {
    chunk.layout.map_or(0, |layout| (layout.data + layout.parity) as usize)
}

/// Whether the set lacks shards of its layout.
pub(super) fn is_degraded(chunk: &Chunk) -> bool {
    chunk.state() != ChunkState::Deleting && chunk.replicas.len() < shards_of(chunk)
}

/// A replica outside of the set of its chunk. Its row has all of its id: it may stay longer than the chunk's.
fn pending_row(chunk: &Chunk, replica: Replica) -> PendingReplicaRow {
    let data_shards = chunk.layout.map_or(0, |layout| layout.data);
    PendingReplicaRow { replica: Some(replica), data_shards }
}

impl State<'_> {
    pub fn chunk(&self, id: u64) -> Outcome<Chunk> {
        Ok(self.db.get::<Chunks>(&ChunkId(id))?.ok_or(Errno::ENOENT)?)
    }

    pub fn is_sealed(&self, id: ChunkId) -> Outcome<bool> {
        let chunk = self.db.get::<Chunks>(&id)?;
        Ok(chunk.is_some_and(|chunk| chunk.state() == ChunkState::Sealed))
    }

    /// Writes a chunk and keeps the index of degraded ones.
    fn put_chunk(&mut self, chunk: &Chunk) -> Outcome<()> {
        let id = ChunkId(chunk.id);
        self.db.put::<Chunks>(&id, chunk)?;
        match (is_degraded(chunk), self.db.contains::<Degraded>(&id)?) {
            (true, false) => self.db.put::<Degraded>(&id, &EmptyRow {})?,
            (false, true) => self.db.delete::<Degraded>(&id)?,
            _ => {}
        }
        Ok(())
    }

    // ---- life of a chunk ----

    /// Opens a chunk on the given servers, one per shard in order, once per request of the session. Copies
    /// may be fewer than the layout asks (at least two, or one where one is asked); shards may not.
    pub fn open_chunk(&mut self, cmd: &pb::OpenChunkCmd) -> Outcome<Chunk> {
        let id = SessionId(cmd.session);
        let mut session = self.db.get::<Sessions>(&id)?.ok_or(Errno::ESTALE)?;
        if session.ended {
            return Err(Errno::ESTALE.into());
        }
        if let Some(known) = self.db.get::<ChunkRequests>(&(id, cmd.request))? {
            crate::mark!("chunk opened again by request");
            return self.chunk(known.id);
        }
        let floor = session.last_chunk_request.saturating_sub(CHUNK_REQUESTS_KEPT);
        if cmd.request <= floor {
            return Err(Errno::EPROTO.into());
        }
        self.vet_homes(cmd)?;
        if self.chunks_of(id)?.len() >= OPEN_CHUNKS_MAX {
            return Err(Errno::EBUSY.into());
        }
        let chunk = self.new_chunk(cmd);
        for replica in &chunk.replicas {
            let key = (ServerId(replica.server), ChunkId(chunk.id));
            self.db.put::<ServerChunks>(&key, &EmptyRow {})?;
        }
        self.db.put::<OpenChunks>(&(id, ChunkId(chunk.id)), &EmptyRow {})?;
        self.put_chunk(&chunk)?;
        self.db.put::<ChunkRequests>(&(id, cmd.request), &pb::IdRow { id: chunk.id })?;
        session.last_chunk_request = session.last_chunk_request.max(cmd.request);
        self.forget_requests(id, session.last_chunk_request)?;
        self.db.put::<Sessions>(&id, &session)?;
        Ok(chunk)
    }

    fn new_chunk(&mut self, cmd: &pb::OpenChunkCmd) -> Chunk {
        let id = self.next_id();
        let homes = (0..).zip(&cmd.servers);
        Chunk {
            id,
            layout: cmd.layout,
            replicas: homes.map(|(shard, &server)| Replica { r#gen: id, shard, server }).collect(),
            state: ChunkState::Open.into(),
            epoch: 1,
            committed_len: 0,
            session: cmd.session,
            class: cmd.class,
        }
    }

    fn vet_homes(&self, cmd: &pb::OpenChunkCmd) -> Outcome<()> {
        self.vet_class(cmd.class)?;
        let shards = vet_layout(cmd.layout.as_ref())?;
        let data = cmd.layout.map_or(0, |layout| layout.data);
        let fewest = if data == 1 { shards.min(2) } else { shards };
        if !(fewest..=shards).contains(&cmd.servers.len()) {
            return Err(Errno::ENOSPC.into());
        }
        for (i, &server) in cmd.servers.iter().enumerate() {
            if cmd.servers[..i].contains(&server) {
                return Err(Errno::EINVAL.into());
            }
            self.vet_server(server)?;
        }
        Ok(())
    }

    /// A server that may be given replicas.
    fn vet_server(&self, server: u64) -> Outcome<()> {
        let row = self.db.get::<Servers>(&ServerId(server))?.ok_or(Errno::EINVAL)?;
        match row.state() {
            ServerState::Active | ServerState::Draining => Ok(()),
            _ => Err(Errno::EAGAIN.into()),
        }
    }

    fn forget_requests(&mut self, session: SessionId, last: u64) -> Outcome<()> {
        let floor = last.saturating_sub(CHUNK_REQUESTS_KEPT);
        let (from, to) = ((session, 0), (session, floor + 1));
        let rows = self.db.range::<ChunkRequests>(&from, Some(&to));
        let old = rows.map(|row| row.map(|r| r.0)).collect::<Result<Vec<_>, _>>()?;
        for key in old {
            self.db.delete::<ChunkRequests>(&key)?;
        }
        Ok(())
    }

    pub fn seal_chunk(&mut self, cmd: &pb::SealChunkCmd) -> Outcome<Chunk> {
        self.chunk(cmd.chunk)?;
        self.seal(ChunkId(cmd.chunk))?;
        self.chunk(cmd.chunk)
    }

    /// Rule A3: a chunk is sealed at what was committed; whatever else its servers hold will never count.
    pub fn seal(&mut self, id: ChunkId) -> Outcome<()> {
        let mut chunk = self.chunk(id.get())?;
        if chunk.state() != ChunkState::Open {
            return Ok(());
        }
        chunk.set_state(ChunkState::Sealed);
        self.db.delete::<OpenChunks>(&(SessionId(chunk.session), id))?;
        if !self.is_referenced(id)? {
            self.db.put::<Deletable>(&id, &EmptyRow {})?;
        }
        self.put_chunk(&chunk)
    }

    pub fn seal_own(&mut self, session: SessionId, op: &pb::SealOwnOp) -> Outcome<OpResult> {
        if self.chunk(op.chunk)?.session != session.get() {
            return Err(Errno::EINVAL.into());
        }
        self.seal(ChunkId(op.chunk))?;
        Ok(OpResult::default())
    }

    /// Begins the deletion of a sealed chunk that nothing refers to (rule A6: the reverse index says so).
    /// Repair copies under construction become replicas to delete.
    pub fn delete_chunk(&mut self, cmd: &pb::DeleteChunkCmd) -> Outcome<Chunk> {
        let id = ChunkId(cmd.chunk);
        let mut chunk = self.chunk(cmd.chunk)?;
        match chunk.state() {
            ChunkState::Deleting => return Ok(chunk),
            ChunkState::Sealed => {}
            _ => return Err(Errno::EBUSY.into()),
        }
        if self.is_referenced(id)? && !crate::bug!(M29) {
            crate::mark!("deletion of a referenced chunk refused");
            return Err(Errno::EBUSY.into());
        }
        chunk.set_state(ChunkState::Deleting);
        chunk.epoch += 1;
        for pending in self.pending_of(id)? {
            self.db.delete::<PendingReplicas>(&(id, Generation(pending.r#gen)))?;
            self.doom(&chunk, pending)?;
        }
        self.db.delete::<Deletable>(&id)?;
        self.forget_holes(id)?;
        self.db.put::<Deleting>(&id, &EmptyRow {})?;
        self.put_chunk(&chunk)?;
        self.forget_chunk(&chunk)?;
        Ok(chunk)
    }

    /// Servers confirmed the deletion of these replicas: of a chunk that is being deleted, or doomed ones.
    /// Answers how many replicas the chunk still has; its row vanishes with the last.
    pub fn forget_replicas(&mut self, cmd: &pb::ForgetReplicasCmd) -> Outcome<u64> {
        let id = ChunkId(cmd.chunk);
        for gone in &cmd.gone {
            let key = (ServerId(gone.server), id, Generation(gone.r#gen));
            if self.db.contains::<Doomed>(&key)? {
                self.db.delete::<Doomed>(&key)?;
            }
        }
        let Some(mut chunk) = self.db.get::<Chunks>(&id)? else { return Ok(0) };
        if chunk.state() == ChunkState::Deleting {
            let before = chunk.replicas.len();
            for gone in cmd.gone.iter().filter(|gone| chunk.replicas.contains(gone)) {
                self.db.delete::<ServerChunks>(&(ServerId(gone.server), id))?;
            }
            chunk.replicas.retain(|replica| !cmd.gone.contains(replica));
            if chunk.replicas.len() < before {
                self.put_chunk(&chunk)?;
                self.forget_chunk(&chunk)?;
            }
        }
        Ok(chunk.replicas.len() as u64)
    }

    fn forget_chunk(&mut self, chunk: &Chunk) -> Outcome<()> {
        if chunk.replicas.is_empty() {
            self.db.delete::<Deleting>(&ChunkId(chunk.id))?;
            self.db.delete::<Chunks>(&ChunkId(chunk.id))?;
        }
        Ok(())
    }

    // ---- repair ----

    /// Reserves a generation for a repair copy of a sealed chunk.
    pub fn alloc_replica(&mut self, cmd: &pb::AllocReplicaCmd) -> Outcome<u64> {
        let chunk = self.chunk(cmd.chunk)?;
        if chunk.state() != ChunkState::Sealed {
            return Err(Errno::EBUSY.into());
        }
        if cmd.shard as usize >= shards_of(&chunk) {
            return Err(Errno::EINVAL.into());
        }
        self.vet_server(cmd.server)?;
        let id = ChunkId(cmd.chunk);
        if self.pending_of(id)?.len() >= PENDING_REPLICAS_MAX {
            return Err(Errno::EBUSY.into());
        }
        let replica = Replica { r#gen: self.next_id(), shard: cmd.shard, server: cmd.server };
        let row = pending_row(&chunk, replica);
        self.db.put::<PendingReplicas>(&(id, Generation(replica.r#gen)), &row)?;
        Ok(replica.r#gen)
    }

    fn pending_of(&self, id: ChunkId) -> Outcome<Vec<Replica>> {
        let (from, to) = ((id, Generation(0)), (ChunkId(id.0 + 1), Generation(0)));
        let rows = self.db.range::<PendingReplicas>(&from, Some(&to));
        let rows = rows.map(|row| row.map(|r| r.1)).collect::<Result<Vec<_>, _>>()?;
        Ok(rows.into_iter().filter_map(|row| row.replica).collect())
    }

    /// The replica left, or never joined, its set: it waits for deletion by its own id.
    fn doom(&mut self, chunk: &Chunk, replica: Replica) -> Outcome<()> {
        let key = (ServerId(replica.server), ChunkId(chunk.id), Generation(replica.r#gen));
        Ok(self.db.put::<Doomed>(&key, &pending_row(chunk, replica))?)
    }

    /// A verified copy joins the set of a sealed chunk, in place of (old_gen, shard) or, with old_gen 0, into
    /// an empty slot. The copy is one that `AllocReplica` named, or an earlier member that came back (rule A2:
    /// adopted under its own id). ESTALE: the set changed since the caller looked, or the copy is unknown.
    pub fn replace_replica(&mut self, cmd: &pb::ReplaceReplicaCmd) -> Outcome<Chunk> {
        let id = ChunkId(cmd.chunk);
        let mut chunk = self.chunk(cmd.chunk)?;
        let new = cmd.replica.ok_or(Errno::EINVAL)?;
        if chunk.state() != ChunkState::Sealed {
            return Err(Errno::EBUSY.into());
        }
        if chunk.epoch != cmd.epoch {
            crate::mark!("replacement refused by epoch");
            return Err(Errno::ESTALE.into());
        }
        let pending = (id, Generation(new.r#gen));
        let doomed = (ServerId(new.server), id, Generation(new.r#gen));
        let expected = Some(pending_row(&chunk, new));
        let is_pending = self.db.get::<PendingReplicas>(&pending)? == expected;
        let is_doomed = self.db.get::<Doomed>(&doomed)? == expected;
        if !is_pending && !is_doomed {
            return Err(Errno::ESTALE.into());
        }
        let slot = chunk.replicas.iter().position(|r| r.shard == new.shard);
        let old = slot.map(|at| chunk.replicas[at]);
        if cmd.old_gen != old.map_or(0, |old| old.r#gen) {
            return Err(if cmd.old_gen == 0 { Errno::EEXIST } else { Errno::ESTALE }.into());
        }
        let others = chunk.replicas.iter().filter(|r| r.shard != new.shard);
        if others.into_iter().any(|r| r.server == new.server) {
            return Err(Errno::EINVAL.into());
        }
        if is_pending {
            self.db.delete::<PendingReplicas>(&pending)?;
        } else {
            self.db.delete::<Doomed>(&doomed)?;
        }
        if let Some(old) = old {
            self.db.delete::<ServerChunks>(&(ServerId(old.server), id))?;
            self.doom(&chunk, old)?;
            chunk.replicas.retain(|r| r.shard != new.shard);
        }
        self.db.put::<ServerChunks>(&(ServerId(new.server), id), &EmptyRow {})?;
        chunk.replicas.push(new);
        chunk.replicas.sort_by_key(|r| r.shard);
        chunk.epoch += 1;
        self.put_chunk(&chunk)?;
        self.punch_newcomer(id)?;
        Ok(chunk)
    }

    /// Takes a bad or surplus replica out of the set, or gives up a repair copy. Never below the shards that
    /// the data needs (EBUSY).
    pub fn drop_replica(&mut self, cmd: &pb::DropReplicaCmd) -> Outcome<Chunk> {
        let id = ChunkId(cmd.chunk);
        let mut chunk = self.chunk(cmd.chunk)?;
        let pending = (id, Generation(cmd.r#gen));
        if let Some(row) = self.db.get::<PendingReplicas>(&pending)? {
            self.db.delete::<PendingReplicas>(&pending)?;
            if let Some(replica) = row.replica {
                self.doom(&chunk, replica)?;
            }
            return Ok(chunk);
        }
        if chunk.epoch != cmd.epoch {
            return Err(Errno::ESTALE.into());
        }
        let found =
            chunk.replicas.iter().position(|r| r.r#gen == cmd.r#gen && r.shard == cmd.shard);
        let at = found.ok_or(Errno::ENOENT)?;
        let needed = chunk.layout.map_or(1, |layout| layout.data as usize);
        if chunk.state() == ChunkState::Deleting || chunk.replicas.len() <= needed {
            return Err(Errno::EBUSY.into());
        }
        let old = chunk.replicas.remove(at);
        self.db.delete::<ServerChunks>(&(ServerId(old.server), id))?;
        self.doom(&chunk, old)?;
        chunk.epoch += 1;
        self.put_chunk(&chunk)?;
        Ok(chunk)
    }
}
