//! What must always hold, one property per file. Each says what it does not check.
//!
//! | oracle | property | file |
//! |---|---|---|
//! | O2, O3 | what was written is what is read; what was synced is never lost | `ledger` |
//! | O4 | one state hash per applied index, on all masters and through restarts | `state_hash` |
//! | O12 | the same seed does the same in every process | `crate::trace`, `crate::harness::determinism` |
//! | O13 | what a frame promises is durable when it leaves | `persist`, `persist_chunks` |

pub mod ledger;
pub mod persist;
pub mod persist_chunks;
pub mod state_hash;
