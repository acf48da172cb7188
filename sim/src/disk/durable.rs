//! The durable image of a simulated disk behind the same trait, read-only: whatever parses a disk can parse
//! what a power loss would leave.

use super::SimDisk;
use super::names::Node;
use bytes::Bytes;
use mooseng::seam::disk::{Disk, DiskFile, DiskLock, OpenMode, Space, check_path};
use std::io;
use std::sync::Arc;

pub(super) struct DurableImage(pub(super) Arc<SimDisk>);

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for DurableImage {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        check_path(path)?;
        match (mode, self.0.state().names.get_durable(path)) {
            (OpenMode::CreateNew, _) | (OpenMode::Create, None) => read_only(),
            (_, Some(Node::File(number))) => Ok(Arc::new(DurableFile(self.0.clone(), number))),
            (_, Some(Node::Dir)) => Err(io::ErrorKind::IsADirectory.into()),
            (_, None) => Err(missing()),
        }
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        Ok(self.0.state().names.get_durable(path).is_some())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        match self.0.state().names.get_durable(dir) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(missing()),
        }
        Ok(self.0.durable_list(dir))
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        if self.exists(dir)? { Ok(()) } else { read_only() }
    }

    fn remove(&self, _path: &str) -> io::Result<()> {
        read_only()
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { total: self.0.state().capacity, free: 0 })
    }

    fn lock(&self, _path: &str) -> io::Result<Box<dyn DiskLock>> {
        Ok(Box::new(NoLock))
    }

    fn describe(&self) -> String {
        format!("durable image of {}", self.0.name())
    }
}

struct NoLock;

impl DiskLock for NoLock {}

struct DurableFile(Arc<SimDisk>, u64);

impl DiskFile for DurableFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.state().content(self.1).durable_len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.state().content(self.1).durable_read(offset, buf))
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        read_only()
    }

    fn write_vectored_at(&self, _offset: u64, _bufs: &[&[u8]]) -> io::Result<()> {
        read_only()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn writeback_hint(&self, _offset: u64, _len: u64) {}

    fn set_len(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn reserve(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let within = self.len()?.saturating_sub(offset).min(len as u64) as usize;
        let mut bytes = vec![0; within];
        self.read_at(offset, &mut bytes)?;
        Ok(Bytes::from(bytes))
    }

    fn read_resident(&self, offset: u64, len: usize) -> Option<Bytes> {
        self.map(offset, len).ok()
    }
}
