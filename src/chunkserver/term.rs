//! The highest term that a master has shown. Commands of lower terms are refused (rule A2), so that a leader
//! that was deposed without knowing cannot delete or cut what its successor has just made.

use crate::codec::{self, kind};
use crate::ids::Term;
use crate::pb;
use crate::seam::{self, work::JoinHandle};
use crate::store::Store;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const FILE: &str = "term";

/// Kept in memory at once and on the first disk soon after: a term that a crash makes it forget is shown
/// again by the leader's first call.
pub(super) struct Terms {
    highest: Arc<AtomicU64>,
    writing: Arc<AtomicBool>,
    writer: Mutex<Option<JoinHandle<()>>>,
    store: Arc<Store>,
}

impl Terms {
    pub fn load(store: &Arc<Store>) -> Terms {
        let read = codec::read_file::<pb::HighestTerm>(&**store.disk(), FILE, kind::HIGHEST_TERM);
        let highest = match read {
            Ok(found) => found.unwrap_or_default().term,
            Err(error) => {
                tracing::warn!("{error}: starting from term 0");
                0
            }
        };
        Terms {
            highest: Arc::new(AtomicU64::new(highest)),
            writing: Arc::new(AtomicBool::new(false)),
            writer: Mutex::default(),
            store: store.clone(),
        }
    }

    pub fn highest(&self) -> Term {
        Term(self.highest.load(Ordering::Acquire))
    }

    /// Whether a command of this term is to be obeyed; remembers it if it is the highest.
    pub fn obey(&self, term: Term) -> bool {
        let before = self.highest.fetch_max(term.0, Ordering::AcqRel);
        if term.0 > before {
            self.remember();
        }
        term.0 >= before
    }

    /// One write at a time; a term that comes meanwhile is written after it.
    fn remember(&self) {
        if self.store.failed() || self.writing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (store, highest, writing) =
            (self.store.clone(), self.highest.clone(), self.writing.clone());
        let writer = seam::spawn(async move {
            let mut written = 0;
            loop {
                let term = highest.load(Ordering::Acquire);
                if written < term {
                    written = term;
                    let (store, message) = (store.clone(), pb::HighestTerm { term });
                    let result = seam::blocking(move || {
                        codec::write_file(&**store.disk(), FILE, kind::HIGHEST_TERM, &message)
                    });
                    if let Err(error) = result.await {
                        tracing::warn!("term not recorded: {error}");
                    }
                    continue;
                }
                writing.store(false, Ordering::Release);
                // Whoever raised it just before that counted on this task.
                let raised = highest.load(Ordering::Acquire) > written;
                if !raised || writing.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    }

    /// Waits for a write that is under way: it holds the disk.
    pub async fn settle(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.await;
        }
    }
}
