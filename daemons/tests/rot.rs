//! What docs/DISK_FORMAT.md says about damage to a chunkserver's files, on real chunkservers and a mount: with
//! another copy readers notice nothing and the replica is made anew; without one it is an error, never wrong
//! bytes.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Mount, Options};
use common::damage::Damage;
use common::{json, need_fuse, ok, program, refused, turn, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: usize = 4096;
/// Where data begins in a replica of copies: heads, then CRCs.
const DATA: usize = BLOCK + (64 << 10);
/// A file fills a chunk, so that each has a chunk of its own.
const FILE_BYTES: usize = 1 << 20;

fn options() -> Options {
    let size = FILE_BYTES as u64;
    Options::new(1, 2).limit("chunk_bytes", size).limit("append_bytes_max", size)
}

fn contents(number: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1_u64 ^ (number as u64) << 40;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..FILE_BYTES / 8).flat_map(|_| next()).collect()
}

/// Writes files 0..count below `dir`, one after another, and unmounts, which seals their chunks.
fn store(cluster: &Cluster, dir: &str, layout: Option<&str>, count: usize) {
    let mount = cluster.mount("store");
    std::fs::create_dir(mount.path(dir)).unwrap();
    if let Some(layout) = layout {
        ok("mooseng", &["class", "set", &mount.path(dir).to_string_lossy(), layout]);
    }
    for number in 0..count {
        let mut file = std::fs::File::create(mount.path(&format!("{dir}/{number}"))).unwrap();
        file.write_all(&contents(number)).unwrap();
        file.sync_all().unwrap();
    }
    mount.unmount();
}

/// The one chunk of a file.
fn chunk(mount: &Mount, file: &str) -> Value {
    let path = mount.path(file).to_string_lossy().into_owned();
    let info = json("mooseng", &["--json", "file", "info", &path]);
    let chunks = info["chunks"].as_array().expect("chunks");
    assert_eq!(chunks.len(), 1, "{file} lies in one chunk: {info:#}");
    chunks[0].clone()
}

/// Where a chunkserver keeps a replica.
fn replica_file(cluster: &Cluster, chunk: &Value, replica: &Value) -> PathBuf {
    let address = replica["address"].as_str().expect("an address");
    let server = (0..cluster.options.chunkservers)
        .find(|index| cluster.chunkserver_address(*index) == address)
        .expect("one of ours");
    let (id, generation) = (chunk["id"].as_u64().unwrap(), replica["gen"].as_u64().unwrap());
    let (shard, data) = (&replica["shard"], &chunk["data"]);
    let name = format!("chunks/{:02x}/{id:016x}-{generation:x}-{shard}-{data}.dat", id & 0xff);
    cluster.chunkserver_dir(server).join(name)
}

fn replica_on<'a>(cluster: &Cluster, chunk: &'a Value, server: usize) -> &'a Value {
    let address = cluster.chunkserver_address(server);
    let mut replicas = chunk["replicas"].as_array().expect("replicas").iter();
    replicas.find(|replica| replica["address"] == address.as_str()).expect("a replica there")
}

/// What can happen to a replica, and whether it must be made anew.
fn rows() -> Vec<(&'static str, Damage, bool)> {
    let last = DATA + FILE_BYTES - 1;
    vec![
        ("first block flipped", Damage::flip(DATA), true),
        ("middle block flipped", Damage::flip(DATA + FILE_BYTES / 2), true),
        ("last block flipped", Damage::flip(last), true),
        ("first CRC flipped", Damage::flip(BLOCK), true),
        ("middle CRC flipped", Damage::flip(BLOCK + FILE_BYTES / BLOCK * 2), true),
        ("last CRC flipped", Damage::flip(BLOCK + FILE_BYTES / BLOCK * 4 - 1), true),
        ("first copy of the head flipped", Damage::flip(20), false),
        ("second copy of the head flipped", Damage::flip(2048 + 20), false),
        ("both copies of the head flipped", Damage::Flip(vec![20, 2048 + 20]), false),
        ("cut in the head", Damage::cut(100), true),
        ("cut in the CRCs", Damage::cut(BLOCK + 100), true),
        ("cut in the first block", Damage::cut(DATA + 10), true),
        ("cut in the middle", Damage::cut(DATA + FILE_BYTES / 2), true),
        ("cut in the last block", Damage::cut(last), true),
        ("gone", Damage::Gone, true),
    ]
}

#[test]
fn a_damaged_copy_is_read_elsewhere_and_made_anew() {
    let _turn = turn();
    need_fuse();
    let mut cluster = Cluster::start("rot", options());
    let rows = rows();
    // Two more for what rots while the server runs.
    let files = rows.len() + 2;
    store(&cluster, "two", None, files);
    let mount = cluster.mount("look");
    let before: Vec<Value> =
        (0..files).map(|number| chunk(&mount, &format!("two/{number}"))).collect();
    mount.unmount();
    assert!(before.iter().all(|chunk| chunk["state"] == "sealed"), "{before:#?}");

    cluster.chunkservers[0].take().unwrap().stop();
    for ((_, damage, _), chunk) in rows.iter().zip(&before) {
        damage.apply(&replica_file(&cluster, chunk, replica_on(&cluster, chunk, 0)));
    }
    // The note of the highest term is one of the things that may rot.
    Damage::flip(10).apply(&cluster.chunkserver_dir(0).join("term"));
    cluster.start_chunkserver(0);
    cluster.wait_whole();
    let mount = cluster.mount("read");
    for (number, (what, _, _)) in rows.iter().enumerate() {
        let have = std::fs::read(mount.path(&format!("two/{number}"))).expect(what);
        assert!(have == contents(number), "{what}: read wrongly");
    }
    repaired(&cluster, &mount, &rows, &before);
    mount.unmount();

    // Under a running server, in the very copies that readers ask first.
    for chunk in &before[rows.len()..] {
        let replicas = chunk["replicas"].as_array().unwrap();
        let first = &replicas[chunk["id"].as_u64().unwrap() as usize % replicas.len()];
        Damage::flip(DATA + 5000).apply(&replica_file(&cluster, chunk, first));
    }
    let mount = cluster.mount("again");
    for number in rows.len()..files {
        let have = std::fs::read(mount.path(&format!("two/{number}"))).unwrap();
        assert!(have == contents(number), "file {number} read wrongly");
    }
    let live: Vec<_> = (rows.len()..files).map(|_| ("live", Damage::Gone, true)).collect();
    made_anew(&cluster, &mount, rows.len(), &live, &before);
    mount.unmount();
}

/// Those that must be are made anew, all others are who they were, and every copy on the disks is good.
fn repaired(
    cluster: &Cluster,
    mount: &Mount,
    rows: &[(&'static str, Damage, bool)],
    before: &[Value],
) {
    made_anew(cluster, mount, 0, rows, before);
}

fn made_anew(
    cluster: &Cluster,
    mount: &Mount,
    first: usize,
    rows: &[(&'static str, Damage, bool)],
    before: &[Value],
) {
    let mut waiting: BTreeMap<usize, &str> =
        rows.iter().enumerate().map(|(number, (what, _, _))| (first + number, *what)).collect();
    let begun = std::time::Instant::now();
    until("every damaged replica is made anew", 60, || {
        waiting.retain(|number, _| {
            let (old, now) = (&before[*number], chunk(mount, &format!("two/{number}")));
            let anew = rows[*number - first].2;
            let changed = old["replicas"] != now["replicas"];
            let whole = now["replicas"].as_array().unwrap().len() == 2;
            assert!(anew || !changed, "{}: needs no repair", rows[*number - first].0);
            changed != anew || !whole
        });
        if begun.elapsed().as_secs() > 30 {
            eprintln!("waiting: {waiting:?}");
        }
        (waiting.is_empty() && cluster.try_status()?["under_replicated"] == 0).then_some(())
    });
    eprintln!("all made anew after {:?}", begun.elapsed());
    for (number, (what, _, _)) in (first..).zip(rows) {
        let (now, want) = (chunk(mount, &format!("two/{number}")), contents(number));
        for replica in now["replicas"].as_array().unwrap() {
            let path = replica_file(cluster, &now, replica);
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(bytes[DATA..][..FILE_BYTES] == want, "{what}: {} is wrong", path.display());
        }
    }
}

#[test]
fn damage_to_the_only_copy_is_an_error_and_never_wrong_bytes() {
    let _turn = turn();
    need_fuse();
    let mut cluster = Cluster::start("only", options());
    let rows = rows();
    store(&cluster, "one", Some("1+0"), rows.len());
    let mount = cluster.mount("look");
    let mut homes = Vec::new();
    for number in 0..rows.len() {
        let chunk = chunk(&mount, &format!("one/{number}"));
        assert_eq!(chunk["replicas"].as_array().unwrap().len(), 1, "{chunk:#}");
        homes.push(replica_file(&cluster, &chunk, &chunk["replicas"][0]));
    }
    mount.unmount();
    for server in 0..2 {
        cluster.chunkservers[server].take().unwrap().stop();
    }
    rows.iter().zip(&homes).for_each(|((_, damage, _), home)| damage.apply(home));
    cluster.start_all();
    cluster.wait_whole();
    let mount = cluster.mount("read");
    for (number, (what, _, lost)) in rows.iter().enumerate() {
        let path = mount.path(&format!("one/{number}"));
        match std::fs::read(&path) {
            Ok(have) => assert!(!lost && have == contents(number), "{what}: read as if whole"),
            Err(error) => {
                let eio = rustix::io::Errno::IO.raw_os_error();
                assert!(*lost && error.raw_os_error() == Some(eio), "{what}: {error}");
            }
        }
    }
    let lost = rows.iter().filter(|(_, _, lost)| *lost).count();
    until("what is lost is known", 20, || {
        (cluster.try_status()?["unreadable"].as_u64()? == lost as u64).then_some(())
    });
    mount.unmount();
}

#[test]
fn a_damaged_superblock_of_a_chunkserver_is_refused() {
    let _turn = turn();
    let mut cluster = Cluster::start("sb", Options::new(1, 1));
    cluster.chunkservers[0].take().unwrap().stop();
    let dir = cluster.chunkserver_dir(0);
    let superblock = dir.join("superblock");
    let good = std::fs::read(&superblock).unwrap();
    std::fs::write(dir.join("chunks/00-note"), "somebody else's").unwrap();
    for (what, damage) in [
        ("flipped", Damage::flip(good.len() - 1)),
        ("cut", Damage::cut(good.len() / 2)),
        ("gone", Damage::Gone),
    ] {
        damage.apply(&superblock);
        let line = chunkserver(&cluster, &dir);
        eprintln!("{what}: {line}");
        let file = if superblock.exists() { &superblock } else { &dir };
        let said = line.contains(&*file.to_string_lossy()) && line.contains("; ");
        assert!(said, "{what}: {line}");
        std::fs::write(&superblock, &good).unwrap();
    }
    cluster.start_chunkserver(0);
    cluster.wait_whole();
}

fn chunkserver(cluster: &Cluster, dir: &Path) -> String {
    let mut command = Command::new(program("mooseng-chunkserver"));
    command.arg("--data").arg(dir).args(["--listen", &cluster.chunkserver_address(0)]);
    command.args(["--masters", &cluster.masters_flag()]);
    refused("mooseng-chunkserver", &mut command, 1)
}
