//! Answers the calls of clients and masters.

use super::{Shared, add, rebuild};
use crate::ids::Term;
use crate::namespace::HOLES_MAX;
use crate::pb;
use crate::seam;
use crate::store::{Append, Blocks, ReplicaId, Status, StoreError, Writer};
use crate::wire::{Call, Handler, Incoming, Outgoing, Peer, Refusal, RefusalCode, calls};
use crate::{bug, mark};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Reads up to this size are answered at once if their bytes are in memory.
const INLINE_READ_BYTES: u64 = 256 << 10;
/// Most replicas in one question about their state.
const STAT_REPLICAS_MAX: usize = 4096;

type Answer = Pin<Box<dyn Future<Output = Result<Outgoing, Refusal>> + Send>>;

pub(super) struct Answers(pub Arc<Shared>);

impl Handler for Answers {
    fn handle(self: Arc<Answers>, _peer: Arc<Peer>, request: Incoming) -> Answer {
        let shared = self.0.clone();
        Box::pin(async move {
            match request.method {
                calls::Append::METHOD => append(&shared, request).await,
                calls::Sync::METHOD => sync(&shared, &request).await,
                calls::Read::METHOD => read(&shared, &request).await,
                calls::Seal::METHOD => seal(&shared, &request).await,
                calls::Delete::METHOD => delete(&shared, &request).await,
                calls::Punch::METHOD => punch(&shared, &request).await,
                calls::Stat::METHOD => stat(&shared, &request).await,
                calls::Rebuild::METHOD => {
                    let question = request.decode::<calls::Rebuild>()?;
                    obey(&shared, question.term)?;
                    let reply = rebuild::rebuild(&shared, question, request.deadline).await?;
                    Ok(Outgoing::new::<calls::Rebuild>(&reply))
                }
                method => Err(Refusal::not_served(method)),
            }
        })
    }
}

/// The refusal that says so on the wire.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        let code = match &error {
            StoreError::Bad(_) => RefusalCode::BadRequest,
            StoreError::NoSuchReplica(_) => RefusalCode::NoSuchReplica,
            StoreError::WrongOffset { .. } => RefusalCode::WrongOffset,
            StoreError::NotDurable { .. } => RefusalCode::NotDurable,
            StoreError::Corrupt(_) | StoreError::Read(_) => RefusalCode::Corrupt,
            StoreError::DiskFailed(_) => RefusalCode::DiskFailed,
            StoreError::NoSpace(_) => RefusalCode::NoSpace,
            StoreError::Busy(_) => RefusalCode::Busy,
            StoreError::Closed => RefusalCode::ShuttingDown,
        };
        Refusal::new(code, error.to_string())
    }
}

/// The id in a request.
pub(super) fn replica(raw: Option<&pb::ReplicaId>) -> Result<ReplicaId, Refusal> {
    raw.and_then(ReplicaId::from_pb)
        .ok_or_else(|| Refusal::new(RefusalCode::BadRequest, "no such replica can be"))
}

fn obey(shared: &Shared, term: u64) -> Result<(), Refusal> {
    if shared.terms.obey(Term(term)) {
        return Ok(());
    }
    mark!("chunkserver: command of an old term refused");
    let known = shared.terms.highest();
    Err(Refusal::new(RefusalCode::StaleTerm, format!("{known} has begun, this is from t{term}")))
}

/// Rule A2: a replica of one server is not made by another that answers at its address, whose disk was lost, say: nobody
/// would ever look for it there, and the writer would count it as the other's.
///
/// Nor is one made by another start of the server than the masters knew when they opened its chunk: they may have deleted
/// the chunk, empty, since, and this start does not know what an earlier one was told to delete.
fn is_meant(shared: &Shared, question: &pb::AppendRequest) -> Result<(), Refusal> {
    let (server, incarnation) = (question.server, question.incarnation);
    let own = shared.known().server.map_or(0, |own| own.0);
    // STANDIN: whoever answers at an address is taken for the server that was there.
    if server != 0 && server != own && !bug!(STANDIN) {
        mark!("chunkserver: append to another server's replica refused");
        let what = format!("chunkserver {server} was expected, chunkserver {own} answers");
        return Err(Refusal::new(RefusalCode::WrongNode, what));
    }
    if incarnation != 0 && incarnation != shared.incarnation.0 {
        mark!("chunkserver: first append for another start refused");
        let what = format!("chunkserver {own} has started anew since the chunk was opened");
        return Err(Refusal::new(RefusalCode::WrongNode, what));
    }
    Ok(())
}

async fn append(shared: &Shared, request: Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Append>()?;
    let id = replica(question.replica.as_ref())?;
    is_meant(shared, &question)?;
    let Incoming { body, payload, memory, .. } = request;
    // What is decoded is all that is needed of it.
    drop(body);
    let bytes = payload.len();
    if bytes > shared.limits.append_bytes_max {
        let what = format!("append of {bytes} bytes, most are {}", shared.limits.append_bytes_max);
        return Err(Refusal::new(RefusalCode::BadRequest, what));
    }
    let (sync, create) = (question.sync, question.create);
    let append = Append::checked(id, question.offset, payload, question.crcs, create)?;
    let length = shared.append(append, (sync, create), &memory).await?;
    add(&shared.counters.appends, 1);
    add(&shared.counters.appended_bytes, bytes);
    let reply = pb::AppendReply { length, incarnation: shared.incarnation.0 };
    Ok(Outgoing::new::<calls::Append>(&reply))
}

/// Rule A1: answers for the bytes that this very start of the process acknowledged, and only if they reach
/// as far as the client needs.
async fn sync(shared: &Shared, request: &Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Sync>()?;
    let id = replica(question.replica.as_ref())?;
    // REBOOT: what another start of the process acknowledged is taken for synced.
    if question.incarnation != shared.incarnation.0 && !bug!(REBOOT) {
        mark!("chunkserver: sync of another incarnation refused");
        let what = "restarted since the bytes were acknowledged";
        return Err(Refusal::new(RefusalCode::WrongIncarnation, what));
    }
    let durable = match shared.found(id)?.sync(id, question.up_to).await {
        Err(StoreError::NotDurable { wanted, .. }) if bug!(REBOOT) => wanted,
        durable => durable?,
    };
    Ok(Outgoing::new::<calls::Sync>(&pb::SyncReply { durable }))
}

async fn read(shared: &Shared, request: &Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Read>()?;
    let id = replica(question.replica.as_ref())?;
    let (offset, len) = (question.offset, question.len);
    let writer = shared.found(id)?;
    let store = writer.store();
    let mut blocks = read_blocks(shared, writer, id, offset, len).await?;
    if blocks.length < offset.saturating_add(len) && store.status(id).is_some_and(|s| s.corrupt) {
        // What is missing may be readable by now; if not, what is there is the answer.
        let _ = writer.review(id).await;
        blocks = read_blocks(shared, writer, id, offset, len).await?;
    }
    let Blocks { offset, length, crcs, data } = blocks;
    add(&shared.counters.reads, 1);
    add(&shared.counters.read_bytes, data.len());
    let reply = pb::ReadReply { crcs, offset, length };
    Ok(Outgoing::new::<calls::Read>(&reply).with_payload(vec![data]))
}

/// From memory where it is resident and little, else where blocking is allowed.
async fn read_blocks(
    shared: &Shared,
    writer: &Writer,
    id: ReplicaId,
    offset: u64,
    len: u64,
) -> Result<Blocks, StoreError> {
    if len <= INLINE_READ_BYTES {
        let found = writer.store().read_resident(id, offset, len)?;
        seam::settle().await;
        if let Some(blocks) = found {
            shared.counters.resident_reads.fetch_add(1, Ordering::Relaxed);
            return Ok(blocks);
        }
    }
    writer.read(id, offset, len).await
}

/// A replica that is shorter than asked, or not here, is not sealed; the answer says how long it is.
async fn seal(shared: &Shared, request: &Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Seal>()?;
    obey(shared, question.term)?;
    let id = replica(question.replica.as_ref())?;
    let sealed = match shared.found(id) {
        Ok(writer) => writer.seal(id, question.length).await,
        Err(error) => Err(error),
    };
    let length = match sealed {
        Ok(length) => length,
        Err(StoreError::NotDurable { length, .. }) => length,
        Err(StoreError::NoSuchReplica(_)) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(Outgoing::new::<calls::Seal>(&pb::SealReply { length }))
}

async fn delete(shared: &Shared, request: &Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Delete>()?;
    obey(shared, question.term)?;
    let id = replica(question.replica.as_ref())?;
    shared.writers.iter().for_each(|writer| writer.store().disown(id));
    match shared.writer_of(id) {
        Some(writer) => writer.delete(id).await?,
        // A create that failed may have left its file, or a name that a power loss brings back: a disk that is out of
        // use can not say, the others settle what they owe.
        None => {
            for writer in &shared.writers {
                writer.delete(id).await?;
            }
        }
    }
    Ok(Outgoing::new::<calls::Delete>(&pb::DeleteReply {}))
}

async fn punch(shared: &Shared, request: &Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Punch>()?;
    obey(shared, question.term)?;
    let id = replica(question.replica.as_ref())?;
    if question.holes.len() > HOLES_MAX {
        return Err(Refusal::new(RefusalCode::BadRequest, "too many holes at once"));
    }
    shared.found(id)?.punch(id, question.holes).await?;
    Ok(Outgoing::new::<calls::Punch>(&pb::PunchReply {}))
}

async fn stat(shared: &Shared, request: &Incoming) -> Result<Outgoing, Refusal> {
    let question = request.decode::<calls::Stat>()?;
    if question.replicas.len() > STAT_REPLICAS_MAX {
        return Err(Refusal::new(RefusalCode::BadRequest, "too many replicas at once"));
    }
    let mut states = Vec::with_capacity(question.replicas.len());
    for raw in &question.replicas {
        let id = replica(Some(raw))?;
        if question.verify
            && let Some(writer) = shared.writer_of(id)
        {
            // What they find shows in the status.
            let _ = writer.review(id).await;
            let _ = writer.verify(id).await;
        }
        let status = shared.writer_of(id).and_then(|writer| writer.store().status(id));
        states.push(status.map_or_else(|| absent(*raw), state));
    }
    Ok(Outgoing::new::<calls::Stat>(&pb::StatReply { states }))
}

fn absent(replica: pb::ReplicaId) -> pb::ReplicaState {
    pb::ReplicaState { replica: Some(replica), ..Default::default() }
}

/// A replica's state for the wire.
pub(super) fn state(status: Status) -> pb::ReplicaState {
    pb::ReplicaState {
        replica: Some(status.id.to_pb()),
        present: true,
        length: status.length,
        durable: status.durable,
        sealed: status.sealed,
        corrupt: status.corrupt,
    }
}
