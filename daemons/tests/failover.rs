//! How long a writer waits when the leader dies.
//!
//! `MOOSENG_TEST_FAILOVERS=20` kills that many leaders.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Options};
use common::{knob, need_fuse, pause, turn};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[test]
fn the_leader_dies_and_the_writer_hardly_notices() {
    let _turn = turn();
    need_fuse();
    let failovers = knob("MOOSENG_TEST_FAILOVERS", 5) as usize;
    let mut cluster = Cluster::start("failover", Options::new(3, 3));
    let mount = cluster.mount("mount");
    let dir = mount.path("written");
    std::fs::create_dir(&dir).unwrap();
    let (stop, longest, written) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut gaps = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut last = Instant::now();
            while !stop.load(Relaxed) {
                let number = written.fetch_add(1, Relaxed);
                let mut file = File::create(dir.join(number.to_string()))?;
                file.write_all(&[1; 4096])?;
                file.sync_all()?;
                longest.fetch_max(last.elapsed().as_millis() as u64, Relaxed);
                last = Instant::now();
            }
            std::io::Result::Ok(())
        });
        for _ in 0..failovers {
            pause(1000);
            let leader = cluster.leader();
            longest.store(0, Relaxed);
            let before = written.load(Relaxed);
            cluster.masters[leader].take().unwrap().kill();
            pause(4000);
            assert!(written.load(Relaxed) > before + 1, "the writer stands still");
            gaps.push(longest.load(Relaxed));
            cluster.start_master(leader);
            cluster.wait_whole();
        }
        stop.store(true, Relaxed);
        writer.join().unwrap().expect("the writer sees no error");
    });
    gaps.sort_unstable();
    let median = Duration::from_millis(gaps[gaps.len() / 2]);
    eprintln!("longest gap of each of {failovers} failovers, ms: {gaps:?}, median {median:?}");
    // Speed is asserted where the machine is left to the test: the short run shows that nobody waits for a
    // deadline, the full one (MOOSENG_TEST_FAILOVERS=20) holds the goals.
    let worst = *gaps.last().unwrap();
    assert!(worst < 5000, "{gaps:?} ms");
    if failovers >= 20 {
        assert!(median < Duration::from_secs(1), "median of {gaps:?} ms");
        assert!(worst < 2000, "{gaps:?} ms");
    }
}
