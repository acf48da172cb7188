//! How fast one thread applies commands, and what a file takes in memory. Prints a table; compare runs on
//! the same machine only.

#[cfg(feature = "sim")]
fn main() {
    eprintln!("built with feature sim; build without");
    std::process::exit(2);
}

#[cfg(not(feature = "sim"))]
fn main() {
    real::main();
}

#[cfg(not(feature = "sim"))]
mod real {
    use mooseng::ids::{LogIndex, Term};
    use mooseng::limits::Limits;
    use mooseng::namespace::Namespace;
    use mooseng::pb::op::Op;
    use mooseng::pb::outcome::Kind as Answer;
    use mooseng::pb::proposal::Kind;
    use mooseng::pb::{self, FileKind};
    use mooseng::seam;
    use mooseng::tables::Db;
    use std::sync::Arc;

    const DIRS: u64 = 100;
    const FILES: u64 = 100_000;
    const BATCH: u64 = 64;

    struct Bench {
        ns: Namespace,
        index: u64,
        session: u64,
        seq: u64,
    }

    impl Bench {
        fn apply(&mut self, kind: Kind) -> pb::Outcome {
            self.index += 1;
            let proposals = vec![pb::Proposal { kind: Some(kind) }];
            let command = pb::Command { time_ns: self.index, proposals };
            self.ns.apply(Term(1), LogIndex(self.index), &command).expect("memory").remove(0)
        }

        /// Runs `count` operations in batches; microseconds per operation.
        fn run(&mut self, name: &str, count: u64, make: impl Fn(u64) -> Op) {
            let mut commands = Vec::new();
            for first in (0..count).step_by(BATCH as usize) {
                let ids = first..(first + BATCH).min(count);
                let ops = ids.map(|i| pb::Op { op: Some(make(i)) }).collect::<Vec<_>>();
                let (session, first_seq) = (self.session, self.seq + 1);
                self.seq += ops.len() as u64;
                commands.push(pb::Batch { session, first_seq, acked_seq: first_seq - 1, ops });
            }
            let begin = seam::now();
            for batch in commands {
                let outcome = self.apply(Kind::Batch(batch));
                let Some(Answer::Batch(reply)) = outcome.kind else { panic!("{outcome:?}") };
                assert!(reply.results.iter().all(|r| r.errno == 0), "{:?}", reply.results[0]);
            }
            let us = seam::now().since(begin).as_secs_f64() * 1e6;
            let each = us / count as f64;
            println!("{name:<32} {each:>6.2} us/op {:>9.0} op/s", 1e6 / each);
        }
    }

    fn resident() -> u64 {
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads its own memory use")]
        let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        text.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 4096
    }

    pub fn main() {
        let limits = Limits { inode_range: 1 << 20, ..Limits::production() };
        let ns = Namespace::new(Db::memory(), Arc::new(limits));
        let mut bench = Bench { ns, index: 0, session: 0, seq: 0 };
        bench.apply(Kind::InitCluster(pb::InitClusterCmd {
            cluster: vec![1; 16].into(),
            default_layout: Some(pb::Layout { data: 1, parity: 1 }),
            ..Default::default()
        }));
        let open = pb::OpenSessionCmd { client_nonce: 1, host: String::new() };
        let Some(Answer::Session(session)) = bench.apply(Kind::OpenSession(open)).kind else {
            panic!("no session");
        };
        bench.session = session.session;
        let first = session.first_inode;
        let create = |i: u64, parent, kind: FileKind, inode| pb::CreateOp {
            parent,
            name: format!("entry{i:07}").into(),
            inode,
            kind: kind.into(),
            mode: 0o644,
            ..Default::default()
        };
        let dir = move |i: u64| first + i % DIRS;
        let file = move |i: u64| first + DIRS + i;
        bench.run("mkdir", DIRS, |i| Op::Create(create(i, 1, FileKind::Directory, first + i)));
        let before = (resident(), bench.ns.db().overlay_bytes());
        bench.run("create (empty)", FILES, |i| {
            Op::Create(create(i, dir(i), FileKind::Regular, file(i)))
        });
        let after = (resident(), bench.ns.db().overlay_bytes());
        println!(
            "    {} bytes resident, {} bytes of overlay a file",
            (after.0 - before.0) / FILES,
            (after.1 - before.1) as u64 / FILES
        );
        let bytes = bytes::Bytes::from(vec![7; 1000]);
        bench.run("commit 1000 bytes inline", FILES, move |i| {
            let source = Some(pb::extent::Source::Inline(bytes.clone()));
            let extents = vec![pb::Extent { file_off: 0, len: 1000, source }];
            Op::Commit(pb::CommitOp { inode: file(i), extents, ..Default::default() })
        });
        bench.run("chmod", FILES, move |i| {
            Op::Setattr(pb::SetattrOp { inode: file(i), mode: Some(0o600), ..Default::default() })
        });
        bench.run("rename within a directory", FILES, move |i| {
            Op::Rename(pb::RenameOp {
                parent: dir(i),
                name: format!("entry{i:07}").into(),
                new_parent: dir(i),
                new_name: format!("other{i:07}").into(),
                ..Default::default()
            })
        });
        bench.run("unlink", FILES, move |i| {
            let (parent, name) = (dir(i), format!("other{i:07}").into());
            Op::Unlink(pb::UnlinkOp { parent, name, pin: false })
        });
    }
}
