//! One copy of every file is rotten, nobody knows, and the server of another one is away until it counts as dead:
//! repair has a good source and a bad one.
//!
//! Checked: what is made anew is what was written (O3, O6), and the rotten copies are put right as well (O6). Not
//! checked: shards of k+m files, and rot that comes while others are away (`damage_chaos`).

use super::outlived::{calm, leader_view, machine, make, repaired, written};
use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::liveness::{CONVERGED, reaches};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::world::{Options, World};
use futures_util::future::join_all;
use mooseng::client::Client;
use mooseng::errno::Errno;
use mooseng::ids::{ChunkId, ROOT, ServerId};
use mooseng::namespace::tables::Chunks;
use mooseng::tables::Read;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "rotten_source",
    about: "a chunkserver dies, and one of the copies that repair may read is rotten",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &["copies made rotten", "files read after the repair"],
    run: |seed| Box::pin(run(seed)),
};

const READ_ONLY: i32 = 0;
const FILES: usize = 8;
/// Where data begins in the file of a copy: behind its header and its table of CRCs.
const DATA: u64 = 4096 + (64 << 10);
const MADE: u8 = 1;
const REPAIRED: u8 = 2;
const READ: u8 = 3;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 5, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 2, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = Arc::new(AtomicU8::new(0));
    let steps = step.clone();
    mount(&world, 1, move |context, config| {
        let step = steps.clone();
        Box::pin(async move {
            let names: Vec<String> = (0..FILES).map(|number| format!("f{number}")).collect();
            // Each mount fills chunks of its own.
            for name in &names {
                let client = connect(&context, &config).await;
                calm(vec![make(&client, name).await]);
            }
            step.store(MADE, Ordering::Relaxed);
            reaches(&step, REPAIRED, 4 * CONVERGED).await;
            // By another mount, which has nothing in memory.
            let other = connect(&context, &config).await;
            calm(join_all(names.iter().map(|name| read(&other, name))).await);
            step.store(READ, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    reaches(&step, MADE, CONVERGED).await;
    let homes = homes(&world, &cluster);
    let (&away, _) =
        homes.iter().max_by_key(|(_, chunks)| chunks.len()).expect("files were synced");
    let name = leader_view(&world, &cluster).map(|view| machine(&world, &view, away));
    let name = name.unwrap_or_else(|why| violation("O7", why));
    if plan::strikes(FaultClass::Rot) {
        rot(&world, &cluster, &homes, away);
    }
    if plan::strikes(FaultClass::Kill) {
        world.kill(&name);
        repaired(&world, &cluster, away).await;
    }
    step.store(REPAIRED, Ordering::Relaxed);
    reaches(&step, READ, CONVERGED).await;
    world.restart(&name).await;
    cluster.converge(&world).await;
    chunks::check(&world, &cluster).await;
}

/// The chunks with data of each server.
fn homes(world: &World, cluster: &Cluster) -> BTreeMap<ServerId, Vec<ChunkId>> {
    let view = leader_view(world, cluster).unwrap_or_else(|why| violation("O7", why));
    let mut homes: BTreeMap<ServerId, Vec<ChunkId>> = BTreeMap::new();
    for (id, chunk) in view.range::<Chunks>(&ChunkId(0), None).flatten() {
        for replica in chunk.replicas.iter().filter(|_| chunk.committed_len > 0) {
            homes.entry(ServerId(replica.server)).or_default().push(id);
        }
    }
    homes
}

/// A byte of one copy of each chunk that `away` has a copy of rots.
fn rot(world: &World, cluster: &Cluster, homes: &BTreeMap<ServerId, Vec<ChunkId>>, away: ServerId) {
    let view = leader_view(world, cluster).unwrap_or_else(|why| violation("O7", why));
    let mut rng = world.rng("rot");
    for chunk in &homes[&away] {
        let others: Vec<ServerId> = homes
            .iter()
            .filter(|(server, chunks)| **server != away && chunks.contains(chunk))
            .map(|(server, _)| *server)
            .collect();
        let victim = machine(world, &view, others[rng.below(others.len() as u64) as usize]);
        let disk = world.disks(&victim)[0].clone();
        let of = format!("{:016x}-", chunk.0);
        let path =
            disk.paths().into_iter().find(|path| path.contains(&of) && path.ends_with(".dat"));
        let path = path.unwrap_or_else(|| violation("O6", format!("{victim} has no {of}")));
        let rotten = disk.rot(&path, DATA + rng.below(written().len() as u64), 1);
        assert!(rotten, "{victim} has not all of {path}");
        stats::count("copies made rotten");
    }
}

async fn read(client: &Arc<Client>, name: &str) -> Result<(), Errno> {
    let attr = client.lookup(ROOT, name.as_bytes()).await?;
    let handle = client.open(mooseng::ids::InodeId(attr.inode), READ_ONLY).await?;
    let found = client.read(handle, 0, written().len()).await?.concat();
    if found != written() {
        violation("O3", format!("{name} is not what was written"));
    }
    stats::count("files read after the repair");
    client.release(handle).await;
    Ok(())
}
