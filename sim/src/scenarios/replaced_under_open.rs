//! A file is replaced again and again ("write a new one, rename it over the old one") while others open it by its name on
//! the same mount and read it later.
//!
//! Checked: what is open stays readable, whole, as it was, although its last name is gone (O2, O3). Not checked: crashes
//! (`cluster_chaos`), replacing it on another mount (`removed_elsewhere`).

use crate::cluster::full::{Cluster, connect, errand};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use crate::world::{NetOptions, Options, World};
use futures_util::future::join_all;
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "replaced_under_open",
    about: "a file is replaced while it is opened: what is open stays",
    seeds: 6,
    limit: Duration::from_secs(300),
    must_count: &["files replaced", "files read after a while"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;
const NAME: &[u8] = b"file";
const VERSIONS: u8 = 60;
const READERS: u64 = 4;
/// In a chunk, of which a few make garbage enough for holes.
const BYTES: usize = 20_000;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 1, ..Options::draw(seed) };
    let calm = Options { data: 1, parity: 0, tiny: true, ..drawn.calm() };
    // A message takes as long as a few of them do on one machine.
    let net = NetOptions { latency_us_min: 2_000, latency_us_max: 20_000, ..calm.net.clone() };
    let world = World::new(Options { net, ..calm });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let reading = errand(&world, 1, move |context, config| async move {
        let client = connect(&context, &config).await;
        let over = AtomicBool::new(false);
        let readers = (0..READERS).map(|number| {
            let rng = Rng::new(seed).fork("reader").fork(&number.to_string());
            read(&client, rng, &over)
        });
        let replacing = async {
            if let Err(errno) = replace(&client, Rng::new(seed).fork("replacing")).await {
                violation("O7", format!("replacing on a calm day: {errno:?}"));
            }
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(replacing, join_all(readers));
        client
    });
    reading.ends(Duration::from_secs(240), "the file is not replaced and read").await;
}

async fn replace(client: &Arc<Client>, mut rng: Rng) -> Result<(), Errno> {
    for version in 1..=VERSIONS {
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let (_, handle) = client.create(ROOT, b"new", new).await?;
        client.write(handle, 0, vec![version; BYTES].into()).await?;
        client.fsync(handle, false).await?;
        client.release(handle).await;
        client.rename(ROOT, b"new", ROOT, NAME, 0).await?;
        stats::count("files replaced");
        tokio::time::sleep(Duration::from_millis(rng.below(60))).await;
    }
    Ok(())
}

/// Opens whatever has the name, and reads it when the masters may have let go of what nobody keeps.
async fn read(client: &Arc<Client>, mut rng: Rng, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(rng.below(40))).await;
        let Ok(attr) = client.lookup(ROOT, NAME).await else { continue };
        let Ok(handle) = client.open(InodeId(attr.inode), READ_ONLY).await else {
            stats::count("files gone when they were to be opened");
            continue;
        };
        tokio::time::sleep(Duration::from_millis(rng.below(3_000))).await;
        let read = client.read(handle, 0, BYTES).await.map(|pieces| pieces.concat());
        match read {
            Ok(found) if found.len() == BYTES && found.iter().all(|byte| *byte == found[0]) => {
                stats::count("files read after a while");
            }
            Ok(found) => violation("O2", format!("{} bytes of several versions", found.len())),
            Err(errno) => violation("O3", format!("a file that is open is gone: {errno:?}")),
        }
        client.release(handle).await;
    }
}
