//! One mount keeps files open that another one changes, syncs and removes, and opens them once more by what it
//! still knows of their names.
//!
//! Checked: O3 (close-to-open: whoever opens sees what was synced before, or that the file is gone). Not checked:
//! crashes; what is read through descriptors that were open before.

use crate::cluster::full::{Cluster, connect, errand, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use crate::world::{Options, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

pub const SCENARIO: Scenario = Scenario {
    name: "removed_elsewhere",
    about: "a file that is open here is changed and removed elsewhere, and opened once more",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &["files opened once more", "of them gone"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;
const FILES: u64 = 12;
const BYTES: usize = 6000;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 3, clients: 2, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 1, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    // Inodes to open, and then that it was done. A machine may start more than once: receivers are shared.
    let (made, makes) = mpsc::channel::<InodeId>(1);
    let (seen, sees) = mpsc::channel::<()>(1);
    let (makes, sees) = (Arc::new(Mutex::new(makes)), Arc::new(Mutex::new(sees)));
    let writer = errand(&world, 1, move |context, config| {
        let (made, sees) = (made.clone(), sees.clone());
        async move {
            let client = connect(&context, &config).await;
            let mut rng = Rng::new(seed).fork("writer");
            for number in 0..FILES {
                let removes = rng.chance(2, 3);
                if let Err(errno) = write(&client, number, removes, &made, &sees).await {
                    violation("O7", format!("file {number} on a calm day: {errno:?}"));
                }
            }
            client
        }
    });
    mount(&world, 2, move |context, config| {
        let (makes, seen) = (makes.clone(), seen.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            let mut makes = makes.lock().await;
            while let Some(inode) = makes.recv().await {
                read(&client, inode, &mut makes, &seen).await;
            }
        })
    });
    writer.ends(Duration::from_secs(120), "the files are not written and read").await;
}

/// Two versions of a file; between them the other mount opens it, after the second one once more.
async fn write(
    client: &Arc<Client>,
    number: u64,
    removes: bool,
    made: &mpsc::Sender<InodeId>,
    sees: &Mutex<mpsc::Receiver<()>>,
) -> Result<(), Errno> {
    let name = format!("{number}");
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (attr, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    let inode = InodeId(attr.inode);
    for version in [1, 2] {
        client.write(handle, 0, vec![version; BYTES].into()).await?;
        client.fsync(handle, false).await?;
        if version == 2 && removes {
            client.unlink(ROOT, name.as_bytes()).await?;
            client.release(handle).await;
        }
        let _ = made.send(inode).await;
        sees.lock().await.recv().await;
    }
    if !removes {
        client.release(handle).await;
    }
    Ok(())
}

/// Opens and reads the first version, and, with that still open, what is to be seen of the second one.
async fn read(
    client: &Arc<Client>,
    inode: InodeId,
    makes: &mut mpsc::Receiver<InodeId>,
    seen: &mpsc::Sender<()>,
) {
    let held = client.open(inode, READ_ONLY).await;
    if let Ok(held) = held {
        let _ = client.read(held, 0, BYTES).await;
    }
    let _ = seen.send(()).await;
    makes.recv().await;
    stats::count("files opened once more");
    match client.open(inode, READ_ONLY).await {
        Ok(again) => {
            let found = client.read(again, 0, BYTES).await.map(|pieces| pieces.concat());
            if found.as_ref().is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 2)) {
                violation("O3", format!("{inode} opened after its second version shows the first"));
            }
            client.release(again).await;
        }
        Err(Errno::ESTALE | Errno::ENOENT) => stats::count("of them gone"),
        Err(errno) => violation("O7", format!("{inode} does not open on a calm day: {errno:?}")),
    }
    if let Ok(held) = held {
        client.release(held).await;
    }
    let _ = seen.send(()).await;
}
