//! A whole cluster stores files while machines crash, lose power (all at once too) and the network splits.
//! Clients create, write, sync, read, reopen and remove files of their own, read those of others and keep some
//! of them open to read on while they change; a client
//! that died comes back as another one and checks what it left.
//!
//! Checked: O2 and O3 (blocks and names), O4, O12, O13 (log, votes, chunks), the namespace's invariants
//! (O10), and after healing convergence to full redundancy with new operations served (O7). Not checked:
//! permanent loss of machines; names shared by two writers; times.

use crate::cluster::full::{Cluster, Hands, connect, mount};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::ledger::{BLOCK, Floors, Ledger};
use crate::oracles::persist::{Accepted, Persist};
use crate::oracles::persist_chunks::PersistChunks;
use crate::oracles::raft::Raft;
use crate::rng::Rng;
use crate::world::damage::{damage, victims};
use crate::world::inject::{Budget, chaos};
use crate::world::{NodeContext, Options, Role, World};
use crate::{stats, trace};
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::limits::CELL_BYTES;
use mooseng::namespace;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "cluster_chaos",
    about: "a whole cluster stores files through kills, power losses and partitions",
    seeds: 24,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "states compared",
        "blocks checked",
        "O13 votes checked",
        "O13 commits checked",
        "O13 chunk syncs checked",
        "fault: kill",
        "fault: power loss",
        "fault: blackout",
        "fault: pause",
        "fault: partition",
        "fault: one-way cut",
        "fault: isolation",
        "fault: lag",
        "fault: slow disk",
        "fault: lost sectors",
        "fault: request lost",
        "fault: reply lost",
    ],
    run: |seed| Box::pin(run(seed, None)),
};

pub const LONG: Scenario = Scenario {
    name: "cluster_long",
    about: "cluster_chaos for a minute of simulated time and more",
    seeds: 2,
    must_count: &[stats::OPERATIONS, stats::FSYNCS, "blocks checked", "O6 chunks checked"],
    run: |seed| Box::pin(run(seed, Some(60_000))),
    ..SCENARIO
};

/// Blocks of the longest file and of the longest write.
#[derive(Clone, Copy)]
struct Sizes {
    file: usize,
    write: usize,
    /// Whether reads forget what is cached now and then, so that they reach the servers.
    drops_caches: bool,
}

impl Sizes {
    /// Small ones; with erasure coding many that fill whole stripes, as only those are erasure-coded.
    fn of(options: &Options) -> Sizes {
        match options.data as usize {
            1 => Sizes { file: 160, write: 80, drops_caches: false },
            data => {
                let stripe = data * CELL_BYTES / BLOCK;
                Sizes { file: 2 * stripe + 160, write: 2 * stripe, drops_caches: true }
            }
        }
    }
}

/// Open files of one client.
const OPEN_MAX: usize = 4;
/// Open flags.
const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;

async fn run(seed: u64, chaos_ms: Option<u64>) {
    let drawn = options(seed);
    work(Options { chaos_ms: chaos_ms.unwrap_or(drawn.chaos_ms), ..drawn }).await;
}

/// Half of the runs with copies, a few of them single; erasure coding where there are enough servers.
pub(super) fn options(seed: u64) -> Options {
    let options = Options::draw(seed);
    let (data, parity) = match (seed % 4, options.chunkservers >= 6) {
        (0, true) => (4, 2),
        _ => (1, options.parity),
    };
    Options { data, parity, ..options }
}

/// The whole run.
pub(super) async fn work(options: Options) {
    work_with(options, |_, _| {}).await;
}

/// The whole run, watched by what `more` adds.
pub(super) async fn work_with(options: Options, more: impl FnOnce(&Arc<World>, &Cluster)) {
    let world = World::new(options);
    let cluster = Cluster::default();
    more(&world, &cluster);
    let lost = Arc::new(AtomicUsize::new(0));
    let (raft, accepted) = watch(&world, &cluster, &lost);
    cluster.form(&world).await;
    let (ledger, calm) = (Ledger::default(), Arc::new(AtomicBool::new(false)));
    add_clients(&world, &ledger, &calm);
    tokio::spawn(world.clone().supervise());
    let time = Duration::from_millis(world.options.chaos_ms);
    let operator = Hands {
        cluster: cluster.clone(),
        world: world.clone(),
        lost: Box::new(move |_| _ = lost.fetch_add(1, Ordering::Relaxed)),
        replaced: Box::new(move |name| {
            raft.forget(name);
            accepted.forget(name);
        }),
    };
    tokio::spawn(damage(world.clone(), Arc::new(operator), time));
    chaos(world.clone(), Budget::of(&world), time).await;
    world.heal().await;
    serves_again().await;
    calm.store(true, Ordering::Relaxed);
    audit(&world, &cluster, &ledger).await;
    cluster.empties(&world).await;
    for name in world.names(Role::Client) {
        world.kill(&name);
    }
    cluster.converge(&world).await;
    check(&world, &cluster);
    chunks::check(&world, &cluster).await;
    world.count_disk_faults();
}

/// The oracles that watch; `lost` counts masters that lost their disk.
fn watch(world: &Arc<World>, cluster: &Cluster, lost: &Arc<AtomicUsize>) -> (Raft, Accepted) {
    let (watching, lost) = (cluster.clone(), lost.clone());
    // What a master that lost its disk had promised is promised by the others alone.
    let majority = move |leader: &str, index: u64| {
        watching.majority_at(leader, index).saturating_sub(lost.load(Ordering::Relaxed)).max(1)
    };
    let persist = Persist::new(world, majority);
    let accepted = persist.accepted();
    world.frames.watch(persist);
    let raft = Raft::new(world);
    world.frames.watch(raft.clone());
    cluster.appliers.add(Arc::new(raft.clone()));
    cluster.add(world);
    world.frames.watch(PersistChunks::new(world).sparing(victims(world)));
    (raft, accepted)
}

fn add_clients(world: &Arc<World>, ledger: &Ledger, calm: &Arc<AtomicBool>) {
    for number in 1..=world.options.clients {
        let (ledger, calm, seed) = (ledger.clone(), calm.clone(), world.options.seed);
        let sizes = Sizes::of(&world.options);
        mount(world, number, move |context, config| {
            let (ledger, calm) = (ledger.clone(), calm.clone());
            Box::pin(async move {
                ledger.died(&format!("{}-", context.name));
                let client = connect(&context, &config).await;
                let name = format!("{} {}", context.name, context.incarnation);
                let rng = Rng::new(seed).fork(&name);
                let (open, held, files, failures) = (vec![], vec![], 0, 0);
                let worker = Worker {
                    context,
                    client,
                    ledger,
                    calm,
                    rng,
                    sizes,
                    open,
                    held,
                    files,
                    failures,
                };
                worker.run().await
            })
        });
    }
}

/// O7: fsyncs are acknowledged again soon after healing.
async fn serves_again() {
    let before = stats::get(stats::FSYNCS);
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if stats::get(stats::FSYNCS) > before + 3 {
            return;
        }
    }
    stuck("O7", "no fsync acknowledged within 60 s of healing");
}

/// O10 on every master.
fn check(world: &World, cluster: &Cluster) {
    for name in world.names(Role::Master) {
        let view = cluster.get(&name).expect("converged").view();
        if let Err(broken) = namespace::check(&view) {
            violation("O10", format!("{name}: {broken}"));
        }
    }
}

/// A new mount, without caches, reads everything that was ever promised.
pub(super) async fn audit(world: &Arc<World>, cluster: &Cluster, ledger: &Ledger) {
    let done = Arc::new(Mutex::new(false));
    let (ledger, finished) = (ledger.clone(), done.clone());
    let (own, cluster) = (Arc::downgrade(world), cluster.clone());
    let blocks_max = Sizes::of(&world.options).file;
    mount(world, 100, move |context, config| {
        let (ledger, finished) = (ledger.clone(), finished.clone());
        let (own, cluster) = (own.clone(), cluster.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            for name in ledger.names() {
                if let Err(errno) = audit_file(&client, &ledger, &name, blocks_max).await {
                    let world = own.upgrade().expect("the world outlives its machines");
                    let chunks = chunks::diagnosis(&world, &cluster);
                    violation("O3", format!("audit: {name} can not be read: {errno:?}; {chunks}"));
                }
            }
            *finished.lock().expect("audit") = true;
            // One that ended would be started again.
            std::future::pending().await
        })
    });
    for _ in 0..1800 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if *done.lock().expect("audit") {
            return;
        }
    }
    stuck("O7", "the audit does not end within 180 s of healing");
}

async fn audit_file(
    client: &Arc<Client>,
    ledger: &Ledger,
    name: &str,
    blocks_max: usize,
) -> Result<(), Errno> {
    // A directory read ahead may be as old as the entries' time to live.
    client.drop_caches();
    let (floors, before) = (ledger.floors(name), ledger.existence(name));
    let found = client.lookup(ROOT, name.as_bytes()).await;
    match found {
        Ok(_) => ledger.check_name("audit", name, before, true),
        Err(Errno::ENOENT) => {
            ledger.check_name("audit", name, before, false);
            return Ok(());
        }
        Err(errno) => violation("O7", format!("audit: lookup of {name}: {errno:?}")),
    }
    let attr = found?;
    let mut bytes = read_whole(client, InodeId(attr.inode), blocks_max).await?;
    stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
    if (bytes.len() as u64) < attr.size {
        violation("O2", format!("audit: {name} of {} bytes ends at {}", attr.size, bytes.len()));
    }
    // Nothing lies beyond the end: as zeros, which no floor accepts.
    bytes.resize(bytes.len().max(blocks_max * BLOCK), 0);
    ledger.check("audit", name, 0, &bytes, &floors, false);
    Ok(())
}

async fn read_whole(
    client: &Arc<Client>,
    inode: InodeId,
    blocks_max: usize,
) -> Result<Vec<u8>, Errno> {
    let handle = client.open(inode, READ_ONLY).await?;
    let read = client.read(handle, 0, blocks_max * BLOCK).await;
    client.release(handle).await;
    Ok(read?.concat())
}

struct Open {
    name: String,
    inode: InodeId,
    handle: Handle,
}

/// Another client's file, open for reading; what it had to show when it was opened.
struct Held {
    name: String,
    handle: Handle,
    floors: Floors,
}

/// One process that works on files.
struct Worker {
    context: NodeContext,
    client: Arc<Client>,
    ledger: Ledger,
    calm: Arc<AtomicBool>,
    rng: Rng,
    sizes: Sizes,
    open: Vec<Open>,
    held: Vec<Held>,
    files: u32,
    /// Write-backs that had failed when this was last asked.
    failures: u64,
}

impl Worker {
    async fn run(mut self) {
        self.context.say("works");
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.range(1, 40))).await;
            if self.calm.load(Ordering::Relaxed) {
                // What is written now would change under the audit's eyes.
                return std::future::pending().await;
            }
            if self.context.skips() {
                continue;
            }
            let since = trace::now_ns();
            let (what, outcome) = self.step().await;
            self.context.did(since, what, &format!("{outcome:?}"));
            match outcome {
                Ok(()) => stats::count(stats::OPERATIONS),
                Err(errno) => {
                    stats::count("operations failed");
                    self.context.say(&format!("{what} fails: {errno:?}"));
                }
            }
        }
    }

    async fn step(&mut self) -> (&'static str, Result<(), Errno>) {
        match self.rng.below(100) {
            _ if self.open.is_empty() => ("create", self.create().await),
            0..10 if self.open.len() < OPEN_MAX => ("create", self.create().await),
            0..45 => ("write", self.write().await),
            45..65 => ("fsync", self.fsync().await),
            65..80 => ("read", self.read_own().await),
            80..85 => ("read another's", self.read_other().await),
            85..87 => ("hold another's", self.hold_other().await),
            87..90 => ("read what is held", self.read_held().await),
            90..95 => ("reopen", self.reopen().await),
            _ => ("unlink", self.remove().await),
        }
    }

    async fn create(&mut self) -> Result<(), Errno> {
        self.files += 1;
        let name = format!("{}-{}-{}", self.context.name, self.context.incarnation, self.files);
        self.ledger.creating(&name);
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let (attr, handle) = self.client.create(ROOT, name.as_bytes(), new).await?;
        self.ledger.created(&name);
        self.open.push(Open { name, inode: InodeId(attr.inode), handle });
        Ok(())
    }

    /// An open file; what failed on it before makes its un-synced writes uncertain.
    fn pick(&mut self) -> (String, InodeId, Handle) {
        let at = self.rng.index(self.open.len());
        let open = &self.open[at];
        (open.name.clone(), open.inode, open.handle)
    }

    async fn write(&mut self) -> Result<(), Errno> {
        let (name, _, handle) = self.pick();
        let count = match self.rng.chance(2, 3) {
            true => self.rng.range(1, 6),
            false => self.rng.range(6, self.sizes.write as u64),
        } as usize;
        let first = self.rng.index(self.sizes.file - count);
        let bytes = self.ledger.write(&name, first, count);
        let written = self.client.write(handle, (first * BLOCK) as u64, bytes.into()).await;
        self.heed(&name, written.map(drop))
    }

    async fn fsync(&mut self) -> Result<(), Errno> {
        let (name, _, handle) = self.pick();
        let position = self.ledger.position(&name);
        let synced = self.client.fsync(handle, false).await;
        if synced.is_ok() {
            self.ledger.synced(&name, position);
            stats::count(stats::FSYNCS);
        }
        self.heed(&name, synced)
    }

    /// After a failure nobody knows which un-synced writes are lost, and the name is left alone.
    fn heed(&mut self, name: &str, outcome: Result<(), Errno>) -> Result<(), Errno> {
        if outcome.is_err() {
            self.ledger.failed(name);
            self.open.retain(|open| open.name != name);
        }
        outcome
    }

    async fn read_own(&mut self) -> Result<(), Errno> {
        let (name, _, handle) = self.pick();
        let floors = self.ledger.floors(&name);
        let first = self.rng.index(self.sizes.file);
        let count = self.rng.range(1, (self.sizes.file - first) as u64 + 1) as usize;
        let read = self.client.read(handle, (first * BLOCK) as u64, count * BLOCK).await;
        let bytes = match read {
            Ok(pieces) => pieces.concat(),
            Err(errno) => return self.heed(&name, Err(errno)),
        };
        stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
        self.notice_failures();
        self.ledger.check(&self.context.name, &name, first, &bytes, &floors, true);
        Ok(())
    }

    /// What the session's end took is lost before the next fsync says so.
    fn notice_failures(&mut self) {
        let failures = self.client.stats().failed_writebacks;
        if std::mem::replace(&mut self.failures, failures) != failures {
            self.open.iter().for_each(|open| self.ledger.failed(&open.name));
        }
    }

    async fn read_other(&mut self) -> Result<(), Errno> {
        let names = self.ledger.names();
        let name = self.rng.pick(&names).clone();
        if self.sizes.drops_caches && self.rng.chance(1, 2) {
            self.client.drop_caches();
        }
        let floors = self.ledger.floors(&name);
        let existed = self.ledger.exists(&name);
        let attr = match self.client.lookup(ROOT, name.as_bytes()).await {
            Ok(attr) => attr,
            // Entries may be cached for their time to live.
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match read_whole(&self.client, InodeId(attr.inode), self.sizes.file).await {
            Ok(bytes) => {
                stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
                self.ledger.check(&self.context.name, &name, 0, &bytes, &floors, false);
                Ok(())
            }
            Err(Errno::ESTALE | Errno::ENOENT) if !(existed && self.ledger.exists(&name)) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    async fn hold_other(&mut self) -> Result<(), Errno> {
        if self.held.len() >= OPEN_MAX {
            self.client.release(self.held.remove(0).handle).await;
        }
        let names = self.ledger.names();
        let name = self.rng.pick(&names).clone();
        let floors = self.ledger.floors(&name);
        let attr = match self.client.lookup(ROOT, name.as_bytes()).await {
            Ok(attr) => attr,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let handle = match self.client.open(InodeId(attr.inode), READ_ONLY).await {
            Ok(handle) => handle,
            Err(Errno::ESTALE | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        self.held.push(Held { name, handle, floors });
        Ok(())
    }

    /// What the file showed when it was opened is the least that it shows; it may be removed since.
    async fn read_held(&mut self) -> Result<(), Errno> {
        if self.held.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.held.len());
        let held = &self.held[at];
        let first = self.rng.index(self.sizes.file);
        let count = self.rng.range(1, (self.sizes.file - first) as u64 + 1) as usize;
        match self.client.read(held.handle, (first * BLOCK) as u64, count * BLOCK).await {
            Ok(pieces) => {
                let bytes = pieces.concat();
                stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
                self.ledger.check(
                    &self.context.name,
                    &held.name,
                    first,
                    &bytes,
                    &held.floors,
                    false,
                );
                Ok(())
            }
            Err(errno) => {
                // The session ended, and with it what kept the file.
                self.client.release(self.held.remove(at).handle).await;
                Err(errno)
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), Errno> {
        let (name, inode, handle) = self.pick();
        let flushed = self.client.flush(handle).await;
        self.client.release(handle).await;
        self.heed(&name, flushed)?;
        match self.client.open(inode, READ_WRITE).await {
            Ok(handle) => {
                let open = self.open.iter_mut().find(|open| open.name == name);
                open.expect("still listed").handle = handle;
                Ok(())
            }
            Err(errno) => self.heed(&name, Err(errno)),
        }
    }

    async fn remove(&mut self) -> Result<(), Errno> {
        let (name, _, handle) = self.pick();
        self.open.retain(|open| open.name != name);
        self.ledger.removing(&name);
        let removed = self.client.unlink(ROOT, name.as_bytes()).await;
        if removed.is_ok() {
            self.ledger.removed(&name);
        }
        self.client.release(handle).await;
        removed
    }
}
