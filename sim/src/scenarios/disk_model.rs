//! Random programs on one simulated disk with power losses in between. Checked: whatever was synced, name and
//! bytes, and not touched since, is there unchanged. Not checked: what may be left of un-synced work.

use crate::disk::SimDisk;
use crate::failure::violation;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::{stats, trace};
use mooseng::seam::{Disk, OpenMode};
use std::collections::BTreeMap;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "disk_model",
    about: "random programs on one disk with power losses; what was synced survives",
    seeds: 40,
    limit: Duration::from_secs(60),
    must_count: &[stats::OPERATIONS, stats::FSYNCS, "fault: power loss", "fault: lost sectors"],
    run: |seed| Box::pin(run(seed)),
};

const FILES: [&str; 5] = ["a", "b", "c", "d/e", "d/f"];

/// What is known to be durable.
#[derive(Default)]
struct Ledger {
    /// Bytes of the file behind each name, as of its last sync, if nothing was written since.
    bytes: BTreeMap<&'static str, Vec<u8>>,
    /// Names that are durable and have not changed since.
    names: BTreeMap<&'static str, bool>,
}

async fn run(seed: u64) {
    let mut rng = Rng::new(seed).fork("disk model");
    let sim = SimDisk::new("disk", 8 << 20, seed);
    let mut ledger = Ledger::default();
    let disk = sim.handle(0);
    disk.create_dir("d").expect("create");
    disk.sync_dir("").expect("sync");
    for round in 1..=60 {
        let disk = sim.handle(round);
        for _ in 0..rng.range(1, 30) {
            step(disk.as_ref(), &mut rng, &mut ledger);
            stats::count(stats::OPERATIONS);
        }
        mooseng::seam::settle().await;
        trace::line("disk", &format!("power loss {round}"));
        sim.power_loss();
        sim.fence(round + 1);
        stats::count("fault: power loss");
        check(&sim.handle(round + 1), &mut ledger);
    }
    stats::add("fault: lost sectors", sim.counters().sectors_lost);
    stats::add("fault: lost names", sim.counters().names_lost);
}

fn step(disk: &dyn Disk, rng: &mut Rng, ledger: &mut Ledger) {
    let path = *rng.pick(&FILES);
    match rng.below(8) {
        0..=3 => {
            let fresh = !disk.exists(path).expect("exists");
            let file = disk.open(path, OpenMode::Create).expect("open");
            if fresh {
                ledger.names.remove(path);
            }
            ledger.bytes.remove(path);
            let bytes: Vec<u8> = (0..rng.range(1, 3000)).map(|_| rng.u64() as u8).collect();
            file.write_at(rng.below(6000), &bytes).expect("write");
            if rng.chance(1, 2) {
                file.sync_data().expect("sync");
                stats::count(stats::FSYNCS);
                let all = file.map(0, 1 << 20).expect("read").to_vec();
                ledger.bytes.insert(path, all);
            }
        }
        4 => {
            if disk.remove(path).is_ok() {
                ledger.bytes.remove(path);
                ledger.names.remove(path);
            }
        }
        5 => {
            let to = *rng.pick(&FILES);
            if to != path && disk.rename(path, to).is_ok() {
                let moved = ledger.bytes.remove(path);
                ledger.bytes.remove(to);
                ledger.bytes.extend(moved.map(|bytes| (to, bytes)));
                ledger.names.remove(path);
                ledger.names.remove(to);
            }
        }
        _ => {
            let dir = if rng.chance(1, 2) { "" } else { "d" };
            disk.sync_dir(dir).expect("sync");
            stats::count(stats::FSYNCS);
            let in_dir = |path: &&&str| path.starts_with("d/") == (dir == "d");
            for path in FILES.iter().filter(in_dir) {
                ledger.names.insert(path, disk.exists(path).expect("exists"));
            }
        }
    }
}

fn check(disk: &std::sync::Arc<dyn Disk>, ledger: &mut Ledger) {
    for (path, exists) in &ledger.names {
        let found = disk.exists(path).expect("exists");
        if found != *exists {
            violation("O3", format!("{path}: synced as existing={exists}, now {found}"));
        }
        let Some(bytes) = ledger.bytes.get(path) else { continue };
        let file = disk.open(path, OpenMode::Read).expect("open");
        if *exists && file.map(0, 1 << 20).expect("read").as_ref() != bytes.as_slice() {
            violation("O3", format!("{path}: synced bytes changed"));
        }
    }
    // What is there now is durable: un-synced names were decided by the power loss.
    *ledger = Ledger::default();
    for path in FILES {
        let found = disk.exists(path).expect("exists");
        ledger.names.insert(path, found);
        if found {
            let file = disk.open(path, OpenMode::Read).expect("open");
            ledger.bytes.insert(path, file.map(0, 1 << 20).expect("read").to_vec());
        }
    }
}
