//! Which replicas were deleted lately.

use super::format::ReplicaId;
use std::collections::{BTreeSet, VecDeque};

/// Ids that are remembered: more than a disk's queue holds, so that whatever waited when a replica was deleted finds its id
/// here.
const IDS_MAX: usize = 4096;

/// The ids of the replicas deleted last, so that an append that was overtaken by a delete does not make one anew which
/// nobody will ever delete.
#[derive(Default)]
pub(super) struct Deleted {
    order: VecDeque<ReplicaId>,
    ids: BTreeSet<ReplicaId>,
}

impl Deleted {
    pub fn insert(&mut self, id: ReplicaId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    pub fn contains(&self, id: ReplicaId) -> bool {
        self.ids.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ChunkId, Generation};

    #[test]
    fn the_last_ones_are_remembered_once_each() {
        let id = |chunk| ReplicaId {
            chunk: ChunkId(chunk),
            generation: Generation(1),
            shard: 0,
            data_shards: 1,
        };
        let mut deleted = Deleted::default();
        for chunk in 0..=IDS_MAX as u64 {
            deleted.insert(id(chunk));
            deleted.insert(id(chunk));
        }
        assert!(!deleted.contains(id(0)));
        assert!((1..=IDS_MAX as u64).all(|chunk| deleted.contains(id(chunk))));
        assert_eq!(deleted.order.len(), deleted.ids.len());
    }
}
