//! Two chunkservers are away, one after the other, until they count as dead, and their chunks until they are repaired
//! elsewhere and then removed; then one comes back with replicas that have outlived their chunks, and the other one later.
//!
//! Checked: they are deleted (O6), also while another replica of the same chunk lies where nobody answers. Not checked: other
//! faults meanwhile (`members_chaos`).

use crate::cluster::chunkserver_ip;
use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::liveness::{CONVERGED, reaches, within};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::trace;
use crate::world::{Options, World};
use futures_util::future::join_all;
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{ChunkId, Generation, ROOT, ServerId};
use mooseng::namespace::tables::{Chunks, Doomed, Servers};
use mooseng::pb::{ChunkState, ServerState};
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

const READ_WRITE: i32 = 2;
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
            let names: Vec<String> = (0..FILES).map(|number| format!("f{number}")).collect();
            let made = join_all(names.iter().map(|name| make(&client, name))).await;
            calm(made);
            step.store(MADE, Ordering::Relaxed);
            reaches(&step, REPAIRED, 4 * CONVERGED).await;
            calm(join_all(names.iter().map(|name| client.unlink(ROOT, name.as_bytes()))).await);
            step.store(REMOVED, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    reaches(&step, MADE, CONVERGED).await;
    let homes = homes(&world, &cluster);
    for (server, away) in &homes {
        if plan::strikes(FaultClass::Kill) {
            world.kill(away);
            repaired(&world, &cluster, *server).await;
        }
    }
    step.store(REPAIRED, Ordering::Relaxed);
    reaches(&step, REMOVED, CONVERGED).await;
    within("ms until no chunk was left", CONVERGED, trace::now_ns(), || {
        let view = leader_view(&world, &cluster)?;
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
    let view = leader_view(world, cluster).unwrap_or_else(|why| violation("O7", why));
    let mut chunks = view.range::<Chunks>(&ChunkId(0), None).flatten();
    let used = chunks.find(|(_, chunk)| chunk.committed_len > 0).expect("files were synced").1;
    let mut servers: Vec<ServerId> = used.replicas.iter().map(|r| ServerId(r.server)).collect();
    servers.sort_unstable();
    let with_machine = |server| (server, machine(world, &view, server));
    [with_machine(servers[0]), with_machine(servers[1])]
}

/// The name of the machine that is this server.
pub(super) fn machine(world: &World, view: &impl Read, server: ServerId) -> String {
    let row = view.get::<Servers>(&server).expect("tables").expect("its row");
    let of = |number: &u32| row.address.starts_with(&format!("{}:", chunkserver_ip(*number)));
    let number = (1..=world.options.chunkservers).find(of);
    format!("s{}", number.expect("one of the servers"))
}

/// Replicas that left their chunks and are not deleted yet, on this server or on all.
fn outlived(world: &World, cluster: &Cluster, on: Option<ServerId>) -> usize {
    let view = leader_view(world, cluster).unwrap_or_else(|why| violation("O7", why));
    let first = (ServerId(0), ChunkId(0), Generation(0));
    let rows = view.range::<Doomed>(&first, None).flatten();
    rows.filter(|((server, _, _), _)| on.is_none_or(|on| on == *server)).count()
}

/// It is declared dead, and no chunk counts on it any more.
pub(super) async fn repaired(world: &World, cluster: &Cluster, server: ServerId) {
    within("ms until repaired", 2 * CONVERGED, trace::now_ns(), || {
        let view = leader_view(world, cluster)?;
        let row = view.get::<Servers>(&server).expect("tables").unwrap_or_default();
        let mut chunks = view.range::<Chunks>(&ChunkId(0), None).flatten();
        let left = chunks.any(|(_, chunk)| chunk.replicas.iter().any(|r| r.server == server.get()));
        match row.state() == ServerState::Dead && !left {
            true => Ok(()),
            false => Err(format!("{server} is {:?}, chunks count on it: {left}", row.state())),
        }
    })
    .await;
}

pub(super) fn leader_view(world: &World, cluster: &Cluster) -> Result<impl Read + use<>, String> {
    Ok(cluster.leader(world).ok_or("no leader")?.view())
}

pub(super) fn calm(done: Vec<Result<(), Errno>>) {
    if let Some(errno) = done.into_iter().find_map(Result::err) {
        violation("O7", format!("on a calm day: {errno:?}"));
    }
}

pub(super) async fn make(client: &Arc<Client>, name: &str) -> Result<(), Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    client.write(handle, 0, written().into()).await?;
    client.fsync(handle, false).await?;
    client.release(handle).await;
    Ok(())
}

/// What every file holds: a block and a bit.
pub(super) fn written() -> Vec<u8> {
    vec![1; 5_000]
}
