//! Two chunkservers are away, one after the other, until they count as dead, and their chunks until they are repaired
//! elsewhere and then removed; then one comes back with replicas that have outlived their chunks, and the other one later.
//!
//! Checked: they are deleted (O6), also while another replica of the same chunk lies where nobody answers. Not checked: other
//! faults meanwhile (`members_chaos`).

use super::calm_day::{calm, make, names};
use crate::cluster::full::{Cluster, connect, mount};
use crate::cluster::rows::{chunks_with_data, machine};
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::liveness::{CONVERGED, reaches, within};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::trace;
use crate::world::{Options, World};
use futures_util::future::join_all;
use mooseng::ids::{ChunkId, Generation, ROOT, ServerId};
use mooseng::namespace::tables::{Chunks, Doomed};
use mooseng::pb::ChunkState;
use mooseng::tables::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "outlived",
    about: "a chunkserver comes back with replicas that have outlived their chunks",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &["replicas that outlived their chunks"],
    run: |seed| Box::pin(run(seed)),
};

const FILES: usize = 12;
const MADE: u8 = 1;
const REPAIRED: u8 = 2;
const REMOVED: u8 = 3;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 4, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = Arc::new(AtomicU8::new(0));
    let steps = step.clone();
    mount(&world, 1, move |context, config| {
        let step = steps.clone();
        Box::pin(async move {
            let client = connect(&context, &config).await;
            let names = names(FILES);
            join_all(names.iter().map(|name| make(&client, name))).await;
            step.store(MADE, Ordering::Relaxed);
            reaches(&step, REPAIRED, 4 * CONVERGED).await;
            let removed = join_all(names.iter().map(|name| client.unlink(ROOT, name.as_bytes())));
            removed.await.into_iter().for_each(calm);
            step.store(REMOVED, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    reaches(&step, MADE, CONVERGED).await;
    let homes = homes(&world, &cluster);
    for (server, away) in &homes {
        if plan::strikes(FaultClass::Kill) {
            world.kill(away);
            cluster.repaired(&world, *server).await;
        }
    }
    step.store(REPAIRED, Ordering::Relaxed);
    reaches(&step, REMOVED, CONVERGED).await;
    within("ms until no chunk was left", CONVERGED, trace::now_ns(), || {
        let view = cluster.leader_view(&world)?;
        // Those that a writer has open wait for his next bytes.
        let rows = view.range::<Chunks>(&ChunkId(0), None).flatten();
        let left = rows.filter(|(_, chunk)| chunk.state() != ChunkState::Open).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} chunks are still there")) }
    })
    .await;
    stats::add("replicas that outlived their chunks", outlived(&world, &cluster, None) as u64);
    let [(_, first), (last, away)] = &homes;
    // Rows are in the order of servers' numbers: those of the one that stays away come first.
    world.restart(away).await;
    within("ms until the one that came back was rid of them", CONVERGED, trace::now_ns(), || {
        match outlived(&world, &cluster, Some(*last)) {
            0 => Ok(()),
            left => Err(format!("{left} replicas have outlived their chunks on {last}")),
        }
    })
    .await;
    world.restart(first).await;
    cluster.converge(&world).await;
    chunks::check(&world, &cluster).await;
}

/// The servers of a chunk with data, and their machines.
fn homes(world: &World, cluster: &Cluster) -> [(ServerId, String); 2] {
    let view = cluster.calm_view(world);
    let (_, mut servers) = chunks_with_data(&view).pop_first().expect("files were synced");
    servers.sort_unstable();
    let with_machine = |server| (server, machine(world, &view, server));
    [with_machine(servers[0]), with_machine(servers[1])]
}

/// Replicas that left their chunks and are not deleted yet, on this server or on all.
fn outlived(world: &World, cluster: &Cluster, on: Option<ServerId>) -> usize {
    let view = cluster.calm_view(world);
    let first = (ServerId(0), ChunkId(0), Generation(0));
    let rows = view.range::<Doomed>(&first, None).flatten();
    rows.filter(|((server, _, _), _)| on.is_none_or(|on| on == *server)).count()
}
