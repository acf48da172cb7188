//! How much of the log goes once a checkpoint covers it. A few entries stay for followers that are a little
//! behind. While one is being sent a snapshot, and until it has caught up from there, everything after that
//! snapshot stays too: under steady load it would need the next snapshot as soon as it has this one, for ever.
//! That is bounded by the bytes of the log.
//!
//! openraft's own policy (0.9.25) knows nothing of snapshots on their way, so it is switched off and told
//! from here.

use super::core::Core;
use super::machine::Machine;
use super::types::{LogId, Master};
use crate::{bug, mark};
use openraft::RaftMetrics;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most segments of the log that stay for followers which are being sent a snapshot.
const SEGMENTS_HELD_MAX: u64 = 32;

/// Followers that are being brought up by a snapshot, with the last entry which theirs covers (openraft's
/// index). Clones share it.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<BTreeMap<u64, u64>>>);

impl Held {
    /// A snapshot up to `covers` is on its way to `target`.
    pub fn begin(&self, target: u64, covers: Option<&LogId>) {
        let covers = covers.map_or(0, |id| id.index);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(target, covers);
    }

    /// The last entry that none of them needs; drops those that no longer need anything held.
    fn upto(&self, metrics: &RaftMetrics<u64, Master>, kept: u64) -> Option<u64> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only a leader brings others up.
        let Some(replication) = &metrics.replication else {
            held.clear();
            return None;
        };
        let last = metrics.last_log_index.unwrap_or(0);
        held.retain(|target, covers| {
            let Some(matched) = replication.get(target) else { return false };
            let matched = matched.map_or(0, |id| id.index);
            let behind = matched < *covers || matched + kept < last;
            *covers = matched.max(*covers);
            behind
        });
        held.values().min().copied()
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Lets go of what is covered by the checkpoint and needed by nobody.
pub async fn purge<M: Machine>(core: &Core<M>) {
    let Some((upto, step)) = target(core) else { return };
    // The log counts from 1, openraft from 0.
    let purged = core.log.with_wal(|wal| wal.purged());
    if purged.is_none_or(|id| id.index.0 + step < upto + 1) {
        // An error is the end of openraft's core, which is reported by whoever watches it.
        let _ = core.raft.trigger().purge_log(upto).await;
    }
}

/// The last entry that may go, and how many must do so at once: each purge is a record and a sync, and while
/// entries are held the point moves all the time.
fn target<M: Machine>(core: &Core<M>) -> Option<(u64, u64)> {
    let metrics = core.raft.metrics();
    let metrics = metrics.borrow();
    let kept = core.limits.log_entries_kept;
    // On a full disk the segment is worth more than what a follower might ask for.
    let own = metrics.snapshot?.index.checked_sub(if core.space.is_low() { 0 } else { kept })?;
    let Some(held) = core.held.upto(&metrics, kept).filter(|held| *held < own && !bug!(PURGE))
    else {
        return Some((own, 0));
    };
    let segments = core.log.with_wal(|wal| wal.segments());
    if segments <= SEGMENTS_HELD_MAX && !core.space.is_low() {
        mark!("raft: the log is kept for a follower that is being sent a snapshot");
        return Some((held, kept));
    }
    mark!("raft: the log is too long to be kept for a follower");
    core.held.clear();
    Some((own, 0))
}
