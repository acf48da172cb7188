//! The chunk store on one disk: one file per replica, nothing else.
//!
//! ```text
//! superblock                 whose disk this is
//! LOCK                       held by the live process
//! chunks/xx/<replica>.dat    4 KiB header | CRC table | data; xx is the low byte of the chunk id
//! chunks/xx/<replica>.build  a replica being rebuilt; renamed when whole, verified and durable
//! ```
//! Header, CRC table and data share one file so that **one** fdatasync makes an append durable: bytes and
//! their CRCs together. A table in a file of its own would need two, with a state between them in which
//! durable bytes have no durable CRC. The table has its full size from the start (64 KiB for copies), so data
//! is contiguous in the file and aligned to 4 KiB.
//!
//! A replica grows by appends at its current length only and is never changed below it (rule A4), so there is
//! nothing to log and nothing to undo: after a crash everything up to the length recorded in the header is
//! trusted, blocks beyond are checked against their CRCs, and the file is cut at the first that does not match.
//!
//! [`Store`] is synchronous; [`Writer`] is the queue in front of it whose batch shares one sync.

mod deleted;
mod format;
mod inspect;
mod open;
mod punch;
mod read;
mod rebuild;
mod replica;
mod superblock;
#[cfg(all(test, not(feature = "sim")))]
mod threads;
mod write;
mod writer;

pub use format::ReplicaId;
pub use inspect::{inspect, inspect_replica};
pub use open::Store;
pub use read::Blocks;
pub use rebuild::Build;
pub use superblock::{Assembled, Claimed, DiskError, assemble};
pub use write::Append;
pub use writer::{Admitted, Writer};

use crate::ids::Uuid;

/// Why the store did not do what it was asked; each a refusal of its own on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The request makes no sense (misaligned, too long, an impossible id).
    #[error("{0}")]
    Bad(String),
    /// This disk has no replica of that id.
    #[error("no replica {0} here")]
    NoSuchReplica(ReplicaId),
    /// An append elsewhere than at the end.
    #[error("replica {id} is {length} bytes long{}, append at {offset} refused", if *.sealed { " and sealed" } else { "" })]
    WrongOffset {
        /// Which.
        id: ReplicaId,
        /// Where the append wanted to go.
        offset: u64,
        /// Where the replica ends.
        length: u64,
        /// Whether it has ended for good.
        sealed: bool,
    },
    /// Less is there than was asked for.
    #[error("replica {id} has {length} bytes, {wanted} were asked for")]
    NotDurable {
        /// Which.
        id: ReplicaId,
        /// What is there.
        length: u64,
        /// What should be.
        wanted: u64,
    },
    /// Bytes do not match their CRC.
    #[error("{0}")]
    Corrupt(String),
    /// The disk gave an error on a write or a sync and is out of use until it is replaced.
    #[error("disk {0} has failed")]
    DiskFailed(String),
    /// Only the reserve is left.
    #[error("disk {0} is full")]
    NoSpace(String),
    /// The disk could not be read here.
    #[error("{0}")]
    Read(String),
    /// Too much is waiting.
    #[error("disk {0} has too much to do")]
    Busy(String),
    /// The store is being closed.
    #[error("shutting down")]
    Closed,
}

/// What one replica is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which.
    pub id: ReplicaId,
    /// Bytes appended.
    pub length: u64,
    /// Bytes that survive a loss of power.
    pub durable: u64,
    /// No more appends, for ever.
    pub sealed: bool,
    /// Known to hold blocks that do not match their CRC.
    pub corrupt: bool,
}

/// What one disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The disk.
    pub disk: Uuid,
    /// Size of its file system, bytes.
    pub total: u64,
    /// What appends may still take, bytes; 0 once failed.
    pub free: u64,
    /// Fenced.
    pub failed: bool,
    /// Replicas on it.
    pub replicas: u64,
}
