//! The oracles of the log together, O5 and O13, over all masters of a cluster, and what they have to be told of
//! masters whose disk is taken away.
//!
//! Not checked: as said in `raft` and `persist`.

use super::persist::{Accepted, Lost, Persist};
use super::raft::Raft;
use crate::cluster::full::{Cluster, Hands};
use crate::stats;
use crate::world::World;
use crate::world::frames::Watcher;
use mooseng::ids::NodeId;
use mooseng::wire::Role;
use mooseng::wire::hook::FrameInfo;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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
        let log = Log { raft: Raft::new(world), accepted, lost };
        // Before those that it tells.
        world.frames.watch(Renumbered {
            log: log.clone(),
            cluster: cluster.clone(),
            numbers: Mutex::default(),
        });
        world.frames.watch(persist);
        world.frames.watch(log.raft.clone());
        cluster.appliers.add(Arc::new(log.raft.clone()));
        log
    }

    /// The machine speaks for another member of the group from now on.
    fn forget(&self, node: &str) {
        self.raft.forget(node);
        self.accepted.forget(node);
    }

    /// An operator of the cluster that tells these oracles what it takes away.
    pub fn operator(&self, world: &Arc<World>, cluster: &Cluster) -> Hands {
        let (lost, of) = (self.lost.clone(), world.clone());
        let log = self.clone();
        Hands {
            cluster: cluster.clone(),
            world: world.clone(),
            lost: Box::new(move |name| lost.add(name, &of.disks(name)[0])),
            replaced: Box::new(move |name| log.forget(name)),
        }
    }
}

/// Notices that a machine has entered the group anew, under another number: what it promised under the former one
/// is not promised any more.
struct Renumbered {
    log: Log,
    cluster: Cluster,
    numbers: Mutex<BTreeMap<String, NodeId>>,
}

impl Watcher for Renumbered {
    fn sent(&self, node: &str, frame: &FrameInfo<'_>) {
        // What a connection was told of its machine may be older than the number.
        let running = self.cluster.get(node).filter(|_| frame.from.role == Role::Master);
        let Some(number) = running.map(|raft| raft.node()) else { return };
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = numbers.insert(node.to_owned(), number);
        if before.is_some_and(|before| before != number) {
            stats::count("masters under another number");
            self.log.forget(node);
        }
    }
}
