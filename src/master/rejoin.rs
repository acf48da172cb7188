//! A master whose log or tables are damaged enters its group anew, without an operator (rule C1): it asks the others
//! to be taken in under a new number, moves what it had aside, and is sent everything. The others have all that it
//! ever acknowledged; who was reached at this address before is removed by the leader when the new one votes.
//!
//! Nothing is given up before the group, by a majority of its own, has taken the new one in: a single master, or one
//! whose group can not decide without it, keeps its files and refuses to start, or starts with what it has.

use super::MasterConfig;
use super::identity::{self, IdentityError, KEPT};
use crate::ids::Uuid;
use crate::limits::Limits;
use crate::pb;
use crate::raft;
use crate::seam::{self, Disk, OpenMode};
use crate::wire::Pool;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Where the old files go. Those of an earlier time are replaced.
const ASIDE: &str = "damaged";
/// The directory of the log.
const LOG: &str = "wal";
/// How long a master that can not start asks to be taken in.
const PATIENCE: Duration = Duration::from_secs(60);

/// The masters that were members of late, and those that were given, without this one.
fn peers(member: &pb::MasterSuperblock, config: &MasterConfig) -> Vec<String> {
    let mut peers = member.peers.clone();
    peers.extend(config.join.iter().filter(|given| !member.peers.contains(given)).cloned());
    peers.retain(|address| *address != member.address);
    peers
}

/// Asks the group to take this one in under a new number, for a minute if the caller `insists`; then that is who
/// this directory is, with an empty log. `false` if it did not: everything is as it was.
pub(super) async fn enter_anew(
    disk: &Arc<dyn Disk>,
    member: &mut pb::MasterSuperblock,
    config: &MasterConfig,
    why: &str,
    insists: bool,
) -> Result<bool, IdentityError> {
    let asked = peers(member, config);
    let Some(cluster) = Uuid::from_bytes(&member.cluster) else { return Ok(false) };
    if asked.is_empty() {
        return Ok(false);
    }
    tracing::warn!("{why}: asking the other masters to be taken in anew");
    if member.successor.is_empty() {
        // The same one when this is repeated, so that a lost answer does no harm.
        member.successor = seam::rng::random_uuid().bytes();
        identity::store(disk, member)?;
    }
    let heir = pb::MasterSuperblock {
        cluster: member.cluster.clone(),
        incarnation: member.successor.clone(),
        address: member.address.clone(),
        peers: member.peers.clone(),
        set_aside: true,
        ..Default::default()
    };
    let pool = Pool::new(identity::on_the_wire(&heir), config.limits.clone());
    let mine = identity::incarnation(disk, &heir)?;
    let give_up = seam::now() + PATIENCE;
    loop {
        let taken =
            raft::join(&pool, &asked, Some(cluster), mine, &heir.address, &config.limits).await;
        match taken {
            Ok((node, _)) => {
                forget_aside(disk.as_ref())
                    .map_err(|error| IdentityError::Disk { dir: disk.describe(), error })?;
                *member = pb::MasterSuperblock { node: node.get(), ..heir };
                identity::store(disk, member)?;
                break;
            }
            Err(error) => tracing::warn!("not taken in anew: {error}"),
        }
        if !insists || seam::now() >= give_up {
            return Ok(false);
        }
        tokio::time::sleep(config.limits.retry_pause_max).await;
    }
    clear(disk, member, &config.limits)?;
    crate::mark!("master entered its group anew");
    tracing::warn!(
        node = member.node,
        "taken in anew; the old files are in {}/{ASIDE}",
        disk.describe()
    );
    Ok(true)
}

/// Moves the files of the former member aside and makes an empty log; goes on with that after a crash.
pub(super) fn clear(
    disk: &Arc<dyn Disk>,
    member: &mut pb::MasterSuperblock,
    limits: &Limits,
) -> Result<(), IdentityError> {
    let failed = |error| IdentityError::Disk { dir: disk.describe(), error };
    move_aside(disk.as_ref()).map_err(failed)?;
    if is_short_of_space(disk.as_ref()).map_err(failed)? {
        crate::mark!("what was set aside is not kept: too little space");
        tracing::warn!(
            "the old files are not kept: the disk has no room for them and for what comes"
        );
        forget_aside(disk.as_ref()).map_err(failed)?;
    }
    identity::prepare(disk, limits)?;
    member.set_aside = false;
    identity::store(disk, member)
}

/// Whether less is free than what was moved aside takes: about as much will be sent.
fn is_short_of_space(disk: &dyn Disk) -> io::Result<bool> {
    let mut bytes = 0;
    for path in aside(disk)? {
        bytes += disk.open(&path, OpenMode::Read)?.len()?;
    }
    Ok(disk.space()?.free < bytes)
}

/// Removes what was moved aside.
fn forget_aside(disk: &dyn Disk) -> io::Result<()> {
    aside(disk)?.iter().try_for_each(|path| disk.remove(path))
}

/// All files that were moved aside.
fn aside(disk: &dyn Disk) -> io::Result<Vec<String>> {
    let mut paths = Vec::new();
    for dir in [format!("{ASIDE}/{LOG}"), ASIDE.to_owned()] {
        if disk.exists(&dir)? {
            let names = disk.list(&dir)?.into_iter().filter(|name| name != LOG);
            paths.extend(names.map(|name| format!("{dir}/{name}")));
        }
    }
    Ok(paths)
}

fn move_aside(disk: &dyn Disk) -> io::Result<()> {
    let log = format!("{ASIDE}/{LOG}");
    disk.create_dir(&log)?;
    for name in disk.list("")? {
        if name != ASIDE && name != LOG && !KEPT.contains(&name.as_str()) {
            disk.rename(&name, &format!("{ASIDE}/{name}"))?;
        }
    }
    if disk.exists(LOG)? {
        for name in disk.list(LOG)? {
            disk.rename(&format!("{LOG}/{name}"), &format!("{log}/{name}"))?;
        }
        disk.sync_dir(LOG)?;
    }
    disk.sync_dir(&log)?;
    disk.sync_dir(ASIDE)?;
    disk.sync_dir("")
}
