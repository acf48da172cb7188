use super::*;
use mooseng::seam::{DiskFile, OpenMode};
use std::collections::BTreeSet;

fn disk(seed: u64) -> (Arc<SimDisk>, Arc<dyn Disk>) {
    let sim = SimDisk::new("d", 1 << 20, seed);
    let handle = sim.handle(1);
    (sim, handle)
}

/// A file that is durable, name and bytes.
fn durable_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, OpenMode::Create).expect("create");
    file.write_at(0, bytes).expect("write");
    file.sync_data().expect("sync");
    disk.sync_dir(names::parent(path)).expect("sync dir");
    file
}

fn eio(result: io::Result<impl Sized>) -> bool {
    result.err().and_then(|error| error.raw_os_error()) == Some(5)
}

#[test]
fn what_was_synced_survives_every_power_loss() {
    for seed in 0..200 {
        let (sim, disk) = disk(seed);
        let file = durable_file(disk.as_ref(), "f", &[1; 3000]);
        file.write_at(1024, &[2; 1024]).expect("write");
        assert_eq!(sim.durable_read("f").expect("durable"), vec![1; 3000]);
        sim.power_loss();
        let left = sim.written("f").expect("still there");
        assert_eq!(left.len(), 3000);
        assert!(left[..1024].iter().chain(&left[2048..]).all(|byte| *byte == 1));
        assert!(left[1024..2048].iter().all(|byte| [1, 2].contains(byte)));
        assert_eq!(sim.durable_read("f").expect("durable"), left, "what survived is durable");
    }
}

#[test]
fn unsynced_bytes_vanish_stay_or_tear() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (sim, disk) = disk(seed);
        let file = durable_file(disk.as_ref(), "f", &[1; 2048]);
        file.write_at(0, &[2; 2048]).expect("write");
        sim.power_loss();
        let left = sim.written("f").expect("still there");
        let news: Vec<usize> =
            left.chunks(SECTOR).map(|sector| sector.iter().filter(|b| **b == 2).count()).collect();
        seen.insert(match news.iter().sum::<usize>() {
            0 => "all old",
            2048 => "all new",
            _ if news.iter().any(|n| *n != 0 && *n != SECTOR) => "torn inside a sector",
            _ => "some sectors",
        });
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_version_in_between_can_survive() {
    let found = (0..200).any(|seed| {
        let (sim, disk) = disk(seed);
        let file = durable_file(disk.as_ref(), "f", &[1; 512]);
        file.write_at(0, &[2; 512]).expect("write");
        file.write_at(0, &[3; 512]).expect("write");
        sim.power_loss();
        sim.written("f").expect("still there")[0] == 2
    });
    assert!(found);
}

#[test]
fn unsynced_lengths_vanish_stay_or_stop_in_between() {
    let mut lengths = BTreeSet::new();
    for seed in 0..200 {
        let (sim, disk) = disk(seed);
        let file = durable_file(disk.as_ref(), "f", &[1; 100]);
        file.write_at(100, &[2; 2000]).expect("append");
        assert_eq!(sim.durable_read("f").expect("durable").len(), 100);
        sim.power_loss();
        let left = sim.written("f").expect("still there");
        assert!(left[..100].iter().all(|byte| *byte == 1), "the durable part of a torn sector");
        assert!(left[100..].iter().all(|byte| [0, 2].contains(byte)), "no bytes from nowhere");
        lengths.insert(left.len());
    }
    assert!(lengths.contains(&100) && lengths.contains(&2100) && lengths.len() > 3, "{lengths:?}");
}

#[test]
fn an_unsynced_cut_can_come_back() {
    let mut lengths = BTreeSet::new();
    for seed in 0..50 {
        let (sim, disk) = disk(seed);
        let file = durable_file(disk.as_ref(), "f", &[1; 5000]);
        file.set_len(700).expect("cut");
        assert_eq!(sim.durable_read("f").expect("durable"), vec![1; 5000]);
        sim.power_loss();
        let left = sim.written("f").expect("still there");
        assert!(left[..700].iter().all(|byte| *byte == 1));
        lengths.insert(left.len());
    }
    assert_eq!(lengths, BTreeSet::from([700, 5000]));
}

#[test]
fn names_need_a_directory_sync() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let (sim, disk) = disk(seed);
        durable_file(disk.as_ref(), "old", b"old");
        let file = disk.open("tmp", OpenMode::Create).expect("create");
        file.write_at(0, b"new").expect("write");
        file.sync_data().expect("sync");
        disk.rename("tmp", "old").expect("rename");
        assert_eq!(sim.durable_read("old").expect("durable"), b"old");
        assert_eq!(sim.durable_list(""), ["old"]);
        sim.power_loss();
        seen.insert(String::from_utf8(sim.written("old").expect("one of them")).expect("text"));
    }
    assert_eq!(seen, BTreeSet::from(["new".to_owned(), "old".to_owned()]));
}

#[test]
fn a_synced_rename_stays() {
    for seed in 0..100 {
        let (sim, disk) = disk(seed);
        durable_file(disk.as_ref(), "old", b"old");
        durable_file(disk.as_ref(), "tmp", b"new");
        disk.rename("tmp", "old").expect("rename");
        disk.sync_dir("").expect("sync");
        disk.remove("old").expect("remove");
        assert_eq!(sim.durable_read("old").expect("durable"), b"new");
        sim.power_loss();
        assert!(!sim.handle(1).exists("tmp").expect("exists"));
        assert!(sim.written("old").is_none_or(|bytes| bytes == b"new"));
    }
}

#[test]
fn files_in_a_directory_that_is_not_durable_vanish_with_it() {
    for seed in 0..20 {
        let (sim, disk) = disk(seed);
        disk.create_dir("a/b").expect("create");
        durable_file(disk.as_ref(), "a/b/f", b"x");
        assert_eq!(sim.durable_read("a/b/f"), None);
        sim.power_loss_as(Outcome::DropAll);
        assert!(sim.handle(1).list("").expect("list").is_empty());
    }
    let (sim, disk) = disk(1);
    disk.create_dir("a/b").expect("create");
    durable_file(disk.as_ref(), "a/b/f", b"x");
    disk.sync_dir("a").expect("sync");
    disk.sync_dir("").expect("sync");
    assert_eq!(sim.durable_read("a/b/f").expect("durable"), b"x");
}

#[test]
fn a_killed_process_leaves_its_page_cache() {
    let (sim, disk) = disk(1);
    let file = disk.open("f", OpenMode::Create).expect("create");
    file.write_at(0, &[7; 5000]).expect("write");
    let lock = disk.lock("LOCK").expect("lock");
    sim.crash();
    sim.fence(2);
    assert!(file.write_at(0, b"late").is_err(), "a destructor of the old process");
    assert!(disk.list("").is_err());
    let next = sim.handle(2);
    let held = next.lock("LOCK").expect("the lock died with the process");
    drop(lock);
    assert!(next.lock("LOCK").is_err(), "and its destructor does not free ours");
    drop(held);
    assert_eq!(sim.written("f").expect("there"), vec![7; 5000]);
    assert_eq!(sim.durable_read("f"), None);
}

#[test]
fn a_failed_sync_leaves_lost_pages_that_look_clean() {
    let mut lost = 0;
    for seed in 0..50 {
        let (sim, disk) = disk(seed);
        let file = durable_file(disk.as_ref(), "f", &[1; 512]);
        file.write_at(0, &[2; 512]).expect("write");
        sim.set_faults(|faults| faults.next_sync_eio = 1);
        assert!(eio(file.sync_data()));
        file.sync_data().expect("nothing dirty: the retry succeeds");
        let mut byte = [0];
        file.read_at(0, &mut byte).expect("read");
        assert_eq!(byte, [2], "the cache still shows it");
        lost += u32::from(sim.durable_read("f").expect("durable")[0] == 1);
        sim.power_loss_as(Outcome::KeepAll);
        let survived = sim.written("f").expect("there")[0];
        assert!([1, 2].contains(&survived));
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn injected_errors_strike_and_are_counted() {
    let (sim, disk) = disk(3);
    let file = durable_file(disk.as_ref(), "f", &[1; 4096]);
    sim.set_faults(|faults| {
        faults.next_read_eio = 1;
        faults.next_write_eio = 1;
    });
    let mut buf = [0; 16];
    assert!(eio(file.read_at(0, &mut buf)));
    assert_eq!(file.read_at(0, &mut buf).expect("read"), 16);
    assert!(eio(file.write_at(0, &[2; 4096])));
    file.write_at(0, &[1; 4096]).expect("write");
    sim.set_faults(|faults| faults.next_misdirect = 1);
    file.set_len(64 << 10).expect("extend");
    file.write_at(0, &[9; 512]).expect("claims success");
    let image = sim.written("f").expect("there");
    assert_eq!(image.iter().filter(|byte| **byte == 9).count(), 512);
    assert_ne!(image[0], 9, "seed 3 misdirects it elsewhere");
    let counters = sim.counters();
    assert_eq!((counters.read_eio, counters.write_eio, counters.misdirected), (1, 1, 1));
}

#[test]
fn rot_is_sticky_until_overwritten() {
    let (sim, disk) = disk(1);
    let file = durable_file(disk.as_ref(), "f", &[0; 1000]);
    file.write_at(600, &[3; 10]).expect("write");
    assert!(sim.rot("f", 10, 0x80) && sim.rot("f", 605, 1));
    assert!(!sim.rot("f", 1000, 1) && !sim.rot("g", 0, 1));
    assert_eq!(file.map(10, 1).expect("read").as_ref(), [0x80]);
    assert_eq!(file.map(10, 1).expect("read again").as_ref(), [0x80]);
    assert_eq!(sim.durable_read("f").expect("durable")[605], 1, "also below the written version");
    file.write_at(0, &[0; 1000]).expect("overwrite");
    assert_eq!(file.map(10, 1).expect("read").as_ref(), [0]);
}

#[test]
fn a_full_disk_refuses_new_space_only() {
    let sim = SimDisk::new("d", 64 << 10, 1);
    let disk = sim.handle(1);
    let file = durable_file(disk.as_ref(), "f", &[1; 32 << 10]);
    let enospc = |result: io::Result<()>| {
        assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(28));
    };
    enospc(file.write_at(32 << 10, &[1; 40 << 10]));
    enospc(file.reserve(80 << 10));
    file.set_len(32 << 10).expect("cut what the failed write left");
    file.reserve(64 << 10).expect("reserve");
    assert_eq!(disk.space().expect("space").free, 0);
    file.write_at(32 << 10, &[1; 32 << 10]).expect("reserved space is there");
    let other = disk.open("g", OpenMode::Create).expect("names are free");
    enospc(other.write_at(0, b"x"));
    file.punch_hole(0, 8192).expect("punch");
    assert_eq!(disk.space().expect("space").free, 8192);
    disk.remove("f").expect("remove");
    assert_eq!(disk.space().expect("space").free, 8192, "held open");
    drop(file);
    assert_eq!(disk.space().expect("space").free, 64 << 10);
    sim.set_faults(|faults| faults.full = true);
    enospc(other.write_at(0, b"x"));
}

#[test]
fn it_dies_at_the_chosen_call() {
    let (sim, disk) = disk(1);
    let file = durable_file(disk.as_ref(), "f", b"x");
    sim.die_after(2);
    file.write_at(0, b"1").expect("first");
    assert!(!sim.is_dead());
    file.sync_data().expect("second");
    assert!(sim.is_dead());
    assert!(file.write_at(0, b"2").is_err() && file.sync_data().is_err());
    assert!(file.read_at(0, &mut [0]).is_err() && disk.list("").is_err());
    sim.power_loss();
    sim.revive();
    assert_eq!(sim.written("f").expect("there"), b"1");
    file.write_at(0, b"3").expect("revived");
}

#[test]
fn the_durable_image_reads_as_a_disk() {
    let (sim, disk) = disk(1);
    disk.create_dir("dir").expect("create");
    disk.sync_dir("").expect("sync");
    let file = durable_file(disk.as_ref(), "dir/f", &[1; 1500]);
    file.write_at(600, &[2; 2000]).expect("write");
    let image = sim.durable();
    assert_eq!(image.list("dir").expect("list"), ["f"]);
    let durable = image.open("dir/f", OpenMode::Write).expect("open");
    assert_eq!(durable.map(0, 9999).expect("map").as_ref(), [1; 1500]);
    assert_eq!(durable.map(700, 10).expect("map").as_ref(), [1; 10]);
    assert!(durable.write_at(0, b"x").is_err());
    assert!(image.open("dir/g", OpenMode::Create).is_err());
    file.sync_data().expect("sync");
    assert_eq!(durable.len().expect("length"), 2600, "follows the disk");
}

/// Whoever has read the durable image reads it again only if its version is another one.
#[test]
fn the_durable_image_changes_with_its_version_only() {
    let (mut same, mut other) = (0, 0);
    for seed in 0..50 {
        let (sim, mut disk) = disk(seed);
        let mut rng = Rng::new(seed);
        let image = |sim: &SimDisk| -> Vec<_> {
            let names = sim.durable_list("");
            names.into_iter().map(|name| (sim.durable_read(&name), name)).collect()
        };
        let mut before = (sim.durable_version(), image(&sim));
        for incarnation in 2..100 {
            let (name, to) = (format!("f{}", rng.below(4)), format!("f{}", rng.below(4)));
            let file = disk.open(&name, OpenMode::Create).expect("open");
            let (at, kind) = (rng.below(2_000), rng.below(12));
            _ = match kind {
                0..=2 => file.write_at(at, &[rng.below(256) as u8; 700]),
                3 => file.set_len(at),
                4 => file.punch_hole(at, 1_000),
                5 => file.sync_data(),
                6 => disk.sync_dir(""),
                7 => disk.rename(&name, &to),
                8 => disk.remove(&name),
                9 => {
                    sim.set_faults(|faults| faults.next_sync_eio = 1);
                    file.sync_data()
                }
                10 => {
                    sim.rot(&name, at, 1);
                    Ok(())
                }
                _ => {
                    sim.power_loss();
                    sim.fence(incarnation);
                    disk = sim.handle(incarnation);
                    Ok(())
                }
            };
            let after = (sim.durable_version(), image(&sim));
            assert!(after.0 != before.0 || after.1 == before.1, "seed {seed}, kind {kind}");
            same += u64::from(after.0 == before.0);
            other += u64::from(after.1 != before.1);
            before = after;
        }
    }
    assert!(
        same > 1_000 && other > 500,
        "{same} steps kept the version, {other} changed the image"
    );
}

#[test]
fn a_duplicate_has_its_own_future() {
    let (sim, disk) = disk(1);
    let file = durable_file(disk.as_ref(), "f", &[1; 512]);
    file.write_at(0, &[2; 512]).expect("write");
    let copy = sim.duplicate(9);
    copy.power_loss_as(Outcome::DropAll);
    assert_eq!(copy.written("f").expect("there")[0], 1);
    assert_eq!(sim.written("f").expect("there")[0], 2);
    assert_eq!(sim.unsynced(), (1, 0));
    assert_eq!(copy.unsynced(), (0, 0));
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let (sim, disk) = disk(seed);
        for n in 0..20_u8 {
            let file = disk.open(&format!("f{}", n % 5), OpenMode::Create).expect("open");
            file.write_at(u64::from(n) * 100, &[n; 700]).expect("write");
            if n % 7 == 0 {
                disk.sync_dir("").expect("sync");
                sim.power_loss();
            }
        }
        sim.power_loss();
        sim.paths().into_iter().map(|path| (sim.written(&path), path)).collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
