//! O7: an error that an application is told has one of the causes that docs/SEMANTICS.md knows (sections 5 and 6).
//!
//! | errno | cause |
//! |---|---|
//! | ESTALE, ENOENT | the file's removal was asked for |
//! | EIO | the session ended since; or it took as long as an operation may |
//! | ENOSPC | too few chunkservers take new bytes; or a wait for them took as long as an operation may |
//!
//! A failed write-back is told by a later call, so for data "since" is the first write that no fsync has vouched for
//! yet. What began after everything was whole again has no excuse but a removal.
//!
//! Not checked: that an error comes where one must (O11, `reporting`); what is answered instead of an error
//! (`ledger`); by whom chunkservers were needed, if they were too few at one time (`world::absence`); how long a call
//! took that had an answer; whether the masters had a reason to end a session, which `frame_chaos` asks.

use crate::failure::violation;
use crate::world::World;
use crate::{stats, trace};
use mooseng::client::Client;
use mooseng::errno::Errno;
use std::time::Duration;

/// When something began, and what had befallen the mount by then.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// In [`trace::now_ns`].
    pub ns: u64,
    /// Sessions that were over.
    sessions_lost: u64,
}

impl Since {
    /// Now.
    pub fn now(client: &Client) -> Since {
        Since { ns: trace::now_ns(), sessions_lost: client.stats().sessions_lost }
    }
}

/// What a call that failed was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A name, or a file's attributes.
    Name,
    /// What was written.
    Writing,
    /// What is read.
    Reading,
}

/// A call that failed.
#[derive(Debug)]
pub struct Failed {
    /// What it answered.
    pub errno: Errno,
    /// What it was about.
    pub about: About,
    /// The file.
    pub name: String,
    /// Since when its causes count.
    pub since: Since,
    /// The file may be gone: its removal was asked for.
    pub removed: bool,
}

impl Failed {
    /// Why it may have failed so, `whole_ns` being when everything was whole again, for good.
    fn cause(&self, client: &Client, world: &World, whole_ns: Option<u64>) -> Option<&'static str> {
        if self.removed && matches!(self.errno, Errno::ESTALE | Errno::ENOENT) {
            return Some("error: the file was removed");
        }
        if whole_ns.is_some_and(|whole| self.since.ns >= whole) {
            return None;
        }
        let lost = client.stats().sessions_lost > self.since.sessions_lost;
        if self.errno == Errno::EIO && lost && self.about != About::Reading {
            return Some("error: the session ended");
        }
        let took = Duration::from_nanos(trace::now_ns() - self.since.ns);
        // Clocks of machines differ by less.
        let late = took >= world.limits().operation_deadline * 99 / 100;
        let full = self.errno == Errno::ENOSPC && self.about == About::Writing;
        if full && lacks_servers(world, self.since.ns) {
            return Some("error: too few chunkservers");
        }
        (late && (full || self.errno == Errno::EIO))
            .then_some("error: no answer before the deadline")
    }

    /// Demands that it has a cause.
    pub fn judge(&self, who: &str, what: &str, client: &Client, world: &World, whole: Option<u64>) {
        stats::count("errors judged");
        match self.cause(client, world, whole) {
            Some(cause) => stats::count(cause),
            None => {
                let Failed { errno, name, since, .. } = self;
                let ms = (trace::now_ns() - since.ns) / 1_000_000;
                violation(
                    "O7",
                    format!(
                        "{who}: {what} of {name} fails without a cause: {errno:?}, since {ms} ms"
                    ),
                );
            }
        }
    }
}

/// Whether at some time since then there may have been fewer chunkservers than new data needs: one that was away is
/// missed for as long as it takes to be heard again.
fn lacks_servers(world: &World, since_ns: u64) -> bool {
    let options = &world.options;
    let needed = match (options.data, options.parity) {
        (1, parity) => (1 + parity).min(2),
        (data, parity) => data + parity,
    };
    let heard_again = world.limits().server_suspect;
    let away = world.absences.most(since_ns, trace::now_ns(), heard_again);
    away + needed as usize > options.chunkservers as usize
}
