//! Changes of the masters' group are given up between their two steps, as when whoever makes them goes down.
//!
//! Checked: the leader finishes what was begun, so that one master of three may be away (O7). Not checked: other faults
//! meanwhile (`members_chaos`).

use crate::cluster::full::Cluster;
use crate::failure::stuck;
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, within};
use crate::plan::{self, FaultClass};
use crate::rng::Ratio;
use crate::stats;
use crate::trace;
use crate::world::{NetOptions, Options, Role, World};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "half_changed",
    about: "changes of the masters' group are given up half way: somebody finishes them",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["fault: point raft: change of members given up", "masters lost afterwards"],
    run: |seed| Box::pin(run(seed)),
};

/// Within which there is a leader again.
const SOON: Duration = Duration::from_secs(3);

async fn run(seed: u64) {
    let drawn = Options { masters: 3, chunkservers: 1, ..Options::draw(seed) };
    let calm = Options { data: 1, parity: 0, ..drawn.calm() };
    // A step takes longer than whoever gives up early waits.
    let net = NetOptions { latency_us_min: 4_000, latency_us_max: 15_000, ..calm.net.clone() };
    let world = World::new(Options { net, ..calm });
    plan::choose_point("raft: change of members given up", Ratio::one_in(2));
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    plan::healed();
    cluster.converge(&world).await;
    let names = world.names(Role::Master);
    let away = world.rng("away").pick(&names).clone();
    if plan::strikes(FaultClass::Kill) {
        world.kill(&away);
        stats::count("masters lost afterwards");
    }
    let led = || match cluster.leader(&world) {
        Some(_) => Ok(()),
        None => Err(format!("no leader without {away}, one of three masters")),
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    within("ms until there was a leader again", SOON, trace::now_ns(), led).await;
    let Some(leader) = cluster.leader(&world) else { stuck("O7", "no leader") };
    if tokio::time::timeout(CONVERGED, leader.read_index()).await.is_err() {
        stuck("O7", "the leader has no quorum although two of three masters are there");
    }
    world.restart(&away).await;
    cluster.converge(&world).await;
}
