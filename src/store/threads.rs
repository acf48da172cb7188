//! Several threads in one store on a real directory: one writes, seals, punches, rebuilds and deletes, the others read
//! and verify. Every block that is read is its own or a hole, and nothing ever counts as bad.
#![expect(clippy::disallowed_methods, reason = "the test makes threads and a directory")]

use super::*;
use crate::checksum::{block_crcs, hole_crc};
use crate::ids::{ChunkId, Generation};
use crate::limits::{BLOCK_BYTES, Limits};
use crate::pb::Hole;
use crate::seam::Disk;
use crate::seam::real::RealDisk;
use crate::seam::rng;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Replicas that the writer goes through.
const REPLICAS: u64 = 400;
const READERS: usize = 3;

fn id_of(chunk: u64) -> ReplicaId {
    ReplicaId { chunk: ChunkId(chunk), generation: Generation(1), shard: 0, data_shards: 1 }
}

/// The bytes of some blocks of a replica.
fn fill(id: ReplicaId, from: u64, blocks: u64) -> Bytes {
    let byte = |at: u64| (at ^ (at >> 12) ^ id.chunk.0.wrapping_mul(31)) as u8;
    (from * BLOCK..(from + blocks) * BLOCK).map(byte).collect()
}

fn append(store: &Store, id: ReplicaId, from: u64, blocks: u64) {
    let data = fill(id, from, blocks);
    let crcs = block_crcs(id.chunk, id.crc_shard(), from as u32, &data);
    let append = Append::checked(id, from * BLOCK, data, crcs, true).unwrap();
    assert_eq!(store.append(&append).unwrap(), (from + blocks) * BLOCK);
}

/// The life of one replica up to its seal, which cuts off its last blocks, and a hole in it.
fn live(store: &Arc<Store>, id: ReplicaId) {
    if id.chunk.0.is_multiple_of(4) {
        let mut build = store.build(id, 12 * BLOCK).unwrap();
        build.write(&fill(id, 0, 12), &[]).unwrap();
        build.finish().unwrap();
    } else {
        for piece in 0..4 {
            append(store, id, piece * 4, 4);
            if piece == 1 {
                store.sync(&[id]).remove(0).unwrap();
            }
        }
        store.seal(id, 12 * BLOCK).unwrap();
    }
    store.punch(id, &[Hole { from: 2 * BLOCK, end: 5 * BLOCK }]).unwrap();
}

fn look(store: &Store, id: ReplicaId, whole: bool) -> Result<u64, StoreError> {
    if whole {
        let bad = store.verify(id)?;
        assert!(bad.is_empty(), "{id}: blocks {bad:?} are bad");
    }
    let from = rng::random_u64() % 16;
    let resident = store.read_resident(id, from * BLOCK, 8 * BLOCK)?;
    let read = resident.map_or_else(|| store.read(id, from * BLOCK, 8 * BLOCK), Ok)?;
    let (first, blocks) = (read.offset / BLOCK, read.data.len() as u64 / BLOCK);
    let wanted = fill(id, first, blocks);
    let crcs = block_crcs(id.chunk, id.crc_shard(), first as u32, &wanted);
    for (i, block) in read.data.chunks(BLOCK_BYTES).enumerate() {
        let index = first as u32 + i as u32;
        let is_hole = read.crcs[i] == hole_crc(id.chunk, id.crc_shard(), index);
        let own = read.crcs[i] == crcs[i] && *block == wanted[i * BLOCK_BYTES..][..BLOCK_BYTES];
        assert!(own || is_hole && (2..5).contains(&index), "{id}: block {index} is another");
    }
    Ok(blocks)
}

fn read_on(store: &Store, ends: &AtomicBool, newest: &AtomicU64) -> u64 {
    let mut blocks = 0;
    while !ends.load(Ordering::Acquire) {
        let draw = rng::random_u64();
        let chunk = newest.load(Ordering::Acquire).saturating_sub(draw % 4).max(1);
        match look(store, id_of(chunk), draw.is_multiple_of(8)) {
            Ok(read) => blocks += read,
            Err(StoreError::NoSuchReplica(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    blocks
}

#[test]
fn readers_and_a_writer_agree() {
    let dir = std::env::temp_dir().join(format!("mooseng-store-{}", rng::random_uuid()));
    let disk: Arc<dyn Disk> = RealDisk::create(&dir).unwrap();
    let claimed = assemble(vec![disk], None, &[]).unwrap().disks.swap_remove(0);
    let store = Arc::new(Store::open(claimed, Arc::new(Limits::tiny())).unwrap());
    let (ends, newest) = (AtomicBool::new(false), AtomicU64::new(0));
    let read = std::thread::scope(|scope| {
        let read = || read_on(&store, &ends, &newest);
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        for chunk in 1..=REPLICAS {
            newest.store(chunk, Ordering::Release);
            live(&store, id_of(chunk));
            if chunk > 3 {
                store.delete(&[id_of(chunk - 3)]).unwrap();
            }
        }
        ends.store(true, Ordering::Release);
        readers.into_iter().map(|reader| reader.join().expect("agrees")).sum::<u64>()
    });
    assert!(read > 0, "the readers found nothing");
    assert_eq!(store.take_bad(), []);
    assert!(!store.failed());
    drop(store);
    std::fs::remove_dir_all(&dir).unwrap();
}
