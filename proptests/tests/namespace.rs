//! The state machine against the model: the same operations, the same answers, every invariant after each.

use mooseng::limits::Limits;
use mooseng::namespace::Namespace;
use mooseng::tables::Db;
use mooseng_proptests::machine::{Machine, run_seed, step};
use mooseng_proptests::{ModelFs, OpGen, Tape};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};
use proptest::proptest;
use std::sync::Arc;

fn run_tapes(tapes: &[Vec<u32>], limits: Limits) -> Machine {
    let (mut machine, mut model) = (Machine::new(limits), ModelFs::new(1000));
    let mut generator = OpGen::default();
    for tape in tapes {
        step(&mut machine, &mut model, &mut generator, &mut Tape(tape));
        machine.compare(&model);
    }
    machine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn short_programs_agree_with_the_model(tapes in vec(vec(any::<u32>(), 12..20), 1..60)) {
        run_tapes(&tapes, Limits::tiny());
    }
}

#[test]
fn long_programs_agree_with_the_model() {
    for seed in 0..24 {
        run_seed(seed, 400, Limits::tiny());
    }
}

#[test]
fn production_limits_agree_with_the_model() {
    for seed in 100..108 {
        run_seed(seed, 300, Limits::production());
    }
}

#[test]
fn bounds_come_from_the_log() {
    use mooseng::pb::{self, proposal::Kind};
    let limits = |inline| pb::ApplyLimits {
        batch_ops_max: 10,
        replies_kept: 10,
        inode_range: 10,
        inline_bytes_max: inline,
        inline_total_bytes_max: inline,
        extents_max: 10,
        purge_extents: 10,
    };
    let command = pb::Command {
        time_ns: 5,
        proposals: vec![pb::Proposal {
            kind: Some(Kind::InitCluster(pb::InitClusterCmd {
                cluster: vec![1; 16].into(),
                default_layout: Some(pb::Layout { data: 1, parity: 0 }),
                cluster_epoch: 0,
                limits: Some(limits(100)),
            })),
        }],
    };
    let hash = |config: Limits| {
        let mut ns = Namespace::new(Db::memory(), Arc::new(config));
        ns.apply(mooseng::ids::Term(1), mooseng::ids::LogIndex(1), &command).expect("tables");
        ns.db().hash()
    };
    assert_eq!(hash(Limits::tiny()), hash(Limits::production()));
}

/// A replica that writes checkpoints and is started again from them comes to the same states.
#[cfg(not(feature = "sim"))]
#[expect(clippy::disallowed_methods, reason = "the test makes and removes a directory")]
mod on_disk {
    use mooseng::ids::{LogIndex, Term};
    use mooseng::limits::Limits;
    use mooseng::namespace::{Namespace, check};
    use mooseng::pb::{CheckpointMeta, RaftLogId};
    use mooseng::seam::Disk;
    use mooseng::seam::real::RealDisk;
    use mooseng::tables::Db;
    use mooseng_proptests::machine::run_seed;
    use mooseng_proptests::{Draw, SplitMix};
    use std::sync::Arc;

    fn open(disk: &Arc<dyn Disk>) -> (Namespace, u64) {
        let limits = Limits::tiny();
        let (db, meta) = Db::open(disk.clone(), "tables", &limits).expect("open");
        let applied = meta.and_then(|meta| meta.last_applied).map_or(0, |id| id.index);
        (Namespace::new(db, Arc::new(limits)), applied)
    }

    #[test]
    fn checkpoints_and_restarts_change_nothing() {
        let path = std::env::temp_dir().join(format!("mooseng-replay-{}", std::process::id()));
        for seed in 300..303 {
            let _ = std::fs::remove_dir_all(&path);
            let disk: Arc<dyn Disk> = RealDisk::create(&path).expect("create");
            let log = run_seed(seed, 250, Limits::tiny()).log;
            let mut draw = SplitMix(seed);
            let (mut ns, mut applied) = open(&disk);
            let (mut restarts, mut pending) = (0, None);
            while (applied as usize) < log.len() {
                let (index, command, outcomes, hash) = &log[applied as usize];
                let again = ns.apply(Term(1), LogIndex(*index), command).expect("apply");
                assert_eq!((&again, ns.db().hash()), (outcomes, *hash), "command {index}");
                applied = *index;
                if draw.chance(1, 20) && pending.is_none() {
                    let last_applied = Some(RaftLogId { term: 1, node: 1, index: applied });
                    let meta = CheckpointMeta { last_applied, ..CheckpointMeta::default() };
                    pending = ns.db_mut().begin_checkpoint(meta, false);
                } else if draw.chance(1, 10)
                    && let Some(mut checkpoint) = pending.take()
                {
                    let finished = checkpoint.write().expect("write");
                    drop(ns.db_mut().finish_checkpoint(finished));
                    check(ns.db()).expect("all invariants");
                } else if draw.chance(1, 60) && restarts < 20 {
                    (restarts, pending) = (restarts + 1, None);
                    drop(ns);
                    (ns, applied) = open(&disk);
                    assert_eq!(
                        ns.db().hash(),
                        applied.checked_sub(1).map_or(0, |i| log[i as usize].3)
                    );
                }
            }
            check(ns.db()).expect("all invariants");
            assert_eq!(ns.db().hash(), ns.db().view().hash_of_rows().expect("rows"));
            assert!(restarts > 3, "{restarts} restarts");
        }
        let _ = std::fs::remove_dir_all(&path);
    }
}
