//! Every decoder of bytes from the wire and from disks, on arbitrary bytes and on mutated valid ones: never a
//! panic, and never more memory than the input justifies.
//!
//! Memory is counted by the allocator of this program, for the calling thread. A frame may reserve 1 MiB for what
//! its header claims; whatever else is in memory at once is at most 16 times the input, beside what is fixed.

#![cfg(feature = "sim")]

use bytes::{BufMut, Bytes};
use mooseng::checksum::block_crcs;
use mooseng::codec::{decode_record, encode_record, kind};
use mooseng::ids::{ChunkId, Generation, InodeId, LogIndex, NodeId, Term};
use mooseng::limits::Limits;
use mooseng::namespace::tables::Dentries;
use mooseng::pb;
use mooseng::seam::{Disk, OpenMode};
use mooseng::store::{Append, ReplicaId, Store, assemble, inspect};
use mooseng::tables::{Db, Read};
use mooseng::wal::{self, Entry, LogId, Vote, Wal};
use mooseng::wire::frame::{Decoder, FrameLimits, Head, Kind, body_buffer, finish};
use mooseng_sim::disk::SimDisk;
use proptest::prelude::*;
use prost::Message;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

// ---- memory ----

struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator, and counts beside it without allocating.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.get() + layout.size();
        NOW.set(now);
        PEAK.set(PEAK.get().max(now));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.set(NOW.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were in memory at once, beside what was there before.
fn peak<T>(work: impl FnOnce() -> T) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    drop(work());
    PEAK.get() - before
}

fn bounded<T>(input: usize, fixed: usize, work: impl FnOnce() -> T) {
    let peak = peak(work);
    assert!(peak <= 16 * input + fixed, "{peak} bytes for an input of {input}");
}

/// For errors and the like.
const LITTLE: usize = 4 << 10;
/// Reserved for what a frame's header claims, and the buffer that it is read into.
const FRAME: usize = (1 << 20) + (80 << 10);
/// Caches of tables, logs and stores, whatever is in their files.
const DISK: usize = 2 << 20;

// ---- mutations ----

/// One change of some bytes; places are taken modulo the length.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(usize, u8),
    Zero(usize, usize),
    Set(usize, Vec<u8>),
    Cut(usize),
    Extend(Vec<u8>),
    /// A piece of it again, elsewhere.
    Copy(usize, usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let (at, len) = (0..1usize << 20, 1..5000usize);
    prop_oneof![
        (at.clone(), 1..=u8::MAX).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        (at.clone(), len.clone()).prop_map(|(at, len)| Mutation::Zero(at, len)),
        (at.clone(), prop::collection::vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Mutation::Set(at, bytes)),
        at.clone().prop_map(Mutation::Cut),
        prop::collection::vec(any::<u8>(), 1..64).prop_map(Mutation::Extend),
        (at.clone(), at, len).prop_map(|(from, to, len)| Mutation::Copy(from, to, len)),
    ]
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    prop::collection::vec(mutation(), 1..4)
}

fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        let size = bytes.len().max(1);
        match mutation {
            Mutation::Extend(more) => bytes.extend_from_slice(more),
            _ if bytes.is_empty() => {}
            Mutation::Flip(at, bits) => bytes[at % size] ^= bits,
            Mutation::Zero(at, len) => {
                let from = at % size;
                let to = (from + len).min(size);
                bytes[from..to].fill(0);
            }
            Mutation::Set(at, new) => {
                let from = at % size;
                let len = new.len().min(size - from);
                bytes[from..from + len].copy_from_slice(&new[..len]);
            }
            Mutation::Cut(at) => bytes.truncate(at % size),
            Mutation::Copy(from, to, len) => {
                let (from, to) = (from % size, to % size);
                let len = (*len).min(size - from.max(to));
                bytes.copy_within(from..from + len, to);
            }
        }
    }
}

/// Rewrites a file of the disk.
fn mutate_file(disk: &dyn Disk, path: &str, mutations: &[Mutation]) {
    let file = disk.open(path, OpenMode::Write).expect("the file");
    let mut bytes = vec![0; file.len().expect("its length") as usize];
    file.read_exact_at(0, &mut bytes).expect("its bytes");
    mutate(&mut bytes, mutations);
    file.write_at(0, &bytes).expect("written");
    file.set_len(bytes.len() as u64).expect("cut");
}

/// All files of the disk, with their sizes.
fn files(disk: &SimDisk) -> Vec<(String, usize)> {
    let size = |path: &String| disk.written(path).map_or(0, |bytes| bytes.len());
    disk.paths().into_iter().map(|path| (path.clone(), size(&path))).collect()
}

// ---- the wire ----

fn frames() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, payload) in [(1, 0), (2, 100), (3, 70_000)] {
        let message = command().encode_to_vec();
        let mut buffer = body_buffer(message.len());
        buffer.put_slice(&message);
        let head = Head { method: 80, ..Head::bare(Kind::Request, id) };
        let payload = Bytes::from(vec![id as u8; payload]);
        bytes.extend_from_slice(&finish(buffer, head, std::slice::from_ref(&payload)));
        bytes.extend_from_slice(&payload);
    }
    bytes
}

fn decode_frames(mut input: &[u8]) -> usize {
    let (mut decoder, mut found) = (Decoder::new(FrameLimits::REQUESTS), 0);
    while !input.is_empty() {
        let mut target = decoder.target();
        let len = target.remaining_mut().min(input.len());
        target.put_slice(&input[..len]);
        input = &input[len..];
        loop {
            match decoder.next_frame() {
                Ok(Some(_)) => found += 1,
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

fn command() -> pb::Command {
    let create = pb::CreateOp { parent: 1, name: Bytes::from_static(b"a"), ..Default::default() };
    let ops = vec![pb::Op { op: Some(pb::op::Op::Create(create)) }; 3];
    let batch = pb::Batch { session: 4, first_seq: 9, acked_seq: 8, ops };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::Batch(batch)) };
    pb::Command { time_ns: 77, proposals: vec![proposal; 3] }
}

/// Decoded as each of the longest messages that servers take from strangers.
fn decode_messages(input: &[u8]) {
    drop(pb::Command::decode(input));
    drop(pb::Batch::decode(input));
    drop(pb::QueryRequest::decode(input));
    drop(pb::QueryReply::decode(input));
    drop(pb::ReportRequest::decode(input));
    drop(pb::RegisterRequest::decode(input));
    drop(pb::HeartbeatRequest::decode(input));
    drop(pb::AppendRequest::decode(input));
    drop(pb::RebuildRequest::decode(input));
    drop(pb::PunchRequest::decode(input));
    drop(pb::InodeRow::decode(input));
    drop(pb::HolesRow::decode(input));
}

#[test]
fn good_frames_and_records_are_decoded() {
    assert_eq!(decode_frames(&frames()), 3);
    let mut record = Vec::new();
    encode_record(kind::TEST, b"body", &mut record);
    assert_eq!(decode_record(kind::TEST, &record).expect("a record").0, b"body");
}

proptest! {
    #[test]
    fn frames_from_arbitrary_bytes(input in prop::collection::vec(any::<u8>(), 0..3000)) {
        bounded(input.len(), FRAME, || decode_frames(&input));
    }

    #[test]
    fn frames_from_mutated_bytes(mutations in mutations()) {
        let mut input = frames();
        mutate(&mut input, &mutations);
        bounded(input.len(), FRAME, || decode_frames(&input));
    }

    #[test]
    fn messages_from_arbitrary_bytes(input in prop::collection::vec(any::<u8>(), 0..3000)) {
        bounded(input.len(), LITTLE, || decode_messages(&input));
    }

    #[test]
    fn messages_from_mutated_bytes(mutations in mutations()) {
        let mut input = command().encode_to_vec();
        mutate(&mut input, &mutations);
        bounded(input.len(), LITTLE, || decode_messages(&input));
    }

    #[test]
    fn records_from_mutated_bytes(mutations in mutations(), body in 0..3000usize) {
        let mut input = Vec::new();
        encode_record(kind::TEST, &vec![7; body], &mut input);
        mutate(&mut input, &mutations);
        bounded(input.len(), LITTLE, || {
            let _ = decode_record(kind::TEST, &input);
        });
    }
}

// ---- disks ----

fn log_disk() -> Arc<SimDisk> {
    let disk = SimDisk::new("log", 64 << 20, 1);
    let mut log = Wal::open(disk.handle(1), &Limits::tiny()).expect("an empty log");
    let (term, node) = (Term(2), NodeId(1));
    log.save_vote(Vote { term, node, committed: true }).expect("voted");
    for index in 1..=40 {
        let id = LogId { term, node, index: LogIndex(index) };
        log.append(&[Entry { id, payload: vec![index as u8; 900].into() }]).expect("appended");
        log.sync().expect("synced");
    }
    log.save_committed(LogId { term, node, index: LogIndex(30) }).expect("saved");
    log.close().expect("closed");
    disk
}

fn replica_disk() -> Arc<SimDisk> {
    let disk = SimDisk::new("replicas", 64 << 20, 1);
    let store = store(&disk, 1).expect("an empty disk");
    for chunk in 1..=3 {
        let (chunk, generation) = (ChunkId(chunk), Generation(7));
        let id = ReplicaId { chunk, generation, shard: 0, data_shards: 1 };
        let data = Bytes::from(vec![3; 20_000]);
        let crcs = block_crcs(chunk, 0, 0, &data);
        let append = Append::checked(id, 0, data, crcs, true).expect("good bytes");
        store.append(&append).expect("appended");
        store.sync(&[id]).swap_remove(0).expect("synced");
        if chunk.0 == 2 {
            store.seal(id, 16_384).expect("sealed");
            store.punch(id, &[pb::Hole { from: 4096, end: 8192 }]).expect("punched");
        }
    }
    disk
}

fn store(disk: &Arc<SimDisk>, incarnation: u64) -> Result<Store, String> {
    disk.fence(incarnation);
    let claimed = assemble(vec![disk.handle(incarnation)], None, &[]);
    let claimed = claimed.map_err(|error| error.to_string())?.disks.swap_remove(0);
    Store::open(claimed, Arc::new(Limits::tiny())).map_err(|error| error.to_string())
}

/// Opens a damaged store and reads all that it then claims to have.
fn read_store(disk: &Arc<SimDisk>) {
    let _ = inspect(&*disk.handle(2));
    let Ok(store) = store(disk, 2) else { return };
    for status in store.list(None, usize::MAX) {
        let _ = store.read(status.id, 0, status.length);
        let _ = store.verify(status.id);
    }
}

fn table_disk() -> Arc<SimDisk> {
    let disk = SimDisk::new("tables", 64 << 20, 1);
    let (mut db, _) = Db::open(disk.handle(1), "tables.redb", &Limits::tiny()).expect("no file");
    for number in 0..300u64 {
        let key = (InodeId(number % 7), number.to_be_bytes().to_vec());
        let row = pb::DentryRow { inode: number, cookie: number, ..Default::default() };
        db.put::<Dentries>(&key, &row).expect("put");
    }
    let begun = db.begin_checkpoint(pb::CheckpointMeta::default(), false).expect("none before");
    drop(db.finish_checkpoint(begun.write().expect("written")));
    disk
}

fn read_tables(disk: &Arc<SimDisk>) {
    disk.fence(2);
    let Ok((db, _)) = Db::open(disk.handle(2), "tables.redb", &Limits::tiny()) else { return };
    let rows = db.range::<Dentries>(&(InodeId(0), Vec::new()), None);
    let read = rows.take_while(Result::is_ok).count();
    assert!(read <= 300, "rows that nobody wrote");
}

/// Mutates one of the files and lets the reader at the disk.
fn damage(disk: &Arc<SimDisk>, which: usize, mutations: &[Mutation], read: fn(&Arc<SimDisk>)) {
    let files = files(disk);
    let (path, _) = &files[which % files.len()];
    mutate_file(&*disk.handle(1), path, mutations);
    let bytes = files.iter().map(|(_, size)| size).sum();
    bounded(bytes, DISK, || read(disk));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn logs_with_mutated_files(which in any::<usize>(), mutations in mutations()) {
        damage(&log_disk(), which, &mutations, |disk| {
            disk.fence(2);
            let _ = wal::inspect(&*disk.handle(2));
            if let Ok(log) = Wal::open(disk.handle(2), &Limits::tiny()) {
                let _ = log.read(LogIndex(0), LogIndex(100), 1 << 20);
            }
        });
    }

    #[test]
    fn replicas_with_mutated_files(which in any::<usize>(), mutations in mutations()) {
        damage(&replica_disk(), which, &mutations, read_store);
    }

    #[test]
    fn tables_with_mutated_files(which in any::<usize>(), mutations in mutations()) {
        damage(&table_disk(), which, &mutations, read_tables);
    }
}
