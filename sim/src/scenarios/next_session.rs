//! A mount is frozen until its session is over, and works on at once, while answers about new chunks come late.
//!
//! Checked: what is written after an error that told of the end, or by a call that succeeded since, belongs to the next
//! session and is not lost with the last one (O7). Not checked: other faults (`damage_chaos`).

use crate::cluster::full::{Cluster, connect, errand};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, reaches};
use crate::plan::{self, FaultClass};
use crate::rng::Ratio;
use crate::stats;
use crate::world::{NetOptions, Options, World};
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

pub const SCENARIO: Scenario = Scenario {
    name: "next_session",
    about: "what is written in the next session is not lost with the last one",
    seeds: 8,
    limit: Duration::from_secs(300),
    must_count: &["written in the last session and lost", "written in the next session"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READY: u8 = 1;
/// More than is kept with the metadata.
const BYTES: usize = 20_000;
/// Files that may be asked for before the client has heard of the end and has another session.
const TRIES: usize = 8;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let calm = Options { data: 1, parity: 1, tiny: true, ..drawn.calm() };
    let only = vec!["OpenChunk".to_owned()];
    let net = NetOptions { delay: Ratio::one_in(2), delay_ms_max: 400, only, ..calm.net.clone() };
    let world = World::new(Options { net, ..calm });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let (step, back) = (Arc::new(AtomicU8::new(0)), Arc::new(Notify::new()));
    let (steps, thaws) = (step.clone(), back.clone());
    let working = errand(&world, 1, move |context, config| {
        let (step, back) = (steps.clone(), thaws.clone());
        async move {
            let client = connect(&context, &config).await;
            // No chunk is open yet: the first one is asked for in a session that is over.
            let old = create(&client, "old").await;
            let old =
                old.unwrap_or_else(|errno| violation("O7", format!("on a calm day: {errno:?}")));
            let thawed = back.notified();
            step.store(READY, Ordering::Relaxed);
            thawed.await;
            tokio::join!(last(&client, old), next(&client));
            client
        }
    });
    reaches(&step, READY, CONVERGED).await;
    if plan::strikes(FaultClass::ClientFrozen) {
        world.pause("c1");
        tokio::time::sleep(world.limits().session_ttl + Duration::from_secs(2)).await;
    }
    back.notify_waiters();
    world.resume("c1");
    working.ends(CONVERGED, "nothing is written in the next session").await;
    cluster.converge(&world).await;
}

/// What is written before the client has heard that its session is over is lost, or not.
async fn last(client: &Arc<Client>, handle: Handle) {
    if write(client, handle).await.is_err() {
        stats::count("written in the last session and lost");
    }
}

async fn next(client: &Arc<Client>) {
    for number in 0..TRIES {
        let Ok(handle) = create(client, &format!("new{number}")).await else { continue };
        // What is written before the client has heard of the end may be lost with the last session.
        let known = client.stats().sessions_lost > 0;
        match write(client, handle).await {
            Ok(()) if known => return stats::count("written in the next session"),
            Err(errno) if known => {
                violation("O7", format!("{errno:?} for what is of the next session"))
            }
            _ => {}
        }
    }
}

async fn create(client: &Arc<Client>, name: &str) -> Result<Handle, Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    client.create(ROOT, name.as_bytes(), new).await.map(|(_, handle)| handle)
}

async fn write(client: &Arc<Client>, handle: Handle) -> Result<(), Errno> {
    client.write(handle, 0, vec![7; BYTES].into()).await?;
    client.fsync(handle, false).await
}
