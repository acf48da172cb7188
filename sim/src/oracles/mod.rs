//! What must always hold, one property per file. Each says what it does not check.
//!
//! | oracle | property | file |
//! |---|---|---|
//! | O1 | the namespace is linearizable | `namespace`, `linear` |
//! | O2, O3 | what was written is what is read; what was synced is never lost | `ledger` |
//! | O4 | one state hash per applied index, on all masters and through restarts | `state_hash` |
//! | O5 | the invariants of Raft | `raft` |
//! | O6 | every chunk has its shards, valid and equal, and nothing else is left over | `chunks`, `garbage` |
//! | O7 | soon after healing everything works again; errors have causes | `liveness`, `errors` |
//! | O11 | a failed write-back is told once to each description | `reporting` |
//! | O12 | the same seed does the same in every process | `crate::trace`, `crate::harness::determinism` |
//! | O13 | what a frame promises is durable when it leaves | `persist`, `persist_chunks` |
//!
//! `log` puts those of the log together.

pub mod chunks;
pub mod errors;
pub mod garbage;
pub mod ledger;
pub mod linear;
pub mod liveness;
pub mod log;
pub mod namespace;
pub mod persist;
pub mod persist_chunks;
pub mod raft;
pub mod reporting;
pub mod state_hash;

use mooseng::raft::Applied;
use std::sync::{Arc, Mutex, PoisonError};

/// An oracle that sees what state machines take in.
pub trait Applies: Send + Sync {
    /// The machine `node` has applied an entry or installed a snapshot.
    fn applied(&self, node: &str, applied: &Applied<'_>);
}

/// Those that watch one group of masters: O4, and whatever a scenario adds.
#[derive(Clone)]
pub struct Appliers(Arc<Mutex<Vec<Arc<dyn Applies>>>>);

impl Default for Appliers {
    fn default() -> Appliers {
        Appliers(Arc::new(Mutex::new(vec![Arc::new(state_hash::StateHash::default())])))
    }
}

impl Appliers {
    /// One more.
    pub fn add(&self, oracle: Arc<dyn Applies>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(oracle);
    }
}

impl Applies for Appliers {
    fn applied(&self, node: &str, applied: &Applied<'_>) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.iter().for_each(|oracle| oracle.applied(node, applied));
    }
}
