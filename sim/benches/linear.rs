//! How long O1's checker takes for a million operations: `cargo bench --features sim --bench linear`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mooseng::errno::Errno;
use mooseng_proptests::{FsOp, FsOut, Kind, ModelFs};
use mooseng_sim::oracles::linear::{Call, Effect, Fate, History, check};
use mooseng_sim::rng::Rng;
use std::collections::BTreeMap;
use std::hint::black_box;

type Out = Result<FsOut, Errno>;

const OPERATIONS: u64 = 1_000_000;
const ROOT: u64 = 1;
/// Calls under way at once.
const OVERLAP: u64 = 8;

fn draw(rng: &mut Rng, ino: u64) -> FsOp {
    let (parent, name) = (ROOT, vec![b'a' + rng.below(16) as u8]);
    match rng.below(6) {
        0 | 1 => FsOp::Create {
            parent,
            name,
            ino,
            kind: Kind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            target: vec![],
        },
        2 => FsOp::Unlink { parent, name },
        3 => {
            let new_name = vec![b'a' + rng.below(16) as u8];
            FsOp::Rename { parent, name, new_parent: parent, new_name, flags: 0 }
        }
        _ => FsOp::Lookup { parent, name },
    }
}

/// A good history: calls take effect in the order in which they are made, and are answered a little later.
fn history(operations: u64) -> History<u64, FsOp, Out> {
    let (mut rng, mut fs) = (Rng::new(1).fork("history"), ModelFs::new(0));
    let (mut changes, mut reads, mut log) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut index = 0;
    for key in 0..operations {
        let op = draw(&mut rng, 100 + key);
        let out = fs.apply(&op);
        let reads_only = matches!(op, FsOp::Lookup { .. });
        if !reads_only {
            index += 1;
            log.push(Effect { index, key: Some(key), op: op.clone(), out: Some(out.clone()) });
        }
        // No two moments are the same.
        let at = (key + rng.below(OVERLAP)) * 2 * OVERLAP + 1 + key % OVERLAP;
        let fate = Fate::Answered { at, index, out };
        let call = Call { invoked: key * 2 * OVERLAP, op, fate };
        match reads_only {
            true => reads.push(call),
            false => _ = changes.insert(key, call),
        }
    }
    History { changes, reads, log, end: index }
}

fn linear(criterion: &mut Criterion) {
    let history = history(OPERATIONS);
    let mut group = criterion.benchmark_group("O1");
    group.sample_size(10).throughput(Throughput::Elements(OPERATIONS));
    group.bench_function("a million operations", |bencher| {
        bencher.iter(|| {
            let checked = check(&mut ModelFs::new(0), black_box(&history));
            let checked = checked.expect("a good history");
            assert_eq!(checked.changes + checked.reads, OPERATIONS);
        });
    });
    group.finish();
}

criterion_group!(benches, linear);
criterion_main!(benches);
