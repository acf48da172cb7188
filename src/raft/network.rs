//! openraft's network over [`crate::wire`], and the sending side of snapshots.

use super::clocks::Clocks;
use super::log::Log;
use super::machine::SnapshotBody;
use super::purge::Held;
use super::types::{
    Master, Types, Vote, entry_bytes, id_from_pb, id_to_pb, members_to_pb, opt_id_from_pb,
    vote_from_pb, vote_to_pb,
};
use crate::ids::{NodeId, Uuid};
use crate::limits::Limits;
use crate::pb;
use crate::seam;
use crate::tables::View;
use crate::wire::{CallError, Pool, calls};
use crate::{bug, fault, mark};
use bytes::{BufMut, Bytes, BytesMut};
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot, SnapshotMeta};
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Pieces sent again before the whole snapshot is given up.
const SNAPSHOT_RETRIES: u32 = 8;

type AppendError = RPCError<u64, Master, RaftError<u64>>;

/// What this node says about itself in every call to a peer.
#[derive(Clone)]
pub struct Peers {
    pub pool: Arc<Pool>,
    pub limits: Arc<Limits>,
    pub incarnation: Uuid,
    pub log: Log,
    pub held: Held,
    pub clocks: Arc<Clocks>,
    /// The node itself, once it is there.
    pub raft: Arc<OnceLock<openraft::Raft<Types>>>,
}

impl Peers {
    /// Waits, for a heartbeat interval at most, until the node has done what its replications have told it so far.
    ///
    /// openraft (0.9.25) ends the replication to a peer that knows a higher vote before it hears of that. What it
    /// was told of this peer earlier may ask for a snapshot: that is handed to the replication, and if that has
    /// ended, the whole node ends ("replication channel closed"). A request is answered between two lots of what
    /// replications tell, so after two of them all that was told before the first is done.
    async fn settled(&self) {
        let Some(raft) = self.raft.get() else { return };
        let twice = async {
            raft.with_raft_state(|_| ()).await?;
            raft.with_raft_state(|_| ()).await
        };
        // A node that has no time is told late; a node that has ended needs nothing.
        let _ = tokio::time::timeout(self.limits.heartbeat, twice).await;
    }

    /// One call, whose answer also says what the clock shows there.
    async fn append(
        &self,
        target: NodeId,
        master: &Master,
        request: &pb::RaftAppendRequest,
        payload: Vec<Bytes>,
        ttl: Duration,
    ) -> Result<pb::RaftAppendReply, CallError> {
        let sent = seam::now();
        let call = self.pool.call::<calls::RaftAppend>(&master.address, request, payload, ttl);
        let (reply, _) = call.await?;
        self.clocks.answered(target.0, reply.clock_ms, sent);
        Ok(reply)
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Master) -> Link {
        Link { peers: self.clone(), target: NodeId(target), master: node.clone(), appending: None }
    }
}

/// The way to one peer.
pub struct Link {
    peers: Peers,
    target: NodeId,
    master: Master,
    /// openraft gives up an append after a heartbeat interval and sends it again; the call itself may take
    /// longer, so it goes on in a task and the repetition waits for that one.
    appending: Option<(pb::RaftAppendRequest, Call)>,
}

struct Call(tokio::task::JoinHandle<Result<pb::RaftAppendReply, CallError>>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What makes a failed call an error of openraft. It waits a little before it tries again.
fn unreachable(error: &CallError) -> Unreachable {
    Unreachable::new(error)
}

fn malformed(why: String) -> NetworkError {
    NetworkError::new(&CallError::Lost(format!("malformed reply: {why}")))
}

impl Link {
    fn append_request(
        &self,
        rpc: &AppendEntriesRequest<Types>,
    ) -> (pb::RaftAppendRequest, Vec<Bytes>) {
        let payload: Vec<Bytes> = rpc.entries.iter().map(|e| entry_bytes(&e.payload)).collect();
        let heads = rpc.entries.iter().zip(&payload).map(|(entry, bytes)| pb::RaftEntryHead {
            log_id: Some(id_to_pb(&entry.log_id)),
            len: u32::try_from(bytes.len()).expect("an entry is bounded"),
        });
        let request = pb::RaftAppendRequest {
            vote: Some(vote_to_pb(&rpc.vote)),
            prev: rpc.prev_log_id.as_ref().map(id_to_pb),
            commit: rpc.leader_commit.as_ref().map(id_to_pb),
            heads: heads.collect(),
            from_incarnation: self.peers.incarnation.bytes(),
            to: self.target.0,
            to_incarnation: self.master.incarnation.bytes(),
            median_ms: self.peers.clocks.median_ms(),
        };
        (request, payload)
    }

    async fn append(
        &mut self,
        request: pb::RaftAppendRequest,
        payload: Vec<Bytes>,
        ttl: Duration,
    ) -> Result<pb::RaftAppendReply, CallError> {
        if payload.is_empty() {
            return self.peers.append(self.target, &self.master, &request, payload, ttl).await;
        }
        let same = |begun: &pb::RaftAppendRequest| {
            (&begun.vote, &begun.prev, &begun.heads)
                == (&request.vote, &request.prev, &request.heads)
        };
        if self.appending.as_ref().is_none_or(|(begun, _)| !same(begun)) {
            let (peers, target, master) = (self.peers.clone(), self.target, self.master.clone());
            let begun = request.clone();
            let call = async move {
                let deadline = peers.limits.append_deadline;
                peers.append(target, &master, &request, payload, deadline).await
            };
            self.appending = Some((begun, Call(seam::spawn(call))));
        }
        let (_, call) = self.appending.as_mut().expect("just set");
        let result = (&mut call.0).await;
        self.appending = None;
        result.unwrap_or_else(|error| Err(CallError::Lost(error.to_string())))
    }

    async fn send_piece(
        &self,
        request: &pb::RaftSnapshotRequest,
        piece: &Bytes,
    ) -> Result<pb::RaftSnapshotReply, CallError> {
        let mut retries = 0;
        loop {
            let payload = if piece.is_empty() { Vec::new() } else { vec![piece.clone()] };
            let deadline = self.peers.limits.append_deadline * 5;
            let call = self.peers.pool.call::<calls::RaftSnapshot>(
                &self.master.address,
                request,
                payload,
                deadline,
            );
            match call.await {
                Ok((reply, _)) => return Ok(reply),
                Err(error) if retries == SNAPSHOT_RETRIES => return Err(error),
                Err(_) => retries += 1,
            }
            tokio::time::sleep(self.peers.limits.heartbeat).await;
        }
    }

    /// Heartbeats beside a snapshot: openraft sends none to who is being sent one (0.9.25), and a follower that
    /// hears nothing for as long as a large one takes would depose its leader, again and again.
    async fn beat(&self, vote: Vote) -> Infallible {
        let mut request = pb::RaftAppendRequest {
            vote: Some(vote_to_pb(&vote)),
            from_incarnation: self.peers.incarnation.bytes(),
            to: self.target.0,
            to_incarnation: self.master.incarnation.bytes(),
            ..Default::default()
        };
        let every = self.peers.limits.heartbeat;
        loop {
            tokio::time::sleep(every).await;
            if bug!(MUTE) {
                continue;
            }
            request.median_ms = self.peers.clocks.median_ms();
            // What it answers, the next piece of the snapshot hears too.
            let _ = self.peers.append(self.target, &self.master, &request, Vec::new(), every).await;
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta<u64, Master>,
        view: View,
    ) -> Result<Vote, StreamingError<Types, Fatal<u64>>> {
        let mut request = pb::RaftSnapshotRequest {
            vote: Some(vote_to_pb(&vote)),
            meta: Some(pb::RaftSnapshotMeta {
                last_log: meta.last_log_id.as_ref().map(id_to_pb),
                membership: Some(members_to_pb(&meta.last_membership)),
                // The same state may be sent twice by two streams: each has its own name.
                id: format!("{}-{:016x}", meta.snapshot_id, seam::rng::random_u64()),
                state_hash: view.hash(),
            }),
            offset: 0,
            done: false,
            from_incarnation: self.peers.incarnation.bytes(),
            to: self.target.0,
            to_incarnation: self.master.incarnation.bytes(),
        };
        let mut after = Vec::new();
        loop {
            let (view, from) = (view.clone(), after.clone());
            let short = fault!("raft: snapshot piece cut short");
            let bytes = if short { 1 } else { self.peers.limits.snapshot_piece_bytes };
            let cut = seam::blocking(move || cut_piece(&view, &from, bytes)).await;
            let (piece, last) = cut.map_err(|error| {
                let error = openraft::AnyError::error(error);
                openraft::StorageError::from(openraft::StorageIOError::read_snapshot(None, error))
            })?;
            request.done = last.is_none();
            let reply = self.send_piece(&request, &piece).await;
            let reply = reply.map_err(|error| unreachable(&error))?;
            let theirs = vote_from_pb(&reply.vote).map_err(malformed)?;
            if theirs > vote || request.done && reply.installed {
                return Ok(theirs);
            }
            request.offset += piece.len() as u64;
            if reply.next_offset != request.offset {
                return Err(malformed(format!("wants offset {}", reply.next_offset)).into());
            }
            let Some(last) = last else {
                return Err(malformed("not installed".to_owned()).into());
            };
            after = last;
        }
    }
}

/// Rows behind the key `after`, `bytes` of them or one more, each as two lengths, key and row; and the last key,
/// unless that was the end.
fn cut_piece(
    view: &View,
    after: &[u8],
    bytes: usize,
) -> Result<(Bytes, Option<Vec<u8>>), crate::tables::TableError> {
    let mut from = after.to_vec();
    if !from.is_empty() {
        from.push(0);
    }
    let mut out = BytesMut::new();
    let mut last = None;
    for row in view.rows_from(&from) {
        let (key, row) = row?;
        out.put_u32_le(u32::try_from(key.len()).expect("a key is bounded"));
        out.put_u32_le(u32::try_from(row.len()).expect("a row is bounded"));
        out.put_slice(&key);
        out.put_slice(&row);
        if out.len() >= bytes {
            last = Some(key.to_vec());
            break;
        }
    }
    Ok((out.freeze(), last))
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, AppendError> {
        // A leader that was deposed may be sending on: entries read after others took the place of its own do
        // not follow the one that it remembers before them, and a follower that has not heard of the new term
        // would take them for what they are not.
        // The same if some were purged meanwhile.
        let due = rpc.prev_log_id.as_ref().map_or(0, |prev| prev.index + 1);
        let next = rpc.entries.first().is_none_or(|entry| entry.log_id.index == due);
        let follows = rpc.prev_log_id.as_ref().is_none_or(|prev| self.peers.log.holds(prev));
        let in_order = next && follows;
        if !in_order && !rpc.entries.is_empty() {
            mark!("raft: entries that do not follow are not sent");
            let why = CallError::NotSent("the log was changed meanwhile".to_owned());
            return Err(RPCError::Unreachable(unreachable(&why)));
        }
        let (request, payload) = self.append_request(&rpc);
        let reply = self.append(request, payload, option.hard_ttl()).await;
        // M05: an append without an answer counts as one more copy.
        if bug!(M05) && reply.is_err() {
            return Ok(AppendEntriesResponse::Success);
        }
        let reply = reply.map_err(|error| RPCError::Unreachable(unreachable(&error)))?;
        use pb::raft_append_reply::Result as R;
        Ok(match reply.result() {
            R::Success => AppendEntriesResponse::Success,
            R::Partial => AppendEntriesResponse::PartialSuccess(
                opt_id_from_pb(&reply.matched).map_err(malformed)?,
            ),
            R::Conflict => AppendEntriesResponse::Conflict,
            R::HigherVote => {
                let theirs = vote_from_pb(&reply.vote).map_err(malformed)?;
                self.peers.settled().await;
                AppendEntriesResponse::HigherVote(theirs)
            }
            R::Unspecified => return Err(malformed("no result".to_owned()).into()),
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, Master, RaftError<u64>>> {
        let request = pb::RaftVoteRequest {
            vote: Some(vote_to_pb(&rpc.vote)),
            last_log: rpc.last_log_id.as_ref().map(id_to_pb),
            from_incarnation: self.peers.incarnation.bytes(),
            to: self.target.0,
            to_incarnation: self.master.incarnation.bytes(),
        };
        let (pool, ttl) = (&self.peers.pool, option.hard_ttl());
        let call = pool.call::<calls::RaftVote>(&self.master.address, &request, Vec::new(), ttl);
        let (reply, _) = call.await.map_err(|error| RPCError::Unreachable(unreachable(&error)))?;
        Ok(VoteResponse {
            vote: vote_from_pb(&reply.vote).map_err(malformed)?,
            vote_granted: reply.granted,
            last_log_id: reply.last_log.as_ref().map(id_from_pb).transpose().map_err(malformed)?,
        })
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let SnapshotBody::Outgoing(view) = *snapshot.snapshot else {
            return Err(malformed("the snapshot has no rows".to_owned()).into());
        };
        self.peers.held.begin(self.target.0, snapshot.meta.last_log_id.as_ref());
        let mut cancel = pin!(cancel);
        let mut sending = pin!(self.send_snapshot(vote, snapshot.meta, view));
        let mut beating = pin!(self.beat(vote));
        tokio::select! {
            biased;
            closed = &mut cancel => Err(closed.into()),
            sent = &mut sending => sent.map(SnapshotResponse::new),
            never = &mut beating => match never {},
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.peers.limits.heartbeat * 2))
    }
}
