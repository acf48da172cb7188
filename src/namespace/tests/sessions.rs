use super::*;

fn mkdir(rig: &mut Rig, name: &str) -> Op {
    Op::Create(CreateOp {
        parent: ROOT,
        name: name.to_owned().into(),
        inode: rig.id(),
        kind: FileKind::Directory.into(),
        ..CreateOp::default()
    })
}

#[test]
fn a_retry_is_answered_and_not_applied() {
    let mut rig = Rig::production();
    let op = mkdir(&mut rig, "d");
    let first = rig.batch(1, 0, vec![op.clone()]);
    let root = rig.attr(ROOT).unwrap();
    let again = rig.batch(1, 0, vec![op.clone()]);
    assert_eq!(first, again);
    assert_eq!(rig.attr(ROOT).unwrap(), root);
    // Partly seen: the rest is applied.
    let next = mkdir(&mut rig, "e");
    let mixed = rig.batch(1, 0, vec![op.clone(), next]);
    assert_eq!(mixed.results[0], first.results[0]);
    assert_eq!((mixed.errno, mixed.results[1].errno, mixed.last_seq), (0, 0, 2));
    assert!(mixed.index > first.index);
    // Acknowledged: forgotten, and still not applied.
    let third = mkdir(&mut rig, "f");
    rig.batch(3, 2, vec![third]);
    let forgotten = rig.batch(1, 2, vec![op]);
    assert_eq!(forgotten.errno, Errno::EPROTO.get());
    assert_eq!(forgotten.results[0].errno, Errno::EPROTO.get());
    assert_eq!(rig.names(ROOT), ["d", "e", "f"]);
}

#[test]
fn gaps_and_unknown_sessions_are_refused() {
    let mut rig = Rig::production();
    let op = mkdir(&mut rig, "d");
    for first in [0, 2, 9] {
        let reply = rig.batch(first, 0, vec![op.clone()]);
        assert_eq!((reply.errno, reply.last_seq), (Errno::EPROTO.get(), 0), "{first}");
        assert!(reply.results.is_empty());
    }
    let session = std::mem::replace(&mut rig.session, 12345);
    assert_eq!(rig.batch(1, 0, vec![op.clone()]).errno, Errno::ESTALE.get());
    rig.session = session;
    assert_eq!(rig.batch(1, 0, vec![op]).errno, 0);
}

#[test]
fn one_failure_does_not_stop_the_batch() {
    let mut rig = Rig::production();
    let ops = vec![mkdir(&mut rig, "d"), mkdir(&mut rig, "d"), mkdir(&mut rig, "e")];
    let reply = rig.batch(1, 0, ops);
    let errnos: Vec<_> = reply.results.iter().map(|r| r.errno).collect();
    assert_eq!(errnos, [0, Errno::EEXIST.get(), 0]);
}

#[test]
fn replies_are_bounded() {
    let mut rig = Rig::tiny();
    let op = Op::Unpin(pb::UnpinOp { inode: 1 });
    for seq in 1..=40 {
        rig.batch(seq, 0, vec![op.clone()]);
    }
    assert_eq!(rig.rows::<Replies>(), Limits::tiny().replies_kept);
    assert_eq!(rig.batch(8, 0, vec![op.clone()]).errno, Errno::EPROTO.get());
    assert_eq!(rig.batch(9, 0, vec![op.clone()]).errno, 0);
    let many = rig.batch(41, 0, vec![op; Limits::tiny().batch_ops_max + 1]);
    assert_eq!((many.errno, many.last_seq), (Errno::EPROTO.get(), 40));
}

#[test]
fn a_session_opens_once_and_ends_for_good() {
    let mut rig = Rig::production();
    let opened = rig.open_session(77);
    assert_eq!(rig.open_session(77), opened);
    rig.end_session(opened.session);
    rig.end_session(opened.session);
    let again = pb::OpenSessionCmd { client_nonce: 77, host: String::new() };
    assert_eq!(rig.ask(Kind::OpenSession(again)).errno, Errno::ESTALE.get());
    let op = mkdir(&mut rig, "d");
    rig.batch(1, 0, vec![op.clone()]);
    rig.end_session(rig.session);
    let reply = rig.batch(2, 0, vec![op]);
    assert_eq!((reply.errno, reply.last_seq), (Errno::ESTALE.get(), 1));
    assert_eq!(rig.rows::<Replies>(), 0);
}

#[test]
fn pins_keep_an_unlinked_inode_until_the_last_goes() {
    let mut rig = Rig::production();
    let file = rig.file(ROOT, "f");
    let mine = rig.session;
    let other = rig.open_session(2).session;
    rig.unlink(ROOT, "f", true).unwrap();
    assert_eq!(rig.attr(file).unwrap().nlink, 0);
    let seq = std::mem::replace(&mut rig.seq, 0);
    rig.session = other;
    rig.op(Op::Pin(pb::PinOp { inode: file })).unwrap();
    rig.op(Op::Pin(pb::PinOp { inode: file })).unwrap();
    (rig.session, rig.seq) = (mine, seq);
    rig.op(Op::Unpin(pb::UnpinOp { inode: file })).unwrap();
    rig.op(Op::Unpin(pb::UnpinOp { inode: file })).unwrap();
    assert_eq!(rig.attr(file).unwrap().nlink, 0);
    let link = pb::LinkOp { inode: file, parent: ROOT, name: "g".into() };
    assert_eq!(rig.op(Op::Link(link)).unwrap_err(), Errno::ENOENT);
    rig.end_session(other);
    assert_eq!(rig.attr(file), Err(Errno::ESTALE));
    assert_eq!(rig.op(Op::Pin(pb::PinOp { inode: file })).unwrap_err(), Errno::ESTALE);
}

#[test]
fn an_ending_session_drops_its_pins_in_bounded_steps() {
    let mut rig = Rig::tiny();
    let step = u64::from(Limits::tiny().purge_extents);
    let mine = rig.session;
    let other = rig.open_session(2).session;
    let files: Vec<u64> = (0..3 * step + 1).map(|i| rig.file(ROOT, &format!("f{i}"))).collect();
    let seq = std::mem::replace(&mut rig.seq, 0);
    rig.session = other;
    for file in &files {
        rig.op(Op::Pin(pb::PinOp { inode: *file })).unwrap();
    }
    (rig.session, rig.seq) = (mine, seq);
    for (i, file) in files.iter().enumerate() {
        rig.unlink(ROOT, &format!("f{i}"), false).unwrap();
        rig.op(Op::Unpin(pb::UnpinOp { inode: *file })).unwrap();
    }
    let end = Kind::EndSession(pb::EndSessionCmd { session: other, expired: true });
    let mut left = files.len() as u64;
    for dropped in [step, step, step, 1, 0] {
        assert_eq!(id_of(&rig.ask(end.clone())), dropped);
        left -= dropped;
        assert_eq!(rig.rows::<SessionPins>() as u64, left);
        // At once nothing is accepted from it any more.
        let session = std::mem::replace(&mut rig.session, other);
        let late = rig.batch(rig.seq + 1, 0, vec![Op::Pin(pb::PinOp { inode: files[0] })]);
        assert_eq!(late.errno, Errno::ESTALE.get());
        rig.session = session;
    }
    assert!(files.iter().all(|file| rig.attr(*file) == Err(Errno::ESTALE)));
}

#[test]
fn a_refused_operation_keeps_its_place_in_the_stream() {
    let mut rig = Rig::production();
    let refused = Op::Refused(pb::RefusedOp { errno: Errno::ENOSPC.get() });
    let dir = mkdir(&mut rig, "d");
    let reply = rig.batch(1, 0, vec![refused.clone(), dir.clone()]);
    let errnos: Vec<_> = reply.results.iter().map(|result| result.errno).collect();
    assert_eq!((errnos, reply.last_seq), (vec![Errno::ENOSPC.get(), 0], 2));
    // What was applied is answered as it was, whatever a retry says now.
    assert_eq!(rig.batch(1, 0, vec![dir, refused]), reply);
}

#[test]
fn a_removed_directory_that_is_open_stays_empty() {
    let mut rig = Rig::production();
    let dir = rig.mkdir(ROOT, "d");
    rig.op(Op::Pin(pb::PinOp { inode: dir })).unwrap();
    rig.op(Op::Rmdir(pb::RmdirOp { parent: ROOT, name: "d".into() })).unwrap();
    assert_eq!(rig.attr(dir).unwrap().nlink, 0);
    assert_eq!(rig.make(dir, "x", FileKind::Regular), Err(Errno::ENOENT));
    assert!(rig.readdir(dir, 0, 10).end);
    rig.op(Op::Unpin(pb::UnpinOp { inode: dir })).unwrap();
    assert_eq!(rig.attr(dir), Err(Errno::ESTALE));
}

#[test]
fn tombstones_are_bounded() {
    let mut rig = Rig::tiny();
    for nonce in 100..100 + TOMBSTONES_MAX + 5 {
        let cmd = pb::OpenSessionCmd { client_nonce: nonce, host: String::new() };
        let outcome = rig.apply(Kind::OpenSession(cmd));
        let Some(outcome::Kind::Session(opened)) = outcome.kind else { panic!("{outcome:?}") };
        rig.apply(Kind::EndSession(pb::EndSessionCmd { session: opened.session, expired: false }));
    }
    rig.check();
    assert_eq!(rig.rows::<Tombstones>() as u64, TOMBSTONES_MAX);
}

#[test]
fn command_time_never_runs_backwards() {
    let mut rig = Rig::production();
    let a = rig.file(ROOT, "a");
    rig.time -= 500;
    let b = rig.file(ROOT, "b");
    let (a, b) = (rig.attr(a).unwrap(), rig.attr(b).unwrap());
    assert_eq!(a.ctime_ns, b.ctime_ns);
}

#[test]
fn nothing_works_before_the_cluster_exists() {
    let mut ns = Namespace::new(Db::memory(), Arc::new(Limits::tiny()));
    let kind = Some(Kind::OpenSession(pb::OpenSessionCmd { client_nonce: 1, host: String::new() }));
    let command =
        pb::Command { time_ns: 1, proposals: vec![pb::Proposal { kind }, pb::Proposal::default()] };
    let outcomes = ns.apply(Term(1), LogIndex(1), &command).unwrap();
    assert_eq!(outcomes[0].errno, Errno::EAGAIN.get());
    assert_eq!(outcomes[1].errno, Errno::EINVAL.get());
}

#[test]
fn masters_are_known_by_their_incarnation() {
    let mut rig = Rig::production();
    let mut register = |incarnation: &str, node| {
        let cmd = pb::RegisterMasterCmd {
            incarnation: incarnation.to_owned().into(),
            address: "m:1".into(),
            node,
        };
        let outcome = rig.ask(Kind::RegisterMaster(cmd));
        Errno::check(outcome.errno).map(|()| id_of(&outcome))
    };
    assert_eq!(register("a", 1), Ok(1));
    assert_eq!(register("a", 0), Ok(1));
    assert_eq!(register("b", 0), Ok(2));
    assert_eq!(register("c", 1), Err(Errno::EEXIST));
    assert_eq!(register("b", 1), Err(Errno::EEXIST));
    assert_eq!(register("d", 7), Ok(7));
    assert_eq!(register("e", 0), Ok(8));
}
