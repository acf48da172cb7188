//! What the leader does for an administrator.

use super::super::Shared;
use super::super::{rpc, servers, space};
use super::{Failure, status};
use crate::erasure::Layout;
use crate::errno::Errno;
use crate::ids::{NodeId, ROOT, ServerId, SessionId};
use crate::limits::NAME_BYTES_MAX;
use crate::namespace;
use crate::namespace::tables::{ClassNames, Classes, Masters, Servers};
use crate::pb::{self, admin_answer::Answer, admin_call::Call, outcome, proposal};
use crate::seam;
use crate::tables::{Read, View};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// How long the admission of a master that is not there yet is waited for.
const ADMISSION_DEADLINE: Duration = Duration::from_secs(20);
/// Extents of a file that its description names.
const EXTENTS_MAX: usize = 8192;

/// Carries out a call on the leader.
pub(super) async fn carry_out(shared: &Arc<Shared>, call: Call) -> Result<Answer, Failure> {
    let done = |id: u64| Answer::Done(pb::AdminReply { id });
    Ok(match call {
        Call::Status(_) => Answer::Status(status::whole(shared).await?),
        Call::AddMaster(request) => done(add_master(shared, &request.address).await?),
        Call::RemoveMaster(request) => done(remove_master(shared, NodeId(request.node)).await?),
        Call::DrainServer(request) => done(drain(shared, ServerId(request.server)).await?),
        Call::CreateClass(request) => done(create_class(shared, request).await?),
        Call::ListClasses(_) => Answer::Classes(list_classes(&point(shared).await?, shared)?),
        Call::FileInfo(request) => Answer::File(file_info(shared, &request.path).await?),
        Call::SetClass(request) => done(set_class(shared, request).await?),
    })
}

/// The state at a linearizable point.
pub(super) async fn point(shared: &Shared) -> Result<View, Failure> {
    shared.raft.read_index().await?;
    Ok(shared.raft.view())
}

async fn propose(shared: &Shared, kind: proposal::Kind) -> Result<pb::Outcome, Failure> {
    let (_, _, outcome) = shared.raft.propose(pb::Proposal { kind: Some(kind) }).await?;
    Ok(outcome)
}

/// Waits until the master at `address`, which asks for admission by itself when it starts, is a voter.
async fn add_master(shared: &Shared, address: &str) -> Result<u64, Failure> {
    let give_up = seam::now() + ADMISSION_DEADLINE;
    loop {
        let found = shared.raft.members().into_iter().find(|member| member.address == address);
        match found {
            Some(member) if member.voter => return Ok(member.node.get()),
            _ if seam::now() < give_up && shared.raft.is_leader() => {}
            Some(member) => {
                let text = format!("{} at {address} is still catching up: ask again", member.node);
                return Err(Failure::new(Code::FailedPrecondition, text));
            }
            None => {
                let text = format!(
                    "no master at {address} asks to be admitted: start one there with an empty data directory \
                     and --join naming the masters"
                );
                return Err(Failure::new(Code::FailedPrecondition, text));
            }
        }
        tokio::time::sleep(shared.limits.heartbeat).await;
    }
}

async fn remove_master(shared: &Shared, node: NodeId) -> Result<u64, Failure> {
    let known = point(shared).await?.get::<Masters>(&node);
    if known.map_err(|error| Failure::broken(shared, &error))?.is_none() {
        return Err(Failure::new(Code::NotFound, format!("there never was a master {node}")));
    }
    shared.raft.remove_master(node).await?;
    Ok(node.get())
}

async fn drain(shared: &Shared, server: ServerId) -> Result<u64, Failure> {
    let row = point(shared).await?.get::<Servers>(&server);
    let row = row.map_err(|error| Failure::broken(shared, &error))?;
    match row.map(|row| row.state()) {
        None => Err(Failure::new(Code::NotFound, format!("there is no chunkserver {server}"))),
        Some(pb::ServerState::Draining) => Ok(server.get()),
        Some(pb::ServerState::Active) => {
            servers::set_state(shared, server, pb::ServerState::Draining).await?;
            tracing::info!(%server, "draining");
            Ok(server.get())
        }
        Some(state) => {
            let text = format!(
                "chunkserver {server} is {}: its chunks are repaired elsewhere already",
                state.as_str_name()
            );
            Err(Failure::new(Code::FailedPrecondition, text))
        }
    }
}

async fn create_class(shared: &Shared, request: pb::CreateClassRequest) -> Result<u64, Failure> {
    let invalid = |text: String| Failure::new(Code::InvalidArgument, text);
    if request.name.is_empty() || request.name.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("a class needs a name of at most {NAME_BYTES_MAX} bytes")));
    }
    let layout = request.layout.unwrap_or_default();
    Layout::try_from(&layout).map_err(|error| invalid(error.to_string()))?;
    let what = format!("class {}", request.name);
    space::vet_growth(shared).map_err(|errno| Failure::errno(&what, errno))?;
    let command = pb::PutClassCmd { name: request.name, layout: Some(layout) };
    let outcome = propose(shared, proposal::Kind::PutClass(command)).await?;
    match outcome.kind {
        Some(outcome::Kind::Id(id)) if outcome.errno == 0 => Ok(id),
        _ => Err(Failure::errno(&what, Errno::new(outcome.errno))),
    }
}

fn list_classes(view: &View, shared: &Shared) -> Result<pb::ListClassesReply, Failure> {
    let rows = view.range::<Classes>(&0, None).map(|row| row.map(|(_, class)| class));
    let classes: Vec<pb::StorageClass> =
        rows.collect::<Result<_, _>>().map_err(|error| Failure::broken(shared, &error))?;
    let default_class = classes.iter().find(|class| class.id == 0).cloned();
    Ok(pb::ListClassesReply { classes, default_class })
}

/// One query at a point that is linearizable already.
fn ask(
    shared: &Shared,
    view: &View,
    what: &str,
    query: pb::query::Query,
) -> Result<pb::QueryResult, Failure> {
    let query = pb::Query { query: Some(query) };
    let mut result = namespace::query(view, &shared.limits, &query)
        .map_err(|error| Failure::broken(shared, &error))?;
    Errno::check(result.errno).map_err(|errno| Failure::errno(what, errno))?;
    rpc::mark_alive(shared, &mut result);
    Ok(result)
}

/// The attributes of what a path from the root names. Symlinks are not followed.
fn resolve(shared: &Shared, view: &View, path: &[u8]) -> Result<pb::Attr, Failure> {
    let what = String::from_utf8_lossy(path).into_owned();
    let root = pb::query::Query::Getattr(pb::GetattrQuery { inode: ROOT.get() });
    let mut attr = attr_of(ask(shared, view, &what, root)?)?;
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    for name in names {
        let name = bytes::Bytes::copy_from_slice(name);
        let lookup = pb::LookupQuery { parent: attr.inode, name };
        attr = attr_of(ask(shared, view, &what, pb::query::Query::Lookup(lookup))?)?;
    }
    Ok(attr)
}

fn attr_of(result: pb::QueryResult) -> Result<pb::Attr, Failure> {
    match result.result {
        Some(pb::query_result::Result::Attr(attr)) => Ok(attr),
        _ => Err(Failure::new(Code::Internal, "the namespace gave no attributes")),
    }
}

/// Where a file's bytes are. Inline data is counted, not shown.
async fn file_info(shared: &Shared, path: &[u8]) -> Result<pb::FileInfoReply, Failure> {
    let view = point(shared).await?;
    let attr = resolve(shared, &view, path)?;
    let mut reply = pb::FileInfoReply { attr: Some(attr), ..Default::default() };
    if attr.kind() != pb::FileKind::Regular {
        return Ok(reply);
    }
    let what = String::from_utf8_lossy(path).into_owned();
    let mut from = 0;
    while reply.extents.len() < EXTENTS_MAX {
        let query = pb::ExtentsQuery { inode: attr.inode, from, to: 0, limit: 1024 };
        let result = ask(shared, &view, &what, pb::query::Query::Extents(query))?;
        let Some(pb::query_result::Result::Extents(part)) = result.result else { break };
        for mut extent in part.extents {
            from = extent.file_off + extent.len;
            if let Some(pb::extent::Source::Inline(data)) = &mut extent.source {
                data.clear();
            }
            reply.extents.push(extent);
        }
        let known = |info: &pb::ChunkInfo| reply.chunks.iter().any(|seen| seen.chunk == info.chunk);
        let new: Vec<_> = part.chunks.into_iter().filter(|info| !known(info)).collect();
        reply.chunks.extend(new);
        if part.end {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(reply)
}

async fn set_class(shared: &Shared, request: pb::SetClassRequest) -> Result<u64, Failure> {
    let view = point(shared).await?;
    let broken = |error| Failure::broken(shared, &error);
    let attr = resolve(shared, &view, &request.path)?;
    let id = view.get::<ClassNames>(&request.class.clone().into_bytes()).map_err(broken)?;
    let Some(id) = id.map(|row| row.id) else {
        let text = format!("there is no class {}: see `mooseng class list`", request.class);
        return Err(Failure::new(Code::NotFound, text));
    };
    let class = view.get::<Classes>(&id).map_err(broken)?.unwrap_or_default();
    fits(shared, &class)?;
    let setattr = pb::SetattrOp { inode: attr.inode, class: Some(class.id), ..Default::default() };
    let what = String::from_utf8_lossy(&request.path).into_owned();
    one_operation(shared, pb::op::Op::Setattr(setattr), &what).await?;
    Ok(class.id.into())
}

/// Refuses a class that is wider than the cluster: nothing could be written in it.
fn fits(shared: &Shared, class: &pb::StorageClass) -> Result<(), Failure> {
    let layout = class.layout.unwrap_or_default();
    let rows = servers::rows(shared).map_err(|error| Failure::broken(shared, &error))?;
    let usable = rows.iter().filter(|row| row.state() == pb::ServerState::Active).count();
    let width = layout.data as usize + layout.parity as usize;
    if width <= usable {
        return Ok(());
    }
    let text = format!(
        "class {} ({}+{}) needs {width} chunkservers, the cluster has {usable}: add some, or choose a narrower class",
        class.name, layout.data, layout.parity
    );
    Err(Failure::new(Code::FailedPrecondition, text))
}

/// Carries out one operation in a session of its own.
async fn one_operation(shared: &Shared, op: pb::op::Op, what: &str) -> Result<(), Failure> {
    let open = pb::OpenSessionCmd {
        client_nonce: seam::rng::random_u64() | 1,
        host: "administration".to_owned(),
    };
    let opened = propose(shared, proposal::Kind::OpenSession(open)).await?;
    let Some(outcome::Kind::Session(session)) = opened.kind else {
        return Err(Failure::errno("session", Errno::new(opened.errno)));
    };
    // Watched like any other, so that it expires if this call is dropped half-way.
    shared.soft().sessions.insert(SessionId(session.session), seam::now());
    let batch = pb::Batch {
        session: session.session,
        first_seq: 1,
        acked_seq: 0,
        ops: vec![pb::Op { op: Some(op) }],
    };
    let outcome = propose(shared, proposal::Kind::Batch(batch)).await?;
    let end = pb::EndSessionCmd { session: session.session, expired: false };
    propose(shared, proposal::Kind::EndSession(end)).await?;
    shared.soft().sessions.remove(&SessionId(session.session));
    let Some(outcome::Kind::Batch(reply)) = outcome.kind else {
        return Err(Failure::errno(what, Errno::new(outcome.errno)));
    };
    let errno = match reply.results.first() {
        Some(result) if reply.errno == 0 => result.errno,
        _ => reply.errno,
    };
    Errno::check(errno).map_err(|errno| Failure::errno(what, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_codes_that_say_whether_to_ask_again() {
        use crate::raft::ProposeError;
        let code = |error: ProposeError| Failure::from(error).code;
        assert_eq!(code(ProposeError::NotLeader(None)), Code::Unavailable);
        assert_eq!(code(ProposeError::Refused("x".to_owned())), Code::FailedPrecondition);
        assert_eq!(code(ProposeError::Deadline), Code::Unknown);
        assert_eq!(Failure::errno("/a", Errno::ENOENT).code, Code::NotFound);
        assert!(Failure::errno("/a", Errno::ENOENT).message.starts_with("/a: "));
    }
}
