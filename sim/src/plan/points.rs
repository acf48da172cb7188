//! Fault points: places in the library (`fault!`) where something rare and legal may happen. Each is active in a
//! quarter of the runs that switch them on, and fires once in so many times then. Which, and how often, follows
//! from the seed and the point's name only, so that a new point changes nothing at the others.

use super::{FaultClass, State, lock};
use crate::rng::{Ratio, Rng};
use crate::{stats, trace};
use std::collections::BTreeMap;

/// How often an active point fires: once in so many times.
const ONE_IN: [u32; 7] = [2, 3, 5, 10, 20, 50, 100];

/// The points of this run.
#[derive(Default)]
pub(super) struct Points {
    on: bool,
    seed: u64,
    /// Those that a scenario is about.
    chosen: BTreeMap<&'static str, Ratio>,
    met: BTreeMap<&'static str, Point>,
}

struct Point {
    rng: Rng,
    /// Never, if it is not active.
    fires: Ratio,
}

impl Point {
    fn draw(seed: u64, name: &str) -> Point {
        let mut rng = Rng::new(seed).fork("fault points").fork(name);
        let active = rng.chance(1, 4);
        let fires = Ratio::one_in(*rng.pick(&ONE_IN));
        Point { rng, fires: if active { fires } else { Ratio::NEVER } }
    }
}

/// A world begins: its fault points are on or off until it heals.
pub fn begin_points(seed: u64, on: bool) {
    lock().state().points = Points { on, seed, ..Points::default() };
    mooseng::marks::watch_faults(fires);
}

/// The scenario is about this point: it is active. To be called when the world has begun.
pub fn choose_point(name: &'static str, fires: Ratio) {
    lock().state().points.chosen.insert(name, fires);
}

/// Whether the point of this name fires now.
fn fires(name: &'static str) -> bool {
    let (first, fires) = lock().state().passes(name);
    if let Some(ratio) = first {
        let text = format!("the fault point \"{name}\" fires once in {} times", ratio.out_of);
        trace::line("world", &text);
    }
    if fires {
        trace::event("fault point", "-", name.as_bytes());
        stats::count("fault: point");
        stats::count(&format!("fault: point {name}"));
    }
    fires
}

impl State {
    /// How often an active point fires, where it is met for the first time; and whether it does now.
    fn passes(&mut self, name: &'static str) -> (Option<Ratio>, bool) {
        let chosen = self.points.chosen.get(name).copied();
        if !(self.points.on || chosen.is_some()) || self.healed {
            return (None, false);
        }
        let seed = self.points.seed;
        let mut first = None;
        let point = self.points.met.entry(name).or_insert_with(|| {
            let mut point = Point::draw(seed, name);
            point.fires = chosen.unwrap_or(point.fires);
            if let Some(given) = &self.given {
                point.fires = given.points.get(name).copied().unwrap_or(Ratio::NEVER);
            }
            if point.fires != Ratio::NEVER {
                first = Some(point.fires);
                self.recorded.points.insert(name.to_owned(), point.fires);
            }
            point
        });
        let fires = point.rng.hit(point.fires);
        (first, fires && self.strikes(FaultClass::FaultPoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use std::collections::BTreeSet;

    const NAMES: [&str; 4] = ["a: b", "c: d", "e", "f"];

    fn state(seed: u64) -> State {
        State { points: Points { on: true, seed, ..Points::default() }, ..State::default() }
    }

    fn passages(state: &mut State, name: &'static str) -> Vec<bool> {
        (0..300).map(|_| state.passes(name).1).collect()
    }

    #[test]
    fn a_quarter_is_active_and_fires_whatever_the_others_do() {
        let (mut active, mut fired) = (0, 0);
        for seed in 0..100 {
            let mut together = state(seed);
            for name in NAMES {
                let alone = passages(&mut state(seed), name);
                assert_eq!(passages(&mut together, name), alone);
                active += usize::from(together.recorded.points.contains_key(name));
                fired += usize::from(alone.contains(&true));
            }
        }
        assert!((70..130).contains(&active), "{active} of 400");
        assert!(fired <= active && fired + 10 > active, "{fired} of {active}");
    }

    #[test]
    fn silent_where_switched_off_left_out_or_healed() {
        let fire = |state: &mut State| passages(state, "e").contains(&true);
        let seed = (0..100).find(|seed| fire(&mut state(*seed))).expect("one in four");
        let mut healed = State { healed: true, ..state(seed) };
        let mut out = State { off: BTreeSet::from([FaultClass::FaultPoint]), ..state(seed) };
        let mut off = state(seed);
        off.points.on = false;
        assert!(!fire(&mut healed) && !fire(&mut out) && !fire(&mut off));
    }

    #[test]
    fn a_given_plan_names_those_that_are_active() {
        let seed = (0..100).find(|seed| passages(&mut state(*seed), "e").contains(&true));
        let mut drawn = state(seed.expect("one in four"));
        let all = passages(&mut drawn, "e");
        let given = |points| State {
            given: Some(Plan { points, ..Plan::default() }),
            ..state(drawn.points.seed)
        };
        assert_eq!(passages(&mut given(drawn.recorded.points.clone()), "e"), all);
        assert!(!passages(&mut given(BTreeMap::new()), "e").contains(&true));
    }
}
