//! What docs/DISK_FORMAT.md says about damage to a master's files, on real masters: alone a refusal in one
//! line that names file and remedy, or what it promised is all there; in a group the others go on, and the
//! damaged one is replaced.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Options};
use common::damage::{Damage, copy_dir};
use common::{json, ok, pause, program, refused, turn, until};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of a box of the table file.
const BLOCK: usize = 4096;
/// Where a record of the log keeps kind, generation and sequence, and where its body begins.
const KIND: usize = 8;
const GENERATION: usize = 16;
const SEQUENCE: usize = 24;
const BODY: usize = 48;

/// A log that fills segments soon, a checkpoint after a few operations, and a log purged up to it.
fn options(masters: usize) -> Options {
    Options::new(masters, 0)
        .limit("wal_segment_bytes", 256 << 10)
        .limit("overlay_bytes_checkpoint", 8 << 10)
}

fn make_classes(cluster: &Cluster, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let name = format!("class-{number}");
        ok("mooseng", &["--masters", &cluster.masters_flag(), "class", "create", &name, "1+1"]);
    }
}

fn classes(cluster: &Cluster) -> BTreeSet<String> {
    let masters = cluster.masters_flag();
    let list = json("mooseng", &["--masters", &masters, "--json", "class", "list"]);
    let names = list.as_array().expect("a list").iter();
    names.map(|class| class["name"].as_str().expect("a name").to_owned()).collect()
}

/// Records of the segment that is written to, by where they are: those of its latest use, in order.
struct Active {
    path: PathBuf,
    records: Vec<usize>,
}

fn active_segment(dir: &Path) -> Active {
    let mut best = None;
    for entry in std::fs::read_dir(dir.join("wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "log") {
            let bytes = std::fs::read(&path).unwrap();
            let generation = number(&bytes, GENERATION);
            if bytes[..4] == *b"MWAL" && best.as_ref().is_none_or(|(g, _, _)| generation > *g) {
                best = Some((generation, path, bytes));
            }
        }
    }
    let (generation, path, bytes) = best.expect("a segment in use");
    let mut records = vec![0];
    let mut sequence = number(&bytes, SEQUENCE);
    for at in (8..bytes.len() - BODY).step_by(8) {
        let fits = bytes[at..at + 4] == *b"MWAL"
            && number(&bytes, at + GENERATION) == generation
            && number(&bytes, at + SEQUENCE) == sequence + 1;
        if fits {
            sequence += 1;
            records.push(at);
        }
    }
    assert_eq!(bytes[KIND], 1, "a segment begins with its head");
    assert!(records.len() > 8, "{} records in {}", records.len(), path.display());
    Active { path, records }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// It does not start, and says what to do.
    Refused,
    /// It starts, and everything is there.
    Whole,
}

struct Case {
    what: &'static str,
    file: PathBuf,
    damage: Damage,
    then: Then,
}

fn case(what: &'static str, file: &Path, damage: Damage, then: Then) -> Case {
    Case { what, file: file.to_owned(), damage, then }
}

/// The rows of the table for one master's directory.
fn cases(dir: &Path) -> Vec<Case> {
    use Then::{Refused, Whole};
    let (superblock, tables) = (dir.join("superblock"), dir.join("tables.redb"));
    let (wal, vote) = (dir.join("wal"), dir.join("wal/vote"));
    let Active { path: log, records } = active_segment(dir);
    let (middle, last) = (records[records.len() / 2], *records.last().unwrap());
    let len = std::fs::metadata(&tables).unwrap().len() as usize;
    // Boxes of group 0 that hold pages, behind head, root slots and the group's own slots.
    let pages: Vec<u64> = (5 * BLOCK..len).step_by(BLOCK).map(|at| at as u64 + 100).collect();
    let superblock_len = std::fs::metadata(&superblock).unwrap().len() as usize;
    vec![
        case("superblock flipped", &superblock, Damage::flip(superblock_len - 1), Refused),
        case("superblock cut", &superblock, Damage::cut(superblock_len / 2), Refused),
        case("superblock gone", &superblock, Damage::Gone, Refused),
        case("log: first record flipped", &log, Damage::flip(SEQUENCE), Refused),
        case("log: cut in the first record", &log, Damage::cut(20), Refused),
        case("log: middle record flipped", &log, Damage::flip(middle + SEQUENCE), Refused),
        case("log: cut in the middle record", &log, Damage::cut(middle + 20), Refused),
        case("log: last record flipped", &log, Damage::flip(last + SEQUENCE), Whole),
        case("log: cut in the last record", &log, Damage::cut(last + 20), Refused),
        case("log: cut behind the last record", &log, Damage::cut(last + 4096), Refused),
        case("log: segment in use gone", &log, Damage::Gone, Refused),
        case("log gone", &wal, Damage::Gone, Refused),
        case("vote: first record flipped", &vote, Damage::flip(SEQUENCE), Whole),
        case("vote: last record flipped", &vote, Damage::flip(BLOCK + SEQUENCE), Whole),
        case("vote: both flipped", &vote, Damage::Flip(vec![24, BLOCK as u64 + 24]), Whole),
        case("vote cut", &vote, Damage::cut(100), Whole),
        case("vote gone", &vote, Damage::Gone, Whole),
        case("tables: head flipped", &tables, Damage::flip(20), Refused),
        case("tables: one root slot flipped", &tables, Damage::flip(BLOCK + 30), Whole),
        case("tables: the other root slot flipped", &tables, Damage::flip(2 * BLOCK + 30), Whole),
        case(
            "tables: both root slots flipped",
            &tables,
            Damage::Flip(vec![BLOCK as u64 + 30, 2 * BLOCK as u64 + 30]),
            Refused,
        ),
        case("tables: pages flipped", &tables, Damage::Flip(pages), Refused),
        case("tables: cut in the head", &tables, Damage::cut(30), Refused),
        case("tables: cut in the middle", &tables, Damage::cut(len / 2), Refused),
        case("tables: last block cut off", &tables, Damage::cut(len - 1), Refused),
        case("tables gone, log purged beyond", &tables, Damage::Gone, Refused),
    ]
}

/// Starts the damaged master, which must not live; its line.
fn refusal(cluster: &Cluster, index: usize) -> String {
    let mut command = Command::new(program("mooseng-master"));
    command.envs(cluster.options.env.iter().map(|(name, value)| (name, value)));
    command.arg("--data").arg(cluster.master_dir(index));
    command.arg("--listen").arg(cluster.master_address(index));
    refused("mooseng-master", &mut command, 1)
}

fn names_file_and_remedy(case: &Case, dir: &Path, line: &str) {
    let file = match case.file.exists() {
        true => case.file.to_string_lossy(),
        false => dir.to_string_lossy(),
    };
    assert!(line.contains(&*file), "{}: does not name {file}: {line}", case.what);
    let remedy = line.contains("--join") || line.contains("empty directory");
    assert!(remedy, "{}: no remedy: {line}", case.what);
}

#[test]
fn a_damaged_single_master_refuses_or_has_everything() {
    let _turn = turn();
    let mut cluster = Cluster::start("damage", options(1).limit("log_entries_kept", 4));
    let (dir, keep) = (cluster.master_dir(0), cluster.temp.path().join("keep"));
    make_classes(&cluster, 0..40);
    until("a checkpoint is there", 20, || dir.join("tables.redb").exists().then_some(()));
    cluster.stop_all();
    let old = cluster.temp.path().join("old");
    copy_dir(&dir, &old);
    cluster.start_master(0);
    cluster.wait_whole();
    make_classes(&cluster, 40..80);
    let want = classes(&cluster);
    assert_eq!(want.len(), 81);
    // The heartbeat's note of what is committed follows the last operation.
    pause(300);
    cluster.stop_all();
    copy_dir(&dir, &keep);
    let mut outcomes = [0, 0];
    for case in cases(&dir) {
        case.damage.apply(&case.file);
        match case.then {
            Then::Refused => {
                let line = refusal(&cluster, 0);
                eprintln!("{}: {line}", case.what);
                names_file_and_remedy(&case, &dir, &line);
            }
            Then::Whole => {
                cluster.start_master(0);
                cluster.wait_whole();
                assert_eq!(classes(&cluster), want, "{}", case.what);
                cluster.stop_all();
                eprintln!("{}: everything is there", case.what);
            }
        }
        outcomes[usize::from(case.then == Then::Whole)] += 1;
        std::fs::remove_dir_all(&dir).unwrap();
        copy_dir(&keep, &dir);
    }
    assert!(outcomes[0] >= 16 && outcomes[1] >= 8, "{outcomes:?}");

    // An older image of the log beside the tables, and of the tables beside the log.
    for (what, part) in [("older log", "wal"), ("older tables", "tables.redb")] {
        let path = dir.join(part);
        Damage::Gone.apply(&path);
        match path.extension() {
            None => copy_dir(&old.join(part), &path),
            Some(_) => drop(std::fs::copy(old.join(part), &path).unwrap()),
        }
        let line = refusal(&cluster, 0);
        eprintln!("{what}: {line}");
        let said = line.contains(&*dir.to_string_lossy()) && line.contains("--join");
        assert!(said, "{what}: {line}");
        std::fs::remove_dir_all(&dir).unwrap();
        copy_dir(&keep, &dir);
    }
    cluster.start_master(0);
    cluster.wait_whole();
    assert_eq!(classes(&cluster), want, "undamaged");
}

/// Nothing was purged yet: the log alone holds everything.
#[test]
fn tables_that_are_gone_are_built_again_from_a_complete_log() {
    let _turn = turn();
    let mut cluster = Cluster::start("rebuilt", options(1));
    make_classes(&cluster, 0..40);
    let tables = cluster.master_dir(0).join("tables.redb");
    until("a checkpoint is there", 20, || tables.exists().then_some(()));
    cluster.stop_all();
    Damage::Gone.apply(&tables);
    cluster.start_all();
    cluster.wait_whole();
    assert_eq!(classes(&cluster).len(), 41);
}

#[test]
fn a_damaged_master_of_three_enters_anew_while_the_others_go_on() {
    let _turn = turn();
    let mut cluster = Cluster::start("replaced", options(3).limit("log_entries_kept", 4));
    make_classes(&cluster, 0..40);
    let damaged = 2;
    let dir = cluster.master_dir(damaged);
    until("a checkpoint is there", 20, || dir.join("tables.redb").exists().then_some(()));
    let rows = [
        "superblock cut",
        "log: middle record flipped",
        "log: last record flipped",
        "vote gone",
        "tables: pages flipped",
    ];
    let mut made = 40;
    for row in rows {
        cluster.masters[damaged].take().unwrap().stop();
        let mut all = cases(&dir).into_iter();
        let case = all.find(|case| case.what == row).expect("a row of the table");
        case.damage.apply(&case.file);
        // The others go on.
        make_classes(&cluster, made..made + 3);
        made += 3;
        let before = number_at(&cluster, damaged);
        if row.starts_with("superblock") {
            let line = refusal(&cluster, damaged);
            names_file_and_remedy(&case, &dir, &line);
            replace(&mut cluster, damaged);
        } else {
            cluster.start_master(damaged);
            if case.then == Then::Refused {
                until("it has entered anew", 60, || {
                    (number_at(&cluster, damaged) != before && members(&cluster) == 3).then_some(())
                });
            }
        }
        cluster.wait_whole();
        // By itself, and what it had is kept aside.
        let anew = case.then == Then::Refused;
        assert_eq!(number_at(&cluster, damaged) != before, anew, "{row}");
        assert_eq!(
            dir.join("damaged/wal").exists(),
            anew && !row.starts_with("superblock"),
            "{row}"
        );
        let _ = std::fs::remove_dir_all(dir.join("damaged"));
        assert_eq!(classes(&cluster).len(), made + 1, "{row}");
        // It counts again: with it and one other there is a majority.
        cluster.masters[1].take().unwrap().stop();
        make_classes(&cluster, made..made + 1);
        made += 1;
        cluster.start_master(1);
        cluster.wait_whole();
    }
    assert_eq!(classes(&cluster).len(), made + 1);
}

fn members(cluster: &Cluster) -> usize {
    let list = json("mooseng", &["--masters", &cluster.masters_flag(), "--json", "master", "list"]);
    list.as_array().map_or(0, Vec::len)
}

/// The highest number at the address of a master.
fn number_at(cluster: &Cluster, index: usize) -> u64 {
    let (masters, address) = (cluster.masters_flag(), cluster.master_address(index));
    let list = json("mooseng", &["--masters", &masters, "--json", "master", "list"]);
    let here = list.as_array().unwrap().iter().filter(|m| m["address"] == address.as_str());
    here.filter_map(|master| master["node"].as_u64()).max().expect("a member")
}

/// What the refusal asks for.
fn replace(cluster: &mut Cluster, index: usize) {
    let (masters, address) = (cluster.masters_flag(), cluster.master_address(index));
    let list = json("mooseng", &["--masters", &masters, "--json", "master", "list"]);
    let is_it = |master: &&serde_json::Value| master["address"] == address.as_str();
    let node = list.as_array().unwrap().iter().find(is_it).expect("a member")["node"].to_string();
    ok("mooseng", &["--masters", &masters, "master", "remove", &node]);
    std::fs::remove_dir_all(cluster.master_dir(index)).unwrap();
    cluster.start_master(index);
    cluster.add(&address);
}
