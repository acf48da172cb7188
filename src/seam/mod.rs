//! The seam between the code and the world: clock, disk, random numbers, work that blocks. Tasks, timers and
//! sockets are tokio's names, which are madsim's under the feature `sim`. Nothing outside this module (and
//! the simulator) touches the operating system.

pub mod clock;
pub mod disk;
pub mod rng;
pub mod work;

#[cfg(not(feature = "sim"))]
pub mod real;

pub use clock::{Mono, now, wall_ns};
pub use disk::{DIRECT_ALIGN, Disk, DiskFile, DiskLock, OpenMode, Space, is_full, is_out_of_files};
pub use work::{blocking, blocking_here, settle, spawn, spawn_eager};
#[cfg(feature = "sim")]
pub use work::{on_stall, owe, owed};
