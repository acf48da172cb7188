//! Whose disk this is. A chunkserver starts only with the very disks it is registered with: an unmounted or
//! foreign disk must never look like an empty one (rule A2).

use crate::codec::{self, kind};
use crate::ids::{ServerId, Uuid};
use crate::pb;
use crate::seam::{Disk, DiskLock, rng};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

const SUPERBLOCK: &str = "superblock";
const LOCK: &str = "LOCK";
/// What may be in a directory that is still taken for empty.
const NOT_OURS: [&str; 5] = [LOCK, "lost+found", "superblock.new", "term", super::format::CHUNKS];

/// Why a disk cannot be used, in one line that names the path and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DiskError(String);

impl DiskError {
    /// `path` is relative to the disk.
    pub(super) fn new(disk: &dyn Disk, path: &str, what: &str, remedy: &str) -> DiskError {
        let slash = if path.is_empty() { "" } else { "/" };
        DiskError(format!("{}{slash}{path}: {what}; {remedy}", disk.describe()))
    }
}

/// A disk that is ours, locked for the life of this value.
pub struct Claimed {
    disk: Arc<dyn Disk>,
    _lock: Box<dyn DiskLock>,
    superblock: pb::ChunkDiskSuperblock,
    fresh: bool,
}

/// All disks of one chunkserver.
pub struct Assembled {
    /// The server's name for ever.
    pub uuid: Uuid,
    /// The id the master gave it, once it has registered.
    pub server: Option<ServerId>,
    /// The cluster it belongs to, once it has registered.
    pub cluster: Option<Uuid>,
    /// Its disks.
    pub disks: Vec<Claimed>,
}

impl Claimed {
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(super) fn uuid(&self) -> Uuid {
        Uuid::from_bytes(&self.superblock.disk).expect("checked when it was claimed")
    }

    fn write(&self) -> Result<(), DiskError> {
        write_superblock(&*self.disk, &self.superblock)
    }
}

fn write_superblock(
    disk: &dyn Disk,
    superblock: &pb::ChunkDiskSuperblock,
) -> Result<(), DiskError> {
    codec::write_file(disk, SUPERBLOCK, kind::CHUNK_DISK_SUPERBLOCK, superblock).map_err(|error| {
        let remedy = "make the directory writable, with space left";
        DiskError::new(disk, SUPERBLOCK, &error.to_string(), remedy)
    })
}

/// Claims and checks the disks of one chunkserver; empty ones are made its own. Refused, with one line: a disk
/// in use by a live process, of another cluster (if `cluster` says which is expected) or another server, of an
/// unknown version, damaged, without superblock but not empty, and a registered disk that is not among
/// `disks` (unless it is named in `forget`).
pub fn assemble(
    disks: Vec<Arc<dyn Disk>>,
    cluster: Option<Uuid>,
    forget: &[Uuid],
) -> Result<Assembled, DiskError> {
    let mut claimed = disks.into_iter().map(claim).collect::<Result<Vec<_>, _>>()?;
    let known = claimed.iter().find(|disk| !disk.fresh).map(|disk| disk.superblock.clone());
    let uuid = known.as_ref().and_then(|known| Uuid::from_bytes(&known.uuid));
    let uuid = uuid.unwrap_or_else(rng::random_uuid);
    check_kinship(&claimed, uuid, cluster)?;
    let registered = check_complete(&claimed, forget)?;
    for disk in claimed.iter_mut().filter(|disk| disk.fresh) {
        // Every disk first knows only itself, so that a crash here leaves nothing missing.
        disk.superblock.uuid = uuid.0.to_vec().into();
        disk.superblock.disks = vec![disk.superblock.disk.clone()];
        disk.write()?;
    }
    let server = claimed.iter().map(|disk| disk.superblock.server).max().unwrap_or(0);
    let of = |disk: &Claimed| Uuid::from_bytes(&disk.superblock.cluster);
    let found = claimed.iter().find_map(of);
    let mut assembled = Assembled {
        uuid,
        server: (server != 0).then_some(ServerId(server)),
        cluster: found,
        disks: claimed,
    };
    assembled.record(registered)?;
    Ok(assembled)
}

impl Assembled {
    /// Writes what all disks must agree on where it is not written yet.
    fn record(&mut self, mut registered: BTreeSet<Uuid>) -> Result<(), DiskError> {
        registered.extend(self.disks.iter().map(Claimed::uuid));
        for disk in &mut self.disks {
            let all = pb::ChunkDiskSuperblock {
                cluster: self.cluster.map(|c| c.0.to_vec()).unwrap_or_default().into(),
                server: self.server.map_or(0, |server| server.0),
                uuid: self.uuid.0.to_vec().into(),
                disk: disk.superblock.disk.clone(),
                disks: registered.iter().map(|uuid| uuid.0.to_vec().into()).collect(),
            };
            if all != disk.superblock {
                disk.superblock = all;
                disk.write()?;
            }
        }
        Ok(())
    }
}

impl super::Store {
    /// Binds the disk to its cluster and server, durably; done once, after the first registration.
    pub fn bind(&self, cluster: Uuid, server: ServerId) -> Result<(), DiskError> {
        let mut superblock = self.superblock().clone();
        if superblock.cluster == cluster.0.as_slice() && superblock.server == server.0 {
            return Ok(());
        }
        superblock.cluster = cluster.0.to_vec().into();
        superblock.server = server.0;
        write_superblock(&**self.disk(), &superblock)
    }

    fn superblock(&self) -> &pb::ChunkDiskSuperblock {
        &self.claimed().superblock
    }
}

fn claim(disk: Arc<dyn Disk>) -> Result<Claimed, DiskError> {
    let refuse = |path: &str, what: &str, remedy: &str| DiskError::new(&*disk, path, what, remedy);
    let lock = disk.lock(LOCK).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => refuse(
            LOCK,
            "in use by a live process",
            "stop that chunkserver, or give this one another data directory",
        ),
        _ => refuse("", &error.to_string(), "give a directory that exists and is writable"),
    })?;
    let read = codec::read_file(&*disk, SUPERBLOCK, kind::CHUNK_DISK_SUPERBLOCK);
    let found: Option<pb::ChunkDiskSuperblock> = read.map_err(|error| {
        let remedy = match error.is_damage() {
            true => "start with the program version that wrote it, or take the disk out (its replicas are rebuilt from others)",
            false => "check the disk and its permissions",
        };
        DiskError(format!("{error}; {remedy}"))
    })?;
    let Some(superblock) = found else {
        refuse_unless_empty(&*disk)?;
        let superblock = pb::ChunkDiskSuperblock {
            disk: rng::random_uuid().0.to_vec().into(),
            ..Default::default()
        };
        return Ok(Claimed { disk, _lock: lock, superblock, fresh: true });
    };
    let ids = [&superblock.uuid, &superblock.disk].into_iter().chain(&superblock.disks);
    if ids.into_iter().any(|id| Uuid::from_bytes(id).is_none()) {
        return Err(refuse(SUPERBLOCK, "names no server or disk", "take the disk out"));
    }
    Ok(Claimed { disk, _lock: lock, superblock, fresh: false })
}

fn refuse_unless_empty(disk: &dyn Disk) -> Result<(), DiskError> {
    let remedy = "give an empty directory, or the one that belongs to this server";
    let listed = |dir: &str| {
        disk.list(dir).map_err(|error| DiskError::new(disk, dir, &error.to_string(), remedy))
    };
    let names = listed("")?;
    let strange = names.iter().find(|name| !NOT_OURS.contains(&name.as_str()));
    if let Some(name) = strange {
        return Err(DiskError::new(disk, name, "not a data directory, and not empty", remedy));
    }
    let chunks = super::format::CHUNKS;
    if names.iter().any(|name| name == chunks) && !listed(chunks)?.is_empty() {
        let what = "holds replicas, but the superblock beside it is missing";
        return Err(DiskError::new(disk, chunks, what, remedy));
    }
    Ok(())
}

fn check_kinship(disks: &[Claimed], uuid: Uuid, cluster: Option<Uuid>) -> Result<(), DiskError> {
    let mut cluster = cluster;
    let mut seen = BTreeSet::new();
    for disk in disks {
        let refuse =
            |what: &str, remedy: &str| Err(DiskError::new(&*disk.disk, SUPERBLOCK, what, remedy));
        if !seen.insert(disk.uuid()) {
            return refuse("this disk was given twice (or copied)", "name each disk once");
        }
        if disk.fresh {
            continue;
        }
        let of = Uuid::from_bytes(&disk.superblock.uuid).unwrap_or(uuid);
        if of != uuid {
            let what = format!("belongs to chunkserver {of}, another disk to {uuid}");
            return refuse(&what, "give each chunkserver its own disks");
        }
        let theirs = Uuid::from_bytes(&disk.superblock.cluster);
        if let (Some(ours), Some(theirs)) = (cluster, theirs)
            && ours != theirs
        {
            let what = format!("belongs to cluster {theirs}, not to {ours}");
            return refuse(&what, "correct the cluster id or the data directory");
        }
        cluster = cluster.or(theirs);
    }
    Ok(())
}

/// The disks that the server is registered with; all of them must be here.
fn check_complete(disks: &[Claimed], forget: &[Uuid]) -> Result<BTreeSet<Uuid>, DiskError> {
    let here: BTreeSet<Uuid> = disks.iter().map(Claimed::uuid).collect();
    let mut registered = BTreeSet::new();
    for disk in disks {
        let listed = disk.superblock.disks.iter().filter_map(|raw| Uuid::from_bytes(raw));
        for uuid in listed.filter(|uuid| !forget.contains(uuid)) {
            if !here.contains(&uuid) {
                let what = format!("this server's disk {uuid} is missing");
                let remedy = "mount it and name its directory, or give it up for good with --forget-disk and that id";
                return Err(DiskError::new(&*disk.disk, SUPERBLOCK, &what, remedy));
            }
            registered.insert(uuid);
        }
    }
    Ok(registered)
}
