//! The task of an accepted connection. It alone reads, runs the handlers, and writes: a request that is
//! answered at once costs no hand-off, and answers that are ready together leave in one write.

use super::frame::{self, Decoder, Frame, FrameLimits, Head, Kind};
use super::hook::{self, FrameInfo, Verdict};
use super::out::{OutFrame, OutQueue};
use super::server::{Answer, Shared};
use super::{Identity, Incoming, Memory, Outgoing, Peer, Refusal, RefusalCode, calls};
use crate::bug;
use crate::seam::{self, Mono};
use futures_util::stream::{FuturesUnordered, Stream};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Sleep;

/// Reply bytes waiting for the socket above which no further requests are read.
const OUT_BYTES_MAX: usize = 4 << 20;
/// A bulk call counts as so many of a connection's requests in flight.
const BULK_WEIGHT: usize = 16;
/// A request longer than this is received only when the server has memory for it, bytes.
const LONG_BYTES: usize = 64 << 10;
/// How often time is looked at.
const TICK: Duration = Duration::from_secs(1);

/// What a pending future of the connection ends with.
enum Done {
    /// A handler's answer.
    Answer { id: u64, method: u16, weight: usize, answer: Result<Outgoing, Refusal> },
    /// A frame that the simulation held back.
    Send(OutFrame),
    /// A request that the simulation held back.
    Arrived(Frame, Memory),
}

type Pending = Pin<Box<dyn Future<Output = Done> + Send>>;

struct Call {
    wanted: bool,
}

/// An accepted connection after its handshake.
pub(super) struct Serving {
    io: TcpStream,
    decoder: Decoder,
    out: OutQueue,
    me: Identity,
    peer: Arc<Peer>,
    shared: Arc<Shared>,
    pending: FuturesUnordered<Pending>,
    calls: BTreeMap<u64, Call>,
    in_flight: usize,
    received_at: Mono,
    written_at: Mono,
    stopping_at: Option<Mono>,
    silent_until: Option<Pin<Box<Sleep>>>,
    receiving: Receiving,
}

/// Memory for the long request that is arriving.
enum Receiving {
    /// None is.
    Nothing,
    /// It waits, in the socket, until others have arrived.
    Waiting(Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>),
    /// It is being read, and should be whole by then.
    Granted { share: OwnedSemaphorePermit, until: Mono },
}

impl Serving {
    /// A connection; `decoder` may hold bytes already.
    pub fn new(
        io: TcpStream,
        mut decoder: Decoder,
        me: Identity,
        peer: Arc<Peer>,
        shared: Arc<Shared>,
    ) -> Serving {
        decoder.set_limits(FrameLimits::REQUESTS);
        let now = seam::now();
        Serving {
            io,
            decoder,
            out: OutQueue::default(),
            me,
            peer,
            shared,
            pending: FuturesUnordered::new(),
            calls: BTreeMap::new(),
            in_flight: 0,
            received_at: now,
            written_at: now,
            stopping_at: None,
            silent_until: None,
            receiving: Receiving::Nothing,
        }
    }

    /// Serves until the peer goes, breaks the protocol or is silent too long, or the server stops. Handlers
    /// under way are then polled to their end, without a reader for their answers.
    pub async fn run(mut self, stopped: watch::Receiver<bool>, permit: OwnedSemaphorePermit) {
        let mut stop_signal = stopped.clone();
        let why = {
            let mut stop = pin!(stop_signal.wait_for(|stop| *stop));
            let mut tick = pin!(tokio::time::sleep(TICK));
            let mut stopping = false;
            poll_fn(|cx| {
                if !stopping && stop.as_mut().poll(cx).is_ready() {
                    stopping = true;
                    self.stopping_at = Some(seam::now());
                    tick.set(tokio::time::sleep(self.shared.limits.drain_max));
                }
                match self.step(cx, tick.as_mut()) {
                    Ok(()) => Poll::Pending,
                    Err(why) => Poll::Ready(why),
                }
            })
            .await
        };
        tracing::debug!(peer = %self.peer.address, %why, "connection ended");
        let Serving { mut pending, io, .. } = self;
        drop(io);
        if !pending.is_empty() {
            crate::mark!("handlers outlive their connection");
            let mut stop_signal = stopped;
            tokio::select! {
                biased;
                _ = stop_signal.wait_for(|stop| *stop) => {}
                () = finish(&mut pending) => {}
            }
        }
        drop(permit);
    }

    fn step(&mut self, cx: &mut Context<'_>, mut tick: Pin<&mut Sleep>) -> Result<(), String> {
        loop {
            let mut progress = self.take_frames(cx)?;
            progress |= self.take_answers(cx);
            self.write(cx)?;
            progress |= self.read(cx)?;
            if !progress {
                break;
            }
        }
        if self.stopping_at.is_some() && self.calls.is_empty() && self.out.is_empty() {
            return Err("the server stops".into());
        }
        while tick.as_mut().poll(cx).is_ready() {
            self.tick()?;
            self.write(cx)?;
            tick.set(tokio::time::sleep(TICK));
        }
        Ok(())
    }

    /// Back-pressure: what is not read stays in the socket, and the peer stops sending.
    fn has_room(&self) -> bool {
        self.stopping_at.is_none()
            && self.in_flight < self.shared.limits.requests_in_flight_max
            && self.out.bytes() < OUT_BYTES_MAX
    }

    /// Whether what arrives may be read: short requests always, long ones in their turn, so that many
    /// connections together do not make the server hold more than [`Limits::receive_bytes_max`] of long
    /// requests, whole or not.
    ///
    /// [`Limits::receive_bytes_max`]: crate::limits::Limits::receive_bytes_max
    fn has_memory(&mut self, cx: &mut Context<'_>) -> bool {
        let bytes = self.decoder.unfinished();
        if bytes <= LONG_BYTES {
            self.receiving = Receiving::Nothing;
            return true;
        }
        if let Receiving::Nothing = self.receiving {
            let (memory, bytes) = (self.shared.receiving.clone(), bytes as u32);
            self.receiving = Receiving::Waiting(Box::pin(async move {
                memory.acquire_many_owned(bytes).await.expect("never closed")
            }));
        }
        if let Receiving::Waiting(turn) = &mut self.receiving {
            let Poll::Ready(share) = turn.as_mut().poll(cx) else {
                crate::mark!("long request waits for memory");
                return false;
            };
            self.received_at = seam::now();
            let until = self.received_at + self.patience();
            self.receiving = Receiving::Granted { share, until };
            self.decoder.grant();
        }
        true
    }

    /// How long the long request that is arriving may take from here on: as long as its caller waits for the answer,
    /// but no shorter than a pause in it may be, and no longer than a peer may take for its own answers.
    fn patience(&self) -> Duration {
        let limits = &self.shared.limits;
        let asked = Duration::from_millis(self.decoder.deadline_ms().into());
        asked.max(limits.silence_max).min(limits.write_stall_max)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        if let Some(sleep) = &mut self.silent_until {
            return match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Err("closed by the peer".into()),
                Poll::Pending => Ok(false),
            };
        }
        if !self.has_room() || !self.has_memory(cx) {
            return Ok(false);
        }
        let read = pin!(self.io.read_buf(&mut self.decoder.target())).poll(cx);
        let ended = match read {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => "closed by the peer".to_owned(),
            Poll::Ready(Ok(_)) => {
                self.received_at = seam::now();
                return Ok(true);
            }
            Poll::Ready(Err(error)) => format!("read: {error}"),
        };
        self.broken(ended).map(|()| true)
    }

    /// The stream broke. The simulation may have it go unnoticed for a while.
    fn broken(&mut self, why: String) -> Result<(), String> {
        let Some(time) = hook::on_eof(&self.me, &self.peer.identity) else { return Err(why) };
        self.out = OutQueue::default();
        self.silent_until = Some(Box::pin(tokio::time::sleep(time)));
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        if self.out.is_empty() {
            self.written_at = self.received_at;
            return Ok(());
        }
        let before = self.out.bytes();
        let written = self.out.poll_write(&mut self.io, cx);
        if self.out.bytes() < before {
            self.written_at = seam::now();
        }
        match written {
            Poll::Ready(Err(error)) => self.broken(format!("write: {error}")),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn tick(&mut self) -> Result<(), String> {
        let now = seam::now();
        if let Some(at) = self.stopping_at
            && now.since(at) >= self.shared.limits.drain_max
        {
            crate::mark!("handlers dropped at stop");
            return Err("the server stops".into());
        }
        self.judge(now)?;
        let waiting = matches!(self.receiving, Receiving::Waiting(_)) || !self.has_room();
        // UNHEARD: whoever is held back hears nothing, and takes this side for dead.
        if waiting && self.stopping_at.is_none() && self.out.is_empty() && !bug!(UNHEARD) {
            // Its pings are in the socket behind what is not read yet.
            crate::mark!("sign of life for a peer that is held back");
            self.written_at = now;
            self.sign_of_life(0)?;
        }
        Ok(())
    }

    /// Whether the peer still does its part.
    fn judge(&self, now: Mono) -> Result<(), String> {
        let limits = &self.shared.limits;
        if !self.out.is_empty() && now.since(self.written_at) > limits.write_stall_max {
            crate::mark!("peer that does not read cut off");
            return Err("the peer takes no answers".into());
        }
        let overdue = |until: Mono| self.stopping_at.is_none() && now >= until;
        if matches!(self.receiving, Receiving::Granted { until, .. } if overdue(until)) {
            // Also if it is this side that does not read on, because the peer takes no answers: others wait for
            // the memory, and nobody for this request any more.
            crate::mark!("request that takes too long to arrive cut off");
            return Err("a long request took too long to arrive".into());
        }
        let silent = now.since(self.received_at);
        let reading = matches!(self.receiving, Receiving::Granted { .. }) && self.has_room();
        if reading && silent > limits.silence_max {
            crate::mark!("peer that stops in the middle of a request cut off");
            return Err("the peer stopped in the middle of a long request".into());
        }
        let waiting = matches!(self.receiving, Receiving::Waiting(_));
        if self.calls.is_empty() && !waiting && silent > limits.connection_idle_max {
            crate::mark!("silent client cut off");
            return Err("the peer is silent".into());
        }
        Ok(())
    }

    fn take_frames(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        let mut progress = false;
        while self.has_room() {
            let Some(frame) = self.decoder.next_frame().map_err(|error| error.to_string())? else {
                break;
            };
            progress = true;
            let memory = match std::mem::replace(&mut self.receiving, Receiving::Nothing) {
                Receiving::Granted { share, .. } => Memory::of(share),
                Receiving::Nothing | Receiving::Waiting(_) => Memory::default(),
            };
            match frame.kind {
                Kind::Request => self.arrived(frame, memory, cx)?,
                Kind::Cancel => {
                    if let Some(call) = self.calls.get_mut(&frame.id) {
                        crate::mark!("call cancelled");
                        call.wanted = false;
                    }
                }
                Kind::Ping => self.pong(frame.id)?,
                Kind::Pong => {}
                kind => return Err(format!("the peer sent an unexpected {kind:?} frame")),
            }
        }
        Ok(progress)
    }

    fn arrived(
        &mut self,
        frame: Frame,
        memory: Memory,
        cx: &mut Context<'_>,
    ) -> Result<(), String> {
        match hook::on_recv(&self.info(&frame)) {
            Verdict::Deliver => self.start(frame, memory, cx),
            Verdict::Drop => Ok(()),
            Verdict::Duplicate => {
                self.start(frame.clone(), Memory::default(), cx)?;
                self.start(frame, memory, cx)
            }
            Verdict::Delay(time) => {
                self.pending.push(Box::pin(async move {
                    tokio::time::sleep(time).await;
                    Done::Arrived(frame, memory)
                }));
                Ok(())
            }
            Verdict::Cut => Err("cut".into()),
        }
    }

    fn info<'a>(&'a self, frame: &'a Frame) -> FrameInfo<'a> {
        FrameInfo {
            kind: frame.kind,
            method: frame.method,
            is_request: true,
            request_id: frame.id,
            from: self.peer.identity,
            to: Some(self.me),
            remote: &self.peer.address,
            refusal: None,
            body: &frame.body,
            payload: std::slice::from_ref(&frame.payload),
        }
    }

    /// Starts the handler and polls it once.
    fn start(&mut self, frame: Frame, memory: Memory, cx: &mut Context<'_>) -> Result<(), String> {
        let (id, method) = (frame.id, frame.method);
        if id == 0 {
            return Err("request without an id".into());
        }
        if calls::name(method).is_none() {
            return self.reply(id, method, Err(Refusal::not_served(method)));
        }
        let polls = hook::polls_allowed(&self.info(&frame));
        let remaining = Duration::from_millis(frame.deadline_ms.into());
        let request = Incoming {
            method,
            body: frame.body,
            payload: frame.payload,
            deadline: seam::now() + remaining,
            memory: memory.clone(),
        };
        let mut answer = self.shared.handler.clone().handle(self.peer.clone(), request);
        if polls == Some(0) {
            return Ok(());
        }
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            return self.reply(id, method, answer);
        }
        let weight = if calls::is_bulk(method) { BULK_WEIGHT } else { 1 };
        let weight = weight.min(self.shared.limits.requests_in_flight_max / 4).max(1);
        self.in_flight += weight;
        // One id may be under way twice: each counts until it is answered.
        self.calls.insert(id, Call { wanted: true });
        let patience = remaining + self.shared.limits.handler_grace;
        self.pending.push(Box::pin(async move {
            let answer = run_out(answer, polls, patience).await;
            drop(memory);
            Done::Answer { id, method, weight, answer }
        }));
        Ok(())
    }

    fn take_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some(done)) = Pin::new(&mut self.pending).poll_next(cx) {
            progress = true;
            let sent = match done {
                Done::Send(frame) => {
                    self.out.push(frame);
                    Ok(())
                }
                Done::Arrived(frame, memory) => self.start(frame, memory, cx),
                Done::Answer { id, method, weight, answer } => {
                    let call = self.calls.remove(&id);
                    self.in_flight -= weight;
                    match call.is_none_or(|call| call.wanted) {
                        true => self.reply(id, method, answer),
                        false => Ok(()),
                    }
                }
            };
            if let Err(why) = sent {
                // A reply was cut by the simulation: the next read or write sees the end.
                tracing::debug!(%why, "reply");
                self.silent_until = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
            }
        }
        progress
    }

    fn reply(
        &mut self,
        id: u64,
        method: u16,
        answer: Result<Outgoing, Refusal>,
    ) -> Result<(), String> {
        let answer = answer.and_then(|outgoing| match outgoing.check() {
            Ok(()) => Ok(outgoing),
            Err(why) => Err(Refusal::new(RefusalCode::Internal, why)),
        });
        let bare = Head { method, ..Head::bare(Kind::Reply, id) };
        let (head, code, payload) = match answer {
            Ok(Outgoing { buffer, payload }) => {
                (frame::finish(buffer, bare, &payload), None, payload)
            }
            Err(Refusal { code, message }) => {
                let head = Head { kind: Kind::Refusal, code: code as u16, ..bare };
                (frame::encode(head, clipped(&message)), Some(code), Vec::new())
            }
        };
        let verdict = hook::on_send(&FrameInfo {
            kind: if code.is_some() { Kind::Refusal } else { Kind::Reply },
            method,
            is_request: false,
            request_id: id,
            from: self.me,
            to: Some(self.peer.identity),
            remote: &self.peer.address,
            refusal: code,
            body: &head[frame::HEADER_BYTES..],
            payload: &payload,
        });
        if self.calls.is_empty() && crate::fault!("wire: connection closed after a reply") {
            self.silent_until = Some(Box::pin(tokio::time::sleep(Duration::ZERO)));
        }
        self.send(verdict, OutFrame { id, head, payload })
    }

    fn send(&mut self, verdict: Verdict, frame: OutFrame) -> Result<(), String> {
        match verdict {
            Verdict::Deliver => self.out.push(frame),
            Verdict::Drop => {}
            Verdict::Duplicate => {
                self.out.push(frame.clone());
                self.out.push(frame);
            }
            Verdict::Delay(time) => self.pending.push(Box::pin(async move {
                tokio::time::sleep(time).await;
                Done::Send(frame)
            })),
            Verdict::Cut => return Err("cut".into()),
        }
        Ok(())
    }

    /// Answers a ping.
    fn pong(&mut self, id: u64) -> Result<(), String> {
        if hook::on_recv(&self.beat(Kind::Ping, id)) == Verdict::Drop {
            return Ok(());
        }
        self.sign_of_life(id)
    }

    fn sign_of_life(&mut self, id: u64) -> Result<(), String> {
        let verdict = match hook::on_send(&self.beat(Kind::Pong, id)) {
            Verdict::Duplicate | Verdict::Delay(_) => Verdict::Deliver,
            verdict => verdict,
        };
        let head = frame::encode(Head::bare(Kind::Pong, id), &[]);
        self.send(verdict, OutFrame { id: 0, head, payload: Vec::new() })
    }

    /// A ping that came or a pong that leaves.
    fn beat(&self, kind: Kind, id: u64) -> FrameInfo<'_> {
        let is_request = kind == Kind::Ping;
        let (me, peer) = (self.me, self.peer.identity);
        FrameInfo {
            kind,
            method: 0,
            is_request,
            request_id: id,
            from: if is_request { peer } else { me },
            to: Some(if is_request { me } else { peer }),
            remote: &self.peer.address,
            refusal: None,
            body: &[],
            payload: &[],
        }
    }
}

/// A refusal's text, cut to a length that any peer accepts.
fn clipped(message: &str) -> &[u8] {
    let end = message.floor_char_boundary(frame::HELLO_BODY_BYTES_MAX);
    &message.as_bytes()[..end]
}

async fn finish(pending: &mut FuturesUnordered<Pending>) {
    while poll_fn(|cx| Pin::new(&mut *pending).poll_next(cx)).await.is_some() {}
}

/// Polls a handler that was polled once already to its end, at most for `patience` and, in the simulation, at
/// most `polls` times in all.
async fn run_out(
    mut answer: Answer,
    polls: Option<u32>,
    patience: Duration,
) -> Result<Outgoing, Refusal> {
    let mut left = polls.map(|polls| polls.saturating_sub(1));
    let counted = poll_fn(move |cx| {
        if left == Some(0) {
            crate::mark!("handler dropped at an await");
            let refusal = Refusal::new(RefusalCode::Internal, "the handler was dropped");
            return Poll::Ready(Err(refusal));
        }
        left = left.map(|left| left - 1);
        answer.as_mut().poll(cx)
    });
    match tokio::time::timeout(patience, counted).await {
        Ok(answer) => answer,
        Err(_) => {
            crate::mark!("handler dropped after its deadline");
            Err(Refusal::new(RefusalCode::Internal, "no answer long after the deadline"))
        }
    }
}
