//! A long request's share of the memory that a server keeps for such requests.

use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedSemaphorePermit;

/// What a request takes of [`Limits::receive_bytes_max`]; nothing if it is short. It goes back when the last clone
/// does, which is when the request has been answered or its handler was dropped, and not before: neither its deadline
/// nor a cancel frees the bytes that a handler still has, and with deadlines as short as a peer likes nothing would
/// be bounded. A handler that gives the bytes to somebody who has a bound of his own says so, with
/// [`Memory::pass_on`].
///
/// [`Limits::receive_bytes_max`]: crate::limits::Limits::receive_bytes_max
#[derive(Clone, Debug, Default)]
pub struct Memory(Option<Arc<Mutex<Option<OwnedSemaphorePermit>>>>);

impl Memory {
    pub(super) fn of(share: OwnedSemaphorePermit) -> Memory {
        Memory(Some(Arc::new(Mutex::new(Some(share)))))
    }

    /// Gives the share back at once: the request's bytes are bounded elsewhere from now on.
    pub fn pass_on(&self) {
        if let Some(share) = &self.0 {
            drop(share.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}
