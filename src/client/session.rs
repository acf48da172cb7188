//! The session: one ordered stream of batches, exactly once each.
//!
//! Operations of all callers queue up; one batch is in flight, and what waits meanwhile is the next batch. A
//! batch without an answer is sent again, with the same sequence numbers, until some leader answers (rule B1):
//! callers give up at the operation deadline, the stream does not, because it cannot go on before it knows.
//! When the masters expired the session, what was in flight has an unknown outcome and never moves to another
//! session; a new one is opened for the rest.

use super::masters::{MasterError, Masters};
use super::meta::Meta;
use crate::errno::Errno;
use crate::ids::{InodeId, SessionId};
use crate::limits::Limits;
use crate::pb::{self, op};
use crate::seam::{self, Mono};
use crate::wire::calls;
use prost::Message;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, oneshot};

/// Why an operation has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The session ended; the operation may have been executed.
    Expired,
    /// No answer before the operation deadline; it may yet be executed.
    TimedOut,
    /// The client is going down.
    Closed,
}

impl From<Lost> for Errno {
    fn from(_: Lost) -> Errno {
        Errno::EIO
    }
}

type Done = oneshot::Sender<Result<pb::OpResult, Lost>>;

struct Queued {
    op: op::Op,
    /// `None` for what nobody waits for.
    done: Option<Done>,
    asked: Mono,
}

/// The present session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its number.
    pub id: SessionId,
    /// Counts the sessions of this client, from 1. What belongs to a session remembers this.
    pub generation: u64,
}

struct State {
    current: Current,
    /// The session is over and another is to be opened.
    ended: bool,
    next_seq: u64,
    ids: VecDeque<(u64, u64)>,
    range: u32,
    refilling: bool,
    queue: VecDeque<Queued>,
    /// Something in the queue is waited for.
    urgent: bool,
    /// The stream is under way.
    streaming: bool,
    queued: u64,
    done: u64,
    closed: bool,
    batches: u64,
}

/// A client's session and its stream.
pub struct Session {
    masters: Arc<Masters>,
    meta: Arc<Meta>,
    limits: Arc<Limits>,
    host: String,
    /// Where the stream runs, also if it is begun on a thread of the kernel's requests.
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
    progress: Notify,
    room: Semaphore,
}

struct Batch {
    request: pb::Batch,
    generation: u64,
    entries: Vec<Queued>,
}

/// What the stream does next.
enum Next {
    Batch(Batch),
    /// The session is over.
    Reopen,
    /// Nothing waits that somebody waits for; whoever brings something starts the stream again.
    Rest,
    /// The client is closed.
    End,
}

impl Session {
    /// Opens a session, tried until `until`.
    pub async fn open(
        masters: Arc<Masters>,
        meta: Arc<Meta>,
        host: String,
        until: Mono,
    ) -> Result<Arc<Session>, MasterError> {
        let limits = masters.limits.clone();
        let opened = open_session(&masters, &host, until).await?;
        let mut state = State {
            current: Current { id: SessionId(0), generation: 0 },
            ended: false,
            next_seq: 1,
            ids: VecDeque::new(),
            range: 1,
            refilling: false,
            queue: VecDeque::new(),
            urgent: false,
            streaming: false,
            queued: 0,
            done: 0,
            closed: false,
            batches: 0,
        };
        state.begin(&opened);
        Ok(Arc::new(Session {
            room: Semaphore::new(limits.batch_ops_max * 16),
            masters,
            meta,
            limits,
            host,
            runtime: tokio::runtime::Handle::current(),
            state: Mutex::new(state),
            progress: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that new work belongs to.
    pub fn current(&self) -> Current {
        self.state().current
    }

    /// Whether `generation` is over.
    pub fn is_over(&self, generation: u64) -> bool {
        let state = self.state();
        state.ended || state.current.generation != generation
    }

    /// The session that what is written now belongs to: the next one if the present one is over.
    pub fn writing(&self) -> u64 {
        self.lost() + 1
    }

    /// Operations answered, batches sent, sessions opened.
    pub fn counts(&self) -> (u64, u64, u64) {
        let state = self.state();
        (state.done, state.batches, state.current.generation)
    }

    /// Sessions that were over before the client was.
    pub fn lost(&self) -> u64 {
        let state = self.state();
        state.current.generation - 1 + u64::from(state.ended)
    }

    /// Executes one operation, in order after all that were submitted before; its errno is the error.
    pub async fn run(self: &Arc<Session>, op: op::Op) -> Result<pb::OpResult, Errno> {
        let result = self.execute(op).await?;
        Errno::check(result.errno)?;
        Ok(result)
    }

    /// [`Session::run`] with the whole result of an operation that the masters refused.
    pub async fn execute(self: &Arc<Session>, op: op::Op) -> Result<pb::OpResult, Lost> {
        let deadline = self.limits.operation_deadline;
        let waiting = async {
            let _permit = self.room.acquire().await.map_err(|_| Lost::Closed)?;
            self.submit(op)?.await.unwrap_or(Err(Lost::Closed))
        };
        match tokio::time::timeout(deadline, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => {
                crate::mark!("operation gave up at its deadline");
                Err(Lost::TimedOut)
            }
        }
    }

    fn submit(
        self: &Arc<Session>,
        op: op::Op,
    ) -> Result<oneshot::Receiver<Result<pb::OpResult, Lost>>, Lost> {
        let (done, outcome) = oneshot::channel();
        let mut state = self.state();
        if state.closed {
            return Err(Lost::Closed);
        }
        state.push(Queued { op, done: Some(done), asked: seam::now() });
        state.urgent = true;
        drop(state);
        self.go_on();
        Ok(outcome)
    }

    /// Queues an operation that nobody waits for; it travels with the next one that somebody waits for, or
    /// with the next [`Session::kick`].
    pub fn submit_lazy(self: &Arc<Session>, op: op::Op) {
        let mut state = self.state();
        if !state.closed {
            state.push(Queued { op, done: None, asked: seam::now() });
        }
        let many = state.queue.len() >= self.limits.batch_ops_max;
        drop(state);
        if many {
            self.kick();
        }
    }

    /// Sends what waits.
    pub fn kick(self: &Arc<Session>) {
        let mut state = self.state();
        if !state.queue.is_empty() {
            state.urgent = true;
            drop(state);
            self.go_on();
        }
    }

    /// Waits until everything submitted before is answered.
    pub async fn barrier(self: &Arc<Session>) -> Result<(), Errno> {
        let upto = self.state().queued;
        self.kick();
        let waiting = async {
            loop {
                let progress = self.progress.notified();
                let mut progress = std::pin::pin!(progress);
                progress.as_mut().enable();
                if self.state().done >= upto {
                    return;
                }
                progress.await;
            }
        };
        let deadline = self.limits.operation_deadline;
        tokio::time::timeout(deadline, waiting).await.map_err(|_| Errno::EIO)
    }

    /// No more operations; a stream that is under way ends when those that wait are answered.
    pub fn close(&self) {
        let rest: Vec<Queued> = {
            let mut state = self.state();
            state.closed = true;
            if state.streaming { Vec::new() } else { state.shut() }
        };
        self.give_up(rest);
    }

    fn give_up(&self, entries: Vec<Queued>) {
        entries.into_iter().for_each(|entry| _ = finish(entry.done, Err(Lost::Closed)));
        self.progress.notify_waiters();
    }

    /// Ends the session at the masters.
    pub async fn end(&self, until: Mono) -> Result<(), MasterError> {
        let request = pb::CloseSessionRequest { session: self.current().id.get() };
        self.masters.call::<calls::CloseSession>(&request, until).await.map(|_| ())
    }

    // ---- the stream ----

    /// Starts the stream unless it is under way. Whoever has an operation sends it on his own thread, with
    /// what else waits, if no batch is on its way.
    fn go_on(self: &Arc<Session>) {
        if !std::mem::replace(&mut self.state().streaming, true) {
            let _runtime = self.runtime.enter();
            seam::spawn_eager(self.clone().stream());
        }
    }

    /// Sends what waits until nothing does.
    async fn stream(self: Arc<Session>) {
        loop {
            match self.next() {
                Next::Batch(batch) => self.send(batch).await,
                Next::Reopen if self.reopen().await => {}
                Next::Reopen | Next::End => break,
                Next::Rest => return,
            }
        }
        let rest = self.state().shut();
        self.give_up(rest);
    }

    fn next(&self) -> Next {
        let mut state = self.state();
        if state.ended {
            return Next::Reopen;
        }
        if !(state.urgent || state.closed) {
            state.streaming = false;
            return Next::Rest;
        }
        let mut entries: Vec<Queued> = Vec::new();
        let mut bytes = 0;
        if !state.closed {
            state.want_ids(&mut entries);
        }
        while entries.len() < self.limits.batch_ops_max {
            if !entries.is_empty() && crate::fault!("client: batch cut short") {
                break;
            }
            let Some(entry) = state.queue.front() else { break };
            // A caller that gave up before anything was sent: certainly not executed.
            if entry.done.as_ref().is_some_and(oneshot::Sender::is_closed) {
                crate::mark!("abandoned operation was never sent");
                state.queue.pop_front();
                state.done += 1;
                self.progress.notify_waiters();
                continue;
            }
            if !state.has_id_for(&entry.op) {
                crate::mark!("out of inode ids");
                break;
            }
            let len = op_len(&entry.op);
            if bytes + len > self.limits.entry_bytes_max / 4 && !entries.is_empty() {
                break;
            }
            bytes += len;
            let mut entry = state.queue.pop_front().expect("just seen");
            state.give_id(&mut entry.op);
            entries.push(entry);
        }
        state.urgent = !state.queue.is_empty();
        if entries.is_empty() {
            state.streaming = state.closed;
            return if state.closed { Next::End } else { Next::Rest };
        }
        state.batches += 1;
        let ops = entries.iter().map(|entry| pb::Op { op: Some(entry.op.clone()) }).collect();
        let first_seq = state.next_seq;
        state.next_seq += entries.len() as u64;
        let session = state.current.id.get();
        let request = pb::Batch { session, first_seq, acked_seq: first_seq - 1, ops };
        Next::Batch(Batch { request, generation: state.current.generation, entries })
    }

    async fn send(self: &Arc<Session>, batch: Batch) {
        let sent = self.masters.call::<calls::SubmitBatch>(&batch.request, Mono(u64::MAX)).await;
        match sent {
            Ok(reply) if reply.errno == 0 && reply.results.len() == batch.entries.len() => {
                self.answer(batch, reply);
            }
            Ok(reply) => {
                let errno = Errno::new(reply.errno);
                tracing::warn!(session = %batch.request.session, %errno, "the session is over");
                self.expire(batch.generation);
                self.lose(batch.entries, Lost::Expired);
            }
            Err(MasterError::Closed) => {
                self.lose(batch.entries, Lost::Closed);
                let rest = self.state().shut();
                self.give_up(rest);
            }
            Err(error) => {
                // Refused for good, perhaps after an earlier attempt was executed: these sequence numbers
                // cannot be used again, so the session cannot go on.
                tracing::error!(%error, "a batch was refused");
                self.expire(batch.generation);
                self.lose(batch.entries, Lost::Expired);
            }
        }
    }

    fn answer(self: &Arc<Session>, batch: Batch, reply: pb::BatchReply) {
        let count = batch.entries.len() as u64;
        for (entry, result) in batch.entries.into_iter().zip(reply.results) {
            if let op::Op::AllocInodes(_) = entry.op {
                self.state().granted(&result);
            }
            self.meta.applied(&entry.op, &result, entry.asked);
            let heard = finish(entry.done, Ok(result));
            // LEFTOVER: what the masters keep for somebody who has given up stays kept.
            if !heard
                && !crate::bug!(LEFTOVER)
                && let Some(inode) = kept_by(&entry.op, &result)
                && self.meta.let_go(inode)
            {
                crate::mark!("kept for somebody who had given up");
                self.submit_lazy(op::Op::Unpin(pb::UnpinOp { inode: inode.get() }));
            }
        }
        self.state().done += count;
        self.progress.notify_waiters();
    }

    fn lose(&self, entries: Vec<Queued>, why: Lost) {
        self.state().done += entries.len() as u64;
        for entry in entries {
            self.meta.unknown(&entry.op);
            finish(entry.done, Err(why));
        }
        self.progress.notify_waiters();
    }

    // ---- the session's end ----

    /// The masters ended this session. What belongs to it is lost: dirty data, pins, queued commits.
    pub fn expire(self: &Arc<Session>, generation: u64) {
        let bound: Vec<Queued> = {
            let mut state = self.state();
            if state.ended || state.current.generation != generation {
                return;
            }
            crate::mark!("client session expired");
            state.ended = true;
            let (bound, rest): (Vec<_>, Vec<_>) =
                state.queue.drain(..).partition(|entry| belongs_to_session(&entry.op));
            state.queue = rest.into();
            bound
        };
        self.meta.session_lost();
        self.lose(bound, Lost::Expired);
        self.go_on();
    }

    /// Opens the next session. `false` when the client is closed meanwhile.
    async fn reopen(&self) -> bool {
        loop {
            if self.state().closed {
                return false;
            }
            let until = seam::now() + self.limits.operation_deadline;
            match open_session(&self.masters, &self.host, until).await {
                Ok(opened) => {
                    self.state().begin(&opened);
                    return true;
                }
                Err(MasterError::Closed) => return false,
                Err(error) => {
                    tracing::error!(%error, "no new session");
                    tokio::time::sleep(self.limits.retry_pause_max).await;
                }
            }
        }
    }

    /// One keepalive; what the masters say about the session counts.
    pub async fn keepalive(self: &Arc<Session>) {
        let current = self.current();
        if self.is_over(current.generation) {
            return;
        }
        let request = pb::KeepaliveRequest { session: current.id.get() };
        let until = seam::now() + self.limits.keepalive.max(Duration::from_secs(1));
        match self.masters.call::<calls::Keepalive>(&request, until).await {
            Ok(reply) if reply.errno != 0 => self.expire(current.generation),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "keepalive"),
        }
    }
}

impl State {
    fn begin(&mut self, opened: &pb::OpenSessionReply) {
        self.current =
            Current { id: SessionId(opened.session), generation: self.current.generation + 1 };
        self.ended = false;
        self.next_seq = 1;
        self.range = opened.inode_count.max(1);
        let end = opened.first_inode + u64::from(opened.inode_count);
        self.ids = VecDeque::from([(opened.first_inode, end)]);
        self.ids.retain(|(next, end)| next < end);
        self.refilling = false;
        self.urgent = !self.queue.is_empty();
    }

    /// Nothing more is taken, and nothing of what waits is sent.
    fn shut(&mut self) -> Vec<Queued> {
        self.closed = true;
        self.done += self.queue.len() as u64;
        self.queue.drain(..).collect()
    }

    fn push(&mut self, entry: Queued) {
        self.queued += 1;
        self.queue.push_back(entry);
    }

    fn ids_left(&self) -> u64 {
        self.ids.iter().map(|(next, end)| end - next).sum()
    }

    /// Asks for more ids early enough that nobody waits for them.
    fn want_ids(&mut self, entries: &mut Vec<Queued>) {
        if self.ids_left() > u64::from(self.range) / 2 || self.refilling {
            return;
        }
        self.refilling = true;
        self.queued += 1;
        let op = op::Op::AllocInodes(pb::AllocInodesOp { count: self.range });
        entries.push(Queued { op, done: None, asked: seam::now() });
    }

    fn has_id_for(&self, op: &op::Op) -> bool {
        !matches!(op, op::Op::Create(_)) || self.ids_left() > 0
    }

    fn give_id(&mut self, op: &mut op::Op) {
        let op::Op::Create(create) = op else { return };
        let Some((next, end)) = self.ids.front_mut() else { return };
        create.inode = *next;
        *next += 1;
        if next == end {
            self.ids.pop_front();
        }
    }

    fn granted(&mut self, result: &pb::OpResult) {
        self.refilling = false;
        if result.inode_count > 0 {
            let end = result.first_inode + u64::from(result.inode_count);
            self.ids.push_back((result.first_inode, end));
        }
        self.urgent |= !self.queue.is_empty();
    }
}

/// Whether somebody hears it, or nobody was to.
fn finish(done: Option<Done>, outcome: Result<pb::OpResult, Lost>) -> bool {
    done.is_none_or(|done| done.send(outcome).is_ok())
}

/// The inode that the masters keep for this session since this operation, whoever has it open.
fn kept_by(op: &op::Op, result: &pb::OpResult) -> Option<InodeId> {
    let kept = match op {
        op::Op::Create(op) if op.pin => result.attr,
        op::Op::Unlink(op) if op.pin => result.victim.or(result.attr),
        op::Op::Rename(op) if op.pin_victim => result.victim,
        _ => None,
    };
    kept.filter(|_| result.errno == 0).map(|attr| InodeId(attr.inode))
}

fn op_len(op: &op::Op) -> usize {
    match op {
        op::Op::Commit(commit) => commit.encoded_len(),
        op::Op::Setxattr(set) => set.encoded_len(),
        op::Op::Create(create) => create.encoded_len(),
        _ => 600,
    }
}

/// Whether an operation makes sense only in the session it was made for.
fn belongs_to_session(op: &op::Op) -> bool {
    matches!(
        op,
        op::Op::Commit(_)
            | op::Op::SealOwn(_)
            | op::Op::Pin(_)
            | op::Op::Unpin(_)
            | op::Op::AllocInodes(_)
    )
}

async fn open_session(
    masters: &Masters,
    host: &str,
    until: Mono,
) -> Result<pb::OpenSessionReply, MasterError> {
    loop {
        // Random and not 0: the masters know a retry by it.
        let client_nonce = seam::rng::random_u64() | 1;
        let request = pb::OpenSessionRequest { client_nonce, host: host.to_owned() };
        let reply = masters.call::<calls::OpenSession>(&request, until).await?;
        if reply.errno == 0 {
            return Ok(reply);
        }
        crate::mark!("a session was over before its client knew of it");
    }
}
