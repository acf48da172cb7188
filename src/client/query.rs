//! Reads of the namespace: concurrent, linearizable, asked again of another leader when one fails. Queries
//! that wait while others are under way travel together.

use super::masters::Masters;
use crate::errno::Errno;
use crate::pb::{self, query::Query as Kind};
use crate::seam::{self, Mono};
use crate::wire::calls;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Calls under way at once; queries beyond wait and share the next call.
const CALLS_MAX: usize = 4;
/// Queries in one call.
const QUERIES_MAX: usize = 64;
/// Queries that wait at once.
const WAITING_MAX: usize = 4096;

type Done = oneshot::Sender<Result<Answer, Errno>>;

/// What the masters said, and when they were asked: what is recorded from it counts from then.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The result; its errno is 0 unless the caller asked for the raw answer.
    pub result: pb::QueryResult,
    /// Before the question left.
    pub asked: Mono,
}

struct Waiting {
    query: Kind,
    done: Done,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    calls: usize,
}

/// Asks the masters.
pub struct Queries {
    masters: Arc<Masters>,
    state: Mutex<State>,
    sent: AtomicU64,
}

impl Queries {
    /// Nothing asked yet.
    pub fn new(masters: Arc<Masters>) -> Arc<Queries> {
        Arc::new(Queries { masters, state: Mutex::default(), sent: AtomicU64::new(0) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Asks; an errno in the answer is the error.
    pub async fn ask(self: &Arc<Queries>, query: Kind) -> Result<Answer, Errno> {
        let answer = self.ask_raw(query).await?;
        Errno::check(answer.result.errno)?;
        Ok(answer)
    }

    /// Asks; the answer may carry an errno beside what else is known.
    pub async fn ask_raw(self: &Arc<Queries>, query: Kind) -> Result<Answer, Errno> {
        let (done, answer) = oneshot::channel();
        let begin = {
            let mut state = self.state();
            if state.waiting.len() >= WAITING_MAX {
                return Err(Errno::EAGAIN);
            }
            state.waiting.push_back(Waiting { query, done });
            let begin = state.calls < CALLS_MAX;
            state.calls += usize::from(begin);
            begin
        };
        if begin {
            seam::spawn_eager(self.clone().work());
        }
        // The call ends by its deadline; the sender is dropped only with the runtime.
        answer.await.unwrap_or(Err(Errno::EIO))
    }

    /// Sends what waits until nothing does.
    async fn work(self: Arc<Queries>) {
        loop {
            let batch: Vec<Waiting> = {
                let mut state = self.state();
                let count = state.waiting.len().min(QUERIES_MAX);
                if count == 0 {
                    state.calls -= 1;
                    return;
                }
                state.waiting.drain(..count).collect()
            };
            self.send(batch).await;
        }
    }

    async fn send(&self, batch: Vec<Waiting>) {
        let queries =
            batch.iter().map(|w| pb::Query { query: Some(w.query.clone()) }).collect::<Vec<_>>();
        crate::maybe!(queries.len() > 1, "queries shared a call");
        let count = queries.len();
        let request = pb::QueryRequest { session: 0, queries };
        let asked = seam::now();
        let until = asked + self.masters.limits.operation_deadline;
        self.sent.fetch_add(1, Ordering::Relaxed);
        match self.masters.call::<calls::Query>(&request, until).await {
            // They may answer only the first of them.
            Ok(reply) if (1..=count).contains(&reply.results.len()) => {
                let mut batch = batch.into_iter();
                for (result, waiting) in reply.results.into_iter().zip(batch.by_ref()) {
                    let _ = waiting.done.send(Ok(Answer { result, asked }));
                }
                let mut state = self.state();
                batch.rev().for_each(|waiting| state.waiting.push_front(waiting));
            }
            Ok(_) => fail(batch, Errno::EPROTO),
            Err(error) => {
                tracing::warn!(%error, "the masters did not answer a query");
                fail(batch, Errno::EIO);
            }
        }
    }
}

fn fail(batch: Vec<Waiting>, errno: Errno) {
    for waiting in batch {
        let _ = waiting.done.send(Err(errno));
    }
}
