//! More disks are lost at once than the redundancy of files bears, while everything else works.
//!
//! Checked: each file is read whole, or its reading ends in EIO within an operation's deadline, never in other bytes
//! (O2, O3); only files of which a chunk has too few shards left, by the masters' tables, may end in EIO; what was lost
//! is told apart from what is silent: no reader waits for ever (O7). Afterwards the damaged files can be removed, others written and read, and the cluster
//! converges. Not checked: other faults meanwhile (`damage_chaos`, within the budget).

use crate::cluster::full::{Cluster, connect, mount};
use crate::cluster::is_chunkserver;
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, reaches, within};
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{Options, Role, World};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT, ServerId};
use mooseng::namespace::tables::{Chunks, Refs, Servers};
use mooseng::pb::ServerState;
use mooseng::tables::{Read, View};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "beyond_budget",
    about: "more disks are lost than files bear: clean errors for those, whole files for the others",
    seeds: 6,
    limit: Duration::from_secs(900),
    must_count: &["disks lost", "files whole", "files with a clean error", "files written anew"],
    run: |seed| Box::pin(run(seed)),
};

const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;
const FILES: u64 = 24;
const LAYOUTS: [(u32, u32); 3] = [(1, 1), (2, 1), (2, 2)];
const WRITTEN: u8 = 1;
const LOST: u8 = 2;
const BACK: u8 = 3;
const OVER: u8 = 4;

async fn run(seed: u64) {
    let mut rng = Rng::new(seed).fork("beyond");
    let (data, parity) = *rng.pick(&LAYOUTS);
    let chunkservers = data + parity + rng.range(1, 4) as u32;
    let drawn = Options { masters: 3, chunkservers, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { data, parity, tiny: true, ..drawn.calm() });
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let (step, beyond) = (Arc::new(AtomicU8::new(0)), Arc::new(Mutex::new(BTreeSet::new())));
    let (steps, lost) = (step.clone(), beyond.clone());
    mount(&world, 1, move |context, config| {
        let (step, lost) = (steps.clone(), lost.clone());
        Box::pin(async move {
            let writer = connect(&context, &config).await;
            let rng = Rng::new(seed).fork("files");
            let mut files = write_all(&writer, rng, "f").await;
            // Read in no order: what a mount remembers of chunks is bounded.
            Rng::new(seed).fork("order").shuffle(&mut files);
            step.fetch_max(WRITTEN, Ordering::Relaxed);
            wait(&step, LOST).await;
            // By mounts that have nothing in memory.
            let reader = connect(&context, &config).await;
            let lost = lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let damaged = read_all(&reader, &files, &lost, config.limits.operation_deadline).await;
            remove(&reader, &damaged).await;
            wait(&step, BACK).await;
            let anew = write_all(&reader, Rng::new(seed).fork("anew"), "g").await;
            let other = connect(&context, &config).await;
            let kept = files.into_iter().filter(|file| !damaged.contains(&file.name));
            for File { name, bytes, .. } in kept.chain(anew) {
                match whole(&other, &name, bytes.len()).await {
                    Ok(found) if found == bytes => stats::count("files whole in the end"),
                    found => violation("O3", format!("{name}: {:?}", found.map(|b| b.len()))),
                }
            }
            step.fetch_max(OVER, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    wait(&step, WRITTEN).await;
    let mut victims = world.names(Role::Chunkserver);
    rng.shuffle(&mut victims);
    victims.truncate(parity as usize + 1);
    let leader = cluster.leader(&world).unwrap_or_else(|| stuck("O7", "no leader on a calm day"));
    let none_left = with_too_few_shards(&leader.view(), &victims);
    *beyond.lock().unwrap_or_else(PoisonError::into_inner) = none_left;
    let mut lost = 0;
    if plan::strikes(FaultClass::DiskLost) {
        lost = victims.len();
        for name in &victims {
            world.power_loss(name);
            world.empty_disk(name, rng.u64());
            stats::count("disks lost");
        }
    }
    for name in &victims {
        world.restart(name).await;
    }
    step.fetch_max(LOST, Ordering::Relaxed);
    // A machine with another disk is another chunkserver, once the one that it was counts as dead.
    let known = chunkservers as usize + lost;
    let all = || match (active(&cluster, &world), chunkservers as usize) {
        ((active, rows), wanted) if active == wanted && rows == known => Ok(()),
        (found, _) => Err(format!("(active, known) chunkservers: {found:?} of {chunkservers}")),
    };
    within("ms until the machines were taken in anew", CONVERGED, trace::now_ns(), all).await;
    step.fetch_max(BACK, Ordering::Relaxed);
    wait(&step, OVER).await;
    cluster.converge(&world).await;
}

/// Chunkservers that are active, and all that the masters know.
fn active(cluster: &Cluster, world: &World) -> (usize, usize) {
    let Some(leader) = cluster.leader(world) else { return (0, 0) };
    let view = leader.view();
    let rows: Vec<_> = view.range::<Servers>(&ServerId(0), None).flatten().collect();
    let active = rows.iter().filter(|(_, row)| row.state() == ServerState::Active);
    (active.count(), rows.len())
}

struct File {
    name: String,
    inode: InodeId,
    bytes: Vec<u8>,
}

/// Files with a chunk that is left with fewer shards than it has data shards when these machines lose their disks.
fn with_too_few_shards(view: &View, machines: &[String]) -> BTreeSet<InodeId> {
    let row = "tables in memory";
    let numbers: Vec<u32> =
        machines.iter().map(|name| name[1..].parse().expect("s and a number")).collect();
    let gone: BTreeSet<u64> = view
        .range::<Servers>(&ServerId(0), None)
        .map(|found| found.expect(row).1)
        .filter(|server| numbers.iter().any(|number| is_chunkserver(&server.address, *number)))
        .map(|server| server.id)
        .collect();
    let mut files = BTreeSet::new();
    for found in view.range::<Refs>(&Default::default(), None) {
        let ((chunk, _, inode, _), _) = found.expect(row);
        let chunk = view.get::<Chunks>(&chunk).expect(row).expect("it is referred to");
        let left = chunk.replicas.iter().filter(|replica| !gone.contains(&replica.server)).count();
        if left < chunk.layout.map_or(1, |layout| layout.data as usize) {
            files.insert(inode);
        }
    }
    files
}

/// Files from nothing to several stripes, each synced.
async fn write_all(client: &Arc<Client>, mut rng: Rng, letter: &str) -> Vec<File> {
    let mut files = Vec::new();
    for number in 0..FILES {
        let (name, len) = (format!("{letter}{number}"), rng.range(0, 300_000) as usize);
        let bytes: Vec<u8> =
            (0..len).map(|at| (at as u64 ^ (at as u64 >> 9) ^ number) as u8).collect();
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let written = async {
            let (attr, handle) = client.create(ROOT, name.as_bytes(), new).await?;
            client.write(handle, 0, bytes.clone().into()).await?;
            client.fsync(handle, false).await?;
            client.flush(handle).await?;
            client.release(handle).await;
            Ok(InodeId(attr.inode))
        };
        let inode = written.await;
        let inode = inode.unwrap_or_else(|errno: Errno| {
            violation("O7", format!("writing {name}: {errno:?}"));
        });
        stats::count(if letter == "g" { "files written anew" } else { "files written" });
        files.push(File { name, inode, bytes });
    }
    files
}

/// The names of those that can not be read; only of these `lost` may be.
async fn read_all(
    client: &Arc<Client>,
    files: &[File],
    lost: &BTreeSet<InodeId>,
    deadline: Duration,
) -> BTreeSet<String> {
    let mut damaged = BTreeSet::new();
    for File { name, inode, bytes } in files {
        let asked = trace::now_ns();
        let found = whole(client, name, bytes.len()).await;
        let took = Duration::from_nanos(trace::now_ns() - asked);
        if took > deadline + Duration::from_secs(5) {
            violation("O7", format!("reading {name} took {took:?}: {:?}", found.map(|b| b.len())));
        }
        match found {
            Ok(found) if found == *bytes => stats::count("files whole"),
            Ok(_) => violation("O3", format!("{name} is read as something else")),
            Err(Errno::EIO) if lost.contains(inode) => {
                stats::count("files with a clean error");
                damaged.insert(name.clone());
            }
            Err(errno) => violation("O3", format!("reading {name} ends in {errno:?}")),
        }
    }
    damaged
}

async fn whole(client: &Arc<Client>, name: &str, len: usize) -> Result<Vec<u8>, Errno> {
    let attr = client.lookup(ROOT, name.as_bytes()).await?;
    let handle = client.open(InodeId(attr.inode), READ_ONLY).await?;
    let read = client.read(handle, 0, len + 1).await;
    client.release(handle).await;
    Ok(read?.concat())
}

async fn remove(client: &Arc<Client>, names: &BTreeSet<String>) {
    for name in names {
        if let Err(errno) = client.unlink(ROOT, name.as_bytes()).await {
            violation("O7", format!("removing {name}, which is damaged: {errno:?}"));
        }
    }
}

async fn wait(step: &AtomicU8, wanted: u8) {
    reaches(step, wanted, Duration::from_secs(800)).await;
}
