//! The chunk store over the simulated disk: its rules, full and failing disks, and a crash at every I/O (O8).

mod crash;
mod disks;
mod mutants;
mod rules;
mod small;

use bytes::Bytes;
use mooseng::checksum::{block_crcs, hole_crc};
use mooseng::ids::{ChunkId, Generation};
use mooseng::limits::{BLOCK_BYTES, Limits};
use mooseng::seam::Disk;
use mooseng::store::{Append, DiskError, ReplicaId, Store, StoreError, assemble};
use mooseng_sim::disk::SimDisk;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// Where the data of a copy begins in its file.
pub const DATA_START: u64 = 68 << 10;

/// Planted bugs are switched on for a whole process, so tests take turns.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn limits() -> Arc<Limits> {
    Arc::new(Limits::tiny())
}

pub fn copy_id(chunk: u64) -> ReplicaId {
    ReplicaId { chunk: ChunkId(chunk), generation: Generation(7), shard: 0, data_shards: 1 }
}

pub fn path_of(id: ReplicaId) -> String {
    let (chunk, generation) = (id.chunk.0, id.generation.0);
    let name = format!("{chunk:016x}-{generation:x}-{}-{}.dat", id.shard, id.data_shards);
    format!("chunks/{:02x}/{name}", chunk & 0xff)
}

/// The bytes that belong at a place of a replica.
pub fn fill(id: ReplicaId, offset: u64, len: usize) -> Bytes {
    let byte = |at: u64| (at ^ (at >> 8) ^ (at >> 12) ^ id.chunk.0.wrapping_mul(31)) as u8;
    (offset..offset + len as u64).map(byte).collect()
}

pub fn append_of(id: ReplicaId, offset: u64, data: Bytes) -> Append {
    let crcs = block_crcs(id.chunk, id.crc_shard(), (offset / BLOCK) as u32, &data);
    Append::checked(id, offset, data, crcs, true).expect("a good append")
}

pub fn put(store: &Store, id: ReplicaId, offset: u64, len: usize) -> Result<u64, StoreError> {
    store.append(&append_of(id, offset, fill(id, offset, len)))
}

pub fn sync(store: &Store, id: ReplicaId) -> Result<u64, StoreError> {
    store.sync(&[id]).swap_remove(0)
}

/// The disk as a process of this incarnation sees it, its store opened.
pub fn open(disk: &Arc<SimDisk>, incarnation: u64) -> Result<Arc<Store>, DiskError> {
    disk.fence(incarnation);
    open_as(disk.handle(incarnation))
}

pub fn open_as(disk: Arc<dyn Disk>) -> Result<Arc<Store>, DiskError> {
    let claimed = assemble(vec![disk], None, &[])?.disks.swap_remove(0);
    Ok(Arc::new(Store::open(claimed, limits())?))
}

/// Every byte up to `to` is what was appended, with CRCs that match.
pub fn check_bytes(store: &Store, id: ReplicaId, to: u64) {
    let blocks = store.read(id, 0, to).expect("readable");
    assert!(blocks.data.len() as u64 >= to, "{id}: {} of {to} bytes", blocks.data.len());
    assert_eq!(blocks.data[..to as usize], fill(id, 0, to as usize), "{id}: other bytes");
    let crcs = block_crcs(id.chunk, id.crc_shard(), 0, &blocks.data);
    assert_eq!(blocks.crcs, crcs, "{id}: CRCs do not match");
}
