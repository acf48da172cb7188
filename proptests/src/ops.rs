//! Operations as the client offers them, and their results.

use mooseng::pb::Attr;
pub use mooseng::pb::FileKind as Kind;

/// A model inode number. Whoever drives a real filesystem keeps the map to its numbers.
pub type Ino = u64;

/// One call. Handles are numbers that the caller chooses, never twice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FsOp {
    Lookup {
        parent: Ino,
        name: Vec<u8>,
    },
    Getattr {
        ino: Ino,
    },
    /// Fails if the name exists; `ino` is the number to give.
    Create {
        parent: Ino,
        name: Vec<u8>,
        ino: Ino,
        kind: Kind,
        mode: u32,
        uid: u32,
        gid: u32,
        target: Vec<u8>,
    },
    Link {
        ino: Ino,
        parent: Ino,
        name: Vec<u8>,
    },
    Unlink {
        parent: Ino,
        name: Vec<u8>,
    },
    Rmdir {
        parent: Ino,
        name: Vec<u8>,
    },
    /// Flags as renameat2: 1 NOREPLACE, 2 EXCHANGE.
    Rename {
        parent: Ino,
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        flags: u32,
    },
    Chmod {
        ino: Ino,
        mode: u32,
    },
    Chown {
        ino: Ino,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Truncate {
        ino: Ino,
        size: u64,
    },
    /// Times in nanoseconds; `None` leaves one as it is.
    Utimens {
        ino: Ino,
        atime: Option<i64>,
        mtime: Option<i64>,
    },
    Open {
        client: usize,
        ino: Ino,
        handle: u64,
    },
    Close {
        handle: u64,
    },
    Read {
        handle: u64,
        off: u64,
        len: u64,
    },
    Write {
        handle: u64,
        off: u64,
        data: Vec<u8>,
    },
    Fsync {
        handle: u64,
    },
    Readdir {
        ino: Ino,
    },
    Readlink {
        ino: Ino,
    },
    /// Flags: 1 XATTR_CREATE, 2 XATTR_REPLACE.
    Setxattr {
        ino: Ino,
        name: Vec<u8>,
        value: Vec<u8>,
        flags: u32,
    },
    Getxattr {
        ino: Ino,
        name: Vec<u8>,
    },
    Listxattr {
        ino: Ino,
    },
    Removexattr {
        ino: Ino,
        name: Vec<u8>,
    },
}

/// What an operation that succeeded answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FsOut {
    Unit,
    Stat(Stat),
    Data(Vec<u8>),
    /// Names sorted; without "." and "..".
    Entries(Vec<(Vec<u8>, Ino, Kind)>),
    /// Sorted.
    Names(Vec<Vec<u8>>),
}

/// What stat(2) shows, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stat {
    pub ino: Ino,
    pub kind: Kind,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
}

impl Stat {
    /// What `attr` shows, under the number `ino`.
    pub fn of(ino: Ino, attr: &Attr) -> Stat {
        Stat {
            ino,
            kind: attr.kind(),
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            atime: attr.atime_ns,
            mtime: attr.mtime_ns,
            ctime: attr.ctime_ns,
        }
    }
}

impl FsOut {
    /// Without times, where those are another clock's.
    pub fn timeless(self) -> FsOut {
        match self {
            FsOut::Stat(stat) => FsOut::Stat(Stat { atime: 0, mtime: 0, ctime: 0, ..stat }),
            other => other,
        }
    }
}
