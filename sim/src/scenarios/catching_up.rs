//! A master that was away comes back so far behind that it needs a snapshot, which takes several election timeouts,
//! just when another one is lost: the two that are left must not depose each other until it has caught up. The
//! other one comes back too, and has to catch up with a writer that never rests.
//!
//! Checked: names can be made again within a minute, all masters catch up under load (O7) and agree (O4). Not
//! checked: crashes meanwhile.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::stuck;
use crate::harness::Scenario;
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::world::{NetOptions, Options, Role, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "catching_up",
    about: "a master far behind comes back as another is lost: the snapshot takes longer than an election",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &[stats::OPERATIONS, "made after the loss", "made while the other caught up"],
    run: |seed| Box::pin(run(seed)),
};

/// Files before a master goes away, and while it is away.
const BEFORE: u64 = 150;
const MEANWHILE: u64 = 60;
/// Content of each file, kept in its inode.
const FILE_BYTES: usize = 500;
const READ_WRITE: i32 = 2;
/// Log entries that a master which has caught up may be behind.
const CLOSE: u64 = 20;

async fn run(seed: u64) {
    let drawn = Options { masters: 3, chunkservers: 3, tiny: true, ..Options::draw(seed) };
    let calm = Options { data: 1, parity: 0, ..drawn.calm() };
    // A call takes 20 to 50 ms, a piece of the snapshot too.
    let net = NetOptions { latency_us_min: 10_000, latency_us_max: 25_000, ..calm.net.clone() };
    let world = World::new(Options { net, ..calm });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let (made, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, stop) = (made.clone(), enough.clone());
    mount(&world, 1, move |context, config| {
        let (count, stop) = (count.clone(), stop.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return std::future::pending().await;
                }
                if create(&client, number).await.is_ok() {
                    stats::count(stats::OPERATIONS);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    until(&made, BEFORE, 120).await;
    let leader = cluster.leader_name(&world).expect("a calm day");
    let mut others = world.names(Role::Master);
    others.retain(|name| *name != leader);
    let kills = plan::strikes(FaultClass::Kill);
    if kills {
        world.kill(&others[0]);
    }
    until(&made, BEFORE + MEANWHILE, 120).await;
    world.restart(&others[0]).await;
    if kills {
        world.kill(&others[1]);
    }
    let lost_at = made.load(Ordering::Relaxed);
    until(&made, lost_at + 5, 60).await;
    stats::count("made after the loss");
    catches_up(&cluster, &leader, &others[0]).await;
    until(&made, lost_at + MEANWHILE, 120).await;
    world.restart(&others[1]).await;
    let back_at = made.load(Ordering::Relaxed);
    catches_up(&cluster, &leader, &others[1]).await;
    stats::add("made while the other caught up", made.load(Ordering::Relaxed) - back_at);
    enough.store(true, Ordering::Relaxed);
    cluster.converge(&world).await;
}

/// Until a master is at most a few entries behind another.
async fn catches_up(cluster: &Cluster, leader: &str, follower: &str) {
    let applied = |name: &str| cluster.get(name).map_or(0, |node| node.applied().0);
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if applied(follower) + CLOSE >= applied(leader) {
            return;
        }
    }
    let (leads, follows) = (applied(leader), applied(follower));
    stuck(
        "O7",
        format!("{follower} is at {follows} after 60 s of catching up, {leader} at {leads}"),
    );
}

async fn until(made: &AtomicU64, number: u64, seconds: u64) {
    for _ in 0..seconds * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if made.load(Ordering::Relaxed) >= number {
            return;
        }
    }
    stuck("O7", format!("not {number} files made within {seconds} s"));
}

async fn create(client: &Arc<Client>, number: u64) -> Result<(), Errno> {
    let name = format!("{number:0>40}");
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    let written = client.write(handle, 0, vec![number as u8; FILE_BYTES].into()).await;
    let synced = client.fsync(handle, false).await;
    client.release(handle).await;
    written.and(synced)
}
