//! Names, open files and several mounts.

use super::super::NewNode;
use super::cluster::Cluster;
use super::*;
use crate::pb::FileKind;
use std::time::Duration;

const DIR: NewNode = NewNode { kind: FileKind::Directory, mode: 0o755, uid: 0, gid: 0, rdev: 0 };

#[test]
fn close_to_open() {
    let cluster = Cluster::start("close-to-open", 1, 2, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        for round in 0..20u64 {
            let data = pattern(round, 100 + round as usize * 3000);
            let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
            if round == 0 {
                let (_, handle) = create(writer, "f").await;
                write(writer, handle, 0, &data).await.unwrap();
                close(writer, handle).await.unwrap();
            } else {
                let (_, handle) = open(writer, "f", libc::O_RDWR | libc::O_TRUNC).await;
                write(writer, handle, 0, &data).await.unwrap();
                close(writer, handle).await.unwrap();
            }
            assert!(contents(reader, "f").await.unwrap() == data, "round {round}");
        }
    });
}

#[test]
fn unlinked_files_live_while_they_are_open() {
    let cluster = Cluster::start("unlinked", 1, 2, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        let data = pattern(3, 150_000);
        let (ino, handle) = create(&a, "u").await;
        write(&a, handle, 0, &data[..100_000]).await.unwrap();
        a.unlink(ROOT, b"u").await.unwrap();
        assert_eq!(a.lookup(ROOT, b"u").await, Err(Errno::ENOENT));
        write(&a, handle, 100_000, &data[100_000..]).await.unwrap();
        a.fsync(handle, false).await.unwrap();
        a.drop_caches();
        assert!(read(&a, handle, 0, 200_000).await.unwrap() == data);
        assert_eq!(a.getattr(ino).await.unwrap().nlink, 0);
        write(&a, handle, 0, b"never committed").await.unwrap();
        close(&a, handle).await.unwrap();
        a.fsync_dir(ROOT).await.unwrap();
        assert_eq!(b.getattr(ino).await, Err(Errno::ESTALE), "the last close frees it");

        // Removed by somebody else, after it has been open for a while.
        let (ino, handle) = create(&a, "v").await;
        write(&a, handle, 0, &data).await.unwrap();
        close(&a, handle).await.unwrap();
        let (_, handle) = open(&a, "v", libc::O_RDONLY).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        b.unlink(ROOT, b"v").await.unwrap();
        a.drop_caches();
        assert!(read(&a, handle, 0, 200_000).await.unwrap() == data);
        close(&a, handle).await.unwrap();
        a.fsync_dir(ROOT).await.unwrap();
        b.drop_caches();
        assert_eq!(b.getattr(ino).await, Err(Errno::ESTALE));
    });
}

#[test]
fn a_renamed_file_has_its_data() {
    let cluster = Cluster::start("rename", 1, 2, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        let data = pattern(4, 20_000);
        for round in 0..5 {
            let (_, handle) = create(&a, "new").await;
            write(&a, handle, 0, &data).await.unwrap();
            // Not closed, not synced: the rename itself must not overtake the data (rule B5).
            a.rename(ROOT, b"new", ROOT, b"kept", 0).await.unwrap();
            assert!(contents(&b, "kept").await.unwrap() == data, "round {round}");
            assert_eq!(b.lookup(ROOT, b"new").await, Err(Errno::ENOENT));
            close(&a, handle).await.unwrap();
        }
        let (_, handle) = create(&a, "linked").await;
        write(&a, handle, 0, &data).await.unwrap();
        let ino = InodeId(a.lookup(ROOT, b"linked").await.unwrap().inode);
        let attr = a.link(ino, ROOT, b"second").await.unwrap();
        assert_eq!(attr.nlink, 2);
        assert!(contents(&b, "second").await.unwrap() == data);
        close(&a, handle).await.unwrap();
    });
}

#[test]
fn names_are_seen_by_others_within_the_time_to_live() {
    // Room for all names of the directory.
    let limits = crate::limits::Limits { inodes_cached_max: 64, ..crate::limits::Limits::tiny() };
    let cluster = Cluster::with("names", 1, 2, (1, 1), limits);
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        let dir = InodeId(a.mkdir(ROOT, b"d", DIR).await.unwrap().inode);
        assert_eq!(a.mkdir(ROOT, b"d", DIR).await, Err(Errno::EEXIST));
        for i in 0..50 {
            let name = format!("n{i}");
            assert_eq!(a.lookup(dir, name.as_bytes()).await, Err(Errno::ENOENT));
            a.symlink(dir, name.as_bytes(), b"target", 1, 2).await.unwrap();
            assert_eq!(a.lookup_cached(dir, name.as_bytes()).unwrap().unwrap().uid, 1);
        }
        let mut seen = Vec::new();
        let (mut cookie, mut end) = (0, false);
        while !end {
            let page;
            (page, end) = b.readdir(dir, cookie, 20).await.unwrap();
            cookie = page.last().map_or(cookie, |entry| entry.cookie);
            assert!(page.iter().all(|entry| entry.attr.is_some()));
            seen.extend(page.into_iter().map(|entry| entry.name));
        }
        let want: Vec<Vec<u8>> = (0..50).map(|i| format!("n{i}").into_bytes()).collect();
        assert_eq!(seen, want);
        assert_eq!(b.lookup_cached(dir, b"absent"), Some(Err(Errno::ENOENT)), "listed whole");
        let link = InodeId(b.lookup(dir, b"n7").await.unwrap().inode);
        assert_eq!(b.readlink(link).await.unwrap(), "target");
        a.unlink(dir, b"n7").await.unwrap();
        assert_eq!(a.lookup_cached(dir, b"n7"), Some(Err(Errno::ENOENT)));
        tokio::time::sleep(cluster.limits.attr_ttl).await;
        assert_eq!(b.lookup(dir, b"n7").await, Err(Errno::ENOENT));
        assert_eq!(a.rmdir(ROOT, b"d").await, Err(Errno::ENOTEMPTY));
    });
}

#[test]
fn a_cold_sweep_takes_few_questions() {
    let limits = crate::limits::Limits { inodes_cached_max: 4096, ..crate::limits::Limits::tiny() };
    let cluster = Cluster::with("sweep", 1, 2, (1, 1), limits);
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        for i in 0..300 {
            let new = NewNode { kind: FileKind::Fifo, ..DIR };
            a.mknod(ROOT, format!("p{i}").as_bytes(), new).await.unwrap();
        }
        let before = b.stats().queries;
        for i in 0..300 {
            let name = format!("p{i}");
            if b.lookup_cached(ROOT, name.as_bytes()).is_none() {
                b.lookup(ROOT, name.as_bytes()).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
        let asked = b.stats().queries - before;
        assert!(asked < 100, "{asked} questions for 300 names");
    });
}

#[test]
fn xattrs_and_modes() {
    let cluster = Cluster::start("xattrs", 1, 2, (1, 1));
    let a = cluster.mount();
    cluster.block_on(async {
        let (ino, handle) = create(&a, "x").await;
        assert_eq!(a.getxattr(ino, b"user.k").await, Err(Errno::ENODATA));
        a.setxattr(ino, b"user.k", b"", 0).await.unwrap();
        assert_eq!(a.getxattr(ino, b"user.k").await.unwrap(), "");
        a.setxattr(ino, b"user.k", b"value", 0).await.unwrap();
        assert_eq!(a.getxattr(ino, b"user.k").await.unwrap(), "value");
        assert_eq!(a.listxattr(ino).await.unwrap(), ["user.k"]);
        a.removexattr(ino, b"user.k").await.unwrap();
        assert!(a.listxattr(ino).await.unwrap().is_empty());
        let suid = super::super::SetAttr { mode: Some(0o4755), ..Default::default() };
        assert_eq!(a.setattr(ino, suid).await.unwrap().mode, 0o4755);
        write(&a, handle, 0, b"by another").await.unwrap();
        a.kill_priv(handle);
        close(&a, handle).await.unwrap();
        assert_eq!(a.getattr(ino).await.unwrap().mode, 0o755);
        assert!(a.statfs().await.unwrap().inodes >= 2);
    });
}
