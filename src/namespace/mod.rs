//! The namespace: the replicated state machine. Inodes, names, extents, chunks, sessions and servers live in
//! ordered tables; [`Namespace::apply`] runs the commands of the log, [`query`] answers from any consistent
//! view, [`check`] states every invariant.
//!
//! **Invariant:** applying is a pure function of state and command. It reads no clock and draws no random
//! number; time and ids arrive inside the command, bounds that decide come from the log. A table that cannot
//! be read is a [`TableError`], which must end the process; it never becomes a reply.
//!
//! An operation first vets, then writes: one that fails changes nothing. Operations of one batch succeed and
//! fail each by itself, because a batch mixes independent calls of many threads: where one depends on
//! another, the client waits for the first one's reply before it sends the second.

mod check;
mod chunks;
mod dirs;
mod extents;
mod files;
mod holes;
mod query;
mod rename;
mod servers;
mod sessions;
mod state;
pub mod tables;
#[cfg(test)]
mod tests;
mod xattrs;

pub use check::{Violation, check};
pub use holes::{dead_ranges, hole_unit};
pub use query::{chunk_info, cluster, query};
pub use state::apply_limits;

use crate::errno::Errno;
use crate::ids::{LogIndex, Term};
use crate::limits::Limits;
use crate::pb::{self, outcome, proposal};
use crate::tables::{Db, TableError};
use state::{Outcome, State, settle};
use std::sync::Arc;

/// Most chunks one session has open; it seals one before it opens another (EBUSY).
pub const OPEN_CHUNKS_MAX: usize = 32;
/// Requests for a chunk that are remembered per session.
pub const CHUNK_REQUESTS_KEPT: u64 = 64;
/// Ended sessions that are remembered.
pub const TOMBSTONES_MAX: u64 = 4096;
/// Ranges of inode ids a session keeps; the oldest is dropped.
pub const INODE_RANGES_MAX: usize = 8;
/// Xattrs of one inode: with the longest names their list is XATTR_LIST_MAX (64 KiB).
pub const XATTRS_MAX: u32 = 256;
/// Repair copies of one chunk under construction at once.
pub const PENDING_REPLICAS_MAX: usize = 64;
/// Holes of one chunk: with more garbage than fits in so many, the largest ranges are punched.
pub const HOLES_MAX: usize = 1024;
/// The first cookie of a directory entry; 1 and 2 are "." and "..".
pub const FIRST_COOKIE: u64 = 3;

/// The state machine over its tables.
pub struct Namespace {
    db: Db,
    limits: Arc<Limits>,
}

impl Namespace {
    /// Takes over tables, empty or not. `limits` count only until a cluster is initialised with its own.
    pub fn new(db: Db, limits: Arc<Limits>) -> Namespace {
        Namespace { db, limits }
    }

    /// The tables.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The tables, for checkpoints and snapshots. Rows change through [`Namespace::apply`] only.
    pub fn db_mut(&mut self) -> &mut Db {
        &mut self.db
    }

    /// Runs the command that the log holds at `index`. `outcomes[i]` answers `proposals[i]`.
    pub fn apply(
        &mut self,
        term: Term,
        index: LogIndex,
        command: &pb::Command,
    ) -> Result<Vec<pb::Outcome>, TableError> {
        let mut state = State::load(&mut self.db, &self.limits, (term, index), command.time_ns)?;
        let mut outcomes = Vec::with_capacity(command.proposals.len());
        for proposal in &command.proposals {
            outcomes.push(state.propose(proposal)?);
        }
        state.store()?;
        Ok(outcomes)
    }
}

impl State<'_> {
    fn propose(&mut self, proposal: &pb::Proposal) -> Result<pb::Outcome, TableError> {
        let outcome = settle(self.dispatch(proposal))?;
        let errno = Errno::code(&outcome);
        Ok(pb::Outcome { errno, kind: outcome.ok().flatten() })
    }

    fn dispatch(&mut self, proposal: &pb::Proposal) -> Outcome<Option<outcome::Kind>> {
        use outcome::Kind as Reply;
        use proposal::Kind;
        let kind = proposal.kind.as_ref().ok_or(Errno::EINVAL)?;
        if !self.ready && !matches!(kind, Kind::InitCluster(_) | Kind::RegisterMaster(_)) {
            return Err(Errno::EAGAIN.into());
        }
        let reply = match kind {
            Kind::Batch(batch) => Reply::Batch(self.batch(batch)?),
            Kind::OpenSession(cmd) => Reply::Session(self.open_session(cmd)?),
            Kind::EndSession(cmd) => Reply::Id(self.end_session(cmd)?),
            Kind::OpenChunk(cmd) => Reply::Chunk(self.open_chunk(cmd)?),
            Kind::SealChunk(cmd) => Reply::Chunk(self.seal_chunk(cmd)?),
            Kind::RegisterServer(cmd) => Reply::Id(self.register_server(cmd)?),
            Kind::ServerState(cmd) => Reply::Id(self.server_state(cmd)?),
            Kind::AllocReplica(cmd) => Reply::Id(self.alloc_replica(cmd)?),
            Kind::ReplaceReplica(cmd) => Reply::Chunk(self.replace_replica(cmd)?),
            Kind::DropReplica(cmd) => Reply::Chunk(self.drop_replica(cmd)?),
            Kind::DeleteChunk(cmd) => Reply::Chunk(self.delete_chunk(cmd)?),
            Kind::ForgetReplicas(cmd) => Reply::Id(self.forget_replicas(cmd)?),
            Kind::PurgeInode(cmd) => Reply::Id(self.purge_inode(cmd)?),
            Kind::PutClass(cmd) => Reply::Id(self.put_class(cmd)?),
            Kind::InitCluster(cmd) => Reply::Id(self.init_cluster(cmd)?),
            Kind::RegisterMaster(cmd) => Reply::Id(self.register_master(cmd)?),
            Kind::PunchChunk(cmd) => Reply::Id(self.punch_chunk(cmd)?),
            Kind::Punched(cmd) => Reply::Id(self.punched(cmd)?),
        };
        Ok(Some(reply))
    }
}
