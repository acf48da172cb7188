//! `mooseng-sim`: runs, repeats, sweeps, reduces and draws simulated runs.

mod cli;

use clap::Parser;
use mooseng_sim::{harness, scenarios};

fn main() {
    harness::child_main(scenarios::ALL);
    match cli::Args::parse().run() {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprintln!("mooseng-sim: {error}");
            std::process::exit(2);
        }
    }
}
