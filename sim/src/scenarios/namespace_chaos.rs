//! Clients change and read one small namespace all at once, names and inodes drawn from a tiny alphabet, while
//! masters and clients crash, lose power (all at once too) and the network splits and loses frames.
//!
//! Checked: O1 (every answer that reaches a client is the model's, in an order that real time allows), O4,
//! O5, O12, O13 (log, votes), O10, and after healing O7. They write to what they have open, so that commits of dirty files
//! (sizes, times, privileges) meet renames, truncations and removals. Not checked: which bytes files have (O2, O3).
//!
//! [`MEMBERS`] is the same with nothing but masters that join, lose their disk or their log or meet an error of it,
//! while single frames are lost, doubled and late, often.

use super::frame_chaos::often;
use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::liveness::Liveness;
use crate::oracles::namespace::Namespace;
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::damage::{DamageKind, DamageOptions, damage};
use crate::world::inject::{Budget, chaos};
use crate::world::{NodeContext, Options, Role, World};
use mooseng::client::{Client, Handle, NewFile, NewNode, SetAttr, SetTime};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::namespace;
use mooseng::pb::FileKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "namespace_chaos",
    about: "clients race in one small namespace through kills, power losses and partitions",
    seeds: 24,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        "states compared",
        "O1 changes checked",
        "O1 changes nobody heard of",
        "O1 reads checked",
        "O1 repeated operations",
        "O1 commits checked",
        "O5 entries checked",
        "O5 entries applied",
        "O5 votes checked",
        "O13 votes checked",
        "O13 commits checked",
        "fault: kill",
        "fault: power loss",
        "fault: blackout",
        "fault: pause",
        "fault: partition",
        "fault: one-way cut",
        "fault: isolation",
        "fault: request lost",
        "fault: reply lost",
    ],
    run: |seed| Box::pin(run(seed)),
};

pub const MEMBERS: Scenario = Scenario {
    name: "namespace_members",
    about: "clients race in one small namespace while masters come and go and frames are lost",
    seeds: 16,
    must_count: &[
        stats::OPERATIONS,
        "states compared",
        "O1 changes checked",
        "O1 reads checked",
        "O1 repeated operations",
        "O1 commits checked",
        "O5 entries applied",
        "O13 commits checked",
        "damage: master added",
        "damage: master wiped",
        "damage: master lost its log",
        "damage: a master's disk fails",
        "fault: request lost",
        "fault: reply lost",
        "fault: frame doubled",
        "fault: frame delayed",
    ],
    run: |seed| Box::pin(members(seed)),
    ..SCENARIO
};

/// What strikes in [`MEMBERS`].
const KINDS: [DamageKind; 4] =
    [DamageKind::AddMaster, DamageKind::LoseMaster, DamageKind::BareMaster, DamageKind::MasterEio];

/// Names.
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
/// Inodes that clients know of.
const KNOWN_MAX: usize = 10;
/// Callers of one mount.
const CALLERS: u64 = 3;
const READ_WRITE: i32 = 2;

/// What all clients know of: directories, and everything else.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<(Vec<InodeId>, Vec<InodeId>)>>);

impl Known {
    fn add(&self, attr: &mooseng::pb::Attr) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = match attr.kind() {
            FileKind::Directory => &mut known.0,
            _ => &mut known.1,
        };
        list.push(InodeId(attr.inode));
        if list.len() > KNOWN_MAX {
            list.remove(0);
        }
    }

    fn dir(&self, rng: &mut Rng) -> InodeId {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.0.is_empty() || rng.chance(1, 2) {
            true => ROOT,
            false => *rng.pick(&known.0),
        }
    }

    fn any(&self, rng: &mut Rng) -> InodeId {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.1.is_empty() || rng.chance(1, 4) {
            true => drop(known),
            false => return *rng.pick(&known.1),
        }
        self.dir(rng)
    }
}

async fn run(seed: u64) {
    work(Options::draw(seed).with_points().with_deadline()).await;
}

async fn members(seed: u64) {
    let mut drawn = Options::draw(seed);
    drawn.faults.kinds.clear();
    let mut rng = Rng::new(seed).fork("namespace members");
    let net = often(&mut rng, &drawn.net);
    // Each kind is off in a third of the runs.
    let mut kinds = KINDS.to_vec();
    kinds.retain(|_| rng.chance(2, 3));
    let damage = DamageOptions { pause_ms: rng.range(300, 1_500), kinds, victims: 0 };
    let masters = drawn.masters.max(3);
    work(Options { masters, net, damage, tiny: true, ..drawn }).await;
}

async fn work(drawn: Options) {
    let seed = drawn.seed;
    let chunkservers = 1 + (seed % 2) as u32;
    let clients = 1 + drawn.clients % 3;
    let world = World::new(Options { parity: 0, chunkservers, clients, ..drawn });
    let cluster = Cluster::default();
    let (oracle, log) = Namespace::watch(&world, &cluster);
    cluster.add(&world);
    cluster.form(&world).await;
    let (known, calm) = (Known::default(), Arc::new(AtomicBool::new(false)));
    let liveness = Liveness::default();
    for number in 1..=world.options.clients {
        add_client(&world, number, (&known, &calm, &liveness));
    }
    tokio::spawn(world.clone().supervise());
    let time = Duration::from_millis(world.options.chaos_ms);
    tokio::spawn(damage(world.clone(), Arc::new(log.operator(&world, &cluster)), time));
    chaos(world.clone(), Budget::of(&world), time).await;
    let healed = world.heal().await;
    healed.is_led(|| cluster.leader(&world).is_some()).await;
    let clients = world.names(Role::Client);
    liveness.all_served_again(&clients, healed, Duration::ZERO).await;
    calm.store(true, Ordering::Relaxed);
    cluster.converge_since(&world, healed.at_ns).await;
    clients.iter().for_each(|name| world.kill(name));
    oracle.check();
    for name in world.names(Role::Master) {
        let view = cluster.get(&name).expect("converged").view();
        if let Err(broken) = namespace::check(&view) {
            violation("O10", format!("{name}: {broken}"));
        }
    }
    world.count_disk_faults();
}

fn add_client(
    world: &Arc<World>,
    number: u32,
    (known, calm, liveness): (&Known, &Arc<AtomicBool>, &Liveness),
) {
    let (known, calm, liveness) = (known.clone(), calm.clone(), liveness.clone());
    let seed = world.options.seed;
    mount(world, number, move |context, config| {
        let (known, calm, liveness) = (known.clone(), calm.clone(), liveness.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            for caller in 0..CALLERS {
                let name = format!("{} {} {caller}", context.name, context.incarnation);
                let caller = Caller {
                    context: context.clone(),
                    client: client.clone(),
                    known: known.clone(),
                    calm: calm.clone(),
                    liveness: liveness.clone(),
                    rng: Rng::new(seed).fork(&name),
                    bytes: Rng::new(seed).fork(&format!("{name} writes")),
                    open: None,
                };
                tokio::spawn(caller.run());
            }
            std::future::pending().await
        })
    });
}

/// One caller of a mount.
struct Caller {
    context: NodeContext,
    client: Arc<Client>,
    known: Known,
    calm: Arc<AtomicBool>,
    liveness: Liveness,
    rng: Rng,
    /// What it writes, and when.
    bytes: Rng,
    open: Option<Handle>,
}

impl Caller {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.range(1, 60))).await;
            if self.calm.load(Ordering::Relaxed) {
                return;
            }
            if self.context.skips() {
                continue;
            }
            let began = trace::now_ns();
            let (what, outcome) = match self.rng.below(100) {
                0..25 => ("make", self.make().await),
                25..55 => ("rename or remove", self.rename_or_remove().await),
                55..75 => {
                    let wrote = self.write().await;
                    ("change", self.change().await.and(wrote))
                }
                _ => ("look", self.look().await),
            };
            self.context.did(began, what, &format!("{outcome:?}"));
            if outcome == Err(Errno::EIO) {
                self.context.say("an operation has no outcome");
                continue;
            }
            // What the masters refused is an answer like any other.
            stats::count(stats::OPERATIONS);
            self.liveness.served(&self.context.name, began);
        }
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.rng.index(NAMES.len())]
    }

    async fn make(&mut self) -> Result<(), Errno> {
        let (dir, name) = (self.known.dir(&mut self.rng), self.name());
        let mode = *self.rng.pick(&[0o755, 0o2775, 0o644]);
        let kind = *self.rng.pick(&[FileKind::Fifo, FileKind::Regular]);
        let new = NewNode { kind, mode, uid: 1, gid: self.rng.below(3) as u32, rdev: 0 };
        let made = match self.rng.below(10) {
            0..4 => self.client.mkdir(dir, name, new).await?,
            4 => self.client.symlink(dir, name, b"target", 1, 1).await?,
            5 => self.client.mknod(dir, name, new).await?,
            6 => {
                let ino = self.known.any(&mut self.rng);
                self.client.link(ino, dir, name).await?
            }
            _ => {
                let new = NewFile { mode, flags: READ_WRITE, ..NewFile::default() };
                let (attr, handle) = self.client.create(dir, name, new).await?;
                if let Some(before) = self.open.replace(handle) {
                    self.client.release(before).await;
                }
                attr
            }
        };
        self.known.add(&made);
        Ok(())
    }

    async fn rename_or_remove(&mut self) -> Result<(), Errno> {
        let (dir, name) = (self.known.dir(&mut self.rng), self.name());
        match self.rng.below(10) {
            0..2 => self.client.unlink(dir, name).await,
            2..4 => self.client.rmdir(dir, name).await,
            4 => {
                if let Some(handle) = self.open.take() {
                    self.client.release(handle).await;
                }
                Ok(())
            }
            _ => {
                let (new_dir, new_name) = (self.known.dir(&mut self.rng), self.name());
                let flags = self.rng.below(3) as u32;
                self.client.rename(dir, name, new_dir, new_name, flags).await
            }
        }
    }

    /// Writes to what it has open, and sometimes waits until that is durable: what stays dirty meets what else happens to
    /// the file.
    async fn write(&mut self) -> Result<(), Errno> {
        let Some(handle) = self.open.filter(|_| self.bytes.chance(2, 3)) else { return Ok(()) };
        let (at, len) = (self.bytes.below(5_000), self.bytes.range(1, 3_000));
        self.client.write(handle, at, vec![len as u8; len as usize].into()).await?;
        match self.bytes.chance(1, 3) {
            true => self.client.fsync(handle, false).await,
            false => Ok(()),
        }
    }

    async fn change(&mut self) -> Result<(), Errno> {
        let ino = self.known.any(&mut self.rng);
        let none = SetAttr::default();
        let set = match self.rng.below(8) {
            0 => SetAttr { mode: Some(*self.rng.pick(&[0o600, 0o4755, 0o2775])), ..none },
            1 => SetAttr { uid: Some(self.rng.below(3) as u32), ..none },
            2 | 3 => SetAttr { size: Some(self.rng.below(5000)), ..none },
            4 => SetAttr { mtime: Some(SetTime::At(self.rng.below(1000) as i64)), ..none },
            5 => SetAttr { atime: Some(SetTime::Now), kill_priv: true, ..none },
            6 => return self.client.removexattr(ino, b"user.a").await,
            _ => {
                let (value, flags) = (self.name(), self.rng.below(3) as u32);
                return self.client.setxattr(ino, b"user.a", value, flags).await;
            }
        };
        self.client.setattr(ino, set).await.map(drop)
    }

    async fn look(&mut self) -> Result<(), Errno> {
        // Caches may be a little out of date; the masters are not.
        self.client.drop_caches();
        let (dir, ino) = (self.known.dir(&mut self.rng), self.known.any(&mut self.rng));
        match self.rng.below(10) {
            0..3 => {
                let name = self.name();
                let attr = self.client.lookup(dir, name).await?;
                self.known.add(&attr);
                Ok(())
            }
            3 | 4 => self.client.getattr(ino).await.map(drop),
            5 => self.client.getxattr(ino, b"user.a").await.map(drop),
            6 => self.client.listxattr(ino).await.map(drop),
            7 => self.client.readlink(ino).await.map(drop),
            _ => self.walk(dir).await,
        }
    }

    /// Lists a directory in small pages, while it changes.
    async fn walk(&mut self, dir: InodeId) -> Result<(), Errno> {
        let (mut cookie, limit) = (0, self.rng.range(1, 4) as usize);
        loop {
            let (entries, end) = self.client.readdir(dir, cookie, limit).await?;
            match entries.last() {
                Some(last) if !end => cookie = last.cookie,
                _ => return Ok(()),
            }
        }
    }
}
