//! Servers that die, lie or are full.

use super::cluster::Cluster;
use super::*;
use crate::limits::Limits;
use crate::seam;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Short deadlines, so that what cannot succeed fails soon.
fn hasty() -> Limits {
    Limits {
        operation_deadline: Duration::from_secs(4),
        server_suspect: Duration::from_millis(1600),
        ..Limits::tiny()
    }
}

#[test]
fn a_chunkserver_dies_under_a_writer() {
    let mut cluster = Cluster::start("kill-server", 1, 4, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    let data = pattern(1, 3_000_000);
    let (_, handle) = cluster.block_on(create(&a, "f"));
    for (i, part) in data.chunks(100_000).enumerate() {
        if i == 9 {
            cluster.kill_server(0);
        }
        if i == 18 {
            cluster.kill_server(1);
        }
        cluster.block_on(async {
            write(&a, handle, i as u64 * 100_000, part).await.unwrap();
            if i % 5 == 0 {
                a.fsync(handle, false).await.unwrap();
            }
        });
    }
    cluster.block_on(async {
        close(&a, handle).await.unwrap();
        assert!(a.stats().chunks_lost > 0, "no chunk was on the dead servers");
        assert_eq!(a.stats().failed_writebacks, 0);
    });
    // What was written before with both copies on the dead servers is lost; after the second death nothing is.
    cluster.block_on(async {
        let (_, handle) = open(&b, "f", libc::O_RDONLY).await;
        let late = read(&b, handle, 1_900_000, 1_100_000).await.unwrap();
        assert!(late == data[1_900_000..]);
    });
}

#[test]
fn the_leader_dies_under_a_writer() {
    let mut cluster = Cluster::start("kill-leader", 3, 3, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    let data = pattern(2, 600_000);
    let (_, handle) = cluster.block_on(create(&a, "f"));
    let mut longest = Duration::ZERO;
    for (i, part) in data.chunks(10_000).enumerate() {
        if i == 20 {
            cluster.kill_leader();
        }
        let began = seam::now();
        cluster.block_on(async {
            write(&a, handle, i as u64 * 10_000, part).await.unwrap();
            a.fsync(handle, false).await.unwrap();
            let (_, small) = create(&a, &format!("s{i}")).await;
            write(&a, small, 0, &part[..50]).await.unwrap();
            close(&a, small).await.unwrap();
        });
        longest = longest.max(seam::now().since(began));
    }
    cluster.block_on(async {
        close(&a, handle).await.unwrap();
        assert!(contents(&b, "f").await.unwrap() == data);
        for (i, part) in data.chunks(10_000).enumerate() {
            assert_eq!(contents(&b, &format!("s{i}")).await.unwrap(), part[..50]);
        }
    });
    assert!(longest < Duration::from_secs(5), "a stall of {longest:?}");
}

/// Every replica file of one server, with a byte changed in the middle of its data.
#[allow(clippy::disallowed_methods)]
fn rot(cluster: &Cluster, server: usize) -> usize {
    let chunks = cluster.dir.0.join(format!("c{server}/chunks"));
    let mut rotten = 0;
    for dir in std::fs::read_dir(chunks).unwrap() {
        for file in std::fs::read_dir(dir.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.len() - 5000;
            bytes[at] ^= 0x40;
            std::fs::write(&path, bytes).unwrap();
            rotten += 1;
        }
    }
    rotten
}

#[test]
fn a_corrupt_replica_is_passed_over() {
    let cluster = Cluster::start("corrupt", 1, 2, (1, 1));
    let (a, b) = (cluster.mount(), cluster.mount());
    let data = pattern(3, 900_000);
    cluster.block_on(async {
        let (_, handle) = create(&a, "f").await;
        write(&a, handle, 0, &data).await.unwrap();
        close(&a, handle).await.unwrap();
    });
    assert!(rot(&cluster, 0) > 1);
    cluster.block_on(async {
        assert!(contents(&b, "f").await.unwrap() == data);
        assert!(b.stats().corrupt_reads > 0, "nobody read the damaged copy");
    });
}

#[test]
fn reads_survive_the_loss_of_m_shards() {
    let mut cluster = Cluster::start("degraded", 1, 6, (4, 2));
    let a = cluster.mount();
    let data = pattern(4, 1_500_000);
    cluster.block_on(async {
        let (_, handle) = create(&a, "f").await;
        write(&a, handle, 0, &data).await.unwrap();
        close(&a, handle).await.unwrap();
    });
    cluster.kill_server(1);
    cluster.kill_server(4);
    let b = cluster.mount();
    cluster.block_on(async {
        assert!(contents(&b, "f").await.unwrap() == data);
        assert!(b.stats().degraded_bytes > 0);
        let (_, handle) = open(&b, "f", libc::O_RDONLY).await;
        b.drop_caches();
        for off in [0u64, 70_000, 131_072, 262_000, 1_400_000] {
            let found = read(&b, handle, off, 3000).await.unwrap();
            assert!(found == data[off as usize..off as usize + 3000], "at {off}");
        }
    });
}

#[test]
fn damage_beyond_redundancy_is_an_error() {
    let cluster = Cluster::with("beyond", 1, 2, (1, 1), hasty());
    let (a, b) = (cluster.mount(), cluster.mount());
    cluster.block_on(async {
        let (_, handle) = create(&a, "f").await;
        write(&a, handle, 0, &pattern(5, 100_000)).await.unwrap();
        close(&a, handle).await.unwrap();
    });
    rot(&cluster, 0);
    rot(&cluster, 1);
    cluster.block_on(async {
        let (_, handle) = open(&b, "f", libc::O_RDONLY).await;
        assert_eq!(read(&b, handle, 0, 100_000).await, Err(Errno::EIO));
    });
}

#[test]
fn a_full_cluster_says_so_and_recovers() {
    let cluster = Cluster::with("full", 1, 2, (1, 1), hasty());
    let a = cluster.mount();
    let fill =
        |free| cluster.disks.iter().for_each(|disk| disk.free.store(free, Ordering::Relaxed));
    cluster.block_on(async {
        fill(0);
        tokio::time::sleep(cluster.limits.server_heartbeat * 3).await;
        let (_, handle) = create(&a, "f").await;
        write(&a, handle, 0, &pattern(6, 50_000)).await.unwrap();
        assert_eq!(a.fsync(handle, false).await, Err(Errno::ENOSPC));
        // Names can still be removed, small files still be made.
        let (_, small) = create(&a, "small").await;
        write(&a, small, 0, b"inline").await.unwrap();
        close(&a, small).await.unwrap();
        a.unlink(ROOT, b"small").await.unwrap();
        fill(u64::MAX);
        tokio::time::sleep(cluster.limits.server_heartbeat * 3).await;
        a.fsync(handle, false).await.unwrap();
        close(&a, handle).await.unwrap();
        a.drop_caches();
        assert!(contents(&a, "f").await.unwrap() == pattern(6, 50_000));
    });
}

#[test]
fn a_failed_write_back_is_told_once_to_each_and_nothing_is_forgotten() {
    let mut cluster = Cluster::with("told-once", 1, 2, (1, 1), hasty());
    let a = cluster.mount();
    let data = pattern(7, 50_000);
    let (h1, h2) = cluster.block_on(async {
        let (_, h1) = create(&a, "f").await;
        let (_, h2) = open(&a, "f", libc::O_RDWR).await;
        (h1, h2)
    });
    cluster.kill_server(0);
    cluster.kill_server(1);
    cluster.block_on(async {
        write(&a, h1, 0, &data).await.unwrap();
        let failed = a.fsync(h1, false).await.unwrap_err();
        assert!(matches!(failed, Errno::EIO | Errno::ENOSPC));
        assert!(read(&a, h1, 0, 60_000).await.unwrap() == data, "still there");
    });
    cluster.start_server(0);
    cluster.start_server(1);
    cluster.block_on(async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        a.fsync(h1, false).await.unwrap();
        assert!(a.flush(h2).await.is_err(), "told once");
        assert_eq!(a.flush(h2).await, Ok(()), "and not twice");
        a.drop_caches();
        assert!(contents(&a, "f").await.unwrap() == data);
        assert_eq!(a.stats().lost_bytes, 0);
    });
}

#[test]
fn an_expired_session_loses_what_was_dirty_and_says_so() {
    use crate::wire::calls;
    let cluster = Cluster::start("expired", 1, 2, (1, 1));
    let a = cluster.mount();
    cluster.block_on(async {
        let (_, clean) = create(&a, "clean").await;
        write(&a, clean, 0, &pattern(8, 9000)).await.unwrap();
        a.fsync(clean, false).await.unwrap();
        let (_, dirty) = create(&a, "dirty").await;
        write(&a, dirty, 0, &pattern(8, 9000)).await.unwrap();
        // The masters end the session behind the client's back.
        let request = crate::pb::CloseSessionRequest { session: a.session.current().id.get() };
        let until = seam::now() + Duration::from_secs(5);
        a.masters.call::<calls::CloseSession>(&request, until).await.unwrap();
        assert_eq!(a.fsync(dirty, false).await, Err(Errno::EIO));
        assert_eq!(a.fsync(dirty, false).await, Ok(()), "told once; the data is gone");
        write(&a, clean, 0, b"goes on").await.unwrap();
        close(&a, clean).await.unwrap();
        close(&a, dirty).await.unwrap();
        assert_eq!(&contents(&a, "clean").await.unwrap()[..7], b"goes on");
        let (_, handle) = create(&a, "after").await;
        close(&a, handle).await.unwrap();
        assert_eq!(a.stats().sessions, 2);
    });
}
