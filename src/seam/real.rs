//! The real world: Linux.

use super::clock::ClockSource;

/// CLOCK_BOOTTIME and CLOCK_REALTIME.
pub struct RealClock;

impl ClockSource for RealClock {
    fn mono_ns(&self) -> u64 {
        nanos(rustix::time::clock_gettime(rustix::time::ClockId::Boottime))
    }

    fn wall_ns(&self) -> u64 {
        nanos(rustix::time::clock_gettime(rustix::time::ClockId::Realtime))
    }
}

fn nanos(time: rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
