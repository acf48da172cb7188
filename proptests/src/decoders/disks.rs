//! Disks: the log of a master and the store of a chunkserver, opened over files of any bytes. What opens must read,
//! and open again with the same in it. With mended checksums a log may be refused the second time: what looked like
//! one long record may be found to hold later ones.
//!
//! An input writes pieces into files of known names: file, offset, length, bytes; everything else is zeros.

use super::bytes::{put_number, set_u32, u32_at};
use super::messages::{disk_superblock, mend_record};
use super::{Reader, split, with_first};
use crate::mem_disk::MemDisk;
use bytes::Bytes;
use mooseng::checksum::{block_crcs, crc32c_parts};
use mooseng::codec::{self, kind};
use mooseng::ids::{ChunkId, Generation, LogIndex, NodeId, Term};
use mooseng::limits::{BLOCK_BYTES, Limits};
use mooseng::pb;
use mooseng::seam::Disk;
use mooseng::store::{Append, ReplicaId, Status, Store, assemble, inspect};
use mooseng::wal::{self, Entry, LogId, Vote, Wal};
use std::sync::Arc;

/// Longest file that an input can make.
const FILE_BYTES_MAX: usize = 512 << 10;
/// Where pieces of a seed begin and end.
const PIECE: usize = 64;

/// The files that the input writes.
fn unpack(input: &[u8], names: &[String]) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<Option<Vec<u8>>> = vec![None; names.len()];
    let mut rest = Reader(input);
    while !rest.is_empty() {
        let file = files[rest.number(1) % names.len()].get_or_insert_default();
        let (offset, len) = (rest.number(3), rest.number(2));
        let bytes = rest.take(len);
        let end = offset + bytes.len();
        if end <= FILE_BYTES_MAX {
            file.resize(file.len().max(end), 0);
            file[offset..end].copy_from_slice(bytes);
        }
    }
    let named = names.iter().cloned().zip(files);
    named.filter_map(|(name, file)| Some((name, file?))).collect()
}

/// The inverse of [`unpack`].
fn pack(disk: &MemDisk, names: &[String]) -> Vec<u8> {
    let mut seed = Vec::new();
    let mut put = |which: usize, offset: usize, bytes: &[u8]| {
        put_number(&mut seed, which, 1);
        put_number(&mut seed, offset, 3);
        put_number(&mut seed, bytes.len(), 2);
        seed.extend_from_slice(bytes);
    };
    for (path, bytes) in disk.files() {
        let Some(which) = names.iter().position(|name| *name == path) else { continue };
        let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
        let mut at = 0;
        while at < pieces.len() {
            let run = pieces[at..].iter().take_while(|piece| piece.iter().any(|b| *b != 0)).count();
            if run > 0 {
                let from = at * PIECE;
                put(which, from, &bytes[from..bytes.len().min(from + run * PIECE)]);
            }
            at += run.max(1);
        }
        // The length is a part of it.
        if let Some((last, before)) = bytes.split_last() {
            put(which, before.len(), &[*last]);
        }
    }
    seed
}

fn disk(input: &[u8], names: &[String], mend: impl Fn(&str, &mut [u8])) -> MemDisk {
    let (mends, _, rest) = split(input);
    let disk = MemDisk::default();
    for (name, mut bytes) in unpack(rest, names) {
        if mends {
            mend(&name, &mut bytes);
        }
        disk.put(&name, bytes);
    }
    disk
}

// ---- the log ----

fn log_names() -> Vec<String> {
    let segments = (0..4).map(|slot| format!("wal/{slot:020}.log"));
    segments.chain(["wal/vote".to_owned()]).collect()
}

/// Sets the checksum of everything that looks like a record.
fn mend_log(_: &str, bytes: &mut [u8]) {
    const HEADER: usize = 48;
    let mut at = 0;
    while at + HEADER <= bytes.len() {
        let len = u32_at(bytes, at + 12).unwrap_or(0);
        let end = at + HEADER + len;
        if !bytes[at..].starts_with(b"MWAL") || end > bytes.len() {
            at += 8;
            continue;
        }
        let crc = crc32c_parts(&[&(at as u64).to_le_bytes(), &bytes[at + 8..end]]);
        set_u32(bytes, at + 4, crc);
        at = end.next_multiple_of(8);
    }
}

/// What a log says.
fn said(log: &Wal) -> (Option<Vote>, Option<LogId>, Option<LogId>, Vec<Entry>) {
    let entries = log.read(LogIndex(0), LogIndex(u64::MAX), 1 << 20);
    (log.vote(), log.purged(), log.last(), entries.expect("an open log can be read"))
}

pub(super) fn run_log(input: &[u8]) {
    let forged = split(input).0;
    let disk = disk(input, &log_names(), mend_log);
    let _ = wal::inspect(&disk);
    let Ok(mut log) = Wal::open(Arc::new(disk.clone()), &Limits::tiny()) else { return };
    let before = said(&log);
    log.sync().expect("a disk without faults");
    drop(log);
    match Wal::open(Arc::new(disk), &Limits::tiny()) {
        Ok(again) => assert_eq!(said(&again), before, "opened again, it says something else"),
        Err(error) => assert!(forged, "a log that was opened: {error}"),
    }
}

pub(super) fn log_seeds() -> Vec<Vec<u8>> {
    let disk = MemDisk::default();
    let mut log = Wal::open(Arc::new(disk.clone()), &Limits::tiny()).expect("an empty log");
    let (term, node) = (Term(2), NodeId(1));
    let id = |index| LogId { term, node, index: LogIndex(index) };
    let mut seeds = vec![with_first(true, 0, &pack(&disk, &log_names()))];
    log.save_vote(Vote { term, node, committed: true }).expect("voted");
    for index in 1..=6 {
        let payload = vec![index as u8; 20].into();
        log.append(&[Entry { id: id(index), payload }]).expect("appended");
        if index % 2 == 0 {
            log.sync().expect("synced");
        }
    }
    log.save_committed(id(4)).expect("saved");
    seeds.push(with_first(true, 0, &pack(&disk, &log_names())));
    log.truncate(LogIndex(6)).expect("cut");
    log.purge(id(2)).expect("purged");
    log.announce_install(id(9)).expect("announced");
    log.close().expect("closed");
    seeds.push(with_first(false, 0, &pack(&disk, &log_names())));
    seeds
}

// ---- replicas ----

/// A replica of each kind: a copy, and a shard of a k+m chunk.
fn ids() -> [ReplicaId; 3] {
    let id = |chunk, shard, data_shards| {
        let (chunk, generation) = (ChunkId(chunk), Generation(7));
        ReplicaId { chunk, generation, shard, data_shards }
    };
    [id(1, 0, 1), id(2, 2, 4), id(3, 0, 1)]
}

fn replica_path(id: ReplicaId) -> String {
    let (chunk, generation) = (id.chunk.0, id.generation.0);
    let name = format!("{chunk:016x}-{generation:x}-{}-{}.dat", id.shard, id.data_shards);
    format!("chunks/{:02x}/{name}", chunk & 0xff)
}

fn replica_names() -> Vec<String> {
    let build = replica_path(ids()[0]).replace(".dat", ".build");
    ids().map(replica_path).into_iter().chain([build, "superblock".to_owned()]).collect()
}

/// Sets the checksums of headers, and of each block that is there and has one.
fn mend_replica(name: &str, bytes: &mut [u8]) {
    for at in [0, 2048] {
        if let Some(copy) = bytes.get_mut(at..) {
            mend_record(copy);
        }
    }
    let Some(id) = ids().into_iter().find(|id| replica_path(*id) == name) else { return };
    let table = (id.len_max() as usize / BLOCK_BYTES * 4).next_multiple_of(BLOCK_BYTES);
    let data = BLOCK_BYTES + table;
    for block in 0..bytes.len().saturating_sub(data) / BLOCK_BYTES {
        let (place, from) = (BLOCK_BYTES + 4 * block, data + block * BLOCK_BYTES);
        if u32_at(bytes, place).is_some_and(|crc| crc != 0) {
            let piece = &bytes[from..from + BLOCK_BYTES];
            let crc = block_crcs(id.chunk, id.crc_shard(), block as u32, piece)[0];
            set_u32(bytes, place, crc);
        }
    }
}

fn open_store(disk: &MemDisk) -> Result<Store, String> {
    let disks: Vec<Arc<dyn Disk>> = vec![Arc::new(disk.clone())];
    let claimed = assemble(disks, None, &[]).map_err(|error| error.to_string())?;
    let [claimed] = <[_; 1]>::try_from(claimed.disks).map_err(|_| "one disk".to_owned())?;
    Store::open(claimed, Arc::new(Limits::tiny())).map_err(|error| error.to_string())
}

fn put_superblock(disk: &MemDisk) {
    if !disk.exists("superblock").expect("a disk without faults") {
        let kind = kind::CHUNK_DISK_SUPERBLOCK;
        codec::write_file(disk, "superblock", kind, &disk_superblock()).expect("written");
    }
}

fn read_all(store: &Store) -> Vec<(ReplicaId, u64, bool, bool)> {
    let found = store.list(None, usize::MAX);
    for status in &found {
        let bad = store.verify(status.id);
        let read = store.read(status.id, 0, status.length);
        if !status.corrupt && bad.is_ok_and(|bad| bad.is_empty()) {
            read.expect("good blocks are read");
        }
    }
    let told = |status: Status| (status.id, status.length, status.sealed, status.corrupt);
    found.into_iter().map(told).collect()
}

pub(super) fn run_replicas(input: &[u8]) {
    let disk = disk(input, &replica_names(), mend_replica);
    put_superblock(&disk);
    let _ = inspect(&disk);
    let Ok(store) = open_store(&disk) else { return };
    let before = read_all(&store);
    drop(store);
    let again = open_store(&disk).expect("a store that was opened");
    assert_eq!(read_all(&again), before, "opened again, it holds something else");
}

pub(super) fn replica_seeds() -> Vec<Vec<u8>> {
    let disk = MemDisk::default();
    put_superblock(&disk);
    let store = open_store(&disk).expect("an empty disk");
    for (id, blocks) in ids().into_iter().zip([2, 1, 3]) {
        let mut data = vec![0; blocks * BLOCK_BYTES];
        data[100..120].fill(id.chunk.0 as u8);
        let crcs = block_crcs(id.chunk, id.crc_shard(), 0, &data);
        let append = Append::checked(id, 0, Bytes::from(data), crcs, true).expect("good bytes");
        store.append(&append).expect("appended");
        if blocks > 1 {
            store.sync(&[id]).swap_remove(0).expect("synced");
        }
    }
    let open = pack(&disk, &replica_names());
    let (last, block) = (ids()[2], BLOCK_BYTES as u64);
    store.seal(last, 2 * block).expect("sealed");
    store.punch(last, &[pb::Hole { from: block, end: 2 * block }]).expect("punched");
    drop(store);
    let sealed = pack(&disk, &replica_names());
    vec![with_first(true, 0, &open), with_first(false, 0, &sealed)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        for (names, seed) in
            [(log_names(), &log_seeds()[1]), (replica_names(), &replica_seeds()[1])]
        {
            let disk = MemDisk::default();
            for (name, bytes) in unpack(&seed[1..], &names) {
                disk.put(&name, bytes);
            }
            assert!(!disk.files().is_empty());
            assert_eq!(pack(&disk, &names), seed[1..]);
        }
    }

    #[test]
    fn seeds_are_logs_and_stores_with_something_in_them() {
        let log = disk(&log_seeds()[1], &log_names(), mend_log);
        let log = Wal::open(Arc::new(log), &Limits::tiny()).expect("a log");
        assert_eq!(said(&log).3.len(), 6);
        let replicas = disk(&replica_seeds()[1], &replica_names(), mend_replica);
        let found = read_all(&open_store(&replicas).expect("a store"));
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|(_, length, _, corrupt)| *length > 0 && !corrupt), "{found:?}");
    }
}
