//! A leader is cut off together with a client that only looks, while others change names with its successor; or
//! it is killed and comes back at once, before it has applied again what it had committed; or it is cut off from the
//! other masters only, and killed with entries in its log that nobody else has and nobody will commit.
//!
//! Checked: O1 (nobody is answered from a state that had ended before the question), O4, O5, O13 (log, votes).
//! Not checked: file data; how long anybody waits.

use crate::cluster::full::{Cluster, connect, mount};
use crate::harness::Scenario;
use crate::oracles::namespace::Namespace;
use crate::plan::FaultClass;
use crate::rng::Rng;
use crate::stats;
use crate::world::{NodeContext, Options, Role, World};
use crate::{plan, trace};
use mooseng::client::{Client, NewNode};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use mooseng::pb::FileKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "deposed_leader",
    about: "leaders are cut off with a reader, or come back at once, while names change",
    seeds: 8,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        "O1 changes checked",
        "O1 reads checked",
        "fault: leader cut off with a reader",
        "fault: leader killed",
        "fault: leader cut off and killed",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Names.
const NAMES: [&[u8]; 3] = [b"a", b"b", b"c"];
/// Leaders that are struck in one run.
const STRIKES: u64 = 8;
/// Clients: some change names, the others look.
const WRITERS: u32 = 2;
const READERS: u32 = 2;

async fn run(seed: u64) {
    let drawn = Options { masters: 3, chunkservers: 1, parity: 0, ..Options::draw(seed) };
    let world = World::new(drawn.calm());
    let cluster = Cluster::default();
    let (oracle, _) = Namespace::watch(&world, &cluster);
    cluster.add(&world);
    cluster.form(&world).await;
    let calm = Arc::new(AtomicBool::new(false));
    for number in 1..=WRITERS + READERS {
        let calm = calm.clone();
        mount(&world, number, move |context, config| {
            let calm = calm.clone();
            Box::pin(async move {
                let client = connect(&context, &config).await;
                let rng = Rng::new(seed).fork(&context.name);
                work(&context, &client, rng, number > WRITERS, &calm).await
            })
        });
    }
    tokio::spawn(world.clone().supervise());
    let mut rng = world.rng("strikes");
    for number in 1..=STRIKES {
        tokio::time::sleep(Duration::from_millis(rng.range(300, 1_200))).await;
        strike(&world, &cluster, &mut rng.fork("strike"), number).await;
    }
    _ = world.heal().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    calm.store(true, Ordering::Relaxed);
    cluster.converge(&world).await;
    oracle.check();
}

async fn strike(world: &Arc<World>, cluster: &Cluster, rng: &mut Rng, number: u64) {
    let Some(leader) = cluster.leader_name(world) else { return };
    let (kind, ms) = (rng.range(0, 6), rng.range(800, 2_500));
    let reader = format!("c{}", WRITERS + rng.range(1, u64::from(READERS) + 1) as u32);
    let (what, cut, kill) = match kind {
        0 | 1 => ("fault: leader killed", false, true),
        2 => ("fault: leader cut off and killed", true, true),
        _ => ("fault: leader cut off with a reader", true, false),
    };
    let left_out =
        cut && !plan::strikes(FaultClass::Partition) || kill && !plan::strikes(FaultClass::Kill);
    if !plan::damages(number, what) || left_out {
        return;
    }
    stats::count(what);
    if !cut {
        world.kill(&leader);
        tokio::time::sleep(Duration::from_millis(ms % 30)).await;
        return world.restart(&leader).await;
    }
    let apart = if kill { vec![leader.clone()] } else { vec![leader.clone(), reader] };
    let mut rest = if kill { world.names(Role::Master) } else { world.all_names() };
    rest.retain(|name| !apart.contains(name));
    world.cut(&apart, &rest);
    if kill {
        // Long enough for the writers' next changes to reach it, too short for it to know that it leads no more.
        tokio::time::sleep(Duration::from_millis(ms % 100 + 50)).await;
        world.kill(&leader);
        world.restart(&leader).await;
    }
    tokio::time::sleep(Duration::from_millis(ms)).await;
    world.join(&apart, &rest);
}

async fn work(
    context: &NodeContext,
    client: &Arc<Client>,
    mut rng: Rng,
    looks: bool,
    calm: &AtomicBool,
) {
    loop {
        tokio::time::sleep(Duration::from_millis(rng.range(5, 70))).await;
        if calm.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if context.skips() {
            continue;
        }
        let (began, name) = (trace::now_ns(), NAMES[rng.index(NAMES.len())]);
        let (what, outcome) = match (looks, rng.chance(1, 2)) {
            (true, _) => ("lookup", look(client, name).await),
            (false, true) => ("mkdir", make(client, name).await),
            (false, false) => ("rmdir", client.rmdir(ROOT, name).await),
        };
        context.did(began, what, &format!("{outcome:?}"));
        if outcome != Err(Errno::EIO) {
            stats::count(stats::OPERATIONS);
        }
    }
}

async fn look(client: &Arc<Client>, name: &[u8]) -> Result<(), Errno> {
    // Caches may be a little out of date; the masters are not.
    client.drop_caches();
    client.lookup(ROOT, name).await.map(drop)
}

async fn make(client: &Arc<Client>, name: &[u8]) -> Result<(), Errno> {
    let kind = FileKind::Directory;
    let new = NewNode { kind, mode: 0o755, uid: 1, gid: 1, rdev: 0 };
    client.mkdir(ROOT, name, new).await.map(drop)
}
