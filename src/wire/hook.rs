//! Where the simulation sees every frame as it leaves and as it arrives, and decides what becomes of it.

use super::frame::Kind;
use super::{Identity, RefusalCode};
use bytes::Bytes;
use std::time::Duration;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Deliver,
    /// It vanishes.
    Drop,
    /// It goes on twice (requests and replies; others once).
    Duplicate,
    /// It goes on later; frames behind it overtake it (requests and replies; others at once).
    Delay(Duration),
    /// The connection breaks.
    Cut,
}

/// A frame at the moment it leaves or arrives.
#[derive(Clone, Debug)]
pub struct FrameInfo<'a> {
    /// What it is.
    pub kind: Kind,
    /// The call's number; 0 for frames that belong to no call.
    pub method: u16,
    /// Travels from the calling to the answering side.
    pub is_request: bool,
    /// Ties request and reply together; unique per dialling process with high probability.
    pub request_id: u64,
    /// The sender.
    pub from: Identity,
    /// The receiver; `None` while it has not said who it is.
    pub to: Option<Identity>,
    /// Address of the answering side for the dialler, of the dialler for the answering side.
    pub remote: &'a str,
    /// Refusals: the code.
    pub refusal: Option<RefusalCode>,
    /// The encoded message.
    pub body: &'a [u8],
    /// The raw bytes, in pieces.
    pub payload: &'a [Bytes],
}

#[cfg(feature = "sim")]
pub use active::{Hook, install, uninstall};
#[cfg(feature = "sim")]
pub(super) use active::{on_dial_error, on_eof, on_recv, on_send, polls_allowed};

#[cfg(feature = "sim")]
mod active {
    use super::{FrameInfo, Verdict};
    use crate::wire::Identity;
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::time::Duration;

    /// The simulation's eyes and hands.
    pub trait Hook: Send + Sync + 'static {
        /// A frame is about to be written to the socket.
        fn on_send(&self, frame: &FrameInfo) -> Verdict;
        /// A whole frame has been read from the socket.
        fn on_recv(&self, frame: &FrameInfo) -> Verdict;
        /// The peer closed or broke the connection. `Some`: behave for so long as if nothing had been
        /// noticed, as when a machine loses power.
        fn on_eof(&self, _local: &Identity, _remote: &Identity) -> Option<Duration> {
            None
        }
        /// A dial failed. `Some`: tell the caller only after so long, as when nobody answers at all.
        fn on_dial_error(&self, _local: &Identity, _address: &str) -> Option<Duration> {
            None
        }
        /// Drop the request's handler instead of polling it once more than so often.
        fn polls_allowed(&self, _request: &FrameInfo) -> Option<u32> {
            None
        }
    }

    thread_local! {
        static HOOK: RefCell<Option<Arc<dyn Hook>>> = const { RefCell::new(None) };
    }

    /// Installs the calling thread's hook (a simulation has only this one), replacing any other.
    pub fn install(hook: Box<dyn Hook>) {
        HOOK.with(|slot| *slot.borrow_mut() = Some(hook.into()));
    }

    /// Removes the hook.
    pub fn uninstall() {
        HOOK.with(|slot| *slot.borrow_mut() = None);
    }

    fn hook() -> Option<Arc<dyn Hook>> {
        HOOK.with(|slot| slot.borrow().clone())
    }

    pub fn on_send(frame: &FrameInfo) -> Verdict {
        hook().map_or(Verdict::Deliver, |hook| hook.on_send(frame))
    }

    pub fn on_recv(frame: &FrameInfo) -> Verdict {
        hook().map_or(Verdict::Deliver, |hook| hook.on_recv(frame))
    }

    pub fn on_eof(local: &Identity, remote: &Identity) -> Option<Duration> {
        hook().and_then(|hook| hook.on_eof(local, remote))
    }

    pub fn on_dial_error(local: &Identity, address: &str) -> Option<Duration> {
        hook().and_then(|hook| hook.on_dial_error(local, address))
    }

    pub fn polls_allowed(request: &FrameInfo) -> Option<u32> {
        hook().and_then(|hook| hook.polls_allowed(request))
    }
}

#[cfg(not(feature = "sim"))]
pub(super) use absent::{on_dial_error, on_eof, on_recv, on_send, polls_allowed};

#[cfg(not(feature = "sim"))]
mod absent {
    use super::{FrameInfo, Verdict};
    use crate::wire::Identity;
    use std::time::Duration;

    #[inline(always)]
    pub fn on_send(_: &FrameInfo) -> Verdict {
        Verdict::Deliver
    }

    #[inline(always)]
    pub fn on_recv(_: &FrameInfo) -> Verdict {
        Verdict::Deliver
    }

    #[inline(always)]
    pub fn on_eof(_: &Identity, _: &Identity) -> Option<Duration> {
        None
    }

    #[inline(always)]
    pub fn on_dial_error(_: &Identity, _: &str) -> Option<Duration> {
        None
    }

    #[inline(always)]
    pub fn polls_allowed(_: &FrameInfo) -> Option<u32> {
        None
    }
}
