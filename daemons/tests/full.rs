//! Full disks, on file systems of their own: the application sees ENOSPC, the cluster stays up, what is there
//! stays readable, unlink works, and afterwards writes do.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Mount, Options, count};
use common::{need_fuse, pause, turn, until};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// Servers that are missed early, so that who waits for one more is told soon that there is none.
fn options(masters: usize, chunkservers: usize) -> Options {
    Options::new(masters, chunkservers)
        .limit("server_heartbeat_ms", 200)
        .limit("server_suspect_ms", 1000)
}

/// Contents of a file that no other file has.
fn contents(number: usize, len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (number as u64) << 32;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        state.to_be_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// Writes and syncs a file.
fn store(path: &PathBuf, number: usize, len: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    for piece in contents(number, len).chunks(MIB) {
        file.write_all(piece)?;
    }
    file.sync_all()
}

/// Writes files until one does not fit; returns those that do. The one that does not is removed.
fn fill(mount: &Mount, prefix: &str, most: usize, len: usize) -> Vec<(usize, PathBuf)> {
    let mut whole = Vec::new();
    for number in 0..most {
        let path = mount.path(&format!("{prefix}{number}"));
        let begun = Instant::now();
        match store(&path, number, len) {
            Ok(()) => whole.push((number, path)),
            Err(error) => {
                eprintln!(
                    "{} files of {len} bytes, then after {:?}: {error}",
                    whole.len(),
                    begun.elapsed()
                );
                assert_eq!(error.raw_os_error(), Some(enospc()), "{error}");
                assert!(begun.elapsed() < Duration::from_secs(20), "told late");
                std::fs::remove_file(&path).expect("unlink works on a full cluster");
                return whole;
            }
        }
    }
    panic!("{most} files of {len} bytes went into disks that are smaller");
}

fn enospc() -> i32 {
    rustix::io::Errno::NOSPC.raw_os_error()
}

fn all_there(files: &[(usize, PathBuf)], len: usize) {
    for (number, path) in files {
        let have = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(have == contents(*number, len), "{} is not what was written", path.display());
    }
}

/// Everybody lives, and no disk is given up for being full.
fn is_up(cluster: &Cluster) {
    let status = cluster.status();
    assert_ne!(status["leader"], 0, "{status:#}");
    let servers = cluster.options.chunkservers;
    assert_eq!(count(&status["servers"], |server| server["alive"] == true), servers, "{status:#}");
    let failed = |server: &serde_json::Value| server["disks"][0]["failed"] == true;
    assert_eq!(count(&status["servers"], failed), 0, "{status:#}");
    assert_eq!(status["unreadable"], 0, "{status:#}");
}

/// Within a while a file of this size can be stored again.
fn works_again(mount: &Mount, len: usize) {
    let path = mount.path("again");
    until("writes work again", 60, || match store(&path, 1 << 20, len) {
        Ok(()) => Some(()),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(enospc()), "{error}");
            None
        }
    });
    all_there(&[(1 << 20, path.clone())], len);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn full_chunkservers_say_so_and_recover() {
    let _turn = turn();
    need_fuse();
    let mut options = options(1, 2);
    options.chunkserver_disk = Some(128 * MIB as u64);
    let cluster = Cluster::start("full", options);
    let mount = cluster.mount("mount");
    let mut files = fill(&mount, "f", 256, MIB);
    assert!(files.len() >= 64, "only {} of 1 MiB on disks of 128 MiB", files.len());
    is_up(&cluster);
    all_there(&files, MIB);
    // Names, attributes and the smallest files live with the masters.
    std::fs::create_dir(mount.path("dir")).unwrap();
    std::fs::rename(&files[0].1, mount.path("dir/moved")).unwrap();
    files[0].1 = mount.path("dir/moved");
    store(&mount.path("small"), 7, 1000).unwrap();

    // Every second file goes, so that no chunk is without one that stays: their places are punched.
    let (gone, kept): (Vec<_>, Vec<_>) = files.into_iter().partition(|(number, _)| number % 2 == 0);
    for (_, path) in gone {
        std::fs::remove_file(path).unwrap();
    }
    let files = kept;
    works_again(&mount, 16 * MIB);
    is_up(&cluster);
    all_there(&files, MIB);
    all_there(&[(7, mount.path("small"))], 1000);
    for (_, path) in files {
        std::fs::remove_file(path).unwrap();
    }
    mount.unmount();
}

/// Somebody else takes even what the chunkservers keep in reserve.
#[test]
fn disks_without_a_free_block_lose_nothing() {
    let _turn = turn();
    need_fuse();
    let mut options = options(1, 2);
    options.chunkserver_disk = Some(64 * MIB as u64);
    let mut cluster = Cluster::start("brim", options);
    let mount = cluster.mount("mount");
    let files: Vec<_> = (0..4).map(|number| (number, mount.path(&format!("f{number}")))).collect();
    files.iter().for_each(|(number, path)| store(path, *number, 2 * MIB).unwrap());
    cluster.images.iter().for_each(common::image::Image::fill);
    assert!(fill(&mount, "g", 16, 2 * MIB).len() < 2);
    is_up(&cluster);
    all_there(&files, 2 * MIB);
    // They also start without a free block.
    for index in 0..2 {
        cluster.chunkservers[index].take().unwrap().stop();
        cluster.start_chunkserver(index);
    }
    cluster.wait_whole();
    all_there(&files, 2 * MIB);
    std::fs::remove_file(&files[0].1).unwrap();
    cluster.images.iter().for_each(common::image::Image::relieve);
    works_again(&mount, 2 * MIB);
    is_up(&cluster);
    all_there(&files[1..], 2 * MIB);
    mount.unmount();
}

/// A master's disk of its own, small enough to be filled by names and small files.
fn small_master() -> Options {
    let mut options = options(1, 2)
        .limit("wal_segment_bytes", MIB as u64)
        .limit("table_slack_bytes", 4 * MIB as u64)
        .limit("overlay_bytes_checkpoint", MIB as u64);
    options.master_disk = Some(48 * MIB as u64);
    options
}

/// Bytes of an attribute that make a small file take more of the master's disk.
const ATTRIBUTE: usize = 60_000;

/// A file that lies with the masters, all of it.
fn store_small(path: &PathBuf, number: usize) -> io::Result<()> {
    store(path, number, 4000)?;
    let value = contents(number + 1, ATTRIBUTE);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path.as_path(), "user.bulk", &value, flags).map_err(io::Error::from)
}

/// Small files until one does not fit.
fn fill_master(mount: &Mount) -> Vec<(usize, PathBuf)> {
    let mut whole = Vec::new();
    for number in 0..2000 {
        let path = mount.path(&format!("s{number}"));
        match store_small(&path, number) {
            Ok(()) => whole.push((number, path)),
            Err(error) => {
                eprintln!("{} small files, then: {error}", whole.len());
                assert_eq!(error.raw_os_error(), Some(enospc()), "{error}");
                // It may have been made before the rest of it did not fit.
                let _ = std::fs::remove_file(&path);
                return whole;
            }
        }
    }
    panic!("the small files went into a disk that is smaller");
}

#[test]
fn a_full_master_says_so_and_recovers() {
    let _turn = turn();
    need_fuse();
    let mut cluster = Cluster::start("master", small_master());
    let mount = cluster.mount("mount");
    let mut files = fill_master(&mount);
    assert!(files.len() > 100, "only {} small files", files.len());
    is_up(&cluster);
    all_there(&files, 4000);
    // Also a start finds room, and nothing is lost.
    cluster.masters[0].take().unwrap().stop();
    cluster.start_master(0);
    cluster.wait_whole();
    for (_, path) in files.drain(..files.len() / 2) {
        std::fs::remove_file(path).expect("unlink works on a full master");
    }
    works_again(&mount, 4000);
    store_small(&mount.path("more"), 1 << 21).expect("there is room for more than a little");
    is_up(&cluster);
    all_there(&files, 4000);
    for (number, path) in &files {
        let value = common::xattr(path, "user.bulk");
        assert!(value == contents(number + 1, ATTRIBUTE), "{}: attribute", path.display());
    }
    mount.unmount();
}

/// Somebody else takes the last block of the master's disk.
#[test]
fn a_master_without_a_free_block_loses_nothing() {
    let _turn = turn();
    need_fuse();
    let mut cluster = Cluster::start("brim-master", small_master());
    let mount = cluster.mount("mount");
    let files: Vec<_> =
        (0..300).map(|number| (number, mount.path(&format!("f{number}")))).collect();
    files.iter().for_each(|(number, path)| store(path, *number, 4000).unwrap());
    cluster.images[0].fill();
    // The master gives its reserve up when it sees that; it is taken from it too.
    pause(500);
    cluster.images[0].fill();
    fill_master(&mount);
    let refused = std::fs::create_dir(mount.path("dir")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(enospc()), "{refused}");
    is_up(&cluster);
    all_there(&files, 4000);
    for (_, path) in &files[..100] {
        std::fs::remove_file(path).expect("unlink works on a full master");
    }
    // It also starts without a free block.
    cluster.masters[0].take().unwrap().stop();
    cluster.start_master(0);
    cluster.wait_whole();
    all_there(&files[100..], 4000);
    cluster.images[0].relieve();
    works_again(&mount, 4000);
    is_up(&cluster);
    all_there(&files[100..], 4000);
    mount.unmount();
}
