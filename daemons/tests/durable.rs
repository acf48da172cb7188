//! Acknowledged means durable: whatever fsync vouched for is there after every daemon was killed.
//!
//! `MOOSENG_TEST_KILLS=50` kills that often.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Mount, Options};
use common::{knob, need_fuse, pause, turn, until};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What was acknowledged: name to contents.
type Ledger = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Contents that name their file and its version, of many sizes: inline, one block, several.
fn contents(name: &str, version: u64) -> Vec<u8> {
    let len = [10, 4096, 5000, 70_000][(version % 4) as usize];
    format!("{name} {version} ").bytes().cycle().take(len).collect()
}

/// Writes, fsyncs, logs; every third file is overwritten in place and renamed as well.
fn writer(dir: &Path, round: u64, ledger: &Ledger, stop: &AtomicBool) -> io::Result<u64> {
    std::fs::create_dir_all(dir)?;
    let mut number = 0;
    while !stop.load(Relaxed) {
        let name = format!("r{round}-{number}");
        let path = dir.join(&name);
        let mut data = contents(&name, number);
        let mut file = File::create(&path)?;
        file.write_all(&data)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        ledger.lock().unwrap().insert(name.clone(), data.clone());
        if number % 3 == 0 {
            let middle = data.len() / 2;
            let file = OpenOptions::new().write(true).open(&path)?;
            // Between these two the file holds one or the other: not vouched for.
            ledger.lock().unwrap().remove(&name);
            file.write_all_at(b"over", middle as u64)?;
            file.sync_data()?;
            data[middle..middle + 4].copy_from_slice(b"over");
            let renamed = format!("{name}-renamed");
            std::fs::rename(&path, dir.join(&renamed))?;
            File::open(dir)?.sync_all()?;
            ledger.lock().unwrap().insert(renamed, data);
        }
        number += 1;
    }
    Ok(number)
}

fn start_writer(
    mount: &Mount,
    round: u64,
    ledger: &Ledger,
) -> (JoinHandle<io::Result<u64>>, Arc<AtomicBool>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (dir, ledger, flag) = (mount.path("ledger"), ledger.clone(), stop.clone());
    (std::thread::spawn(move || writer(&dir, round, &ledger, &flag)), stop)
}

fn check(mount: &Mount, ledger: &Ledger) -> usize {
    let ledger = ledger.lock().unwrap();
    for (name, want) in ledger.iter() {
        let have = std::fs::read(mount.path("ledger").join(name));
        let have = have.unwrap_or_else(|e| panic!("{name} was acknowledged and is gone: {e}"));
        assert!(have == *want, "{name} was acknowledged and is not what was written");
    }
    ledger.len()
}

#[test]
fn what_fsync_acknowledged_survives_the_death_of_every_daemon() {
    let _turn = turn();
    need_fuse();
    let kills = knob("MOOSENG_TEST_KILLS", 4);
    let mut cluster = Cluster::start("durable", Options::new(3, 3));
    let ledger = Ledger::default();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
    for round in 0..kills {
        let mount = cluster.mount(&format!("mount{round}"));
        let (writer, stop) = start_writer(&mount, round, &ledger);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        pause(300 + seed % 1500);
        cluster.kill_all();
        // The mount's process dies too: nothing that only lived in memory can help.
        stop.store(true, Relaxed);
        mount.kill();
        // It ends with an error from the dead mount, or just before.
        let _ = writer.join().unwrap();
        cluster.start_all();
        cluster.wait_whole();
        let mount = cluster.mount(&format!("check{round}"));
        let held = check(&mount, &ledger);
        eprintln!("kill {} of {kills}: {held} acknowledged files are all there", round + 1);
        mount.unmount();
    }
    assert!(ledger.lock().unwrap().len() as u64 > kills, "the writer got nothing done");
}

#[test]
fn a_mount_rides_out_the_restart_of_every_daemon() {
    let _turn = turn();
    need_fuse();
    let mut cluster = Cluster::start("ride", Options::new(1, 2));
    let ledger = Ledger::default();
    let mount = cluster.mount("mount");
    let (writer, stop) = start_writer(&mount, 0, &ledger);
    until("the writer got going", 20, || (ledger.lock().unwrap().len() > 10).then_some(()));
    cluster.kill_all();
    pause(500);
    cluster.start_all();
    cluster.wait_whole();
    let before = ledger.lock().unwrap().len();
    until("the writer goes on", 60, || (ledger.lock().unwrap().len() > before + 10).then_some(()));
    stop.store(true, Relaxed);
    let outcome = writer.join().unwrap();
    assert!(outcome.is_ok(), "the writer saw an error: {outcome:?}");
    check(&mount, &ledger);
}
