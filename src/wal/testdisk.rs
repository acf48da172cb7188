//! A disk in memory for this module's tests: what is written and what is durable are apart, it dies at a
//! chosen I/O, and a reborn one keeps nothing, everything or a random part of what was not durable.

use crate::seam::{Disk, DiskFile, DiskLock, OpenMode, Space};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

/// What a power loss leaves of what was not durable.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    Nothing,
    Everything,
    /// Each sector and each name by a draw from this seed.
    Torn(u64),
}

#[derive(Clone, Default)]
struct Inode {
    written: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    ios: u64,
    dies_at: Option<u64>,
    full: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub struct TestDisk(Arc<Mutex<State>>);

struct TestFile(TestDisk, usize);

impl State {
    /// Counts one I/O that changes something; fails from the chosen one on.
    fn io(&mut self) -> io::Result<()> {
        self.ios += 1;
        match self.dies_at {
            Some(at) if self.ios > at => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        }
    }
}

fn draw(seed: &mut u64) -> bool {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) & 1 == 1
}

impl TestDisk {
    /// The disk dies at its `ios`-th change from now.
    pub fn die_after(&self, ios: u64) {
        let mut state = self.0.lock().unwrap();
        state.dies_at = Some(state.ios + ios);
    }

    /// Whether it died.
    pub fn died(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.dies_at.is_some_and(|at| state.ios > at)
    }

    /// No room for new bytes.
    pub fn set_full(&self, full: bool) {
        self.0.lock().unwrap().full = full;
    }

    /// The disk after the power came back.
    pub fn reborn(&self, keep: Keep) -> TestDisk {
        let state = self.0.lock().unwrap();
        let mut seed = match keep {
            Keep::Torn(seed) => seed,
            _ => 0,
        };
        let mut survives = || match keep {
            Keep::Nothing => false,
            Keep::Everything => true,
            Keep::Torn(_) => draw(&mut seed),
        };
        let mut names = BTreeMap::new();
        for name in state.names.keys().chain(state.durable_names.keys()) {
            let (now, durable) = (state.names.get(name), state.durable_names.get(name));
            let chosen = if now == durable || !survives() { durable } else { now };
            chosen.map(|inode| names.insert(name.clone(), *inode));
        }
        let inodes = state.inodes.iter().map(|inode| {
            let bytes = mix(inode, &mut survives);
            Inode { written: bytes.clone(), durable: bytes }
        });
        let inodes = inodes.collect();
        let reborn = State { inodes, durable_names: names.clone(), names, ..State::default() };
        TestDisk(Arc::new(Mutex::new(reborn)))
    }

    /// Changes one byte of a file, for good.
    pub fn flip(&self, path: &str, at: usize) {
        let mut state = self.0.lock().unwrap();
        let inode = state.names[path];
        let inode = &mut state.inodes[inode];
        inode.written[at] ^= 0x40;
        inode.durable[at] ^= 0x40;
    }

    /// Ends a file early, for good.
    pub fn cut(&self, path: &str, len: usize) {
        let mut state = self.0.lock().unwrap();
        let inode = state.names[path];
        let inode = &mut state.inodes[inode];
        inode.written.truncate(len);
        inode.durable.truncate(len);
    }
}

fn mix(inode: &Inode, survives: &mut impl FnMut() -> bool) -> Vec<u8> {
    let len = if survives() { inode.written.len() } else { inode.durable.len() };
    let mut out = vec![0; len];
    for at in (0..len).step_by(SECTOR) {
        let end = (at + SECTOR).min(len);
        let old = inode.durable.get(at..end.min(inode.durable.len())).unwrap_or(&[]);
        let new = inode.written.get(at..end.min(inode.written.len())).unwrap_or(&[]);
        let from = if old == new || !survives() { old } else { new };
        out[at..at + from.len()].copy_from_slice(from);
    }
    out
}

impl Disk for TestDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock().unwrap();
        let inode = match (state.names.get(path).copied(), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, OpenMode::Read | OpenMode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                state.io()?;
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.names.insert(path.to_owned(), inode);
                inode
            }
        };
        Ok(Arc::new(TestFile(self.clone(), inode)))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let state = self.0.lock().unwrap();
        Ok(state.names.keys().any(|name| name == path || name.starts_with(&format!("{path}/"))))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.0.lock().unwrap();
        let prefix = format!("{dir}/");
        let names = state.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.map(str::to_owned).collect())
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        self.0.lock().unwrap().io()
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.io()?;
        state.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.io()?;
        if dir == super::recover::DIR {
            state.durable_names = state.names.clone();
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space::default())
    }

    fn lock(&self, _path: &str) -> io::Result<Box<dyn DiskLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn describe(&self) -> String {
        "test".to_owned()
    }
}

impl TestFile {
    fn with<T>(&self, change: impl FnOnce(&mut Inode) -> T) -> T {
        change(&mut self.0.0.lock().unwrap().inodes[self.1])
    }
}

impl DiskFile for TestFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|inode| inode.written.len() as u64))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|inode| {
            let bytes = inode.written.get(offset as usize..).unwrap_or(&[]);
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            Ok(len)
        })
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        {
            let mut state = self.0.0.lock().unwrap();
            // The write at which the disk dies is still on its way: it may survive in part.
            let before = state.ios;
            if state.io().is_err() && state.dies_at.is_some_and(|at| before > at) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let end = offset as usize + buf.len();
            if state.full && end > state.inodes[self.1].written.len() {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
        }
        self.with(|inode| {
            let end = offset as usize + buf.len();
            inode.written.resize(inode.written.len().max(end), 0);
            inode.written[offset as usize..end].copy_from_slice(buf);
        });
        match self.0.died() {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.write_at(offset, &bufs.concat())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.0.lock().unwrap().io()?;
        self.with(|inode| inode.durable = inode.written.clone());
        Ok(())
    }

    fn writeback_hint(&self, _offset: u64, _len: u64) {}

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reserve(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn map(&self, _offset: u64, _len: usize) -> io::Result<Bytes> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read_resident(&self, _offset: u64, _len: usize) -> Option<Bytes> {
        None
    }
}
