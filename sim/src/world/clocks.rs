//! One clock per node: a wall clock with offset, drift and steps, and a monotonic one that drifts with it.

use crate::trace;
use madsim::task::NodeId;
use mooseng::seam::clock::{self, ClockSource};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The first of January 2026.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;

/// A node's clock: readings at an anchor, and how fast it runs from there.
#[derive(Clone, Copy, Debug)]
struct NodeClock {
    anchor_ns: u64,
    mono_ns: u64,
    wall_ns: u64,
    drift_ppm: i64,
}

impl NodeClock {
    fn new() -> NodeClock {
        NodeClock { anchor_ns: 0, mono_ns: 0, wall_ns: EPOCH_NS, drift_ppm: 0 }
    }

    fn passed(&self, now_ns: u64) -> u64 {
        let passed = now_ns.saturating_sub(self.anchor_ns);
        let drifted = i128::from(passed) * i128::from(1_000_000 + self.drift_ppm) / 1_000_000;
        u64::try_from(drifted).unwrap_or(0)
    }

    /// Moves the anchor to now, so that changes apply from here on.
    fn settle(&mut self, now_ns: u64) {
        let passed = self.passed(now_ns);
        self.mono_ns += passed;
        self.wall_ns += passed;
        self.anchor_ns = now_ns;
    }
}

static CLOCKS: Mutex<BTreeMap<NodeId, NodeClock>> = Mutex::new(BTreeMap::new());

fn with<T>(node: NodeId, work: impl FnOnce(&mut NodeClock) -> T) -> T {
    let mut clocks = CLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    work(clocks.entry(node).or_insert_with(NodeClock::new))
}

struct Clocks;

impl ClockSource for Clocks {
    fn mono_ns(&self) -> u64 {
        let now = trace::now_ns();
        with(madsim::plugin::node(), |clock| clock.mono_ns + clock.passed(now))
    }

    fn wall_ns(&self) -> u64 {
        let now = trace::now_ns();
        with(madsim::plugin::node(), |clock| clock.wall_ns + clock.passed(now))
    }
}

/// Makes these the process's clocks.
pub fn install() {
    clock::install(Box::new(Clocks));
}

/// The node's clock runs this much faster (slower if negative) from now on.
pub fn drift(node: NodeId, ppm: i64) {
    let now = trace::now_ns();
    with(node, |clock| {
        clock.settle(now);
        clock.drift_ppm = ppm;
    });
}

/// The node's wall clock jumps.
pub fn step_wall(node: NodeId, by_ms: i64) {
    let now = trace::now_ns();
    with(node, |clock| {
        clock.settle(now);
        clock.wall_ns = clock.wall_ns.saturating_add_signed(by_ms * 1_000_000);
    });
}

/// What the node's wall clock shows, milliseconds since 1970.
pub fn wall_ms(node: NodeId) -> i64 {
    let now = trace::now_ns();
    with(node, |clock| ((clock.wall_ns + clock.passed(now)) / 1_000_000).cast_signed())
}

/// The machine starts anew: its monotonic clock begins somewhere else.
pub fn reboot(node: NodeId, mono_ns: u64) {
    let now = trace::now_ns();
    with(node, |clock| {
        clock.settle(now);
        clock.mono_ns = mono_ns;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_and_steps_apply_from_now_on() {
        let mut clock = NodeClock::new();
        clock.settle(1_000_000_000);
        assert_eq!(clock.mono_ns, 1_000_000_000);
        clock.drift_ppm = 500;
        clock.settle(2_000_000_000);
        assert_eq!(clock.mono_ns, 2_000_500_000);
        clock.drift_ppm = -500;
        clock.settle(3_000_000_000);
        assert_eq!(clock.mono_ns, 3_000_000_000);
        assert_eq!(clock.wall_ns, EPOCH_NS + 3_000_000_000);
    }
}
