//! The small world of the tables (component model O8): every program of one and of two steps, a crash at every
//! call that changes the disk, every fate of what was not synced. Pairs of units are many: they are tried with
//! `MOOSENG_SMALL=full`.
#![cfg(feature = "sim")]

use mooseng_sim::models::tables::small_world;

#[test]
fn the_small_world_is_complete() {
    let full = std::env::var("MOOSENG_SMALL").is_ok_and(|set| set == "full");
    let report = small_world(full).unwrap();
    println!("{report:?}");
    assert!(
        report.changes > 200 && report.crashes > 2_000 && report.went_forward > 0,
        "{report:?}"
    );
}
