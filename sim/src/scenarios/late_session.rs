//! The answer to a mount's first call is lost, and it hears nothing for longer than the session lives that it does
//! not know of.
//!
//! Checked: it has a session soon after it is heard again (O7). Not checked: anything else.

use crate::cluster::full::{Cluster, connect, mount};
use crate::harness::Scenario;
use crate::oracles::Applies;
use crate::oracles::liveness::within;
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::trace;
use crate::world::{Options, World};
use mooseng::pb::proposal::Kind;
use mooseng::raft::{Applied, Taken};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "late_session",
    about: "a session ends before its client has heard of it",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["answers lost", "mounted afterwards"],
    run: |seed| Box::pin(run(seed)),
};

/// Within which the mount is served when nothing stands in its way any more.
const SOON: Duration = Duration::from_secs(5);

async fn run(seed: u64) {
    let masters = if seed.is_multiple_of(2) { 1 } else { 3 };
    let drawn = Options { masters, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    let lost = Arc::new(AtomicBool::new(false));
    cluster.appliers.add(Arc::new(Loses { world: Arc::downgrade(&world), lost: lost.clone() }));
    cluster.add(&world);
    cluster.form(&world).await;
    let mounted = Arc::new(AtomicBool::new(false));
    let done = mounted.clone();
    mount(&world, 1, move |context, config| {
        let done = done.clone();
        Box::pin(async move {
            let _client = connect(&context, &config).await;
            done.store(true, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    until(&lost, Duration::from_secs(10), "the session is not opened").await;
    let ttl = world.limits().session_ttl;
    let more = world.rng("silence").range(1_000, 5_000);
    tokio::time::sleep(ttl + Duration::from_millis(more)).await;
    world.no_holes();
    until(&mounted, SOON, "no session although nothing is in the way").await;
    stats::count("mounted afterwards");
}

async fn until(flag: &AtomicBool, bound: Duration, otherwise: &str) {
    let done = || flag.load(Ordering::Relaxed).then_some(()).ok_or_else(|| otherwise.to_owned());
    within("ms waited for the mount", bound, trace::now_ns(), done).await;
}

/// Takes the mount off the network when the first master has opened its session, before that is answered.
struct Loses {
    world: Weak<World>,
    lost: Arc<AtomicBool>,
}

impl Applies for Loses {
    fn applied(&self, _node: &str, applied: &Applied<'_>) {
        let Taken::Command(command, _) = applied.what else { return };
        let opens = |kind: &Option<Kind>| matches!(kind, Some(Kind::OpenSession(_)));
        if !command.proposals.iter().any(|proposal| opens(&proposal.kind)) {
            return;
        }
        let Some(world) = self.world.upgrade() else { return };
        if plan::strikes(FaultClass::BlackHole) && !self.lost.swap(true, Ordering::Relaxed) {
            stats::count("answers lost");
            let (mut others, mount) = (world.all_names(), vec!["c1".to_owned()]);
            others.retain(|name| *name != mount[0]);
            world.hole(&others, &mount);
            world.hole(&mount, &others);
        }
    }
}
