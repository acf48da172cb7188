use super::*;

impl Rig {
    pub fn open_chunk(&mut self, request: u64, servers: &[u64]) -> Result<pb::Chunk, Errno> {
        let outcome = self.ask(Kind::OpenChunk(pb::OpenChunkCmd {
            session: self.session,
            request,
            layout: Some(Layout { data: 1, parity: 1 }),
            class: 0,
            servers: servers.to_vec(),
        }));
        chunk_of(outcome)
    }

    fn commit(
        &mut self,
        inode: u64,
        extents: Vec<Extent>,
        chunk: &pb::Chunk,
    ) -> Result<OpResult, Errno> {
        let epochs = vec![pb::ChunkEpoch { chunk: chunk.id, epoch: chunk.epoch }];
        self.op(Op::Commit(pb::CommitOp { inode, extents, epochs, ..Default::default() }))
    }

    fn seal(&mut self, chunk: u64) -> pb::Chunk {
        chunk_of(self.ask(Kind::SealChunk(pb::SealChunkCmd { chunk }))).unwrap()
    }

    fn delete(&mut self, chunk: u64) -> Result<pb::Chunk, Errno> {
        chunk_of(self.ask(Kind::DeleteChunk(pb::DeleteChunkCmd { chunk })))
    }

    fn alloc(&mut self, chunk: u64, shard: u32, server: u64) -> Result<u64, Errno> {
        let outcome = self.ask(Kind::AllocReplica(pb::AllocReplicaCmd { chunk, shard, server }));
        Errno::check(outcome.errno).map(|()| id_of(&outcome))
    }

    fn replace(
        &mut self,
        chunk: &pb::Chunk,
        old_gen: u64,
        replica: pb::Replica,
    ) -> Result<pb::Chunk, Errno> {
        let cmd = pb::ReplaceReplicaCmd {
            chunk: chunk.id,
            epoch: chunk.epoch,
            old_gen,
            replica: Some(replica),
        };
        chunk_of(self.ask(Kind::ReplaceReplica(cmd)))
    }

    fn drop_replica(
        &mut self,
        chunk: &pb::Chunk,
        replica: pb::Replica,
    ) -> Result<pb::Chunk, Errno> {
        let (r#gen, shard) = (replica.r#gen, replica.shard);
        let cmd = pb::DropReplicaCmd { chunk: chunk.id, epoch: chunk.epoch, r#gen, shard };
        chunk_of(self.ask(Kind::DropReplica(cmd)))
    }
}

#[test]
fn opened_once_per_request() {
    let mut rig = Rig::production();
    let servers = rig.servers.clone();
    let chunk = rig.open_chunk(5, &servers[..2]).unwrap();
    assert_eq!(rig.open_chunk(5, &servers[2..]).unwrap(), chunk);
    let other = rig.open_chunk(3, &servers[1..3]).unwrap();
    assert_ne!(chunk.id, other.id);
    assert_eq!(rig.open_chunk(1000, &servers[..2]).unwrap().replicas.len(), 2);
    assert_eq!(rig.open_chunk(4, &servers[..2]).unwrap_err(), Errno::EPROTO);
    assert_eq!(rig.open_chunk(1001, &[servers[0]; 2]).unwrap_err(), Errno::EINVAL);
    assert_eq!(rig.open_chunk(1001, &servers[..1]).unwrap_err(), Errno::ENOSPC);
    assert_eq!(rig.open_chunk(1001, &[99, 98]).unwrap_err(), Errno::EINVAL);
    for request in 1001.. {
        if rig.open_chunk(request, &servers[..2]) == Err(Errno::EBUSY) {
            break;
        }
        assert!(request < 1100);
    }
    assert_eq!(rig.rows::<OpenChunks>(), OPEN_CHUNKS_MAX);
    rig.end_session(rig.session);
    assert_eq!(rig.rows::<Deletable>(), OPEN_CHUNKS_MAX);
    assert_eq!(rig.open_chunk(2000, &servers[..2]).unwrap_err(), Errno::ESTALE);
}

#[test]
fn commits_obey_rule_a3() {
    let mut rig = Rig::production();
    let servers = rig.servers.clone();
    let f = rig.file(ROOT, "f");
    let chunk = rig.open_chunk(1, &servers[..2]).unwrap();
    let at = |off, len| vec![piece(off, len, (chunk.id, off))];
    rig.commit(f, at(0, 100), &chunk).unwrap();
    let stale = pb::Chunk { epoch: 9, ..chunk.clone() };
    assert_eq!(rig.commit(f, at(100, 50), &stale).unwrap_err(), Errno::ECANCELED);
    rig.commit(f, at(100, 50), &chunk).unwrap();
    let extents = rig.extents(f, 0, 0, 10);
    assert_eq!(extents.extents.len(), 1, "contiguous pieces join");
    assert_eq!(extents.chunks[0].servers.len(), 2);
    // Another session's chunk.
    let (mine, seq) = (rig.session, rig.seq);
    (rig.session, rig.seq) = (rig.open_session(2).session, 0);
    assert_eq!(rig.commit(f, at(0, 10), &chunk).unwrap_err(), Errno::ECANCELED);
    (rig.session, rig.seq) = (mine, seq);
    // Sealed: only what was committed counts, by any epoch.
    assert_eq!(rig.seal(chunk.id).committed_len, 150);
    assert_eq!(rig.commit(f, at(100, 51), &chunk).unwrap_err(), Errno::ECANCELED);
    rig.commit(f, vec![piece(1000, 50, (chunk.id, 100))], &stale).unwrap();
    assert_eq!(rig.attr(f).unwrap().size, 1050);
    let beyond = vec![piece(0, 1, (chunk.id, 64 << 20))];
    assert_eq!(rig.commit(f, beyond, &chunk).unwrap_err(), Errno::EINVAL);
}

#[test]
fn overwritten_chunks_become_deletable_and_go_replica_by_replica() {
    let mut rig = Rig::production();
    let servers = rig.servers.clone();
    let f = rig.file(ROOT, "f");
    let chunk = rig.open_chunk(1, &servers[..2]).unwrap();
    rig.commit(f, vec![piece(0, 100, (chunk.id, 0))], &chunk).unwrap();
    assert_eq!(rig.delete(chunk.id).unwrap_err(), Errno::EBUSY, "open");
    rig.op(Op::SealOwn(pb::SealOwnOp { chunk: chunk.id })).unwrap();
    assert_eq!(rig.delete(chunk.id).unwrap_err(), Errno::EBUSY, "referenced");
    let second = rig.open_chunk(2, &servers[..2]).unwrap();
    rig.commit(f, vec![piece(10, 80, (second.id, 0))], &second).unwrap();
    assert_eq!(rig.rows::<Refs>(), 3);
    assert_eq!(rig.rows::<Deletable>(), 0);
    rig.commit(f, vec![piece(0, 100, (second.id, 80))], &second).unwrap();
    assert_eq!(rig.rows::<Deletable>(), 1);
    let generation = rig.alloc(chunk.id, 0, servers[3]).unwrap();
    let deleting = rig.delete(chunk.id).unwrap();
    assert_eq!(rig.rows::<Deletable>() + rig.rows::<PendingReplicas>(), 0);
    assert_eq!(rig.rows::<Doomed>(), 1, "the unfinished copy");
    let late = vec![piece(0, 100, (chunk.id, 0))];
    assert_eq!(rig.commit(f, late, &chunk).unwrap_err(), Errno::ECANCELED);
    let copy = pb::Replica { r#gen: generation, shard: 0, server: servers[3] };
    let gone = [deleting.replicas[1], copy, deleting.replicas[0]];
    for (i, replica) in gone.into_iter().enumerate() {
        let cmd = pb::ForgetReplicasCmd { chunk: chunk.id, gone: vec![replica] };
        let left = id_of(&rig.ask(Kind::ForgetReplicas(cmd)));
        assert_eq!(left, [1, 1, 0][i]);
    }
    assert_eq!(rig.rows::<Chunks>(), 1);
    assert_eq!(rig.rows::<Deleting>() + rig.rows::<Doomed>(), 0);
    rig.unlink(ROOT, "f", false).unwrap();
    assert_eq!(rig.rows::<Deletable>(), 0, "still open");
    rig.seal(second.id);
    assert_eq!(rig.rows::<Deletable>(), 1);
}

#[test]
fn repair_replaces_a_replica_by_epoch() {
    let mut rig = Rig::production();
    let servers = rig.servers.clone();
    let f = rig.file(ROOT, "f");
    let open = rig.open_chunk(1, &servers[..2]).unwrap();
    rig.commit(f, vec![piece(0, 100, (open.id, 0))], &open).unwrap();
    assert_eq!(rig.alloc(open.id, 0, servers[2]).unwrap_err(), Errno::EBUSY, "open");
    let chunk = rig.seal(open.id);
    assert_eq!(rig.alloc(open.id, 2, servers[2]).unwrap_err(), Errno::EINVAL);
    let generation = rig.alloc(chunk.id, 1, servers[2]).unwrap();
    let copy = pb::Replica { r#gen: generation, shard: 1, server: servers[2] };
    let old = chunk.replicas[1];
    let unknown = pb::Replica { server: servers[3], ..copy };
    assert_eq!(rig.replace(&chunk, old.r#gen, unknown).unwrap_err(), Errno::ESTALE);
    assert_eq!(rig.replace(&chunk, 0, copy).unwrap_err(), Errno::EEXIST);
    let repaired = rig.replace(&chunk, old.r#gen, copy).unwrap();
    assert_eq!(repaired.replicas, [chunk.replicas[0], copy]);
    assert_eq!(repaired.epoch, chunk.epoch + 1);
    assert_eq!(rig.replace(&chunk, old.r#gen, copy).unwrap_err(), Errno::ESTALE, "old epoch");
    // A bad one is dropped; the earlier member comes back and is adopted under its own id.
    let thin = rig.drop_replica(&repaired, copy).unwrap();
    assert_eq!(rig.rows::<Degraded>(), 1);
    assert_eq!(rig.drop_replica(&thin, thin.replicas[0]).unwrap_err(), Errno::EBUSY, "the last");
    let adopted = rig.replace(&thin, 0, old).unwrap();
    assert_eq!(adopted.replicas, chunk.replicas);
    assert_eq!(rig.rows::<Degraded>(), 0);
    assert_eq!(rig.rows::<Doomed>(), 1);
    // A repair that is given up.
    let generation = rig.alloc(chunk.id, 1, servers[3]).unwrap();
    let copy = pb::Replica { r#gen: generation, shard: 1, server: servers[3] };
    rig.drop_replica(&adopted, copy).unwrap();
    assert_eq!((rig.rows::<PendingReplicas>(), rig.rows::<Doomed>()), (0, 2));
    let server = crate::ids::ServerId(copy.server);
    let key = (server, crate::ids::ChunkId(chunk.id), crate::ids::Generation(generation));
    let row = rig.ns.db().get::<Doomed>(&key).unwrap().unwrap();
    assert_eq!(
        (row.replica, row.data_shards),
        (Some(copy), 1),
        "its row names it without the chunk"
    );
}

#[test]
fn fewer_copies_than_asked_are_degraded() {
    let mut rig = Rig::production();
    let servers = rig.servers.clone();
    let mut open = |request, data, parity, servers: &[u64]| {
        let outcome = rig.ask(Kind::OpenChunk(pb::OpenChunkCmd {
            session: rig.session,
            request,
            layout: Some(Layout { data, parity }),
            class: 0,
            servers: servers.to_vec(),
        }));
        chunk_of(outcome)
    };
    open(1, 1, 2, &servers[..2]).unwrap();
    assert_eq!(open(2, 1, 2, &servers[..1]).unwrap_err(), Errno::ENOSPC);
    assert_eq!(open(3, 2, 1, &servers[..2]).unwrap_err(), Errno::ENOSPC);
    open(4, 2, 1, &servers[..3]).unwrap();
    open(5, 1, 0, &servers[..1]).unwrap();
    assert_eq!(open(6, 0, 1, &servers[..1]).unwrap_err(), Errno::EINVAL);
    assert_eq!(open(6, 200, 100, &servers[..1]).unwrap_err(), Errno::EINVAL);
    assert_eq!(rig.rows::<Degraded>(), 1);
}

#[test]
fn servers_come_back_and_leave() {
    let mut rig = Rig::production();
    let servers = rig.servers.clone();
    let chunk = rig.open_chunk(1, &servers[..2]).unwrap();
    let state = |rig: &mut Rig, server, state: pb::ServerState| {
        let cmd = pb::ServerStateCmd { server, state: state.into() };
        rig.ask(Kind::ServerState(cmd)).errno
    };
    assert_eq!(state(&mut rig, servers[0], pb::ServerState::Dead), 0);
    assert_eq!(rig.open_chunk(2, &servers[..2]).unwrap_err(), Errno::EAGAIN);
    assert!(
        !chunk_info(rig.ns.db(), crate::ids::ChunkId(chunk.id)).unwrap().unwrap().servers[0].alive
    );
    let register = pb::RegisterServerCmd {
        uuid: vec![0; 16].into(),
        address: "new:1".into(),
        ..Default::default()
    };
    assert_eq!(id_of(&rig.ask(Kind::RegisterServer(register.clone()))), servers[0]);
    rig.open_chunk(2, &servers[..2]).unwrap();
    // That it was to be emptied is not forgotten while it is dead.
    assert_eq!(state(&mut rig, servers[0], pb::ServerState::Draining), 0);
    assert_eq!(state(&mut rig, servers[0], pb::ServerState::Dead), 0);
    rig.ask(Kind::RegisterServer(register.clone()));
    let now = |rig: &Rig| {
        let row = rig.ns.db().get::<Servers>(&crate::ids::ServerId(servers[0])).unwrap();
        row.unwrap().state()
    };
    assert_eq!(now(&rig), pb::ServerState::Draining);
    assert_eq!(state(&mut rig, servers[0], pb::ServerState::Active), 0);
    rig.ask(Kind::RegisterServer(register.clone()));
    assert_eq!(now(&rig), pb::ServerState::Active);
    let removed = pb::ServerState::Removed;
    assert_eq!(state(&mut rig, servers[0], removed), Errno::EBUSY.get());
    assert_eq!(state(&mut rig, servers[3], removed), 0);
    assert_eq!(state(&mut rig, servers[3], pb::ServerState::Active), Errno::ESTALE.get());
    let register = pb::RegisterServerCmd { uuid: vec![3; 16].into(), ..register };
    assert_eq!(rig.ask(Kind::RegisterServer(register)).errno, Errno::ESTALE.get());
    assert_eq!(state(&mut rig, 99, removed), Errno::ENOENT.get());
}

#[test]
fn classes_have_names() {
    let mut rig = Rig::production();
    let mut put = |name: &str, data, parity| {
        let layout = Some(Layout { data, parity });
        let outcome = rig.ask(Kind::PutClass(pb::PutClassCmd { name: name.to_owned(), layout }));
        Errno::check(outcome.errno).map(|()| id_of(&outcome))
    };
    assert_eq!(put("ec", 4, 2), Ok(1));
    assert_eq!(put("ec", 4, 2), Ok(1));
    assert_eq!(put("ec", 8, 2), Err(Errno::EEXIST));
    assert_eq!(put("default", 1, 2), Ok(0));
    assert_eq!(put("", 1, 2), Err(Errno::EINVAL));
    let dir = rig.mkdir(ROOT, "d");
    let set = |class| pb::SetattrOp { inode: dir, class: Some(class), ..Default::default() };
    assert_eq!(rig.op(Op::Setattr(set(9))).unwrap_err(), Errno::EINVAL);
    rig.op(Op::Setattr(set(1))).unwrap();
    let f = rig.file(dir, "f");
    assert_eq!(rig.attr(f).unwrap().class, 1, "inherited");
    match rig.query(Query::Classes(pb::ClassesQuery {})).result {
        Some(Answer::Classes(result)) => {
            let names: Vec<_> = result.classes.iter().map(|c| c.name.as_str()).collect();
            assert_eq!(names, ["default", "ec"]);
        }
        other => panic!("{other:?}"),
    }
}
