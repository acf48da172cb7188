//! The oracles of the log together, O5 and O13, over all masters of a cluster, and what they have to be told of
//! masters whose disk is taken away.
//!
//! Not checked: as said in `raft` and `persist`.

use super::persist::{Accepted, Lost, Persist};
use super::raft::Raft;
use crate::cluster::full::{Cluster, Hands};
use crate::world::World;
use std::sync::Arc;

/// Watches the masters' log; its clones are one.
#[derive(Clone)]
pub struct Log {
    raft: Raft,
    accepted: Accepted,
    lost: Lost,
}

impl Log {
    /// Watches the masters of `cluster`. Before the cluster is added to the world.
    pub fn watch(world: &Arc<World>, cluster: &Cluster) -> Log {
        let watching = cluster.clone();
        let persist = Persist::new(world, move |leader, index| watching.majority_at(leader, index));
        let (accepted, lost) = (persist.accepted(), persist.lost());
        world.frames.watch(persist);
        let raft = Raft::new(world);
        world.frames.watch(raft.clone());
        cluster.appliers.add(Arc::new(raft.clone()));
        Log { raft, accepted, lost }
    }

    /// An operator of the cluster that tells these oracles what it takes away.
    pub fn operator(&self, world: &Arc<World>, cluster: &Cluster) -> Hands {
        let (lost, of) = (self.lost.clone(), world.clone());
        let (raft, accepted) = (self.raft.clone(), self.accepted.clone());
        Hands {
            cluster: cluster.clone(),
            world: world.clone(),
            lost: Box::new(move |name| lost.add(name, &of.disks(name)[0])),
            replaced: Box::new(move |name| {
                raft.forget(name);
                accepted.forget(name);
            }),
        }
    }
}
