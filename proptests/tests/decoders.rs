//! Every decoder of bytes from the wire and from disks ([`mooseng_proptests::decoders`], which the fuzzer runs too), on
//! arbitrary bytes and on mutated valid ones: never a panic, and never more memory than the input justifies. Also
//! on the fuzzer's corpus, in which inputs stay that once found something.
//!
//! Memory is counted by the allocator of this program, for the calling thread: at most 16 times the input at once,
//! beside what is fixed for each decoder.

#![expect(clippy::disallowed_methods, reason = "the test reads the corpus and its directory")]

use mooseng::codec::{decode_record, encode_record, kind};
use mooseng::ids::InodeId;
use mooseng::limits::Limits;
use mooseng::namespace::tables::Dentries;
use mooseng::pb;
use mooseng::seam::{Disk, OpenMode};
use mooseng::tables::{Db, Read};
use mooseng_proptests::MemDisk;
use mooseng_proptests::decoders::{ALL, Decoder, find, frame_count};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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

fn run(decoder: &Decoder, input: &[u8]) {
    bounded(input.len(), decoder.fixed_bytes, || (decoder.run)(input));
}

// ---- all decoders ----

#[test]
fn good_frames_and_records_are_decoded() {
    let stream = (find("frames").seeds)().swap_remove(3);
    assert_eq!(frame_count(&stream[1..]), 7);
    let mut record = Vec::new();
    encode_record(kind::TEST, b"body", &mut record);
    assert_eq!(decode_record(kind::TEST, &record).expect("a record").0, b"body");
}

#[test]
fn seeds_are_decoded() {
    for decoder in ALL {
        let seeds = (decoder.seeds)();
        assert!(!seeds.is_empty(), "{}", decoder.name);
        seeds.iter().for_each(|seed| run(decoder, seed));
    }
}

fn fuzz_dir(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries =
        std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect()
}

#[test]
fn the_corpus_of_the_fuzzer_is_decoded() {
    for decoder in ALL {
        let dir = fuzz_dir("corpus").join(decoder.name);
        let files = names_in(&dir);
        assert!(!files.is_empty(), "{} is empty", dir.display());
        for file in files {
            run(decoder, &std::fs::read(dir.join(file)).expect("a file of the corpus"));
        }
    }
}

#[test]
fn each_decoder_is_a_target_of_the_fuzzer() {
    let wanted = |ending: &str| ALL.iter().map(|d| format!("{}{ending}", d.name)).collect();
    assert_eq!(names_in(&fuzz_dir("fuzz_targets")), wanted(".rs"));
    assert_eq!(names_in(&fuzz_dir("corpus")), wanted(""));
}

fn any_decoder() -> impl Strategy<Value = &'static Decoder> {
    (0..ALL.len()).prop_map(|at| &ALL[at])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_bytes(decoder in any_decoder(), input in prop::collection::vec(any::<u8>(), 0..3000)) {
        run(decoder, &input);
    }

    #[test]
    fn mutated_bytes(decoder in any_decoder(), which in any::<usize>(), mutations in mutations()) {
        let mut seeds = (decoder.seeds)();
        let mut input = seeds.swap_remove(which % seeds.len());
        mutate(&mut input, &mutations);
        run(decoder, &input);
    }

    #[test]
    fn records_from_mutated_bytes(mutations in mutations(), body in 0..3000usize) {
        let mut input = Vec::new();
        encode_record(kind::TEST, &vec![7; body], &mut input);
        mutate(&mut input, &mutations);
        bounded(input.len(), 4 << 10, || {
            let _ = decode_record(kind::TEST, &input);
        });
    }
}

// ---- the table file ----

/// Caches, whatever is in the file.
const TABLES: usize = 2 << 20;

fn table_disk() -> MemDisk {
    let disk = MemDisk::default();
    let (mut db, _) =
        Db::open(Arc::new(disk.clone()), "tables.redb", &Limits::tiny()).expect("no file");
    for number in 0..300u64 {
        let key = (InodeId(number % 7), number.to_be_bytes().to_vec());
        let row = pb::DentryRow { inode: number, cookie: number, ..Default::default() };
        db.put::<Dentries>(&key, &row).expect("put");
    }
    let mut begun = db.begin_checkpoint(pb::CheckpointMeta::default(), false).expect("none before");
    drop(db.finish_checkpoint(begun.write().expect("written")));
    disk
}

fn read_tables(disk: &MemDisk) {
    let opened = Db::open(Arc::new(disk.clone()), "tables.redb", &Limits::tiny());
    let Ok((db, _)) = opened else { return };
    let rows = db.range::<Dentries>(&(InodeId(0), Vec::new()), None);
    let read = rows.take_while(Result::is_ok).count();
    assert!(read <= 300, "rows that nobody wrote");
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tables_with_mutated_files(mutations in mutations()) {
        let disk = table_disk();
        mutate_file(&disk, "tables.redb", &mutations);
        let bytes = disk.files().iter().map(|(_, bytes)| bytes.len()).sum();
        bounded(bytes, TABLES, || read_tables(&disk));
    }
}
