//! The tables over a disk that crashes, fails and lies (component model O8), and the planted bug it must see.
#![cfg(feature = "sim")]

use mooseng::marks;
use mooseng_sim::models::tables::{bad_disk, crash_everywhere};

fn seeds(many: u64) -> std::ops::Range<u64> {
    let set = std::env::var("MOOSENG_SEEDS").ok().and_then(|text| text.parse().ok());
    0..set.unwrap_or(many)
}

/// One test, because the planted bug is the process's.
#[test]
fn the_tables_survive_every_crash_and_a_checkpoint_before_its_fsync_is_caught() {
    for seed in seeds(3) {
        let report = crash_everywhere(seed, 90).unwrap();
        assert!(report.crashes > 500 && report.went_forward > 5, "{report:?}");
        println!("seed {seed}: {report:?}");
    }
    let mut refusals = 0;
    for seed in seeds(3) {
        (0..40).for_each(|run| refusals += bad_disk(seed * 1000 + run, 150).unwrap().refusals);
    }
    assert!(refusals > 20, "{refusals}");
    println!("bad disks: {refusals} refusals");
    let hits = marks::hits();
    for mark in ["table file written anew", "table slots differ at open", "table block refused"] {
        assert!(hits.contains_key(mark), "{mark} was not reached: {hits:?}");
    }
    marks::plant(Some("M12"));
    let caught = crash_everywhere(0, 90).expect_err("a checkpoint acknowledged before its fsync");
    println!("M12: {caught}");
    assert!(marks::bug_reached() > 0);
    marks::plant(None);
}
