//! One copy of every file on a server is rotten elsewhere, nobody knows, and that server is away until it counts as dead:
//! repair has a good source and a bad one.
//!
//! Checked: what is made anew is what was written (O3, O6), and the rotten copies are put right as well (O6). Not
//! checked: shards of k+m files, and rot that comes while others are away (`damage_chaos`).

use super::calm_day::{FILE_BYTES, MADE, READ, REPAIRED, makes_and_reads};
use crate::cluster::full::Cluster;
use crate::cluster::rows::{chunks_with_data, machine};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::liveness::{CONVERGED, reaches};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::world::{Options, World};
use mooseng::ids::{ChunkId, ServerId};
use mooseng::tables::Read;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "rotten_source",
    about: "a chunkserver dies, and one of the copies that repair may read is rotten",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &["copies made rotten", "rotten copies that repair met", "files read again"],
    run: |seed| Box::pin(run(seed)),
};

const FILES: usize = 8;
/// Where data begins in the file of a copy: behind its header and its table of CRCs.
const DATA: u64 = 4096 + (64 << 10);

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 5, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 2, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = makes_and_reads(&world, FILES, 4 * CONVERGED);
    reaches(&step, MADE, CONVERGED).await;
    let view = cluster.calm_view(&world);
    let chunks = chunks_with_data(&view);
    let away = with_most(&chunks);
    let name = machine(&world, &view, away);
    if plan::strikes(FaultClass::Rot) {
        rot(&world, &view, &chunks, away);
    }
    if plan::strikes(FaultClass::Kill) {
        world.kill(&name);
        cluster.repaired(&world, away).await;
    }
    step.store(REPAIRED, Ordering::Relaxed);
    reaches(&step, READ, CONVERGED).await;
    world.restart(&name).await;
    cluster.converge(&world).await;
    chunks::check(&world, &cluster).await;
    let met = mooseng::marks::hits().get("chunkserver: corrupt source of a rebuild").copied();
    stats::add("rotten copies that repair met", met.unwrap_or(0));
}

/// The server that has the most of these chunks.
fn with_most(chunks: &BTreeMap<ChunkId, Vec<ServerId>>) -> ServerId {
    let mut each: BTreeMap<ServerId, usize> = BTreeMap::new();
    chunks.values().flatten().for_each(|server| *each.entry(*server).or_default() += 1);
    each.into_iter().max_by_key(|(_, chunks)| *chunks).expect("files were synced").0
}

/// A byte of one copy of each chunk that `away` has a copy of rots.
fn rot(world: &World, view: &impl Read, chunks: &BTreeMap<ChunkId, Vec<ServerId>>, away: ServerId) {
    let mut rng = world.rng("rot");
    for (chunk, homes) in chunks.iter().filter(|(_, homes)| homes.contains(&away)) {
        let others: Vec<ServerId> = homes.iter().copied().filter(|home| *home != away).collect();
        let victim = machine(world, view, *rng.pick(&others));
        let disk = world.disks(&victim)[0].clone();
        let of = format!("{:016x}-", chunk.0);
        let path =
            disk.paths().into_iter().find(|path| path.contains(&of) && path.ends_with(".dat"));
        let path = path.unwrap_or_else(|| violation("O6", format!("{victim} has no {of}")));
        let rotten = disk.rot(&path, DATA + rng.below(FILE_BYTES as u64), 1);
        assert!(rotten, "{victim} has not all of {path}");
        stats::count("copies made rotten");
    }
}
