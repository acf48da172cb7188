//! Full, failing, damaged and foreign disks.

use super::*;
use mooseng::ids::{ServerId, Uuid};
use mooseng::pb::Hole;
use mooseng::seam::OpenMode;
use mooseng::store::Assembled;
use mooseng_sim::disk::Outcome;
use mooseng_sim::rng::Ratio;

#[test]
fn a_failed_sync_takes_the_disk_out_of_use() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 1);
    let store = open(&disk, 1).expect("an empty disk");
    let (id, other) = (copy_id(5), copy_id(6));
    put(&store, id, 0, BLOCK_BYTES).expect("appended");
    sync(&store, id).expect("synced");
    put(&store, id, BLOCK, BLOCK_BYTES).expect("appended");
    disk.set_faults(|faults| faults.next_sync_eio = 1);
    assert!(matches!(sync(&store, id), Err(StoreError::DiskFailed(_))));
    assert!(store.failed() && store.load().failed && store.load().free == 0);
    assert!(matches!(sync(&store, id), Err(StoreError::DiskFailed(_))), "a retry does not help");
    assert!(matches!(put(&store, other, 0, 1), Err(StoreError::DiskFailed(_))));
    assert!(matches!(store.seal(id, BLOCK), Err(StoreError::DiskFailed(_))));
    assert!(matches!(store.delete(&[id]), Err(StoreError::DiskFailed(_))));
    assert!(matches!(store.build(other, BLOCK).err(), Some(StoreError::DiskFailed(_))));
    check_bytes(&store, id, BLOCK);
    assert_eq!(store.take_bad(), [id], "all its replicas need a new home");
    assert!(store.list(None, 9).iter().all(|status| status.corrupt));
}

#[test]
fn a_failed_write_takes_the_disk_out_of_use() {
    let _turn = alone();
    for seed in 0..20 {
        let disk = SimDisk::new("store", 64 << 20, seed);
        let store = open(&disk, 1).expect("an empty disk");
        let id = copy_id(5);
        put(&store, id, 0, BLOCK_BYTES).expect("appended");
        sync(&store, id).expect("synced");
        disk.set_faults(|faults| faults.next_write_eio = 1);
        assert!(matches!(put(&store, id, BLOCK, 9), Err(StoreError::DiskFailed(_))));
        assert_eq!(store.status(id).expect("there").length, BLOCK);
        let store = open(&disk, 2).expect("its disk");
        assert_eq!(store.status(id).expect("there").length, BLOCK, "the half is cut off");
    }
}

#[test]
fn after_a_failed_sync_a_restart_does_not_trust_the_cache() {
    let _turn = alone();
    for seed in 0..50 {
        let disk = SimDisk::new("store", 64 << 20, seed);
        let store = open(&disk, 1).expect("an empty disk");
        let id = copy_id(5);
        put(&store, id, 0, 4 * BLOCK_BYTES).expect("appended");
        disk.set_faults(|faults| faults.next_sync_eio = 1);
        sync(&store, id).expect_err("EIO");
        drop(store);
        disk.crash();
        let length = open(&disk, 2).expect("its disk").status(id).map(|status| status.durable);
        disk.power_loss_as(Outcome::DropAll);
        let store = open(&disk, 3).expect("its disk");
        assert_eq!(store.status(id).map(|status| status.length), length, "seed {seed}");
        check_bytes(&store, id, length.unwrap_or(0));
    }
}

#[test]
fn a_full_disk_refuses_and_keeps_working() {
    let _turn = alone();
    let disk = SimDisk::new("store", 2 << 20, 2);
    let store = open(&disk, 1).expect("an empty disk");
    let mut filled = Vec::new();
    let full = loop {
        let id = copy_id(filled.len() as u64 + 1);
        match put(&store, id, 0, 16 * BLOCK_BYTES).and_then(|_| sync(&store, id)) {
            Ok(_) => filled.push(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::NoSpace(_)), "{full}");
    assert!(filled.len() > 10 && !store.failed());
    assert!(store.load().free < 33 * BLOCK, "not enough for one more");
    let full = put(&store, filled[0], 16 * BLOCK, 32 * BLOCK_BYTES);
    assert!(matches!(full, Err(StoreError::NoSpace(_))), "{full:?}");
    store.seal(filled[0], 16 * BLOCK).expect("sealing needs no space");
    store.delete(&filled[1..4]).expect("deleting works while full");
    put(&store, filled[5], 16 * BLOCK, 16 * BLOCK_BYTES).expect("and makes room");
    check_bytes(&store, filled[5], 32 * BLOCK);
}

#[test]
fn half_an_append_is_never_seen() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 3);
    let store = open(&disk, 1).expect("an empty disk");
    let id = copy_id(5);
    put(&store, id, 0, BLOCK_BYTES).expect("appended");
    disk.set_faults(|faults| faults.full = true);
    for _again in 0..2 {
        let answer = put(&store, id, BLOCK, 8 * BLOCK_BYTES);
        assert!(matches!(answer, Err(StoreError::NoSpace(_))), "{answer:?}");
        assert_eq!(store.status(id).expect("there").length, BLOCK);
        assert!(matches!(put(&store, copy_id(6), 0, 1), Err(StoreError::NoSpace(_))));
        assert!(store.status(copy_id(6)).is_none(), "nor a replica without its first byte");
    }
    disk.set_faults(|faults| faults.full = false);
    assert_eq!(put(&store, id, BLOCK, 8 * BLOCK_BYTES), Ok(9 * BLOCK));
    check_bytes(&store, id, 9 * BLOCK);
}

#[test]
fn damaged_headers_cost_no_data() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 4);
    let store = open(&disk, 1).expect("an empty disk");
    let (id, sealed) = (copy_id(5), copy_id(6));
    for id in [id, sealed] {
        put(&store, id, 0, 5 * BLOCK_BYTES).expect("appended");
        sync(&store, id).expect("synced");
    }
    store.seal(sealed, 5 * BLOCK).expect("sealed");
    store.close().expect("closed");
    drop(store);
    disk.rot(&path_of(sealed), 20, 1);
    let store = open(&disk, 2).expect("its disk");
    assert!(store.status(sealed).expect("there").sealed, "one copy of the header is enough");
    drop(store);
    for at in [20, 2048 + 20] {
        disk.rot(&path_of(id), at, 1);
    }
    let store = open(&disk, 3).expect("its disk");
    check_bytes(&store, id, 5 * BLOCK);
    drop(store);
    let store = open(&disk, 4).expect("its disk");
    check_bytes(&store, id, 5 * BLOCK);
}

#[test]
fn a_replica_that_lost_synced_bytes_is_reported() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 5);
    let store = open(&disk, 1).expect("an empty disk");
    let id = copy_id(5);
    put(&store, id, 0, 5 * BLOCK_BYTES).expect("appended");
    store.seal(id, 5 * BLOCK).expect("sealed");
    drop(store);
    let file = disk.handle(1).open(&path_of(id), OpenMode::Write).expect("there");
    file.set_len(DATA_START + 3 * BLOCK + 77).expect("cut");
    let store = open(&disk, 2).expect("its disk");
    let status = store.status(id).expect("there");
    assert_eq!((status.length, status.corrupt), (3 * BLOCK, true));
    assert_eq!(store.take_bad(), [id]);
    assert!(store.seal(id, 5 * BLOCK).is_err());
}

#[test]
fn an_end_that_can_not_be_read_at_the_start_is_not_cut_off() {
    let _turn = alone();
    let (mut later, mut at_once) = (0, 0);
    for seed in 0..120 {
        let disk = SimDisk::new("store", 64 << 20, seed);
        let (store, id) = (open(&disk, 1).expect("an empty disk"), copy_id(5));
        put(&store, id, 0, 5 * BLOCK_BYTES).expect("appended");
        sync(&store, id).expect("synced");
        drop(store);
        disk.set_faults(|faults| faults.read_eio = Ratio::one_in(3));
        // A start that can not read its superblock is refused, and tried again.
        let store = (2..200).find_map(|incarnation| open(&disk, incarnation).ok());
        let store = store.expect("not every read fails");
        disk.set_faults(|faults| faults.read_eio = Ratio::NEVER);
        if store.status(id).expect("there").corrupt {
            later += 1;
            assert!(put(&store, id, 5 * BLOCK, 9).is_err(), "nobody knows where it ends");
        } else {
            at_once += 1;
        }
        assert_eq!(store.review(id), Ok(5 * BLOCK));
        assert_eq!(store.verify(id), Ok(vec![]));
        assert!(!store.status(id).expect("there").corrupt);
        assert!(store.take_bad().is_empty());
        check_bytes(&store, id, 5 * BLOCK);
        put(&store, id, 5 * BLOCK, 9).expect("appended");
    }
    assert!(later > 5 && at_once > 5, "{later} {at_once}");
}

/// A sealed replica of five blocks, of which the second is a hole.
fn punched(disk: &Arc<SimDisk>, id: ReplicaId) {
    let store = open(disk, 1).expect("an empty disk");
    put(&store, id, 0, 5 * BLOCK_BYTES).expect("appended");
    store.seal(id, 5 * BLOCK).expect("sealed");
    store.punch(id, &[Hole { from: BLOCK, end: 2 * BLOCK }]).expect("punched");
}

#[test]
fn a_header_that_can_not_be_read_for_a_moment_costs_nothing() {
    let _turn = alone();
    let mut later = 0;
    for seed in 0..40 {
        let (disk, id) = (SimDisk::new("store", 64 << 20, seed), copy_id(5));
        punched(&disk, id);
        disk.set_faults(|faults| faults.read_eio = Ratio::one_in(3));
        let store = (2..200).find_map(|incarnation| open(&disk, incarnation).ok());
        let store = store.expect("not every read fails");
        disk.set_faults(|faults| faults.read_eio = Ratio::NEVER);
        later += u64::from(store.status(id).expect("there").corrupt);
        assert_eq!(store.review(id), Ok(5 * BLOCK));
        let status = store.status(id).expect("there");
        assert!(status.sealed && !status.corrupt, "{status:?}");
        assert_eq!(store.verify(id), Ok(vec![]));
    }
    assert!(later > 5, "{later}");
}

#[test]
fn a_damaged_header_costs_neither_holes_nor_what_lies_behind_rot() {
    let _turn = alone();
    for rot in [false, true] {
        let (disk, id) = (SimDisk::new("store", 64 << 20, 5), copy_id(5));
        punched(&disk, id);
        for at in [20, 2048 + 20] {
            disk.rot(&path_of(id), at, 1);
        }
        if rot {
            disk.rot(&path_of(id), DATA_START + 3 * BLOCK + 7, 1);
        }
        let store = open(&disk, 2).expect("its disk");
        let status = store.status(id).expect("there");
        let length = if rot { 3 * BLOCK } else { 5 * BLOCK };
        assert_eq!((status.length, status.corrupt), (length, rot));
        let file = disk.written(&path_of(id)).expect("there");
        assert_eq!(file.len() as u64, DATA_START + 5 * BLOCK, "nothing is cut off");
    }
}

#[test]
fn an_error_of_a_moment_is_forgiven_after_every_block_was_read() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 5);
    let (store, id) = (open(&disk, 1).expect("an empty disk"), copy_id(5));
    put(&store, id, 0, 5 * BLOCK_BYTES).expect("appended");
    store.seal(id, 5 * BLOCK).expect("sealed");
    disk.set_faults(|faults| faults.next_read_eio = 1);
    store.read(id, 0, 9).expect_err("EIO");
    assert!(store.status(id).expect("there").corrupt);
    assert_eq!(store.verify(id), Ok(vec![]));
    assert!(!store.status(id).expect("there").corrupt && store.take_bad().is_empty());
    disk.rot(&path_of(id), DATA_START + 9, 1);
    assert_eq!(store.verify(id), Ok(vec![0]));
    assert_eq!(store.verify(id), Ok(vec![0]));
    assert!(store.status(id).expect("there").corrupt, "rot stays");
}

#[test]
fn unknown_files_are_left_alone() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 6);
    drop(open(&disk, 1).expect("an empty disk"));
    let raw = disk.handle(1);
    raw.create_dir("chunks/05").expect("made");
    for name in ["chunks/05/letter.txt", "chunks/05/zz-1-0-1.dat", "chunks/stray"] {
        raw.open(name, OpenMode::Create).expect("made");
    }
    let store = open(&disk, 2).expect("its disk");
    assert!(store.list(None, 9).is_empty());
    for name in ["chunks/05/letter.txt", "chunks/05/zz-1-0-1.dat", "chunks/stray"] {
        assert!(raw_exists(&disk, name), "{name}");
    }
}

fn raw_exists(disk: &Arc<SimDisk>, name: &str) -> bool {
    disk.paths().iter().any(|path| path == name)
}

fn claim(disks: &[&Arc<SimDisk>], cluster: Option<Uuid>) -> Result<Assembled, String> {
    claim_without(disks, cluster, &[])
}

fn claim_without(
    disks: &[&Arc<SimDisk>],
    cluster: Option<Uuid>,
    forget: &[Uuid],
) -> Result<Assembled, String> {
    let handles: Vec<Arc<dyn Disk>> = disks.iter().map(|disk| disk.handle(1)).collect();
    let line = |error: DiskError| {
        let line = error.to_string();
        assert!(!line.contains('\n') && line.contains("; "), "one line with a remedy: {line}");
        line
    };
    assemble(handles, cluster, forget).map_err(line)
}

fn refused(result: Result<Assembled, String>, path: &str, what: &str) {
    let error = result.err().expect("must be refused");
    assert!(error.contains(path) && error.contains(what), "{error}");
}

#[test]
fn disks_of_others_are_refused() {
    let _turn = alone();
    let [a, b, other] = ["disk-a", "disk-b", "disk-o"].map(|name| SimDisk::new(name, 1 << 20, 1));
    let ours = claim(&[&a, &b], None).expect("two empty disks");
    refused(claim(&[&a], None), "disk-a", "in use by a live process");
    let uuid = ours.uuid;
    let cluster = Uuid([7; 16]);
    for claimed in ours.disks {
        let store = Store::open(claimed, limits()).expect("its disk");
        store.bind(cluster, ServerId(3)).expect("bound");
    }
    drop(claim(&[&other], None).expect("an empty disk"));
    refused(claim(&[&a, &b, &other], None), "disk-o", "belongs to chunkserver");
    refused(claim(&[&a, &b], Some(Uuid([8; 16]))), "disk-", "belongs to cluster");
    refused(claim(&[&b, &b], None), "disk-b", "in use");
    let again = claim(&[&b, &a], Some(cluster)).expect("in any order");
    assert_eq!((again.uuid, again.server, again.cluster), (uuid, Some(ServerId(3)), Some(cluster)));
}

#[test]
fn a_registered_disk_must_be_there() {
    let _turn = alone();
    let names = ["disk-a", "disk-b", "disk-c"];
    let [a, b, c] = names.map(|name| SimDisk::new(name, 1 << 20, 1));
    let both = claim(&[&a, &b], None).expect("two empty disks");
    let lost = both.disks.into_iter().map(|disk| Store::open(disk, limits()).expect("ok").uuid());
    let lost = lost.last().expect("two");
    refused(claim(&[&a], None), "disk-a", &lost.to_string());
    refused(claim(&[&a, &c], None), "disk-a", "is missing");
    assert!(claim_without(&[&a, &c], None, &[lost]).is_ok(), "given up, and one more added");
    refused(claim(&[&a], None), "disk-a", "is missing");
    assert!(claim(&[&c, &a], None).is_ok());
    drop(claim(&[&a, &b, &c], None).expect("the one given up came back"));
    refused(claim(&[&b, &c], None), "disk-", "is missing");
}

#[test]
fn a_crash_while_disks_are_claimed_leaves_none_missing() {
    let _turn = alone();
    for more in 0..40 {
        let [a, b] = ["disk-a", "disk-b"].map(|name| SimDisk::new(name, 1 << 20, more));
        a.die_after(more);
        b.die_after(more.saturating_sub(4));
        let _ = claim(&[&a, &b], None);
        for disk in [&a, &b] {
            disk.power_loss();
            disk.revive();
        }
        let again = claim(&[&a, &b], None).expect("nothing is missing");
        assert_eq!(again.disks.len(), 2);
    }
}

#[test]
fn directories_that_are_not_data_directories_are_refused() {
    let _turn = alone();
    let disk = SimDisk::new("disk-a", 1 << 20, 1);
    disk.handle(1).open("holiday.jpg", OpenMode::Create).expect("made");
    refused(claim(&[&disk], None), "disk-a/holiday.jpg", "not a data directory");

    let disk = SimDisk::new("disk-a", 1 << 20, 1);
    let store = open(&disk, 1).expect("an empty disk");
    put(&store, copy_id(1), 0, 1).expect("appended");
    drop(store);
    disk.handle(1).remove("superblock").expect("removed");
    refused(claim(&[&disk], None), "disk-a/chunks", "superblock beside it is missing");
}

#[test]
fn damaged_and_newer_superblocks_are_refused() {
    let _turn = alone();
    let disk = SimDisk::new("disk-a", 1 << 20, 1);
    drop(claim(&[&disk], None).expect("an empty disk"));
    let whole = disk.written("superblock").expect("there");
    let write = |bytes: &[u8]| {
        let file = disk.handle(1).open("superblock", OpenMode::Write).expect("there");
        file.set_len(0).and_then(|()| file.write_at(0, bytes)).expect("written");
    };
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 0x40;
        write(&bad);
        refused(claim(&[&disk], None), "disk-a/superblock", "");
    }
    for cut in 0..whole.len() {
        write(&whole[..cut]);
        refused(claim(&[&disk], None), "disk-a/superblock", "");
    }
    let mut newer = whole.clone();
    newer[6] += 1;
    let crc = mooseng::checksum::crc32c_parts(&[&newer[..12], &newer[16..]]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    write(&newer);
    refused(claim(&[&disk], None), "disk-a/superblock", "version");
    write(&whole);
    assert!(claim(&[&disk], None).is_ok());
}
