//! A chunkserver is away until it counts as dead, and just before repair begins the disk of the server that it would build
//! copies on is replaced by an empty one: at the address of that server another one answers.
//!
//! Checked: nothing is built there for the server that it was, or it would stay for ever, and the files are whole with
//! what is built later (O3, O6). Not checked: a writer in place of repair, other faults (`damage_chaos`).

use super::calm_day::{MADE, READ, REPAIRED, makes_and_reads};
use crate::cluster::full::Cluster;
use crate::cluster::rows::{chunks_with_data, machine};
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::liveness::{CONVERGED, reaches};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::world::{Options, World};
use mooseng::ids::ServerId;
use mooseng::namespace::tables::Servers;
use mooseng::tables::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "another_disk",
    about: "repair is about to build on a machine whose disk has just been replaced",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &["disks replaced", "files read again"],
    run: |seed| Box::pin(run(seed)),
};

const FILES: usize = 8;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 4, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 2, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = makes_and_reads(&world, FILES, 5 * CONVERGED);
    reaches(&step, MADE, CONVERGED).await;
    let [(away, its_machine), (target, emptied)] = victims(&world, &cluster);
    let dies = plan::strikes(FaultClass::Kill);
    if dies {
        world.kill(&its_machine);
        // Repair begins between one heartbeat before that and one round after it.
        let limits = world.limits();
        tokio::time::sleep(limits.server_dead - 2 * limits.server_heartbeat).await;
    }
    if plan::strikes(FaultClass::DiskLost) {
        world.power_loss(&emptied);
        world.empty_disk(&emptied, world.rng("disk").u64());
        stats::count("disks replaced");
        world.restart(&emptied).await;
        cluster.repaired(&world, target).await;
    }
    if dies {
        cluster.repaired(&world, away).await;
    }
    step.store(REPAIRED, Ordering::Relaxed);
    reaches(&step, READ, CONVERGED).await;
    world.restart(&its_machine).await;
    cluster.converge(&world).await;
    chunks::check(&world, &cluster).await;
}

/// A server of the first chunk with data, and the only one that has no copy of it, with their machines.
fn victims(world: &World, cluster: &Cluster) -> [(ServerId, String); 2] {
    let view = cluster.calm_view(world);
    let (_, homes) = chunks_with_data(&view).pop_first().expect("files were synced");
    let servers = view.range::<Servers>(&ServerId(0), None).flatten();
    let other = servers.map(|(server, _)| server).find(|server| !homes.contains(server));
    [homes[0], other.expect("four servers, three copies")]
        .map(|server| (server, machine(world, &view, server)))
}
