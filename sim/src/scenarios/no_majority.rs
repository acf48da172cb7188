//! The leader is left alone by the other masters for longer than a session may be silent, under clients with unsynced
//! writes; then they come back.
//!
//! Checked: nobody's session is expired for a silence that was the masters' own, and what was written before is
//! synced (O7). Not checked: other faults meanwhile.

use super::frame_chaos::AllSpeak;
use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, within};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::trace;
use crate::world::{Options, Role, World};
use mooseng::client::NewFile;
use mooseng::ids::ROOT;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "no_majority",
    about: "a leader without the other masters expires nobody's session",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["masters lost under a leader", "files synced afterwards"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;

async fn run(seed: u64) {
    let drawn = Options { masters: 3, chunkservers: 3, clients: 3, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.appliers.add(Arc::new(AllSpeak(world.frames.clone())));
    cluster.add(&world);
    cluster.form(&world).await;
    let (written, synced) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients = world.options.clients;
    for number in 1..=clients {
        let (written, synced) = (written.clone(), synced.clone());
        mount(&world, number, move |context, config| {
            let (written, synced) = (written.clone(), synced.clone());
            Box::pin(async move {
                let client = connect(&context, &config).await;
                let name = format!("f{number}");
                let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
                let made = client.create(ROOT, name.as_bytes(), new).await;
                let Ok((_, handle)) = made else { violation("O7", format!("create: {made:?}")) };
                let outcome = client.write(handle, 0, vec![1; 3000].into()).await;
                written.fetch_add(1, Ordering::Relaxed);
                if outcome.is_err() || client.fsync(handle, false).await.is_err() {
                    violation("O7", format!("{name} is not synced although all came back"));
                }
                stats::count("files synced afterwards");
                synced.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            })
        });
    }
    until(&written, clients as usize, "written").await;
    let leader = cluster.leader_name(&world);
    let mut others = world.names(Role::Master);
    others.retain(|name| Some(name) != leader.as_ref());
    if plan::strikes(FaultClass::Kill) {
        stats::count("masters lost under a leader");
        others.iter().for_each(|name| world.kill(name));
    }
    // A little longer than a session may be silent, and than a proposal is waited for after that.
    let ttl = world.limits().session_ttl;
    let more = world.rng("away").range(500, 12_000);
    tokio::time::sleep(ttl + Duration::from_millis(more)).await;
    for name in others {
        world.restart(&name).await;
    }
    until(&synced, clients as usize, "synced").await;
    cluster.converge(&world).await;
}

async fn until(count: &AtomicUsize, wanted: usize, what: &str) {
    let all = || count.load(Ordering::Relaxed) >= wanted;
    let done = || all().then_some(()).ok_or_else(|| format!("not all files are {what}"));
    within("ms waited for the files", CONVERGED, trace::now_ns(), done).await;
}
