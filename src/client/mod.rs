//! The whole filesystem of a mount except FUSE: sessions, caches, write-back, striping, retries.
//!
//! Methods named `*_cached` and `*_buffered` never wait, so that a kernel thread may answer by them directly;
//! the others are asynchronous, each with a deadline. No lock is held across an await.

mod blocks;
mod chunk;
mod classes;
mod dirs;
mod extents;
mod fetch;
mod flush;
mod handles;
mod inline;
mod inode;
mod masters;
mod meta;
mod names;
mod pieces;
mod plan;
mod query;
mod read;
mod readahead;
mod removals;
mod session;
#[cfg(all(test, not(feature = "sim")))]
mod tests;
mod types;
mod write;
mod writers;

pub use types::*;

use crate::errno::Errno;
use crate::ids::{InodeId, Uuid};
use crate::limits::Limits;
use crate::seam;
use crate::wire::{Identity, Pool, Role};
use classes::Classes;
use fetch::Fetcher;
use handles::Handles;
use masters::{MasterError, Masters};
use meta::Meta;
use query::Queries;
use removals::Removals;
use session::Session;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use writers::Writers;

/// Longest wait for the first session.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// A mounted cluster.
pub struct Client {
    me: Weak<Client>,
    limits: Arc<Limits>,
    runtime: tokio::runtime::Handle,
    pool: Arc<Pool>,
    masters: Arc<Masters>,
    meta: Arc<Meta>,
    session: Arc<Session>,
    queries: Arc<Queries>,
    writers: Arc<Writers>,
    fetcher: Arc<Fetcher>,
    handles: Handles,
    removals: Removals,
    classes: Classes,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    cluster: Uuid,
}

impl Client {
    /// Finds the leader and opens a session. Background tasks run on the calling tokio runtime.
    pub async fn connect(config: ClientConfig) -> Result<Arc<Client>, ConnectError> {
        if config.masters.is_empty() {
            return Err(ConnectError::NoMasters);
        }
        let limits = config.limits.clone();
        let identity = Identity {
            cluster: config.cluster,
            role: Role::Client,
            node: 0,
            incarnation: seam::rng::random_u64(),
        };
        let pool = Pool::new(identity, limits.clone());
        let known = config.masters.clone();
        let masters = Arc::new(Masters::new(pool.clone(), limits.clone(), known));
        let meta = Arc::new(Meta::new(limits.clone()));
        let until = seam::now() + CONNECT_DEADLINE;
        let unreachable = |error: MasterError| match error {
            MasterError::Refused(why) => ConnectError::Refused(why),
            other => ConnectError::Unreachable {
                masters: config.masters.join(", "),
                reason: other.to_string(),
            },
        };
        let session = Session::open(masters.clone(), meta.clone(), config.host.clone(), until);
        let session = session.await.map_err(unreachable)?;
        let queries = Queries::new(masters.clone());
        let peer = pool.identify(&masters.target(), limits.connect_deadline).await;
        let known = peer.ok().and_then(|peer| peer.identity.cluster).or(config.cluster);
        let client = Arc::new_cyclic(|me| Client {
            me: me.clone(),
            runtime: tokio::runtime::Handle::current(),
            writers: Writers::new(masters.clone(), session.clone()),
            fetcher: Fetcher::new(masters.clone(), queries.clone()),
            limits,
            pool,
            masters,
            meta,
            session,
            queries,
            handles: Handles::default(),
            removals: Removals::default(),
            classes: Classes::default(),
            tasks: Mutex::default(),
            cluster: known.unwrap_or(Uuid([0; 16])),
        });
        client.start();
        let ready = client.classes.refresh(&client.queries).await;
        ready.map_err(|errno| ConnectError::Refused(format!("no storage classes: {errno}")))?;
        client.masters.refresh().await;
        Ok(client)
    }

    fn start(self: &Arc<Client>) {
        let keepalive = seam::spawn(keepalive(self.me.clone(), self.limits.keepalive));
        let housekeeping = seam::spawn(housekeeping(self.me.clone(), self.tick_interval()));
        *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) = vec![keepalive, housekeeping];
    }

    /// Writes everything back, closes the session and stops. The first failure of a write-back is returned.
    pub async fn shutdown(&self) -> Result<(), Errno> {
        let written = self.commit_everything().await;
        let answered = self.session.barrier().await;
        self.session.close();
        let until = seam::now() + self.limits.operation_deadline.min(Duration::from_secs(10));
        if let Err(error) = self.session.end(until).await {
            tracing::debug!(%error, "the session was left to expire");
        }
        self.stop();
        written.and(answered)
    }

    fn stop(&self) {
        self.session.close();
        self.masters.close();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.pool.close();
    }

    /// fsync(2) of a directory: every operation made before is committed.
    pub async fn fsync_dir(&self, _ino: InodeId) -> Result<(), Errno> {
        self.session.barrier().await
    }

    /// The cluster that this client is connected to.
    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// Forgets everything clean: attributes, entries, extents, data. For measurements with cold caches.
    pub fn drop_caches(&self) {
        self.meta.drop_clean();
        self.fetcher.drop_cache();
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        let (operations, batches, sessions) = self.session.counts();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            operations,
            batches,
            sessions,
            sessions_lost: self.session.lost(),
            queries: self.queries.sent(),
            appends: count(&self.writers.counts.appends),
            syncs: count(&self.writers.counts.syncs),
            chunks_lost: count(&self.writers.counts.chunks_lost),
            written_bytes: count(&self.writers.counts.bytes),
            reads: count(&self.fetcher.counts.reads),
            read_bytes: count(&self.fetcher.counts.bytes),
            corrupt_reads: count(&self.fetcher.counts.corrupt),
            degraded_bytes: count(&self.fetcher.counts.degraded),
            retries: self.masters.retries(),
            dirty_bytes: self.meta.dirty.bytes() as u64,
            failed_writebacks: count(&self.meta.dirty.failed),
            lost_bytes: count(&self.meta.dirty.lost),
            inodes_cached: self.meta.table.len() as u64,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Keeps the session alive.
async fn keepalive(client: Weak<Client>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if crate::fault!("client: keepalive late") {
            tokio::time::sleep(interval / 2).await;
        }
        let Some(client) = client.upgrade() else { return };
        client.session.keepalive().await;
    }
}

/// Writes back what is old, sends what nobody waits for, pins what stays open.
async fn housekeeping(client: Weak<Client>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(client) = client.upgrade() else { return };
        client.advance_all();
        client.pin_open_files();
        client.session.kick();
    }
}
