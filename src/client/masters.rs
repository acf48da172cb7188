//! Calls to whichever master leads, sent again until one answers or time is up.

use crate::errno::Errno;
use crate::limits::Limits;
use crate::pb;
use crate::seam::{self, Mono};
use crate::wire::{Call, CallError, Pool, RefusalCode, calls};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest wait for one attempt before another master is asked. Calls that are sent again carry what makes
/// the masters recognise them (session and sequence number, nonce, request number), so a slow leader that
/// gets one twice executes it once.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for a master's word about who leads.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);
/// A call that has no answer for so long may wait for a machine that lost its power, which closes no
/// connection: the other masters are asked who leads while the call goes on.
const DOUBT_AFTER: Duration = Duration::from_millis(400);
/// How often they are asked from then on.
const DOUBT_AGAIN: Duration = Duration::from_millis(150);
/// An election takes less than this. So long the search for the leader keeps its pauses short; later the
/// masters are taken to be away for longer.
const SEARCH_TIME: Duration = Duration::from_secs(3);
/// Masters remembered beyond those configured.
const MASTERS_MAX: usize = 16;

/// Why no master did what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterError {
    /// Nobody answered in time; what was met last. The call may have been executed.
    TimedOut(String),
    /// A master refused for good.
    Refused(String),
    /// The client is going down.
    Closed,
}

impl std::fmt::Display for MasterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MasterError::TimedOut(why) => write!(f, "no answer in time: {why}"),
            MasterError::Refused(why) => f.write_str(why),
            MasterError::Closed => f.write_str("the client is closed"),
        }
    }
}

impl From<MasterError> for Errno {
    fn from(_: MasterError) -> Errno {
        Errno::EIO
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask this master; it is said to lead.
    Ask(String),
    /// Ask the next master in turn.
    Turn,
    /// Ask the same one again, after a pause.
    Again,
    /// Find out who leads first: the one that was asked hangs.
    Probe,
    /// There is no point.
    Stop,
}

/// Decides from how an attempt ended. Only answers that no retry can change are final.
pub fn classify(error: &CallError) -> Next {
    match error {
        CallError::NotSent(_) | CallError::Lost(_) => Next::Turn,
        CallError::Deadline => Next::Probe,
        CallError::Refused(refusal) => match refusal.code {
            RefusalCode::NotLeader if refusal.message.is_empty() => Next::Turn,
            RefusalCode::NotLeader => Next::Ask(refusal.message.clone()),
            RefusalCode::Busy | RefusalCode::NotDurable | RefusalCode::NoSpace => Next::Again,
            RefusalCode::BadRequest | RefusalCode::WrongCluster | RefusalCode::WrongVersion => {
                Next::Stop
            }
            _ => Next::Turn,
        },
    }
}

/// How an attempt ended that brought no reply.
enum Failed {
    Call(CallError),
    /// Another master is said to lead by now.
    Moved,
}

struct Targets {
    known: Vec<String>,
    leader: Option<String>,
    turn: usize,
    /// When somebody last began to ask who leads.
    doubted: Mono,
}

/// The masters of the cluster.
pub struct Masters {
    pub pool: Arc<Pool>,
    pub limits: Arc<Limits>,
    targets: Mutex<Targets>,
    closed: Mutex<bool>,
    retries: std::sync::atomic::AtomicU64,
}

impl Masters {
    /// Masters known by configuration.
    pub fn new(pool: Arc<Pool>, limits: Arc<Limits>, known: Vec<String>) -> Masters {
        let targets = Targets { known, leader: None, turn: 0, doubted: Mono(0) };
        Masters {
            pool,
            limits,
            targets: Mutex::new(targets),
            closed: Mutex::new(false),
            retries: 0.into(),
        }
    }

    fn targets(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that wait to be sent again end.
    pub fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn is_closed(&self) -> bool {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls sent again.
    pub fn retries(&self) -> u64 {
        self.retries.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Calls the leader, wherever it is, until it answers or `until` has passed.
    pub async fn call<C: Call>(
        &self,
        request: &C::Request,
        until: Mono,
    ) -> Result<C::Reply, MasterError> {
        let mut pause = self.limits.retry_pause;
        let (mut failures, began) = (0, seam::now());
        loop {
            let left = seam::now().until(until);
            if crate::fault!("client: leader forgotten") {
                self.turn(&self.target());
            }
            let target = self.target();
            let attempt = ATTEMPT_DEADLINE.min(left);
            let error = match self.attempt::<C>(&target, request, attempt).await {
                Ok(reply) => {
                    self.led(&target);
                    return Ok(reply);
                }
                Err(Failed::Call(error)) => error,
                Err(Failed::Moved) => {
                    self.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    continue;
                }
            };
            tracing::debug!(call = C::NAME, %target, %error, "a master did not answer");
            let next = classify(&error);
            if next == Next::Stop {
                return Err(MasterError::Refused(error.to_string()));
            }
            if self.is_closed() {
                return Err(MasterError::Closed);
            }
            if seam::now() >= until {
                return Err(MasterError::TimedOut(error.to_string()));
            }
            self.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            failures += 1;
            // A master that names the leader is believed at once, but not for ever: two may name each other.
            let at_once = matches!(next, Next::Ask(_)) && failures % 4 != 0;
            let searching = next != Next::Again && seam::now().since(began) < SEARCH_TIME;
            self.follow(&target, next).await;
            if !at_once {
                let most = match searching {
                    true => self.limits.heartbeat,
                    false => self.limits.retry_pause_max,
                };
                tokio::time::sleep(jitter(pause).min(seam::now().until(until))).await;
                pause = (pause * 2).min(most);
            }
        }
    }

    /// One call to one master. While it waits, the others are asked whether they know of another leader.
    async fn attempt<C: Call>(
        &self,
        target: &str,
        request: &C::Request,
        deadline: Duration,
    ) -> Result<C::Reply, Failed> {
        let call = self.pool.call::<C>(target, request, Vec::new(), deadline);
        let mut call = std::pin::pin!(call);
        let mut patience = DOUBT_AFTER;
        loop {
            let doubt = async {
                tokio::time::sleep(patience).await;
                self.doubt(target).await
            };
            tokio::select! {
                biased;
                answer = &mut call => return answer.map(|(reply, _)| reply).map_err(Failed::Call),
                moved = doubt => if moved {
                    crate::mark!("client left a leader that was silent");
                    return Err(Failed::Moved);
                }
            }
            patience = DOUBT_AGAIN;
        }
    }

    /// Whether another master leads than the one that does not answer. One caller asks for all.
    async fn doubt(&self, silent: &str) -> bool {
        let now = seam::now();
        let ask = {
            let mut targets = self.targets();
            let ask = now.since(targets.doubted) >= DOUBT_AGAIN;
            if ask {
                targets.doubted = now;
            }
            ask && targets.leader.as_deref().is_none_or(|leader| leader == silent)
        };
        if ask && let Some(address) = self.probe(silent).await {
            self.led(&address);
        }
        self.targets().leader.as_deref().is_some_and(|leader| leader != silent)
    }

    /// The master that is asked next.
    pub fn target(&self) -> String {
        let targets = self.targets();
        let turn = &targets.known[targets.turn % targets.known.len()];
        targets.leader.as_ref().unwrap_or(turn).clone()
    }

    fn led(&self, address: &str) {
        let mut targets = self.targets();
        if targets.leader.as_deref() != Some(address) {
            targets.leader = Some(address.to_owned());
        }
    }

    async fn follow(&self, failed: &str, next: Next) {
        match next {
            Next::Ask(address) => self.led(&address),
            Next::Turn => self.turn(failed),
            Next::Probe => {
                crate::mark!("client looked for another leader");
                match self.probe(failed).await {
                    Some(address) => self.led(&address),
                    None => self.turn(failed),
                }
            }
            Next::Again | Next::Stop => {}
        }
    }

    /// Asks the next one, unless somebody else already found another leader.
    fn turn(&self, failed: &str) {
        let mut targets = self.targets();
        let asked = targets.leader.clone();
        if asked.is_none() || asked.as_deref() == Some(failed) {
            targets.leader = None;
            targets.turn += 1;
            let (turn, len) = (targets.turn, targets.known.len());
            if len > 1 && targets.known[turn % len] == failed {
                targets.turn += 1;
            }
        }
    }

    /// Who leads, by the word of the others: that of the highest term.
    async fn probe(&self, hanging: &str) -> Option<String> {
        let others: Vec<String> =
            self.targets().known.iter().filter(|known| *known != hanging).cloned().collect();
        let mut asked = Vec::new();
        for address in others {
            let pool = self.pool.clone();
            asked.push(seam::spawn(async move {
                let request = pb::LeaderRequest {};
                pool.call::<calls::Leader>(&address, &request, Vec::new(), PROBE_DEADLINE).await
            }));
        }
        let mut best: Option<(u64, String)> = None;
        for answer in asked {
            let Ok(Ok((reply, _))) = answer.await else { continue };
            self.learn(&reply.masters);
            let newer = best.as_ref().is_none_or(|(term, _)| *term < reply.term);
            if !reply.address.is_empty() && reply.address != hanging && newer {
                best = Some((reply.term, reply.address));
            }
        }
        best.map(|(_, address)| address)
    }

    fn learn(&self, masters: &[pb::RaftNode]) {
        let mut targets = self.targets();
        for master in masters {
            let new = !master.address.is_empty() && !targets.known.contains(&master.address);
            if new && targets.known.len() < MASTERS_MAX {
                targets.known.push(master.address.clone());
            }
        }
    }

    /// Learns of all masters, so that the client finds them when those it was told about are gone.
    pub async fn refresh(&self) {
        let target = self.target();
        let request = pb::LeaderRequest {};
        let call = self.pool.call::<calls::Leader>(&target, &request, Vec::new(), PROBE_DEADLINE);
        if let Ok((reply, _)) = call.await {
            self.learn(&reply.masters);
        }
    }
}

/// A pause between half of `pause` and all of it, so that clients do not come back in step.
pub fn jitter(pause: Duration) -> Duration {
    let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(seam::rng::random_range(nanos / 2, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Refusal;

    fn refused(code: RefusalCode, message: &str) -> CallError {
        CallError::Refused(Refusal::new(code, message))
    }

    #[test]
    fn only_answers_that_no_retry_changes_are_final() {
        assert_eq!(classify(&CallError::NotSent("x".into())), Next::Turn);
        assert_eq!(classify(&CallError::Lost("x".into())), Next::Turn);
        assert_eq!(classify(&CallError::Deadline), Next::Probe);
        assert_eq!(classify(&refused(RefusalCode::NotLeader, "")), Next::Turn);
        assert_eq!(classify(&refused(RefusalCode::NotLeader, "a:1")), Next::Ask("a:1".into()));
        assert_eq!(classify(&refused(RefusalCode::Busy, "")), Next::Again);
        assert_eq!(classify(&refused(RefusalCode::Internal, "")), Next::Turn);
        assert_eq!(classify(&refused(RefusalCode::ShuttingDown, "")), Next::Turn);
        assert_eq!(classify(&refused(RefusalCode::WrongCluster, "")), Next::Stop);
    }

    fn masters(known: &[&str]) -> Masters {
        let limits = Arc::new(Limits::tiny());
        let identity = crate::wire::Identity {
            cluster: None,
            role: crate::wire::Role::Client,
            node: 0,
            incarnation: 1,
        };
        let pool = Pool::new(identity, limits.clone());
        Masters::new(pool, limits, known.iter().map(|k| (*k).to_owned()).collect())
    }

    #[test]
    fn takes_turns_until_somebody_leads() {
        let masters = masters(&["a", "b", "c"]);
        assert_eq!(masters.target(), "a");
        masters.turn("a");
        assert_eq!(masters.target(), "b");
        masters.led("c");
        masters.turn("b");
        assert_eq!(masters.target(), "c", "a late failure of another does not depose the leader");
        masters.turn("c");
        assert_ne!(masters.target(), "c");
    }
}
