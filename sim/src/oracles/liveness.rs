//! O7, bounds on how soon after healing things work again: a leader, then every client, then convergence. A disk call that
//! was slow before and ends later is given its time: a master that waits for it leads nobody.
//!
//! Not checked: how fast anything is while faults strike; that a bound holds for machines that are not healed.

use crate::failure::stuck;
use crate::stats;
use crate::trace;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A leader serves.
pub const LEADER: Duration = Duration::from_secs(2);
/// Every client is served.
pub const CLIENTS: Duration = Duration::from_secs(5);
/// Everything is whole.
pub const CONVERGED: Duration = Duration::from_secs(60);

/// The end of all faults.
#[derive(Clone, Copy, Debug)]
pub struct Healed {
    /// When it was.
    pub at_ns: u64,
    /// How long the slow disk calls still take that running processes had begun, up to some seconds: nobody is well before.
    pub slow: Duration,
    /// The same of masters only.
    pub slow_masters: Duration,
}

impl Healed {
    /// Waits until a leader serves, at most [`LEADER`].
    pub async fn is_led(&self, leads: impl Fn() -> bool) {
        let done = || if leads() { Ok(()) } else { Err("nobody leads".to_owned()) };
        within("ms until a leader serves", LEADER + self.slow_masters, self.at_ns, done).await;
    }
}

/// When each client was last served, and the moment of healing.
#[derive(Clone, Default)]
pub struct Liveness(Arc<Mutex<BTreeMap<String, u64>>>);

impl Liveness {
    /// An operation of this client that began after `since` was answered.
    pub fn served(&self, client: &str, since_ns: u64) {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = served.entry(client.to_owned()).or_default();
        *latest = since_ns.max(*latest);
    }

    /// Clients that have not been served by something that began after `since`.
    fn waiting(&self, clients: &[String], since_ns: u64) -> Vec<String> {
        let served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |name: &&String| served.get(*name).is_none_or(|at| *at < since_ns);
        clients.iter().filter(waits).cloned().collect()
    }

    /// Waits until every client has been served since the healing, at most [`CLIENTS`] and `more`.
    pub async fn all_served_again(&self, clients: &[String], healed: Healed, more: Duration) {
        self.served_within(CLIENTS + healed.slow + more, clients, healed.at_ns).await;
    }

    /// Waits until every client has been served since `began_ns`, at most [`CLIENTS`].
    pub async fn all_served(&self, clients: &[String], began_ns: u64) {
        self.served_within(CLIENTS, clients, began_ns).await;
    }

    async fn served_within(&self, bound: Duration, clients: &[String], since_ns: u64) {
        let who = || {
            let waiting = self.waiting(clients, since_ns);
            if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?} are not served")) }
        };
        within("ms until all clients served", bound, since_ns, who).await;
    }
}

/// Waits until `done`, whose error says what is missing; fails when it takes longer than `bound` from
/// `since_ns`. What it took goes into the counter `name`.
pub async fn within(
    name: &str,
    bound: Duration,
    since_ns: u64,
    done: impl Fn() -> Result<(), String>,
) {
    loop {
        let passed = Duration::from_nanos(trace::now_ns() - since_ns);
        match done() {
            Ok(()) => return stats::add(name, passed.as_millis() as u64),
            Err(why) if passed > bound => {
                stuck("O7", format!("{why} within {bound:?}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Waits until a scenario has come to this step, which is its own or its mounts' to say.
pub async fn reaches(step: &AtomicU8, wanted: u8, bound: Duration) {
    let come = || step.load(Ordering::Relaxed) >= wanted;
    let done = || come().then_some(()).ok_or_else(|| format!("step {wanted} does not come"));
    within("ms waited for a step", bound, trace::now_ns(), done).await;
}
