//! The matrix of single faults: every file on the disk of every machine of a small cluster, damaged at four
//! places (a bit flipped, a sector zeroed) while the machine is down, and the faults of a running disk (EIO on
//! a read, a write, an fsync, a misdirected write, a misdirected read) aimed at each structure on it, at several
//! moments. What no call meets in three seconds meets the process that starts: the machine's is killed and
//! started again. Afterwards the machine loses its power once, so that all is read again. The seed is the number
//! of the case.
//!
//! Checked: no other machine is affected. The damaged one may refuse to start; every file can be read all the
//! time, with the bytes that were synced, new ones can be written, and if the machine runs every chunk is whole
//! again (O6); the log's oracles (O5, O13) hold, and the damaged machine is not judged by what rot or a stray write
//! took. What struck is counted by the disk; a case in which nothing did says so. Not checked: several faults at
//! once (`damage_chaos`).

use super::cluster_chaos::audit;
use crate::cluster::full::{Cluster, connect, mount};
use crate::disk::{Faults, SECTOR, SimDisk};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::ledger::{BLOCK, Ledger, Look};
use crate::oracles::log::Log;
use crate::oracles::persist_chunks::PersistChunks;
use crate::stats;
use crate::trace;
use crate::world::{Options, Power, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MACHINES: [&str; 6] = ["m1", "m2", "m3", "s1", "s2", "s3"];
/// Files of a disk, places in a file, and kinds of damage in the table of cases.
const FILES: u64 = 8;
const PLACES: u64 = 4;
const RESTING: u64 = FILES * PLACES * 2;
/// What a fault of a running disk is aimed at: paths with this in them, and with a `/` at the end directories.
const OF_MASTERS: [&str; 7] =
    ["superblock", "wal/vote", ".log", "tables.redb", "reserve", "/", "wal/"];
const OF_SERVERS: [&str; 5] = ["superblock", "term", ".dat", "/", "chunks/"];
const STRUCTURES: u64 = OF_MASTERS.len() as u64;
/// Moments at which it is armed, and how far they are apart, milliseconds.
const MOMENTS: u64 = 3;
const MOMENT_MS: u64 = 60;
const RUNNING: u64 = STRUCTURES * Kind::ALL.len() as u64 * MOMENTS;
/// All of them.
pub const CASES: u64 = MACHINES.len() as u64 * (RESTING + RUNNING);
/// So long the running disk may take to reach the call, and the process that starts on it as well.
const REACHED_WITHIN_MS: u64 = 3_000;

pub const SCENARIO: Scenario = Scenario {
    name: "single_fault",
    about: "one fault on one disk of a small cluster, every file, structure, place and kind in turn",
    seeds: 80,
    limit: Duration::from_secs(400),
    must_count: &[
        "struck: bit flipped",
        "struck: sector zeroed",
        "struck: EIO on read",
        "struck: EIO on write",
        "struck: EIO on fsync",
        "struck: misdirected write",
        "struck: misdirected read",
        "nothing to strike",
        "blocks checked",
        "O13 commits checked",
        "O13 chunk syncs checked",
        "files read under the fault",
        "machines that refuse to start",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Faults of a running disk.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Sync,
    Misdirect,
    Misread,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Sync, Kind::Misdirect, Kind::Misread];

    fn name(self) -> &'static str {
        match self {
            Kind::Read => "EIO on read",
            Kind::Write => "EIO on write",
            Kind::Sync => "EIO on fsync",
            Kind::Misdirect => "misdirected write",
            Kind::Misread => "misdirected read",
        }
    }

    fn arm(self, faults: &mut Faults, at: &str) {
        let next = match self {
            Kind::Read => &mut faults.next_read_eio,
            Kind::Write => &mut faults.next_write_eio,
            Kind::Sync => &mut faults.next_sync_eio,
            Kind::Misdirect => &mut faults.next_misdirect,
            Kind::Misread => &mut faults.next_misread,
        };
        *next = 1;
        faults.only = Some(at.to_owned());
    }

    /// How often it struck this disk, as the disk says.
    fn struck(self, disk: &SimDisk) -> u64 {
        let counters = disk.counters();
        match self {
            Kind::Read => counters.read_eio,
            Kind::Write => counters.write_eio,
            Kind::Sync => counters.sync_eio,
            Kind::Misdirect => counters.misdirected,
            Kind::Misread => counters.misread,
        }
    }
}

#[derive(Debug)]
enum Fault {
    Resting { file: u64, place: u64, zero: bool },
    Running { kind: Kind, at: &'static str, after_ms: u64 },
}

#[derive(Debug)]
struct Case {
    machine: &'static str,
    /// `None` where the table has a structure that this machine has not.
    fault: Option<Fault>,
}

impl Case {
    fn of(seed: u64) -> Case {
        // A step without common divisor with the number of cases visits all of them; the golden section of it
        // spreads best.
        let number = (seed.wrapping_sub(1) % CASES) * 629 % CASES;
        let machine = MACHINES[(number % MACHINES.len() as u64) as usize];
        let rest = number / MACHINES.len() as u64;
        let fault = match rest.checked_sub(RESTING) {
            None => {
                let (file, place) = (rest / 2 / PLACES, rest / 2 % PLACES);
                Some(Fault::Resting { file, place, zero: rest % 2 == 1 })
            }
            Some(rest) => Case::running(machine, rest),
        };
        Case { machine, fault }
    }

    fn running(machine: &str, number: u64) -> Option<Fault> {
        let (rest, after_ms) = (number / MOMENTS, number % MOMENTS * MOMENT_MS);
        let at = structures(machine).get((rest % STRUCTURES) as usize)?;
        let kind = Kind::ALL[(rest / STRUCTURES) as usize];
        // Nobody reads or writes a directory as a file.
        let means = !at.ends_with('/') || matches!(kind, Kind::Sync);
        means.then_some(Fault::Running { kind, at, after_ms })
    }
}

fn structures(machine: &str) -> &'static [&'static str] {
    if machine.starts_with('m') { &OF_MASTERS } else { &OF_SERVERS }
}

/// What struck, or that there was nothing.
fn tell(machine: &str, struck: bool, kind: &str, at: &str) {
    let what = if struck { "struck" } else { "nothing to strike" };
    trace::line(machine, &format!("{what}: {kind} of {at}"));
    stats::count(if struck { "struck" } else { "nothing to strike" });
    stats::count(&format!("{what}: {kind}"));
    let role = if machine.starts_with('m') { "master" } else { "chunkserver" };
    stats::count(&format!("{what}: {kind}, {role}: {at}"));
}

async fn run(seed: u64) {
    let case = Case::of(seed);
    let Some(fault) = &case.fault else { return stats::count("no such structure") };
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
    match fault {
        Fault::Resting { file, place, zero } => {
            resting(&world, case.machine, (*file, *place, *zero)).await;
            progress(&written, written.load(Ordering::Relaxed) + 6).await;
        }
        Fault::Running { kind, at, after_ms } => {
            tokio::time::sleep(Duration::from_millis(*after_ms)).await;
            running(&world, case.machine, *kind, at).await;
            progress(&written, written.load(Ordering::Relaxed) + 6).await;
            world.power_loss(case.machine);
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.restart(case.machine).await;
            progress(&written, written.load(Ordering::Relaxed) + 3).await;
        }
    }
    _ = world.heal().await;
    world.kill("c1");
    audit(&world, &cluster, &ledger, 100).await;
    // One that does not start is the operator's to replace; it is tried again and again.
    let starts = world.incarnation(case.machine);
    tokio::time::sleep(Duration::from_secs(2)).await;
    if world.power(case.machine) == Power::Up && world.incarnation(case.machine) == starts {
        cluster.converge(&world).await;
        chunks::check(&world, &cluster).await;
    } else {
        stats::count("machines that refuse to start");
    }
}

/// Files of three sizes, written and synced one after another, and after each an older one is read.
fn add_writer(world: &Arc<World>, ledger: &Ledger, written: &Arc<AtomicU64>) {
    let (ledger, written) = (ledger.clone(), written.clone());
    mount(world, 1, move |context, config| {
        let (ledger, written) = (ledger.clone(), written.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            let blocks = |number: usize| 1 + number % 3 * 40;
            for number in 0usize.. {
                let (new, old) = (format!("f{number}"), format!("f{}", number / 2));
                if let Err(errno) = store(&client, &ledger, &new, blocks(number)).await {
                    violation("O7", format!("{new}: {errno:?} with one fault on one disk"));
                }
                if let Err(errno) = read_back(&client, &ledger, &old, blocks(number / 2)).await {
                    violation("O3", format!("reading {old}: {errno:?} with one fault on one disk"));
                }
                written.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        })
    });
}

async fn read_back(
    client: &Arc<Client>,
    ledger: &Ledger,
    name: &str,
    blocks: usize,
) -> Result<(), Errno> {
    client.drop_caches();
    let floors = ledger.floors(name);
    let attr = client.lookup(ROOT, name.as_bytes()).await?;
    let handle = client.open(InodeId(attr.inode), 0).await?;
    let read = client.read(handle, 0, blocks * BLOCK).await;
    client.release(handle).await;
    let bytes = read?.concat();
    if bytes.len() != blocks * BLOCK {
        violation("O2", format!("{name} of {blocks} blocks ends at byte {}", bytes.len()));
    }
    let look = Look { first: 0, asked: blocks, bytes: &bytes, floors: &floors, own: true };
    ledger.check("c1", name, &look);
    stats::count("files read under the fault");
    Ok(())
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

/// Damages a file of a machine without power, and starts it again.
async fn resting(world: &Arc<World>, machine: &str, (file, place, zero): (u64, u64, bool)) {
    let disk = world.disks(machine)[0].clone();
    complete(machine, &disk).await;
    world.power_loss(machine);
    let mut paths = disk.paths();
    paths.retain(|path| !path.ends_with("LOCK"));
    if paths.len() as u64 > FILES {
        violation("table", format!("{machine} has {} files, the table {FILES}", paths.len()));
    }
    let kind = if zero { "sector zeroed" } else { "bit flipped" };
    let before = disk.counters().rotten;
    if let Some(path) = paths.get(file as usize) {
        damage(&disk, path, place, zero);
        let struck = disk.counters().rotten > before;
        tell(machine, struck, kind, structure(machine, path));
    } else {
        tell(machine, false, kind, "no such file");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.restart(machine).await;
}

/// Waits until there is a file of every structure, the first checkpoint too.
async fn complete(machine: &str, disk: &SimDisk) {
    for _ in 0..1_000 {
        let paths = disk.paths();
        let held = |part: &&str| part.ends_with('/') || paths.iter().any(|p| p.contains(*part));
        if structures(machine).iter().all(held) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    violation("table", format!("{machine} has only {:?}", disk.paths()));
}

/// The structure that a path belongs to.
fn structure(machine: &str, path: &str) -> &'static str {
    let found =
        structures(machine).iter().find(|part| !part.ends_with('/') && path.contains(**part));
    found.unwrap_or_else(|| violation("table", format!("{machine}: {path} is no structure known")))
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

/// The next such call fails, of the running process or else of the one that is started.
async fn running(world: &Arc<World>, machine: &str, kind: Kind, at: &str) {
    let disk = world.disks(machine)[0].clone();
    let before = kind.struck(&disk);
    disk.set_faults(|faults| kind.arm(faults, at));
    let mut struck = strikes(&disk, kind, before).await;
    if !struck {
        world.kill(machine);
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.restart(machine).await;
        struck = strikes(&disk, kind, before).await;
    }
    disk.set_faults(|faults| *faults = Faults::default());
    tell(machine, struck, kind.name(), at);
}

async fn strikes(disk: &SimDisk, kind: Kind, before: u64) -> bool {
    for _ in 0..REACHED_WITHIN_MS / 10 {
        if kind.struck(disk) > before {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}
