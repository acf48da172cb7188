//! Planted bugs of the state machine: each must be caught by the comparison with the model or by the
//! invariants, and the rare branches must be reached. One test, because the switch is the process's.

use mooseng::limits::Limits;
use mooseng::marks;
use mooseng::seam::clock::{ClockSource, install};
use mooseng_proptests::machine::run_seed;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most seeds that a bug may survive.
const SEEDS_MAX: u64 = 20;

/// Never the same twice.
struct Ticks(AtomicU64);

impl ClockSource for Ticks {
    fn mono_ns(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn wall_ns(&self) -> u64 {
        self.mono_ns()
    }
}

#[test]
fn planted_bugs_are_caught() {
    install(Box::new(Ticks(AtomicU64::new(1 << 40))));
    for seed in 0..SEEDS_MAX {
        run_seed(seed, 300, Limits::tiny());
    }
    let hits = marks::hits();
    for mark in [
        "commit refused by rule A3",
        "truncation left to the purge",
        "inode left to the purge",
        "chunk opened again by request",
        "session opened again by nonce",
        "session expired",
        "retry answered from the reply table",
        "reply forgotten",
        "deletion of a referenced chunk refused",
        "replacement refused by epoch",
        "rename onto another name of the same inode",
    ] {
        assert!(hits.contains_key(mark), "never reached: {mark}; reached: {hits:?}");
    }
    std::panic::set_hook(Box::new(|_| ()));
    let mut survivors = Vec::new();
    for bug in ["M19", "M26", "M29", "M39", "M44", "M45", "M47"] {
        let before = marks::bug_reached();
        marks::plant(Some(bug));
        let caught = (0..SEEDS_MAX)
            .find(|seed| catch_unwind(|| drop(run_seed(*seed, 300, Limits::tiny()))).is_err());
        marks::plant(None);
        let reached = marks::bug_reached() - before;
        println!("{bug}: reached {reached} times, caught by seed {caught:?}");
        if caught.is_none() || reached == 0 {
            survivors.push(bug);
        }
    }
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}
