//! The masters are away for longer than a mount's operations wait, with a create, an unlink and a rename under way, which
//! they carry out when they are back.
//!
//! Checked: of what nobody waits for any more nothing stays: the masters keep no inode for the mount that it has not open
//! (O10). Not checked: other faults.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::{reaches, within};
use crate::plan::{self, FaultClass};
use crate::stats;
use crate::trace;
use crate::world::{Options, Role, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use mooseng::namespace::tables::{Pins, Sessions};
use mooseng::tables::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "given_up",
    about: "operations are carried out after whoever asked has given up: nothing is kept for him",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &["operations given up", "nothing kept"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READY: u8 = 1;
const ASKED: u8 = 2;
const GIVEN_UP: u8 = 3;
const PATIENCE: Duration = Duration::from_secs(300);

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let step = Arc::new(AtomicU8::new(0));
    let steps = step.clone();
    let kind = seed % 3;
    mount(&world, 1, move |context, config| {
        let step = steps.clone();
        Box::pin(async move {
            let client = connect(&context, &config).await;
            if let Err(errno) = prepare(&client).await {
                violation("O7", format!("on a calm day: {errno:?}"));
            }
            // What is known of names is out of date by then.
            tokio::time::sleep(Duration::from_secs(3)).await;
            step.store(READY, Ordering::Relaxed);
            wait(&step, ASKED).await;
            let outcome = match kind {
                0 => create(&client, "late").await,
                1 => client.unlink(ROOT, b"one").await,
                _ => client.rename(ROOT, b"one", ROOT, b"two", 0).await,
            };
            if outcome.is_err() {
                stats::count("operations given up");
            }
            step.store(GIVEN_UP, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    wait(&step, READY).await;
    let masters = world.names(Role::Master);
    if plan::strikes(FaultClass::Kill) {
        masters.iter().for_each(|name| world.kill(name));
    }
    step.store(ASKED, Ordering::Relaxed);
    wait(&step, GIVEN_UP).await;
    for name in &masters {
        world.restart(name).await;
    }
    // The stream goes on, and a keepalive interval later so does what it found left over.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let nothing_kept = || {
        let leader = cluster.leader(&world).ok_or("no leader")?;
        let view = leader.view();
        let live = view.range::<Sessions>(&Default::default(), None).flatten();
        let live = live.filter(|(_, row)| !row.ended).count();
        // The other file that stays open is one of them.
        let kept = view.range::<Pins>(&Default::default(), None).flatten().count();
        if live == 1 && kept <= 1 {
            return Ok(());
        }
        Err(format!("{kept} inodes are kept for {live} sessions, one has one open"))
    };
    within("ms until nothing was kept", Duration::from_secs(10), trace::now_ns(), nothing_kept)
        .await;
    stats::count("nothing kept");
    cluster.converge(&world).await;
}

/// Two files, and another one that stays open: the mount asks the masters to keep what might be open.
async fn prepare(client: &Arc<Client>) -> Result<(), Errno> {
    create(client, "one").await?;
    create(client, "two").await?;
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    client.create(ROOT, b"open", new).await.map(drop)
}

async fn create(client: &Arc<Client>, name: &str) -> Result<(), Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    client.release(handle).await;
    Ok(())
}

async fn wait(step: &AtomicU8, wanted: u8) {
    reaches(step, wanted, PATIENCE).await;
}
