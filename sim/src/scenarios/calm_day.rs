//! What mounts do on a calm day, for scenarios that look at what becomes of a few files: whatever fails is O7.

use crate::cluster::full::{connect, mount};
use crate::failure::violation;
use crate::oracles::liveness::reaches;
use crate::stats;
use crate::world::World;
use futures_util::future::join_all;
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const READ_ONLY: i32 = 0;
const READ_WRITE: i32 = 2;

/// Steps of [`makes_and_reads`]: all files are made; the scenario is done with them; all are read.
pub const MADE: u8 = 1;
pub const REPAIRED: u8 = 2;
pub const READ: u8 = 3;

/// The length of every file: a block and a bit.
pub const FILE_BYTES: usize = 5_000;

/// What the file of this name holds.
fn written(name: &str) -> Vec<u8> {
    let fill = name.bytes().fold(1, |hash: u8, byte| hash.wrapping_mul(31).wrapping_add(byte));
    vec![fill; FILE_BYTES]
}

/// These names.
pub fn names(files: usize) -> Vec<String> {
    (0..files).map(|number| format!("f{number}")).collect()
}

/// None of it failed.
pub fn calm<T>(done: Result<T, Errno>) -> T {
    done.unwrap_or_else(|errno| violation("O7", format!("on a calm day: {errno:?}")))
}

/// A new file, synced.
pub async fn make(client: &Arc<Client>, name: &str) {
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = calm(client.create(ROOT, name.as_bytes(), new).await);
    calm(client.write(handle, 0, written(name).into()).await);
    calm(client.fsync(handle, false).await);
    client.release(handle).await;
}

/// O3: it holds what was written.
async fn read(client: &Arc<Client>, name: &str) {
    let attr = calm(client.lookup(ROOT, name.as_bytes()).await);
    let handle = calm(client.open(InodeId(attr.inode), READ_ONLY).await);
    let found = calm(client.read(handle, 0, FILE_BYTES).await).concat();
    if found != written(name) {
        violation("O3", format!("{name} is not what was written"));
    }
    stats::count("files read again");
    client.release(handle).await;
}

/// A machine whose mounts make so many files, and read them when the scenario, within `patience`, has set the step.
pub fn makes_and_reads(world: &Arc<World>, files: usize, patience: Duration) -> Arc<AtomicU8> {
    let step = Arc::new(AtomicU8::new(0));
    let steps = step.clone();
    mount(world, 1, move |context, config| {
        let step = steps.clone();
        Box::pin(async move {
            // Each mount fills chunks of its own.
            for name in names(files) {
                make(&connect(&context, &config).await, &name).await;
            }
            step.store(MADE, Ordering::Relaxed);
            reaches(&step, REPAIRED, patience).await;
            // By another mount, which has nothing in memory.
            let other = connect(&context, &config).await;
            join_all(names(files).iter().map(|name| read(&other, name))).await;
            step.store(READ, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    step
}
