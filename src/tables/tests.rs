//! The tables against a BTreeMap.

use super::*;
use crate::ids::InodeId;
use crate::pb;
use bytes::Bytes;

struct Inodes;
impl Table for Inodes {
    const ID: u8 = 1;
    const NAME: &'static str = "inodes";
    type Key = InodeId;
    type Row = pb::RefRow;
}

pub(super) struct Names;
impl Table for Names {
    const ID: u8 = 2;
    const NAME: &'static str = "names";
    type Key = (InodeId, Bytes);
    type Row = pb::DentryRow;
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn dentry(inode: u64) -> pb::DentryRow {
    pb::DentryRow { inode, ..Default::default() }
}

#[test]
fn rows_are_found_ranged_and_deleted_and_the_hash_follows() {
    let mut db = Db::memory();
    let long = name(&"n".repeat(200));
    db.put::<Inodes>(&InodeId(9), &pb::RefRow { len: 9 }).unwrap();
    let one_row = db.hash();
    for (parent, entry, inode) in [(1, name("b"), 2), (1, name("a"), 3), (2, name(""), 4)] {
        db.put::<Names>(&(InodeId(parent), entry), &dentry(inode)).unwrap();
    }
    db.put::<Names>(&(InodeId(1), long.clone()), &dentry(5)).unwrap();
    let before = db.view();
    let list = |view: &View| {
        let end = (InodeId(2), Bytes::new());
        view.range::<Names>(&(InodeId(1), Bytes::new()), Some(&end))
            .map(|row| row.unwrap().0.1)
            .collect::<Vec<_>>()
    };
    assert_eq!(list(&before), [name("a"), name("b"), long.clone()]);
    assert_eq!(db.get::<Names>(&(InodeId(1), name("b"))).unwrap(), Some(dentry(2)));
    let last = db.last_before::<Names>(&(InodeId(2), Bytes::new())).unwrap().unwrap();
    assert_eq!(last, ((InodeId(1), long.clone()), dentry(5)));
    assert!(db.last_before::<Names>(&(InodeId(1), name("a"))).unwrap().is_none());
    assert_eq!(db.range::<Names>(&(InodeId(0), Bytes::new()), None).count(), 4);
    for (parent, entry) in
        [(1, name("b")), (1, name("a")), (2, name("")), (1, long), (7, name("x"))]
    {
        db.delete::<Names>(&(InodeId(parent), entry)).unwrap();
    }
    assert!(list(&db.view()).is_empty());
    assert_eq!(list(&before).len(), 3);
    assert_eq!(db.hash(), one_row);
    assert_eq!(before.hash(), before.hash_of_rows().unwrap());
    db.delete::<Inodes>(&InodeId(9)).unwrap();
    assert_eq!((db.hash(), db.overlay_bytes()), (0, 0));
}

#[test]
fn keys_sort_as_their_parts_do() {
    let keys =
        [(1u64, name("")), (1, name("a")), (1, name("ab")), (1, name("b")), (256, name("a"))];
    let raw = keys.each_ref().map(|(id, text)| raw_key::<Names>(&(InodeId(*id), text.clone())));
    assert!(raw.is_sorted());
    assert_eq!(<(InodeId, Bytes)>::decode(&raw[2][1..]), Some((InodeId(1), name("ab"))));
    assert_eq!(<(u64, u32)>::decode(&[0; 13]), None);
    assert_eq!(<(u64, u32)>::decode(&[0; 11]), None);
    assert_eq!(<()>::decode(&[]), Some(()));
}
