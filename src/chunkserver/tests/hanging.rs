//! A disk whose reads and writes hang, beside one that works.

use super::*;
use crate::seam::{DiskFile, DiskLock, Space};
use futures_util::future::join_all;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

/// Where calls of the disk wait while it is shut.
#[derive(Default)]
struct Gate {
    /// Whether it is shut, and how many wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 = shut;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 += 1;
        while state.0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.1 -= 1;
    }
}

struct Hanging {
    inner: Arc<dyn Disk>,
    gate: Arc<Gate>,
}

struct HangingFile {
    inner: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
}

impl Disk for Hanging {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(HangingFile { inner, gate: self.gate.clone() }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.create_dir(dir)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        self.inner.lock(path)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

impl DiskFile for HangingFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.gate.pass();
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.gate.pass();
        self.inner.write_at(offset, buf)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.gate.pass();
        self.inner.write_vectored_at(offset, bufs)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass();
        self.inner.sync_data()
    }

    fn writeback_hint(&self, offset: u64, len: u64) {
        self.inner.writeback_hint(offset, len);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch_hole(offset, len)
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.gate.pass();
        self.inner.map(offset, len)
    }

    fn read_resident(&self, offset: u64, len: usize) -> Option<Bytes> {
        self.inner.read_resident(offset, len)
    }
}

/// A chunkserver with two disks of which the first can hang, and a replica of a block on each.
async fn two_disks(pool: &Arc<Pool>) -> (Node, Arc<Gate>, [ReplicaId; 2]) {
    let (dir, gate) = (TempDir::new(), Arc::new(Gate::default()));
    let mut config = config(&[]);
    let limits = Arc::get_mut(&mut config.limits).expect("nobody else has them");
    limits.scrub_period = Duration::from_secs(3600);
    (limits.receive_bytes_max, limits.store_queue_bytes_max) = (5 << 20, 6 << 20);
    let hanging = Hanging { inner: dir.disk("disk0"), gate: gate.clone() };
    let disks: Vec<Arc<dyn Disk>> = vec![Arc::new(hanging), dir.disk("disk1")];
    let server = Chunkserver::start(config, disks).await.expect("starts");
    let address = server.local_addr().to_string();
    let mut found = [None, None];
    for chunk in 1..=64 {
        let id = copy_id(chunk);
        append(pool, &address, id, 0, &fill(chunk, BLOCK_BYTES), true).await.expect("appended");
        let on_first = dir.disk("disk0").list(&format!("chunks/{chunk:02x}"));
        let on_first = on_first.is_ok_and(|names| !names.is_empty());
        found[usize::from(!on_first)].get_or_insert(id);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    let [Some(first), Some(second)] = found else { panic!("all went to one disk: {found:?}") };
    (Node { dir, disks: 2, server, address }, gate, [first, second])
}

/// What waits for it is bounded by its queue, and holds up nobody who wants another disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_leaves_memory_to_the_others() {
    let pool = pool();
    let (node, gate, [hangs, works]) = two_disks(&pool).await;
    gate.set(true);
    let long = fill(7, 2 << 20);
    let append_to = |id: ReplicaId| {
        let (pool, address, long) = (pool.clone(), node.address.clone(), long.clone());
        async move { append(&pool, &address, id, BLOCK, &long, true).await.map(|a| a.length) }
    };
    let three = tokio::spawn(join_all((0..3).map(|_| append_to(hangs))));
    let quick = Duration::from_secs(4);
    while gate.waiting() == 0 || node.server.metrics().pending < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = tokio::time::timeout(quick, append_to(hangs)).await;
    assert_eq!(refused, Ok(Err(RefusalCode::Busy)), "its queue is full");
    let whole = BLOCK + long.len() as u64;
    assert_eq!(tokio::time::timeout(quick, append_to(works)).await, Ok(Ok(whole)));
    gate.set(false);
    assert_eq!(three.await.expect("ends"), vec![Ok(whole); 3], "one, and its duplicates");
    node.server.stop().await;
}

/// However many are asked for, or the threads for what blocks are all in this one disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_that_hang_are_few() {
    let pool = pool();
    let (node, gate, [hangs, works]) = two_disks(&pool).await;
    gate.set(true);
    let checks = (0..100).map(|_| {
        let (pool, address) = (pool.clone(), node.address.clone());
        async move { stat(&pool, &address, hangs, true).await }
    });
    let checks = tokio::spawn(join_all(checks));
    while gate.waiting() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(gate.waiting() <= 32, "{} at once", gate.waiting());
    assert!(!stat(&pool, &node.address, works, true).await.corrupt);
    gate.set(false);
    assert!(checks.await.expect("end").iter().all(|state| state.present && !state.corrupt));
    node.server.stop().await;
}
