//! What the kernel asks of a mount by itself: pages that it writes back, and names and attributes that it takes over
//! from listings.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Options};
use common::{need_fuse, turn};
use rustix::fs::{FileType, Mode};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[test]
fn what_the_kernel_does_by_itself_is_done_right() {
    let _turn = turn();
    need_fuse();
    let cluster = Cluster::start("kernel", Options::new(1, 2));
    let mount = cluster.mount("mount");
    pages_of_an_appending_descriptor_stay_where_they_are(&mount.dir);
    a_listing_undoes_nothing(&mount.dir);
    what_is_removed_is_known_while_it_is_held(&mount.dir);
}

/// The kernel opens pipes itself and keeps directories that somebody holds: no open of these is seen here.
fn what_is_removed_is_known_while_it_is_held(dir: &Path) {
    let (pipe, held) = (dir.join("pipe"), dir.join("held"));
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::create_dir(&held).unwrap();
    let pipe_file = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let held_file = fs::File::open(&held).unwrap();
    fs::remove_file(&pipe).unwrap();
    fs::remove_dir(&held).unwrap();
    // Longer than attributes are believed without asking.
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert_eq!(pipe_file.metadata().unwrap().nlink(), 0);
    assert_eq!(held_file.metadata().unwrap().nlink(), 0);
}

/// Pages of a shared mapping are written back through a descriptor that appends.
fn pages_of_an_appending_descriptor_stay_where_they_are(dir: &Path) {
    let path = dir.join("mapped");
    fs::write(&path, vec![b'a'; 10_000]).unwrap();
    let file = OpenOptions::new().read(true).append(true).open(&path).unwrap();
    // SAFETY: nobody else has the file.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    map[0] = b'b';
    map[9_999] = b'c';
    map.flush().unwrap();
    drop((map, file));
    let found = fs::read(&path).unwrap();
    assert_eq!((found.len(), found[0], found[1], found[9_999]), (10_000, b'b', b'a', b'c'));
}

/// Somebody reads a directory slowly while others change what is in it.
fn a_listing_undoes_nothing(dir: &Path) {
    let dir = dir.join("listed");
    fs::create_dir(&dir).unwrap();
    let name = |number: usize| dir.join(format!("a-rather-long-name-so-that-few-fit-{number:04}"));
    for number in 0..400 {
        fs::write(name(number), b"1").unwrap();
    }
    // So that the kernel wants attributes with the names.
    fs::metadata(name(0)).unwrap();
    let mut listing = fs::read_dir(&dir).unwrap();
    listing.next().unwrap().unwrap();
    for number in 0..400 {
        match number % 2 {
            0 => fs::remove_file(name(number)).unwrap(),
            _ => fs::write(name(number), b"longer than before").unwrap(),
        }
    }
    listing.by_ref().for_each(drop);
    for number in 0..400 {
        let found = fs::metadata(name(number));
        match number % 2 {
            0 => assert!(found.is_err(), "{number} was removed and is there"),
            _ => assert_eq!(found.unwrap().len(), 18, "{number} is as long as it was"),
        }
    }
}
