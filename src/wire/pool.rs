//! The dialling side: one connection per peer for short calls, one for bulk data, dialled when needed.

use super::conn::{Conn, Outbound};
use super::frame::{self, Frame, Head, Kind};
use super::hello::{self, Expect, Greeter};
use super::hook;
use super::{Call, CallError, Identity, Peer, Role, calls, check_lengths};
use crate::limits::Limits;
use crate::seam::{self, Mono};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A dial that has no answer for so long is begun once more beside the first. Whoever has just come back, or can be
/// reached again, never sees what was sent before, and the kernel repeats it only after a second: longer than a master
/// waits for its leader's heartbeats.
const DIAL_AGAIN: Duration = Duration::from_millis(200);

type Dialled = Result<Arc<Conn>, Arc<str>>;

/// Connections to any number of peers, and the calls over them.
pub struct Pool {
    limits: Arc<Limits>,
    next_id: AtomicU64,
    state: Mutex<State>,
}

struct State {
    identity: Identity,
    /// Raised by a change of identity: dials begun before it do not count.
    generation: u64,
    peers: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    expect: Expect,
    short: Slot,
    bulk: Slot,
}

impl Entry {
    fn slot(&mut self, bulk: bool) -> &mut Slot {
        if bulk { &mut self.bulk } else { &mut self.short }
    }
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    Dialling(watch::Receiver<Option<Dialled>>),
    Live(Arc<Conn>),
    /// Not dialled again before `until`; callers are told `why` at once.
    Failed {
        until: Mono,
        pause: Duration,
        why: Arc<str>,
    },
}

/// Where a call stands that needs a connection.
enum Begun {
    Live(Arc<Conn>),
    Dialling(watch::Receiver<Option<Dialled>>),
    Failed(Arc<str>),
}

impl Pool {
    /// A pool that introduces itself as `identity`. Dials nothing yet.
    pub fn new(identity: Identity, limits: Arc<Limits>) -> Arc<Pool> {
        let state = State { identity, generation: 0, peers: BTreeMap::new() };
        // Request ids of different processes differ, so that a log of calls is unambiguous.
        let first = seam::rng::random_u64() >> 1 & !0xffff_ffff | 1;
        Arc::new(Pool { limits, next_id: AtomicU64::new(first), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this process says it is.
    pub fn identity(&self) -> Identity {
        self.state().identity
    }

    /// Introduces itself differently from now on, for a node that learns its cluster or number while running.
    /// Calls under way end on the old connections.
    pub fn set_identity(&self, identity: Identity) {
        let mut state = self.state();
        state.identity = identity;
        state.generation += 1;
        state.peers.values_mut().for_each(Entry::retire);
    }

    /// From now on only this kind of node (and this node, unless 0) is accepted at `address`; a connection to
    /// anybody else ends.
    pub fn expect(&self, address: &str, role: Role, node: u64) {
        let expect = Expect { role: Some(role), node };
        let mut state = self.state();
        let entry = state.peers.entry(address.to_owned()).or_default();
        if entry.expect != expect {
            entry.expect = expect;
            entry.retire();
        }
    }

    /// Who answers at `address`, dialled if need be.
    pub async fn identify(
        self: &Arc<Pool>,
        address: &str,
        deadline: Duration,
    ) -> Result<Peer, CallError> {
        let dialled = tokio::time::timeout(deadline, self.connect(address, false)).await;
        dialled.unwrap_or_else(|_| Err(no_connection(address))).map(|conn| conn.peer().clone())
    }

    /// Calls the peer at `address` (`host:port`); gives its reply and the reply's payload. Ends within
    /// `deadline`, which travels with the request.
    pub async fn call<C: Call>(
        self: &Arc<Pool>,
        address: &str,
        request: &C::Request,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(C::Reply, Bytes), CallError> {
        let mut buffer = frame::body_buffer(request.encoded_len());
        request.encode(&mut buffer).expect("BytesMut grows");
        let frame = self.exchange(address, C::METHOD, buffer, payload, deadline).await?;
        match C::Reply::decode(&frame.body[..]) {
            Ok(reply) => Ok((reply, frame.payload)),
            Err(error) => Err(CallError::Lost(format!("{} reply: {error}", C::NAME))),
        }
    }

    async fn exchange(
        self: &Arc<Pool>,
        address: &str,
        method: u16,
        buffer: BytesMut,
        payload: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<Frame, CallError> {
        let (most, body) = (frame::FrameLimits::REQUESTS, buffer.len() - frame::HEADER_BYTES);
        check_lengths(most, body, &payload).map_err(CallError::NotSent)?;
        let until = seam::now() + deadline;
        let bulk = calls::is_bulk(method);
        let mut conn = match self.live(address, bulk) {
            Some(conn) => conn,
            None => self.connect_until(address, bulk, until).await?,
        };
        if conn.is_dead() {
            conn = self.connect_until(address, bulk, until).await?;
        }
        let permit = tokio::time::timeout(seam::now().until(until), conn.permit()).await;
        let permit =
            permit.map_err(|_| CallError::NotSent(format!("too many calls to {address}")))?;
        let remaining = seam::now().until(until);
        let head = Head {
            method,
            deadline_ms: u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX).max(1),
            ..Head::bare(Kind::Request, self.next_id.fetch_add(1, Ordering::Relaxed))
        };
        let head_bytes = frame::finish(buffer, head, &payload);
        let request = Outbound { id: head.id, method, head: head_bytes, payload };
        conn.send(request, permit)?.answer(remaining).await
    }

    async fn connect_until(
        self: &Arc<Pool>,
        address: &str,
        bulk: bool,
        until: Mono,
    ) -> Result<Arc<Conn>, CallError> {
        let remaining = seam::now().until(until);
        let dialled = tokio::time::timeout(remaining, self.connect(address, bulk)).await;
        dialled.unwrap_or_else(|_| Err(no_connection(address)))
    }

    fn live(&self, address: &str, bulk: bool) -> Option<Arc<Conn>> {
        match self.state().peers.get_mut(address)?.slot(bulk) {
            Slot::Live(conn) => Some(conn.clone()),
            _ => None,
        }
    }

    /// The connection to a peer. Whoever needs it first dials; the others wait for the same dial. After a
    /// failure everybody fails at once until the pause is over.
    async fn connect(self: &Arc<Pool>, address: &str, bulk: bool) -> Result<Arc<Conn>, CallError> {
        let mut dialling = match self.begin(address, bulk) {
            Begun::Live(conn) => return Ok(conn),
            Begun::Dialling(dialling) => dialling,
            Begun::Failed(why) => return Err(CallError::NotSent(why.to_string())),
        };
        let ended = match dialling.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            Err(_) => None,
        };
        match ended {
            Some(Ok(conn)) => Ok(conn),
            Some(Err(why)) => Err(CallError::NotSent(why.to_string())),
            None => Err(no_connection(address)),
        }
    }

    fn begin(self: &Arc<Pool>, address: &str, bulk: bool) -> Begun {
        let mut state = self.state();
        let (identity, generation) = (state.identity, state.generation);
        if !state.peers.contains_key(address) {
            state.make_room(self.limits.connections_max);
        }
        let entry = state.peers.entry(address.to_owned()).or_default();
        let expect = entry.expect;
        let slot = entry.slot(bulk);
        let pause = match slot {
            // STALE: a connection is kept although it broke.
            Slot::Live(conn) if !conn.is_dead() || crate::bug!(STALE) => {
                return Begun::Live(conn.clone());
            }
            Slot::Dialling(dialling) if dialling.has_changed().is_ok() => {
                return Begun::Dialling(dialling.clone());
            }
            Slot::Failed { until, why, .. } if seam::now() < *until => {
                crate::mark!("dial refused by the pause after a failure");
                return Begun::Failed(why.clone());
            }
            Slot::Failed { pause, .. } => (*pause * 2).min(self.limits.retry_pause_max),
            Slot::Empty | Slot::Live(_) | Slot::Dialling(_) => self.limits.retry_pause,
        };
        let (sender, dialling) = watch::channel(None);
        *slot = Slot::Dialling(dialling.clone());
        let dial = Dial {
            pool: Arc::downgrade(self),
            limits: self.limits.clone(),
            address: address.to_owned(),
            bulk,
            identity,
            generation,
            expect,
            pause,
        };
        seam::spawn(dial.run(sender));
        Begun::Dialling(dialling)
    }

    /// Ends all connections.
    pub fn close(&self) {
        let peers = std::mem::take(&mut self.state().peers);
        for mut entry in peers.into_values() {
            for slot in [std::mem::take(entry.slot(false)), std::mem::take(entry.slot(true))] {
                if let Slot::Live(conn) = slot {
                    conn.fail("closed");
                }
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Entry {
    /// Forgets the connections; they end when the calls on them have.
    fn retire(&mut self) {
        for slot in [std::mem::take(&mut self.short), std::mem::take(&mut self.bulk)] {
            if let Slot::Live(conn) = slot {
                conn.retire();
            }
        }
    }
}

impl State {
    /// Forgets peers that cannot be reached, so that the table stays bounded.
    fn make_room(&mut self, peers_max: usize) {
        if self.peers.len() < peers_max {
            return;
        }
        let idle = |slot: &Slot| match slot {
            Slot::Empty | Slot::Failed { .. } => true,
            Slot::Live(conn) => conn.is_dead(),
            Slot::Dialling(_) => false,
        };
        self.peers.retain(|_, entry| !(idle(&entry.short) && idle(&entry.bulk)));
    }
}

fn no_connection(address: &str) -> CallError {
    CallError::NotSent(format!("no connection to {address} in time"))
}

struct Dial {
    pool: Weak<Pool>,
    limits: Arc<Limits>,
    address: String,
    bulk: bool,
    identity: Identity,
    generation: u64,
    expect: Expect,
    pause: Duration,
}

impl Dial {
    async fn run(self, sender: watch::Sender<Option<Dialled>>) {
        let dialling = tokio::time::timeout(self.limits.connect_deadline, self.dial()).await;
        let mut dialled: Dialled = match dialling {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(why)) => Err(format!("{}: {why}", self.address).into()),
            Err(_) => Err(format!("{}: no connection in time", self.address).into()),
        };
        let Some(pool) = self.pool.upgrade() else { return };
        {
            let mut state = pool.state();
            let current = state.generation == self.generation;
            if let Some(entry) = state.peers.get_mut(&self.address)
                && entry.expect == self.expect
                && current
            {
                *entry.slot(self.bulk) = match &dialled {
                    Ok(conn) => Slot::Live(conn.clone()),
                    Err(why) => Slot::Failed {
                        until: seam::now() + self.pause,
                        pause: self.pause,
                        why: why.clone(),
                    },
                };
            } else if let Ok(conn) = &dialled {
                crate::mark!("identity or expectation changed during a dial");
                conn.retire();
                dialled = Err(format!("{}: dialled under another identity", self.address).into());
            }
        }
        sender.send_replace(Some(dialled));
    }

    /// A stream to the peer: of several attempts, begun one after another, the first that has an answer.
    async fn stream(&self) -> std::io::Result<TcpStream> {
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(self.attempt());
            tokio::select! {
                biased;
                Some(answer) = attempts.next() => return answer,
                // SINGLE: what nobody answers is not begun once more.
                () = tokio::time::sleep(DIAL_AGAIN), if !crate::bug!(SINGLE) => {
                    crate::mark!("dialled once more");
                }
            }
        }
    }

    async fn attempt(&self) -> std::io::Result<TcpStream> {
        let answer = TcpStream::connect(&self.address).await;
        if answer.is_err()
            && let Some(time) = hook::on_dial_error(&self.identity, &self.address)
        {
            tokio::time::sleep(time).await;
        }
        answer
    }

    async fn dial(&self) -> Result<Arc<Conn>, String> {
        let mut stream = self.stream().await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let mut decoder = hello::decoder();
        let greeter = Greeter {
            io: &mut stream,
            decoder: &mut decoder,
            me: self.identity,
            remote: &self.address,
        };
        let identity = greeter.dial(self.expect).await.map_err(|error| {
            tracing::debug!(address = %self.address, %error, "handshake");
            error.to_string()
        })?;
        decoder.set_limits(frame::FrameLimits::FULL);
        let peer = Peer { identity, address: self.address.clone() };
        Ok(Conn::start(stream, decoder, self.identity, peer, &self.limits))
    }
}
