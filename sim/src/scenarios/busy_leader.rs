//! A chunkserver dies while the leader, whose disk is slow, has a long backlog of files to purge.
//!
//! Checked: the server is declared dead in time, although each round of the leader's background work takes longer than a
//! stall may (O7). Not checked: what is repaired then (`damage_chaos`).

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::{reaches, within};
use crate::plan::{self, FaultClass};
use crate::rng::Ratio;
use crate::stats;
use crate::trace;
use crate::world::{Options, Role, World};
use futures_util::future::join_all;
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{ROOT, ServerId};
use mooseng::namespace::tables::{Orphans, Servers};
use mooseng::pb::ServerState;
use mooseng::tables::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "busy_leader",
    about: "a chunkserver dies while the leader has much to do",
    seeds: 4,
    limit: Duration::from_secs(900),
    must_count: &["servers declared dead", "files left to the purge then"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const FILES: usize = 200;
/// Pieces of each file, some of which one step of a purge frees.
const PIECES: u64 = 16;
const MADE: u8 = 1;
const SLOW: u8 = 2;
const REMOVED: u8 = 3;
/// Of a call of the leader's disk, milliseconds at most.
const SLOW_MS: u64 = 70;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 0, tiny: true, ..drawn.calm() });
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
            if let Some(errno) = made.into_iter().find_map(Result::err) {
                violation("O7", format!("making files on a calm day: {errno:?}"));
            }
            step.store(MADE, Ordering::Relaxed);
            wait(&step, SLOW).await;
            let gone = names.iter().map(|name| client.unlink(ROOT, name.as_bytes()));
            if let Some(errno) = join_all(gone).await.into_iter().find_map(Result::err) {
                violation("O7", format!("removing files: {errno:?}"));
            }
            step.store(REMOVED, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    wait(&step, MADE).await;
    let disk = world.disks("m1")[0].clone();
    if plan::strikes(FaultClass::SlowDisk) {
        disk.set_faults(|faults| {
            (faults.slow, faults.slow_ms_max) = (Ratio::one_in(1), SLOW_MS);
        });
    }
    step.store(SLOW, Ordering::Relaxed);
    wait(&step, REMOVED).await;
    let away = world.rng("away").pick(&world.names(Role::Chunkserver)).clone();
    if plan::strikes(FaultClass::Kill) {
        world.kill(&away);
    }
    let limits = world.limits();
    let dead = || {
        let leader = cluster.leader(&world).ok_or("no leader")?;
        let view = leader.view();
        let rows = view.range::<Servers>(&ServerId(0), None);
        let dead = rows.flatten().any(|(_, row)| row.state() == ServerState::Dead);
        dead.then_some(()).ok_or_else(|| format!("{away} is not declared dead"))
    };
    // Of rounds that take a few seconds one or two may be under way.
    let bound = limits.server_dead + Duration::from_secs(15);
    within("ms until a server was declared dead", bound, trace::now_ns(), dead).await;
    stats::count("servers declared dead");
    let view = cluster.leader(&world).map(|leader| leader.view());
    let left = view.map_or(0, |view| view.range::<Orphans>(&Default::default(), None).count());
    stats::add("files left to the purge then", left as u64);
    disk.set_faults(|faults| faults.slow = Ratio::NEVER);
    world.restart(&away).await;
    cluster.converge(&world).await;
}

/// A file of many small pieces, apart from each other.
async fn make(client: &Arc<Client>, name: &str) -> Result<(), Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    for piece in 0..PIECES {
        client.write(handle, piece * 10_000, vec![1].into()).await?;
    }
    client.fsync(handle, false).await?;
    client.release(handle).await;
    Ok(())
}

async fn wait(step: &AtomicU8, wanted: u8) {
    reaches(step, wanted, Duration::from_secs(400)).await;
}
