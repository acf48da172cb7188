//! The client against the model, on a real cluster in this process: a master and chunkservers on a temporary
//! directory, talking over loopback. Servers are stopped and started in between; the application, played by
//! the generator, must not notice.

#![cfg(not(feature = "sim"))]

use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::client::{Client, ClientConfig};
use mooseng::erasure::Layout;
use mooseng::errno::Errno;
use mooseng::ids::Uuid;
use mooseng::limits::Limits;
use mooseng::master::{self, Master, MasterConfig};
use mooseng::seam::Disk;
use mooseng::seam::real::RealDisk;
use mooseng_proptests::{
    App, Draw, FsOut, ModelFs, OpGen, SplitMix, Weights, is_last_glimpse, kernel_answers,
};
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
    let mut app = App::new(cluster.client().await);
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
                app.remount(cluster.client().await);
                app.compare(&model).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            }
            3 => {
                app.sync().await.expect("fsync");
                let mut other = app.through(cluster.client().await);
                other.compare(&model).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
                other.client.shutdown().await.expect("nothing to write");
            }
            _ => {}
        }
    }
    app.client.shutdown().await.expect("everything written back");
    model.end_client(0);
    app.remount(cluster.client().await);
    app.compare(&model).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
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
