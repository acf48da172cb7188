//! Drives the state machine as clients and a master would, through commands it builds itself.

mod upkeep;

use crate::{Draw, FsOp, FsOut, Ino, ModelFs, OpGen, SplitMix, Stat, Weights};
use bytes::Bytes;
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, LogIndex, SessionId, Term};
use mooseng::limits::Limits;
use mooseng::namespace::{self, Namespace, tables};
use mooseng::pb::extent::Source;
use mooseng::pb::op::Op;
use mooseng::pb::outcome::Kind as Answer;
use mooseng::pb::proposal::Kind as Proposal;
use mooseng::pb::query::Query;
use mooseng::pb::query_result::Result as Found;
use mooseng::pb::{self, Extent, FileKind};
use mooseng::tables::{Db, Read};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const SERVERS: u64 = 4;
pub const CLIENTS: usize = 2;

/// A command as the log holds it, its outcomes and the state hash after it.
pub type Logged = (u64, pb::Command, Vec<pb::Outcome>, u64);

#[derive(Default)]
struct Client {
    session: u64,
    nonce: u64,
    seq: u64,
    acked: u64,
    ids: Vec<(u64, u64)>,
    chunk: Option<(pb::Chunk, u64)>,
    requests: u64,
    opens: BTreeMap<u64, u32>,
    /// What may be sent again: first sequence number, operations, and what was answered.
    sent: Vec<(u64, Vec<Op>, pb::BatchReply)>,
}

/// A state machine, its log, and what clients and chunkservers remember.
pub struct Machine {
    pub ns: Namespace,
    pub log: Vec<Logged>,
    pub time: u64,
    limits: Limits,
    clients: Vec<Client>,
    nonces: u64,
    /// Model inode -> real inode.
    inos: BTreeMap<Ino, u64>,
    handles: BTreeMap<u64, (usize, u64)>,
    bytes: BTreeMap<u64, Vec<u8>>,
}

impl Machine {
    pub fn new(limits: Limits) -> Machine {
        let mut machine = Machine {
            ns: Namespace::new(Db::memory(), Arc::new(limits.clone())),
            log: Vec::new(),
            time: 1000,
            limits,
            clients: Vec::new(),
            nonces: 0,
            inos: BTreeMap::from([(1, 1)]),
            handles: BTreeMap::new(),
            bytes: BTreeMap::new(),
        };
        machine.propose(Proposal::InitCluster(pb::InitClusterCmd {
            cluster: vec![1; 16].into(),
            default_layout: Some(pb::Layout { data: 1, parity: 1 }),
            cluster_epoch: 0,
            limits: None,
        }));
        for i in 0..SERVERS {
            let uuid = vec![i as u8; 16].into();
            let cmd = pb::RegisterServerCmd { uuid, ..Default::default() };
            machine.propose(Proposal::RegisterServer(cmd));
        }
        for _ in 0..CLIENTS {
            machine.clients.push(Client::default());
            machine.connect(machine.clients.len() - 1);
        }
        machine
    }

    // ---- the log ----

    pub fn apply(&mut self, kinds: Vec<Proposal>) -> Vec<pb::Outcome> {
        let index = self.log.len() as u64 + 1;
        let proposals = kinds.into_iter().map(|kind| pb::Proposal { kind: Some(kind) }).collect();
        let command = pb::Command { time_ns: self.time, proposals };
        let outcomes = self.ns.apply(Term(1), LogIndex(index), &command).expect("tables");
        self.log.push((index, command, outcomes.clone(), self.ns.db().hash()));
        outcomes
    }

    pub fn propose(&mut self, kind: Proposal) -> pb::Outcome {
        self.apply(vec![kind]).remove(0)
    }

    pub fn check(&self) {
        if let Err(violation) = namespace::check(self.ns.db()) {
            panic!("after command {}: {violation}", self.log.len());
        }
    }

    fn connect(&mut self, client: usize) {
        self.nonces += 1;
        let nonce = self.nonces;
        let cmd = pb::OpenSessionCmd { client_nonce: nonce, host: format!("client {client}") };
        let Some(Answer::Session(reply)) = self.propose(Proposal::OpenSession(cmd)).kind else {
            panic!("no session");
        };
        self.clients[client] = Client {
            session: reply.session,
            nonce,
            ids: vec![(reply.first_inode, reply.first_inode + u64::from(reply.inode_count))],
            ..Client::default()
        };
    }

    fn op(&mut self, client: usize, op: Op) -> Result<pb::OpResult, Errno> {
        let (session, seq, acked) = {
            let client = &mut self.clients[client];
            client.seq += 1;
            (client.session, client.seq, client.acked)
        };
        let ops = vec![pb::Op { op: Some(op.clone()) }];
        let batch = pb::Batch { session, first_seq: seq, acked_seq: acked, ops };
        let reply = batch_reply(self.propose(Proposal::Batch(batch)));
        assert_eq!((reply.errno, reply.last_seq, reply.results.len()), (0, seq, 1));
        let result = reply.results[0];
        let sent = &mut self.clients[client].sent;
        sent.push((seq, vec![op], reply));
        if sent.len() > 64 {
            sent.remove(0);
        }
        Errno::check(result.errno).map(|()| result)
    }

    fn query(&self, query: Query) -> Result<pb::QueryResult, Errno> {
        let query = pb::Query { query: Some(query) };
        let result = namespace::query(self.ns.db(), &self.limits, &query).expect("tables");
        Errno::check(result.errno).map(|()| result)
    }

    fn getattr(&self, inode: u64) -> Result<pb::Attr, Errno> {
        match self.query(Query::Getattr(pb::GetattrQuery { inode }))?.result {
            Some(Found::Attr(attr)) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    // ---- what the model calls ----

    /// Numbers that the model invented for inodes that never were map to one that never is.
    fn real(&self, ino: Ino) -> u64 {
        self.inos.get(&ino).copied().unwrap_or(1 << 62)
    }

    fn stat(&self, attr: &pb::Attr) -> FsOut {
        let ino = self.inos.iter().find(|(_, real)| **real == attr.inode);
        FsOut::Stat(Stat::of(*ino.expect("a known inode").0, attr))
    }

    /// Runs one operation as `client` (calls on a handle: as its owner).
    pub fn run(&mut self, client: usize, op: &FsOp, draw: &mut impl Draw) -> Result<FsOut, Errno> {
        match op {
            FsOp::Lookup { parent, name } => {
                let query =
                    pb::LookupQuery { parent: self.real(*parent), name: name.clone().into() };
                match self.query(Query::Lookup(query))?.result {
                    Some(Found::Attr(attr)) => Ok(self.stat(&attr)),
                    other => panic!("{other:?}"),
                }
            }
            FsOp::Getattr { ino } => Ok(self.stat(&self.getattr(self.real(*ino))?)),
            FsOp::Open { client, ino, handle } => self.open(*client, self.real(*ino), *handle),
            FsOp::Close { handle } => self.close(*handle),
            FsOp::Read { handle, off, len } => {
                let (_, inode) = *self.handles.get(handle).ok_or(Errno::EBADF)?;
                let size = self.getattr(inode)?.size;
                let to = off.saturating_add(*len).min(size);
                Ok(FsOut::Data(self.content(inode, (*off).min(to), to)))
            }
            FsOp::Write { handle, off, data } => {
                let (client, inode) = *self.handles.get(handle).ok_or(Errno::EBADF)?;
                self.write(client, inode, (*off, data), draw)
            }
            FsOp::Fsync { handle } => {
                self.handles.get(handle).map(|_| FsOut::Unit).ok_or(Errno::EBADF)
            }
            FsOp::Readdir { ino } => self.readdir(self.real(*ino), draw),
            FsOp::Readlink { ino } => {
                let query = Query::Readlink(pb::ReadlinkQuery { inode: self.real(*ino) });
                Ok(data_of(self.query(query)?))
            }
            FsOp::Getxattr { ino, name } => {
                let (inode, name) = (self.real(*ino), name.clone().into());
                Ok(data_of(self.query(Query::Getxattr(pb::GetxattrQuery { inode, name }))?))
            }
            FsOp::Listxattr { ino } => self.listxattr(self.real(*ino)),
            change => self.change(client, change),
        }
    }

    /// Operations that are one operation of the state machine.
    fn change(&mut self, client: usize, op: &FsOp) -> Result<FsOut, Errno> {
        let stat = matches!(
            op,
            FsOp::Create { .. }
                | FsOp::Link { .. }
                | FsOp::Chmod { .. }
                | FsOp::Chown { .. }
                | FsOp::Truncate { .. }
                | FsOp::Utimens { .. }
        );
        let op_ = self.translate(client, op);
        let fresh = match &op_ {
            Op::Create(op) => Some(op.inode),
            _ => None,
        };
        let result = self.op(client, op_)?;
        if let (FsOp::Create { ino, .. }, Some(inode)) = (op, fresh) {
            self.inos.insert(*ino, inode);
            self.clients[client].ids[0].0 = inode + 1;
        }
        Ok(if stat { self.stat(&result.attr.expect("attributes")) } else { FsOut::Unit })
    }

    fn translate(&mut self, client: usize, op: &FsOp) -> Op {
        let set = |ino: Ino| pb::SetattrOp { inode: self.real(ino), ..Default::default() };
        match op.clone() {
            FsOp::Create { parent, name, kind, mode, uid, gid, target, .. } => {
                let inode = self.next_inode(client);
                Op::Create(pb::CreateOp {
                    parent: self.real(parent),
                    name: name.into(),
                    inode,
                    kind: kind.into(),
                    mode,
                    uid,
                    gid,
                    target: target.into(),
                    ..Default::default()
                })
            }
            FsOp::Link { ino, parent, name } => Op::Link(pb::LinkOp {
                inode: self.real(ino),
                parent: self.real(parent),
                name: name.into(),
            }),
            FsOp::Unlink { parent, name } => {
                let (parent, name) = (self.real(parent), name.into());
                Op::Unlink(pb::UnlinkOp { parent, name, pin: false })
            }
            FsOp::Rmdir { parent, name } => {
                Op::Rmdir(pb::RmdirOp { parent: self.real(parent), name: name.into() })
            }
            FsOp::Rename { parent, name, new_parent, new_name, flags } => {
                Op::Rename(pb::RenameOp {
                    parent: self.real(parent),
                    name: name.into(),
                    new_parent: self.real(new_parent),
                    new_name: new_name.into(),
                    flags,
                    pin_victim: false,
                })
            }
            FsOp::Chmod { ino, mode } => {
                Op::Setattr(pb::SetattrOp { mode: Some(mode), ..set(ino) })
            }
            FsOp::Chown { ino, uid, gid } => Op::Setattr(pb::SetattrOp { uid, gid, ..set(ino) }),
            FsOp::Truncate { ino, size } => {
                Op::Setattr(pb::SetattrOp { size: Some(size), ..set(ino) })
            }
            FsOp::Utimens { ino, atime, mtime } => {
                Op::Setattr(pb::SetattrOp { atime_ns: atime, mtime_ns: mtime, ..set(ino) })
            }
            FsOp::Setxattr { ino, name, value, flags } => Op::Setxattr(pb::SetxattrOp {
                inode: self.real(ino),
                name: name.into(),
                value: value.into(),
                flags,
            }),
            FsOp::Removexattr { ino, name } => {
                Op::Removexattr(pb::RemovexattrOp { inode: self.real(ino), name: name.into() })
            }
            other => panic!("{other:?} is no single operation"),
        }
    }

    fn next_inode(&mut self, client: usize) -> u64 {
        self.clients[client].ids.retain(|(first, end)| first < end);
        if self.clients[client].ids.is_empty() {
            let granted = self.op(client, Op::AllocInodes(pb::AllocInodesOp { count: 5 })).unwrap();
            let end = granted.first_inode + u64::from(granted.inode_count);
            self.clients[client].ids.push((granted.first_inode, end));
        }
        self.clients[client].ids[0].0
    }

    fn open(&mut self, client: usize, inode: u64, handle: u64) -> Result<FsOut, Errno> {
        match self.getattr(inode)?.kind() {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        self.op(client, Op::Pin(pb::PinOp { inode }))?;
        *self.clients[client].opens.entry(inode).or_default() += 1;
        self.handles.insert(handle, (client, inode));
        Ok(FsOut::Unit)
    }

    fn close(&mut self, handle: u64) -> Result<FsOut, Errno> {
        let (client, inode) = self.handles.remove(&handle).ok_or(Errno::EBADF)?;
        let count = self.clients[client].opens.get_mut(&inode).expect("an open file");
        *count -= 1;
        if *count == 0 {
            self.clients[client].opens.remove(&inode);
            self.op(client, Op::Unpin(pb::UnpinOp { inode }))?;
        }
        Ok(FsOut::Unit)
    }

    /// Reads the directory in pages; names sorted.
    fn readdir(&self, inode: u64, draw: &mut impl Draw) -> Result<FsOut, Errno> {
        let (mut cookie, limit) = (0, 1 + draw.below(4) as u32);
        let mut entries = Vec::new();
        loop {
            let query = pb::ReaddirQuery { inode, cookie, limit, with_attrs: true };
            let Some(Found::Readdir(page)) = self.query(Query::Readdir(query))?.result else {
                panic!("no entries");
            };
            for entry in page.entries {
                assert!(entry.cookie > cookie, "cookies rise");
                cookie = entry.cookie;
                let FsOut::Stat(stat) = self.stat(&entry.attr.expect("attributes")) else {
                    panic!("no attributes");
                };
                entries.push((entry.name.to_vec(), stat.ino, entry.kind()));
            }
            if page.end {
                entries.sort();
                return Ok(FsOut::Entries(entries));
            }
        }
    }

    fn listxattr(&self, inode: u64) -> Result<FsOut, Errno> {
        match self.query(Query::Listxattr(pb::ListxattrQuery { inode }))?.result {
            Some(Found::Names(list)) => {
                Ok(FsOut::Names(list.names.iter().map(|name| name.to_vec()).collect()))
            }
            other => panic!("{other:?}"),
        }
    }

    // ---- bytes ----

    /// The bytes `[from, to)` of a file, its extents fetched in pages.
    fn content(&self, inode: u64, from: u64, to: u64) -> Vec<u8> {
        let mut out = vec![0; (to - from) as usize];
        let mut at = from;
        while at < to {
            let query = pb::ExtentsQuery { inode, from: at, to, limit: 3 };
            let Ok(Some(Found::Extents(page))) =
                self.query(Query::Extents(query)).map(|r| r.result)
            else {
                panic!("no extents");
            };
            for extent in &page.extents {
                let bytes = self.bytes_of(extent);
                let (start, end) =
                    (extent.file_off.max(at), (extent.file_off + extent.len).min(to));
                assert!(start < end, "an extent outside of what was asked");
                let skip = (start - extent.file_off) as usize;
                let piece = &bytes[skip..skip + (end - start) as usize];
                out[(start - from) as usize..(end - from) as usize].copy_from_slice(piece);
                at = end;
            }
            if page.end {
                break;
            }
        }
        out
    }

    fn bytes_of(&self, extent: &Extent) -> Bytes {
        match extent.source.as_ref().expect("a source") {
            Source::Inline(bytes) => bytes.clone(),
            Source::Chunk(range) => {
                let chunk = &self.bytes[&range.chunk];
                Bytes::copy_from_slice(
                    &chunk[range.off as usize..(range.off + extent.len) as usize],
                )
            }
        }
    }

    fn write(
        &mut self,
        client: usize,
        inode: u64,
        (off, data): (u64, &[u8]),
        draw: &mut impl Draw,
    ) -> Result<FsOut, Errno> {
        if data.is_empty() {
            return Ok(FsOut::Unit);
        }
        if data.len() <= self.limits.inline_bytes_max && draw.chance(2, 3) {
            let source = Some(Source::Inline(Bytes::copy_from_slice(data)));
            let extent = Extent { file_off: off, len: data.len() as u64, source };
            let commit = pb::CommitOp { inode, extents: vec![extent], ..Default::default() };
            match self.op(client, Op::Commit(commit)) {
                Err(Errno::EFBIG) => {}
                other => return other.map(|_| FsOut::Unit),
            }
        }
        loop {
            match self.commit_to_chunk(client, inode, (off, data)) {
                // Sealed or repaired behind the client's back: the bytes go elsewhere.
                Err(Errno::ECANCELED) => self.clients[client].chunk = None,
                other => return other.map(|_| FsOut::Unit),
            }
        }
    }

    fn commit_to_chunk(
        &mut self,
        client: usize,
        inode: u64,
        (off, data): (u64, &[u8]),
    ) -> Result<pb::OpResult, Errno> {
        let (chunk, fill) = match self.clients[client].chunk.take() {
            Some(open) => open,
            None => (self.open_chunk(client), 0),
        };
        let len = data.len() as u64;
        let stored = self.bytes.entry(chunk.id).or_default();
        stored.truncate(fill as usize);
        stored.extend_from_slice(data);
        let next = (chunk.clone(), fill + len);
        let range = pb::ChunkRange { chunk: chunk.id, off: fill, commit_index: 0 };
        let extent = Extent { file_off: off, len, source: Some(Source::Chunk(range)) };
        let epochs = vec![pb::ChunkEpoch { chunk: chunk.id, epoch: chunk.epoch }];
        let commit = pb::CommitOp { inode, extents: vec![extent], epochs, ..Default::default() };
        let result = self.op(client, Op::Commit(commit));
        if next.1 < self.limits.chunk_bytes as u64 / 4 {
            self.clients[client].chunk = Some(next);
        } else {
            let _ = self.op(client, Op::SealOwn(pb::SealOwnOp { chunk: chunk.id }));
        }
        result
    }

    fn open_chunk(&mut self, client: usize) -> pb::Chunk {
        let state = &mut self.clients[client];
        state.requests += 1;
        let first = state.requests % SERVERS;
        let cmd = pb::OpenChunkCmd {
            session: state.session,
            request: state.requests,
            layout: Some(pb::Layout { data: 1, parity: 1 }),
            class: 0,
            servers: vec![first + 1, (first + 1) % SERVERS + 1],
        };
        let outcomes = self.apply(vec![Proposal::OpenChunk(cmd.clone()), Proposal::OpenChunk(cmd)]);
        assert_eq!(outcomes[0], outcomes[1], "a request opens one chunk");
        match &outcomes[0].kind {
            Some(Answer::Chunk(chunk)) => chunk.clone(),
            _ => panic!("{}", outcomes[0].errno),
        }
    }

    // ---- what else happens in a cluster ----

    /// Something that no application should notice.
    pub fn noise(&mut self, draw: &mut impl Draw) {
        match draw.below(12) {
            0 => self.purge(1 + draw.below(3) as u32),
            1 => {
                let open = self.all::<tables::OpenChunks, _>(|key| key.1.get());
                if let Some(&chunk) = draw.pick(&open) {
                    self.propose(Proposal::SealChunk(pb::SealChunkCmd { chunk }));
                }
            }
            2 => self.collect(draw),
            3 => self.repair(draw),
            4 | 8 | 9 => self.retry(draw),
            5 => {
                let client = draw.below(CLIENTS as u64) as usize;
                let state = &mut self.clients[client];
                state.acked += draw.below(state.seq - state.acked + 1);
            }
            6 => {
                let cmd =
                    pb::OpenSessionCmd { client_nonce: self.clients[0].nonce, host: String::new() };
                let again = self.propose(Proposal::OpenSession(cmd));
                let Some(Answer::Session(reply)) = again.kind else { panic!("{}", again.errno) };
                assert_eq!(reply.session, self.clients[0].session);
            }
            7 => self.punch(draw),
            10 => self.skip(draw),
            _ => {
                let some = self.all::<tables::Chunks, _>(|key| key.get());
                if let Some(&chunk) = draw.pick(&some) {
                    self.delete(chunk);
                }
            }
        }
    }

    /// Sends an earlier batch again: the same answer, and nothing happens (asserted by the comparison with
    /// the model that follows).
    fn retry(&mut self, draw: &mut impl Draw) {
        let client = &self.clients[draw.below(CLIENTS as u64) as usize];
        let Some((first_seq, ops, reply)) = draw.pick(&client.sent).cloned() else { return };
        let ops = ops.into_iter().map(|op| pb::Op { op: Some(op) }).collect();
        let batch = pb::Batch { session: client.session, first_seq, acked_seq: client.acked, ops };
        let fresh = client.seq - first_seq < self.limits.replies_kept as u64;
        let kept = fresh && first_seq > client.acked;
        let again = batch_reply(self.propose(Proposal::Batch(batch)));
        if kept || again.errno == 0 {
            assert_eq!(
                (again.errno, again.index, &again.results),
                (0, reply.index, &reply.results)
            );
        } else {
            assert_eq!(again.errno, Errno::EPROTO.get());
        }
    }

    /// A batch before which others are missing is refused whole, and nothing happens.
    fn skip(&mut self, draw: &mut impl Draw) {
        let client = &self.clients[draw.below(CLIENTS as u64) as usize];
        let first_seq = client.seq + 2 + draw.below(3);
        let ops = vec![pb::Op { op: Some(Op::AllocInodes(pb::AllocInodesOp { count: 1 })) }];
        let batch = pb::Batch { session: client.session, first_seq, acked_seq: client.acked, ops };
        let (session, last_seq) = (SessionId(client.session), client.seq);
        let row = |ns: &Namespace| ns.db().get::<tables::Sessions>(&session).expect("tables");
        let before = row(&self.ns);
        let reply = batch_reply(self.propose(Proposal::Batch(batch)));
        assert_eq!((reply.errno, reply.last_seq), (Errno::EPROTO.get(), last_seq));
        assert_eq!(row(&self.ns), before, "a batch after a gap changed its session");
    }

    /// A client is gone for good and another one takes its place.
    pub fn end_client(&mut self, client: usize) {
        let session = self.clients[client].session;
        // Its pins go in bounded steps.
        loop {
            let cmd = pb::EndSessionCmd { session, expired: true };
            let ended = self.propose(Proposal::EndSession(cmd));
            assert_eq!(ended.errno, 0);
            if matches!(ended.kind, Some(pb::outcome::Kind::Id(0))) {
                break;
            }
        }
        self.late_commit(client);
        self.handles.retain(|_, (owner, _)| *owner != client);
        self.connect(client);
    }

    /// What an expired session still sends is refused whole.
    fn late_commit(&mut self, client: usize) {
        let old = &self.clients[client];
        let Some((chunk, fill)) = old.chunk.clone() else { return };
        let Some((_, inode)) = self.handles.values().find(|(owner, _)| *owner != client) else {
            return;
        };
        let range = pb::ChunkRange { chunk: chunk.id, off: fill, commit_index: 0 };
        let extent = Extent { file_off: 0, len: 100, source: Some(Source::Chunk(range)) };
        let epochs = vec![pb::ChunkEpoch { chunk: chunk.id, epoch: chunk.epoch }];
        let extents = vec![extent];
        let commit = pb::CommitOp { inode: *inode, extents, epochs, ..Default::default() };
        let ops = vec![pb::Op { op: Some(Op::Commit(commit)) }];
        let (session, first_seq) = (old.session, old.seq + 1);
        let batch = pb::Batch { session, first_seq, acked_seq: old.acked, ops };
        let reply = batch_reply(self.propose(Proposal::Batch(batch)));
        self.check();
        assert_eq!((reply.errno, reply.last_seq), (Errno::ESTALE.get(), first_seq - 1));
    }

    // ---- comparing ----

    /// The whole tree is the model's, byte for byte.
    pub fn compare(&self, model: &ModelFs) {
        for (ino, node) in model.nodes() {
            let inode = self.real(*ino);
            let attr = self.getattr(inode).unwrap_or_else(|e| panic!("{ino} is gone: {e}"));
            let found = self.stat(&attr);
            let expected = model.clone().apply(&FsOp::Getattr { ino: *ino }).expect("a node");
            assert_eq!(found, expected);
            match node.kind {
                FileKind::Regular => {
                    let found = self.content(inode, 0, attr.size);
                    assert!(found == node.data, "the bytes of {ino} differ");
                }
                FileKind::Directory => {
                    let mut always = || 1;
                    let found = self.readdir(inode, &mut always);
                    let expected = model.clone().apply(&FsOp::Readdir { ino: *ino });
                    assert_eq!(found, expected, "entries of {ino}");
                }
                _ => {}
            }
            let names = node.xattrs.keys().cloned().collect();
            assert_eq!(self.listxattr(inode), Ok(FsOut::Names(names)), "xattrs of {ino}");
            for (name, value) in &node.xattrs {
                let query = pb::GetxattrQuery { inode, name: name.clone().into() };
                let found = self.query(Query::Getxattr(query)).map(data_of);
                assert_eq!(found, Ok(FsOut::Data(value.clone())));
            }
        }
        let live = self.all::<tables::Inodes, _>(|id| id.get());
        let live = live.into_iter().filter(|id| self.getattr(*id).is_ok()).count();
        assert_eq!(live, model.nodes().len(), "inodes that are no longer in the model");
    }

    /// What the log did is done again on another instance, with the same outcomes and hashes.
    pub fn replay(&self, ns: &mut Namespace, mut between: impl FnMut(&mut Namespace, u64)) {
        for (index, command, outcomes, hash) in &self.log {
            let again = ns.apply(Term(1), LogIndex(*index), command).expect("tables");
            assert_eq!(&again, outcomes, "outcomes of command {index}");
            assert_eq!(ns.db().hash(), *hash, "state hash after command {index}");
            between(ns, *index);
        }
    }

    pub fn orphans(&self) -> Vec<InodeId> {
        self.all::<tables::Orphans, _>(|key| *key)
    }
}

fn batch_reply(outcome: pb::Outcome) -> pb::BatchReply {
    match outcome.kind {
        Some(Answer::Batch(reply)) => reply,
        other => panic!("{} {other:?}", outcome.errno),
    }
}

fn data_of(result: pb::QueryResult) -> FsOut {
    match result.result {
        Some(Found::Data(data)) => FsOut::Data(data.to_vec()),
        other => panic!("{other:?}"),
    }
}

/// One operation, drawn, run on both sides and compared; then perhaps something in the background.
pub fn step(
    machine: &mut Machine,
    model: &mut ModelFs,
    generator: &mut OpGen,
    draw: &mut impl Draw,
) {
    machine.time += 1 + draw.below(5);
    model.now = i64::try_from(machine.time).expect("a small time");
    if draw.chance(1, 100) {
        let client = draw.below(CLIENTS as u64) as usize;
        machine.end_client(client);
        model.end_client(client);
    }
    let client = draw.below(CLIENTS as u64) as usize;
    let op = generator.next(model, draw);
    let expected = model.apply(&op);
    let found = machine.run(client, &op, draw);
    assert_eq!(found, expected, "{op:?}");
    machine.check();
    if draw.chance(1, 2) {
        machine.noise(draw);
        machine.check();
    }
}

/// A program from a seed, some kinds of operations switched off. At the end what was left to purges goes
/// away, and nobody notices; another instance that applies the same log comes to the same state.
pub fn run_seed(seed: u64, steps: u32, limits: Limits) -> Machine {
    let mut draw = SplitMix(seed);
    let weights = Weights::swarm(&mut draw);
    let mut generator = OpGen { weights, names: 2 + draw.below(6), ..OpGen::default() };
    let (mut machine, mut model) = (Machine::new(limits.clone()), ModelFs::new(1000));
    for i in 0..steps {
        step(&mut machine, &mut model, &mut generator, &mut draw);
        if i % 16 == 0 {
            machine.compare(&model);
        }
    }
    for _ in 0..10_000 {
        machine.purge(2);
        if machine.orphans().is_empty() {
            break;
        }
    }
    assert!(machine.orphans().is_empty(), "purges come to an end");
    machine.check();
    machine.compare(&model);
    machine.replay(&mut Namespace::new(Db::memory(), Arc::new(limits)), |_, _| ());
    machine
}
