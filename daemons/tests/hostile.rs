//! Bytes from somebody who means harm, at every port of real daemons: none grows, none falls, and whoever
//! works on the mount meanwhile does not notice.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Options};
use common::probe::{Peak, counters, rss};
use common::{Daemon, need_fuse, pause, turn};
use mooseng::checksum::crc32c;
use mooseng::pb;
use mooseng::wire::calls::{self, Call};
use mooseng::wire::frame::{Decoder, FrameLimits, HEADER_BYTES, Head, Kind, encode};
use prost::Message;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Most that a daemon may grow under it, bytes.
const GROWTH_MAX: u64 = 16 << 20;
/// Random bytes at each port.
const NOISE_BYTES: usize = 10_000_000;

/// A fixed sequence, so that what failed fails again.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        let mut bytes: Vec<u8> = words.collect();
        bytes.truncate(len);
        bytes
    }
}

fn dial(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    stream
}

/// Sends all of it, over as many connections as it takes.
fn flood(address: &str, noise: &mut Noise) {
    let bytes = noise.bytes(NOISE_BYTES);
    let (mut at, mut connections) = (0, 0);
    while at < bytes.len() {
        let mut stream = dial(address);
        connections += 1;
        while at < bytes.len() {
            let piece = &bytes[at..bytes.len().min(at + (64 << 10))];
            match stream.write(piece) {
                Ok(sent) if sent > 0 => at += sent,
                _ => break,
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0; 4096]);
    }
    eprintln!("{address}: {NOISE_BYTES} random bytes over {connections} connections");
}

/// A connection that has said hello, as a mount does.
fn greeted(address: &str) -> TcpStream {
    let mut stream = dial(address);
    let hello = pb::Hello { role: pb::NodeRole::Client as i32, node: 1, ..pb::Hello::default() };
    stream.write_all(&encode(Head::bare(Kind::Hello, 0), &hello.encode_to_vec())).unwrap();
    let mut decoder = Decoder::new(FrameLimits::FULL);
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            assert_eq!(frame.kind, Kind::Hello, "{frame:?}");
            return stream;
        }
        let mut piece = [0; 512];
        let n = stream.read(&mut piece).unwrap_or(0);
        assert!(n > 0 && Instant::now() < end, "{address} does not greet");
        bytes::BufMut::put_slice(&mut decoder.target(), &piece[..n]);
    }
}

/// A header that verifies and claims these lengths.
fn claiming(kind: Kind, method: u16, id: u64, body_len: usize, payload_len: usize) -> Vec<u8> {
    let head = Head { method, deadline_ms: 1000, ..Head::bare(kind, id) };
    let mut bytes = encode(head, &[]).to_vec();
    bytes[24..28].copy_from_slice(&(body_len as u32).to_le_bytes());
    bytes[28..32].copy_from_slice(&(payload_len as u32).to_le_bytes());
    let crc = crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Sends what the peer takes; it may hang up at any time.
fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// Every call with a random body whose lengths and checksums are true: it reaches the handlers.
fn true_frames(address: &str, noise: &mut Noise) {
    for (method, _) in calls::all() {
        let mut stream = greeted(address);
        for (id, len) in [(1, 0), (2, 1), (3, 40), (4, 5000), (5, 1 << 20)] {
            let head = Head { method, deadline_ms: 1000, ..Head::bare(Kind::Request, id) };
            let body = noise.bytes(len);
            send(&mut stream, &encode(head, &body));
        }
        let _ = stream.read(&mut [0; 4096]);
    }
    for kind in [Kind::Reply, Kind::Refusal, Kind::Hello, Kind::Cancel, Kind::Ping, Kind::Pong] {
        let mut stream = greeted(address);
        let body = noise.bytes(3000);
        send(&mut stream, &encode(Head { method: 3, ..Head::bare(kind, 9) }, &body));
        let _ = stream.read(&mut [0; 4096]);
    }
}

/// Claims of every size: nothing, the most that is allowed, and more; then the bytes come, or do not, or
/// others come.
fn lying_frames(address: &str, noise: &mut Noise) {
    let most = FrameLimits::FULL;
    let sizes = [0, 1, 4096, most.body, most.payload, most.payload + 1, u32::MAX as usize];
    for method in [calls::Append::METHOD, calls::RaftAppend::METHOD, calls::SubmitBatch::METHOD] {
        for body in sizes {
            for payload in sizes {
                let mut stream = greeted(address);
                send(&mut stream, &claiming(Kind::Request, method, 7, body, payload));
                let len = [0, 100, 70_000][(noise.next() % 3) as usize];
                let follow = noise.bytes(len);
                send(&mut stream, &follow);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut [0; 4096]);
            }
        }
    }
}

/// The longest frames that there are, sent to the last byte, several at once; then all but the last byte of
/// such frames, with the connections kept open.
fn longest_frames(address: &str, noise: &mut Noise) {
    let most = FrameLimits::REQUESTS;
    let bytes = Arc::new(noise.bytes(most.body + most.payload));
    let frames = [
        (calls::Append::METHOD, 0, most.payload),
        (calls::SubmitBatch::METHOD, most.body, 0),
        (calls::RaftSnapshot::METHOD, 0, most.payload),
        (calls::Stat::METHOD, most.body, most.payload),
    ];
    let mut senders = Vec::new();
    for (number, (method, body, payload)) in frames.into_iter().cycle().take(12).enumerate() {
        let (address, bytes) = (address.to_owned(), bytes.clone());
        let short = usize::from(number >= 4);
        senders.push(std::thread::spawn(move || {
            let mut stream = greeted(&address);
            send(&mut stream, &claiming(Kind::Request, method, 7, body, payload));
            send(&mut stream, &bytes[..body + payload - short]);
            stream
        }));
    }
    let held: Vec<TcpStream> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    pause(300);
    drop(held);
}

/// Works on the mount until told to stop; how much it got done.
fn work(dir: &Path, stop: &AtomicBool, done: &AtomicU64) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    while !stop.load(Relaxed) {
        let number = done.fetch_add(1, Relaxed);
        let path = dir.join((number % 50).to_string());
        let data = vec![number as u8; [100, 20_000][(number % 2) as usize]];
        std::fs::write(&path, &data)?;
        assert!(std::fs::read(&path)? == data, "{} reads differently", path.display());
    }
    Ok(())
}

struct Target<'a> {
    what: &'static str,
    daemon: &'a Daemon,
    wire: String,
    other: Vec<String>,
}

#[test]
fn no_daemon_grows_or_falls_under_hostile_bytes() {
    let _turn = turn();
    need_fuse();
    let cluster = Cluster::start("hostile", Options::new(1, 2));
    let mount = cluster.mount("mount");
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let targets = [
        Target {
            what: "master",
            daemon: cluster.masters[0].as_ref().unwrap(),
            wire: cluster.master_address(0),
            other: vec![cluster.master_grpc(0), cluster.master_metrics(0)],
        },
        Target {
            what: "chunkserver",
            daemon: cluster.chunkservers[0].as_ref().unwrap(),
            wire: cluster.chunkserver_address(0),
            other: vec![cluster.chunkserver_metrics(0)],
        },
    ];
    // Also when an assertion fails: the worker would go on for ever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stopper = Stop(&stop);
        let worker = scope.spawn(|| work(&mount.path("work"), &stop, &done));
        // So that what the daemons need for honest work is there.
        common::until("the worker got going", 30, || (done.load(Relaxed) > 200).then_some(()));
        for target in &targets {
            attack(target, &done);
        }
        drop(stopper);
        worker.join().unwrap().expect("the worker sees no error");
    });
    // Who is honest is served at every port.
    cluster.wait_whole();
    assert!(counters(&cluster.master_metrics(0))["master_operations"] > 100);
    assert!(counters(&cluster.chunkserver_metrics(0))["chunkserver_appends"] > 10);
}

type Attack = fn(&str, &mut Noise);

fn attack(target: &Target<'_>, done: &AtomicU64) {
    let Target { what, daemon, wire, other } = target;
    let pid = daemon.pid();
    let before = rss(pid);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut ports = vec![wire];
    ports.extend(other);
    let mut attacks: Vec<(&str, &String, Attack)> =
        ports.into_iter().map(|port| ("random bytes", port, flood as Attack)).collect();
    attacks.push(("frames that are true", wire, true_frames));
    attacks.push(("frames that lie", wire, lying_frames));
    attacks.push(("the longest frames", wire, longest_frames));
    for (name, port, attack) in attacks {
        let peak = Peak::of(pid);
        let worked = done.load(Relaxed);
        let begun = Instant::now();
        attack(port, &mut noise);
        // Work goes on, also while it lasts; a short one is given a moment.
        common::until("the worker goes on", 10, || (done.load(Relaxed) > worked + 5).then_some(()));
        let (peak, after) = (peak.end(), rss(pid));
        let grown = |now: u64| now.saturating_sub(before) >> 10;
        eprintln!(
            "{what} {port}, {name}: {:?}, grown by {} KiB, {} KiB at most, {} files written",
            begun.elapsed(),
            grown(after),
            grown(peak),
            done.load(Relaxed) - worked
        );
        assert!(peak < before + GROWTH_MAX, "{what}: {name} made it grow by {} KiB", grown(peak));
    }
}
