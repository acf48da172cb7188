//! What mounts do on a calm day, for scenarios that look at what becomes of a few files: whatever fails is O7.

use crate::failure::violation;
use crate::stats;
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;

const READ_ONLY: i32 = 0;
const READ_WRITE: i32 = 2;

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
pub async fn read(client: &Arc<Client>, name: &str) {
    let attr = calm(client.lookup(ROOT, name.as_bytes()).await);
    let handle = calm(client.open(InodeId(attr.inode), READ_ONLY).await);
    let found = calm(client.read(handle, 0, FILE_BYTES).await).concat();
    if found != written(name) {
        violation("O3", format!("{name} is not what was written"));
    }
    stats::count("files read again");
    client.release(handle).await;
}
