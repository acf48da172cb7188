//! SIGTERM and SIGINT ask for a clean end.

use crate::fail::Fail;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Caught from when this is made; a second signal during the clean end kills as usual only by SIGKILL.
pub struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    /// Begins to catch. Needs a tokio runtime.
    pub fn catch() -> Result<Stop, Fail> {
        let kind = |kind| signal(kind).map_err(|e| Fail::new(format!("signals: {e}")));
        Ok(Stop { term: kind(SignalKind::terminate())?, int: kind(SignalKind::interrupt())? })
    }

    /// Waits for either and names it.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
