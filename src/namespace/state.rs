//! What one command works on: the tables, the command's time and place in the log, and the totals it keeps.

use super::tables::{Classes, Cluster, Counters, Dentries, Inodes};
use crate::errno::Errno;
use crate::ids::{InodeId, LogIndex, Term};
use crate::limits::{Limits, NAME_BYTES_MAX};
use crate::pb::{self, ApplyLimits, Attr, FileKind, InodeRow};
use crate::tables::{Db, Read, TableError};

/// Why an operation ended early: an answer for the client, or a broken table, which ends the process.
#[derive(Debug)]
pub(super) enum Fault {
    Errno(Errno),
    Table(TableError),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Errno(errno)
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Fault {
        Fault::Table(error)
    }
}

pub(super) type Outcome<T> = Result<T, Fault>;

/// Splits a broken table, which must abort, from an errno, which is an answer.
pub(super) fn settle<T>(outcome: Outcome<T>) -> Result<Result<T, Errno>, TableError> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(Fault::Errno(errno)) => Ok(Err(errno)),
        Err(Fault::Table(error)) => Err(error),
    }
}

/// An inode taken out of its row; [`State::save`] puts it back.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub attr: Attr,
    pub row: InodeRow,
}

impl Inode {
    pub fn from_row(mut row: InodeRow) -> Inode {
        Inode { attr: row.attr.take().unwrap_or_default(), row }
    }

    pub fn id(&self) -> InodeId {
        InodeId(self.attr.inode)
    }

    pub fn is_dir(&self) -> bool {
        self.attr.kind() == FileKind::Directory
    }

    /// Neither a name nor an open file keeps it: only the purge still knows it.
    pub fn is_orphan(&self) -> bool {
        self.attr.nlink == 0 && self.row.pins == 0
    }

    /// Something about the inode changed.
    pub fn changed(&mut self, now: i64) {
        self.attr.ctime_ns = now;
        self.attr.change += 1;
    }

    /// Its content changed too.
    pub fn modified(&mut self, now: i64) {
        self.attr.mtime_ns = now;
        self.changed(now);
    }
}

/// The inode, unless nothing keeps it any more (ESTALE).
pub(super) fn inode(read: &impl Read, id: InodeId) -> Outcome<Inode> {
    let row = read.get::<Inodes>(&id)?.ok_or(Errno::ESTALE)?;
    let inode = Inode::from_row(row);
    if inode.is_orphan() {
        return Err(Errno::ESTALE.into());
    }
    Ok(inode)
}

/// A directory, possibly one that was removed while open (nlink 0).
pub(super) fn dir(read: &impl Read, id: InodeId) -> Outcome<Inode> {
    let dir = inode(read, id)?;
    if dir.is_dir() { Ok(dir) } else { Err(Errno::ENOTDIR.into()) }
}

/// Names that can be entries. The kernel resolves "." and ".." itself.
pub(super) fn vet_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let reserved = name.is_empty() || name == b"." || name == b"..";
    if reserved || name.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The bounds that `apply` obeys, as a new cluster writes them down.
pub fn apply_limits(limits: &Limits) -> ApplyLimits {
    ApplyLimits {
        batch_ops_max: u32::try_from(limits.batch_ops_max).unwrap_or(u32::MAX),
        replies_kept: limits.replies_kept as u64,
        inode_range: limits.inode_range,
        inline_bytes_max: limits.inline_bytes_max as u64,
        inline_total_bytes_max: limits.inline_total_bytes_max as u64,
        extents_max: limits.extents_max,
        purge_extents: limits.purge_extents,
    }
}

/// A command under way.
pub(super) struct State<'a> {
    pub db: &'a mut Db,
    pub term: Term,
    pub index: LogIndex,
    /// The command's time, clamped not to run backwards (rule B3: it fills timestamps and decides nothing).
    pub now: i64,
    pub counters: pb::CountersRow,
    pub limits: ApplyLimits,
    /// Whether the cluster was initialised.
    pub ready: bool,
    /// Extents that this command may still free at once; the rest is left to purges.
    pub purge_budget: u32,
    /// What an opened session is told; decides nothing here.
    pub session_ttl_ms: u64,
}

impl<'a> State<'a> {
    pub fn load(
        db: &'a mut Db,
        limits: &Limits,
        (term, index): (Term, LogIndex),
        time_ns: u64,
    ) -> Result<State<'a>, TableError> {
        let mut counters = db.get::<Counters>(&0)?.unwrap_or_default();
        let cluster = db.get::<Cluster>(&0)?;
        let ready = cluster.is_some();
        let session_ttl_ms = u64::try_from(limits.session_ttl.as_millis()).unwrap_or(u64::MAX);
        let limits = cluster.and_then(|c| c.limits).unwrap_or_else(|| apply_limits(limits));
        let time_ns = if crate::bug!(M19) { crate::seam::wall_ns() } else { time_ns };
        crate::maybe!(time_ns < counters.time_ns, "command time clamped");
        counters.time_ns = counters.time_ns.max(time_ns);
        let now = i64::try_from(counters.time_ns).unwrap_or(i64::MAX);
        let purge_budget = limits.purge_extents;
        Ok(State { db, term, index, now, counters, limits, ready, purge_budget, session_ttl_ms })
    }

    /// Writes the totals; the last act of a command.
    pub fn store(self) -> Result<(), TableError> {
        self.db.put::<Counters>(&0, &self.counters)
    }

    /// An id of the shared sequence: sessions, chunks, generations.
    pub fn next_id(&mut self) -> u64 {
        let id = self.counters.next_id.max(1);
        self.counters.next_id = id + 1;
        id
    }

    pub fn inode(&self, id: u64) -> Outcome<Inode> {
        inode(self.db, InodeId(id))
    }

    /// A directory that entries can be made in.
    pub fn live_dir(&self, id: u64) -> Outcome<Inode> {
        let dir = dir(self.db, InodeId(id))?;
        if dir.attr.nlink == 0 { Err(Errno::ENOENT.into()) } else { Ok(dir) }
    }

    pub fn dentry(&self, dir: &Inode, name: &[u8]) -> Outcome<Option<pb::DentryRow>> {
        Ok(self.db.get::<Dentries>(&(dir.id(), name.to_vec()))?)
    }

    /// Puts the inode back; returns its attributes.
    pub fn save(&mut self, inode: Inode) -> Outcome<Attr> {
        let Inode { attr, mut row } = inode;
        row.attr = Some(attr);
        self.db.put::<Inodes>(&InodeId(attr.inode), &row)?;
        Ok(attr)
    }

    pub fn vet_class(&self, class: u32) -> Outcome<()> {
        if class != 0 && self.db.get::<Classes>(&u64::from(class))?.is_none() {
            return Err(Errno::EINVAL.into());
        }
        Ok(())
    }
}
