//! Component models (O8): one component over a simulated disk, crashed at every call that changes the disk,
//! with every fate of what was not synced. No network, no time: a run is a loop.

pub mod store;
pub mod tables;
pub mod wal;
