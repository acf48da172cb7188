//! The chunkservers' disks are full under a writer that streams more than a mount keeps in memory; then there is room
//! again.
//!
//! Checked: the writer hears ENOSPC from write(2) or fsync(2), soon, whatever of its file it has written (O7); with room
//! again it goes on, and what is synced then is there (O3). Not checked: masters whose disks are full (`master_full`).

use crate::cluster::full::{Cluster, connect, errand};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{NodeContext, Options, Role, World};
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use std::sync::Arc;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "servers_full",
    about: "the chunkservers are full under a streaming writer: ENOSPC, soon",
    seeds: 4,
    limit: Duration::from_secs(900),
    must_count: &["writes refused", "files whole afterwards"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const PIECE: usize = 50_000;
/// Several times what a mount keeps.
const PIECES: u64 = 60;
/// Within which a call ends when the masters say that there is no room.
const SOON: Duration = Duration::from_secs(30);

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let writer = errand(&world, 1, move |context, config| async move {
        let client = connect(&context, &config).await;
        let mut rng = Rng::new(seed).fork("writer");
        if let Err(errno) = stream(&context, &client, &mut rng).await {
            violation("O7", format!("on disks with room: {errno:?}"));
        }
        client
    });
    writer.ends(Duration::from_secs(800), "the writer does not end").await;
    cluster.converge(&world).await;
}

/// All chunkservers have room, or none.
fn fill(context: &NodeContext, full: bool) {
    let world = context.world.upgrade().expect("the world outlives its machines");
    for name in world.names(Role::Chunkserver) {
        for disk in world.disks(&name) {
            disk.set_faults(|faults| faults.full = full);
        }
    }
}

async fn stream(context: &NodeContext, client: &Arc<Client>, rng: &mut Rng) -> Result<(), Errno> {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, b"file", new).await?;
    write(client, handle, 0).await?;
    client.fsync(handle, false).await?;
    let full = plan::strikes(FaultClass::FullDisk);
    fill(context, full);
    tokio::time::sleep(Duration::from_millis(rng.below(3_000))).await;
    let refused = write_all(client, handle).await;
    match (refused, full) {
        (Err(Errno::ENOSPC), _) => stats::count("writes refused"),
        (Ok(()), false) => {}
        (other, _) => violation("O7", format!("a full disk is told of as {other:?}")),
    }
    fill(context, false);
    // For the masters to hear of it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    // What was refused before is told at most once more.
    let _ = client.fsync(handle, false).await;
    for piece in 0..PIECES {
        write(client, handle, piece).await?;
    }
    client.fsync(handle, false).await?;
    let whole = client.read(handle, 0, PIECE * PIECES as usize).await?.concat();
    if whole.len() != PIECE * PIECES as usize || whole.iter().any(|byte| *byte != 1) {
        violation("O3", "what was synced is not there");
    }
    stats::count("files whole afterwards");
    client.release(handle).await;
    Ok(())
}

/// Until it is refused.
async fn write_all(client: &Arc<Client>, handle: Handle) -> Result<(), Errno> {
    for piece in 0..PIECES {
        let asked = trace::now_ns();
        let written = write(client, handle, piece).await;
        let took = Duration::from_nanos(trace::now_ns() - asked);
        if took > SOON {
            violation("O7", format!("write takes {took:?} on full disks: {written:?}"));
        }
        written?;
    }
    client.fsync(handle, false).await
}

async fn write(client: &Arc<Client>, handle: Handle, piece: u64) -> Result<(), Errno> {
    client.write(handle, piece * PIECE as u64, vec![1; PIECE].into()).await.map(drop)
}
