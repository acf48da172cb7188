//! What the binaries share: configuration, logging, signals, and what each of them does.
// These are the programs: files, processes and threads are their business.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[cfg(not(feature = "sim"))]
pub mod bench;
#[cfg(not(feature = "sim"))]
pub mod chunkserver;
#[cfg(not(feature = "sim"))]
pub mod cli;
#[cfg(not(feature = "sim"))]
pub mod config;
#[cfg(not(feature = "sim"))]
pub mod dev;
#[cfg(not(feature = "sim"))]
pub mod fail;
#[cfg(not(feature = "sim"))]
mod files;
#[cfg(not(feature = "sim"))]
pub mod limits_config;
#[cfg(not(feature = "sim"))]
pub mod logging;
#[cfg(not(feature = "sim"))]
pub mod master;
#[cfg(not(feature = "sim"))]
pub mod metrics;
#[cfg(not(feature = "sim"))]
pub mod mount;
#[cfg(not(feature = "sim"))]
pub mod nodes;
#[cfg(not(feature = "sim"))]
pub mod signals;

/// Says that this binary belongs to the simulated world, and exits with 2.
pub fn refuse_simulated_build() -> ! {
    eprintln!("built with feature sim; build without");
    std::process::exit(2);
}
