//! What callers of a mount pass and get.

use crate::ids::Uuid;
use crate::limits::Limits;
use crate::pb;
use std::fmt;
use std::sync::Arc;

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Addresses (`host:port`) of masters; any one that lives is enough to find the others.
    pub masters: Vec<String>,
    /// Refuse any other cluster; `None` takes the one that answers.
    pub cluster: Option<Uuid>,
    /// Names this mount in the session table, for people.
    pub host: String,
    /// Bounds and times.
    pub limits: Arc<Limits>,
}

/// Why a mount could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The configuration names no master.
    #[error("no master address is configured")]
    NoMasters,
    /// No master gave a session before the deadline; the text says what the last attempt met.
    #[error("no master of {masters} opened a session: {reason}")]
    Unreachable {
        /// The addresses that were tried.
        masters: String,
        /// What went wrong last.
        reason: String,
    },
    /// The masters belong to another cluster, or speak another protocol.
    #[error("the masters refused this client: {0}")]
    Refused(String),
}

/// An open file. Numbers are not used twice in the life of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

/// A timestamp to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time at which the operation takes effect.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// How one write is done, whatever its handle was opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// To the end of the file, wherever it says.
    pub appends: bool,
    /// It returns when it is committed.
    pub synchronous: bool,
}

/// What setattr changes; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, 0o7777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New size, bytes: cuts, or extends with zeros.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Time of last modification.
    pub mtime: Option<SetTime>,
    /// Clear setuid, and setgid where group-executable.
    pub kill_priv: bool,
}

impl SetAttr {
    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == SetAttr::default()
    }
}

/// A regular file to create and open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewFile {
    /// Permission bits after umask.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Linux open flags (`O_EXCL`, `O_APPEND`, access mode, ...).
    pub flags: i32,
}

/// A directory, FIFO, socket, device or empty regular file to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// What it is.
    pub kind: pb::FileKind,
    /// Permission bits after umask.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
}

/// What a client counted since it connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Operations that the masters answered.
    pub operations: u64,
    /// Batches that carried them.
    pub batches: u64,
    /// Query requests sent.
    pub queries: u64,
    /// Append calls answered, over all servers.
    pub appends: u64,
    /// Sync calls answered, over all servers.
    pub syncs: u64,
    /// Read calls answered.
    pub reads: u64,
    /// Bytes read from chunkservers.
    pub read_bytes: u64,
    /// Bytes of file data handed to chunkservers or to the masters, each counted once.
    pub written_bytes: u64,
    /// Calls sent again, to masters or chunkservers.
    pub retries: u64,
    /// Chunks given up because a server failed.
    pub chunks_lost: u64,
    /// Replies of chunkservers that did not verify.
    pub corrupt_reads: u64,
    /// Bytes read by reconstructing from parity.
    pub degraded_bytes: u64,
    /// Bytes written by the application and waiting to be committed, now.
    pub dirty_bytes: u64,
    /// Write-backs that failed and were reported or counted.
    pub failed_writebacks: u64,
    /// Bytes that were lost with nobody left to be told.
    pub lost_bytes: u64,
    /// Sessions opened, the first included.
    pub sessions: u64,
    /// Sessions that were over before the mount was.
    pub sessions_lost: u64,
    /// Inodes in the cache now.
    pub inodes_cached: u64,
}
