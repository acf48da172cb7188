//! What every [`Disk`] must do, checked through the trait alone: the same suite runs over a directory of the
//! real file system and over the simulated disk.
//!
//! Durability is not checked here (a process cannot see it); the simulator's own tests do that.

use bytes::Bytes;
use mooseng::seam::{DIRECT_ALIGN, Disk, DiskFile, OpenMode};
use std::io::ErrorKind;
use std::sync::Arc;

/// Runs the whole suite over an empty disk. Panics with what differs.
pub fn conformance(disk: &Arc<dyn Disk>) {
    assert_eq!(disk.list("").expect("list an empty disk"), Vec::<String>::new());
    opening(disk.as_ref());
    reading_and_writing(disk.as_ref());
    vectored(disk.as_ref());
    direct(disk.as_ref());
    lengths(disk.as_ref());
    holes_and_reservations(disk.as_ref());
    mapping(disk.as_ref());
    names(disk.as_ref());
    directories(disk.as_ref());
    handles_outlive_names(disk.as_ref());
    locks(disk.as_ref());
    bad_paths(disk.as_ref());
    space(disk.as_ref());
    disk.sync_dir("").expect("sync the root");
    for seed in 1..=20 {
        against_a_vector(disk.as_ref(), seed);
    }
}

fn create(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, OpenMode::CreateNew).expect("create");
    file.write_at(0, bytes).expect("write");
    file
}

fn contents(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().expect("length") as usize];
    file.read_exact_at(0, &mut bytes).expect("read all");
    bytes
}

fn kind<T>(result: std::io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

fn opening(disk: &dyn Disk) {
    assert_eq!(kind(disk.open("o", OpenMode::Read)), Some(ErrorKind::NotFound));
    assert_eq!(kind(disk.open("o", OpenMode::Write)), Some(ErrorKind::NotFound));
    assert!(!disk.exists("o").expect("exists"));
    let file = disk.open("o", OpenMode::Create).expect("create");
    assert!(file.is_empty().expect("length"));
    file.write_at(0, b"kept").expect("write");
    assert_eq!(kind(disk.open("o", OpenMode::CreateNew)), Some(ErrorKind::AlreadyExists));
    assert_eq!(contents(disk.open("o", OpenMode::Create).expect("open").as_ref()), b"kept");
    let reader = disk.open("o", OpenMode::Read).expect("open to read");
    assert_eq!(contents(reader.as_ref()), b"kept");
    assert!(reader.write_at(0, b"no").is_err(), "a reader's handle does not write");
    assert!(reader.set_len(1).is_err(), "a reader's handle does not truncate");
    assert_eq!(contents(file.as_ref()), b"kept");
    assert_eq!(kind(disk.open("missing/o", OpenMode::Create)), Some(ErrorKind::NotFound));
    assert!(disk.open("o/below", OpenMode::Create).is_err(), "a file is not a directory");
    disk.remove("o").expect("remove");
}

fn reading_and_writing(disk: &dyn Disk) {
    let file = create(disk, "rw", b"0123456789");
    let mut buf = [0; 4];
    assert_eq!(file.read_at(3, &mut buf).expect("read"), 4);
    assert_eq!(&buf, b"3456");
    assert_eq!(file.read_at(8, &mut buf).expect("read at the end"), 2);
    assert_eq!(file.read_at(10, &mut buf).expect("read past the end"), 0);
    assert_eq!(file.read_at(1 << 40, &mut buf).expect("read far past the end"), 0);
    assert_eq!(kind(file.read_exact_at(8, &mut buf)), Some(ErrorKind::UnexpectedEof));
    file.write_at(4, b"").expect("write nothing");
    file.write_at(20, b"gap").expect("write past the end");
    assert_eq!(contents(file.as_ref()), b"0123456789\0\0\0\0\0\0\0\0\0\0gap");
    file.write_at(8, b"across").expect("overwrite");
    assert_eq!(&contents(file.as_ref())[6..16], b"67across\0\0");
    file.sync_data().expect("sync");
    file.writeback_hint(0, 23);
    file.writeback_hint(u64::MAX, u64::MAX);
    if let Some(bytes) = file.read_resident(1, 3) {
        assert_eq!(bytes.as_ref(), b"123");
    }
    disk.remove("rw").expect("remove");
}

fn vectored(disk: &dyn Disk) {
    let file = create(disk, "v", b"");
    file.write_vectored_at(2, &[]).expect("write nothing");
    file.write_vectored_at(2, &[b"", b""]).expect("write nothing twice");
    assert_eq!(file.len().expect("length"), 0);
    file.write_vectored_at(2, &[b"", b"ab", b"", b"cde", b""]).expect("write");
    assert_eq!(contents(file.as_ref()), b"\0\0abcde");
    let many: Vec<[u8; 3]> = (0..3000_u32).map(|n| [n as u8, (n >> 8) as u8, 7]).collect();
    let bufs: Vec<&[u8]> = many.iter().map(|buf| buf.as_slice()).collect();
    file.write_vectored_at(1, &bufs).expect("write more buffers than one system call takes");
    assert_eq!(&contents(file.as_ref())[1..], many.concat().as_slice());
    disk.remove("v").expect("remove");
}

fn lengths(disk: &dyn Disk) {
    let file = create(disk, "l", &[7; 6000]);
    file.set_len(5000).expect("cut");
    assert_eq!(contents(file.as_ref()), vec![7; 5000]);
    file.set_len(9000).expect("extend");
    let mut expected = vec![7; 5000];
    expected.resize(9000, 0);
    assert_eq!(contents(file.as_ref()), expected, "what was cut off does not come back");
    file.set_len(0).expect("empty");
    assert_eq!(file.len().expect("length"), 0);
    disk.remove("l").expect("remove");
}

fn holes_and_reservations(disk: &dyn Disk) {
    let file = create(disk, "h", &[9; 20_000]);
    file.reserve(64 << 10).expect("reserve");
    file.reserve(0).expect("reserve nothing");
    assert_eq!(file.len().expect("length"), 20_000, "a reservation leaves the length");
    file.punch_hole(4096, 8192).expect("punch");
    file.punch_hole(13_000, 100).expect("punch inside a block");
    file.punch_hole(19_000, 50_000).expect("punch past the end");
    file.punch_hole(0, 0).expect("punch nothing");
    let mut expected = vec![9; 20_000];
    for range in [4096..12_288, 13_000..13_100, 19_000..20_000] {
        expected[range].fill(0);
    }
    assert_eq!(contents(file.as_ref()), expected);
    disk.remove("h").expect("remove");
}

fn mapping(disk: &dyn Disk) {
    let bytes: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
    let file = create(disk, "m", &bytes);
    assert_eq!(file.map(0, 10_000).expect("map all").as_ref(), bytes);
    assert_eq!(file.map(4097, 100).expect("map unaligned").as_ref(), &bytes[4097..4197]);
    assert_eq!(file.map(9_990, 100).expect("map past the end").as_ref(), &bytes[9_990..]);
    assert!(file.map(10_000, 5).expect("map at the end").is_empty());
    assert!(file.map(0, 0).expect("map nothing").is_empty());
    let kept = file.map(5000, 1000).expect("map");
    disk.remove("m").expect("remove");
    drop(file);
    assert_eq!(kept.as_ref(), &bytes[5000..6000], "a mapping outlives name and handle");
}

fn names(disk: &dyn Disk) {
    create(disk, "b", b"b");
    create(disk, "a", b"a");
    create(disk, "c", b"c");
    assert_eq!(disk.list("").expect("list"), ["a", "b", "c"]);
    disk.rename("a", "d").expect("rename");
    disk.rename("b", "c").expect("rename over");
    assert_eq!(disk.list("").expect("list"), ["c", "d"]);
    let read = |path| contents(disk.open(path, OpenMode::Read).expect("open").as_ref());
    assert_eq!((read("c"), read("d")), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!(kind(disk.rename("a", "e")), Some(ErrorKind::NotFound));
    assert_eq!(kind(disk.remove("a")), Some(ErrorKind::NotFound));
    disk.rename("d", "d").expect("rename onto itself");
    assert_eq!(read("d"), b"a");
    disk.remove("c").expect("remove");
    disk.remove("d").expect("remove");
    assert!(disk.list("").expect("list").is_empty());
}

fn directories(disk: &dyn Disk) {
    disk.create_dir("x/y/z").expect("create with parents");
    disk.create_dir("x/y").expect("create again");
    assert_eq!(disk.list("").expect("list"), ["x"]);
    assert_eq!(disk.list("x/y").expect("list"), ["z"]);
    assert!(disk.exists("x/y/z").expect("exists"));
    create(disk, "x/y/z/f", b"deep");
    assert_eq!(disk.list("x/y/z").expect("list"), ["f"]);
    disk.rename("x/y/z/f", "x/g").expect("rename across directories");
    assert_eq!(disk.list("x").expect("list"), ["g", "y"]);
    assert_eq!(kind(disk.list("nowhere")), Some(ErrorKind::NotFound));
    assert!(disk.list("x/g").is_err(), "a file has no names in it");
    assert_eq!(kind(disk.sync_dir("nowhere")), Some(ErrorKind::NotFound));
    assert!(disk.create_dir("x/g").is_err(), "a file stands there");
    assert!(disk.open("x", OpenMode::Read).is_err(), "a directory is not a file");
    assert!(disk.remove("x/y").is_err(), "remove is for files");
    assert!(!disk.exists("x/g/h").expect("exists"));
    disk.sync_dir("x").expect("sync");
    disk.remove("x/g").expect("remove");
}

fn handles_outlive_names(disk: &dyn Disk) {
    let file = create(disk, "n1", b"one");
    disk.rename("n1", "n2").expect("rename");
    file.write_at(3, b" two").expect("write after rename");
    assert_eq!(contents(disk.open("n2", OpenMode::Read).expect("open").as_ref()), b"one two");
    disk.remove("n2").expect("remove");
    file.write_at(0, b"ONE").expect("write after remove");
    assert_eq!(contents(file.as_ref()), b"ONE two");
    let other = create(disk, "n2", b"new");
    assert_eq!(contents(file.as_ref()), b"ONE two", "a new file of the old name is another file");
    assert_eq!(contents(other.as_ref()), b"new");
    disk.remove("n2").expect("remove");
}

/// Direct writes of aligned and of unaligned memory, offsets and lengths, seen by every way to read.
fn direct(disk: &dyn Disk) {
    let file = create(disk, "direct", b"before");
    let pattern: Vec<u8> = (0..6 * DIRECT_ALIGN).map(|i| (i / 7) as u8).collect();
    let memory = Bytes::from(pattern);
    let first = memory.as_ptr().addr().next_multiple_of(DIRECT_ALIGN) - memory.as_ptr().addr();
    let mut model = b"before".to_vec();
    let blocks = DIRECT_ALIGN as u64;
    for (skip, at, len) in [
        (0, 0, 2 * DIRECT_ALIGN),
        (0, blocks, 2 * DIRECT_ALIGN),
        (1, blocks, DIRECT_ALIGN),
        (0, 3 * blocks + 5, DIRECT_ALIGN),
        (0, 5 * blocks, DIRECT_ALIGN + 100),
        (0, 16 * blocks, DIRECT_ALIGN),
        (0, 2 * blocks, 0),
    ] {
        let bytes = &memory[first + skip..][..len];
        file.write_direct_at(at, bytes).expect("direct write");
        if len > 0 {
            model.resize(model.len().max(at as usize + len), 0);
            model[at as usize..][..len].copy_from_slice(bytes);
        }
        assert_eq!(contents(file.as_ref()), model, "{skip} {at} {len}");
        assert_eq!(file.map(0, model.len()).expect("map"), model, "{skip} {at} {len}");
    }
    file.write_at(100, b"buffered").expect("write");
    file.write_direct_at(0, &memory[first..][..DIRECT_ALIGN])
        .expect("direct write over dirty pages");
    model[..DIRECT_ALIGN].copy_from_slice(&memory[first..][..DIRECT_ALIGN]);
    assert_eq!(contents(file.as_ref()), model);
    file.sync_data().expect("sync");
    let reader = disk.open("direct", OpenMode::Read).expect("open to read");
    assert!(reader.write_direct_at(0, &memory[first..][..DIRECT_ALIGN]).is_err());
    assert_eq!(contents(reader.as_ref()), model);
    disk.remove("direct").expect("remove");
}

fn locks(disk: &dyn Disk) {
    let held = disk.lock("LOCK").expect("lock");
    assert_eq!(kind(disk.lock("LOCK")), Some(ErrorKind::WouldBlock));
    let other = disk.lock("OTHER").expect("another lock");
    drop(held);
    let again = disk.lock("LOCK").expect("lock again");
    drop((again, other));
    for name in ["LOCK", "OTHER"] {
        if disk.exists(name).expect("exists") {
            disk.remove(name).expect("remove");
        }
    }
}

fn bad_paths(disk: &dyn Disk) {
    for path in ["", "/etc", "..", "../up", "a/../b", "./a", "a//b", "a/", "a\0b"] {
        assert_eq!(
            kind(disk.open(path, OpenMode::Create)),
            Some(ErrorKind::InvalidInput),
            "open {path:?}"
        );
        assert!(disk.remove(path).is_err(), "remove {path:?}");
        assert!(disk.create_dir(path).is_err(), "create_dir {path:?}");
        assert!(disk.rename(path, "z").is_err(), "rename {path:?}");
        assert!(disk.rename("z", path).is_err(), "rename to {path:?}");
    }
}

fn space(disk: &dyn Disk) {
    let space = disk.space().expect("space");
    assert!(space.total > 0);
    assert!(space.free <= space.total);
    assert!(!disk.describe().is_empty());
}

/// Random writes, cuts, holes and reads on one file against a plain vector.
fn against_a_vector(disk: &dyn Disk, seed: u64) {
    let file = create(disk, "vector", b"");
    let mut model: Vec<u8> = Vec::new();
    let mut state = seed;
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..60_u8 {
        let (at, len) = (draw(12_000) as usize, draw(5_000) as usize);
        match draw(6) {
            0..=2 => {
                let bytes = vec![step + 1; len];
                file.write_at(at as u64, &bytes).expect("write");
                if len > 0 {
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&bytes);
                }
            }
            3 => {
                file.set_len(at as u64).expect("set_len");
                model.resize(at, 0);
            }
            4 => {
                file.punch_hole(at as u64, len as u64).expect("punch");
                let end = model.len().min(at + len);
                model[at.min(end)..end].fill(0);
            }
            _ => {
                file.sync_data().expect("sync");
                let mapped = file.map(at as u64, len).expect("map").to_vec();
                let from = at.min(model.len());
                assert_eq!(mapped, &model[from..model.len().min(from + len)], "seed {seed}");
            }
        }
        assert_eq!(contents(file.as_ref()), model, "seed {seed}, step {step}");
    }
    disk.remove("vector").expect("remove");
}
