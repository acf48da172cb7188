//! What appends and reads cost; prints, asserts nothing: `cargo test --release -- --ignored speed --nocapture`.

use super::*;
use crate::seam;

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = seam::now();
    let result = work.await;
    (result, seam::now().since(begun))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed_of_appends_and_reads() {
    let (node, pool) = (Node::new(1).await, pool());
    let small = fill(1, BLOCK_BYTES);
    let mut times = Vec::new();
    for n in 0..2000 {
        let (result, time) =
            timed(append(&pool, &node.address, copy_id(1), n * BLOCK, &small, true)).await;
        result.expect("appended");
        times.push(time);
    }
    times.sort();
    println!("4 KiB append + sync: p50 {:?} p90 {:?}", times[1000], times[1800]);
    times.clear();
    for n in 0..2000 {
        let (_, time) = timed(read(&pool, &node.address, copy_id(1), n * BLOCK, BLOCK)).await;
        times.push(time);
    }
    times.sort();
    println!("4 KiB read: p50 {:?} p90 {:?}", times[1000], times[1800]);
    for sync in [false, true] {
        let writers = (0..8).map(|writer| {
            let (pool, address, small) = (pool.clone(), node.address.clone(), small.clone());
            seam::spawn(async move {
                let id = copy_id(100 + writer + 10 * u64::from(sync));
                for n in 0..500 {
                    append(&pool, &address, id, n * BLOCK, &small, sync).await.expect("appended");
                }
            })
        });
        let before = node.server.metrics().syncs;
        let (_, time) = timed(futures_util::future::join_all(writers)).await;
        let syncs = node.server.metrics().syncs - before;
        println!("8 writers x 500 x 4 KiB, sync {sync}: {time:?}, {syncs} fdatasyncs");
    }
    let big = fill(2, 1 << 20);
    for chunks in [1u64, 2] {
        let streams = (0..chunks).map(|stream| {
            let (pool, address, big) = (pool.clone(), node.address.clone(), big.clone());
            seam::spawn(async move {
                for chunk in 0..8 / chunks {
                    let id = copy_id(1000 * (chunks + 1) + 100 * stream + chunk);
                    for n in 0..64 {
                        append(&pool, &address, id, n << 20, &big, n == 63).await.expect("ok");
                    }
                    seal(&pool, &address, id, 64 << 20, 1).await.expect("sealed");
                }
            })
        });
        let (_, time) = timed(futures_util::future::join_all(streams)).await;
        println!(
            "{chunks} streams, 512 MiB in 1 MiB appends: {:.0} MB/s",
            536.9 / time.as_secs_f64()
        );
    }
    let (_, time) = timed(async {
        for chunk in 0..8 {
            for n in 0..64 {
                read(&pool, &node.address, copy_id(2000 + chunk), n << 20, 1 << 20)
                    .await
                    .expect("ok");
            }
        }
    })
    .await;
    println!("512 MiB in 1 MiB reads, warm: {:.0} MB/s", 536.9 / time.as_secs_f64());
    node.server.stop().await;
}
