//! The faults and the workload of a run as one list. A run draws them from its seed and writes them down here;
//! a run that is given a plan carries it out instead of drawing. A whole plan, carried out, is the same run
//! again, event for event; a part of it is a smaller one.
//!
//! One process runs one seed, so this state is the process's.

mod classes;
mod frames;
mod points;
mod strikes;

pub use classes::FaultClass;
pub use frames::{Fate, FrameFault, FrameKey};
pub use points::{begin_points, choose_point};
pub use strikes::{Planned, Strike};

use crate::rng::Ratio;
use crate::world::Options;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Everything that a seed decided from the outside of the code under test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What the run chose at its start; `None` if it has no world.
    pub options: Option<Options>,
    /// The injector's steps, in order.
    pub strikes: Vec<Planned>,
    /// Further damage, by the number of the step that did it: what a step does to whom follows from its number
    /// and the state of the world.
    #[serde(default)]
    pub damage: BTreeMap<u64, String>,
    /// What happened to single frames and to the handlers of single requests.
    pub frames: Vec<FrameFault>,
    /// The fault points that are active, and how often each fires.
    #[serde(default)]
    pub points: BTreeMap<String, Ratio>,
    /// By client: which of its operations it performs until the world heals, the others it skips.
    pub programs: BTreeMap<String, Range<u64>>,
    /// By client: those of them that it skips too.
    #[serde(default)]
    pub skipped: BTreeMap<String, BTreeSet<u64>>,
}

impl Plan {
    /// Strikes of the injector in it.
    pub fn strikes(&self) -> usize {
        self.strikes.iter().filter(|planned| planned.strike.is_some()).count()
    }

    /// Strikes and further damage, frame faults and operations in it.
    pub fn size(&self) -> (usize, usize, u64) {
        let strikes = self.strikes() + self.damage.len();
        let operations: u64 = self.programs.values().map(|range| range.end - range.start).sum();
        let skipped: usize = self.skipped.values().map(BTreeSet::len).sum();
        (strikes, self.frames.len(), operations.saturating_sub(skipped as u64))
    }
}

#[derive(Default)]
struct State {
    given: Option<Plan>,
    recorded: Plan,
    /// How often each key of a frame was seen.
    frames_seen: BTreeMap<FrameKey, u64>,
    /// The given plan's frame faults.
    fates: BTreeMap<(FrameKey, u64), Fate>,
    points: points::Points,
    healed: bool,
    /// Classes of faults that are left out.
    off: BTreeSet<FaultClass>,
    /// How often each class struck.
    struck: BTreeMap<FaultClass, u64>,
}

impl State {
    /// Whether a fault of this class may strike, which it then does.
    fn strikes(&mut self, class: FaultClass) -> bool {
        let on = !self.off.contains(&class);
        if on {
            *self.struck.entry(class).or_default() += 1;
        }
        on
    }
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The process's plan.
struct Guard(MutexGuard<'static, Option<State>>);

impl Guard {
    fn state(&mut self) -> &mut State {
        self.0.get_or_insert_with(State::default)
    }
}

fn lock() -> Guard {
    Guard(STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Carries out this plan instead of drawing; call before the run begins.
pub fn give(plan: Plan) {
    let mut guard = lock();
    let state = guard.state();
    let fates = plan.frames.iter().map(|fault| ((fault.frame.clone(), fault.nth), fault.fate));
    state.fates = fates.collect();
    state.given = Some(plan);
}

/// Leaves these classes of faults out; call before the run begins.
pub fn leave_out(classes: BTreeSet<FaultClass>) {
    lock().state().off = classes;
}

/// A fault of this class is about to strike: whether it may.
pub fn strikes(class: FaultClass) -> bool {
    lock().state().strikes(class)
}

/// Whether faults of this class may strike.
pub fn permits(class: FaultClass) -> bool {
    !lock().state().off.contains(&class)
}

/// How often each class of faults struck.
pub fn struck() -> BTreeMap<FaultClass, u64> {
    lock().state().struck.clone()
}

/// The options to run with: the given plan's, or those drawn.
pub fn options(drawn: Options) -> Options {
    let mut guard = lock();
    let state = guard.state();
    let given = state.given.as_ref().and_then(|plan| plan.options.clone());
    let mut options = given.unwrap_or(drawn);
    options.off.append(&mut state.off);
    state.off.clone_from(&options.off);
    let clock = &mut options.clock;
    for (most, class) in [
        (&mut clock.offset_ms_max, FaultClass::ClockOffset),
        (&mut clock.drift_ppm_max, FaultClass::ClockDrift),
    ] {
        if *most > 0 && !state.strikes(class) {
            *most = 0;
        }
    }
    state.recorded.options = Some(options.clone());
    options
}

/// The steps of the given plan.
pub fn given_strikes() -> Option<Vec<Planned>> {
    lock().state().given.as_ref().map(|plan| plan.strikes.clone())
}

/// Writes a step of the injector down.
pub fn record_strike(planned: Planned) {
    lock().state().recorded.strikes.push(planned);
}

/// Step `number` of further damage is about to do this: whether it may.
pub fn damages(number: u64, what: &str) -> bool {
    let mut guard = lock();
    let state = guard.state();
    let left_out = state.given.as_ref().is_some_and(|plan| !plan.damage.contains_key(&number));
    if !left_out {
        state.recorded.damage.insert(number, what.to_owned());
    }
    !left_out
}

/// What happens to a frame of this key: as the given plan says, or as `draw` does.
pub fn frame_fate(key: FrameKey, draw: impl FnOnce() -> Option<Fate>) -> Option<Fate> {
    let mut guard = lock();
    let state = guard.state();
    let seen = state.frames_seen.entry(key.clone()).or_default();
    *seen += 1;
    let nth = *seen;
    let at = (key, nth);
    let fate = match state.given {
        Some(_) => state.fates.get(&at).copied(),
        None => draw(),
    }?;
    if !state.strikes(fate.class(at.0.request)) {
        return None;
    }
    state.recorded.frames.push(FrameFault { frame: at.0, nth, fate });
    Some(fate)
}

/// A client is about to begin an operation: whether it must leave it out.
pub fn skips(client: &str) -> bool {
    let mut guard = lock();
    let state = guard.state();
    if state.healed {
        return false;
    }
    let begun = state.recorded.programs.entry(client.to_owned()).or_insert(0..0);
    begun.end += 1;
    let number = begun.end - 1;
    let Some(given) = &state.given else { return false };
    let skipped = given.skipped.get(client).is_some_and(|skipped| skipped.contains(&number));
    skipped || !given.programs.get(client).is_some_and(|range| range.contains(&number))
}

/// The faults are over: from now on nothing is skipped.
pub fn healed() {
    lock().state().healed = true;
}

/// What has been drawn or carried out so far.
pub fn recorded() -> Plan {
    lock().state().recorded.clone()
}
