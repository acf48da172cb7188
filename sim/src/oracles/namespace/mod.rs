//! O1: the namespace is linearizable. What clients ask and are answered is taken from the frames at their
//! machines, what took effect from the commands that masters apply. At the end the committed log is replayed
//! once through the model filesystem: each result and errno of each operation and query, and everything that
//! stat shows, must be the model's; real time, unknown outcomes and refusals are [`linear`]'s business. Of
//! sessions: an operation takes effect once and in order, a repeated one is answered as the first time, none
//! takes effect after its session's end.
//!
//! Not checked: answers from a client's caches, which may be as old as their time to live; which bytes a file
//! has (O2, O3) and whether a commit may refer to them; device numbers, storage classes and allocated space;
//! that the log is one (O5).

mod compare;
mod replay;

use super::Applies;
use super::linear::{self, Call, Effect, Fate, History};
use super::log::Log;
use crate::cluster::full::Cluster;
use crate::failure::violation;
use crate::stats;
use crate::world::World;
use crate::world::frames::Watcher;
use mooseng::errno::Errno;
use mooseng::pb::proposal::Kind as Proposal;
use mooseng::pb::{self, outcome};
use mooseng::raft::{Applied, Taken};
use mooseng::wire::calls::{Query, SubmitBatch};
use mooseng::wire::frame::Kind;
use mooseng::wire::hook::FrameInfo;
use mooseng::wire::{Call as _, Role};
use prost::Message;
use replay::{Act, Replay, Told};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The name by which the log knows an operation: session and sequence number.
type Key = (u64, u64);

/// A request under way.
enum Asked {
    Batch(pb::Batch),
    Queries(u64, Vec<pb::Query>),
}

/// What the log holds at an index.
#[derive(Default)]
struct Logged {
    command: pb::Command,
    outcomes: Vec<pb::Outcome>,
    moment: u64,
}

#[derive(Default)]
struct State {
    moment: u64,
    asked: BTreeMap<(String, u64), Asked>,
    changes: BTreeMap<Key, Call<Act, Told>>,
    reads: Vec<Call<Act, Told>>,
    log: BTreeMap<u64, Logged>,
}

/// The oracle; its clones are one.
#[derive(Clone, Default)]
pub struct Namespace(Arc<Mutex<State>>);

impl Namespace {
    /// Watches a world's clients and the masters of `cluster`, together with the oracles of the log that it
    /// relies on (O5, O13). Before the cluster is added to the world.
    pub fn watch(world: &Arc<World>, cluster: &Cluster) -> (Namespace, Log) {
        let (oracle, log) = (Namespace::default(), Log::watch(world, cluster));
        world.frames.watch(oracle.clone());
        cluster.appliers.add(Arc::new(oracle.clone()));
        (oracle, log)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks everything so far. Calls that are under way count as of unknown outcome.
    pub fn check(&self) {
        let state = std::mem::take(&mut *self.state());
        let history = state.into_history();
        let checked = history.and_then(|history| linear::check(&mut Replay::default(), &history));
        match checked {
            Ok(checked) => {
                stats::add("O1 changes checked", checked.changes);
                stats::add("O1 changes nobody heard of", checked.unheard);
                stats::add("O1 reads checked", checked.reads);
            }
            Err(why) => violation("O1", why),
        }
    }
}

impl Applies for Namespace {
    fn applied(&self, _node: &str, applied: &Applied<'_>) {
        let (command, outcomes) = match applied.what {
            Taken::Command(command, outcomes) => (command.clone(), outcomes.to_vec()),
            Taken::Other => Default::default(),
            Taken::Snapshot => return,
        };
        let mut state = self.state();
        state.moment += 1;
        let logged = Logged { command, outcomes, moment: state.moment };
        state.log.entry(applied.index.0).or_insert(logged);
    }
}

fn is_ours(frame: &FrameInfo<'_>) -> bool {
    frame.method == SubmitBatch::METHOD || frame.method == Query::METHOD
}

impl Watcher for Namespace {
    fn sent(&self, node: &str, frame: &FrameInfo<'_>) {
        let from_client = frame.from.role == Role::Client && frame.kind == Kind::Request;
        if from_client && is_ours(frame) {
            self.state().asks((node.to_owned(), frame.request_id), frame);
        }
    }

    fn received(&self, node: &str, frame: &FrameInfo<'_>) {
        if frame.kind == Kind::Reply && is_ours(frame) {
            self.state().hears(&(node.to_owned(), frame.request_id), frame.body);
        }
    }
}

impl State {
    fn asks(&mut self, id: (String, u64), frame: &FrameInfo<'_>) {
        self.moment += 1;
        let moment = self.moment;
        if frame.method == Query::METHOD {
            let Ok(request) = pb::QueryRequest::decode(frame.body) else { return };
            self.asked.insert(id, Asked::Queries(moment, request.queries));
            return;
        }
        let Ok(batch) = pb::Batch::decode(frame.body) else { return };
        for (key, op) in operations(&batch) {
            let op = Act::Change(batch.session, op);
            let call = Call { invoked: moment, op: op.clone(), fate: Fate::Unknown };
            let first = self.changes.entry(key).or_insert(call);
            if first.op != op {
                violation("O1", format!("{}: {key:?} is {:?}, then {op:?}", id.0, first.op));
            }
        }
        self.asked.insert(id, Asked::Batch(batch));
    }

    fn hears(&mut self, id: &(String, u64), body: &[u8]) {
        self.moment += 1;
        match self.asked.remove(id) {
            Some(Asked::Batch(batch)) => {
                if let Ok(reply) = pb::BatchReply::decode(body) {
                    self.hears_of_batch(&batch, &reply);
                }
            }
            Some(Asked::Queries(invoked, queries)) => {
                let Ok(reply) = pb::QueryReply::decode(body) else { return };
                if reply.results.len() != queries.len() {
                    violation("O1", format!("{} answers to {queries:?}", reply.results.len()));
                }
                for (query, result) in queries.into_iter().zip(reply.results) {
                    let Some(query) = query.query else { continue };
                    let (at, index, out) = (self.moment, reply.index, Told::Look(result));
                    let fate = Fate::Answered { at, index, out };
                    self.reads.push(Call { invoked, op: Act::Look(query), fate });
                }
            }
            None => {}
        }
    }

    fn hears_of_batch(&mut self, batch: &pb::Batch, reply: &pb::BatchReply) {
        if reply.errno == 0 && reply.results.len() != batch.ops.len() {
            violation("O1", format!("{} results of {batch:?}", reply.results.len()));
        }
        let over = reply.errno == Errno::ESTALE.get();
        for (nth, (key, _)) in operations(batch).enumerate() {
            let call = self.changes.get_mut(&key).expect("entered when sent");
            let fate = match reply.results.get(nth) {
                Some(result) if reply.errno == 0 => Fate::Answered {
                    at: self.moment,
                    index: reply.index,
                    out: Told::Change(*result),
                },
                // The session is over and this was not among what it did.
                _ if over && key.1 > reply.last_seq => Fate::Refused,
                _ => continue,
            };
            if call.fate == Fate::Unknown {
                call.fate = fate;
            } else if !same(&call.fate, &fate) {
                violation("O1", format!("{key:?} is answered {:?}, then {fate:?}", call.fate));
            }
        }
    }

    fn into_history(self) -> Result<History<Key, Act, Told>, String> {
        let end = self.log.keys().next_back().copied().unwrap_or(0);
        let mut effects = Effects::default();
        for (at, (index, logged)) in self.log.iter().enumerate() {
            if *index != at as u64 + 1 {
                return Err(format!("nobody applied the entry before {index}"));
            }
            effects.take(*index, logged)?;
        }
        for effect in &effects.log {
            let Some(call) = effect.key.and_then(|key| self.changes.get(&key)) else { continue };
            if self.log[&effect.index].moment < call.invoked {
                return Err(format!("{effect:?} before it was asked for"));
            }
        }
        stats::add("O1 repeated operations", effects.repeated);
        Ok(History { changes: self.changes, reads: self.reads, log: effects.log, end })
    }
}

/// Whether two answers to one operation say the same.
fn same(first: &Fate<Told>, again: &Fate<Told>) -> bool {
    match (first, again) {
        (Fate::Answered { index: a, out: x, .. }, Fate::Answered { index: b, out: y, .. }) => {
            a == b && x == y
        }
        (first, again) => first == again,
    }
}

fn operations(batch: &pb::Batch) -> impl Iterator<Item = (Key, pb::op::Op)> {
    let numbered = (batch.first_seq..).zip(&batch.ops);
    numbered.filter_map(|(seq, op)| Some(((batch.session, seq), op.op.clone()?)))
}

/// A session as the log makes it.
#[derive(Default)]
struct Session {
    nonce: u64,
    ended: bool,
    results: Vec<pb::OpResult>,
}

/// What commands do, in order: rule B1 told once more.
#[derive(Default)]
struct Effects {
    log: Vec<Effect<Key, Act, Told>>,
    sessions: BTreeMap<u64, Session>,
    repeated: u64,
}

impl Effects {
    fn push(&mut self, index: u64, op: Act) {
        self.log.push(Effect { index, key: None, op, out: None });
    }

    fn take(&mut self, index: u64, logged: &Logged) -> Result<(), String> {
        let Logged { command, outcomes, .. } = logged;
        self.push(index, Act::Time(command.time_ns));
        for (proposal, outcome) in command.proposals.iter().zip(outcomes) {
            match (&proposal.kind, &outcome.kind) {
                (Some(Proposal::InitCluster(_)), _) if outcome.errno == 0 => {
                    self.push(index, Act::Init);
                }
                (Some(Proposal::OpenSession(cmd)), Some(outcome::Kind::Session(reply))) => {
                    self.begin(index, cmd.client_nonce, reply)?;
                }
                (Some(Proposal::EndSession(cmd)), Some(outcome::Kind::Id(dropped))) => {
                    if let Some(session) = self.sessions.get_mut(&cmd.session) {
                        session.ended = true;
                        self.push(index, Act::End(cmd.session, *dropped));
                    }
                }
                (Some(Proposal::Batch(batch)), Some(outcome::Kind::Batch(reply))) => {
                    self.batch(index, batch, reply)
                        .map_err(|why| format!("at index {index}, {batch:?}: {why}"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        index: u64,
        nonce: u64,
        reply: &pb::OpenSessionReply,
    ) -> Result<(), String> {
        if let Some(known) = self.sessions.get(&reply.session) {
            let again = known.nonce == nonce && !known.ended;
            let why = || format!("session {} is given out again at {index}", reply.session);
            return again.then_some(()).ok_or_else(why);
        }
        if self.sessions.values().any(|session| session.nonce == nonce) {
            return Err(format!("nonce {nonce} has a second session at {index}"));
        }
        self.sessions.insert(reply.session, Session { nonce, ..Session::default() });
        let range = reply.first_inode..reply.first_inode + u64::from(reply.inode_count);
        self.push(index, Act::Begin(reply.session, range));
        Ok(())
    }

    fn batch(
        &mut self,
        index: u64,
        batch: &pb::Batch,
        reply: &pb::BatchReply,
    ) -> Result<(), String> {
        let session = self.sessions.get_mut(&batch.session).filter(|session| !session.ended);
        let Some(session) = session else {
            let refused = reply.errno == Errno::ESTALE.get() && reply.results.is_empty();
            return refused.then_some(()).ok_or_else(|| format!("no such session, yet {reply:?}"));
        };
        let done = session.results.len() as u64;
        if batch.first_seq == 0 || batch.first_seq > done + 1 {
            let refused = reply.errno == Errno::EPROTO.get() && reply.results.is_empty();
            return refused.then_some(()).ok_or_else(|| format!("after {done}, yet {reply:?}"));
        }
        if reply.results.len() != batch.ops.len() {
            return Err(format!("must take effect, yet {reply:?}"));
        }
        let mut forgotten = false;
        for ((key, op), result) in operations(batch).zip(&reply.results) {
            if let Some(first) = session.results.get(key.1 as usize - 1) {
                self.repeated += 1;
                let forgets = result.errno == Errno::EPROTO.get();
                forgotten |= forgets;
                if !forgets && first != result {
                    return Err(format!("{key:?} came out as {first:?}, then as {result:?}"));
                }
                continue;
            }
            session.results.push(*result);
            let (op, out) = (Act::Change(batch.session, op), Some(Told::Change(*result)));
            self.log.push(Effect { index, key: Some(key), op, out });
        }
        let errno = if forgotten { Errno::EPROTO.get() } else { 0 };
        (reply.errno == errno)
            .then_some(())
            .ok_or_else(|| format!("answered errno {}", reply.errno))
    }
}
