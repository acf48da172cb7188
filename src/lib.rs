//! MooseNG: a POSIX filesystem over many machines whose master, Raft, chunkserver and client code runs
//! unchanged in real daemons and in a deterministic simulation.
//!
//! Modules are stacked in floors (docs/ARCHITECTURE.md); each imports only from floors below its own.

#[cfg(all(feature = "sim", not(madsim)))]
compile_error!(
    "the feature `sim` needs --cfg madsim, which .cargo/config.toml sets; a set RUSTFLAGS overrides it: unset it"
);

#[cfg(feature = "sim")]
extern crate madsim_tokio as tokio;
#[cfg(feature = "sim")]
extern crate madsim_tonic as tonic;

pub mod errno;
pub mod ids;
pub mod limits;
pub mod marks;
pub mod pb;

pub mod checksum;
pub mod codec;
pub mod erasure;
pub mod seam;

pub mod namespace;
pub mod placement;
pub mod tables;

pub mod wal;
pub mod wire;

pub mod raft;
pub mod store;

pub mod chunkserver;
pub mod client;
pub mod master;
