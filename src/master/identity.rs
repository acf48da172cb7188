//! Who this data directory is: the superblock, its lock, and admission to a group.

use super::MasterConfig;
use crate::codec;
use crate::erasure::Layout;
use crate::ids::Uuid;
use crate::limits::Limits;
use crate::pb;
use crate::raft;
use crate::seam::{self, Disk, DiskLock};
use crate::wire::{Identity, Pool, Role};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const SUPERBLOCK: &str = "superblock";
const LOCK: &str = "LOCK";
/// What may be in a directory that is still taken for empty: an unfinished first start leaves the second, a
/// file system of its own the third.
const NOTHING: [&str; 3] = [LOCK, "superblock.new", "lost+found"];
/// What a master that enters its group anew leaves where it is.
pub(super) const KEPT: [&str; 4] = [LOCK, SUPERBLOCK, "superblock.new", "lost+found"];
/// Node id of a cluster's first master; the log numbers the others.
const FOUNDER: u64 = 1;
/// How long a new master asks to be admitted before it gives up.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);

/// Why a data directory is refused; one line that names it and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nothing there, and no masters to join.
    #[error(
        "{dir} is not a master's data directory: run `mooseng init` on it for a new cluster, or start with --join to enter one"
    )]
    Missing {
        /// The directory.
        dir: String,
    },
    /// Something is there already.
    #[error("{dir} is not empty ({found}): choose an empty directory")]
    NotEmpty {
        /// The directory.
        dir: String,
        /// One name in it.
        found: String,
    },
    /// The superblock can not be read.
    #[error(
        "{dir}/superblock is damaged ({what}): start this master anew in an empty directory with --join; a single master is restored from its backup"
    )]
    Corrupt {
        /// The directory.
        dir: String,
        /// What is wrong.
        what: String,
    },
    /// It belongs to another cluster.
    #[error(
        "{dir} belongs to cluster {found}, this is configured for {wanted}: check [node] data_dir and [cluster] id"
    )]
    WrongCluster {
        /// The directory.
        dir: String,
        /// Whose it is.
        found: Uuid,
        /// Whose it should be.
        wanted: Uuid,
    },
    /// A live process uses it.
    #[error("{dir} is in use by another running process: stop that one first")]
    InUse {
        /// The directory.
        dir: String,
    },
    /// No master admitted this one in time.
    #[error(
        "no master of {asked:?} admitted this one: {last}; check the addresses and that they have a leader"
    )]
    NotAdmitted {
        /// The masters asked.
        asked: Vec<String>,
        /// The last answer.
        last: String,
    },
    /// The log can not be made.
    #[error("{dir}: {what}")]
    Log {
        /// The directory.
        dir: String,
        /// What is wrong.
        what: String,
    },
    /// The disk failed.
    #[error("{dir}: {error}; check the disk, its free space and its permissions")]
    Disk {
        /// The directory.
        dir: String,
        /// The system's reason.
        error: std::io::Error,
    },
}

/// Makes `disk` the data directory of the first master of a new cluster.
///
/// `layout` is the cluster's default storage class.
pub fn format(
    disk: &Arc<dyn Disk>,
    cluster: Uuid,
    layout: Layout,
    limits: &Limits,
) -> Result<(), IdentityError> {
    let failed = |error| IdentityError::Disk { dir: disk.describe(), error };
    let _lock = lock(disk)?;
    if let Some(found) = something(disk).map_err(failed)? {
        return Err(IdentityError::NotEmpty { dir: disk.describe(), found });
    }
    let member = pb::MasterSuperblock {
        cluster: cluster.bytes(),
        node: FOUNDER,
        incarnation: seam::rng::random_uuid().bytes(),
        founder: true,
        default_layout: Some(layout.into()),
        ..Default::default()
    };
    prepare(disk, limits)?;
    store(disk, &member)
}

/// A name that an empty directory does not have.
fn something(disk: &Arc<dyn Disk>) -> std::io::Result<Option<String>> {
    Ok(disk.list("")?.into_iter().find(|name| !NOTHING.contains(&name.as_str())))
}

/// The superblock of a running master, which it changes now and then.
pub(super) struct Card {
    disk: Arc<dyn Disk>,
    member: Mutex<pb::MasterSuperblock>,
}

impl Card {
    pub(super) fn new(disk: Arc<dyn Disk>, member: pb::MasterSuperblock) -> Arc<Card> {
        Arc::new(Card { disk, member: Mutex::new(member) })
    }

    /// As it is now.
    pub(super) fn member(&self) -> pb::MasterSuperblock {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it, durably before anybody sees it.
    fn change(&self, how: impl FnOnce(&mut pb::MasterSuperblock)) -> Result<(), IdentityError> {
        let mut member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = member.clone();
        how(&mut changed);
        store(&self.disk, &changed)?;
        *member = changed;
        Ok(())
    }

    /// Writes down that damage was found, for the next start. The process is about to end: an error is only told.
    /// Without others to be sent everything by there is nothing to be done about it.
    pub(super) fn note_damage(&self, what: &str) {
        if self.member().peers.is_empty() {
            return;
        }
        if let Err(error) = self.change(|member| what.clone_into(&mut member.damage)) {
            tracing::error!("the damage is not written down: {error}");
        }
    }

    /// Writes down where the other masters are reached, if that has changed.
    pub(super) async fn note_peers(
        self: &Arc<Card>,
        peers: Vec<String>,
    ) -> Result<(), IdentityError> {
        if peers.is_empty() || self.member().peers == peers {
            return Ok(());
        }
        let card = self.clone();
        seam::blocking(move || card.change(|member| member.peers = peers)).await
    }
}

/// Makes the empty log before the node's number is written down, so that a log that is missing later is
/// known to be lost (rule B4).
pub(super) fn prepare(disk: &Arc<dyn Disk>, limits: &Limits) -> Result<(), IdentityError> {
    raft::prepare(disk, limits)
        .map_err(|error| IdentityError::Log { dir: disk.describe(), what: error.to_string() })
}

/// Takes the directory for this process.
pub(super) fn lock(disk: &Arc<dyn Disk>) -> Result<Box<dyn DiskLock>, IdentityError> {
    disk.lock(LOCK).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => IdentityError::InUse { dir: disk.describe() },
        _ => IdentityError::Disk { dir: disk.describe(), error },
    })
}

/// Reads the superblock; an empty directory becomes a candidate if there are masters to join.
pub(super) fn load(
    disk: &Arc<dyn Disk>,
    config: &MasterConfig,
) -> Result<pb::MasterSuperblock, IdentityError> {
    let dir = disk.describe();
    let found: Option<pb::MasterSuperblock> =
        codec::read_file(disk.as_ref(), SUPERBLOCK, codec::kind::MASTER_SUPERBLOCK)
            .map_err(|error| unreadable(&dir, error))?;
    let Some(member) = found else {
        let found =
            something(disk).map_err(|error| IdentityError::Disk { dir: dir.clone(), error })?;
        if let Some(found) = found {
            return Err(IdentityError::NotEmpty { dir, found });
        }
        if config.join.is_empty() {
            return Err(IdentityError::Missing { dir });
        }
        let member = pb::MasterSuperblock {
            incarnation: seam::rng::random_uuid().bytes(),
            ..Default::default()
        };
        store(disk, &member)?;
        return Ok(member);
    };
    if let (Some(wanted), Some(found)) = (config.cluster, Uuid::from_bytes(&member.cluster))
        && wanted != found
    {
        return Err(IdentityError::WrongCluster { dir, found, wanted });
    }
    if member.node == 0 && config.join.is_empty() {
        return Err(IdentityError::Missing { dir });
    }
    Ok(member)
}

fn unreadable(dir: &str, error: codec::CodecError) -> IdentityError {
    let (dir, what) = (dir.to_owned(), error.to_string());
    match error.is_damage() {
        true => IdentityError::Corrupt { dir, what },
        false => IdentityError::Disk { dir, error: std::io::Error::other(what) },
    }
}

/// Writes the superblock durably.
pub(super) fn store(
    disk: &Arc<dyn Disk>,
    member: &pb::MasterSuperblock,
) -> Result<(), IdentityError> {
    codec::write_file(disk.as_ref(), SUPERBLOCK, codec::kind::MASTER_SUPERBLOCK, member)
        .map_err(|error| IdentityError::Disk { dir: disk.describe(), error })
}

/// How this master introduces itself; number 0 until it is admitted.
pub(super) fn on_the_wire(member: &pb::MasterSuperblock) -> Identity {
    Identity {
        cluster: Uuid::from_bytes(&member.cluster),
        role: Role::Master,
        node: member.node,
        incarnation: member.incarnation.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b)),
    }
}

/// What names this directory for ever.
pub(super) fn incarnation(
    disk: &Arc<dyn Disk>,
    member: &pb::MasterSuperblock,
) -> Result<Uuid, IdentityError> {
    Uuid::from_bytes(&member.incarnation).ok_or_else(|| IdentityError::Corrupt {
        dir: disk.describe(),
        what: "the incarnation has not 16 bytes".to_owned(),
    })
}

/// Asks the group for a node id until it is admitted, and records it. Asking again with the same incarnation
/// gives the same id, so a lost answer does no harm.
pub(super) async fn join(
    disk: &Arc<dyn Disk>,
    member: &mut pb::MasterSuperblock,
    config: &MasterConfig,
    pool: &Arc<Pool>,
    address: &str,
) -> Result<(), IdentityError> {
    let give_up = seam::now() + JOIN_DEADLINE;
    let mine = incarnation(disk, member)?;
    let mut last = String::from("nobody answered");
    while seam::now() < give_up {
        let asked = raft::join(pool, &config.join, config.cluster, mine, address, &config.limits);
        match asked.await {
            Ok((node, cluster)) => {
                prepare(disk, &config.limits)?;
                member.node = node.get();
                member.cluster = cluster.bytes();
                member.address = address.to_owned();
                return store(disk, member);
            }
            Err(error) => last = error,
        }
        tokio::time::sleep(config.limits.retry_pause_max).await;
    }
    Err(IdentityError::NotAdmitted { asked: config.join.clone(), last })
}
