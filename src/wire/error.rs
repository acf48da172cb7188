//! What a call ends with when it does not end with a reply.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal $text:literal;)*) => {
        /// Why a peer refused. The numbers are part of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum RefusalCode {
            $($(#[$doc])* $name = $value,)*
        }

        impl RefusalCode {
            /// Every code.
            pub const ALL: &[RefusalCode] = &[$(RefusalCode::$name),*];

            /// From the wire; a number this version does not know counts as `Internal`.
            pub fn from_wire(value: u16) -> RefusalCode {
                match value {
                    $($value => RefusalCode::$name,)*
                    _ => RefusalCode::Internal,
                }
            }

            fn text(self) -> &'static str {
                match self {
                    $(RefusalCode::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The request cannot be understood or breaks the protocol.
    BadRequest = 1 "bad request";
    /// Ask the leader: the message is its address, or empty if unknown.
    NotLeader = 2 "not the leader";
    /// Too much is waiting already; try again later. Nothing was done.
    Busy = 3 "busy";
    /// The peers belong to different clusters.
    WrongCluster = 4 "wrong cluster";
    /// Somebody else than expected answers at this address.
    WrongNode = 5 "wrong node";
    /// The command comes from a master whose term is over.
    StaleTerm = 6 "stale term";
    /// The replica is not here (any more): fetch the extents again.
    NoSuchReplica = 7 "no such replica";
    /// An append at another offset than the current length.
    WrongOffset = 8 "wrong offset";
    /// The process has been restarted since, or the node has lost its identity.
    WrongIncarnation = 9 "wrong incarnation";
    /// A checksum does not verify.
    Corrupt = 10 "corrupt";
    /// The disk is fenced after a failure.
    DiskFailed = 11 "disk failed";
    /// No space left.
    NoSpace = 12 "no space";
    /// The bytes asked about are not durable here.
    NotDurable = 13 "not durable";
    /// The process is going down.
    ShuttingDown = 14 "shutting down";
    /// A fault on the answering side.
    Internal = 15 "internal error";
    /// The peers speak different protocol versions.
    WrongVersion = 16 "wrong protocol version";
}

/// The answer of a peer that will not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for code.
    pub code: RefusalCode,
    /// One line for people, except for `NotLeader`, where it is the leader's address or empty.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }

    /// What a handler answers to a method that it does not serve.
    pub fn not_served(method: u16) -> Refusal {
        let name = super::calls::name(method).unwrap_or("an unknown method");
        Refusal::new(RefusalCode::BadRequest, format!("{name} ({method}) is not served here"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.text())?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl std::error::Error for Refusal {}

/// How a call failed. The distinction that matters: was it certainly not executed?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The request never left whole: it was certainly not executed.
    NotSent(String),
    /// The connection broke after the request left: nobody knows whether it was executed.
    Lost(String),
    /// No answer in time: nobody knows whether it was or will be executed.
    Deadline,
    /// The peer answered that it will not.
    Refused(Refusal),
}

impl CallError {
    /// Whether the call may have been, or may yet be, executed.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, CallError::Lost(_) | CallError::Deadline)
    }

    /// Whether there was no connection because the peers belong to different clusters.
    pub fn wrong_cluster(&self) -> bool {
        matches!(self, CallError::NotSent(why) if why.contains(RefusalCode::WrongCluster.text()))
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotSent(why) => write!(f, "not sent: {why}"),
            CallError::Lost(why) => write!(f, "connection lost: {why}"),
            CallError::Deadline => f.write_str("no answer before the deadline"),
            CallError::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> CallError {
        CallError::Refused(refusal)
    }
}
