//! Time that decides: one monotonic clock per node that counts suspend, and a wall clock that only stamps.

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::Duration;

/// A point on this node's monotonic clock, nanoseconds since an arbitrary start. Not comparable between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// Time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time until `later`; zero if it has passed.
    pub fn until(self, later: Mono) -> Duration {
        later.since(self)
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;

    fn add(self, duration: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Mono {
    type Output = Mono;

    fn sub(self, duration: Duration) -> Mono {
        Mono(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where time comes from. The simulator installs one that knows each node's offset and drift.
pub trait ClockSource: Send + Sync + 'static {
    /// Monotonic nanoseconds of the calling node.
    fn mono_ns(&self) -> u64;
    /// Nanoseconds since 1970 by the calling node's wall clock.
    fn wall_ns(&self) -> u64;
}

static SOURCE: OnceLock<Box<dyn ClockSource>> = OnceLock::new();

/// Installs the process's clock; only the first call counts.
pub fn install(source: Box<dyn ClockSource>) {
    let _ = SOURCE.set(source);
}

/// The calling node's monotonic clock. Every deadline, lease and time to live is measured on it.
pub fn now() -> Mono {
    Mono(source().mono_ns())
}

/// The calling node's wall clock, nanoseconds since 1970. Only fills timestamps; what decides never looks at it, but
/// that masters compare their clocks (rule B3).
pub fn wall_ns() -> u64 {
    source().wall_ns()
}

fn source() -> &'static dyn ClockSource {
    SOURCE.get_or_init(default_source).as_ref()
}

#[cfg(not(feature = "sim"))]
fn default_source() -> Box<dyn ClockSource> {
    Box::new(super::real::RealClock)
}

#[cfg(feature = "sim")]
fn default_source() -> Box<dyn ClockSource> {
    Box::new(SimulatedTime)
}

/// Before the simulator installs clocks (in unit tests): simulated time for everybody, zero outside of it.
#[cfg(feature = "sim")]
struct SimulatedTime;

#[cfg(feature = "sim")]
impl ClockSource for SimulatedTime {
    fn mono_ns(&self) -> u64 {
        let elapsed = madsim::time::TimeHandle::try_current().map(|time| time.elapsed());
        elapsed.map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall_ns(&self) -> u64 {
        1_767_225_600_000_000_000 + self.mono_ns()
    }
}
