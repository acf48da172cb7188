//! A new cluster's first master is killed before it has written down what the cluster is, which only its disk says, while
//! others have come to join.
//!
//! Checked: when it is back the cluster forms (O7). Not checked: a founder that never comes back: nothing was stored yet,
//! and the others begin anew.

use crate::cluster::full::Cluster;
use crate::harness::Scenario;
use crate::plan::{self, FaultClass};
use crate::rng::Ratio;
use crate::stats;
use crate::world::{Options, World};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "founder_dies",
    about: "the first master is killed before the cluster is founded",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["founders killed", "clusters formed"],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    let drawn = Options { masters: 3, chunkservers: 3, clients: 0, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, tiny: true, ..drawn.calm() });
    // It is founded in a round.
    plan::choose_point("master: round skipped", Ratio::one_in(1));
    let cluster = Cluster::default();
    cluster.add(&world);
    tokio::time::sleep(Duration::from_millis(world.rng("founder").range(500, 3_000))).await;
    if plan::strikes(FaultClass::Kill) {
        world.kill("m1");
        stats::count("founders killed");
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    _ = world.heal().await;
    cluster.form(&world).await;
    stats::count("clusters formed");
    cluster.converge(&world).await;
}
