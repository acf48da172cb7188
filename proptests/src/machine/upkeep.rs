//! What the masters do by themselves: purge, delete, repair, punch holes. No application may notice.

use super::{Answer, Machine, Proposal, SERVERS};
use crate::Draw;
use mooseng::namespace::{dead_ranges, tables};
use mooseng::pb::{self, ChunkState};
use mooseng::tables::Read;

/// Stands where bytes were given back.
const PUNCHED: u8 = 0xee;

impl Machine {
    pub(super) fn all<T: mooseng::tables::Table, R>(&self, read: impl Fn(&T::Key) -> R) -> Vec<R>
    where
        T::Key: Default,
    {
        let first = T::Key::default();
        let rows = self.ns.db().range::<T>(&first, None);
        rows.map(|row| read(&row.expect("tables").0)).collect()
    }

    /// Purges what waits, `max_extents` a command, until nothing does.
    pub fn purge(&mut self, max_extents: u32) {
        for inode in self.all::<tables::Orphans, _>(|key| key.get()) {
            let cmd = pb::PurgeInodeCmd { inode, max_extents };
            self.propose(Proposal::PurgeInode(cmd));
        }
    }

    /// Deletes a chunk if the state machine lets it; its bytes are gone at once.
    pub(super) fn delete(&mut self, chunk: u64) {
        if self.propose(Proposal::DeleteChunk(pb::DeleteChunkCmd { chunk })).errno == 0 {
            self.bytes.remove(&chunk);
        }
    }

    pub(super) fn collect(&mut self, draw: &mut impl Draw) {
        if let Some(&chunk) = draw.pick(&self.all::<tables::Deletable, _>(|key| key.get())) {
            self.delete(chunk);
        }
        let deleting = self.all::<tables::Deleting, _>(|key| *key);
        if let Some(id) = draw.pick(&deleting) {
            let row = self.ns.db().get::<tables::Chunks>(id).expect("tables").expect("a chunk");
            let gone = draw.pick(&row.replicas).copied().into_iter().collect();
            let cmd = pb::ForgetReplicasCmd { chunk: id.get(), gone };
            self.propose(Proposal::ForgetReplicas(cmd));
        }
    }

    pub(super) fn repair(&mut self, draw: &mut impl Draw) {
        let some = self.all::<tables::Chunks, _>(|key| *key);
        let Some(id) = draw.pick(&some) else { return };
        let chunk = self.ns.db().get::<tables::Chunks>(id).expect("tables").expect("a chunk");
        let server = 1 + draw.below(SERVERS);
        let shard = draw.below(2) as u32;
        let cmd = pb::AllocReplicaCmd { chunk: id.get(), shard, server };
        let Some(Answer::Id(r#gen)) = self.propose(Proposal::AllocReplica(cmd)).kind else {
            return;
        };
        let old = chunk.replicas.iter().find(|r| r.shard == shard).copied();
        let epoch = chunk.epoch + u64::from(draw.chance(1, 8));
        let replace = Proposal::ReplaceReplica(pb::ReplaceReplicaCmd {
            chunk: id.get(),
            epoch,
            old_gen: old.map_or(0, |old| old.r#gen),
            replica: Some(pb::Replica { r#gen, shard, server }),
        });
        let epoch = epoch + u64::from(draw.chance(7, 8));
        let chunk = id.get();
        let drop = Proposal::DropReplica(pb::DropReplicaCmd { chunk, epoch, r#gen, shard });
        self.propose(replace);
        if draw.chance(1, 2) {
            self.propose(drop);
        }
    }

    /// Makes holes of what is dead in a chunk; a map that is out of date or not whole units is refused. Bytes
    /// in holes are gone at once.
    pub(super) fn punch(&mut self, draw: &mut impl Draw) {
        let some = self.all::<tables::Chunks, _>(|key| *key);
        let Some(id) = draw.pick(&some) else { return };
        let db = self.ns.db();
        let chunk = db.get::<tables::Chunks>(id).expect("tables").expect("a chunk");
        let known = db.get::<tables::Holes>(id).expect("tables").unwrap_or_default();
        let mut holes = dead_ranges(db, &chunk).expect("tables");
        let odd = draw.below(8);
        if odd == 0 {
            holes.push(pb::Hole { from: chunk.committed_len, end: chunk.committed_len + 100 });
        }
        let version = known.version + u64::from(odd == 1);
        let cmd = pb::PunchChunkCmd { chunk: id.get(), version, holes: holes.clone(), garbage: 9 };
        let outcome = self.propose(Proposal::PunchChunk(cmd));
        if odd < 2 || chunk.state() != ChunkState::Sealed {
            assert_ne!(outcome.errno, 0, "holes {holes:?} of {chunk:?}");
            return;
        }
        let Some(Answer::Id(version)) = outcome.kind else { panic!("{}", outcome.errno) };
        let bytes = self.bytes.entry(id.get()).or_default();
        for hole in &holes {
            let end = (hole.end as usize).min(bytes.len());
            bytes[(hole.from as usize).min(end)..end].fill(PUNCHED);
        }
        let epoch = chunk.epoch + u64::from(draw.chance(1, 4));
        let told = pb::PunchedCmd { chunk: id.get(), epoch, version };
        self.propose(Proposal::Punched(told));
    }
}
