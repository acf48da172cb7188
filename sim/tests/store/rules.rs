//! What an append, a sync, a seal, a read and a delete may do.

use super::*;
use mooseng::store::inspect;

#[test]
fn what_is_appended_is_read_back_with_its_crcs() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 1);
    let store = open(&disk, 1).expect("an empty disk");
    let id = copy_id(5);
    assert_eq!(put(&store, id, 0, 3 * BLOCK_BYTES), Ok(3 * BLOCK));
    assert_eq!(put(&store, id, 3 * BLOCK, 100), Ok(4 * BLOCK), "a short block is padded");
    assert_eq!(put(&store, id, 4 * BLOCK, 1), Ok(5 * BLOCK), "and the next append starts its own");
    check_bytes(&store, id, 3 * BLOCK);
    let tail = store.read(id, 3 * BLOCK + 7, 5).expect("readable");
    assert_eq!((tail.offset, tail.length, tail.data.len()), (3 * BLOCK, 5 * BLOCK, BLOCK_BYTES));
    assert_eq!(tail.data[..100], fill(id, 3 * BLOCK, 100));
    assert!(tail.data[100..].iter().all(|byte| *byte == 0));
    assert_eq!(tail.crcs, block_crcs(id.chunk, 0, 3, &tail.data[..100]), "padding counts as zeros");
    let beyond = store.read(id, 1 << 40, 10).expect("an empty answer");
    assert!(beyond.data.is_empty() && beyond.crcs.is_empty());
    let cut = store.read(id, 4 * BLOCK, 1 << 40).expect("cut at the end");
    assert_eq!(cut.data.len(), BLOCK_BYTES);
    if let Some(blocks) = store.read_resident(id, 0, 1).expect("readable") {
        assert_eq!(blocks.data, fill(id, 0, BLOCK_BYTES));
    }
}

#[test]
fn appends_go_to_the_end_and_nowhere_else() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 2);
    let store = open(&disk, 1).expect("an empty disk");
    let id = copy_id(5);
    let wrong = |result: Result<u64, StoreError>| {
        assert!(matches!(result, Err(StoreError::WrongOffset { .. })), "{result:?}");
    };
    assert_eq!(put(&store, id, BLOCK, 10), Err(StoreError::NoSuchReplica(id)));
    put(&store, id, 0, 2 * BLOCK_BYTES).expect("the first");
    wrong(put(&store, id, 4 * BLOCK, 10));
    wrong(put(&store, id, BLOCK, 2 * BLOCK_BYTES));
    assert_eq!(put(&store, id, 0, 2 * BLOCK_BYTES), Ok(2 * BLOCK), "an exact duplicate is done");
    assert_eq!(put(&store, id, BLOCK, BLOCK_BYTES), Ok(2 * BLOCK));
    wrong(store.append(&append_of(id, 0, Bytes::from_static(b"something else"))));
    check_bytes(&store, id, 2 * BLOCK);

    let crcs = |data: &[u8]| block_crcs(id.chunk, 0, 0, data);
    let checked = |offset, data: &'static [u8], crcs| {
        Append::checked(id, offset, Bytes::from_static(data), crcs, true).err()
    };
    assert!(matches!(checked(10, b"x", crcs(b"x")), Some(StoreError::Bad(_))));
    assert!(matches!(checked(0, b"x", vec![]), Some(StoreError::Bad(_))));
    assert!(matches!(checked(u64::MAX - 4095, b"x", crcs(b"x")), Some(StoreError::Bad(_))));
    assert!(matches!(checked(id.len_max(), b"x", crcs(b"x")), Some(StoreError::Bad(_))));
    assert!(matches!(checked(0, b"x", crcs(b"y")), Some(StoreError::Corrupt(_))));
    assert!(matches!(checked(BLOCK, b"x", crcs(b"x")), Some(StoreError::Corrupt(_))), "place");
}

#[test]
fn a_sync_makes_durable_and_names_what() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 3);
    let store = open(&disk, 1).expect("an empty disk");
    let (one, two) = (copy_id(5), copy_id(6));
    put(&store, one, 0, 2 * BLOCK_BYTES).expect("appended");
    put(&store, two, 0, 10).expect("appended");
    let before = disk.counters().syncs;
    assert_eq!(store.sync(&[one, two]), [Ok(2 * BLOCK), Ok(BLOCK)]);
    assert_eq!(disk.counters().syncs - before, 2, "one fdatasync each");
    assert_eq!(sync(&store, one), Ok(2 * BLOCK), "nothing to do");
    assert_eq!(disk.counters().syncs - before, 2);
    assert_eq!(inspect(&*disk.durable()).expect("readable"), [(one, 2 * BLOCK), (two, BLOCK)]);
    let absent = copy_id(9);
    assert_eq!(sync(&store, absent), Err(StoreError::NoSuchReplica(absent)));
}

#[test]
fn a_seal_ends_a_replica_for_ever() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 4);
    let store = open(&disk, 1).expect("an empty disk");
    let id = copy_id(5);
    put(&store, id, 0, 4 * BLOCK_BYTES).expect("appended");
    let short = store.seal(id, 5 * BLOCK);
    assert!(matches!(short, Err(StoreError::NotDurable { .. })), "{short:?}");
    assert_eq!(store.seal(id, BLOCK + 1), Ok(2 * BLOCK), "whole blocks");
    assert_eq!(store.seal(id, 2 * BLOCK), Ok(2 * BLOCK), "again");
    assert!(matches!(store.seal(id, BLOCK), Err(StoreError::Bad(_))));
    assert!(matches!(put(&store, id, 2 * BLOCK, 1), Err(StoreError::WrongOffset { .. })));
    assert_eq!(put(&store, id, 0, BLOCK_BYTES), Ok(2 * BLOCK), "a late duplicate is still done");
    assert_eq!(disk.written(&path_of(id)).expect("there").len() as u64, DATA_START + 2 * BLOCK);
    disk.power_loss_as(mooseng_sim::disk::Outcome::DropAll);
    let store = open(&disk, 2).expect("its disk");
    let status = store.status(id).expect("there");
    assert_eq!((status.length, status.durable, status.sealed), (2 * BLOCK, 2 * BLOCK, true));
    check_bytes(&store, id, 2 * BLOCK);
}

#[test]
fn a_delete_is_by_id_and_durable() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 5);
    let store = open(&disk, 1).expect("an empty disk");
    let old = copy_id(5);
    let new = ReplicaId { generation: Generation(8), ..old };
    for id in [old, new] {
        put(&store, id, 0, 10).expect("appended");
        sync(&store, id).expect("synced");
    }
    assert_eq!(store.delete(&[old]), Ok(()));
    assert_eq!(store.delete(&[old, copy_id(77)]), Ok(()), "what is not there counts as deleted");
    disk.power_loss_as(mooseng_sim::disk::Outcome::DropAll);
    let store = open(&disk, 2).expect("its disk");
    assert!(store.status(old).is_none());
    assert!(store.status(new).is_some(), "another generation of the chunk is another replica");
}

#[test]
fn pages_of_the_list_join() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 6);
    let store = open(&disk, 1).expect("an empty disk");
    for chunk in 1..=11 {
        put(&store, copy_id(chunk), 0, 10).expect("appended");
        sync(&store, copy_id(chunk)).expect("synced");
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(after, 4);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        seen.extend(page.into_iter().map(|status| status.id));
    }
    assert_eq!(seen, (1..=11).map(copy_id).collect::<Vec<_>>());
    for chunk in 1..=11 {
        check_bytes(&store, copy_id(chunk), 10);
    }
}

#[test]
fn rot_is_found_and_reported() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 7);
    let store = open(&disk, 1).expect("an empty disk");
    let (id, length) = (copy_id(5), 300 * BLOCK);
    for offset in (0..length).step_by(15 * BLOCK_BYTES) {
        put(&store, id, offset, 15 * BLOCK_BYTES).expect("appended");
    }
    store.seal(id, length).expect("sealed");
    assert_eq!(store.verify(id), Ok(vec![]));
    assert!(disk.rot(&path_of(id), DATA_START + 2 * BLOCK + 9, 0x10));
    assert!(disk.rot(&path_of(id), 4096 + 299 * 4, 0x01), "the table rots too");
    assert_eq!(store.verify(id), Ok(vec![2, 299]));
    assert!(store.status(id).expect("there").corrupt);
    assert_eq!(store.take_bad(), [id]);
    assert!(store.take_bad().is_empty(), "told once");
}

#[test]
fn a_build_appears_whole_or_not_at_all() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 8);
    let store = open(&disk, 1).expect("an empty disk");
    let id = ReplicaId { shard: 5, data_shards: 4, ..copy_id(5) };
    let whole = fill(id, 0, 48 * BLOCK_BYTES);
    let mut dropped = store.build(id, 48 * BLOCK).expect("begun");
    dropped.write(&whole[..BLOCK_BYTES], &[]).expect("written");
    assert!(matches!(store.build(id, 48 * BLOCK), Err(StoreError::Busy(_))), "one at a time");
    drop(dropped);
    assert!(store.status(id).is_none());
    assert!(!disk.paths().iter().any(|path| path.ends_with(".build")), "nothing is left");
    for _again in 0..2 {
        let mut build = store.build(id, 48 * BLOCK).expect("begun");
        for piece in whole.chunks(16 * BLOCK_BYTES) {
            build.write(piece, &[]).expect("written");
        }
        assert_eq!(build.finish(), Ok(48 * BLOCK));
    }
    disk.power_loss_as(mooseng_sim::disk::Outcome::DropAll);
    let store = open(&disk, 2).expect("its disk");
    assert!(store.status(id).expect("there").sealed);
    assert_eq!(store.verify(id), Ok(vec![]));
    check_bytes(&store, id, 48 * BLOCK);
    assert!(matches!(store.build(id, 1 << 40), Err(StoreError::Bad(_))));
}

#[test]
fn a_replica_deleted_while_it_is_built_does_not_appear() {
    let _turn = alone();
    let disk = SimDisk::new("store", 64 << 20, 9);
    let store = open(&disk, 1).expect("an empty disk");
    let id = ReplicaId { shard: 5, data_shards: 4, ..copy_id(5) };
    let whole = fill(id, 0, 16 * BLOCK_BYTES);
    let mut build = store.build(id, 16 * BLOCK).expect("begun");
    build.write(&whole, &[]).expect("written");
    store.disown(id);
    assert_eq!(build.finish(), Err(StoreError::NoSuchReplica(id)));
    assert!(store.status(id).is_none());
    assert!(!disk.paths().iter().any(|path| path.contains("chunks/05/")), "nothing is left");
    // A command that the delete has overtaken comes to nothing; the next copy has another generation.
    assert_eq!(store.build(id, 16 * BLOCK).map(drop), Err(StoreError::NoSuchReplica(id)));
    let next = ReplicaId { generation: Generation(id.generation.0 + 1), ..id };
    let mut build = store.build(next, 16 * BLOCK).expect("begun");
    build.write(&fill(next, 0, 16 * BLOCK_BYTES), &[]).expect("written");
    assert_eq!(build.finish(), Ok(16 * BLOCK));
}
