//! Work on the node's disk that goes on when whoever asked for it is gone.

use crate::seam;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Pieces of work at once.
const AT_ONCE: u32 = 16;

/// What is under way. A node that stops waits for all of it: the directory may be opened again at once.
#[derive(Clone, Debug)]
pub struct DiskWork(Arc<Semaphore>);

impl Default for DiskWork {
    fn default() -> DiskWork {
        DiskWork(Arc::new(Semaphore::new(AT_ONCE as usize)))
    }
}

impl DiskWork {
    /// Does it where blocking is allowed; `None` if the node is stopping.
    pub async fn run<T, F>(&self, work: F) -> Option<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let permit = self.0.clone().acquire_owned().await.ok()?;
        let work = move || {
            let done = work();
            // Not before, and also if nobody waits for it any more.
            drop(permit);
            done
        };
        Some(seam::blocking(work).await)
    }

    /// No more begins; returns when what had begun is done.
    pub async fn end(&self) {
        let all = self.0.acquire_many(AT_ONCE).await;
        self.0.close();
        drop(all);
    }
}

#[cfg(all(test, not(feature = "sim")))]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn the_end_waits_for_what_nobody_waits_for_any_more() {
        let work = DiskWork::default();
        let done = Arc::new(AtomicBool::new(false));
        let (doing, finished) = (work.clone(), done.clone());
        let (begun, begins) = tokio::sync::oneshot::channel();
        let asked = seam::spawn(async move {
            doing
                .run(move || {
                    let _ = begun.send(());
                    std::thread::sleep(Duration::from_millis(200));
                    finished.store(true, Ordering::Relaxed);
                })
                .await
        });
        begins.await.expect("it begins");
        asked.abort();
        assert!(asked.await.is_err());
        work.end().await;
        assert!(done.load(Ordering::Relaxed));
        assert_eq!(work.run(|| 1).await, None);
    }
}
