//! Everything that a run may choose, drawn from the seed into one struct that is printed whole.

use super::damage::DamageOptions;
use crate::plan::FaultClass;
use crate::rng::{Ratio, Rng};
use mooseng::limits::Limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A run's choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The seed they were drawn from.
    pub seed: u64,
    /// Masters.
    pub masters: u32,
    /// Chunkservers.
    pub chunkservers: u32,
    /// Clients.
    pub clients: u32,
    /// Data shards of the file class.
    pub data: u32,
    /// Parity shards (or further copies).
    pub parity: u32,
    /// `tiny` limits or those of production.
    pub tiny: bool,
    /// How long an operation may take with `tiny` limits, seconds.
    #[serde(default = "usual_deadline_s")]
    pub deadline_s: u64,
    /// Length of the phase with faults, simulated milliseconds.
    pub chaos_ms: u64,
    /// The network.
    pub net: NetOptions,
    /// The clocks.
    pub clock: ClockOptions,
    /// What is injected.
    pub faults: FaultOptions,
    /// Damage beyond crashes.
    #[serde(default)]
    pub damage: DamageOptions,
    /// Fault points of the library are on: some of them, drawn from the seed (`plan::begin_points`).
    #[serde(default)]
    pub points: bool,
    /// Classes of faults that are left out although they are drawn.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub off: BTreeSet<FaultClass>,
}

/// Latency of messages, and what happens to single frames.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetOptions {
    /// Least latency, microseconds.
    pub latency_us_min: u64,
    /// Highest latency, microseconds.
    pub latency_us_max: u64,
    /// Requests and replies that vanish.
    pub lose: Ratio,
    /// Where not 0, requests are lost so many in a row, each machine's by themselves; the next few arrive, and so
    /// do all replies.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_in_a_row: u32,
    /// Those that arrive twice.
    pub duplicate: Ratio,
    /// Those that come late.
    pub delay: Ratio,
    /// Highest extra delay, milliseconds.
    pub delay_ms_max: u64,
    /// Frames at which the connection breaks.
    pub cut: Ratio,
    /// Handlers that are dropped at one of their awaits.
    pub cancel: Ratio,
    /// Calls whose frames and handlers all this strikes; empty for every call.
    #[serde(default)]
    pub only: Vec<String>,
}

/// Clocks of the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockOptions {
    /// Largest offset of a wall clock, milliseconds.
    pub offset_ms_max: u64,
    /// Largest drift, parts per million.
    pub drift_ppm_max: u64,
}

/// Which faults the injector chooses from, and how often it strikes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultOptions {
    /// Mean pause between two injections, milliseconds.
    pub pause_ms: u64,
    /// Kinds that are on in this run.
    pub kinds: Vec<FaultKind>,
}

/// What the injector can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultKind {
    /// kill -9 of a process, restarted later.
    Kill,
    /// One machine loses power.
    PowerLoss,
    /// All machines lose power at once.
    Blackout,
    /// A process stops for a while.
    Pause,
    /// Two groups cannot reach each other.
    Partition,
    /// One direction between two groups is cut.
    OneWay,
    /// One node reaches nobody.
    Isolate,
    /// Messages take up to half a second.
    Lag,
    /// A wall clock jumps by up to an hour.
    ClockStep,
    /// A disk is slow.
    SlowDisk,
    /// Frames between two machines are late.
    SlowLink,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 11] = [
        FaultKind::Kill,
        FaultKind::PowerLoss,
        FaultKind::Blackout,
        FaultKind::Pause,
        FaultKind::Partition,
        FaultKind::OneWay,
        FaultKind::Isolate,
        FaultKind::Lag,
        FaultKind::ClockStep,
        FaultKind::SlowDisk,
        FaultKind::SlowLink,
    ];

    /// The class that it belongs to.
    pub fn class(self) -> FaultClass {
        match self {
            FaultKind::Kill => FaultClass::Kill,
            FaultKind::PowerLoss => FaultClass::PowerLoss,
            FaultKind::Blackout => FaultClass::Blackout,
            FaultKind::Pause => FaultClass::Pause,
            FaultKind::Partition => FaultClass::Partition,
            FaultKind::OneWay => FaultClass::OneWayCut,
            FaultKind::Isolate => FaultClass::Isolation,
            FaultKind::Lag => FaultClass::Lag,
            FaultKind::ClockStep => FaultClass::ClockStep,
            FaultKind::SlowDisk => FaultClass::SlowDisk,
            FaultKind::SlowLink => FaultClass::SlowLink,
        }
    }

    /// The counter that shows that it was injected.
    pub fn counter(self) -> &'static str {
        match self {
            FaultKind::Kill => "fault: kill",
            FaultKind::PowerLoss => "fault: power loss",
            FaultKind::Blackout => "fault: blackout",
            FaultKind::Pause => "fault: pause",
            FaultKind::Partition => "fault: partition",
            FaultKind::OneWay => "fault: one-way cut",
            FaultKind::Isolate => "fault: isolation",
            FaultKind::Lag => "fault: lag",
            FaultKind::ClockStep => "fault: clock step",
            FaultKind::SlowDisk => "fault: slow disk",
            FaultKind::SlowLink => "fault: slow link",
        }
    }
}

/// Erasure-coded layouts, data and parity shards.
const LAYOUTS: [(u32, u32); 4] = [(2, 1), (3, 2), (4, 2), (6, 3)];

impl Options {
    /// Draws a run's choices. Each kind of fault is off in a third of the runs (swarm), so that the others
    /// get deep.
    pub fn draw(seed: u64) -> Options {
        let mut rng = Rng::new(seed).fork("options");
        let latency_us_min = rng.range(50, 1500);
        let mut kinds = FaultKind::ALL.to_vec();
        kinds.retain(|_| rng.chance(2, 3));
        Options {
            seed,
            masters: *rng.pick(&[1, 3, 3, 3, 5]),
            chunkservers: Options::servers(seed, rng.range(3, 8) as u32),
            clients: rng.range(1, 4) as u32,
            data: 1,
            parity: rng.range(0, 3) as u32,
            tiny: rng.chance(4, 5),
            deadline_s: usual_deadline_s(),
            chaos_ms: rng.range(5_000, 9_000),
            net: NetOptions::draw(&mut rng, latency_us_min),
            clock: ClockOptions {
                offset_ms_max: *rng.pick(&[0, 50, 5_000, 3_600_000]),
                drift_ppm_max: *rng.pick(&[0, 100, 500]),
            },
            faults: FaultOptions { pause_ms: rng.range(150, 1_500), kinds },
            damage: DamageOptions::default(),
            points: false,
            off: BTreeSet::new(),
        }
    }

    /// Eight or nine chunkservers now and then, or as many as drawn.
    fn servers(seed: u64, drawn: u32) -> u32 {
        let mut rng = Rng::new(seed).fork("more servers");
        if rng.chance(1, 8) { rng.range(8, 10) as u32 } else { drawn }
    }

    /// Fault points on, in half of the runs.
    pub fn with_points(self) -> Options {
        let points = Rng::new(self.seed).fork("points").chance(1, 2);
        Options { points, ..self }
    }

    /// In half of the runs with `tiny` limits an operation is given up so early that it happens.
    pub fn with_deadline(self) -> Options {
        let mut rng = Rng::new(self.seed).fork("operation deadline");
        let usual = usual_deadline_s();
        Options { deadline_s: *rng.pick(&[usual, usual, 12, 4]), ..self }
    }

    /// An erasure-coded layout that so many chunkservers can hold, data and parity shards.
    pub fn draw_layout(&self) -> (u32, u32) {
        let mut rng = Rng::new(self.seed).fork("layout");
        let mut fit = LAYOUTS.to_vec();
        fit.retain(|(data, parity)| data + parity <= self.chunkservers);
        if fit.is_empty() { (1, self.parity) } else { *rng.pick(&fit) }
    }

    /// The limits to run with. Log segments are always small: oracles read the log over and over.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::new(match self.tiny {
            true => {
                let operation_deadline = Duration::from_secs(self.deadline_s);
                Limits { operation_deadline, ..Limits::tiny() }
            }
            false => Limits { wal_segment_bytes: 256 << 10, ..Limits::production() },
        })
    }

    /// Without any fault: for scenarios that add their own.
    pub fn calm(mut self) -> Options {
        self.net = NetOptions { latency_us_min: 100, latency_us_max: 1000, ..NetOptions::calm() };
        self.faults.kinds.clear();
        self.points = false;
        self
    }
}

fn usual_deadline_s() -> u64 {
    Limits::tiny().operation_deadline.as_secs()
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl NetOptions {
    fn calm() -> NetOptions {
        NetOptions {
            latency_us_min: 100,
            latency_us_max: 1000,
            lose: Ratio::NEVER,
            lost_in_a_row: 0,
            duplicate: Ratio::NEVER,
            delay: Ratio::NEVER,
            delay_ms_max: 0,
            cut: Ratio::NEVER,
            cancel: Ratio::NEVER,
            only: Vec::new(),
        }
    }

    fn draw(rng: &mut Rng, latency_us_min: u64) -> NetOptions {
        let mut ratio = |most: u64| match rng.chance(1, 2) {
            true => Ratio::one_in((most + rng.below(most * 9)) as u32),
            false => Ratio::NEVER,
        };
        let (lose, duplicate, delay) = (ratio(50), ratio(50), ratio(20));
        let (cut, cancel) = (ratio(500), ratio(200));
        NetOptions {
            latency_us_min,
            latency_us_max: latency_us_min + rng.range(100, 4_000),
            lose,
            lost_in_a_row: 0,
            duplicate,
            delay,
            delay_ms_max: rng.range(10, 800),
            cut,
            cancel,
            only: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::damage::DamageKind;

    #[test]
    fn every_kind_is_on_in_some_run_and_off_in_some() {
        let runs: Vec<Options> = (0..100).map(Options::draw).collect();
        for kind in FaultKind::ALL {
            let on = runs.iter().filter(|run| run.faults.kinds.contains(&kind)).count();
            assert!((40..95).contains(&on), "{kind:?}: {on}");
        }
        let masters: BTreeSet<u32> = runs.iter().map(|run| run.masters).collect();
        assert_eq!(masters, BTreeSet::from([1, 3, 5]));
        let servers: BTreeSet<u32> = runs.iter().map(|run| run.chunkservers).collect();
        assert_eq!(servers, (3..=9).collect());
    }

    #[test]
    fn every_layout_is_drawn_and_fits() {
        let runs: Vec<Options> = (0..200).map(Options::draw).collect();
        let fits = |run: &&Options| {
            let (data, parity) = run.draw_layout();
            data + parity <= run.chunkservers
        };
        assert_eq!(runs.iter().filter(fits).count(), runs.len());
        let layouts: BTreeSet<(u32, u32)> = runs.iter().map(Options::draw_layout).collect();
        assert_eq!(layouts, BTreeSet::from(LAYOUTS));
    }

    #[test]
    fn every_kind_has_a_class_of_its_own() {
        let kinds = FaultKind::ALL.map(FaultKind::class).into_iter();
        let classes: BTreeSet<FaultClass> =
            kinds.chain(DamageKind::ALL.map(DamageKind::class)).collect();
        assert_eq!(classes.len(), FaultKind::ALL.len() + DamageKind::ALL.len());
    }

    #[test]
    fn options_survive_their_printed_form() {
        let options = Options::draw(7);
        let text = serde_json::to_string(&options).expect("prints");
        assert_eq!(serde_json::from_str::<Options>(&text).expect("parses"), options);
        // One that was printed before there was a choice of deadlines.
        let older = text.replace("\"deadline_s\":120,", "");
        assert!(older.len() < text.len());
        assert_eq!(serde_json::from_str::<Options>(&older).expect("parses"), options);
    }
}
