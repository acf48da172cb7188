//! Client sessions: opening, keeping alive, and the committed expiry of silent ones.

use super::Shared;
use super::leader;
use super::repair;
use super::rpc::{must_lead, refusal};
use super::soft::clock;
use crate::errno::Errno;
use crate::ids::{ChunkId, SessionId};
use crate::namespace::tables::{OpenChunks, Sessions};
use crate::pb;
use crate::seam::Mono;
use crate::tables::{Read, TableError};
use crate::wire::{Outgoing, Refusal, RefusalCode, calls};
use std::sync::Arc;

/// Longest host name that is recorded.
const HOST_BYTES_MAX: usize = 255;

/// A session was heard from.
pub(super) fn heard(shared: &Shared, session: SessionId) {
    let now = clock();
    if let Some(last) = shared.soft().sessions.get_mut(&session) {
        *last = now;
    }
}

pub(super) async fn open(
    shared: &Shared,
    request: pb::OpenSessionRequest,
) -> Result<Outgoing, Refusal> {
    if request.host.len() > HOST_BYTES_MAX || request.client_nonce == 0 {
        return Err(Refusal::new(
            RefusalCode::BadRequest,
            "a session needs a nonce and a host name of at most 255 bytes",
        ));
    }
    let command = pb::OpenSessionCmd { client_nonce: request.client_nonce, host: request.host };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::OpenSession(command)) };
    let (_, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
    // Its answer was lost, and then its time was over.
    if outcome.errno == Errno::ESTALE.get() && !crate::bug!(STUBBORN) {
        let reply = pb::OpenSessionReply { errno: outcome.errno, ..Default::default() };
        return Ok(Outgoing::new::<calls::OpenSession>(&reply));
    }
    let Some(pb::outcome::Kind::Session(mut reply)) = outcome.kind else {
        return Err(Refusal::new(
            RefusalCode::Internal,
            format!("no session: {}", Errno::new(outcome.errno)),
        ));
    };
    shared.soft().sessions.insert(SessionId(reply.session), clock());
    reply.ttl_ms = ttl_ms(shared);
    Ok(Outgoing::new::<calls::OpenSession>(&reply))
}

/// Answered only after a quorum confirmed this leader after the call arrived, so that a deposed leader can
/// not make a client believe that its session lives (rule B2).
pub(super) async fn keepalive(
    shared: &Shared,
    request: pb::KeepaliveRequest,
) -> Result<Outgoing, Refusal> {
    let session = SessionId(request.session);
    shared.raft.read_index().await.map_err(refusal)?;
    must_lead(shared)?;
    let row =
        shared.raft.view().get::<Sessions>(&session).map_err(|error| shared.broken(&error))?;
    let live = row.is_some_and(|row| !row.ended);
    if live {
        shared.soft().sessions.insert(session, clock());
    }
    let errno = if live { 0 } else { Errno::ESTALE.get() };
    Ok(Outgoing::new::<calls::Keepalive>(&pb::KeepaliveReply { errno, ttl_ms: ttl_ms(shared) }))
}

pub(super) async fn close(
    shared: &Arc<Shared>,
    request: pb::CloseSessionRequest,
) -> Result<Outgoing, Refusal> {
    let outcome = end(shared, SessionId(request.session), false).await?;
    Ok(Outgoing::new::<calls::CloseSession>(&pb::CloseSessionReply { errno: outcome.errno }))
}

/// Commits the expiry of sessions that were silent for their whole time to live.
pub(super) async fn expire(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let ttl = shared.limits.session_ttl;
    let is_silent = |last: &Mono| clock().since(*last) > ttl;
    let silent: Vec<SessionId> = {
        let soft = shared.soft();
        let silent = soft.sessions.iter().filter(|(_, last)| is_silent(last));
        silent.map(|(session, _)| *session).collect()
    };
    for session in silent {
        if leader::noticed_stall(shared) {
            return Ok(());
        }
        // It may have been heard while others were ended.
        if !shared.soft().sessions.get(&session).is_some_and(is_silent) {
            continue;
        }
        tracing::warn!(%session, "session expired: not heard from for {ttl:?}");
        crate::mark!("session expired");
        end(shared, session, true).await?;
    }
    Ok(())
}

/// A new leader watches every live session from now on.
pub(super) fn adopt(shared: &Shared) -> Result<(), TableError> {
    let view = shared.raft.view();
    let now = clock();
    let mut live = Vec::new();
    for row in view.range::<Sessions>(&SessionId(0), None) {
        let (session, row) = row?;
        if !row.ended {
            live.push(session);
        }
    }
    let mut soft = shared.soft();
    for session in live {
        soft.sessions.entry(session).or_insert(now);
    }
    Ok(())
}

async fn end(
    shared: &Arc<Shared>,
    session: SessionId,
    expired: bool,
) -> Result<pb::Outcome, Refusal> {
    let open = open_chunks(shared, session).map_err(|error| shared.broken(&error))?;
    repair::announce(shared, &open);
    let command = pb::EndSessionCmd { session: session.get(), expired };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::EndSession(command)) };
    let (_, _, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
    shared.soft().sessions.remove(&session);
    repair::tell_all_sealed(shared, &open);
    Ok(outcome)
}

/// Chunks that the session's end seals.
fn open_chunks(shared: &Shared, session: SessionId) -> Result<Vec<ChunkId>, TableError> {
    let (from, to) = ((session, ChunkId(0)), (SessionId(session.get() + 1), ChunkId(0)));
    let view = shared.raft.view();
    let rows = view.range::<OpenChunks>(&from, Some(&to));
    rows.map(|row| row.map(|((_, chunk), _)| chunk)).collect()
}

fn ttl_ms(shared: &Shared) -> u64 {
    u64::try_from(shared.limits.session_ttl.as_millis()).unwrap_or(u64::MAX)
}
