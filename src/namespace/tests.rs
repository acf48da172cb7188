//! Unit tests of the state machine, driven by commands as the log would.

mod chunks;
mod dirs;
mod files;
mod sessions;

use super::tables::*;
use super::*;
use crate::errno::Errno;
use crate::ids::InodeId;
use crate::pb::op::Op;
use crate::pb::proposal::Kind;
use crate::pb::query::Query;
use crate::pb::query_result::Result as Answer;
use crate::pb::{Attr, CreateOp, Extent, FileKind, Layout, OpResult, QueryResult, extent::Source};
use crate::tables::Read;

const ROOT: u64 = 1;

/// A namespace, one session, and the client's side of its sequence numbers. Checks after every command.
pub(super) struct Rig {
    pub ns: Namespace,
    pub index: u64,
    pub time: u64,
    pub session: u64,
    pub seq: u64,
    pub next: u64,
    pub servers: Vec<u64>,
}

impl Rig {
    pub fn new(limits: Limits) -> Rig {
        let ns = Namespace::new(Db::memory(), Arc::new(limits));
        let mut rig =
            Rig { ns, index: 0, time: 1000, session: 0, seq: 0, next: 0, servers: Vec::new() };
        rig.ask(Kind::InitCluster(pb::InitClusterCmd {
            cluster: vec![7; 16].into(),
            default_layout: Some(Layout { data: 1, parity: 1 }),
            cluster_epoch: 0,
            limits: None,
        }));
        for i in 0..4u8 {
            let outcome = rig.ask(Kind::RegisterServer(pb::RegisterServerCmd {
                uuid: vec![i; 16].into(),
                address: format!("s{i}:1"),
                ..Default::default()
            }));
            rig.servers.push(id_of(&outcome));
        }
        let session = rig.open_session(1);
        (rig.session, rig.next) = (session.session, session.first_inode);
        rig
    }

    pub fn production() -> Rig {
        Rig::new(Limits::production())
    }

    pub fn tiny() -> Rig {
        Rig::new(Limits::tiny())
    }

    pub fn check(&self) {
        if let Err(violation) = check(self.ns.db()) {
            panic!("after command {}: {violation}", self.index);
        }
        assert_eq!(self.ns.db().hash(), self.ns.db().view().hash_of_rows().unwrap());
    }

    pub fn apply(&mut self, kind: Kind) -> pb::Outcome {
        self.index += 1;
        self.time += 10;
        let proposals = vec![pb::Proposal { kind: Some(kind) }];
        let command = pb::Command { time_ns: self.time, proposals };
        let mut outcomes = self.ns.apply(Term(1), LogIndex(self.index), &command).unwrap();
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    /// Applies and checks all invariants.
    pub fn ask(&mut self, kind: Kind) -> pb::Outcome {
        let outcome = self.apply(kind);
        self.check();
        outcome
    }

    pub fn open_session(&mut self, client_nonce: u64) -> pb::OpenSessionReply {
        let host = "here".to_owned();
        let outcome = self.ask(Kind::OpenSession(pb::OpenSessionCmd { client_nonce, host }));
        match outcome.kind {
            Some(outcome::Kind::Session(reply)) => reply,
            other => panic!("{} {other:?}", outcome.errno),
        }
    }

    pub fn end_session(&mut self, session: u64) {
        let cmd = pb::EndSessionCmd { session, expired: true };
        assert_eq!(self.ask(Kind::EndSession(cmd)).errno, 0);
    }

    pub fn batch(&mut self, first_seq: u64, acked_seq: u64, ops: Vec<Op>) -> pb::BatchReply {
        let ops = ops.into_iter().map(|op| pb::Op { op: Some(op) }).collect();
        let batch = pb::Batch { session: self.session, first_seq, acked_seq, ops };
        match self.ask(Kind::Batch(batch)).kind {
            Some(outcome::Kind::Batch(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// One operation, all earlier replies acknowledged.
    pub fn op(&mut self, op: Op) -> Result<OpResult, Errno> {
        self.seq += 1;
        let reply = self.batch(self.seq, self.seq - 1, vec![op]);
        assert_eq!((reply.errno, reply.results.len(), reply.last_seq), (0, 1, self.seq));
        let result = reply.results.into_iter().next().unwrap();
        Errno::check(result.errno).map(|()| result)
    }

    pub fn id(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub fn make(&mut self, parent: u64, name: &str, kind: FileKind) -> Result<u64, Errno> {
        let inode = self.id();
        let target = if kind == FileKind::Symlink { "target" } else { "" };
        self.op(Op::Create(CreateOp {
            parent,
            name: name.to_owned().into(),
            inode,
            kind: kind.into(),
            mode: 0o644,
            target: target.into(),
            ..CreateOp::default()
        }))
        .map(|result| result.attr.unwrap().inode)
    }

    pub fn file(&mut self, parent: u64, name: &str) -> u64 {
        self.make(parent, name, FileKind::Regular).unwrap()
    }

    pub fn mkdir(&mut self, parent: u64, name: &str) -> u64 {
        self.make(parent, name, FileKind::Directory).unwrap()
    }

    pub fn unlink(&mut self, parent: u64, name: &str, pin: bool) -> Result<OpResult, Errno> {
        self.op(Op::Unlink(pb::UnlinkOp { parent, name: name.to_owned().into(), pin }))
    }

    pub fn rename(
        &mut self,
        from: (u64, &str),
        to: (u64, &str),
        flags: u32,
    ) -> Result<OpResult, Errno> {
        self.op(Op::Rename(pb::RenameOp {
            parent: from.0,
            name: from.1.to_owned().into(),
            new_parent: to.0,
            new_name: to.1.to_owned().into(),
            flags,
            pin_victim: false,
        }))
    }

    pub fn query(&self, query: Query) -> QueryResult {
        let query = pb::Query { query: Some(query) };
        super::query(self.ns.db(), &Limits::tiny(), &query).unwrap()
    }

    pub fn attr(&self, inode: u64) -> Result<Attr, Errno> {
        let result = self.query(Query::Getattr(pb::GetattrQuery { inode }));
        Errno::check(result.errno)?;
        match result.result {
            Some(Answer::Attr(attr)) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn lookup(&self, parent: u64, name: &str) -> Result<u64, Errno> {
        let name = name.to_owned().into();
        let result = self.query(Query::Lookup(pb::LookupQuery { parent, name }));
        Errno::check(result.errno)?;
        match result.result {
            Some(Answer::Attr(attr)) => Ok(attr.inode),
            other => panic!("{other:?}"),
        }
    }

    pub fn readdir(&self, inode: u64, cookie: u64, limit: u32) -> pb::ReaddirResult {
        let query = pb::ReaddirQuery { inode, cookie, limit, with_attrs: true };
        match self.query(Query::Readdir(query)).result {
            Some(Answer::Readdir(result)) => result,
            other => panic!("{other:?}"),
        }
    }

    pub fn names(&self, inode: u64) -> Vec<String> {
        let entries = self.readdir(inode, 0, 1000).entries;
        entries.iter().map(|e| String::from_utf8(e.name.to_vec()).unwrap()).collect()
    }

    pub fn rows<T: crate::tables::Table>(&self) -> usize
    where
        T::Key: Default,
    {
        self.ns.db().range::<T>(&T::Key::default(), None).count()
    }
}

pub(super) fn id_of(outcome: &pb::Outcome) -> u64 {
    match outcome.kind {
        Some(outcome::Kind::Id(id)) => id,
        ref other => panic!("{} {other:?}", outcome.errno),
    }
}

pub(super) fn chunk_of(outcome: pb::Outcome) -> Result<pb::Chunk, Errno> {
    Errno::check(outcome.errno)?;
    match outcome.kind {
        Some(outcome::Kind::Chunk(chunk)) => Ok(chunk),
        other => panic!("{other:?}"),
    }
}

pub(super) fn inline(file_off: u64, bytes: &[u8]) -> Extent {
    let source = Some(Source::Inline(bytes.to_vec().into()));
    Extent { file_off, len: bytes.len() as u64, source }
}

pub(super) fn piece(file_off: u64, len: u64, (chunk, off): (u64, u64)) -> Extent {
    let source = Some(Source::Chunk(pb::ChunkRange { chunk, off, commit_index: 0 }));
    Extent { file_off, len, source }
}
