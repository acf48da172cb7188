//! What is written is what is read.

use super::super::{Client, SetAttr, SetTime};
use super::cluster::Cluster;
use super::*;

fn resize(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

#[test]
fn sizes_from_nothing_to_several_chunks() {
    let cluster = Cluster::start("sizes", 1, 3, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        for (i, len) in
            [0, 1, 511, 513, 4095, 4096, 5000, 70_000, 300_000, 1_000_000].iter().enumerate()
        {
            let name = format!("f{i}");
            let data = pattern(i as u64, *len);
            let (_, handle) = create(&a, &name).await;
            for (at, part) in data.chunks(13_000).enumerate() {
                write(&a, handle, at as u64 * 13_000, part).await.unwrap();
            }
            assert_eq!(read(&a, handle, 0, 2_000_000).await.unwrap(), data, "before the close");
            close(&a, handle).await.unwrap();
            assert!(contents(&a, &name).await.unwrap() == data, "{name} here");
            assert!(contents(&b, &name).await.unwrap() == data, "{name} elsewhere");
        }
        a.drop_caches();
        assert!(contents(&a, "f9").await.unwrap() == pattern(9, 1_000_000), "cold");
        assert_eq!(a.stats().dirty_bytes, 0);
        a.shutdown().await.unwrap();
        b.shutdown().await.unwrap();
    });
}

/// Random writes, truncations, syncs and reads against an array of bytes.
async fn against_an_array(client: &Arc<Client>, other: &Arc<Client>, name: &str, seed: u64) {
    const MAX: usize = 400_000;
    let mut dice = Dice(seed);
    let mut model: Vec<u8> = Vec::new();
    let (ino, handle) = create(client, name).await;
    for step in 0..150 {
        match dice.below(12) {
            0 => {
                let size = dice.below(MAX);
                client.setattr(ino, resize(size as u64)).await.unwrap();
                model.resize(size, 0);
            }
            1 => client.fsync(handle, false).await.unwrap(),
            2 => {
                client.fsync(handle, false).await.unwrap();
                assert!(contents(other, name).await.unwrap() == model, "step {step} elsewhere");
            }
            3 => client.drop_caches(),
            4..=6 => {
                let (off, len) = (dice.below(MAX), dice.below(60_000));
                let found = read(client, handle, off as u64, len).await.unwrap();
                let end = (off + len).min(model.len());
                let want = if off < end { &model[off..end] } else { &[] };
                assert!(found == want, "step {step}: read of {len} at {off}");
            }
            _ => {
                let most = [100, 5000, 80_000][dice.below(3)];
                let off = dice.below(MAX);
                let data = pattern(seed + step, 1 + dice.below(most));
                write(client, handle, off as u64, &data).await.unwrap();
                let end = off + data.len();
                if model.len() < end {
                    model.resize(end, 0);
                }
                model[off..end].copy_from_slice(&data);
            }
        }
        assert_eq!(client.getattr(ino).await.unwrap().size, model.len() as u64, "step {step}");
    }
    close(client, handle).await.unwrap();
    client.drop_caches();
    assert!(contents(client, name).await.unwrap() == model);
    assert!(contents(other, name).await.unwrap() == model);
}

#[test]
fn random_writes_of_two_copies() {
    let cluster = Cluster::start("random", 1, 3, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        for seed in 0..6 {
            against_an_array(&a, &b, &format!("r{seed}"), seed * 1000).await;
        }
    });
}

#[test]
fn random_writes_of_four_and_two() {
    let cluster = Cluster::start("random42", 1, 6, (4, 2));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        for seed in 0..4 {
            against_an_array(&a, &b, &format!("r{seed}"), seed * 1000).await;
        }
    });
}

#[test]
fn sparse_files_have_holes() {
    let cluster = Cluster::start("sparse", 1, 2, (1, 1));
    let a = cluster.mount();
    cluster.block_on(async {
        let (_, handle) = create(&a, "s").await;
        write(&a, handle, 1_000_000, &[1; 5000]).await.unwrap();
        write(&a, handle, 3_000_000, &[2; 10]).await.unwrap();
        for committed in [false, true] {
            if committed {
                a.fsync(handle, false).await.unwrap();
                a.drop_caches();
            }
            assert_eq!(read(&a, handle, 999_990, 20).await.unwrap(), [[0; 10], [1; 10]].concat());
            assert_eq!(read(&a, handle, 2_000_000, 50).await.unwrap(), [0; 50]);
            let seek = async |off, whence| a.lseek_data_hole(handle, off, whence).await;
            assert_eq!(seek(0, libc::SEEK_DATA).await, Ok(1_000_000));
            assert_eq!(seek(0, libc::SEEK_HOLE).await, Ok(0));
            assert_eq!(seek(1_000_001, libc::SEEK_HOLE).await, Ok(1_005_000));
            assert_eq!(seek(1_005_000, libc::SEEK_DATA).await, Ok(3_000_000));
            assert_eq!(seek(3_000_000, libc::SEEK_HOLE).await, Ok(3_000_010));
            assert_eq!(seek(3_000_010, libc::SEEK_DATA).await, Err(Errno::ENXIO));
        }
        close(&a, handle).await.unwrap();
    });
}

#[test]
fn truncation_is_ordered_with_dirty_data() {
    let cluster = Cluster::start("truncate", 1, 2, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        let (ino, handle) = create(&a, "t").await;
        let data = pattern(1, 200_000);
        write(&a, handle, 0, &data).await.unwrap();
        a.setattr(ino, resize(1000)).await.unwrap();
        assert_eq!(read(&a, handle, 0, 5000).await.unwrap(), data[..1000]);
        a.setattr(ino, resize(3000)).await.unwrap();
        write(&a, handle, 2990, &[7; 20]).await.unwrap();
        close(&a, handle).await.unwrap();
        let mut want = data[..1000].to_vec();
        want.resize(2990, 0);
        want.extend([7; 20]);
        assert_eq!(contents(&a, "t").await.unwrap(), want);
        assert_eq!(contents(&b, "t").await.unwrap(), want);
        let (_, handle) = open(&a, "t", libc::O_WRONLY | libc::O_TRUNC).await;
        write(&a, handle, 0, b"x").await.unwrap();
        close(&a, handle).await.unwrap();
        assert_eq!(contents(&b, "t").await.unwrap(), b"x");
    });
}

#[test]
fn appends_go_to_the_end() {
    let cluster = Cluster::start("append", 1, 2, (1, 1));
    let a = cluster.mount();
    cluster.block_on(async {
        let (_, first) = create(&a, "log").await;
        write(&a, first, 0, b"begin ").await.unwrap();
        let (_, handle) = open(&a, "log", libc::O_WRONLY | libc::O_APPEND).await;
        let mut want = b"begin ".to_vec();
        for i in 0..200 {
            let line = format!("line {i} ");
            write(&a, handle, 0, line.as_bytes()).await.unwrap();
            want.extend(line.as_bytes());
            if i % 3 == 0 {
                a.fsync(handle, true).await.unwrap();
            }
        }
        close(&a, handle).await.unwrap();
        close(&a, first).await.unwrap();
        assert_eq!(contents(&a, "log").await.unwrap(), want);
    });
}

#[test]
fn a_time_that_was_set_outlives_the_data_written_before() {
    let cluster = Cluster::start("times", 1, 2, (1, 1));
    let a = cluster.mount();
    cluster.block_on(async {
        let (ino, handle) = create(&a, "t").await;
        write(&a, handle, 0, b"data").await.unwrap();
        let then = SetAttr { mtime: Some(SetTime::At(5_000)), ..SetAttr::default() };
        a.setattr(ino, then).await.unwrap();
        close(&a, handle).await.unwrap();
        a.drop_caches();
        assert_eq!(a.getattr(ino).await.unwrap().mtime_ns, 5_000);
    });
}

#[test]
fn small_files_take_one_command_each() {
    let cluster = Cluster::start("small", 1, 2, (1, 1));
    let a = cluster.mount();
    cluster.block_on(async {
        let before = a.stats();
        for i in 0..40 {
            let (_, handle) = create(&a, &format!("f{i}")).await;
            write(&a, handle, 0, &[i as u8; 400]).await.unwrap();
            close(&a, handle).await.unwrap();
        }
        let after = a.stats();
        assert_eq!(after.appends, before.appends, "their data travels with the metadata");
        // A create and a commit each; unpins and new inode ids ride along.
        assert!(after.batches - before.batches <= 85, "{}", after.batches - before.batches);
    });
}
