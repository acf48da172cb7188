//! What must always hold, one property per file. Each says what it does not check.
//!
//! | oracle | property | file |
//! |---|---|---|
//! | O4 | one state hash per applied index, on all masters and through restarts | `state_hash` |
//! | O12 | the same seed does the same in every process | `crate::trace`, `crate::harness::determinism` |
//! | O13 | what a frame promises is durable when it leaves | `persist` |

pub mod persist;
pub mod state_hash;
