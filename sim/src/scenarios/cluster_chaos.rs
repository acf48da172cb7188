//! A whole cluster stores files while machines crash, lose power (all at once too) and the network splits.
//! Clients create, write, sync, read, reopen and remove files of their own, read those of others and keep some
//! of them open to read on while they change; a client
//! that died comes back as another one and checks what it left.
//!
//! Checked: O2 and O3 (blocks and names), O4, O5, O12, O13 (log, votes, chunks), the namespace's invariants
//! (O10), that errors have causes (O7), and after healing O7: a leader, every client served, convergence to full
//! redundancy, while a new mount reads everything; then all clients work again, without an error and each with a file
//! that it writes, syncs and reads from the servers, everything converges again and is read again. Not checked:
//! names shared by two writers; times.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::chunks;
use crate::oracles::errors::{About, Failed, Since};
use crate::oracles::ledger::{BLOCK, Floors, Ledger, Look};
use crate::oracles::liveness::Liveness;
use crate::oracles::log::Log;
use crate::oracles::persist_chunks::PersistChunks;
use crate::rng::Rng;
use crate::world::damage::{DamageKind, damage};
use crate::world::inject::{Budget, chaos};
use crate::world::{NodeContext, Options, Role, World};
use crate::{stats, trace};
use mooseng::chunkserver::REFUSED_PAUSE;
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::limits::CELL_BYTES;
use mooseng::namespace;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
        "fault: point",
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
/// Operations that no cache can answer.
const MASTERS_ANSWER: [&str; 3] = ["create", "reopen", "unlink"];
/// Open flags.
const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;

async fn run(seed: u64, chaos_ms: Option<u64>) {
    let drawn = options(seed);
    work(Options { chaos_ms: chaos_ms.unwrap_or(drawn.chaos_ms), ..drawn }).await;
}

/// A quarter of the runs with erasure coding, as far as there are servers for it; the others with copies, a few of
/// them single.
pub(super) fn options(seed: u64) -> Options {
    let options = Options::draw(seed).with_points().with_deadline();
    let (data, parity) = match seed % 4 {
        0 => options.draw_layout(),
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
    let log = Log::watch(&world, &cluster);
    cluster.add(&world);
    world.frames.watch(PersistChunks::new(&world));
    cluster.form(&world).await;
    let program = Program::default();
    add_clients(&world, &program);
    let clients = world.names(Role::Client);
    tokio::spawn(world.clone().supervise());
    let time = Duration::from_millis(world.options.chaos_ms);
    tokio::spawn(damage(world.clone(), Arc::new(log.operator(&world, &cluster)), time));
    chaos(world.clone(), Budget::of(&world), time).await;
    let healed = world.heal().await;
    healed.is_led(|| cluster.leader(&world).is_some()).await;
    let later = until_enough_servers(&world);
    program.liveness.all_served_again(&clients, healed, later).await;
    program.calm.store(true, Ordering::Relaxed);
    tokio::join!(
        audit(&world, &cluster, &program.ledger, 100),
        recovers(&world, &cluster, healed.at_ns)
    );
    again(&world, &program, &clients).await;
    for name in world.names(Role::Client) {
        world.kill(&name);
    }
    cluster.converge(&world).await;
    check(&world, &cluster);
    chunks::check(&world, &cluster).await;
    audit(&world, &cluster, &program.ledger, 101).await;
    world.count_disk_faults();
}

/// What a machine that lost its disk held is nobody's until its former self counts as dead; only then may it take
/// new chunks, under a number of its own, when it asks again. When others are drained there may be too few servers until then.
fn until_enough_servers(world: &World) -> Duration {
    let replaced = [DamageKind::LoseDisk, DamageKind::OldDisk];
    let struck = replaced.iter().any(|kind| stats::get(kind.counter()) > 0);
    if struck { world.limits().server_dead + REFUSED_PAUSE } else { Duration::ZERO }
}

/// Everything is whole; what is drained is emptied before that, within a bound of its own.
async fn recovers(world: &World, cluster: &Cluster, healed: u64) {
    let since = cluster.empties(world).await.unwrap_or(healed);
    cluster.converge_since(world, since).await;
}

/// All clients work on for a while, and none has an error.
async fn again(world: &World, program: &Program, clients: &[String]) {
    let began = trace::now_ns();
    program.whole_ns.store(began, Ordering::Relaxed);
    program.calm.store(false, Ordering::Relaxed);
    let ms = world.rng("works on").range(200, 1_000);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    program.liveness.all_served(clients, began).await;
    program.proofs.all_served(clients, began).await;
    program.calm.store(true, Ordering::Relaxed);
}

/// What the clients have in common.
#[derive(Clone, Default)]
struct Program {
    ledger: Ledger,
    liveness: Liveness,
    /// Who has shown that what he writes now is there.
    proofs: Liveness,
    /// They rest.
    calm: Arc<AtomicBool>,
    /// Everything is whole again since then, for good; 0 before.
    whole_ns: Arc<AtomicU64>,
}

fn add_clients(world: &Arc<World>, program: &Program) {
    for number in 1..=world.options.clients {
        let (program, seed) = (program.clone(), world.options.seed);
        let sizes = Sizes::of(&world.options);
        mount(world, number, move |context, config| {
            let program = program.clone();
            Box::pin(async move {
                program.ledger.died(&format!("{}-", context.name));
                let client = connect(&context, &config).await;
                let name = format!("{} {}", context.name, context.incarnation);
                let rng = Rng::new(seed).fork(&name);
                let looks = Rng::new(seed).fork(&format!("{name} looks"));
                let (open, held, files, failures) = (vec![], vec![], 0, 0);
                let (ledger, ttl) = (program.ledger.clone(), config.limits.attr_ttl);
                let worker = Worker {
                    context,
                    client,
                    ledger,
                    program,
                    rng,
                    looks,
                    looks_until_ns: 0,
                    looked_at: vec![],
                    sizes,
                    ttl,
                    open,
                    held,
                    files,
                    failures,
                    proven: false,
                };
                worker.run().await
            })
        });
    }
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

/// A new mount of this number, without caches, reads everything that was ever promised.
pub(super) async fn audit(world: &Arc<World>, cluster: &Cluster, ledger: &Ledger, number: u32) {
    let done = Arc::new(Mutex::new(false));
    let (ledger, finished) = (ledger.clone(), done.clone());
    let (own, cluster) = (Arc::downgrade(world), cluster.clone());
    let blocks_max = Sizes::of(&world.options).file;
    mount(world, number, move |context, config| {
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
        Ok(_) => {
            ledger.check_name("audit", name, before, true);
            ledger.found(name);
        }
        Err(Errno::ENOENT) => {
            ledger.check_name("audit", name, before, false);
            return Ok(());
        }
        Err(errno) => violation("O7", format!("audit: lookup of {name}: {errno:?}")),
    }
    let attr = found?;
    // More than there can be: whatever lies behind the last block that was written shows.
    let asked = blocks_max + 16;
    let bytes = read_whole(client, InodeId(attr.inode), asked).await?;
    stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
    if (bytes.len() as u64) < attr.size {
        violation("O2", format!("audit: {name} of {} bytes ends at {}", attr.size, bytes.len()));
    }
    let look = Look { first: 0, asked, bytes: &bytes, floors: &floors, own: false };
    if ledger.check("audit", name, &look).ends_in_hole() {
        violation("O2", format!("audit: {name} of {} bytes ends in a hole", bytes.len()));
    }
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
    /// When the first write was that no fsync has vouched for yet.
    unsynced: Option<Since>,
}

/// How an operation ended.
type Ended = Result<(), Failed>;

/// Another client's file, open for reading; what it had to show when it was opened.
struct Held {
    name: String,
    handle: Handle,
    /// And what was read since.
    floors: Floors,
}

/// One process that works on files.
struct Worker {
    context: NodeContext,
    client: Arc<Client>,
    ledger: Ledger,
    program: Program,
    rng: Rng,
    looks: Rng,
    /// Until then it only looks at names.
    looks_until_ns: u64,
    looked_at: Vec<String>,
    sizes: Sizes,
    /// How old caches may be.
    ttl: Duration,
    open: Vec<Open>,
    held: Vec<Held>,
    files: u32,
    /// Write-backs that had failed when this was last asked.
    failures: u64,
    /// It has shown that what it writes since everything is whole is there.
    proven: bool,
}

impl Worker {
    async fn run(mut self) {
        self.context.say("works");
        loop {
            let looks = self.only_looks();
            let pause_ms = if looks { self.looks.range(20, 300) } else { self.rng.range(1, 40) };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            if self.program.calm.load(Ordering::Relaxed) {
                // What is written now would change under the audit's eyes.
                continue;
            }
            if self.context.skips() {
                continue;
            }
            let since = trace::now_ns();
            let (what, ended) = match self.whole_ns().is_some() && !self.proven {
                true => ("prove", self.prove().await),
                false if looks => ("look", self.look().await),
                false => self.step().await,
            };
            self.note(what, since, ended);
        }
    }

    /// Counts what an operation that began at `since` came to; an error must have a cause.
    fn note(&self, what: &str, since: u64, ended: Ended) {
        let outcome = ended.as_ref().map_err(|failed| failed.errno).copied();
        self.context.did(since, what, &format!("{outcome:?}"));
        match ended {
            Ok(()) => {
                stats::count(stats::OPERATIONS);
                if MASTERS_ANSWER.contains(&what) {
                    self.program.liveness.served(&self.context.name, since);
                }
            }
            Err(failed) => {
                stats::count("operations failed");
                self.context.say(&format!("{what} fails: {:?}", failed.errno));
                let world = self.context.world.upgrade().expect("the world outlives its machines");
                failed.judge(&self.context.name, what, &self.client, &world, self.whole_ns());
            }
        }
    }

    /// Now and then it only looks at two names for some seconds: whoever asks for more hears with each answer that the
    /// directory has changed, and uses nothing that is old.
    fn only_looks(&mut self) -> bool {
        let world = self.context.world.upgrade().expect("the world outlives its machines");
        if world.frames.is_quiet() {
            return false;
        }
        let now = trace::now_ns();
        if now >= self.looks_until_ns && self.looks.chance(1, 60) {
            self.looks_until_ns = now + self.looks.range(1_500, 3_500) * 1_000_000;
            let mut names = self.ledger.newest(8);
            self.looks.shuffle(&mut names);
            names.truncate(2);
            self.looked_at = names;
        }
        now < self.looks_until_ns && !self.looked_at.is_empty()
    }

    async fn look(&mut self) -> Ended {
        let name = self.looks.pick(&self.looked_at).clone();
        self.look_up(&name).await.map(drop)
    }

    /// When everything was whole again, if it is.
    fn whole_ns(&self) -> Option<u64> {
        Some(self.program.whole_ns.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    fn now(&self) -> Since {
        Since::now(&self.client)
    }

    fn failed(&self, errno: Errno, about: About, name: &str, since: Since) -> Failed {
        let removed = self.ledger.may_be_gone(name);
        Failed { errno, about, name: name.to_owned(), since, removed }
    }

    async fn step(&mut self) -> (&'static str, Ended) {
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

    async fn create(&mut self) -> Ended {
        self.files += 1;
        let name = format!("{}-{}-{}", self.context.name, self.context.incarnation, self.files);
        self.ledger.creating(&name);
        let since = self.now();
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let created = self.client.create(ROOT, name.as_bytes(), new).await;
        let (attr, handle) =
            created.map_err(|errno| self.failed(errno, About::Name, &name, since))?;
        self.ledger.created(&name);
        self.open.push(Open { name, inode: InodeId(attr.inode), handle, unsynced: None });
        Ok(())
    }

    /// An open file.
    fn pick(&mut self) -> usize {
        self.rng.index(self.open.len())
    }

    async fn write(&mut self) -> Ended {
        let at = self.pick();
        let count = match self.rng.chance(2, 3) {
            true => self.rng.range(1, 6),
            false => self.rng.range(6, self.sizes.write as u64),
        } as usize;
        let first = self.rng.index(self.sizes.file - count);
        self.write_at(at, first, count).await
    }

    async fn write_at(&mut self, at: usize, first: usize, count: usize) -> Ended {
        let now = self.now();
        let open = &mut self.open[at];
        let since = *open.unsynced.get_or_insert(now);
        let (name, handle) = (open.name.clone(), open.handle);
        let bytes = self.ledger.write(&name, first, count);
        let written = self.client.write(handle, (first * BLOCK) as u64, bytes.into()).await;
        self.heed(&name, written.map(drop), About::Writing, since)
    }

    async fn fsync(&mut self) -> Ended {
        let at = self.pick();
        self.fsync_of(at).await
    }

    async fn fsync_of(&mut self, at: usize) -> Ended {
        let (open, now) = (&self.open[at], self.now());
        let (name, since) = (open.name.clone(), open.unsynced.unwrap_or(now));
        let position = self.ledger.position(&name);
        let synced = self.client.fsync(open.handle, false).await;
        if synced.is_ok() {
            self.ledger.synced(&name, position);
            self.open[at].unsynced = None;
            stats::count(stats::FSYNCS);
        }
        self.heed(&name, synced, About::Writing, since)
    }

    /// After a failure nobody knows which un-synced writes are lost, and the name is left alone.
    fn heed(
        &mut self,
        name: &str,
        outcome: Result<(), Errno>,
        about: About,
        since: Since,
    ) -> Ended {
        outcome.map_err(|errno| {
            self.ledger.failed(name);
            self.open.retain(|open| open.name != name);
            self.failed(errno, about, name, since)
        })
    }

    async fn read_own(&mut self) -> Ended {
        let at = self.pick();
        let first = self.rng.index(self.sizes.file);
        let count = self.rng.range(1, (self.sizes.file - first) as u64 + 1) as usize;
        self.read_own_at(at, first, count).await
    }

    async fn read_own_at(&mut self, at: usize, first: usize, count: usize) -> Ended {
        let (open, since) = (&self.open[at], self.now());
        let name = open.name.clone();
        let floors = self.ledger.floors(&name);
        let read = self.client.read(open.handle, (first * BLOCK) as u64, count * BLOCK).await;
        let bytes = match read {
            Ok(pieces) => pieces.concat(),
            Err(errno) => return self.heed(&name, Err(errno), About::Reading, since),
        };
        stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
        self.notice_failures();
        let look = Look { first, asked: count, bytes: &bytes, floors: &floors, own: true };
        self.ledger.check(&self.context.name, &name, &look);
        Ok(())
    }

    /// What is written from now on is there: a new file is written, synced and read from the servers.
    async fn prove(&mut self) -> Ended {
        let since = trace::now_ns();
        self.create().await?;
        let (at, count) = (self.open.len() - 1, self.sizes.write);
        self.write_at(at, 0, count).await?;
        self.fsync_of(at).await?;
        self.client.drop_caches();
        self.read_own_at(at, 0, count).await?;
        self.proven = true;
        self.program.proofs.served(&self.context.name, since);
        Ok(())
    }

    /// Whether this process wrote the file.
    fn owns(&self, name: &str) -> bool {
        name.starts_with(&format!("{}-{}-", self.context.name, self.context.incarnation))
    }

    /// What the session's end took is lost before the next fsync says so.
    fn notice_failures(&mut self) {
        let failures = self.client.stats().failed_writebacks;
        if std::mem::replace(&mut self.failures, failures) != failures {
            self.open.iter().for_each(|open| self.ledger.failed(&open.name));
        }
    }

    async fn read_other(&mut self) -> Ended {
        let names = self.ledger.names();
        let name = self.rng.pick(&names).clone();
        let fresh = self.sizes.drops_caches && self.rng.chance(1, 2);
        if fresh {
            self.client.drop_caches();
        }
        let (floors, before) = (self.ledger.floors(&name), self.ledger.existence(&name));
        let since = self.now();
        let Some(inode) = self.look_up(&name).await? else {
            // Entries may be cached for their time to live.
            if fresh {
                self.ledger.check_name(&self.context.name, &name, before, false);
            }
            return Ok(());
        };
        let asked = self.sizes.file;
        match read_whole(&self.client, inode, asked).await {
            Ok(bytes) => {
                stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
                self.notice_failures();
                let own = self.owns(&name);
                let look = Look { first: 0, asked, bytes: &bytes, floors: &floors, own };
                self.ledger.check(&self.context.name, &name, &look);
                Ok(())
            }
            Err(Errno::ESTALE | Errno::ENOENT) if self.ledger.may_be_gone(&name) => Ok(()),
            Err(errno) => Err(self.failed(errno, About::Reading, &name, since)),
        }
    }

    /// The inode of this name, if it is found.
    async fn look_up(&mut self, name: &str) -> Result<Option<InodeId>, Failed> {
        let since = self.now();
        let found = match self.client.lookup(ROOT, name.as_bytes()).await {
            Ok(attr) => Some(attr),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(self.failed(errno, About::Name, name, since)),
        };
        let (who, size) = (&self.context.name, found.map(|attr| attr.size));
        stats::count("lookups checked");
        self.ledger.check_lookup(who, name, since.ns, size, self.ttl);
        if found.is_some() {
            self.ledger.found(name);
        }
        Ok(found.map(|attr| InodeId(attr.inode)))
    }

    async fn hold_other(&mut self) -> Ended {
        if self.held.len() >= OPEN_MAX {
            self.client.release(self.held.remove(0).handle).await;
        }
        let names = self.ledger.names();
        let name = self.rng.pick(&names).clone();
        let floors = self.ledger.floors(&name);
        let Some(inode) = self.look_up(&name).await? else { return Ok(()) };
        let since = self.now();
        let handle = match self.client.open(inode, READ_ONLY).await {
            Ok(handle) => handle,
            Err(Errno::ESTALE | Errno::ENOENT) if self.ledger.may_be_gone(&name) => return Ok(()),
            Err(errno) => return Err(self.failed(errno, About::Name, &name, since)),
        };
        self.held.push(Held { name, handle, floors });
        Ok(())
    }

    /// What the file showed when it was opened is the least that it shows; it may be removed since.
    async fn read_held(&mut self) -> Ended {
        if self.held.is_empty() {
            return Ok(());
        }
        let at = self.rng.index(self.held.len());
        let handle = self.held[at].handle;
        let first = self.rng.index(self.sizes.file);
        let count = self.rng.range(1, (self.sizes.file - first) as u64 + 1) as usize;
        let since = self.now();
        match self.client.read(handle, (first * BLOCK) as u64, count * BLOCK).await {
            Ok(pieces) => {
                let bytes = pieces.concat();
                stats::add("blocks checked", (bytes.len() / BLOCK) as u64);
                self.notice_failures();
                let own = self.owns(&self.held[at].name);
                let held = &mut self.held[at];
                let floors = &held.floors;
                let look = Look { first, asked: count, bytes: &bytes, floors, own };
                let seen = self.ledger.check(&self.context.name, &held.name, &look);
                // What it saw of its own may be lost.
                if !own {
                    held.floors.raise(&seen);
                }
                Ok(())
            }
            Err(errno) => {
                // The session ended, and with it what kept the file.
                let held = self.held.remove(at);
                self.client.release(held.handle).await;
                Err(self.failed(errno, About::Reading, &held.name, since))
            }
        }
    }

    async fn reopen(&mut self) -> Ended {
        let (at, now) = (self.pick(), self.now());
        let open = &self.open[at];
        let (name, inode, handle) = (open.name.clone(), open.inode, open.handle);
        let since = open.unsynced.unwrap_or(now);
        let position = self.ledger.position(&name);
        let flushed = self.client.flush(handle).await;
        if flushed.is_ok() {
            self.ledger.synced(&name, position);
        }
        self.client.release(handle).await;
        self.heed(&name, flushed, About::Writing, since)?;
        let since = self.now();
        match self.client.open(inode, READ_WRITE).await {
            Ok(handle) => {
                let open = &mut self.open[at];
                (open.handle, open.unsynced) = (handle, None);
                Ok(())
            }
            Err(errno) => self.heed(&name, Err(errno), About::Name, since),
        }
    }

    async fn remove(&mut self) -> Ended {
        let at = self.pick();
        let Open { name, handle, .. } = self.open.remove(at);
        self.ledger.removing(&name);
        let since = self.now();
        let removed = self.client.unlink(ROOT, name.as_bytes()).await;
        if removed.is_ok() {
            self.ledger.removed(&name);
        }
        self.client.release(handle).await;
        removed.map_err(|errno| Failed {
            removed: false,
            ..self.failed(errno, About::Name, &name, since)
        })
    }
}
