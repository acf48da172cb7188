//! The matrix of single faults: every file on the disk of every machine of a small cluster, damaged at four
//! places (a bit flipped, a sector zeroed) while the machine is down, and the faults of a running disk (EIO on
//! a read, a write, an fsync, a misdirected write) at several moments on each. The seed is the number of the
//! case.
//!
//! Checked: no other machine is affected. The damaged one may refuse to start; every file can be read, with
//! the bytes that were synced, new ones can be written, and if the machine runs every chunk is whole again (O6);
//! the log's oracles (O5, O13) hold, and the damaged machine is not judged by what rot or a stray write took.
//! Not checked: several faults at once (`damage_chaos`).

use super::cluster_chaos::audit;
use crate::cluster::full::{Cluster, connect, mount};
use crate::disk::{SECTOR, SimDisk};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::ledger::Ledger;
use crate::oracles::log::Log;
use crate::oracles::persist_chunks::PersistChunks;
use crate::stats;
use crate::trace;
use crate::world::{Options, Power, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MACHINES: [&str; 6] = ["m1", "m2", "m3", "s1", "s2", "s3"];
/// Files of a disk, places in a file, and kinds of damage in the table of cases.
const FILES: u64 = 8;
const PLACES: u64 = 4;
const RESTING: u64 = MACHINES.len() as u64 * FILES * PLACES * 2;
/// Faults of a running disk, and how many further calls it takes.
const RUNNING: u64 = MACHINES.len() as u64 * 4 * 4;
/// All of them.
pub const CASES: u64 = RESTING + RUNNING;

pub const SCENARIO: Scenario = Scenario {
    name: "single_fault",
    about: "one fault on one disk of a small cluster, every file, place and kind in turn",
    seeds: 60,
    limit: Duration::from_secs(400),
    must_count: &[
        "damaged at rest",
        "failed while running",
        "blocks checked",
        "O13 commits checked",
        "O13 chunk syncs checked",
        "machines that refuse to start",
    ],
    run: |seed| Box::pin(run(seed)),
};

#[derive(Debug)]
enum Fault {
    Flip { file: u64, place: u64 },
    Zero { file: u64, place: u64 },
    Running { kind: u64, after: u64 },
}

#[derive(Debug)]
struct Case {
    machine: &'static str,
    fault: Fault,
}

impl Case {
    fn of(seed: u64) -> Case {
        // A step without common divisor with the number of cases visits all of them.
        let number = (seed.wrapping_sub(1) % CASES) * 101 % CASES;
        let machine = MACHINES[(number % MACHINES.len() as u64) as usize];
        let rest = number / MACHINES.len() as u64;
        let fault = if rest < FILES * PLACES * 2 {
            let (file, place) = (rest / 2 / PLACES, rest / 2 % PLACES);
            match rest % 2 {
                0 => Fault::Flip { file, place },
                _ => Fault::Zero { file, place },
            }
        } else {
            let rest = rest - FILES * PLACES * 2;
            Fault::Running { kind: rest % 4, after: rest / 4 * 40 }
        };
        Case { machine, fault }
    }
}

async fn run(seed: u64) {
    let case = Case::of(seed);
    let (masters, chunkservers, tiny) = (3, 3, true);
    let drawn = Options { masters, chunkservers, parity: 1, tiny, ..Options::draw(seed) };
    let world = World::new(drawn.calm());
    let cluster = Cluster::default();
    Log::watch(&world, &cluster);
    world.frames.watch(PersistChunks::new(&world));
    cluster.add(&world);
    cluster.form(&world).await;
    tokio::spawn(world.clone().supervise());
    trace::line("world", &format!("{case:?}"));
    let (ledger, written) = (Ledger::default(), Arc::new(AtomicU64::new(0)));
    add_writer(&world, &ledger, &written);
    progress(&written, 6).await;
    strike(&world, &case).await;
    progress(&written, written.load(Ordering::Relaxed) + 6).await;
    world.heal().await;
    world.kill("c1");
    audit(&world, &cluster, &ledger, 100).await;
    // One that does not start is the operator's to replace.
    tokio::time::sleep(Duration::from_secs(2)).await;
    if world.power(case.machine) == Power::Up {
        cluster.converge(&world).await;
        chunks::check(&world, &cluster).await;
    } else {
        stats::count("machines that refuse to start");
    }
}

/// Files of three sizes, written and synced one after another.
fn add_writer(world: &Arc<World>, ledger: &Ledger, written: &Arc<AtomicU64>) {
    let (ledger, written) = (ledger.clone(), written.clone());
    mount(world, 1, move |context, config| {
        let (ledger, written) = (ledger.clone(), written.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            for number in 0usize.. {
                let name = format!("f{number}");
                if let Err(errno) = store(&client, &ledger, &name, 1 + number % 3 * 40).await {
                    violation("O7", format!("{name}: {errno:?} with one fault on one disk"));
                }
                written.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        })
    });
}

async fn store(
    client: &Arc<Client>,
    ledger: &Ledger,
    name: &str,
    blocks: usize,
) -> Result<(), Errno> {
    ledger.creating(name);
    let new = NewFile { mode: 0o644, flags: 2, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    ledger.created(name);
    let bytes = ledger.write(name, 0, blocks);
    client.write(handle, 0, bytes.into()).await?;
    let position = ledger.position(name);
    client.fsync(handle, false).await?;
    ledger.synced(name, position);
    client.release(handle).await;
    Ok(())
}

/// O7: files get written.
async fn progress(written: &AtomicU64, until: u64) {
    for _ in 0..1_200 {
        if written.load(Ordering::Relaxed) >= until {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stuck("O7", "no files are written within 60 s, with one fault on one disk");
}

async fn strike(world: &Arc<World>, case: &Case) {
    let disk = world.disks(case.machine)[0].clone();
    let (file, place, zero) = match case.fault {
        Fault::Flip { file, place } => (file, place, false),
        Fault::Zero { file, place } => (file, place, true),
        Fault::Running { kind, after } => return running(&disk, kind, after).await,
    };
    world.power_loss(case.machine);
    let mut paths = disk.paths();
    paths.retain(|path| !path.ends_with("LOCK"));
    if let Some(path) = paths.get(file as usize) {
        damage(&disk, path, place, zero);
        trace::line(case.machine, &format!("{path} is damaged at {place}/4"));
        stats::count("damaged at rest");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.restart(case.machine).await;
}

/// A bit or a sector at the beginning, at a quarter, in the middle or near the end.
fn damage(disk: &SimDisk, path: &str, place: u64, zero: bool) {
    let bytes = disk.written(path).unwrap_or_default();
    let at = match place {
        0 => 17.min(bytes.len().saturating_sub(1)),
        3 => bytes.len().saturating_sub(40),
        place => bytes.len() * place as usize / 4,
    };
    if !zero {
        disk.rot(path, at as u64, 0x20);
        return;
    }
    let from = at / SECTOR * SECTOR;
    for (nth, byte) in bytes.iter().enumerate().skip(from).take(SECTOR) {
        if *byte != 0 {
            disk.rot(path, nth as u64, *byte);
        }
    }
}

/// The next such call of the running disk fails, after so many milliseconds.
async fn running(disk: &SimDisk, kind: u64, after: u64) {
    tokio::time::sleep(Duration::from_millis(after)).await;
    stats::count("failed while running");
    disk.set_faults(|faults| match kind {
        0 => faults.next_read_eio = 1,
        1 => faults.next_write_eio = 1,
        2 => faults.next_sync_eio = 1,
        _ => faults.next_misdirect = 1,
    });
}
