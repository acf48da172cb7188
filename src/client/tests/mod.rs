//! Clients against real masters and chunkservers, all in this process.

mod cluster;
mod coherence;
mod faults;
mod files;
mod log;

use super::{Client, Handle, NewFile};
use crate::errno::Errno;
use crate::ids::{InodeId, ROOT};
use std::sync::Arc;

/// Opens or creates a file in the root.
async fn create(client: &Arc<Client>, name: &str) -> (InodeId, Handle) {
    let new = NewFile { mode: 0o644, flags: libc::O_RDWR, ..NewFile::default() };
    let (attr, handle) = client.create(ROOT, name.as_bytes(), new).await.unwrap();
    (InodeId(attr.inode), handle)
}

/// Opens by name. A name that another mount has just made, or made to name something else, shows within the
/// time to live.
async fn open(client: &Arc<Client>, name: &str, flags: i32) -> (InodeId, Handle) {
    let until = crate::seam::now() + client.limits.attr_ttl * 2;
    loop {
        let found = client.lookup(ROOT, name.as_bytes()).await;
        let errno = match found {
            Ok(attr) => match client.open(InodeId(attr.inode), flags).await {
                Ok(handle) => return (InodeId(attr.inode), handle),
                Err(errno) => errno,
            },
            Err(errno) => errno,
        };
        let passes = matches!(errno, Errno::ENOENT | Errno::ESTALE);
        assert!(passes && crate::seam::now() < until, "{name}: {errno:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Writes as the kernel does: buffered if that needs no waiting.
async fn write(client: &Arc<Client>, handle: Handle, off: u64, data: &[u8]) -> Result<(), Errno> {
    let manner = client.handles.get(handle)?.manner();
    let written = match client.write_buffered(handle, off, data, manner) {
        Some(written) => written?,
        None => client.write(handle, off, data.to_vec().into()).await?,
    };
    assert_eq!(written, data.len());
    Ok(())
}

async fn read(
    client: &Arc<Client>,
    handle: Handle,
    off: u64,
    len: usize,
) -> Result<Vec<u8>, Errno> {
    let pieces = match client.read_cached(handle, off, len) {
        Some(pieces) => pieces,
        None => client.read(handle, off, len).await?,
    };
    Ok(pieces.concat())
}

async fn close(client: &Arc<Client>, handle: Handle) -> Result<(), Errno> {
    let flushed = client.flush(handle).await;
    client.release(handle).await;
    flushed
}

/// A whole file by name, through a fresh open.
async fn contents(client: &Arc<Client>, name: &str) -> Result<Vec<u8>, Errno> {
    let (ino, handle) = open(client, name, libc::O_RDONLY).await;
    let size = client.getattr(ino).await?.size;
    let mut all = Vec::new();
    while (all.len() as u64) < size {
        let part = read(client, handle, all.len() as u64, 100_000).await?;
        assert!(!part.is_empty(), "the file is shorter than its size");
        all.extend(part);
    }
    assert!(read(client, handle, size, 10).await?.is_empty());
    close(client, handle).await?;
    Ok(all)
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}
