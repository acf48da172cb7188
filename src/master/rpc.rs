//! Calls from clients, chunkservers and other masters.

use super::Shared;
use super::{admin, repair, servers, sessions, space};
use crate::ids::{ChunkId, ServerId};
use crate::namespace;
use crate::pb;
use crate::placement;
use crate::raft::ProposeError;
use crate::wire::{Call, Handler, Incoming, Outgoing, Peer, Refusal, RefusalCode, calls};
use prost::Message;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

/// Queries that one call may carry.
const QUERIES_MAX: usize = 1024;

/// Hands each call to its handler, once the master is up.
#[derive(Default)]
pub(super) struct Router {
    shared: OnceLock<Arc<Shared>>,
}

impl Router {
    /// From now on calls are answered.
    pub(super) fn open(&self, shared: Arc<Shared>) {
        let _ = self.shared.set(shared);
    }
}

type Answer = Result<Outgoing, Refusal>;

impl Handler for Router {
    fn handle(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Incoming,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(async move {
            let Some(shared) = self.shared.get().cloned() else {
                // Another one may lead, and this one may take long: nobody should wait for it.
                return Err(Refusal::new(RefusalCode::NotLeader, ""));
            };
            route(shared, peer, request).await
        })
    }
}

async fn route(shared: Arc<Shared>, peer: Arc<Peer>, request: Incoming) -> Answer {
    match request.method {
        calls::SubmitBatch::METHOD => {
            let batch = request.decode::<calls::SubmitBatch>()?;
            submit(&shared, batch).await
        }
        calls::Query::METHOD => query(&shared, request.decode::<calls::Query>()?).await,
        calls::OpenSession::METHOD => {
            sessions::open(&shared, request.decode::<calls::OpenSession>()?).await
        }
        calls::Keepalive::METHOD => {
            sessions::keepalive(&shared, request.decode::<calls::Keepalive>()?).await
        }
        calls::CloseSession::METHOD => {
            sessions::close(&shared, request.decode::<calls::CloseSession>()?).await
        }
        calls::OpenChunk::METHOD => {
            open_chunk(&shared, request.decode::<calls::OpenChunk>()?).await
        }
        calls::ReportChunk::METHOD => {
            servers::report_chunk(&shared, request.decode::<calls::ReportChunk>()?).await
        }
        calls::Register::METHOD => {
            servers::register(&shared, request.decode::<calls::Register>()?).await
        }
        calls::Heartbeat::METHOD => {
            servers::heartbeat(&shared, request.decode::<calls::Heartbeat>()?)
        }
        calls::Report::METHOD => servers::report(&shared, request.decode::<calls::Report>()?).await,
        calls::Admin::METHOD => admin::passed_on(&shared, request).await,
        _ => shared.raft.handle(peer, request).await,
    }
}

/// How a failed proposal or read is told to the caller.
pub(super) fn refusal(error: ProposeError) -> Refusal {
    match error {
        ProposeError::NotLeader(hint) => {
            Refusal::new(RefusalCode::NotLeader, hint.unwrap_or_default())
        }
        ProposeError::Busy => Refusal::new(RefusalCode::Busy, "too many proposals wait"),
        other => Refusal::new(RefusalCode::Internal, other.to_string()),
    }
}

/// Refuses unless this master leads and has applied an entry of its own term.
pub(super) fn must_lead(shared: &Shared) -> Result<(), Refusal> {
    if shared.raft.is_leader_ready() {
        return Ok(());
    }
    let hint = shared.raft.leader().map(|(_, address)| address).unwrap_or_default();
    Err(Refusal::new(RefusalCode::NotLeader, hint))
}

async fn submit(shared: &Arc<Shared>, mut batch: pb::Batch) -> Answer {
    if batch.ops.len() > shared.limits.batch_ops_max {
        return Err(Refusal::new(
            RefusalCode::BadRequest,
            format!(
                "{} operations in a batch, at most {}",
                batch.ops.len(),
                shared.limits.batch_ops_max
            ),
        ));
    }
    space::refuse_growth(shared, &mut batch);
    let session = batch.session.into();
    let given_up: Vec<ChunkId> = batch.ops.iter().filter_map(sealed_by).collect();
    repair::announce(shared, &given_up);
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::Batch(batch)) };
    let (term, index, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
    let Some(pb::outcome::Kind::Batch(mut reply)) = outcome.kind else {
        return Err(Refusal::new(RefusalCode::Internal, "the outcome of a batch is not a batch"));
    };
    if reply.index == 0 {
        (reply.term, reply.index) = (term.get(), index.get());
    }
    if reply.errno == 0 {
        sessions::heard(shared, session);
        repair::tell_all_sealed(shared, &given_up);
    }
    Ok(Outgoing::new::<calls::SubmitBatch>(&reply))
}

/// The chunk that a writer is done with.
fn sealed_by(op: &pb::Op) -> Option<ChunkId> {
    match &op.op {
        Some(pb::op::Op::SealOwn(op)) => Some(ChunkId(op.chunk)),
        _ => None,
    }
}

async fn query(shared: &Shared, request: pb::QueryRequest) -> Answer {
    if request.queries.len() > QUERIES_MAX {
        return Err(Refusal::new(
            RefusalCode::BadRequest,
            format!("{} queries in one call, at most {QUERIES_MAX}", request.queries.len()),
        ));
    }
    let (term, _) = shared.raft.read_index().await.map_err(refusal)?;
    let (index, view) = shared.raft.view_at();
    let mut results = Vec::with_capacity(request.queries.len());
    let mut bytes = 0;
    for query in &request.queries {
        // What is left is asked again: one reply fits a frame, and one caller does not keep all others waiting.
        if bytes >= shared.limits.query_reply_bytes {
            crate::mark!("not all queries of a call answered");
            break;
        }
        let mut result = namespace::query(&view, &shared.limits, query)
            .map_err(|error| shared.broken(&error))?;
        mark_alive(shared, &mut result);
        servers::fill_space(shared, &view, &mut result).map_err(|error| shared.broken(&error))?;
        bytes += result.encoded_len();
        results.push(result);
    }
    let reply = pb::QueryReply { term: term.get(), index: index.get(), results };
    Ok(Outgoing::new::<calls::Query>(&reply))
}

/// Tells the client which servers answer, so that it asks those first.
pub(super) fn mark_alive(shared: &Shared, result: &mut pb::QueryResult) {
    let chunks = match &mut result.result {
        Some(pb::query_result::Result::Extents(extents)) => &mut extents.chunks,
        Some(pb::query_result::Result::Chunks(chunks)) => &mut chunks.chunks,
        _ => return,
    };
    let soft = shared.soft();
    for info in chunks {
        for server in &mut info.servers {
            server.alive = soft.alive(ServerId(server.server), &shared.limits);
        }
    }
}

async fn open_chunk(shared: &Shared, request: pb::OpenChunkRequest) -> Answer {
    must_lead(shared)?;
    let layout = request.layout.unwrap_or_default();
    let refuse = |errno: crate::errno::Errno| {
        let reply = pb::OpenChunkReply { errno: errno.get(), ..Default::default() };
        Ok(Outgoing::new::<calls::OpenChunk>(&reply))
    };
    if crate::erasure::Layout::try_from(&layout).is_err() {
        return refuse(crate::errno::Errno::EINVAL);
    }
    if let Err(errno) = space::vet_growth(shared) {
        return refuse(errno);
    }
    let avoid: Vec<ServerId> = request.avoid.iter().map(|s| ServerId(*s)).collect();
    let candidates = servers::candidates(shared)?;
    // Seeded by the request, so that a retry of it makes the same choice.
    let seed = request.session.rotate_left(32) ^ request.request;
    let width = (layout.data as usize, layout.parity as usize);
    let chosen = placement::choose(&candidates, width.0, width.1, &avoid, seed)
        // Servers that one client can not reach are better than none.
        .or_else(|_| placement::choose(&candidates, width.0, width.1, &[], seed));
    let chosen = match chosen {
        Ok(chosen) => chosen,
        Err(no_room) => {
            tracing::warn!(layout = ?width, %no_room, "no room for a new chunk");
            return refuse(crate::errno::Errno::ENOSPC);
        }
    };
    let command = pb::OpenChunkCmd {
        session: request.session,
        request: request.request,
        layout: Some(layout),
        class: request.class,
        servers: chosen.iter().map(|s| s.get()).collect(),
    };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::OpenChunk(command)) };
    let (term, index, outcome) = shared.raft.propose(proposal).await.map_err(refusal)?;
    let chunk = match outcome.kind {
        Some(pb::outcome::Kind::Chunk(chunk)) if outcome.errno == 0 => chunk,
        _ => return refuse(crate::errno::Errno::new(outcome.errno)),
    };
    let view = shared.raft.view();
    let info =
        namespace::chunk_info(&view, ChunkId(chunk.id)).map_err(|error| shared.broken(&error))?;
    let mut reply =
        pb::OpenChunkReply { errno: 0, chunk: info, term: term.get(), index: index.get() };
    let soft = shared.soft();
    for server in reply.chunk.iter_mut().flat_map(|c| &mut c.servers) {
        let id = ServerId(server.server);
        server.alive = soft.alive(id, &shared.limits);
        server.incarnation = soft.servers.get(&id).map_or(0, |beat| beat.incarnation);
    }
    drop(soft);
    Ok(Outgoing::new::<calls::OpenChunk>(&reply))
}
