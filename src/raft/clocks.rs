//! Rule B3: what this master knows of its peers' wall clocks, and how far its own is from their median.
//!
//! The leader reads the others' clocks from their answers to appends and tells them the median, so that whoever
//! leads next knows what it is worth. All readings are carried on by this node's monotonic clock: a step of its
//! own wall clock shows at once.

use crate::seam::{self, Mono};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Answers that took longer say too little about the clock at the other end.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);
/// Readings older than this count as none.
const FRESH: Duration = Duration::from_secs(10);

/// A wall clock, milliseconds since 1970, at a moment of this node's monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall_ms: i64,
    at: Mono,
}

impl Reading {
    fn fresh(&self, now: Mono) -> Option<i64> {
        let age = now.since(self.at);
        (age <= FRESH).then(|| self.wall_ms.saturating_add(millis(age)))
    }
}

#[derive(Default)]
struct State {
    peers: BTreeMap<u64, Reading>,
    median: Option<Reading>,
    /// Whether another voter's clock was near it when it was taken.
    others_near: bool,
}

/// See the module.
pub struct Clocks {
    state: Mutex<State>,
    limit_ms: i64,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The wall clock as it goes into messages; never 0, which means unknown there.
pub fn wall_ms() -> u64 {
    (seam::wall_ns() / 1_000_000).max(1)
}

/// The middle one, or the mean of the two in the middle.
fn middle(mut clocks: Vec<i64>) -> Option<i64> {
    clocks.sort_unstable();
    let (low, high) = (clocks.get(clocks.len().checked_sub(1)? / 2)?, clocks[clocks.len() / 2]);
    Some(low + (high - low) / 2)
}

impl Clocks {
    /// Nothing is known yet; clocks further apart than `limit` count as wrong.
    pub fn new(limit: Duration) -> Clocks {
        Clocks { state: Mutex::default(), limit_ms: millis(limit) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer's answer to a call sent at `sent` says what its clock showed (0: it does not say).
    pub fn answered(&self, node: u64, wall_ms: u64, sent: Mono) {
        let at = seam::now();
        let took = at.since(sent);
        let Ok(wall_ms) = i64::try_from(wall_ms) else { return };
        if wall_ms > 0 && took <= ROUND_TRIP_MAX {
            let wall_ms = wall_ms.saturating_add(millis(took / 2));
            self.state().peers.insert(node, Reading { wall_ms, at });
        }
    }

    /// Whether a peer answered lately.
    pub fn answers(&self, node: u64, within: Duration) -> bool {
        self.state().peers.get(&node).is_some_and(|read| seam::now().since(read.at) <= within)
    }

    /// The leader was heard, and says what the median is (0: it does not know).
    pub fn told(&self, median_ms: u64) {
        let at = seam::now();
        let mut state = self.state();
        if let Some(wall_ms) = i64::try_from(median_ms).ok().filter(|ms| *ms > 0) {
            state.median = Some(Reading { wall_ms, at });
        }
    }

    /// On the leader: takes the median of the voters' clocks, if enough of them are known. A median that is near
    /// to nobody's clock (of two that differ, say) is none.
    pub fn look(&self, me: u64, voters: &[u64]) {
        let (at, own) = (seam::now(), wall_ms().cast_signed());
        let mut state = self.state();
        let read = |id: &u64| match *id == me {
            true => Some(own),
            false => state.peers.get(id)?.fresh(at),
        };
        let clocks: Vec<i64> = voters.iter().filter_map(read).collect();
        if clocks.len() <= voters.len() / 2 {
            return;
        }
        let near = |median: &i64| clocks.iter().any(|ms| ms.abs_diff(*median) <= self.most());
        let median = middle(clocks.clone()).filter(near);
        if let Some(wall_ms) = median {
            let mut others = voters.iter().filter(|id| **id != me).filter_map(read);
            let others_near = others.any(|ms| ms.abs_diff(wall_ms) <= self.most());
            state.others_near = others_near;
            state.median = Some(Reading { wall_ms, at });
        }
    }

    fn most(&self) -> u64 {
        self.limit_ms.unsigned_abs()
    }

    fn median(&self) -> Option<i64> {
        self.state().median?.fresh(seam::now())
    }

    /// The median as it goes into messages; 0 if it is not known, or if nobody but this leader is near it: the others
    /// must not leave the next election to each other.
    pub fn median_ms(&self) -> u64 {
        if !self.state().others_near {
            return 0;
        }
        self.median().map_or(0, i64::cast_unsigned)
    }

    /// By how much this node's clock is ahead (behind, if negative) of the median, milliseconds, if that is too much.
    pub fn off_by(&self) -> Option<i64> {
        let median = self.median()?;
        let ahead = wall_ms().cast_signed().saturating_sub(median);
        (ahead.unsigned_abs() > self.most()).then_some(ahead)
    }

    /// What a command is stamped with, nanoseconds since 1970: this node's clock, or the median if that is wrong.
    pub fn stamp_ns(&self) -> u64 {
        match (self.off_by(), self.median()) {
            (Some(_), Some(median)) => median.unsigned_abs().saturating_mul(1_000_000),
            _ => seam::wall_ns(),
        }
    }

    /// The others whose clocks are near the median, the nearest first.
    pub fn near(&self, voters: &[u64]) -> Vec<u64> {
        let Some(median) = self.median() else { return Vec::new() };
        let (now, state) = (seam::now(), self.state());
        let apart = |id: &u64| Some(state.peers.get(id)?.fresh(now)?.abs_diff(median));
        let known = voters.iter().filter_map(|id| Some((apart(id)?, *id)));
        let mut near: Vec<(u64, u64)> = known.filter(|(apart, _)| *apart <= self.most()).collect();
        near.sort_unstable();
        near.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// Three masters, of which this is the first; the others' clocks are so far ahead of its own.
    fn among(ahead: [i64; 2]) -> Clocks {
        let clocks = Clocks::new(Duration::from_secs(5));
        for (node, ahead) in [2, 3].into_iter().zip(ahead) {
            clocks.answered(node, wall_ms().saturating_add_signed(ahead), seam::now());
        }
        clocks.look(1, &[1, 2, 3]);
        clocks
    }

    #[test]
    fn the_one_that_differs_from_both_is_off() {
        let clocks = among([HOUR_MS, HOUR_MS + 20]);
        assert!(clocks.off_by().is_some_and(|ms| (ms + HOUR_MS).abs() < 1_000));
        assert_eq!(clocks.near(&[1, 2, 3]), [2, 3]);
        let late = seam::wall_ns().abs_diff(clocks.stamp_ns()) / 1_000_000;
        assert!(late.abs_diff(HOUR_MS.unsigned_abs()) < 1_000, "stamps are the median's");
    }

    #[test]
    fn the_one_in_the_middle_is_not_off() {
        for ahead in [[0, HOUR_MS], [-HOUR_MS, 0], [-HOUR_MS, HOUR_MS], [4_000, 4_900]] {
            assert_eq!(among(ahead).off_by(), None, "{ahead:?}");
        }
    }

    #[test]
    fn two_that_differ_say_nothing() {
        let clocks = Clocks::new(Duration::from_secs(5));
        clocks.answered(2, wall_ms().saturating_add_signed(HOUR_MS), seam::now());
        clocks.look(1, &[1, 2]);
        assert_eq!((clocks.off_by(), clocks.median_ms()), (None, 0));
        clocks.look(1, &[1, 2, 3, 4]);
        assert_eq!((clocks.off_by(), clocks.median_ms()), (None, 0));
    }

    #[test]
    fn whoever_follows_believes_its_leader() {
        let clocks = Clocks::new(Duration::from_secs(5));
        clocks.told(0);
        assert_eq!(clocks.off_by(), None);
        clocks.told(wall_ms() + 7_000);
        assert!(clocks.off_by().is_some_and(|ms| (ms + 7_000).abs() < 1_000));
    }
}
