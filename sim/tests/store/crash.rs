//! O8 for the store: a program of appends, syncs, seals, builds and deletes is stopped at every I/O, with
//! everything, nothing or any mixture of the un-synced bytes and names surviving, also during the recovery
//! that follows. Whatever was answered as durable must be there, right and complete.
//!
//! Does not check: that un-synced bytes survive (they need not), and rot (see `disks`).

use super::*;
use mooseng::store::inspect;
use mooseng_sim::disk::Outcome;
use std::collections::BTreeMap;

/// What was promised about a replica.
#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    durable: u64,
    sealed: Option<u64>,
    deleting: bool,
    deleted: bool,
}

#[derive(Default)]
struct Run {
    promises: BTreeMap<ReplicaId, Promise>,
}

impl Run {
    fn of(&mut self, id: ReplicaId) -> &mut Promise {
        self.promises.entry(id).or_default()
    }

    /// The whole program; ends at the first error.
    fn go(&mut self, disk: &Arc<SimDisk>) -> Result<(), String> {
        let store = open(disk, 1).map_err(|error| error.to_string())?;
        self.work(&store).map_err(|error| error.to_string())
    }

    fn work(&mut self, store: &Arc<Store>) -> Result<(), StoreError> {
        let (a, b, c) = (copy_id(1), copy_id(2), copy_id(0x101));
        let built = ReplicaId { shard: 5, data_shards: 4, ..copy_id(3) };
        put(store, a, 0, 2 * BLOCK_BYTES)?;
        self.sync(store, a)?;
        put(store, a, 2 * BLOCK, 7 * BLOCK_BYTES + 100)?;
        put(store, b, 0, 3 * BLOCK_BYTES)?;
        self.sync(store, b)?;
        self.sync(store, a)?;
        put(store, a, 10 * BLOCK, BLOCK_BYTES)?;
        put(store, c, 0, 100)?;
        for offset in (3..11).map(|block| block * BLOCK) {
            put(store, b, offset, BLOCK_BYTES)?;
            self.sync(store, b)?;
        }
        self.build(store, built)?;
        // What is beyond is given up from the moment that the seal is asked for.
        self.of(a).durable = 9 * BLOCK;
        store.seal(a, 9 * BLOCK)?;
        self.of(a).sealed = Some(9 * BLOCK);
        self.of(b).deleting = true;
        store.delete(&[b])?;
        self.of(b).deleted = true;
        self.sync(store, c)?;
        store.close()?;
        Ok(())
    }

    fn sync(&mut self, store: &Store, id: ReplicaId) -> Result<(), StoreError> {
        let durable = sync(store, id)?;
        self.of(id).durable = durable;
        Ok(())
    }

    fn build(&mut self, store: &Arc<Store>, id: ReplicaId) -> Result<(), StoreError> {
        let mut build = store.build(id, 32 * BLOCK)?;
        for offset in [0, 16 * BLOCK] {
            build.write(&fill(id, offset, 16 * BLOCK_BYTES), &[])?;
        }
        let length = build.finish()?;
        *self.of(id) = Promise { durable: length, sealed: Some(length), ..Promise::default() };
        Ok(())
    }

    fn check(&self, disk: &Arc<SimDisk>, incarnation: u64, when: &str) {
        let found = inspect(&*disk.handle(u64::MAX)).expect("readable");
        let store = open(disk, incarnation).unwrap_or_else(|error| panic!("{when}: {error}"));
        let listed: Vec<_> = store.list(None, 99).iter().map(|s| (s.id, s.length)).collect();
        assert_eq!(found, listed, "{when}: inspection and recovery agree");
        for (id, promise) in &self.promises {
            let Some(status) = store.status(*id) else {
                let may_be_gone = promise.deleting || promise.durable == 0;
                assert!(may_be_gone, "{when}: {id} is gone");
                continue;
            };
            assert!(!promise.deleted, "{when}: {id} is back");
            assert!(!status.corrupt, "{when}: {id} is damaged");
            assert!(status.length >= promise.durable, "{when}: {status:?} of {promise:?}");
            if let Some(sealed) = promise.sealed {
                assert!(status.sealed && status.length == sealed, "{when}: {status:?}");
            }
            assert_eq!(store.verify(*id), Ok(vec![]), "{when}: {id}");
        }
        for status in store.list(None, 99) {
            assert_eq!(status.length, status.durable, "{when}");
            check_gapped(&store, status.id, status.length);
        }
        let builds = disk.paths().iter().filter(|path| path.ends_with(".build")).count();
        assert_eq!(builds, 0, "{when}: half-built replicas are removed");
    }
}

/// Bytes as [`fill`] gave them, except the padding behind the short append at 2 blocks of replica 1 and of
/// replica 0x101.
fn check_gapped(store: &Store, id: ReplicaId, length: u64) {
    let blocks = store.read(id, 0, length).expect("readable");
    for (index, block) in blocks.data.chunks(BLOCK_BYTES).enumerate() {
        let short = (id == copy_id(1) && index == 9) || id == copy_id(0x101);
        let len = if short { 100 } else { BLOCK_BYTES };
        assert_eq!(block[..len], fill(id, index as u64 * BLOCK, len), "{id} block {index}");
    }
}

const OUTCOMES: [(Outcome, u64); 3] =
    [(Outcome::DropAll, 1), (Outcome::KeepAll, 1), (Outcome::Mixed, 12)];

#[test]
fn a_crash_at_every_io_loses_nothing_that_was_synced() {
    let _turn = alone();
    let mut ios = 0;
    for at in 0.. {
        let disk = SimDisk::new("store", 64 << 20, 1);
        disk.die_after(at);
        let mut run = Run::default();
        let finished = run.go(&disk).is_ok();
        ios = at;
        kill(&run, &disk, at);
        lose_power(&run, &disk, at);
        if finished {
            break;
        }
    }
    assert!(ios > 60, "only {ios} I/Os: the program has shrunk");
    println!("crashed at each of {ios} I/Os");
}

/// kill -9: the page cache survives.
fn kill(run: &Run, disk: &Arc<SimDisk>, at: u64) {
    let disk = disk.duplicate(at);
    run.check(&disk, 2, &format!("killed at I/O {at}"));
}

fn lose_power(run: &Run, disk: &Arc<SimDisk>, at: u64) {
    for (outcome, seeds) in OUTCOMES {
        for seed in 0..seeds {
            let when = format!("power lost at I/O {at}, {outcome:?}, seed {seed}");
            let after = disk.duplicate(seed * 1000 + at);
            after.power_loss_as(outcome);
            // A second loss during recovery, somewhere.
            let again = after.duplicate(seed * 1000 + at + 1);
            again.die_after((seed + at) % 9);
            let _ = open(&again, 2);
            again.power_loss_as(outcome);
            again.revive();
            run.check(&again, 3, &format!("{when}, and again while recovering"));
            run.check(&after, 2, &when);
        }
    }
}
