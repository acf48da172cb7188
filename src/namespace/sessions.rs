//! Sessions: batches exactly once and in order, pins of open files, ranges of inode ids.

use super::state::{Inode, Outcome, State, settle};
use super::tables::{
    ChunkRequests, Inodes, OpenChunks, Pins, Replies, SessionNonces, SessionPins, Sessions,
    Tombstones,
};
use super::{INODE_RANGES_MAX, TOMBSTONES_MAX};
use crate::errno::Errno;
use crate::ids::{ChunkId, InodeId, Seq, SessionId};
use crate::pb::{self, BatchReply, OpResult, SessionRow, op};
use crate::tables::Read;

impl State<'_> {
    /// Opens a session, once per nonce; a nonce whose session ended is ESTALE.
    pub fn open_session(&mut self, cmd: &pb::OpenSessionCmd) -> Outcome<pb::OpenSessionReply> {
        if let Some(known) = self.db.get::<SessionNonces>(&cmd.client_nonce)? {
            crate::mark!("session opened again by nonce");
            let session = self.db.get::<Sessions>(&SessionId(known.id))?.ok_or(Errno::ESTALE)?;
            return if session.ended {
                Err(Errno::ESTALE.into())
            } else {
                Ok(self.session_reply(&session))
            };
        }
        let mut session = SessionRow {
            id: self.next_id(),
            client_nonce: cmd.client_nonce,
            host: cmd.host.clone(),
            ..SessionRow::default()
        };
        self.grant_inodes(&mut session, self.limits.inode_range);
        self.db.put::<SessionNonces>(&cmd.client_nonce, &pb::IdRow { id: session.id })?;
        self.db.put::<Sessions>(&SessionId(session.id), &session)?;
        Ok(self.session_reply(&session))
    }

    fn session_reply(&self, session: &SessionRow) -> pb::OpenSessionReply {
        let count = session.end_inode - session.first_inode;
        pb::OpenSessionReply {
            session: session.id,
            ttl_ms: self.session_ttl_ms,
            first_inode: session.first_inode,
            inode_count: u32::try_from(count).unwrap_or(u32::MAX),
            errno: 0,
        }
    }

    /// Ends a session for good: its chunks are sealed at what was committed, its pins go, a tombstone stays
    /// (rule B1: what an expired session left unanswered is known to be applied or not by its last_seq). Pins go
    /// in bounded steps: the command is repeated while it answers more than 0, the number of those it dropped.
    pub fn end_session(&mut self, cmd: &pb::EndSessionCmd) -> Outcome<u64> {
        let id = SessionId(cmd.session);
        let session = self.db.get::<Sessions>(&id)?.ok_or(Errno::ESTALE)?;
        if session.ended && self.db.get::<Tombstones>(&id)?.is_some() {
            return Ok(0);
        }
        if !session.ended {
            crate::maybe!(cmd.expired, "session expired");
            self.close_session(id, session)?;
        }
        let most = self.limits.purge_extents.max(1) as usize;
        let pins = self.pinned_by(id, most + 1)?;
        let done = pins.len() <= most;
        let dropped = pins.len().min(most) as u64;
        for inode in pins.into_iter().take(most) {
            self.unpin(id, inode)?;
        }
        if done {
            self.db.put::<Tombstones>(&id, &pb::EmptyRow {})?;
            self.counters.tombstones += 1;
            self.trim_tombstones()?;
        } else {
            crate::mark!("pins of an ended session left to the next step");
        }
        Ok(dropped)
    }

    /// From now on nothing is accepted from it.
    fn close_session(&mut self, id: SessionId, mut session: SessionRow) -> Outcome<()> {
        for chunk in self.chunks_of(id)? {
            self.seal(chunk)?;
        }
        let kept = session.acked_seq + 1..=session.last_seq;
        for seq in kept {
            self.db.delete::<Replies>(&(id, Seq(seq)))?;
        }
        for request in self.requests_of(id)? {
            self.db.delete::<ChunkRequests>(&(id, request))?;
        }
        session.ended = true;
        session.acked_seq = session.last_seq;
        (session.first_inode, session.end_inode) = (0, 0);
        session.older.clear();
        Ok(self.db.put::<Sessions>(&id, &session)?)
    }

    fn trim_tombstones(&mut self) -> Outcome<()> {
        if self.counters.tombstones <= TOMBSTONES_MAX {
            return Ok(());
        }
        let oldest = self.db.range::<Tombstones>(&SessionId(0), None).next().transpose()?;
        let Some((id, _)) = oldest else { return Ok(()) };
        if let Some(session) = self.db.get::<Sessions>(&id)? {
            self.db.delete::<SessionNonces>(&session.client_nonce)?;
        }
        self.db.delete::<Sessions>(&id)?;
        self.db.delete::<Tombstones>(&id)?;
        self.counters.tombstones -= 1;
        Ok(())
    }

    /// Rule B1: exactly once, in order. New operations are accepted only right after the last one; those seen
    /// before are answered from the reply table, or with EPROTO when their reply is forgotten, and are never
    /// applied again.
    pub fn batch(&mut self, batch: &pb::Batch) -> Outcome<BatchReply> {
        let id = SessionId(batch.session);
        let Some(mut session) = self.db.get::<Sessions>(&id)? else {
            return Ok(self.refuse_batch(Errno::ESTALE, 0));
        };
        if session.ended && !crate::bug!(M26) {
            return Ok(self.refuse_batch(Errno::ESTALE, session.last_seq));
        }
        let too_many = batch.ops.len() > self.limits.batch_ops_max as usize;
        // GAP: what is missing in between may come later.
        let gap = batch.first_seq > session.last_seq + 1 && !crate::bug!(GAP);
        if batch.first_seq == 0 || gap || too_many {
            crate::mark!("batch out of order refused");
            return Ok(self.refuse_batch(Errno::EPROTO, session.last_seq));
        }
        let acked = batch.acked_seq.min(session.last_seq);
        let mut reply = BatchReply::default();
        for (seq, op) in (batch.first_seq..).zip(&batch.ops) {
            let row = if seq <= session.last_seq && !crate::bug!(M39) {
                self.remembered(id, seq)?
            } else {
                self.run(&mut session, seq, op)?
            };
            match row {
                Some(row) => {
                    (reply.term, reply.index) = (row.term, reply.index.max(row.index));
                    reply.results.extend(row.result);
                }
                None => {
                    reply.errno = Errno::EPROTO.get();
                    reply.results.push(OpResult { errno: reply.errno, ..OpResult::default() });
                }
            }
        }
        self.forget_replies(&mut session, acked)?;
        self.db.put::<Sessions>(&id, &session)?;
        reply.last_seq = session.last_seq;
        if reply.index == 0 {
            (reply.term, reply.index) = (self.term.get(), self.index.get());
        }
        Ok(reply)
    }

    fn refuse_batch(&self, errno: Errno, last_seq: u64) -> BatchReply {
        BatchReply {
            errno: errno.get(),
            term: self.term.get(),
            index: self.index.get(),
            results: Vec::new(),
            last_seq,
        }
    }

    fn remembered(&self, session: SessionId, seq: u64) -> Outcome<Option<pb::ReplyRow>> {
        let row = self.db.get::<Replies>(&(session, Seq(seq)))?;
        crate::maybe!(row.is_some(), "retry answered from the reply table");
        crate::maybe!(row.is_none(), "reply forgotten");
        Ok(row)
    }

    /// Applies one operation and remembers its reply.
    fn run(
        &mut self,
        session: &mut SessionRow,
        seq: u64,
        op: &pb::Op,
    ) -> Outcome<Option<pb::ReplyRow>> {
        let result = match settle(self.operate(session, op))? {
            Ok(result) => result,
            Err(errno) => OpResult { errno: errno.get(), ..OpResult::default() },
        };
        let row =
            pb::ReplyRow { result: Some(result), term: self.term.get(), index: self.index.get() };
        session.last_seq = session.last_seq.max(seq);
        self.db.put::<Replies>(&(SessionId(session.id), Seq(seq)), &row)?;
        Ok(Some(row))
    }

    fn operate(&mut self, session: &mut SessionRow, op: &pb::Op) -> Outcome<OpResult> {
        let id = SessionId(session.id);
        match op.op.as_ref().ok_or(Errno::EINVAL)? {
            op::Op::Create(op) => self.create(session, op),
            op::Op::Link(op) => self.link(op),
            op::Op::Unlink(op) => self.unlink(id, op),
            op::Op::Rmdir(op) => self.rmdir(op),
            op::Op::Rename(op) => self.rename(id, op),
            op::Op::Setattr(op) => self.setattr(op),
            op::Op::Commit(op) => self.commit(id, op),
            op::Op::Setxattr(op) => self.setxattr(op),
            op::Op::Removexattr(op) => self.removexattr(op),
            op::Op::Pin(op) => self.pin_op(id, op.inode),
            op::Op::Unpin(op) => self.unpin_op(id, op.inode),
            op::Op::AllocInodes(op) => Ok(self.alloc_inodes(session, op)),
            op::Op::SealOwn(op) => self.seal_own(id, op),
            op::Op::Refused(op) => Err(Errno::new(op.errno.max(1)).into()),
        }
    }

    /// Forgets replies that the client holds, and the oldest beyond the bound.
    fn forget_replies(&mut self, session: &mut SessionRow, acked: u64) -> Outcome<()> {
        let floor = acked.max(session.last_seq.saturating_sub(self.limits.replies_kept));
        for seq in session.acked_seq + 1..=floor {
            self.db.delete::<Replies>(&(SessionId(session.id), Seq(seq)))?;
        }
        session.acked_seq = session.acked_seq.max(floor);
        Ok(())
    }

    // ---- inode ids ----

    fn alloc_inodes(&mut self, session: &mut SessionRow, op: &pb::AllocInodesOp) -> OpResult {
        let (first_inode, inode_count) =
            self.grant_inodes(session, op.count.clamp(1, self.limits.inode_range));
        OpResult { first_inode, inode_count, ..OpResult::default() }
    }

    /// A fresh range; what was left of the one before can still be used.
    fn grant_inodes(&mut self, session: &mut SessionRow, count: u32) -> (u64, u32) {
        let first = self.counters.next_inode;
        let end = first + u64::from(count);
        self.counters.next_inode = end;
        if session.end_inode == first {
            session.end_inode = end;
            return (first, count);
        }
        if session.end_inode > session.first_inode {
            let (first, end) = (session.first_inode, session.end_inode);
            session.older.push(pb::InodeRange { first, end });
        }
        if session.older.len() >= INODE_RANGES_MAX {
            session.older.remove(0);
        }
        (session.first_inode, session.end_inode) = (first, end);
        (first, count)
    }

    /// The id is from this session's ranges and not in use.
    pub fn vet_new_inode(&self, session: &SessionRow, inode: u64) -> Outcome<()> {
        let granted = (session.first_inode..session.end_inode).contains(&inode)
            || session.older.iter().any(|r| (r.first..r.end).contains(&inode));
        if !granted || self.db.get::<Inodes>(&InodeId(inode))?.is_some() {
            return Err(Errno::EINVAL.into());
        }
        Ok(())
    }

    // ---- pins ----

    fn pin_op(&mut self, session: SessionId, inode: u64) -> Outcome<OpResult> {
        let mut inode = self.inode(inode)?;
        self.pin(session, &mut inode)?;
        let attr = Some(self.save(inode)?);
        Ok(OpResult { attr, ..OpResult::default() })
    }

    fn unpin_op(&mut self, session: SessionId, inode: u64) -> Outcome<OpResult> {
        let attr = self.unpin(session, InodeId(inode))?;
        Ok(OpResult { attr, ..OpResult::default() })
    }

    /// The session holds the inode open; the caller saves it.
    pub fn pin(&mut self, session: SessionId, inode: &mut Inode) -> Outcome<()> {
        let key = (inode.id(), session);
        if self.db.get::<Pins>(&key)?.is_none() {
            self.db.put::<Pins>(&key, &pb::EmptyRow {})?;
            self.db.put::<SessionPins>(&(session, inode.id()), &pb::EmptyRow {})?;
            inode.row.pins += 1;
        }
        Ok(())
    }

    /// Drops a pin; the last one of an inode without names frees it. No pin, no change.
    fn unpin(&mut self, session: SessionId, id: InodeId) -> Outcome<Option<pb::Attr>> {
        if self.db.get::<Pins>(&(id, session))?.is_none() {
            return Ok(None);
        }
        let mut inode = self.inode(id.get())?;
        self.db.delete::<Pins>(&(id, session))?;
        self.db.delete::<SessionPins>(&(session, id))?;
        inode.row.pins -= 1;
        Ok(Some(self.save_or_free(inode)?))
    }

    fn pinned_by(&self, session: SessionId, most: usize) -> Outcome<Vec<InodeId>> {
        let (from, to) = ((session, InodeId(0)), (SessionId(session.0 + 1), InodeId(0)));
        let rows = self.db.range::<SessionPins>(&from, Some(&to)).take(most);
        Ok(rows.map(|row| row.map(|(key, _)| key.1)).collect::<Result<_, _>>()?)
    }

    // ---- chunks of a session ----

    pub fn chunks_of(&self, session: SessionId) -> Outcome<Vec<ChunkId>> {
        let (from, to) = ((session, ChunkId(0)), (SessionId(session.0 + 1), ChunkId(0)));
        let rows = self.db.range::<OpenChunks>(&from, Some(&to));
        Ok(rows.map(|row| row.map(|(key, _)| key.1)).collect::<Result<_, _>>()?)
    }

    fn requests_of(&self, session: SessionId) -> Outcome<Vec<u64>> {
        let (from, to) = ((session, 0), (SessionId(session.0 + 1), 0));
        let rows = self.db.range::<ChunkRequests>(&from, Some(&to));
        Ok(rows.map(|row| row.map(|(key, _)| key.1)).collect::<Result<_, _>>()?)
    }
}
