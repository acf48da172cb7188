//! The tables of the state machine: what each is keyed by and holds. Everything the masters agree on is in
//! them; the indexes exist so that no decision needs a scan.

use crate::ids::{ChunkId, Generation, InodeId, NodeId, Seq, ServerId, SessionId};
use crate::pb;
use crate::tables::Table;

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $id:literal: $key:ty => $row:ty;)*) => {
        $(
            $(#[$doc])*
            pub struct $name;

            impl Table for $name {
                const ID: u8 = $id;
                const NAME: &'static str = stringify!($name);
                type Key = $key;
                type Row = $row;
            }
        )*

        /// Number and name of every table, for tools and tests.
        pub const ALL: &[(u8, &str)] = &[$(($id, stringify!($name))),*];
    };
}

tables! {
    /// One row, key 0: next ids, last time, totals.
    Counters = 1: u64 => pb::CountersRow;
    /// One row, key 0: the cluster's identity and the bounds that `apply` obeys.
    Cluster = 2: u64 => pb::ClusterRow;
    /// Every inode that has a name, is pinned, or waits to be purged.
    Inodes = 3: InodeId => pb::InodeRow;
    /// (directory, name) -> inode.
    Dentries = 4: (InodeId, Vec<u8>) => pb::DentryRow;
    /// (directory, cookie) -> name: the order in which a directory is read.
    Cookies = 5: (InodeId, u64) => pb::CookieRow;
    /// (inode, file offset) -> a piece of the file. Pieces of one inode never overlap.
    Extents = 6: (InodeId, u64) => pb::Extent;
    /// (inode, first byte) -> end: ranges cut off whose extents do not count any more and wait to be purged.
    Cuts = 7: (InodeId, u64) => pb::CutRow;
    /// (inode, name) -> value.
    Xattrs = 8: (InodeId, Vec<u8>) => pb::XattrRow;
    /// Inodes that `PurgeInodeCmd` has work for: without name and pin, or with cuts.
    Orphans = 9: InodeId => pb::EmptyRow;
    /// (inode, session): the session holds the inode open.
    Pins = 10: (InodeId, SessionId) => pb::EmptyRow;
    /// The same by session.
    SessionPins = 11: (SessionId, InodeId) => pb::EmptyRow;
    /// Sessions, ended ones as tombstones.
    Sessions = 12: SessionId => pb::SessionRow;
    /// The nonce of an OpenSession -> its session.
    SessionNonces = 13: u64 => pb::IdRow;
    /// Ended sessions.
    Tombstones = 14: SessionId => pb::EmptyRow;
    /// (session, seq) -> the reply, until the client has acknowledged it.
    Replies = 15: (SessionId, Seq) => pb::ReplyRow;
    /// (session, the client's request number) -> the chunk it opened.
    ChunkRequests = 16: (SessionId, u64) => pb::IdRow;
    /// Chunks.
    Chunks = 17: ChunkId => pb::Chunk;
    /// (chunk, offset in it, inode, offset in the file) -> length: the reverse of `Extents`.
    Refs = 18: (ChunkId, u64, InodeId, u64) => pb::RefRow;
    /// (session, chunk): open chunks by their writer.
    OpenChunks = 19: (SessionId, ChunkId) => pb::EmptyRow;
    /// (server, chunk): the server has a replica in the chunk's set.
    ServerChunks = 20: (ServerId, ChunkId) => pb::EmptyRow;
    /// Chunks whose set lacks shards of their layout, whatever state the servers are in. Chunks on a dead
    /// server are not here but in `ServerChunks` of that server: declaring it dead must not touch them all.
    Degraded = 21: ChunkId => pb::EmptyRow;
    /// Sealed chunks that nothing refers to.
    Deletable = 22: ChunkId => pb::EmptyRow;
    /// Chunks whose replicas are being deleted.
    Deleting = 23: ChunkId => pb::EmptyRow;
    /// (chunk, generation) -> a repair copy under construction.
    PendingReplicas = 24: (ChunkId, Generation) => pb::PendingReplicaRow;
    /// (server, chunk, generation) -> a replica that left its chunk's set and is to be deleted, or adopted.
    Doomed = 25: (ServerId, ChunkId, Generation) => pb::PendingReplicaRow;
    /// Chunkservers.
    Servers = 26: ServerId => pb::ServerRow;
    /// A chunkserver's own uuid -> its id.
    ServerUuids = 27: Vec<u8> => pb::IdRow;
    /// Masters.
    Masters = 28: NodeId => pb::MasterRow;
    /// The random incarnation of a master's data directory -> its id.
    MasterIncarnations = 29: Vec<u8> => pb::IdRow;
    /// Storage classes; 0 is the default.
    Classes = 30: u64 => pb::StorageClass;
    /// A class's name -> its id.
    ClassNames = 31: Vec<u8> => pb::IdRow;
    /// Chunks with bytes that lost their reference since holes were last punched: how many, about.
    Garbage = 32: ChunkId => pb::GarbageRow;
    /// Sealed chunks with holes: ranges that hold nothing any more, for ever.
    Holes = 33: ChunkId => pb::HolesRow;
    /// Chunks some of whose replicas may not have all their holes.
    Punching = 34: ChunkId => pb::EmptyRow;
}
