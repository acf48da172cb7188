//! O4: whoever applies the log up to an index gets the same state and knows the same members, on every master,
//! after every restart, and whether by entries or by snapshot.
//!
//! Not checked: that this state is the right one; that the hash covers what is on disk (checkpoints are read
//! back at restarts only).

use super::Applies;
use crate::failure::violation;
use crate::stats;
use mooseng::raft::Applied;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a master is at an index: its state's hash, and which entry made its members.
type At = (u64, u64);

/// What was seen first at each index, and where.
#[derive(Clone, Default)]
pub struct StateHash(Arc<Mutex<BTreeMap<u64, (At, String)>>>);

impl StateHash {
    fn reached(&self, node: &str, index: u64, at: At) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, by) = seen.entry(index).or_insert_with(|| (at, node.to_owned())).clone();
        drop(seen);
        if first != at {
            let text = |at: At| format!("state {:016x} and the members of {}", at.0, at.1);
            let (first, here) = (text(first), text(at));
            violation("O4", format!("at index {index} {by} has {first}, {node} has {here}"));
        }
        stats::count("states compared");
    }

    /// The highest index that anybody applied.
    pub fn highest(&self) -> u64 {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.keys().next_back().copied().unwrap_or(0)
    }
}

impl Applies for StateHash {
    fn applied(&self, node: &str, applied: &Applied<'_>) {
        self.reached(node, applied.index.0, (applied.hash, applied.members_since.0));
    }
}
