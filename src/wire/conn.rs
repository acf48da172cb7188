//! A dialled connection. A calling task writes its own frame if the socket has room; the connection's task
//! reads, completes the calls, writes what did not fit, and notices silence.

use super::frame::{self, Decoder, Frame, Head, Kind};
use super::hook::{self, FrameInfo, Verdict};
use super::out::{OutFrame, OutQueue};
use super::{CallError, Identity, Peer, Refusal, RefusalCode};
use crate::limits::Limits;
use crate::seam::{self, Mono};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::Sleep;

#[cfg(not(feature = "sim"))]
type ReadHalf = tokio::net::tcp::OwnedReadHalf;
#[cfg(not(feature = "sim"))]
type WriteHalf = tokio::net::tcp::OwnedWriteHalf;
#[cfg(feature = "sim")]
type ReadHalf = tokio::io::ReadHalf<TcpStream>;
#[cfg(feature = "sim")]
type WriteHalf = tokio::io::WriteHalf<TcpStream>;

/// Batches that a calling task writes for others before it leaves the rest to the connection's task.
const ROUNDS_MAX: usize = 4;

type Answer = Result<Frame, CallError>;

/// A request on its way.
pub struct Outbound {
    /// Ties request and reply together.
    pub id: u64,
    /// The call's number.
    pub method: u16,
    /// Header and body.
    pub head: Bytes,
    /// Payload.
    pub payload: Vec<Bytes>,
}

#[derive(Default)]
struct Calls {
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    dead: Option<Arc<str>>,
}

struct Out {
    queue: OutQueue,
    /// Absent while somebody writes.
    io: Option<WriteHalf>,
    /// The socket was full: only the connection's task writes until it has caught up.
    blocked: bool,
    dead: bool,
}

/// The shared side of a dialled connection.
pub struct Conn {
    local: Identity,
    peer: Peer,
    calls: Mutex<Calls>,
    out: Mutex<Out>,
    permits: Semaphore,
    task: AtomicWaker,
    /// When the peer last gave a sign of life (bytes came, or went), Mono nanoseconds.
    alive_at: AtomicU64,
    retired: AtomicBool,
}

/// A call that waits for its answer. Dropping it tells the peer that nobody waits any more.
pub struct Waiting<'a> {
    conn: &'a Arc<Conn>,
    id: u64,
    answer: oneshot::Receiver<Answer>,
    done: bool,
    _permit: SemaphorePermit<'a>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conn {
    /// Takes over a connection after its handshake and starts its task.
    pub fn start(
        stream: TcpStream,
        decoder: Decoder,
        local: Identity,
        peer: Peer,
        limits: &Limits,
    ) -> Arc<Conn> {
        #[cfg(not(feature = "sim"))]
        let (read, write) = stream.into_split();
        #[cfg(feature = "sim")]
        let (read, write) = tokio::io::split(stream);
        let out = Out { queue: OutQueue::default(), io: Some(write), blocked: false, dead: false };
        let conn = Arc::new(Conn {
            local,
            peer,
            calls: Mutex::default(),
            out: Mutex::new(out),
            permits: Semaphore::new(limits.requests_in_flight_max),
            task: AtomicWaker::new(),
            alive_at: AtomicU64::new(seam::now().0),
            retired: AtomicBool::new(false),
        });
        let task = Task {
            conn: conn.clone(),
            io: read,
            decoder,
            ended: false,
            pinged: None,
            ping_after: limits.ping_after,
            silence_max: limits.silence_max,
        };
        seam::spawn(task.run());
        conn
    }

    /// Who answers.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether calls can no longer be made.
    pub fn is_dead(&self) -> bool {
        lock(&self.calls).dead.is_some()
    }

    /// No new calls will come: ends the connection once nobody waits.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Waits for room among the calls under way.
    pub async fn permit(&self) -> SemaphorePermit<'_> {
        match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                crate::mark!("calls wait for room on a connection");
                self.permits.acquire().await.expect("the semaphore is never closed")
            }
        }
    }

    /// Sends a request. `NotSent` if the connection is dead already.
    pub fn send<'a>(
        self: &'a Arc<Conn>,
        request: Outbound,
        permit: SemaphorePermit<'a>,
    ) -> Result<Waiting<'a>, CallError> {
        let (sender, answer) = oneshot::channel();
        let id = request.id;
        {
            let mut calls = lock(&self.calls);
            if let Some(why) = &calls.dead {
                return Err(CallError::NotSent(why.to_string()));
            }
            calls.waiting.insert(id, sender);
        }
        let verdict = hook::on_send(&FrameInfo {
            kind: Kind::Request,
            method: request.method,
            is_request: true,
            request_id: id,
            from: self.local,
            to: Some(self.peer.identity),
            remote: &self.peer.address,
            refusal: None,
            body: &request.head[frame::HEADER_BYTES..],
            payload: &request.payload,
        });
        let out = OutFrame { id, head: request.head, payload: request.payload };
        match verdict {
            Verdict::Deliver => self.push(out),
            Verdict::Drop => {}
            Verdict::Duplicate => {
                self.push(out.clone());
                self.push(out);
            }
            Verdict::Delay(time) => {
                let conn = self.clone();
                seam::spawn(async move {
                    tokio::time::sleep(time).await;
                    conn.push(out);
                });
            }
            Verdict::Cut => self.fail("cut"),
        }
        Ok(Waiting { conn: self, id, answer, done: false, _permit: permit })
    }

    /// Queues a frame and writes it at once if nobody else is writing and the socket has room. Frames for a
    /// dead connection vanish; their calls have been failed.
    fn push(self: &Arc<Conn>, frame: OutFrame) {
        let io = {
            let mut out = lock(&self.out);
            if out.dead {
                return;
            }
            out.queue.push(frame);
            if out.blocked {
                return;
            }
            out.io.take()
        };
        let Some(io) = io else { return };
        // The task is woken to write the rest, so this task need not be.
        let mut cx = Context::from_waker(Waker::noop());
        match self.write_turn(io, &mut cx, ROUNDS_MAX) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.broken(format!("write: {error}")),
            Poll::Pending => self.task.wake(),
        }
    }

    /// Writes what is queued, also what others queue meanwhile, then puts `io` back.
    fn write_turn(
        &self,
        mut io: WriteHalf,
        cx: &mut Context<'_>,
        rounds: usize,
    ) -> Poll<io::Result<()>> {
        let mut batch = OutQueue::default();
        for _ in 0..rounds {
            {
                let mut out = lock(&self.out);
                batch.append(&mut out.queue);
                if out.dead || batch.is_empty() {
                    out.blocked = false;
                    out.io = (!out.dead).then_some(io);
                    return Poll::Ready(Ok(()));
                }
            }
            match batch.poll_write(&mut io, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    lock(&self.out).queue.prepend(batch);
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => break,
            }
        }
        let mut out = lock(&self.out);
        out.queue.prepend(batch);
        out.blocked = !out.queue.is_empty();
        let done = out.dead || !out.blocked;
        out.io = (!out.dead).then_some(io);
        if done { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn alive(&self) {
        self.alive_at.store(seam::now().0, Ordering::Relaxed);
    }

    /// The stream broke. The simulation may have it go unnoticed for a while.
    fn broken(self: &Arc<Conn>, why: String) {
        match hook::on_eof(&self.local, &self.peer.identity) {
            None => self.fail(&why),
            Some(time) => {
                let conn = self.clone();
                seam::spawn(async move {
                    tokio::time::sleep(time).await;
                    conn.fail(&why);
                });
            }
        }
    }

    /// Ends the connection: calls whose frames never left whole were certainly not executed, of the others
    /// nobody knows.
    pub fn fail(&self, why: &str) {
        let unwritten = {
            let mut out = lock(&self.out);
            out.dead = true;
            out.io = None;
            let unwritten = out.queue.unwritten();
            out.queue = OutQueue::default();
            unwritten
        };
        let waiting = {
            let mut calls = lock(&self.calls);
            calls.dead.get_or_insert_with(|| why.into());
            std::mem::take(&mut calls.waiting)
        };
        for (id, sender) in waiting {
            let error = match unwritten.contains(&id) {
                true => CallError::NotSent(why.to_owned()),
                false => CallError::Lost(why.to_owned()),
            };
            let _ = sender.send(Err(error));
        }
        self.task.wake();
    }

    fn complete(&self, id: u64, answer: Answer) {
        let sender = lock(&self.calls).waiting.remove(&id);
        // Nobody waits any more for late and duplicate answers.
        if let Some(sender) = sender {
            let _ = sender.send(answer);
        }
    }
}

impl Waiting<'_> {
    /// The answer, at most until `remaining` is over.
    pub async fn answer(mut self, remaining: Duration) -> Answer {
        match tokio::time::timeout(remaining, &mut self.answer).await {
            Ok(answer) => {
                self.done = true;
                answer.unwrap_or_else(|_| Err(CallError::Lost("connection task ended".into())))
            }
            Err(_) => {
                crate::mark!("call passed its deadline");
                match self.give_up() {
                    true => Err(CallError::NotSent("the connection is stalled".into())),
                    false => Err(CallError::Deadline),
                }
            }
        }
    }

    /// Forgets the call; true if its frame had not begun to leave, and now never will.
    fn give_up(&mut self) -> bool {
        self.done = true;
        if lock(&self.conn.calls).waiting.remove(&self.id).is_none() {
            return false;
        }
        if lock(&self.conn.out).queue.remove(self.id) {
            crate::mark!("unsent call taken back");
            return true;
        }
        let head = frame::encode(Head::bare(Kind::Cancel, self.id), &[]);
        self.conn.push(OutFrame { id: self.id, head, payload: Vec::new() });
        false
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.give_up();
        }
    }
}

/// The connection's task.
struct Task {
    conn: Arc<Conn>,
    io: ReadHalf,
    decoder: Decoder,
    /// Nothing more will come.
    ended: bool,
    /// When the unanswered ping went out.
    pinged: Option<Mono>,
    ping_after: Duration,
    silence_max: Duration,
}

impl Task {
    async fn run(mut self) {
        let mut tick = pin!(tokio::time::sleep(self.ping_after));
        let why = poll_fn(|cx| {
            self.conn.task.register(cx.waker());
            match self.step(cx, tick.as_mut()) {
                Ok(()) => Poll::Pending,
                Err(why) => Poll::Ready(why),
            }
        })
        .await;
        self.conn.fail(&why);
        tracing::debug!(peer = %self.conn.peer.address, %why, "connection ended");
    }

    fn step(&mut self, cx: &mut Context<'_>, mut tick: Pin<&mut Sleep>) -> Result<(), String> {
        if let Some(why) = &lock(&self.conn.calls).dead {
            return Err(why.to_string());
        }
        self.read(cx)?;
        self.write(cx)?;
        while tick.as_mut().poll(cx).is_ready() {
            self.tick()?;
            tick.set(tokio::time::sleep(self.ping_after));
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        let (io, before) = {
            let mut out = lock(&self.conn.out);
            if out.queue.is_empty() {
                return Ok(());
            }
            (out.io.take(), out.queue.bytes())
        };
        // Without it somebody else is writing, who wakes this task if something is left.
        let Some(io) = io else { return Ok(()) };
        let written = self.conn.write_turn(io, cx, usize::MAX);
        if lock(&self.conn.out).queue.bytes() < before {
            // The socket was full and has room again: the peer takes bytes, so it lives.
            self.conn.alive();
        }
        if let Poll::Ready(Err(error)) = written {
            self.conn.broken(format!("write: {error}"));
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        while !self.ended {
            let read = pin!(self.io.read_buf(&mut self.decoder.target())).poll(cx);
            let ended = match read {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => "closed by the peer".to_owned(),
                Poll::Ready(Ok(_)) => {
                    self.conn.alive();
                    self.pinged = None;
                    self.frames()?;
                    continue;
                }
                Poll::Ready(Err(error)) => format!("read: {error}"),
            };
            self.ended = true;
            self.conn.broken(ended);
        }
        Ok(())
    }

    fn frames(&mut self) -> Result<(), String> {
        while let Some(frame) = self.decoder.next_frame().map_err(|error| error.to_string())? {
            match frame.kind {
                Kind::Reply | Kind::Refusal => self.answered(frame)?,
                Kind::Pong => {}
                Kind::Ping => {
                    let head = frame::encode(Head::bare(Kind::Pong, frame.id), &[]);
                    self.conn.push(OutFrame { id: 0, head, payload: Vec::new() });
                }
                kind => return Err(format!("the peer sent an unexpected {kind:?} frame")),
            }
        }
        Ok(())
    }

    fn answered(&mut self, frame: Frame) -> Result<(), String> {
        let refusal = (frame.kind == Kind::Refusal).then(|| Refusal {
            code: RefusalCode::from_wire(frame.code),
            message: String::from_utf8_lossy(&frame.body).into_owned(),
        });
        let verdict = hook::on_recv(&FrameInfo {
            kind: frame.kind,
            method: frame.method,
            is_request: false,
            request_id: frame.id,
            from: self.conn.peer.identity,
            to: Some(self.conn.local),
            remote: &self.conn.peer.address,
            refusal: refusal.as_ref().map(|refusal| refusal.code),
            body: &frame.body,
            payload: std::slice::from_ref(&frame.payload),
        });
        if frame.id == 0 {
            // A refusal of the whole connection.
            return Err(refusal.map_or("reply to no call".into(), |refusal| refusal.to_string()));
        }
        let id = frame.id;
        let answer = refusal.map_or(Ok(frame), |refusal| Err(CallError::Refused(refusal)));
        match verdict {
            Verdict::Deliver | Verdict::Duplicate => self.conn.complete(id, answer),
            Verdict::Drop => {}
            Verdict::Delay(time) => {
                let conn = self.conn.clone();
                seam::spawn(async move {
                    tokio::time::sleep(time).await;
                    conn.complete(id, answer);
                });
            }
            Verdict::Cut => return Err("cut".into()),
        }
        Ok(())
    }

    /// Pings a silent peer, ends the connection when a ping stays unanswered, or when nobody needs it.
    fn tick(&mut self) -> Result<(), String> {
        let busy = !lock(&self.conn.calls).waiting.is_empty();
        if !busy && self.conn.retired.load(Ordering::Acquire) {
            return Err("retired".into());
        }
        let now = seam::now();
        let silent = now.since(Mono(self.conn.alive_at.load(Ordering::Relaxed)));
        match self.pinged {
            Some(at) if silent > self.silence_max && now.since(at) >= self.ping_after => {
                crate::mark!("silent peer given up");
                Err(format!("the peer has been silent for {} ms", silent.as_millis()))
            }
            Some(_) => Ok(()),
            None if silent > self.ping_after * if busy { 1 } else { 10 } => {
                self.pinged = Some(now);
                self.ping();
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn ping(&self) {
        let verdict = hook::on_send(&FrameInfo {
            kind: Kind::Ping,
            method: 0,
            is_request: true,
            request_id: 0,
            from: self.conn.local,
            to: Some(self.conn.peer.identity),
            remote: &self.conn.peer.address,
            refusal: None,
            body: &[],
            payload: &[],
        });
        match verdict {
            Verdict::Drop => {}
            Verdict::Cut => self.conn.fail("cut"),
            Verdict::Deliver | Verdict::Duplicate | Verdict::Delay(_) => {
                let head = frame::encode(Head::bare(Kind::Ping, 0), &[]);
                self.conn.push(OutFrame { id: 0, head, payload: Vec::new() });
            }
        }
    }
}
