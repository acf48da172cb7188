//! What a master does while it leads: watches servers and sessions, repairs, collects garbage.

use super::Shared;
use super::{garbage, missing, punch, repair, rpc, servers, sessions};
use crate::errno::Errno;
use crate::namespace;
use crate::namespace::tables::Masters;
use crate::pb;
use crate::seam;
use crate::tables::Read;
use crate::wire::{Refusal, RefusalCode};
use std::sync::Arc;
use std::time::Duration;

/// Pause between two rounds of background work.
pub(super) const ROUND: Duration = Duration::from_millis(200);

/// Runs for the life of the master.
pub(super) async fn lead(shared: Arc<Shared>) {
    tokio::join!(rounds(shared.clone()), watch(shared));
}

/// Notices that this process stood still, whatever a round of background work takes.
async fn watch(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(ROUND).await;
        noticed_stall(&shared);
    }
}

/// A leader that notices its own stall must not hold the silence against others (rule B2): asked before each verdict, as
/// it may have stood still while it waited for the last one to be committed.
pub(super) fn noticed_stall(shared: &Shared) -> bool {
    let mut soft = shared.soft();
    let now = seam::now();
    let stalled = now.since(soft.watched) > shared.limits.server_suspect;
    soft.watched = now;
    if stalled {
        crate::mark!("leader noticed its own stall");
        soft.restart_clocks();
    }
    stalled
}

async fn rounds(shared: Arc<Shared>) {
    let mut noted = None;
    loop {
        tokio::time::sleep(ROUND).await;
        let since = shared.raft.members_since();
        if noted != Some(since) && remember_peers(&shared).await {
            noted = Some(since);
        }
        if !shared.raft.is_leader_ready() || crate::fault!("master: round skipped") {
            continue;
        }
        if let Err(refusal) = round(&shared).await {
            tracing::debug!(%refusal, "background round ended early");
        }
    }
}

/// Whether it is written down where the other masters are, for a start without what the log says of them.
async fn remember_peers(shared: &Shared) -> bool {
    let me = shared.raft.node();
    let others = shared.raft.members().into_iter().filter(|member| member.node != me);
    let mut peers: Vec<String> = others.map(|member| member.address).collect();
    peers.sort();
    peers.dedup();
    let noted = shared.card.note_peers(peers).await;
    if let Err(error) = &noted {
        tracing::debug!("the other masters' addresses are not written down: {error}");
    }
    noted.is_ok()
}

async fn round(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let term = shared.raft.term();
    if shared.soft().term != term {
        shared.soft().begin(term);
        sessions::adopt(shared).map_err(|error| shared.broken(&error))?;
    }
    found(shared).await?;
    majority(shared).await?;
    let began = seam::now();
    let last = std::mem::replace(&mut shared.soft().last_round, began);
    // Time without a quorum is like a stall.
    if began.since(last) > shared.limits.server_suspect {
        crate::mark!("leader was without a quorum");
        shared.soft().restart_clocks();
        return Ok(());
    }
    if noticed_stall(shared) {
        return Ok(());
    }
    servers::bury(shared).await?;
    sessions::expire(shared).await?;
    missing::round(shared).map_err(|error| shared.broken(&error))?;
    repair::round(shared).await?;
    garbage::round(shared).await?;
    punch::round(shared).await?;
    // However long the work took, there was a quorum for it: it is nobody's silence.
    if seam::now().since(began) > shared.limits.server_suspect / 2 && !crate::bug!(BUSY) {
        crate::mark!("long round of background work");
        majority(shared).await?;
        shared.soft().last_round = seam::now();
    }
    Ok(())
}

/// Without a quorum no keepalive is answered: that silence is this leader's own, like that of a stall.
async fn majority(shared: &Shared) -> Result<(), Refusal> {
    // LONELY: it counts all the same.
    if crate::bug!(LONELY) {
        return Ok(());
    }
    // MUTE: these calls would be heard beside a snapshot as well.
    if crate::bug!(MUTE) {
        return Ok(());
    }
    shared.raft.read_index().await.map_err(rpc::refusal)?;
    Ok(())
}

/// The first leader of a new cluster writes down what the cluster is.
async fn found(shared: &Shared) -> Result<(), Refusal> {
    let view = shared.raft.view();
    let broken = |error| shared.broken(&error);
    let known = namespace::cluster(&view).map_err(broken)?.is_some();
    let registered = view.get::<Masters>(&shared.raft.node()).map_err(broken)?.is_some();
    if known && registered {
        return Ok(());
    }
    let member = &shared.card.member();
    let init = pb::proposal::Kind::InitCluster(pb::InitClusterCmd {
        cluster: member.cluster.clone(),
        default_layout: member.default_layout,
        cluster_epoch: 0,
        limits: Some(namespace::apply_limits(&shared.limits)),
    });
    // A founder may have gone down between the two.
    let register = pb::proposal::Kind::RegisterMaster(pb::RegisterMasterCmd {
        incarnation: member.incarnation.clone(),
        address: member.address.clone(),
        node: member.node,
    });
    for kind in (!known).then_some(init).into_iter().chain([register]) {
        let (_, _, outcome) =
            shared.raft.propose(pb::Proposal { kind: Some(kind) }).await.map_err(rpc::refusal)?;
        Errno::check(outcome.errno).map_err(|errno| {
            Refusal::new(RefusalCode::Internal, format!("the cluster is not founded: {errno}"))
        })?;
    }
    Ok(())
}
