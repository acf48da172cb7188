use super::*;
use crate::limits::NAME_BYTES_MAX;

#[test]
fn create_gives_links_times_and_entries() {
    let mut rig = Rig::production();
    let dir = rig.mkdir(ROOT, "d");
    let before = rig.attr(dir).unwrap();
    let file = rig.file(dir, "f");
    let after = rig.attr(dir).unwrap();
    assert_eq!((before.nlink, after.nlink), (2, 2));
    assert_eq!(rig.attr(ROOT).unwrap().nlink, 3);
    assert_eq!(after.mtime_ns, rig.time as i64);
    assert!(after.change > before.change);
    assert_eq!(rig.lookup(dir, "f"), Ok(file));
    assert_eq!(rig.lookup(dir, ".."), Ok(ROOT));
    assert_eq!(rig.lookup(dir, "g"), Err(Errno::ENOENT));
    assert_eq!(rig.make(dir, "f", FileKind::Fifo), Err(Errno::EEXIST));
    assert_eq!(rig.make(file, "x", FileKind::Regular), Err(Errno::ENOTDIR));
    assert_eq!(rig.make(99, "x", FileKind::Regular), Err(Errno::ESTALE));
}

#[test]
fn an_existing_name_is_told_with_the_inode_that_has_it() {
    let mut rig = Rig::production();
    let file = rig.file(ROOT, "f");
    let inode = rig.id();
    rig.seq += 1;
    let op = CreateOp {
        parent: ROOT,
        name: "f".into(),
        inode,
        kind: FileKind::Regular.into(),
        ..CreateOp::default()
    };
    let reply = rig.batch(rig.seq, 0, vec![Op::Create(op)]);
    assert_eq!(reply.results[0].errno, Errno::EEXIST.get());
    assert_eq!(reply.results[0].attr.unwrap().inode, file);
}

#[test]
fn names_and_targets_have_limits() {
    let mut rig = Rig::production();
    let long = "x".repeat(NAME_BYTES_MAX);
    rig.file(ROOT, &long);
    let longer = "x".repeat(NAME_BYTES_MAX + 1);
    assert_eq!(rig.make(ROOT, &longer, FileKind::Regular), Err(Errno::ENAMETOOLONG));
    for bad in ["", ".", "..", "a/b", "a\0b"] {
        assert_eq!(rig.make(ROOT, bad, FileKind::Regular), Err(Errno::EINVAL), "{bad:?}");
    }
    let mut link = |target: &[u8]| {
        let inode = rig.id();
        rig.op(Op::Create(CreateOp {
            parent: ROOT,
            name: format!("l{inode}").into(),
            inode,
            kind: FileKind::Symlink.into(),
            target: target.to_vec().into(),
            ..CreateOp::default()
        }))
        .map(|r| r.attr.unwrap().size)
    };
    assert_eq!(link(&[b'x'; 4095]), Ok(4095));
    assert_eq!(link(&[b'x'; 4096]), Err(Errno::ENAMETOOLONG));
    assert_eq!(link(b""), Err(Errno::ENOENT));
}

#[test]
fn setgid_directories_pass_on_group_and_bit() {
    let mut rig = Rig::production();
    let dir = rig.mkdir(ROOT, "d");
    let set = pb::SetattrOp { inode: dir, mode: Some(0o2775), gid: Some(50), ..Default::default() };
    rig.op(Op::Setattr(set)).unwrap();
    let file = rig.file(dir, "f");
    let sub = rig.mkdir(dir, "s");
    let (file, sub) = (rig.attr(file).unwrap(), rig.attr(sub).unwrap());
    assert_eq!((file.gid, file.mode & 0o2000), (50, 0));
    assert_eq!((sub.gid, sub.mode & 0o2000), (50, 0o2000));
}

#[test]
fn links_count_and_the_last_unlink_frees() {
    let mut rig = Rig::production();
    let dir = rig.mkdir(ROOT, "d");
    let file = rig.file(ROOT, "a");
    let link = |parent: u64, inode, name: &str| {
        Op::Link(pb::LinkOp { inode, parent, name: name.to_owned().into() })
    };
    assert_eq!(rig.op(link(dir, file, "b")).unwrap().attr.unwrap().nlink, 2);
    assert_eq!(rig.op(link(dir, file, "b")).unwrap_err(), Errno::EEXIST);
    assert_eq!(rig.op(link(dir, dir, "c")).unwrap_err(), Errno::EPERM);
    assert_eq!(rig.unlink(ROOT, "a", false).unwrap().victim.unwrap().nlink, 1);
    assert_eq!(rig.unlink(ROOT, "a", false).unwrap_err(), Errno::ENOENT);
    assert_eq!(rig.unlink(ROOT, "d", false).unwrap_err(), Errno::EISDIR);
    assert_eq!(rig.unlink(dir, "b", false).unwrap().victim.unwrap().nlink, 0);
    assert_eq!(rig.attr(file), Err(Errno::ESTALE));
    assert_eq!(rig.op(link(dir, file, "z")).unwrap_err(), Errno::ESTALE);
}

#[test]
fn rmdir_wants_an_empty_directory() {
    let mut rig = Rig::production();
    let dir = rig.mkdir(ROOT, "d");
    rig.file(dir, "f");
    let rmdir =
        |parent, name: &str| Op::Rmdir(pb::RmdirOp { parent, name: name.to_owned().into() });
    assert_eq!(rig.op(rmdir(ROOT, "d")).unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(rig.op(rmdir(dir, "f")).unwrap_err(), Errno::ENOTDIR);
    rig.unlink(dir, "f", false).unwrap();
    assert_eq!(rig.op(rmdir(ROOT, "d")).unwrap().parent.unwrap().nlink, 2);
    assert_eq!(rig.make(dir, "x", FileKind::Regular), Err(Errno::ESTALE));
}

#[test]
fn rename_moves_replaces_and_exchanges() {
    let mut rig = Rig::production();
    let (a, b) = (rig.mkdir(ROOT, "a"), rig.mkdir(ROOT, "b"));
    let f = rig.file(a, "f");
    let sub = rig.mkdir(a, "s");
    rig.rename((a, "s"), (b, "t"), 0).unwrap();
    assert_eq!((rig.attr(a).unwrap().nlink, rig.attr(b).unwrap().nlink), (2, 3));
    assert_eq!(rig.lookup(sub, ".."), Ok(b));
    let g = rig.file(b, "g");
    assert_eq!(rig.rename((a, "f"), (b, "g"), 1).unwrap_err(), Errno::EEXIST);
    assert_eq!(rig.rename((a, "f"), (b, "g"), 0).unwrap().victim.unwrap().nlink, 0);
    assert_eq!(rig.attr(g), Err(Errno::ESTALE));
    assert_eq!((rig.lookup(b, "g"), rig.lookup(a, "f")), (Ok(f), Err(Errno::ENOENT)));
    rig.rename((b, "g"), (b, "t"), 2).unwrap();
    assert_eq!((rig.lookup(b, "g"), rig.lookup(b, "t")), (Ok(sub), Ok(f)));
    rig.rename((b, "g"), (ROOT, "a"), 2).unwrap();
    assert_eq!((rig.lookup(a, ".."), rig.lookup(sub, "..")), (Ok(b), Ok(ROOT)));
    assert_eq!(rig.rename((ROOT, "a"), (b, "nothing"), 2).unwrap_err(), Errno::ENOENT);
    assert_eq!(rig.rename((ROOT, "a"), (b, "x"), 3).unwrap_err(), Errno::EINVAL);
}

#[test]
fn rename_refuses_cycles_and_mismatches() {
    let mut rig = Rig::production();
    let a = rig.mkdir(ROOT, "a");
    let b = rig.mkdir(a, "b");
    let c = rig.mkdir(b, "c");
    rig.file(ROOT, "f");
    assert_eq!(rig.rename((ROOT, "a"), (c, "x"), 0).unwrap_err(), Errno::EINVAL);
    assert_eq!(rig.rename((ROOT, "a"), (a, "x"), 0).unwrap_err(), Errno::EINVAL);
    assert_eq!(rig.rename((b, "c"), (ROOT, "a"), 0).unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(rig.rename((b, "c"), (ROOT, "a"), 2).unwrap_err(), Errno::EINVAL);
    assert_eq!(rig.rename((ROOT, "f"), (a, "b"), 0).unwrap_err(), Errno::EISDIR);
    assert_eq!(rig.rename((a, "b"), (ROOT, "f"), 0).unwrap_err(), Errno::ENOTDIR);
    let d = rig.mkdir(ROOT, "d");
    assert_eq!(rig.rename((ROOT, "d"), (a, "b"), 0).unwrap_err(), Errno::ENOTEMPTY);
    rig.rename((b, "c"), (ROOT, "d"), 0).unwrap();
    assert_eq!(rig.attr(d), Err(Errno::ESTALE));
    assert_eq!(rig.lookup(c, ".."), Ok(ROOT));
}

#[test]
fn rename_onto_the_same_inode_does_nothing() {
    let mut rig = Rig::production();
    let f = rig.file(ROOT, "a");
    rig.op(Op::Link(pb::LinkOp { inode: f, parent: ROOT, name: "b".into() })).unwrap();
    rig.rename((ROOT, "a"), (ROOT, "b"), 0).unwrap();
    assert_eq!(rig.names(ROOT), ["a", "b"]);
    rig.rename((ROOT, "a"), (ROOT, "a"), 0).unwrap();
    assert_eq!(rig.rename((ROOT, "a"), (ROOT, "a"), 1).unwrap_err(), Errno::EEXIST);
}

#[test]
fn cookies_stay_while_names_come_and_go() {
    let mut rig = Rig::production();
    for i in 0..6 {
        rig.file(ROOT, &format!("f{i}"));
    }
    let first = rig.readdir(ROOT, 0, 3);
    assert!(!first.end);
    let at = first.entries[2].cookie;
    rig.unlink(ROOT, "f1", false).unwrap();
    rig.unlink(ROOT, "f4", false).unwrap();
    rig.file(ROOT, "g");
    rig.rename((ROOT, "g"), (ROOT, "f5"), 0).unwrap();
    rig.file(ROOT, "h");
    let rest = rig.readdir(ROOT, at, 10);
    let names: Vec<_> = rest.entries.iter().map(|e| e.name.to_vec()).collect();
    assert_eq!(names, [b"f3".to_vec(), b"f5".to_vec(), b"h".to_vec()]);
    assert!(rest.end);
    assert!(rest.entries.iter().all(|e| e.attr.unwrap().inode == e.inode && e.cookie >= 3));
}

#[test]
fn inode_ids_come_from_the_session() {
    let mut rig = Rig::tiny();
    let foreign = CreateOp {
        parent: ROOT,
        name: "f".into(),
        inode: rig.next + 1000,
        kind: FileKind::Regular.into(),
        ..CreateOp::default()
    };
    assert_eq!(rig.op(Op::Create(foreign)).unwrap_err(), Errno::EINVAL);
    rig.file(ROOT, "a");
    rig.next -= 1;
    assert_eq!(rig.make(ROOT, "b", FileKind::Regular), Err(Errno::EINVAL));
    let other = rig.open_session(2);
    let more = rig.op(Op::AllocInodes(pb::AllocInodesOp { count: 3 })).unwrap();
    assert_eq!((more.first_inode, more.inode_count), (other.first_inode + 8, 3));
    rig.file(ROOT, "old range");
    rig.next = more.first_inode;
    rig.file(ROOT, "new range");
    let more = rig.op(Op::AllocInodes(pb::AllocInodesOp { count: 1000 })).unwrap();
    assert_eq!(more.inode_count, Limits::tiny().inode_range);
}
