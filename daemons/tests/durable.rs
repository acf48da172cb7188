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

/// Bytes of each file of the shell's writer: not inline.
const SHELL_BYTES: usize = 5000;

/// Writes and syncs file after file until there is a file `stop`; one name in `acknowledged` for each. It is a
/// process of its own: where a descriptor of the mount is open, starting a program closes it in the child,
/// which waits for the masters that are about to be started.
const SHELL_WRITER: &str = r#"
n=0
while [ ! -e "$1/stop" ]; do
    n=$((n + 1))
    dd if="$1/source" of="$2/$n" bs=5000 count=1 conv=fsync status=none || exit 1
    echo $n >> "$1/acknowledged"
done
"#;

#[test]
fn a_mount_rides_out_the_restart_of_every_daemon() {
    let _turn = turn();
    need_fuse();
    let mut cluster = Cluster::start("ride", Options::new(1, 2));
    let mount = cluster.mount("mount");
    let (local, files) = (cluster.temp.dir("writer"), mount.path("files"));
    std::fs::create_dir(&files).unwrap();
    let source = contents("source", 2);
    std::fs::write(local.join("source"), &source).unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", SHELL_WRITER, "sh"]).arg(&local).arg(&files);
    let mut writer = shell.spawn().unwrap();
    let acknowledged = || std::fs::read_to_string(local.join("acknowledged")).unwrap_or_default();
    let count = || acknowledged().lines().count();
    until("the writer got going", 20, || (count() > 10).then_some(()));
    cluster.kill_all();
    pause(500);
    cluster.start_all();
    cluster.wait_whole();
    let before = count();
    until("the writer goes on", 60, || (count() > before + 10).then_some(()));
    std::fs::write(local.join("stop"), "").unwrap();
    let outcome = writer.wait().unwrap();
    assert!(outcome.success(), "the writer saw an error: {outcome:?}");
    for name in acknowledged().lines() {
        let have = std::fs::read(files.join(name)).unwrap();
        assert!(
            have == source[..SHELL_BYTES],
            "{name} was acknowledged and is not what was written"
        );
    }
}
