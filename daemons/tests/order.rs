//! An fsync is acknowledged after what it promises is on the disks: the chunks on every server of their set,
//! then the log on a majority of masters. Seen in the daemons' own counters; and with `MOOSENG_TEST_STRACE=1`,
//! which needs strace(1) and the right to trace, in the order of their system calls.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Mount, Options};
use common::probe::counters;
use common::{knob, need_fuse, pause, turn, until};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const MASTERS: usize = 3;
const COPIES: usize = 2;
/// Too much to travel with the metadata.
const DATA_BYTES: usize = 20_000;

/// What the daemons say they synced, one number each.
#[derive(Clone, Debug, PartialEq)]
struct Synced {
    logs: Vec<u64>,
    chunks: Vec<u64>,
}

impl Synced {
    fn now(cluster: &Cluster) -> Synced {
        let log = |index| counters(&cluster.master_metrics(index))["master_log_fsyncs"];
        let chunk = |index| counters(&cluster.chunkserver_metrics(index))["chunkserver_syncs"];
        Synced {
            logs: (0..cluster.options.masters).map(log).collect(),
            chunks: (0..cluster.options.chunkservers).map(chunk).collect(),
        }
    }

    /// Masters and chunkservers that have synced since.
    fn since(&self, before: &Synced) -> (usize, usize) {
        let more = |now: &[u64], then: &[u64]| now.iter().zip(then).filter(|(a, b)| a > b).count();
        (more(&self.logs, &before.logs), more(&self.chunks, &before.chunks))
    }
}

/// Until nobody syncs for a while.
fn quiet(cluster: &Cluster) -> Synced {
    until("the daemons rest", 30, || {
        let before = Synced::now(cluster);
        pause(400);
        (Synced::now(cluster) == before).then_some(before)
    })
}

#[test]
fn an_acknowledged_fsync_was_preceded_by_those_that_it_promises() {
    let _turn = turn();
    need_fuse();
    let cluster = Cluster::start("order", Options::new(MASTERS, 3));
    let mount = cluster.mount("mount");
    let majority = MASTERS / 2 + 1;
    for round in 0..3u8 {
        let path = mount.path(&format!("file{round}"));
        let mut file = File::create(&path).unwrap();
        let before = quiet(&cluster);
        file.write_all(&[round; DATA_BYTES]).unwrap();
        assert_eq!(Synced::now(&cluster), before, "not synced before it is asked for");
        file.sync_all().unwrap();
        let (logs, chunks) = Synced::now(&cluster).since(&before);
        assert!(chunks >= COPIES, "{chunks} chunkservers synced a new file");
        assert!(logs >= majority, "{logs} masters synced their log");

        let before = quiet(&cluster);
        let over = OpenOptions::new().write(true).open(&path).unwrap();
        over.write_all_at(&[round + 1; 8192], 4096).unwrap();
        over.sync_data().unwrap();
        let (logs, chunks) = Synced::now(&cluster).since(&before);
        assert!(chunks >= COPIES && logs >= majority, "overwritten: {chunks} and {logs} synced");

        // Nothing is left to do, so nothing is done.
        let before = quiet(&cluster);
        file.sync_all().unwrap();
        assert_eq!(Synced::now(&cluster).since(&before).1, 0, "chunks synced for nothing");

        // What is so small that it lies with its inode needs the masters only.
        let mut small = File::create(mount.path(&format!("small{round}"))).unwrap();
        let before = quiet(&cluster);
        small.write_all(&[round; 100]).unwrap();
        small.sync_all().unwrap();
        let (logs, _) = Synced::now(&cluster).since(&before);
        assert!(logs >= majority, "inline: {logs} masters synced");

        let before = quiet(&cluster);
        std::fs::rename(&path, mount.path(&format!("renamed{round}"))).unwrap();
        File::open(&mount.dir).unwrap().sync_all().unwrap();
        let (logs, _) = Synced::now(&cluster).since(&before);
        assert!(logs >= majority, "renamed: {logs} masters synced");
    }
    mount.unmount();
}

// ---- with strace ----

/// A traced daemon.
struct Trace {
    log: bool,
    file: PathBuf,
    child: Child,
}

/// A sync that succeeded: on what, and when it began and ended, seconds of the clock.
#[derive(Clone, Debug)]
struct Sync {
    path: String,
    begin: f64,
    end: f64,
}

fn trace(cluster: &Cluster, name: String, pid: u32, log: bool) -> Trace {
    let file = cluster.temp.path().join(format!("{name}.strace"));
    let messages = cluster.temp.path().join(format!("{name}.attached"));
    let child = Command::new("strace")
        .args(["-f", "-ttt", "-T", "-y", "-e", "trace=fdatasync,fsync,sync_file_range,syncfs"])
        .arg("-o")
        .arg(&file)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(File::create(&messages).unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("MOOSENG_TEST_STRACE needs strace: {e}"));
    until("strace is attached", 20, || {
        let said = std::fs::read_to_string(&messages).unwrap();
        assert!(!said.contains("not permitted"), "strace may not trace here: {said}");
        said.contains("attached").then_some(())
    });
    Trace { log, file, child }
}

impl Trace {
    /// Ends it; the syncs that it saw.
    fn syncs(mut self) -> (bool, Vec<Sync>) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap();
        let text = std::fs::read_to_string(&self.file).unwrap();
        let (mut begun, mut syncs) = (BTreeMap::new(), Vec::new());
        for line in text.lines() {
            parse(line, &mut begun, &mut syncs);
        }
        (self.log, syncs)
    }
}

/// `PID TIME fdatasync(7</path>) = 0 <0.000123>`, or in two lines where another thread came between.
fn parse(line: &str, begun: &mut BTreeMap<String, (String, f64)>, syncs: &mut Vec<Sync>) {
    let mut words = line.split_whitespace();
    let (Some(thread), Some(time)) = (words.next(), words.next()) else { return };
    let Ok(time) = time.parse::<f64>() else { return };
    let took = |line: &str| -> f64 {
        let last = line.rsplit_once('<').expect("strace -T").1;
        last.trim_end_matches('>').parse().expect("seconds")
    };
    let succeeded = line.contains(") = 0 <");
    let resumed = line.contains("resumed>");
    if resumed {
        if let Some((path, begin)) = begun.remove(thread)
            && succeeded
        {
            syncs.push(Sync { path, begin, end: begin + took(line) });
        }
        return;
    }
    let is_sync = line.contains(" fdatasync(") || line.contains(" fsync(");
    let Some((_, path)) = line.split_once('<').filter(|_| is_sync) else { return };
    let path = path.split('>').next().expect("strace -y").to_owned();
    if line.ends_with("<unfinished ...>") {
        begun.insert(thread.to_owned(), (path, time));
    } else if succeeded {
        syncs.push(Sync { path, begin: time, end: time + took(line) });
    }
}

fn clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn traced_writes(mount: &Mount, rounds: u64) -> Vec<(f64, f64)> {
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let mut file = File::create(mount.path(&format!("traced{round}"))).unwrap();
        file.write_all(&vec![round as u8; DATA_BYTES]).unwrap();
        let begin = clock();
        file.sync_all().unwrap();
        acknowledged.push((begin, clock()));
    }
    acknowledged
}

#[test]
fn strace_sees_chunks_synced_before_the_log_and_the_log_before_the_answer() {
    if knob("MOOSENG_TEST_STRACE", 0) == 0 {
        eprintln!("not traced: MOOSENG_TEST_STRACE=1 asks for it; the counters' test ran instead");
        return;
    }
    let _turn = turn();
    need_fuse();
    let cluster = Cluster::start("strace", Options::new(MASTERS, 3));
    let mount = cluster.mount("mount");
    std::fs::write(mount.path("first"), [1; DATA_BYTES]).unwrap();
    let pids = |daemons: &[Option<common::Daemon>]| -> Vec<u32> {
        daemons.iter().flatten().map(common::Daemon::pid).collect()
    };
    let mut traces = Vec::new();
    for (index, pid) in pids(&cluster.masters).into_iter().enumerate() {
        traces.push(trace(&cluster, format!("master{index}"), pid, true));
    }
    for (index, pid) in pids(&cluster.chunkservers).into_iter().enumerate() {
        traces.push(trace(&cluster, format!("chunkserver{index}"), pid, false));
    }
    pause(500);
    let acknowledged = traced_writes(&mount, 50);
    pause(500);
    let seen: Vec<(bool, Vec<Sync>)> = traces.into_iter().map(Trace::syncs).collect();
    let total: usize = seen.iter().map(|(_, syncs)| syncs.len()).sum();
    assert!(total > acknowledged.len() * (COPIES + 2), "{total} syncs seen");
    for (round, (begin, end)) in acknowledged.iter().enumerate() {
        // Each server's first sync of a chunk, in the time of this fsync.
        let mut chunks: Vec<f64> = seen
            .iter()
            .filter(|(log, _)| !log)
            .filter_map(|(_, syncs)| {
                let of = |sync: &&Sync| {
                    sync.path.contains("/chunks/") && sync.begin >= *begin && sync.end <= *end
                };
                syncs.iter().filter(of).map(|sync| sync.end).min_by(f64::total_cmp)
            })
            .collect();
        chunks.sort_by(f64::total_cmp);
        assert!(chunks.len() >= COPIES, "fsync {round}: {} chunkservers synced", chunks.len());
        let durable = chunks[COPIES - 1];
        let logs = seen.iter().filter(|(log, syncs)| {
            *log && syncs.iter().any(|sync| {
                sync.path.contains("/wal/") && sync.begin >= durable && sync.end <= *end
            })
        });
        let logs = logs.count();
        assert!(logs > MASTERS / 2, "fsync {round}: {logs} masters synced after the chunks");
    }
    eprintln!(
        "{} acknowledged fsyncs: each after {COPIES} chunkservers had synced its chunk, and then a majority of \
         {MASTERS} masters their log; {total} syncs seen",
        acknowledged.len()
    );
    mount.unmount();
}
