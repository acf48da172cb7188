//! The chunkserver: keeps bytes for clients, on the disks it was given, under the eyes of the masters.
//!
//! A shell around one [`Store`] per disk: it answers the calls of clients and masters ([`handler`]), reports to
//! the leading master ([`link`]), makes replicas from others' ([`rebuild`]) and reads its own to find rot
//! ([`scrub`]). It decides nothing about chunks: which replicas exist, how long they are and which go is the
//! masters' committed state.

mod handler;
mod link;
mod rebuild;
mod scrub;
mod term;
#[cfg(all(test, not(feature = "sim")))]
mod tests;

pub use link::REFUSED_PAUSE;

use crate::bug;
use crate::ids::{Incarnation, ServerId, Uuid};
use crate::limits::Limits;
use crate::pb;
use crate::seam::{self, Disk, rng, work::JoinHandle};
use crate::store::{Append, DiskError, ReplicaId, Store, StoreError, Writer, assemble};
use crate::wire::{Identity, Memory, Pool, Role, Server};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use term::Terms;
use tokio::sync::{Semaphore, watch};

/// How a chunkserver is to run.
#[derive(Clone, Debug)]
pub struct ChunkserverConfig {
    /// Where it listens, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// The address others reach it at; empty for the one it listens on.
    pub advertise: String,
    /// Addresses of masters; any of them will do to find the leader.
    pub masters: Vec<String>,
    /// What placement keeps apart (rack, room).
    pub labels: Vec<String>,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// The cluster it must belong to; `None` takes the masters' word the first time.
    pub cluster: Option<Uuid>,
    /// Registered disks that are lost for good; any other that is missing stops the start.
    pub forget_disks: Vec<Uuid>,
}

impl Default for ChunkserverConfig {
    fn default() -> ChunkserverConfig {
        ChunkserverConfig {
            listen: "127.0.0.1:9422".into(),
            advertise: String::new(),
            masters: vec!["127.0.0.1:9420".into()],
            labels: Vec::new(),
            limits: Arc::new(Limits::production()),
            cluster: None,
            forget_disks: Vec::new(),
        }
    }
}

/// Why a chunkserver did not start, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A disk cannot be used.
    #[error("{0}")]
    Disk(#[from] DiskError),
    /// The port cannot be listened on.
    #[error("cannot {0}; choose another address with --listen")]
    Listen(#[from] std::io::Error),
    /// No disk was given.
    #[error("a chunkserver needs at least one data directory: name it under data_dirs")]
    NoDisk,
}

/// A running chunkserver. Dropped without [`Chunkserver::stop`] it stops in its own time.
pub struct Chunkserver {
    shared: Arc<Shared>,
    server: Arc<Server>,
    stop: watch::Sender<bool>,
    refused: watch::Receiver<Option<String>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What all of its parts see.
struct Shared {
    limits: Arc<Limits>,
    incarnation: Incarnation,
    uuid: Uuid,
    writers: Vec<Arc<Writer>>,
    /// Where replicas go whose first append is under way: a second one must find the same disk.
    placing: Mutex<BTreeMap<ReplicaId, usize>>,
    pool: Arc<Pool>,
    terms: Terms,
    known: Mutex<Known>,
    rebuilds: Semaphore,
    counters: Counters,
}

/// Who it is, as far as it knows.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    cluster: Option<Uuid>,
    server: Option<ServerId>,
}

#[derive(Default)]
struct Counters {
    appends: AtomicU64,
    appended_bytes: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    /// Reads that were answered without leaving the connection's task.
    resident_reads: AtomicU64,
    rebuilds: AtomicU64,
}

/// What it has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Appends acknowledged.
    pub appends: u64,
    /// Bytes in them.
    pub appended_bytes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Bytes in them.
    pub read_bytes: u64,
    /// Reads answered from memory at once.
    pub resident_reads: u64,
    /// Replicas rebuilt here.
    pub rebuilds: u64,
    /// fdatasyncs of replicas.
    pub syncs: u64,
    /// Requests waiting for a disk.
    pub pending: u64,
}

fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

impl Chunkserver {
    /// Claims the disks, recovers what is on them, listens, and goes looking for the leading master. It serves
    /// from then on, registered or not: its bytes are there.
    pub async fn start(
        config: ChunkserverConfig,
        disks: Vec<Arc<dyn Disk>>,
    ) -> Result<Chunkserver, StartError> {
        if disks.is_empty() {
            return Err(StartError::NoDisk);
        }
        let (cluster, forget) = (config.cluster, config.forget_disks.clone());
        let limits = config.limits.clone();
        let opened = seam::blocking(move || open(disks, cluster, &forget, &limits)).await?;
        let known = Known { cluster: config.cluster.or(opened.cluster), server: opened.server };
        let incarnation = Incarnation(rng::random_u64() | 1);
        let identity = known.identity(incarnation);
        let shared = Arc::new(Shared {
            limits: config.limits.clone(),
            incarnation,
            uuid: opened.uuid,
            terms: Terms::load(opened.writers[0].store()),
            writers: opened.writers,
            placing: Mutex::default(),
            pool: Pool::new(identity, config.limits.clone()),
            known: Mutex::new(known),
            rebuilds: Semaphore::new(config.limits.rebuilds_at_once),
            counters: Counters::default(),
        });
        let handler = Arc::new(handler::Answers(shared.clone()));
        let limits = config.limits.clone();
        let server = Server::start(&config.listen, identity, limits, handler).await?;
        let (stop, stopped) = watch::channel(false);
        let server = Arc::new(server);
        let (refuse, refused) = watch::channel(None);
        let link = link::Link::new(shared.clone(), &config, server.clone(), refuse);
        let mut tasks = vec![seam::spawn(until(stopped.clone(), link.run()))];
        for writer in &shared.writers {
            let scrub = scrub::run(shared.clone(), writer.store().clone());
            tasks.push(seam::spawn(until(stopped.clone(), scrub)));
        }
        Ok(Chunkserver { shared, server, stop, refused, tasks })
    }

    /// Waits until the masters have refused it for a reason that waiting does not cure; one line that names the
    /// remedy. It goes on serving what it has, and asking.
    pub async fn refused(&self) -> String {
        let mut refused = self.refused.clone();
        let why = match refused.wait_for(Option::is_some).await {
            Ok(why) => why.clone(),
            // Stopped: then nobody refuses any more.
            Err(_) => std::future::pending().await,
        };
        why.unwrap_or_default()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Its number, once a master has given it one.
    pub fn server_id(&self) -> Option<ServerId> {
        self.shared.known().server
    }

    /// The random number of this start, which syncs must name.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    /// What it has done.
    pub fn metrics(&self) -> Metrics {
        let counters = &self.shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            appends: value(&counters.appends),
            appended_bytes: value(&counters.appended_bytes),
            reads: value(&counters.reads),
            read_bytes: value(&counters.read_bytes),
            resident_reads: value(&counters.resident_reads),
            rebuilds: value(&counters.rebuilds),
            syncs: self.shared.writers.iter().map(|writer| writer.store().syncs()).sum(),
            pending: self.shared.pending(),
        }
    }

    /// Answers what is under way, makes everything durable, and lets the disks go.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
        // The tasks are gone, so this is the last hold of it.
        if let Some(server) = Arc::into_inner(self.server) {
            server.stop().await;
        }
        self.shared.pool.close();
        self.shared.terms.settle().await;
        for writer in &self.shared.writers {
            writer.close().await;
        }
        let stores: Vec<Weak<Store>> =
            self.shared.writers.iter().map(|writer| Arc::downgrade(writer.store())).collect();
        let patience = self.shared.limits.drain_max * 2 + Duration::from_secs(1);
        drop(self.shared);
        let released = async {
            while stores.iter().any(|store| store.strong_count() > 0) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // Work that nobody waits for any more, such as recording a term, may still have hold of a disk.
        if tokio::time::timeout(patience, released).await.is_err() {
            tracing::warn!("disks are still in use by work under way");
        }
    }
}

/// Runs `work` until it ends or the chunkserver is stopped (or dropped).
async fn until(mut stopped: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        _ = stopped.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}

struct Opened {
    uuid: Uuid,
    cluster: Option<Uuid>,
    server: Option<ServerId>,
    writers: Vec<Arc<Writer>>,
}

fn open(
    disks: Vec<Arc<dyn Disk>>,
    cluster: Option<Uuid>,
    forget: &[Uuid],
    limits: &Arc<Limits>,
) -> Result<Opened, DiskError> {
    let assembled = assemble(disks, cluster, forget)?;
    let open = |claimed| Store::open(claimed, limits.clone()).map(|s| Writer::new(Arc::new(s)));
    let writers = assembled.disks.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let (uuid, cluster, server) = (assembled.uuid, assembled.cluster, assembled.server);
    Ok(Opened { uuid, cluster, server, writers })
}

impl Known {
    fn identity(self, incarnation: Incarnation) -> Identity {
        Identity {
            cluster: self.cluster,
            role: Role::Chunkserver,
            node: self.server.map_or(0, |server| server.0),
            incarnation: incarnation.0,
        }
    }
}

impl Shared {
    fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_known(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// The disk that has this replica.
    fn writer_of(&self, id: ReplicaId) -> Option<&Arc<Writer>> {
        self.writers.iter().find(|writer| writer.store().status(id).is_some())
    }

    fn found(&self, id: ReplicaId) -> Result<&Arc<Writer>, StoreError> {
        self.writer_of(id).ok_or(StoreError::NoSuchReplica(id))
    }

    fn lock_placing(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, usize>> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends to the disk that has the replica, or begins it on one with room. `memory` was kept for its bytes so far.
    async fn append(
        &self,
        append: Append,
        (sync, create): (bool, bool),
        memory: &Memory,
    ) -> Result<u64, StoreError> {
        let id = append.id();
        if let Some(writer) = self.writer_of(id) {
            return append_to(writer, append, sync, memory).await;
        }
        let (disk, first) = {
            let mut placing = self.lock_placing();
            match placing.get(&id) {
                Some(disk) => (*disk, false),
                None if !create => return Err(StoreError::NoSuchReplica(id)),
                None => {
                    let disk = self.disk_with_room(id.len_max())?;
                    placing.insert(id, disk);
                    (disk, true)
                }
            }
        };
        // Taken back also if this future is dropped while it waits.
        let _placed = first.then(|| Placed { shared: self, id });
        append_to(&self.writers[disk], append, sync, memory).await
    }

    /// A disk for a new replica: the more room it has, the likelier. `wanted` bytes should fit, but a disk
    /// with less serves if no other is left.
    fn disk_with_room(&self, wanted: u64) -> Result<usize, StoreError> {
        let free: Vec<u64> = self.writers.iter().map(|writer| writer.store().load().free).collect();
        let roomy: Vec<u64> = free.iter().map(|f| if *f >= wanted { *f } else { 0 }).collect();
        let weights = if roomy.iter().any(|free| *free > 0) { roomy } else { free };
        // In units of 1 MiB or so, so that the sum cannot overflow.
        let weights: Vec<u64> = weights.iter().map(|free| free.div_ceil(1 << 20)).collect();
        let sum: u64 = weights.iter().sum();
        if sum == 0 {
            let alive = self.writers.iter().find(|writer| !writer.store().failed());
            let name = self.writers[0].store().describe();
            return Err(match alive {
                Some(writer) => StoreError::NoSpace(writer.store().describe()),
                None => StoreError::DiskFailed(name),
            });
        }
        let mut at = if self.writers.len() > 1 { rng::random_range(0, sum) } else { 0 };
        for (disk, weight) in weights.iter().enumerate() {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return Ok(disk),
            }
        }
        Ok(weights.len() - 1)
    }

    fn disks(&self) -> Vec<pb::DiskStatus> {
        let loads = self.writers.iter().map(|writer| writer.store().load());
        loads
            .map(|load| pb::DiskStatus {
                disk: load.disk.0.to_vec().into(),
                total_bytes: load.total,
                free_bytes: load.free,
                failed: load.failed,
                replicas: load.replicas,
            })
            .collect()
    }

    fn pending(&self) -> u64 {
        self.writers.iter().map(|writer| writer.pending() as u64).sum()
    }
}

/// Hands the bytes over to the disk, which may keep as many as its queue has room for. What the server keeps for long
/// requests is free again for the other disks, however long this one takes.
async fn append_to(
    writer: &Arc<Writer>,
    append: Append,
    sync: bool,
    memory: &Memory,
) -> Result<u64, StoreError> {
    let admitted = writer.admit(append)?;
    // HOARD: it is kept until the answer.
    if !bug!(HOARD) {
        memory.pass_on();
    }
    writer.append(admitted, sync).await
}

/// The first append of a replica, while it is under way.
struct Placed<'a> {
    shared: &'a Shared,
    id: ReplicaId,
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.shared.lock_placing().remove(&self.id);
    }
}
