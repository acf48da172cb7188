//! The client against the model, on a real cluster in this process: a master and chunkservers on a temporary
//! directory, talking over loopback. Servers are stopped and started in between; the application, played by
//! the generator, must not notice.

#![cfg(not(feature = "sim"))]

use bytes::Bytes;
use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::client::{Client, ClientConfig, Handle, NewFile, NewNode, SetAttr, SetTime};
use mooseng::erasure::Layout;
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, Uuid};
use mooseng::limits::Limits;
use mooseng::master::{self, Master, MasterConfig};
use mooseng::pb::{self, FileKind};
use mooseng::seam::Disk;
use mooseng::seam::real::RealDisk;
use mooseng_proptests::{Draw, FsOp, FsOut, Ino, ModelFs, OpGen, SplitMix, Stat, Weights};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CLUSTER: Uuid = Uuid([9; 16]);

/// Small files and chunks, so that little data crosses every border; times as in production. Caches off:
/// the second client must see what the first one did.
fn limits() -> Arc<Limits> {
    let times = Limits::production();
    Arc::new(Limits {
        session_ttl: times.session_ttl,
        keepalive: times.keepalive,
        server_dead: times.server_dead,
        attr_ttl: Duration::ZERO,
        ..Limits::tiny()
    })
}

/// A cluster in this process; its directory goes when it is dropped.
struct Cluster {
    path: PathBuf,
    limits: Arc<Limits>,
    master: Option<Master>,
    master_address: String,
    /// Why masters could not go on.
    failures: Arc<Mutex<Vec<String>>>,
    servers: Vec<(Option<Chunkserver>, String)>,
}

impl Cluster {
    async fn start(name: &str, layout: Layout, servers: usize) -> Cluster {
        let path = std::env::temp_dir().join(format!("mooseng-{name}-{}", std::process::id()));
        remove(&path);
        let limits = limits();
        let disk = RealDisk::create(path.join("master")).expect("a directory");
        master::format(&(disk as Arc<dyn Disk>), CLUSTER, layout, &limits).expect("format");
        let mut cluster = Cluster {
            path,
            limits,
            master: None,
            master_address: "127.0.0.1:0".to_owned(),
            failures: Arc::default(),
            servers: Vec::new(),
        };
        cluster.start_master().await;
        for at in 0..servers {
            cluster.servers.push((None, "127.0.0.1:0".to_owned()));
            cluster.start_server(at).await;
        }
        cluster
    }

    async fn start_master(&mut self) {
        let disk = RealDisk::open(self.path.join("master")).expect("the directory");
        let failures = self.failures.clone();
        let config = MasterConfig {
            listen: self.master_address.clone(),
            advertise: None,
            cluster: Some(CLUSTER),
            join: Vec::new(),
            limits: self.limits.clone(),
            fatal: Arc::new(move |why: &str| {
                failures.lock().expect("failures").push(why.to_owned())
            }),
            observe: None,
        };
        let master = Master::start(config, disk).await.expect("a master");
        self.master_address = master.address();
        self.master = Some(master);
    }

    async fn start_server(&mut self, at: usize) {
        let disk = RealDisk::create(self.path.join(format!("chunks{at}"))).expect("a directory");
        let config = ChunkserverConfig {
            listen: self.servers[at].1.clone(),
            masters: vec![self.master_address.clone()],
            limits: self.limits.clone(),
            cluster: Some(CLUSTER),
            ..ChunkserverConfig::default()
        };
        let server = Chunkserver::start(config, vec![disk]).await.expect("a chunkserver");
        self.servers[at].1 = server.local_addr().to_string();
        self.servers[at].0 = Some(server);
    }

    async fn restart_master(&mut self) {
        self.master.take().expect("a master").stop().await;
        self.start_master().await;
    }

    async fn restart_server(&mut self, at: usize) {
        self.servers[at].0.take().expect("a chunkserver").stop().await;
        self.start_server(at).await;
    }

    async fn client(&self) -> Arc<Client> {
        let config = ClientConfig {
            masters: vec![self.master_address.clone()],
            cluster: Some(CLUSTER),
            host: "test".to_owned(),
            limits: self.limits.clone(),
        };
        Client::connect(config).await.expect("a client")
    }

    async fn stop(mut self) {
        for (server, _) in &mut self.servers {
            if let Some(server) = server.take() {
                server.stop().await;
            }
        }
        if let Some(master) = self.master.take() {
            master.stop().await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test removes its own directory")]
fn remove(path: &PathBuf) {
    let _ = std::fs::remove_dir_all(path);
}

/// What the application knows: which real inode and handle the model's numbers stand for.
struct App {
    client: Arc<Client>,
    inos: BTreeMap<Ino, u64>,
    handles: BTreeMap<u64, Handle>,
}

impl App {
    fn real(&self, ino: Ino) -> InodeId {
        InodeId(self.inos.get(&ino).copied().unwrap_or(1 << 50))
    }

    /// Times are the leader's and not compared here.
    fn stat(&self, attr: &pb::Attr) -> FsOut {
        let ino = self.inos.iter().find(|(_, real)| **real == attr.inode);
        FsOut::Stat(Stat::of(*ino.expect("a known inode").0, attr)).timeless()
    }

    fn handle(&self, handle: u64) -> Result<Handle, Errno> {
        self.handles.get(&handle).copied().ok_or(Errno::EBADF)
    }

    async fn run(&mut self, op: &FsOp) -> Result<FsOut, Errno> {
        let client = self.client.clone();
        let attr = match op {
            FsOp::Lookup { parent, name } => client.lookup(self.real(*parent), name).await?,
            FsOp::Getattr { ino } => client.getattr(self.real(*ino)).await?,
            FsOp::Create { .. } => self.create(op).await?,
            FsOp::Link { ino, parent, name } => {
                client.link(self.real(*ino), self.real(*parent), name).await?
            }
            FsOp::Chmod { ino, mode } => {
                let set = SetAttr { mode: Some(*mode & 0o7777), ..SetAttr::default() };
                client.setattr(self.real(*ino), set).await?
            }
            FsOp::Chown { ino, uid, gid } => {
                let set = SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() };
                client.setattr(self.real(*ino), set).await?
            }
            FsOp::Truncate { ino, size } => {
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                client.setattr(self.real(*ino), set).await?
            }
            FsOp::Utimens { ino, atime, mtime } => {
                let (atime, mtime) = (atime.map(SetTime::At), mtime.map(SetTime::At));
                let set = SetAttr { atime, mtime, ..SetAttr::default() };
                let attr = client.setattr(self.real(*ino), set).await?;
                assert!(atime.is_none_or(|time| time == SetTime::At(attr.atime_ns)));
                assert!(mtime.is_none_or(|time| time == SetTime::At(attr.mtime_ns)));
                attr
            }
            other => return self.run_other(other).await,
        };
        Ok(self.stat(&attr))
    }

    async fn create(&mut self, op: &FsOp) -> Result<pb::Attr, Errno> {
        let FsOp::Create { parent, name, ino, kind, mode, uid, gid, target } = op else {
            panic!("{op:?}");
        };
        let (parent, mode, uid, gid) = (self.real(*parent), *mode, *uid, *gid);
        let new = NewNode { kind: *kind, mode, uid, gid, rdev: 0 };
        let attr = match kind {
            FileKind::Regular => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let new = NewFile { mode, uid, gid, flags };
                let (attr, handle) = self.client.create(parent, name, new).await?;
                self.client.release(handle).await;
                attr
            }
            FileKind::Directory => self.client.mkdir(parent, name, new).await?,
            FileKind::Symlink => self.client.symlink(parent, name, target, uid, gid).await?,
            _ => self.client.mknod(parent, name, new).await?,
        };
        self.inos.insert(*ino, attr.inode);
        Ok(attr)
    }

    async fn run_other(&mut self, op: &FsOp) -> Result<FsOut, Errno> {
        let client = self.client.clone();
        match op {
            FsOp::Unlink { parent, name } => client.unlink(self.real(*parent), name).await?,
            FsOp::Rmdir { parent, name } => client.rmdir(self.real(*parent), name).await?,
            FsOp::Rename { parent, name, new_parent, new_name, flags } => {
                let (from, to) = (self.real(*parent), self.real(*new_parent));
                client.rename(from, name, to, new_name, *flags).await?;
            }
            FsOp::Open { ino, handle, .. } => {
                let open = client.open(self.real(*ino), libc::O_RDWR).await?;
                self.handles.insert(*handle, open);
            }
            FsOp::Close { handle } => {
                let open = self.handles.remove(handle).ok_or(Errno::EBADF)?;
                client.flush(open).await?;
                client.release(open).await;
            }
            FsOp::Read { handle, off, len } => {
                return self.read(*handle, *off, *len).await.map(FsOut::Data);
            }
            FsOp::Write { handle, off, data } => {
                let written =
                    client.write(self.handle(*handle)?, *off, Bytes::copy_from_slice(data));
                assert_eq!(written.await?, data.len());
            }
            FsOp::Fsync { handle } => client.fsync(self.handle(*handle)?, false).await?,
            FsOp::Setxattr { ino, name, value, flags } => {
                client.setxattr(self.real(*ino), name, value, *flags).await?;
            }
            FsOp::Removexattr { ino, name } => client.removexattr(self.real(*ino), name).await?,
            look => return self.look(look).await,
        }
        Ok(FsOut::Unit)
    }

    async fn look(&self, op: &FsOp) -> Result<FsOut, Errno> {
        let client = &self.client;
        Ok(match op {
            FsOp::Readdir { ino } => FsOut::Entries(self.readdir(self.real(*ino)).await?),
            FsOp::Readlink { ino } => FsOut::Data(client.readlink(self.real(*ino)).await?.to_vec()),
            FsOp::Getxattr { ino, name } => {
                FsOut::Data(client.getxattr(self.real(*ino), name).await?.to_vec())
            }
            FsOp::Listxattr { ino } => {
                let names = client.listxattr(self.real(*ino)).await?;
                FsOut::Names(names.iter().map(|name| name.to_vec()).collect())
            }
            other => panic!("{other:?}"),
        })
    }

    async fn read(&self, handle: u64, off: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let len = usize::try_from(len).expect("a small read");
        Ok(self.client.read(self.handle(handle)?, off, len).await?.concat())
    }

    async fn readdir(&self, dir: InodeId) -> Result<Vec<(Vec<u8>, Ino, FileKind)>, Errno> {
        let (mut cookie, mut entries) = (0, Vec::new());
        loop {
            let (page, end) = self.client.readdir(dir, cookie, 3).await?;
            for entry in page {
                cookie = entry.cookie;
                let FsOut::Stat(stat) = self.stat(&entry.attr.expect("attributes")) else {
                    panic!("no attributes");
                };
                entries.push((entry.name.to_vec(), stat.ino, entry.kind()));
            }
            if end {
                entries.sort();
                return Ok(entries);
            }
        }
    }

    /// Everything that has a name, seen through this client, is the model's.
    async fn compare(&mut self, model: &ModelFs) {
        for (ino, node) in model.nodes().iter().filter(|(_, node)| node.nlink > 0) {
            let found = self.run(&FsOp::Getattr { ino: *ino }).await;
            let expected = model.clone().apply(&FsOp::Getattr { ino: *ino });
            assert_eq!(found, expected.map(FsOut::timeless), "{ino}");
            match node.kind {
                FileKind::Regular => {
                    let handle = self.client.open(self.real(*ino), libc::O_RDONLY).await;
                    let handle = handle.unwrap_or_else(|e| panic!("open {ino}: {e}"));
                    let read = self.client.read(handle, 0, node.data.len() + 1).await;
                    let data = read.unwrap_or_else(|e| panic!("read {ino}: {e}")).concat();
                    assert!(data == node.data, "the bytes of {ino} differ");
                    self.client.release(handle).await;
                }
                FileKind::Directory => {
                    let expected = model.clone().apply(&FsOp::Readdir { ino: *ino });
                    assert_eq!(self.run(&FsOp::Readdir { ino: *ino }).await, expected, "{ino}");
                }
                _ => {}
            }
        }
    }
}

/// Calls that the kernel never passes on: it opens FIFOs and sockets itself, and does not cut them.
fn kernel_answers(model: &ModelFs, op: &FsOp) -> bool {
    let (FsOp::Open { ino, .. } | FsOp::Truncate { ino, .. }) = op else { return false };
    model.nodes().get(ino).is_some_and(|node| node.kind != FileKind::Regular)
}

/// Of an inode that it saw unlinked a mount may show the last attributes: fstat(2) of what is still open.
fn is_last_glimpse(op: &FsOp, found: &Result<FsOut, Errno>) -> bool {
    let looks = matches!(op, FsOp::Getattr { .. } | FsOp::Chown { uid: None, gid: None, .. });
    looks && matches!(found, Ok(FsOut::Stat(stat)) if stat.nlink == 0)
}

/// Seeds to run: `MOOSENG_SEEDS` of them, or as many as a test run has time for.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let more = std::env::var("MOOSENG_SEEDS").ok().and_then(|text| text.parse().ok());
    first..first + more.unwrap_or(count)
}

/// One mount does `steps` operations; now and then a server restarts, the mount is replaced by a fresh one,
/// or a second mount looks at everything.
async fn run(name: &str, seed: u64, layout: Layout, steps: u32) {
    let mut draw = SplitMix(seed);
    let mut cluster = Cluster::start(name, layout, layout.shards().max(3)).await;
    let mut app = App {
        client: cluster.client().await,
        inos: BTreeMap::from([(1, 1)]),
        handles: BTreeMap::new(),
    };
    let mut generator =
        OpGen { weights: Weights::swarm(&mut draw), clients: 1, ..OpGen::default() };
    let mut model = ModelFs::new(0);
    for step in 0..steps {
        let op = generator.next(&model, &mut draw);
        if kernel_answers(&model, &op) {
            continue;
        }
        let expected = model.apply(&op).map(FsOut::timeless);
        let found = app.run(&op).await;
        if expected == Err(Errno::ESTALE) && is_last_glimpse(&op, &found) {
            continue;
        }
        let failures = cluster.failures.lock().expect("failures").clone();
        assert!(failures.is_empty(), "seed {seed} step {step}: {failures:?}");
        assert_eq!(found, expected, "seed {seed} step {step}: {op:?}");
        match draw.below(120) {
            0 => cluster.restart_master().await,
            1 => {
                let at = draw.below(cluster.servers.len() as u64) as usize;
                cluster.restart_server(at).await;
            }
            2 => {
                app.client.shutdown().await.expect("everything written back");
                model.end_client(0);
                app.handles.clear();
                app.client = cluster.client().await;
                app.compare(&model).await;
            }
            3 => {
                for handle in app.handles.values() {
                    app.client.fsync(*handle, false).await.expect("fsync");
                }
                let client = cluster.client().await;
                let (inos, handles) = (app.inos.clone(), BTreeMap::new());
                let mut other = App { client, inos, handles };
                other.compare(&model).await;
                other.client.shutdown().await.expect("nothing to write");
            }
            _ => {}
        }
    }
    app.client.shutdown().await.expect("everything written back");
    model.end_client(0);
    app.handles.clear();
    app.client = cluster.client().await;
    app.compare(&model).await;
    app.client.shutdown().await.expect("nothing to write");
    cluster.stop().await;
}

fn layout(data: u32, parity: u32) -> Layout {
    Layout::new(data, parity).expect("a layout")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_agree_with_the_model() {
    for seed in seeds(0, 3) {
        run("two-copies", seed, layout(1, 1), 400).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasure_coded_files_agree_with_the_model() {
    for seed in seeds(1000, 2) {
        run("erasure", seed, layout(2, 1), 400).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_copies_agree_with_the_model() {
    for seed in seeds(2000, 1) {
        run("single-copy", seed, layout(1, 0), 400).await;
    }
}
