//! The real world: Linux.

mod disk;
mod file;

pub use disk::RealDisk;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance_and_the_wall_is_past_2020() {
        let first = RealClock.mono_ns();
        assert!(RealClock.mono_ns() >= first);
        assert!(RealClock.wall_ns() > 1_577_836_800 * 1_000_000_000);
    }
}
