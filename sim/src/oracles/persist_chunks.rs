//! O13 for chunkservers: when a reply to Append with sync, or to Sync, leaves, the replica is durable up to
//! the length that was asked for: a power loss right then would not shorten it.
//!
//! A replica that a master sealed or deleted meanwhile is left out: its end may be cut off again, and no
//! commit will ever name it. So is a disk of which bytes have rotted or to which writes went astray, from then on.
//!
//! Not checked: that the bytes are the right ones (block CRCs and O2 do that).

use crate::failure::violation;
use crate::stats;
use crate::world::World;
use crate::world::frames::Watcher;
use mooseng::pb;
use mooseng::store::{ReplicaId, inspect_replica};
use mooseng::wire::calls::{Append, Delete, Seal, Sync};
use mooseng::wire::frame::Kind;
use mooseng::wire::hook::FrameInfo;
use mooseng::wire::{Call, Role};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The oracle.
pub struct PersistChunks {
    world: Weak<World>,
    asked: Mutex<BTreeMap<(String, u64), (ReplicaId, u64)>>,
    cut: Mutex<BTreeSet<(String, ReplicaId)>>,
}

impl PersistChunks {
    /// Watches all frames of a world.
    pub fn new(world: &Arc<World>) -> PersistChunks {
        PersistChunks {
            world: Arc::downgrade(world),
            asked: Mutex::default(),
            cut: Mutex::default(),
        }
    }

    /// The replica and the length that an answer to this request promises.
    fn promise(frame: &FrameInfo<'_>) -> Option<(ReplicaId, u64)> {
        if frame.method == Append::METHOD {
            let request = pb::AppendRequest::decode(frame.body).ok().filter(|r| r.sync)?;
            let bytes: usize = frame.payload.iter().map(|piece| piece.len()).sum();
            let id = ReplicaId::from_pb(request.replica.as_ref()?)?;
            return Some((id, request.offset + bytes as u64));
        }
        let request = pb::SyncRequest::decode(frame.body).ok()?;
        Some((ReplicaId::from_pb(request.replica.as_ref()?)?, request.up_to))
    }

    /// The replica that this request cuts or deletes.
    fn cuts(frame: &FrameInfo<'_>) -> Option<ReplicaId> {
        let replica = match frame.method {
            Seal::METHOD => pb::SealRequest::decode(frame.body).ok()?.replica,
            Delete::METHOD => pb::DeleteRequest::decode(frame.body).ok()?.replica,
            _ => None,
        };
        ReplicaId::from_pb(replica.as_ref()?)
    }

    fn cut(&self) -> std::sync::MutexGuard<'_, BTreeSet<(String, ReplicaId)>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, node: &str, id: ReplicaId, wanted: u64) {
        let Some(world) = self.world.upgrade() else { return };
        let disks = world.disks(node);
        let lies = disks.iter().any(|disk| disk.lies());
        if lies || self.cut().contains(&(node.to_owned(), id)) {
            return;
        }
        stats::count("O13 chunk syncs checked");
        let durable = disks
            .iter()
            .map(|disk| inspect_replica(disk.durable().as_ref(), id).ok().flatten().unwrap_or(0));
        let durable = durable.max().unwrap_or(0);
        if durable < wanted {
            violation(
                "O13",
                format!("{node} answers {id:?} synced to {wanted}, durable {durable}"),
            );
        }
    }
}

impl Watcher for PersistChunks {
    fn sent(&self, node: &str, frame: &FrameInfo<'_>) {
        let chunk_call = frame.method == Append::METHOD || frame.method == Sync::METHOD;
        if !chunk_call || frame.from.role != Role::Chunkserver || frame.is_request {
            return;
        }
        let key = (node.to_owned(), frame.request_id);
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if let (Kind::Reply, Some((id, wanted))) = (frame.kind, asked) {
            self.check(node, id, wanted);
        }
    }

    fn received(&self, node: &str, frame: &FrameInfo<'_>) {
        let chunk_call = frame.method == Append::METHOD || frame.method == Sync::METHOD;
        if chunk_call
            && frame.kind == Kind::Request
            && let Some(promise) = PersistChunks::promise(frame)
        {
            let key = (node.to_owned(), frame.request_id);
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(key, promise);
        }
        if frame.kind == Kind::Request
            && let Some(id) = PersistChunks::cuts(frame)
        {
            self.cut().insert((node.to_owned(), id));
        }
    }
}
