//! Counters of this run: operations completed, fsyncs acknowledged, faults injected. A sweep adds them up and
//! fails if one that its scenario demands is zero.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

static COUNTS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Adds to a counter. Faults are named "fault: ...".
pub fn add(name: &str, count: u64) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    match counts.get_mut(name) {
        Some(total) => *total += count,
        None => _ = counts.insert(name.to_owned(), count),
    }
}

/// Counts one.
pub fn count(name: &str) {
    add(name, 1);
}

/// One counter.
pub fn get(name: &str) -> u64 {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
}

/// All counters.
pub fn all() -> BTreeMap<String, u64> {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Acknowledged operations of clients.
pub const OPERATIONS: &str = "operations";
/// Acknowledged fsyncs.
pub const FSYNCS: &str = "fsyncs acked";
