//! The small world of the store, complete: every program of one and of two operations on a store with one
//! synced replica, stopped at every I/O, with every fate of what was not synced: nothing kept, everything, each
//! choice of up to two units, each unit torn.
//!
//! Does not check: longer programs (`crash`), rot (`disks`).

use super::*;
use mooseng_sim::disk::{Chosen, Outcome};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Do {
    Append,
    AppendShort,
    AppendNew,
    Sync,
    Seal,
    /// The second block of a sealed replica.
    Punch,
    Delete,
    Build,
}

const ALL: [Do; 8] = [
    Do::Append,
    Do::AppendShort,
    Do::AppendNew,
    Do::Sync,
    Do::Seal,
    Do::Punch,
    Do::Delete,
    Do::Build,
];

/// What must be there.
#[derive(Default)]
struct Must {
    /// Of the first replica; its length while it grows.
    durable: u64,
    length: u64,
    sealed: bool,
    may_punch: bool,
    punched: bool,
    may_go: bool,
    gone: bool,
    built: bool,
}

const BUILT: u64 = 3;

fn begin(disk: &Arc<SimDisk>) -> (Arc<Store>, Must) {
    let store = open(disk, 1).expect("opens");
    put(&store, copy_id(1), 0, 2 * BLOCK_BYTES).expect("appends");
    let durable = sync(&store, copy_id(1)).expect("syncs");
    (store, Must { durable, length: durable, ..Must::default() })
}

fn perform(store: &Arc<Store>, what: Do, must: &mut Must) -> Result<(), StoreError> {
    let id = copy_id(1);
    match what {
        Do::Append | Do::AppendShort => {
            let len = if what == Do::Append { BLOCK_BYTES } else { 100 };
            put(store, id, must.length, len)?;
            must.length += BLOCK;
        }
        Do::AppendNew => drop(put(store, copy_id(2), 0, BLOCK_BYTES)),
        Do::Sync => must.durable = sync(store, id)?,
        Do::Seal => {
            store.seal(id, must.durable)?;
            (must.sealed, must.length) = (true, must.durable);
        }
        Do::Punch if must.sealed => {
            must.may_punch = true;
            store.punch(id, std::slice::from_ref(&(BLOCK..2 * BLOCK)))?;
            must.punched = true;
        }
        Do::Punch => {
            let refused = store.punch(id, std::slice::from_ref(&(BLOCK..2 * BLOCK)));
            assert!(refused.is_err(), "an open replica is not punched");
        }
        Do::Delete => {
            must.may_go = true;
            store.delete(&[id])?;
            must.gone = true;
        }
        Do::Build => {
            let built = copy_id(BUILT);
            let mut build = store.build(built, BLOCK)?;
            build.write(&fill(built, 0, BLOCK_BYTES), &[])?;
            build.finish()?;
            must.built = true;
        }
    }
    Ok(())
}

fn run(disk: &Arc<SimDisk>, program: &[Do], from: u64) -> (bool, Must) {
    let (store, mut must) = begin(disk);
    disk.die_after(from);
    let done = program.iter().try_for_each(|what| perform(&store, *what, &mut must)).is_ok();
    (done, must)
}

fn check(disk: &Arc<SimDisk>, must: &Must, when: &str) {
    let store = open(disk, 2).unwrap_or_else(|error| panic!("{when}: {error}"));
    match store.status(copy_id(1)) {
        None => assert!(must.may_go, "{when}: the replica is gone"),
        Some(status) => {
            assert!(!must.gone, "{when}: the replica is back");
            assert!(status.length >= must.durable && !status.corrupt, "{when}: {status:?}");
            assert!(!must.sealed || status.sealed, "{when}: {status:?}");
        }
    }
    assert!(!must.built || store.status(copy_id(BUILT)).is_some(), "{when}: the copy is gone");
    for status in store.list(None, 99) {
        assert_eq!(store.verify(status.id), Ok(vec![]), "{when}: {}", status.id);
        let sound = status.length.min(2 * BLOCK) as usize;
        let blocks = store.read(status.id, 0, sound as u64).expect("readable");
        let hole = hole_crc(status.id.chunk, status.id.crc_shard(), 1);
        let is_hole = blocks.crcs.get(1) == Some(&hole);
        let first = status.id == copy_id(1);
        assert!(!is_hole || (first && must.may_punch), "{when}: a hole in {}", status.id);
        assert!(!first || is_hole || !must.punched, "{when}: the hole is gone");
        let sound = if is_hole { BLOCK_BYTES } else { sound };
        assert!(
            blocks.data[..sound] == fill(status.id, 0, sound),
            "{when}: wrong bytes in {}",
            status.id
        );
    }
}

#[test]
fn the_small_world_is_complete() {
    let _turn = alone();
    let (mut programs, mut points, mut fates) = (0, 0, 0);
    let ones = ALL.iter().map(|a| vec![*a]);
    let twos = ALL.iter().flat_map(|a| ALL.iter().map(move |b| vec![*a, *b]));
    for program in ones.chain(twos) {
        programs += 1;
        for at in 0.. {
            let disk = SimDisk::new("store", 64 << 20, 1);
            let (_, must) = run(&disk, &program, at);
            if !disk.is_dead() {
                break;
            }
            points += 1;
            let (sectors, names) = disk.unsynced();
            let chosen = Chosen::all(sectors + names).into_iter().map(Outcome::Only);
            for fate in [Outcome::DropAll, Outcome::KeepAll].into_iter().chain(chosen) {
                let after = disk.duplicate(at);
                after.power_loss_as(fate);
                check(&after, &must, &format!("{program:?} at I/O {at}, {fate:?}"));
                fates += 1;
            }
        }
    }
    println!("{programs} programs, {points} crash points, {fates} fates");
    assert!(points > 200 && fates > 5_000, "the small world has shrunk");
}
