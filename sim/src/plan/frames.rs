//! Faults of single frames, named so that the name outlives changes elsewhere in the run.

use super::FaultClass;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Frames that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrameKey {
    /// The machine at which it strikes: the sender, or for handlers the one that handles.
    pub node: String,
    /// The address of the other machine.
    pub peer: String,
    /// The call.
    pub method: String,
    /// A request or its reply.
    pub request: bool,
    /// Of the frame itself, or of the handler of a request.
    pub handler: bool,
}

/// What happens to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It vanishes.
    Lost,
    /// It arrives twice.
    Doubled,
    /// It comes so many milliseconds late.
    LateMs(u64),
    /// Its connection breaks.
    Cut,
    /// Its handler is dropped after so many polls.
    DroppedAfter(u32),
}

impl Fate {
    /// The class that it belongs to, of a request or a reply.
    pub fn class(self, request: bool) -> FaultClass {
        match self {
            Fate::Lost if request => FaultClass::RequestLost,
            Fate::Lost => FaultClass::ReplyLost,
            Fate::Doubled => FaultClass::FrameDoubled,
            Fate::LateMs(_) => FaultClass::FrameDelayed,
            Fate::Cut => FaultClass::ConnectionCut,
            Fate::DroppedAfter(_) => FaultClass::HandlerDropped,
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameFault {
    /// Of which frames ...
    #[serde(flatten)]
    pub frame: FrameKey,
    /// ... which one, from 1.
    pub nth: u64,
    /// What happens to it.
    pub fate: Fate,
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrameKey { node, peer, method, request, .. } = &self.frame;
        let kind = if *request { "request" } else { "reply" };
        let fate = match self.fate {
            Fate::Lost => "is lost".to_owned(),
            Fate::Doubled => "arrives twice".to_owned(),
            Fate::LateMs(ms) => format!("comes {ms} ms late"),
            Fate::Cut => "breaks its connection".to_owned(),
            Fate::DroppedAfter(polls) => {
                return write!(
                    f,
                    "{node}: the handler of {method} number {} from {peer} is dropped at await {polls}",
                    self.nth
                );
            }
        };
        write!(f, "{node} to {peer}: {method} {kind} number {} {fate}", self.nth)
    }
}
