use super::*;
use crate::limits::FILE_BYTES_MAX;

fn commit(inode: u64, extents: Vec<Extent>) -> Op {
    Op::Commit(pb::CommitOp { inode, extents, ..Default::default() })
}

fn truncate(inode: u64, size: u64) -> Op {
    Op::Setattr(pb::SetattrOp { inode, size: Some(size), ..Default::default() })
}

impl Rig {
    pub fn extents(&self, inode: u64, from: u64, to: u64, limit: u32) -> pb::ExtentsResult {
        match self.query(Query::Extents(pb::ExtentsQuery { inode, from, to, limit })).result {
            Some(Answer::Extents(result)) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Reads a file all of whose bytes are inline.
    fn content(&self, inode: u64) -> Vec<u8> {
        let result = self.extents(inode, 0, 0, 100);
        assert!(result.end);
        let mut bytes = vec![0; result.attr.unwrap().size as usize];
        for extent in result.extents {
            let Some(Source::Inline(data)) = extent.source else { panic!("{extent:?}") };
            bytes[extent.file_off as usize..][..data.len()].copy_from_slice(&data);
        }
        bytes
    }

    fn orphans(&self) -> Vec<InodeId> {
        self.ns.db().range::<Orphans>(&InodeId(0), None).map(|row| row.unwrap().0).collect()
    }

    /// Purges until nothing is left; how many commands it took.
    pub fn purge(&mut self) -> usize {
        let mut steps = 0;
        while let Some(inode) = self.orphans().first() {
            let cmd = pb::PurgeInodeCmd { inode: inode.get(), max_extents: 1 };
            assert_eq!(self.ask(Kind::PurgeInode(cmd)).errno, 0);
            steps += 1;
        }
        steps
    }
}

#[test]
fn pieces_replace_what_they_overlap_and_join() {
    let mut rig = Rig::production();
    let f = rig.file(ROOT, "f");
    rig.op(commit(f, vec![inline(0, b"aaaaaaaaaa")])).unwrap();
    rig.op(commit(f, vec![inline(3, b"bb"), inline(7, b"cc")])).unwrap();
    assert_eq!(rig.content(f), b"aaabbaacca");
    assert_eq!(rig.extents(f, 0, 0, 10).extents.len(), 1, "inline pieces join");
    rig.op(commit(f, vec![inline(20, b"d")])).unwrap();
    assert_eq!(rig.content(f), b"aaabbaacca\0\0\0\0\0\0\0\0\0\0d");
    assert_eq!(rig.attr(f).unwrap().allocated, 11);
}

#[test]
fn truncation_cuts_and_extension_reads_zeros() {
    let mut rig = Rig::production();
    let f = rig.file(ROOT, "f");
    rig.op(commit(f, vec![inline(0, b"abcdef")])).unwrap();
    rig.op(truncate(f, 3)).unwrap();
    rig.op(truncate(f, 5)).unwrap();
    assert_eq!(rig.content(f), b"abc\0\0");
    assert_eq!(rig.op(truncate(f, FILE_BYTES_MAX + 1)).unwrap_err(), Errno::EFBIG);
    assert_eq!(rig.op(truncate(ROOT, 0)).unwrap_err(), Errno::EISDIR);
    let fifo = rig.make(ROOT, "p", FileKind::Fifo).unwrap();
    assert_eq!(rig.op(truncate(fifo, 0)).unwrap_err(), Errno::EINVAL);
}

#[test]
fn inline_bytes_are_bounded() {
    let mut rig = Rig::tiny();
    let limits = Limits::tiny();
    let f = rig.file(ROOT, "f");
    let max = limits.inline_bytes_max;
    let big = vec![1; max + 1];
    assert_eq!(rig.op(commit(f, vec![inline(0, &big)])).unwrap_err(), Errno::EFBIG);
    for i in 0..limits.inline_total_bytes_max / max {
        rig.op(commit(f, vec![inline((i * max) as u64, &big[1..])])).unwrap();
    }
    let off = limits.inline_total_bytes_max as u64;
    assert_eq!(rig.op(commit(f, vec![inline(off, b"x")])).unwrap_err(), Errno::EFBIG);
    rig.op(commit(f, vec![inline(5, b"replaces")])).unwrap();
    let unsorted = vec![inline(10, b"x"), inline(5, b"y")];
    assert_eq!(rig.op(commit(f, unsorted)).unwrap_err(), Errno::EINVAL);
    let lying = Extent { len: 5, ..inline(0, b"four") };
    assert_eq!(rig.op(commit(f, vec![lying])).unwrap_err(), Errno::EINVAL);
}

#[test]
fn a_long_tail_is_cut_at_once_and_freed_in_steps() {
    let mut rig = Rig::tiny();
    let f = rig.file(ROOT, "f");
    for i in 0..10u8 {
        rig.op(commit(f, vec![inline(u64::from(i) * 10, &[i; 4])])).unwrap();
    }
    rig.op(truncate(f, 12)).unwrap();
    assert_eq!(rig.orphans(), [InodeId(f)]);
    rig.op(truncate(f, 100)).unwrap();
    let mut expected = vec![0; 100];
    expected[10..12].fill(1);
    assert_eq!(rig.content(f), expected, "what was cut reads as zeros although its rows are there");
    rig.op(commit(f, vec![inline(51, b"live")])).unwrap();
    expected[51..55].copy_from_slice(b"live");
    assert_eq!(rig.content(f), expected);
    rig.op(truncate(f, 53)).unwrap();
    rig.op(truncate(f, 100)).unwrap();
    expected[53..].fill(0);
    assert_eq!(rig.content(f), expected);
    assert!(rig.purge() > 1);
    assert_eq!(rig.content(f), expected);
    assert_eq!(rig.attr(f).unwrap().allocated, 4 + 2 + 2);
}

#[test]
fn a_commit_into_a_cut_takes_it_away() {
    let mut rig = Rig::tiny();
    let f = rig.file(ROOT, "f");
    for i in 0..6u8 {
        rig.op(commit(f, vec![inline(u64::from(i) * 10, &[i + 1; 10])])).unwrap();
    }
    // One joined piece per 512 bytes would hide the point: make holes.
    rig.op(truncate(f, 0)).unwrap();
    for i in 0..6u8 {
        rig.op(commit(f, vec![inline(u64::from(i) * 20, &[i + 1; 10])])).unwrap();
    }
    rig.op(truncate(f, 0)).unwrap();
    assert_eq!(rig.orphans(), [InodeId(f)]);
    rig.op(commit(f, vec![inline(0, &[9; 200])])).unwrap();
    assert_eq!(rig.content(f), [9; 200]);
    assert!(rig.orphans().is_empty(), "the commit replaced everything that was cut");
}

#[test]
fn a_large_unlinked_file_is_purged_in_steps() {
    let mut rig = Rig::tiny();
    let f = rig.file(ROOT, "f");
    for i in 0..8 {
        rig.op(commit(f, vec![inline(i * 10, b"x")])).unwrap();
    }
    for i in 0..3 {
        let name = format!("user.{i}").into();
        rig.op(Op::Setxattr(pb::SetxattrOp { inode: f, name, ..Default::default() })).unwrap();
    }
    rig.unlink(ROOT, "f", false).unwrap();
    assert_eq!(rig.attr(f), Err(Errno::ESTALE));
    assert_eq!(rig.orphans(), [InodeId(f)]);
    assert_eq!(rig.purge(), 8 + 3 - 2, "two went at once, one by command after that");
    let gone = pb::PurgeInodeCmd { inode: f, max_extents: 1 };
    assert_eq!(rig.ask(Kind::PurgeInode(gone)).errno, Errno::ENOENT.get());
}

#[test]
fn extents_come_by_range() {
    let mut rig = Rig::tiny();
    let f = rig.file(ROOT, "f");
    for i in 0..8 {
        rig.op(commit(f, vec![inline(i * 10, b"xxx")])).unwrap();
    }
    let offs = |r: &pb::ExtentsResult| r.extents.iter().map(|e| e.file_off).collect::<Vec<_>>();
    let part = rig.extents(f, 12, 31, 10);
    assert_eq!((offs(&part), part.end), (vec![10, 20, 30], true));
    let part = rig.extents(f, 13, 0, 2);
    assert_eq!((offs(&part), part.end), (vec![20, 30], false));
    assert!(rig.extents(f, 1000, 0, 2).end);
}

#[test]
fn owners_modes_and_privileges() {
    let mut rig = Rig::production();
    let f = rig.file(ROOT, "f");
    let cap = pb::SetxattrOp {
        inode: f,
        name: "security.capability".into(),
        value: "x".into(),
        flags: 0,
    };
    let set = |inode, mode, uid| pb::SetattrOp { inode, mode, uid, ..Default::default() };
    rig.op(Op::Setxattr(cap.clone())).unwrap();
    let attr = rig.op(Op::Setattr(set(f, Some(0o6755), None))).unwrap().attr.unwrap();
    assert_eq!(attr.mode, 0o6755);
    let attr = rig.op(Op::Setattr(set(f, None, Some(5)))).unwrap().attr.unwrap();
    assert_eq!((attr.mode, attr.uid), (0o755, 5));
    rig.op(Op::Setxattr(pb::SetxattrOp { flags: 1, ..cap })).unwrap();
    rig.op(Op::Setattr(set(f, Some(0o6745), None))).unwrap();
    let kill = pb::CommitOp { inode: f, kill_priv: true, ..Default::default() };
    let attr = rig.op(Op::Commit(kill)).unwrap().attr.unwrap();
    assert_eq!(attr.mode, 0o2745, "setgid without group execute is not a privilege");
    let dir = rig.mkdir(ROOT, "d");
    let attr = rig.op(Op::Setattr(set(dir, Some(0o2755), Some(5)))).unwrap().attr.unwrap();
    assert_eq!(attr.mode, 0o2755);
}

#[test]
fn a_directory_keeps_its_setgid_when_privileges_go() {
    let mut rig = Rig::production();
    let dir = rig.mkdir(ROOT, "d");
    let set = pb::SetattrOp { inode: dir, mode: Some(0o2775), ..Default::default() };
    rig.op(Op::Setattr(set)).unwrap();
    let kill = pb::SetattrOp { inode: dir, kill_priv: true, ..Default::default() };
    assert_eq!(rig.op(Op::Setattr(kill)).unwrap().attr.unwrap().mode, 0o2775);
}

#[test]
fn times_are_set_or_taken_from_the_command() {
    let mut rig = Rig::production();
    let f = rig.file(ROOT, "f");
    let op =
        pb::SetattrOp { inode: f, atime_ns: Some(-5), mtime_ns: Some(7), ..Default::default() };
    let attr = rig.op(Op::Setattr(op)).unwrap().attr.unwrap();
    assert_eq!((attr.atime_ns, attr.mtime_ns, attr.ctime_ns), (-5, 7, rig.time as i64));
    let op = pb::SetattrOp { inode: f, atime_now: true, mtime_now: true, ..Default::default() };
    let attr = rig.op(Op::Setattr(op)).unwrap().attr.unwrap();
    assert_eq!((attr.atime_ns, attr.mtime_ns), (rig.time as i64, rig.time as i64));
    let op = pb::CommitOp { inode: f, mtime_ns: Some(3), size_at_least: 9, ..Default::default() };
    let attr = rig.op(Op::Commit(op)).unwrap().attr.unwrap();
    assert_eq!((attr.mtime_ns, attr.size), (3, 9));
}

#[test]
fn xattrs() {
    let mut rig = Rig::production();
    let f = rig.file(ROOT, "f");
    let set = |name: &str, value: &[u8], flags| {
        let (name, value) = (name.to_owned().into(), value.to_vec().into());
        Op::Setxattr(pb::SetxattrOp { inode: f, name, value, flags })
    };
    assert_eq!(rig.op(set("user.a", b"1", 2)).unwrap_err(), Errno::ENODATA);
    rig.op(set("user.a", b"1", 1)).unwrap();
    assert_eq!(rig.op(set("user.a", b"1", 1)).unwrap_err(), Errno::EEXIST);
    rig.op(set("user.a", b"2", 2)).unwrap();
    assert_eq!(rig.op(set("", b"", 0)).unwrap_err(), Errno::ERANGE);
    assert_eq!(rig.op(set(&"n".repeat(256), b"", 0)).unwrap_err(), Errno::ERANGE);
    assert_eq!(rig.op(set("user.b", &[0; (64 << 10) + 1], 0)).unwrap_err(), Errno::E2BIG);
    let get = |rig: &Rig, name: &str| {
        let q = pb::GetxattrQuery { inode: f, name: name.to_owned().into() };
        rig.query(Query::Getxattr(q))
    };
    assert_eq!(get(&rig, "user.a").result, Some(Answer::Data("2".into())));
    assert_eq!(get(&rig, "user.b").errno, Errno::ENODATA.get());
    rig.op(set("user.b", b"", 0)).unwrap();
    let list = rig.query(Query::Listxattr(pb::ListxattrQuery { inode: f }));
    let names = pb::NamesResult { names: vec!["user.a".into(), "user.b".into()] };
    assert_eq!(list.result, Some(Answer::Names(names)));
    let remove = Op::Removexattr(pb::RemovexattrOp { inode: f, name: "user.a".into() });
    rig.op(remove.clone()).unwrap();
    assert_eq!(rig.op(remove).unwrap_err(), Errno::ENODATA);
    for i in 1..XATTRS_MAX {
        rig.op(set(&format!("user.{i}"), b"", 0)).unwrap();
    }
    assert_eq!(rig.op(set("user.more", b"", 0)).unwrap_err(), Errno::ENOSPC);
}
