//! The simulated world: nodes, disks, clocks, faults and oracles, all driven by one seed.
#![cfg(feature = "sim")]

extern crate madsim_tokio as tokio;

pub mod cluster;
pub mod disk;
pub mod failure;
pub mod harness;
pub mod log_lines;
pub mod models;
pub mod oracles;
pub mod plan;
pub mod rng;
pub mod scenarios;
pub mod stats;
pub mod trace;
pub mod world;
