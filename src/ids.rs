//! Newtypes for every id and position; no bare integer crosses a module boundary.

use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The raw number, for the wire and for keys.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl From<u64> for $name {
            fn from(raw: u64) -> $name {
                $name(raw)
            }
        }

        impl From<$name> for u64 {
            fn from(id: $name) -> u64 {
                id.0
            }
        }
    )*};
}

ids! {
    /// An inode; 1 is the root directory. Never reused.
    InodeId "i";
    /// A chunk. Never reused.
    ChunkId "c";
    /// A chunkserver, numbered by the log.
    ServerId "s";
    /// A master, numbered by the log; openraft's node id.
    NodeId "m";
    /// A client session, numbered by the log.
    SessionId "x";
    /// A position in the Raft log.
    LogIndex "#";
    /// A Raft term.
    Term "t";
    /// The number of an operation within its session, from 1.
    Seq "q";
    /// Names the command that created a replica.
    Generation "g";
    /// A random number drawn at each start of a process.
    Incarnation "b";
}

/// The root directory.
pub const ROOT: InodeId = InodeId(1);

/// 16 random bytes that name a cluster, a data directory or a disk for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// From wire or disk bytes; `None` unless there are exactly 16.
    pub fn from_bytes(bytes: &[u8]) -> Option<Uuid> {
        bytes.try_into().ok().map(Uuid)
    }

    /// The 16 bytes, for messages.
    pub fn bytes(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }

    /// From 32 hexadecimal digits, dashes allowed.
    pub fn parse(text: &str) -> Option<Uuid> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|b| *b != b'-')
            .map(|b| (b as char).to_digit(16).map(|d| d as u8))
            .collect::<Option<_>>()?;
        let pairs: [u8; 32] = digits.try_into().ok()?;
        let mut out = [0; 16];
        for (byte, pair) in out.iter_mut().zip(pairs.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(Uuid(out))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
