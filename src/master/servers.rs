//! Chunkservers: registration, heartbeats, full reports, and the committed death of silent ones.

use super::Shared;
use super::leader;
use super::repair;
use super::rpc::{must_lead, refusal};
use super::soft::{Beat, clock};
use crate::bug;
use crate::errno::Errno;
use crate::ids::{ChunkId, ServerId, Uuid};
use crate::namespace;
use crate::namespace::tables::{Chunks, Classes, Servers};
use crate::pb;
use crate::placement::{Candidate, ServerView};
use crate::tables::{Read, TableError};
use crate::wire::{Outgoing, Refusal, RefusalCode, calls};
use std::collections::BTreeMap;

/// Bounds of what a chunkserver may say of itself.
const LABELS_MAX: usize = 64;
const DISKS_MAX: usize = 256;
const ADDRESS_BYTES_MAX: usize = 255;

/// Every committed server.
pub(super) fn rows(shared: &Shared) -> Result<Vec<pb::ServerRow>, TableError> {
    let view = shared.raft.view();
    view.range::<Servers>(&ServerId(0), None).map(|row| row.map(|(_, row)| row)).collect()
}

/// Every committed server as placement and repair see it.
pub(super) fn views(shared: &Shared) -> Result<BTreeMap<ServerId, ServerView>, TableError> {
    let rows = rows(shared)?;
    let soft = shared.soft();
    Ok(rows.iter().map(|row| (ServerId(row.id), soft.view(row, &shared.limits))).collect())
}

/// Where a new chunk may go.
pub(super) fn candidates(shared: &Shared) -> Result<Vec<Candidate>, Refusal> {
    let views = views(shared).map_err(|error| shared.broken(&error))?;
    Ok(views
        .into_iter()
        .map(|(server, view)| Candidate {
            server,
            labels: view.labels,
            free_bytes: view.free_bytes,
            alive: view.alive && view.state == pb::ServerState::Active,
            draining: view.state == pb::ServerState::Draining,
        })
        .collect())
}

/// Space is not in the log: it is what the working disks of living servers said last, as the default class
/// would fill it.
pub(super) fn fill_space(
    shared: &Shared,
    view: &impl Read,
    result: &mut pb::QueryResult,
) -> Result<(), TableError> {
    let Some(pb::query_result::Result::Statfs(found)) = &mut result.result else { return Ok(()) };
    let class = view.get::<Classes>(&0)?.unwrap_or_default();
    let layout = class.layout.unwrap_or_default();
    let data = u128::from(layout.data.max(1));
    let shards = u128::from((layout.data + layout.parity).max(1));
    let logical = |bytes: u128| u64::try_from(bytes * data / shards).unwrap_or(u64::MAX);
    let (mut total, mut free) = (0, 0);
    let soft = shared.soft();
    for (server, beat) in &soft.servers {
        if soft.alive(*server, &shared.limits) {
            for disk in beat.disks.iter().filter(|disk| !disk.failed) {
                total += u128::from(disk.total_bytes);
                free += u128::from(disk.free_bytes);
            }
        }
    }
    (found.total_bytes, found.free_bytes) = (logical(total), logical(free));
    Ok(())
}

/// A chunkserver starts: it gets its number, or is found again under the one it has.
pub(super) async fn register(
    shared: &Shared,
    request: pb::RegisterRequest,
) -> Result<Outgoing, Refusal> {
    must_lead(shared)?;
    check_registration(&request)?;
    let founded = namespace::cluster(&shared.raft.view()).map_err(|error| shared.broken(&error))?;
    if founded.is_none() {
        return Err(Refusal::new(RefusalCode::Busy, "the cluster is being founded"));
    }
    let rows = rows(shared).map_err(|error| shared.broken(&error))?;
    let taken = rows.iter().find_map(|row| address_taken(row, &request));
    let known = rows.into_iter().find(|r| r.uuid == request.uuid || r.id == request.server);
    let refused = known.as_ref().and_then(|row| contradiction(row, &request)).or(taken);
    if refused.is_some() {
        return Ok(registered(shared, ServerId(0), refused));
    }
    let disks: Vec<_> = request.disks.iter().map(|d| d.disk.clone()).collect();
    let current = known.as_ref().is_some_and(|row| {
        row.address == request.address
            && row.labels == request.labels
            && row.disks == disks
            // RETURN: nothing of it has changed, so there is nothing to write down.
            && (row.state() != pb::ServerState::Dead || bug!(RETURN))
    });
    // Found by its uuid it may not know its number: the answer to its first registration may be lost.
    let mut server = ServerId(known.as_ref().map_or(request.server, |row| row.id));
    if !current {
        let command = pb::RegisterServerCmd {
            uuid: request.uuid,
            address: request.address,
            labels: request.labels,
            disks,
        };
        let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::RegisterServer(command)) };
        let (_, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
        let Some(pb::outcome::Kind::Id(id)) = outcome.kind else {
            let error = format!("registration refused: {}", Errno::new(outcome.errno));
            return Ok(registered(shared, ServerId(0), Some(error)));
        };
        server = ServerId(id);
    }
    if known.is_some_and(|row| row.state() == pb::ServerState::Dead) {
        crate::mark!("dead chunkserver returned");
    }
    let beat = Beat { at: clock(), incarnation: request.incarnation, disks: request.disks };
    shared.soft().servers.insert(server, beat);
    Ok(registered(shared, server, None))
}

fn check_registration(request: &pb::RegisterRequest) -> Result<(), Refusal> {
    let fits = Uuid::from_bytes(&request.uuid).is_some()
        && request.labels.len() <= LABELS_MAX
        && request.disks.len() <= DISKS_MAX
        && request.address.len() <= ADDRESS_BYTES_MAX
        && request.labels.iter().all(|l| l.len() <= ADDRESS_BYTES_MAX);
    if fits {
        return Ok(());
    }
    Err(Refusal::new(RefusalCode::BadRequest, "registration out of bounds"))
}

/// Why a committed server and one that claims to be it can not be the same.
fn contradiction(row: &pb::ServerRow, request: &pb::RegisterRequest) -> Option<String> {
    if row.uuid != request.uuid {
        return Some(format!(
            "chunkserver {} is known with another identity: its data directories belong to another server",
            request.server
        ));
    }
    if request.server != 0 && row.id != request.server {
        return Some(format!("this chunkserver is number {}, not {}", row.id, request.server));
    }
    if row.state() == pb::ServerState::Removed {
        return Some(format!(
            "chunkserver {} was removed from the cluster: start it with empty data directories to join anew",
            row.id
        ));
    }
    None
}

/// Why a server that counts as living stands in the way at this address: most likely the disk of that one is
/// not mounted, and its empty mount point looks like a new server (rule A2).
fn address_taken(row: &pb::ServerRow, request: &pb::RegisterRequest) -> Option<String> {
    let counts = matches!(row.state(), pb::ServerState::Active | pb::ServerState::Draining);
    if !counts || row.uuid == request.uuid || row.address != request.address {
        return None;
    }
    crate::mark!("another chunkserver at a known one's address refused");
    Some(format!(
        "{} is the address of chunkserver {}, and these data directories are not its own: mount its disks, or \
         choose another address with --listen, or wait until that one counts as dead",
        request.address, row.id
    ))
}

fn registered(shared: &Shared, server: ServerId, error: Option<String>) -> Outgoing {
    let reply = pb::RegisterReply {
        errno: if error.is_some() { Errno::EPERM.get() } else { 0 },
        server: server.get(),
        cluster: shared.cluster.0.to_vec().into(),
        error: error.unwrap_or_default(),
        heartbeat_ms: u64::try_from(shared.limits.server_heartbeat.as_millis()).unwrap_or(1000),
    };
    Outgoing::new::<calls::Register>(&reply)
}

/// A chunkserver lives. ESTALE asks it to register (again).
pub(super) fn heartbeat(
    shared: &std::sync::Arc<Shared>,
    request: pb::HeartbeatRequest,
) -> Result<Outgoing, Refusal> {
    must_lead(shared)?;
    let server = ServerId(request.server);
    let mut reply =
        pb::HeartbeatReply { errno: 0, term: shared.raft.term().get(), send_report: false };
    let known =
        shared.raft.view().get::<Servers>(&server).map_err(|error| shared.broken(&error))?;
    let active = known.is_some_and(|row| {
        matches!(row.state(), pb::ServerState::Active | pb::ServerState::Draining)
    });
    if !active || request.disks.len() > DISKS_MAX {
        reply.errno = Errno::ESTALE.get();
        return Ok(Outgoing::new::<calls::Heartbeat>(&reply));
    }
    let beat = Beat { at: clock(), incarnation: request.incarnation, disks: request.disks };
    let (before, heard) = {
        let mut soft = shared.soft();
        let before = soft.servers.insert(server, beat);
        (before, soft.reports.heard(server, request.incarnation))
    };
    // Until it knows what this boot of the server holds: an answer that asks for it may be lost.
    reply.send_report = match bug!(DEAF) {
        false => !heard,
        // DEAF: it is asked for once.
        true => before.is_none_or(|b| b.incarnation != request.incarnation),
    };
    for replica in request.bad {
        repair::found_bad(shared, &replica);
    }
    Ok(Outgoing::new::<calls::Heartbeat>(&reply))
}

/// One page of what a server holds: replicas that are short, corrupt or not sealed are dealt with; after the
/// last page the background rounds look for those that are missing ([`super::missing`]). Replicas that no chunk
/// names are left alone: only a committed command deletes (rule A2).
pub(super) async fn report(
    shared: &std::sync::Arc<Shared>,
    request: pb::ReportRequest,
) -> Result<Outgoing, Refusal> {
    must_lead(shared)?;
    let server = ServerId(request.server);
    let view = shared.raft.view();
    let fatal = |error: TableError| shared.broken(&error);
    for state in &request.replicas {
        let Some(id) = &state.replica else { continue };
        let Some(chunk) = view.get::<Chunks>(&ChunkId(id.chunk)).map_err(fatal)? else { continue };
        if !chunk.replicas.iter().any(|r| r.r#gen == id.r#gen && r.shard == id.shard) {
            continue;
        }
        let sealed = chunk.state() == pb::ChunkState::Sealed;
        let wanted = repair::shard_len(&chunk, id.shard);
        if state.corrupt || (sealed && state.length < wanted) {
            repair::found_bad(shared, id);
        } else if sealed && repair::is_bad(shared, id) {
            repair::acquit(shared, &chunk, id);
        } else if sealed && !state.sealed {
            repair::tell_sealed(shared, &chunk);
        }
    }
    let round = (request.incarnation, request.report);
    let named = request.replicas.iter().filter_map(|state| state.replica.as_ref());
    let named = named.map(|r| (r.chunk, r.r#gen, r.shard));
    shared.soft().reports.page(server, round, request.first, request.last, named);
    Ok(Outgoing::new::<calls::Report>(&pb::ReportReply { errno: 0 }))
}

/// A client could not use a chunk. A chunk that it writes is sealed, so that repair can begin and nothing of
/// this writer is referenced past what it committed; replicas it could not read are checked.
pub(super) async fn report_chunk(
    shared: &std::sync::Arc<Shared>,
    request: pb::ReportChunkRequest,
) -> Result<Outgoing, Refusal> {
    must_lead(shared)?;
    let chunk = shared
        .raft
        .view()
        .get::<Chunks>(&ChunkId(request.chunk))
        .map_err(|error| shared.broken(&error))?;
    let mut errno = 0;
    match chunk {
        None => errno = Errno::ENOENT.get(),
        Some(chunk) if request.writing => {
            if chunk.session == request.session && chunk.state() == pb::ChunkState::Open {
                repair::seal(shared, &chunk).await?;
            }
        }
        Some(chunk) => {
            for bad in request.bad.iter().take(crate::limits::SHARDS_MAX) {
                repair::suspect(shared, &chunk, bad);
            }
        }
    }
    Ok(Outgoing::new::<calls::ReportChunk>(&pb::ReportChunkReply { errno }))
}

/// Commits the death of servers that were silent too long.
pub(super) async fn bury(shared: &Shared) -> Result<(), Refusal> {
    let rows = rows(shared).map_err(|error| shared.broken(&error))?;
    for row in rows {
        let server = ServerId(row.id);
        let counts = matches!(row.state(), pb::ServerState::Active | pb::ServerState::Draining);
        if leader::noticed_stall(shared) {
            return Ok(());
        }
        let silence = shared.soft().silence(server);
        // BURY: one that never comes back is waited for.
        if counts && silence > shared.limits.server_dead && !bug!(BURY) {
            tracing::warn!(%server, address = row.address, ?silence, "chunkserver declared dead; its chunks are repaired elsewhere");
            crate::mark!("chunkserver declared dead");
            set_state(shared, server, pb::ServerState::Dead).await?;
        }
    }
    Ok(())
}

/// Commits a server's state.
pub(super) async fn set_state(
    shared: &Shared,
    server: ServerId,
    state: pb::ServerState,
) -> Result<(), Refusal> {
    let command = pb::ServerStateCmd { server: server.get(), state: state as i32 };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::ServerState(command)) };
    let (_, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
    Errno::check(outcome.errno)
        .map_err(|errno| Refusal::new(RefusalCode::BadRequest, format!("server {server}: {errno}")))
}
