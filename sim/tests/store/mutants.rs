//! The planted bugs of the store, each seen by the check that is meant to see it.

use super::*;
use mooseng::marks;
use mooseng::seam::{Disk, DiskFile, DiskLock, OpenMode, Space};
use mooseng::store::inspect;
use mooseng_sim::disk::Outcome;
use std::io;

/// Runs `check` with the bug on: it must fail, and the site must have been reached. And without: it must not.
fn caught(bug: &str, check: impl Fn() -> Result<(), String>) {
    let _turn = alone();
    check().unwrap_or_else(|error| panic!("without {bug}: {error}"));
    marks::plant(Some(bug));
    let before = marks::bug_reached();
    let found = check();
    marks::plant(None);
    assert!(marks::bug_reached() > before, "{bug} was not reached");
    assert!(found.is_err(), "{bug} was not caught");
}

fn agree<T: PartialEq + std::fmt::Debug>(what: &str, one: T, two: T) -> Result<(), String> {
    if one == two { Ok(()) } else { Err(format!("{what}: {one:?}, {two:?}")) }
}

#[test]
fn m21_an_acknowledgement_before_the_sync_is_caught_by_the_durable_image() {
    caught("M21", || {
        let disk = SimDisk::new("store", 64 << 20, 1);
        let store = open(&disk, 1).expect("an empty disk");
        put(&store, copy_id(5), 0, 10).expect("appended");
        let promised = sync(&store, copy_id(5)).expect("synced");
        let durable = inspect(&*disk.durable()).expect("readable");
        agree("promised and durable", vec![(copy_id(5), promised)], durable)
    });
}

#[test]
fn m22_a_failed_sync_taken_for_done_is_caught() {
    caught("M22", || {
        let disk = SimDisk::new("store", 64 << 20, 1);
        let store = open(&disk, 1).expect("an empty disk");
        put(&store, copy_id(5), 0, 10).expect("appended");
        disk.set_faults(|faults| faults.next_sync_eio = 1);
        let promised = sync(&store, copy_id(5)).unwrap_or(0);
        disk.power_loss_as(Outcome::DropAll);
        let durable = inspect(&*disk.durable()).expect("readable");
        let durable = durable.first().map_or(0, |(_, length)| *length);
        agree("promised and durable", promised, durable)
    });
}

#[test]
fn m24_a_block_at_a_wrong_place_is_caught() {
    caught("M24", || {
        let disk = SimDisk::new("store", 64 << 20, 1);
        let store = open(&disk, 1).expect("an empty disk");
        let (one, two) = (copy_id(5), copy_id(6));
        let append = append_of(one, 0, fill(one, 0, BLOCK_BYTES));
        store.append(&append).expect("appended");
        let blocks = store.read(one, 0, 1).expect("readable");
        let elsewhere = Append::checked(two, BLOCK, blocks.data, blocks.crcs, true);
        agree("taken for another block", elsewhere.is_ok(), false)
    });
}

#[test]
fn m25_a_seal_at_another_length_is_caught() {
    caught("M25", || {
        let disk = SimDisk::new("store", 64 << 20, 1);
        let store = open(&disk, 1).expect("an empty disk");
        put(&store, copy_id(5), 0, 2 * BLOCK_BYTES).expect("appended");
        let _ = store.seal(copy_id(5), BLOCK);
        agree("sealed at", store.status(copy_id(5)).map_or(0, |status| status.length), BLOCK)
    });
}

#[test]
fn m34_half_an_append_left_by_a_full_disk_is_caught() {
    caught("M34", || {
        let disk = SimDisk::new("store", 1 << 20, 1);
        let store = open_as(Arc::new(Boastful(disk.handle(1)))).expect("an empty disk");
        let id = copy_id(5);
        put(&store, id, 0, BLOCK_BYTES).expect("appended");
        let full_at =
            (1..).map(|block| block * BLOCK).find(|at| put(&store, id, *at, 4096).is_err());
        let length = store.status(id).expect("there").length;
        let bad = store.verify(id).expect("readable").len();
        agree("length and bad blocks", (Some(length), bad), (full_at, 0))
    });
}

/// A disk that says it has room when it has not: another program fills it at the same time.
struct Boastful(Arc<dyn Disk>);

impl Disk for Boastful {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(path, mode)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn space(&self) -> io::Result<Space> {
        Ok(Space { total: 1 << 40, free: 1 << 39 })
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        self.0.lock(path)
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}
