//! The write-ahead log over a disk that crashes, fails and rots (component model O8), and the planted bugs it
//! must see.
#![cfg(feature = "sim")]

use mooseng::marks;
use mooseng_sim::models::wal::{crash_everywhere, failing_disk, rot_everywhere, small_world};

fn seeds(many: u64) -> std::ops::Range<u64> {
    let set = std::env::var("MOOSENG_SEEDS").ok().and_then(|text| text.parse().ok());
    0..set.unwrap_or(many)
}

fn caught(bug: &str) -> u64 {
    marks::plant(Some(bug));
    let seed = (0..20).find(|seed| crash_everywhere(*seed, 60).is_err());
    marks::plant(None);
    seed.unwrap_or_else(|| panic!("{bug} was not found by 20 seeds"))
}

/// One test, because the planted bugs are the process's.
#[test]
fn the_log_survives_every_crash_and_planted_bugs_are_caught() {
    for seed in seeds(6) {
        let report = crash_everywhere(seed, 80).unwrap();
        assert!(report.crashes > 300, "{report:?}");
        println!("seed {seed}: {report:?}");
    }
    let small = small_world().unwrap();
    println!("small world: {small:?}");
    assert!(small.crashes > 900, "{small:?}");
    let mut errors = 0;
    for seed in seeds(30) {
        errors += failing_disk(seed, 200).unwrap().errors;
    }
    assert!(errors > 20, "{errors}");
    let refused: u64 = seeds(4).map(|seed| rot_everywhere(seed, 60, 13).unwrap().refused).sum();
    assert!(refused > 50, "{refused}");
    println!("{errors} errors survived, {refused} rotten logs refused");
    for mark in ["wal: torn tail cut", "wal: segment recycled"] {
        assert!(marks::hits().contains_key(mark), "{mark} was not reached");
    }
    for bug in ["M01", "M02", "M09", "M11"] {
        println!("{bug}: found by seed {}", caught(bug));
    }
    marks::plant(Some("M10"));
    let found = (0..20).find(|seed| rot_everywhere(*seed, 60, 13).is_err());
    marks::plant(None);
    println!("M10: found by seed {}", found.expect("rot taken for a torn tail is seen"));
}
