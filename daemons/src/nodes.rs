//! Masters and chunkservers started in this process: what the two daemons and `mooseng dev` share.

use crate::fail::Fail;
use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::erasure::Layout;
use mooseng::ids::Uuid;
use mooseng::limits::Limits;
use mooseng::master::admin::AdminServer;
use mooseng::master::{self, Master, MasterConfig};
use mooseng::seam::Disk;
use mooseng::seam::real::RealDisk;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Makes the data directory of the first master of a new cluster.
///
/// `layout` is the cluster's default storage class.
pub fn format_master(
    dir: &Path,
    cluster: Uuid,
    layout: Layout,
    limits: &Limits,
) -> Result<(), Fail> {
    let disk: Arc<dyn Disk> = RealDisk::create(dir).map_err(|e| unusable(dir, &e))?;
    master::format(&disk, cluster, layout, limits).map_err(Fail::new)
}

fn unusable(dir: &Path, error: &io::Error) -> Fail {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "mount its disk, or create it if this is a new one",
        io::ErrorKind::PermissionDenied => {
            "give it to the user who runs this, or run this as its owner"
        }
        io::ErrorKind::NotADirectory => "name a directory",
        _ => "check the disk",
    };
    Fail::new(format!("data directory {}: {error}; {remedy}", dir.display()))
}

/// How a master is started.
pub struct MasterPlan {
    /// Its data directory.
    pub dir: PathBuf,
    /// Where its gRPC service listens.
    pub grpc: String,
    /// The rest.
    pub config: MasterConfig,
}

/// A master and its gRPC service.
pub struct RunningMaster {
    master: Master,
    admin: AdminServer,
}

impl RunningMaster {
    /// Starts on the current runtime. An empty directory is made for a master that joins.
    pub async fn start(plan: MasterPlan) -> Result<RunningMaster, Fail> {
        let disk = match plan.config.join.is_empty() {
            true => RealDisk::open(&plan.dir),
            false => RealDisk::create(&plan.dir),
        };
        let disk: Arc<dyn Disk> = disk.map_err(|e| unusable(&plan.dir, &e))?;
        let master = Master::start(plan.config, disk).await.map_err(Fail::new)?;
        let admin = AdminServer::start(master.admin(), &plan.grpc).await;
        let admin =
            admin.map_err(|e| Fail::new(format!("{e}; choose another with --grpc-listen")))?;
        Ok(RunningMaster { master, admin })
    }

    /// The master itself.
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// Ends it cleanly.
    pub async fn stop(self) {
        self.admin.stop().await;
        self.master.stop().await;
    }
}

/// Starts a chunkserver on the current runtime. Directories that are missing are refused: an unmounted disk
/// must not look like an empty one.
pub async fn start_chunkserver(
    config: ChunkserverConfig,
    dirs: &[PathBuf],
) -> Result<Chunkserver, Fail> {
    let open = |dir: &PathBuf| -> Result<Arc<dyn Disk>, Fail> {
        let disk = RealDisk::open(dir).map_err(|e| unusable(dir, &e))?;
        Ok(disk)
    };
    let disks = dirs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    Chunkserver::start(config, disks).await.map_err(Fail::new)
}

/// Said aloud at every start while it is so.
pub fn say_no_authentication() {
    tracing::warn!(
        "no authentication yet: whoever reaches this port can read and change everything"
    );
}

/// The production limits with what the configuration changes, shared.
pub fn limits(config: &crate::config::Config) -> Result<Arc<Limits>, Fail> {
    Ok(Arc::new(config.limits.limits()?))
}
