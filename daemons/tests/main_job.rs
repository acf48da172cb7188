//! The main job, on real processes: 3 masters, 4 chunkservers, two copies, 2 mounts; a tree is copied while
//! machines die, and every hash stays what it was.
//!
//! `MOOSENG_TEST_TREE=DIR` copies that tree instead of a small one; `MOOSENG_TEST_STOP_SECONDS=30` stops a
//! chunkserver for that long.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Mount, Options, count};
use common::{knob, need_fuse, tree, turn, until};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Silence after which a chunkserver counts as dead, here.
const REPAIR_DELAY: Duration = Duration::from_secs(8);

#[test]
fn a_tree_survives_what_happens_to_the_cluster() {
    let _turn = turn();
    need_fuse();
    let options = Options::new(3, 4).limit("server_dead_ms", REPAIR_DELAY.as_millis() as u64);
    let mut cluster = Cluster::start("main", options);
    let source = source(&cluster);
    let want = tree::hash(&source);

    let first = cluster.mount("first");
    let second = cluster.mount("second");
    let copied = tree::copy(&source, &first.path("one"), false, &mut |_| {}).unwrap();
    eprintln!("first copy: {copied:?}");
    tree::assert_same("other mount", &want, &tree::hash(&second.path("one")));

    second.unmount();
    let second = cluster.mount("second");
    tree::assert_same("after remount", &want, &tree::hash(&second.path("one")));

    first.unmount();
    second.unmount();
    cluster.stop_all();
    cluster.start_all();
    cluster.wait_whole();
    let first = cluster.mount("first");
    let second = cluster.mount("second");
    tree::assert_same("after all daemons restarted", &want, &tree::hash(&second.path("one")));

    let lost = copy_while_machines_die(&mut cluster, &source, &first, want.len());
    tree::assert_same("other mount, after the failures", &want, &tree::hash(&second.path("two")));
    redundancy_returns(&cluster);

    // Another of those that had the data from the beginning: repair must have copied it elsewhere.
    let other = (0..4).find(|index| *index != lost).expect("four servers");
    cluster.chunkservers[other].take().unwrap().kill();
    second.unmount();
    let second = cluster.mount("third");
    for copy in ["one", "two"] {
        let have = tree::hash(&second.path(copy));
        tree::assert_same("after repair and another loss", &want, &have);
    }
    drop((first, second));
}

fn source(cluster: &Cluster) -> PathBuf {
    if let Some(dir) = std::env::var_os("MOOSENG_TEST_TREE") {
        return PathBuf::from(dir);
    }
    let source = cluster.temp.dir("source");
    tree::make(&source, 300);
    source
}

/// Kills the leader, later a chunkserver for good, later stops another for some seconds, all during one copy.
/// Returns the index of the lost chunkserver.
fn copy_while_machines_die(
    cluster: &mut Cluster,
    source: &Path,
    mount: &Mount,
    files: usize,
) -> usize {
    let leader = cluster.leader();
    let (lost, stopped) = (3, 2);
    let seconds = knob("MOOSENG_TEST_STOP_SECONDS", 6);
    let mut stop_until = None;
    let copied = tree::copy(source, &mount.path("two"), false, &mut |done| {
        if done == files / 5 {
            cluster.masters[leader].take().unwrap().kill();
        }
        if done == files * 2 / 5 {
            cluster.chunkservers[lost].take().unwrap().kill();
        }
        if done == files * 3 / 5 {
            cluster.chunkservers[stopped].as_ref().unwrap().signal(Signal::STOP);
            stop_until = Some(Instant::now() + Duration::from_secs(seconds));
        }
        if stop_until.is_some_and(|end| Instant::now() > end) {
            cluster.chunkservers[stopped].as_ref().unwrap().signal(Signal::CONT);
            stop_until = None;
        }
    });
    if let Some(end) = stop_until {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        cluster.chunkservers[stopped].as_ref().unwrap().signal(Signal::CONT);
    }
    let copied = copied.unwrap_or_else(|e| panic!("the copying program saw an error: {e}"));
    eprintln!("second copy: {copied:?}");
    assert_eq!(copied.files, files);
    assert!(copied.longest < Duration::from_secs(5), "stalled {copied:?}");
    cluster.start_master(leader);
    lost
}

/// No chunk lacks a copy within the repair delay plus a minute.
fn redundancy_returns(cluster: &Cluster) {
    let begin = Instant::now();
    let limit = REPAIR_DELAY.as_secs() + 60;
    until("every chunk has its copies again", limit, || {
        let status = cluster.try_status()?;
        let dead = count(&status["servers"], |server| server["alive"] != true);
        let healed = status["under_replicated"] == 0 && status["unreadable"] == 0;
        (dead == 1 && healed).then_some(())
    });
    eprintln!("full redundancy after {:?}", begin.elapsed());
}
