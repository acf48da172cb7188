//! Tasks, and work that blocks.

use std::future::Future;
pub use tokio::task::JoinHandle;

/// Starts a task on the calling node's runtime.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Starts a task whose first step is taken here and now, as far as it gets without waiting: a request leaves
/// on the thread that asks, and no other thread need be woken for that. Hold no lock that the task takes. In
/// the simulation the scheduler says when a task's first step is, as always.
pub fn spawn_eager<F>(future: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    #[cfg(not(feature = "sim"))]
    {
        let mut future = Box::pin(future);
        // Nobody is to be woken: the task looks again by itself.
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let first = std::panic::AssertUnwindSafe(|| future.as_mut().poll(&mut cx).is_pending());
        // A panic, of which the process's hook has told, ends the task and not who spawned it.
        if std::panic::catch_unwind(first).unwrap_or(false) {
            spawn(future);
        }
    }
    #[cfg(feature = "sim")]
    spawn(future);
}

/// Runs disk work that may block for long off the runtime's threads. In the simulation it runs inline and
/// then waits as long as the simulated disk says it took.
///
/// Dropping the future does not stop work that has begun.
pub async fn blocking<T, F>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    #[cfg(not(feature = "sim"))]
    {
        #[expect(clippy::disallowed_methods, reason = "the seam itself")]
        let joined = tokio::task::spawn_blocking(work).await;
        match joined {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    #[cfg(feature = "sim")]
    {
        let value = work();
        sim::pay(sim::take_owed()).await;
        value
    }
}

/// [`blocking`] for work that is short unless the disk is slow, and that somebody waits for: it is done here
/// where the runtime has threads that can go on without this one, which spares two hand-offs.
pub async fn blocking_here<T, F>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    #[cfg(not(feature = "sim"))]
    {
        use tokio::runtime::{Handle, RuntimeFlavor};
        if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
            #[expect(clippy::disallowed_methods, reason = "the seam itself")]
            return tokio::task::block_in_place(work);
        }
    }
    blocking(work).await
}

/// After disk calls made inline: waits out what the simulated disk says they took, and tells the simulation that the
/// thread stood still for so long. Nothing in the real world, where the calls themselves took that long.
pub async fn settle() {
    #[cfg(feature = "sim")]
    {
        let owed = sim::take_owed();
        sim::stand_still(owed);
        sim::pay(owed).await;
    }
}

#[cfg(feature = "sim")]
pub use sim::{on_stall, owe, owed};

#[cfg(feature = "sim")]
mod sim {
    use madsim::runtime::Handle;
    use madsim::task::NodeId;
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::sync::OnceLock;
    use std::time::Duration;

    type Debts = BTreeMap<Option<NodeId>, Duration>;
    type Stall = Box<dyn Fn(NodeId, Duration) + Send + Sync>;

    thread_local! {
        /// What the tasks of each machine owe; `None` is for code that runs outside of a simulation.
        static OWED: RefCell<Debts> = const { RefCell::new(BTreeMap::new()) };
    }

    static STALL: OnceLock<Stall> = OnceLock::new();

    fn here() -> Option<NodeId> {
        Handle::try_current().ok().map(|_| madsim::plugin::node())
    }

    /// From now on `stall` hears of each time that inline disk calls took, and of the machine. The first one stays.
    pub fn on_stall(stall: Stall) {
        _ = STALL.set(stall);
    }

    /// A simulated disk call took this long; the machine pays when one of its tasks settles next.
    pub fn owe(time: Duration) {
        OWED.with_borrow_mut(|owed| *owed.entry(here()).or_default() += time);
    }

    /// What the machine owes since it settled last.
    pub fn owed() -> Duration {
        OWED.with_borrow(|owed| owed.get(&here()).copied().unwrap_or_default())
    }

    pub(super) fn take_owed() -> Duration {
        OWED.with_borrow_mut(|owed| owed.remove(&here()).unwrap_or_default())
    }

    pub(super) fn stand_still(time: Duration) {
        if let (Some(stall), Some(node)) = (STALL.get(), here()) {
            stall(node, time);
        }
    }

    pub(super) async fn pay(owed: Duration) {
        if !owed.is_zero() {
            tokio::time::sleep(owed).await;
        }
    }
}
