//! The master: a thin shell that lets clients, chunkservers and administrators reach the replicated
//! namespace, and that, while it leads, watches over servers, sessions, repair and garbage.

pub mod admin;
mod garbage;
mod identity;
mod leader;
mod missing;
mod punch;
mod rejoin;
mod repair;
mod rpc;
mod servers;
mod sessions;
mod soft;
mod space;

pub use identity::{IdentityError, format};

use crate::ids::{NodeId, Uuid};
use crate::limits::Limits;
use crate::namespace::Namespace;
use crate::pb;
use crate::raft::{FatalHook, Observe, RaftConfig, RaftNode};
use crate::seam::{self, Disk};
use crate::tables::TableError;
use crate::wire::{Pool, Refusal, RefusalCode, Server};
use identity::Card;
use soft::Soft;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use tokio::task::JoinHandle;

/// How a master is started.
#[derive(Clone)]
pub struct MasterConfig {
    /// Address to bind, `host:port`; port 0 picks a free one.
    pub listen: String,
    /// Address that others reach it by; the bound one if absent.
    pub advertise: Option<String>,
    /// Refuse a data directory of any other cluster.
    pub cluster: Option<Uuid>,
    /// Masters to ask for admission when the data directory is empty.
    pub join: Vec<String>,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Called once when this master can not go on (its log or tables failed); the process must end.
    pub fatal: FatalHook,
    /// Told of everything applied (simulations).
    pub observe: Option<Observe>,
}

/// Why a master did not start; one line that names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory is not one this master may use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address can not be bound.
    #[error("cannot listen on {address}: {error}; choose another with --listen")]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        error: std::io::Error,
    },
    /// Log or tables refuse.
    #[error(transparent)]
    Raft(#[from] crate::raft::StartError),
}

/// A running master.
pub struct Master {
    shared: Arc<Shared>,
    server: Server,
    leading: JoinHandle<()>,
    _lock: Box<dyn seam::DiskLock>,
}

/// What the master's tasks share.
pub(crate) struct Shared {
    pub(crate) raft: Arc<RaftNode<Namespace>>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) cluster: Uuid,
    card: Arc<Card>,
    fatal: FatalHook,
    soft: Mutex<Soft>,
}

impl Shared {
    /// Takes part in the group as `member`.
    async fn start(
        config: &MasterConfig,
        disk: &Arc<dyn Disk>,
        member: &pb::MasterSuperblock,
        server: &Server,
        pool: &Arc<Pool>,
    ) -> Result<Arc<Shared>, StartError> {
        let cluster = Uuid::from_bytes(&member.cluster).ok_or(IdentityError::Corrupt {
            dir: disk.describe(),
            what: "the cluster id has not 16 bytes".to_owned(),
        })?;
        let incarnation = identity::incarnation(disk, member)?;
        server.set_identity(identity::on_the_wire(member));
        pool.set_identity(identity::on_the_wire(member));
        let card = Card::new(disk.clone(), member.clone());
        let running = Arc::new(OnceLock::new());
        let fatal = noting_damage(config.fatal.clone(), card.clone(), running.clone());
        let raft_config = RaftConfig {
            fatal: fatal.clone(),
            ..raft_config(config, member, cluster, incarnation, disk)
        };
        let raft = RaftNode::start(raft_config, pool.clone()).await?;
        _ = running.set(Arc::downgrade(&raft));
        let (pool, limits) = (pool.clone(), config.limits.clone());
        let soft = Mutex::new(Soft::default());
        Ok(Arc::new(Shared { raft, pool, limits, cluster, card, fatal, soft }))
    }

    pub(crate) fn soft(&self) -> MutexGuard<'_, Soft> {
        self.soft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables could not be read: this master ends, its error never becomes an answer (rule C2).
    pub(crate) fn broken(&self, error: &TableError) -> Refusal {
        (self.fatal)(&format!("tables: {error}"));
        Refusal::new(RefusalCode::ShuttingDown, "this master is failing")
    }
}

impl Master {
    /// Starts on a data directory: one that was formatted, or an empty one with masters to join.
    /// Tasks run on the runtime that is current.
    pub async fn start(config: MasterConfig, disk: Arc<dyn Disk>) -> Result<Master, StartError> {
        let lock = identity::lock(&disk)?;
        let mut member = identity::load(&disk, &config)?;
        if member.set_aside {
            rejoin::clear(&disk, &mut member, &config.limits)?;
        }
        // The port is bound before anything else, so that the address others are told is known. Calls that
        // come before the group is up are refused as busy.
        let router = Arc::new(rpc::Router::default());
        let known = identity::on_the_wire(&member);
        let server = Server::start(&config.listen, known, config.limits.clone(), router.clone())
            .await
            .map_err(|error| StartError::Listen { address: config.listen.clone(), error })?;
        let address = config.advertise.clone().unwrap_or_else(|| server.local_addr().to_string());
        let pool = Pool::new(known, config.limits.clone());
        if member.node == 0 {
            identity::join(&disk, &mut member, &config, &pool, &address).await?;
        }
        if member.address != address {
            member.address = address.clone();
            identity::store(&disk, &member)?;
        }
        // Found while it ran, so that it may start all the same if nobody takes it in. Then the next start asks again:
        // the group may have taken it in and its answer been lost.
        if !member.damage.is_empty() {
            let why = member.damage.clone();
            rejoin::enter_anew(&disk, &mut member, &config, &why, false).await?;
        }
        let shared = match Shared::start(&config, &disk, &member, &server, &pool).await {
            Err(StartError::Raft(error)) if error.is_damage() => {
                let why = error.to_string();
                if !rejoin::enter_anew(&disk, &mut member, &config, &why, true).await? {
                    return Err(error.into());
                }
                Shared::start(&config, &disk, &member, &server, &pool).await?
            }
            started => started?,
        };
        router.open(shared.clone());
        let leading = seam::spawn(leader::lead(shared.clone()));
        Ok(Master { shared, server, leading, _lock: lock })
    }

    /// The address that clients and chunkservers use.
    pub fn address(&self) -> String {
        self.server.local_addr().to_string()
    }

    /// This master's id in the group.
    pub fn node(&self) -> NodeId {
        self.shared.raft.node()
    }

    /// The cluster's id.
    pub fn cluster(&self) -> Uuid {
        self.shared.cluster
    }

    /// The replicated group, for administration and simulations.
    pub fn raft(&self) -> &Arc<RaftNode<Namespace>> {
        &self.shared.raft
    }

    /// The administration of the cluster through this master.
    pub fn admin(&self) -> admin::Admin {
        admin::Admin::new(self.shared.clone())
    }

    /// Stops answering and closes the log. What was acknowledged is durable already.
    pub async fn stop(self) {
        self.leading.abort();
        self.server.stop().await;
        self.shared.raft.shutdown().await;
    }
}

/// What is called when this master can not go on: damage that was found is written down first.
fn noting_damage(
    fatal: FatalHook,
    card: Arc<Card>,
    running: Arc<OnceLock<Weak<RaftNode<Namespace>>>>,
) -> FatalHook {
    Arc::new(move |why| {
        let raft = running.get().and_then(Weak::upgrade);
        if let Some(what) = raft.and_then(|raft| raft.corruption()) {
            card.note_damage(&what);
        }
        fatal(why);
    })
}

fn raft_config(
    config: &MasterConfig,
    member: &pb::MasterSuperblock,
    cluster: Uuid,
    incarnation: Uuid,
    disk: &Arc<dyn Disk>,
) -> RaftConfig {
    RaftConfig {
        node: NodeId(member.node),
        cluster,
        incarnation,
        address: member.address.clone(),
        limits: config.limits.clone(),
        disk: disk.clone(),
        bootstrap: member.founder,
        fatal: config.fatal.clone(),
        observe: config.observe.clone(),
    }
}
