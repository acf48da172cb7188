//! A cluster in this process: every node on a runtime of its own, so that one can be killed like a process.

use super::super::{Client, ClientConfig};
use crate::chunkserver::{Chunkserver, ChunkserverConfig};
use crate::erasure::Layout;
use crate::limits::Limits;
use crate::master::{self, Master, MasterConfig};
use crate::seam::disk::{DiskFile, DiskLock};
use crate::seam::real::RealDisk;
use crate::seam::rng::random_uuid;
use crate::seam::{Disk, OpenMode, Space};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A directory that goes with the test.
pub struct TempDir(pub PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        let unique = crate::seam::rng::random_u64();
        let path = std::env::temp_dir().join(format!("mooseng-client-{name}-{unique:x}"));
        TempDir(path)
    }
}

impl Drop for TempDir {
    #[allow(clippy::disallowed_methods)]
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk that claims to have only so much room left.
pub struct SmallDisk {
    inner: Arc<RealDisk>,
    pub free: AtomicU64,
}

impl Disk for SmallDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.open(path, mode)
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
        let space = self.inner.space()?;
        Ok(Space { free: self.free.load(Ordering::Relaxed).min(space.free), ..space })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        self.inner.lock(path)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

struct Node<T> {
    runtime: Runtime,
    node: T,
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Masters, chunkservers, and the runtime that the clients of the test run on.
pub struct Cluster {
    pub dir: TempDir,
    pub limits: Arc<Limits>,
    pub runtime: Option<Runtime>,
    pub disks: Vec<Arc<SmallDisk>>,
    addresses: Vec<String>,
    masters: Vec<Option<Node<Master>>>,
    servers: Vec<Option<Node<Chunkserver>>>,
}

impl Cluster {
    pub fn start(name: &str, masters: usize, servers: usize, layout: (u32, u32)) -> Cluster {
        Cluster::with(name, masters, servers, layout, Limits::tiny())
    }

    pub fn with(
        name: &str,
        masters: usize,
        servers: usize,
        layout: (u32, u32),
        limits: Limits,
    ) -> Cluster {
        super::log::start();
        let mut cluster = Cluster {
            dir: TempDir::new(name),
            limits: Arc::new(limits),
            runtime: Some(runtime()),
            disks: Vec::new(),
            addresses: Vec::new(),
            masters: Vec::new(),
            servers: Vec::new(),
        };
        let disk: Arc<dyn Disk> = cluster.disk("m0");
        let layout = Layout::new(layout.0, layout.1).unwrap();
        master::format(&disk, random_uuid(), layout, &cluster.limits).unwrap();
        for i in 0..masters {
            cluster.start_master(i);
            cluster.wait_for_masters(i + 1);
        }
        for i in 0..servers {
            let disk = cluster.disk(&format!("c{i}"));
            cluster.disks.push(Arc::new(SmallDisk { inner: disk, free: u64::MAX.into() }));
            cluster.servers.push(None);
            cluster.start_server(i);
        }
        cluster.wait_for_servers(servers);
        cluster
    }

    fn disk(&self, name: &str) -> Arc<RealDisk> {
        RealDisk::create(self.dir.0.join(name)).unwrap()
    }

    fn start_master(&mut self, i: usize) {
        let disk: Arc<dyn Disk> = self.disk(&format!("m{i}"));
        let config = MasterConfig {
            listen: self.addresses.get(i).cloned().unwrap_or_else(|| "127.0.0.1:0".into()),
            advertise: None,
            cluster: None,
            join: if i == 0 { Vec::new() } else { self.addresses.clone() },
            limits: self.limits.clone(),
            fatal: Arc::new(|why| eprintln!("master failed: {why}")),
            observe: None,
        };
        let runtime = runtime();
        let node = runtime.block_on(Master::start(config, disk)).unwrap();
        let address = node.address();
        if i >= self.addresses.len() {
            self.addresses.push(address);
            self.masters.push(None);
        }
        self.masters[i] = Some(Node { runtime, node });
    }

    pub fn start_server(&mut self, i: usize) {
        let config = ChunkserverConfig {
            listen: "127.0.0.1:0".into(),
            masters: self.addresses.clone(),
            limits: self.limits.clone(),
            ..ChunkserverConfig::default()
        };
        let runtime = runtime();
        let disks: Vec<Arc<dyn Disk>> = vec![self.disks[i].clone()];
        let node = runtime.block_on(Chunkserver::start(config, disks)).unwrap();
        self.servers[i] = Some(Node { runtime, node });
    }

    /// Until the cluster is founded and all masters vote.
    fn wait_for_masters(&self, count: usize) {
        self.block_on(async {
            for _ in 0..600 {
                let raft = self.masters[0].as_ref().unwrap().node.raft();
                let founded = crate::namespace::cluster(&raft.view()).is_ok_and(|c| c.is_some());
                let voters = raft.members().iter().filter(|member| member.voter).count();
                if founded && voters == count {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("the masters did not come together");
        });
    }

    /// Until the masters have numbered all of them.
    fn wait_for_servers(&self, count: usize) {
        self.block_on(async {
            for _ in 0..600 {
                let known = self.servers.iter().flatten();
                if known.filter(|s| s.node.server_id().is_some()).count() >= count {
                    // Their first heartbeat brings how much room they have.
                    tokio::time::sleep(self.limits.server_heartbeat * 2).await;
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("the chunkservers did not register");
        });
    }

    pub fn kill_server(&mut self, i: usize) {
        if let Some(Node { runtime, node }) = self.servers[i].take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
            drop(node);
        }
    }

    pub fn kill_leader(&mut self) {
        let leader = self
            .masters
            .iter()
            .position(|m| m.as_ref().is_some_and(|m| m.node.raft().is_leader_ready()))
            .expect("somebody leads");
        let Some(Node { runtime, node }) = self.masters[leader].take() else { return };
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(node);
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    pub fn mount(&self) -> Arc<Client> {
        let config = ClientConfig {
            masters: self.addresses.clone(),
            cluster: None,
            host: "test".into(),
            limits: self.limits.clone(),
        };
        self.block_on(Client::connect(config)).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let servers = self.servers.drain(..).flatten().map(|node| node.runtime);
        let masters = self.masters.drain(..).flatten().map(|node| node.runtime);
        for runtime in servers.chain(masters).chain(self.runtime.take()) {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
