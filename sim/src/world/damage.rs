//! Damage beyond crashes: disks that fail, fill up, rot or are lost with all they held, frames that vanish
//! without a word, clients that freeze for longer than their session lives, machines that come and go.
//!
//! The budget is computed beforehand. What is lost for good (rot, misdirected writes, lost disks) strikes only
//! a fixed set of chunkservers, as many as a stripe has parity shards, and at most one master of three or more
//! loses its disk: whatever was acknowledged always has enough good copies on the others.

use super::World;
use super::absence::Why;
use super::inject::later;
use super::node::{Power, Role};
use crate::disk::{DISK_BYTES, SimDisk};
use crate::plan::FaultClass;
use crate::rng::{Ratio, Rng};
use crate::{plan, stats, trace};
use mooseng::chunkserver::REFUSED_PAUSE;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Distance of rotten bytes, a block of a replica.
const ROT_STEP: usize = 4096;

/// What else can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DamageKind {
    /// Frames between two groups vanish, both ways; connections stay.
    BlackHole,
    /// Frames in one direction vanish.
    HalfOpen,
    /// A chunkserver's next fsyncs fail; it is restarted later.
    SyncEio,
    /// A chunkserver's next writes fail; it is restarted later.
    WriteEio,
    /// Some reads of a chunkserver fail for a while.
    ReadEio,
    /// A master's next write or fsync fails, which ends it.
    MasterEio,
    /// A chunkserver's disk is full for a while.
    FullDisk,
    /// Bytes of a chunkserver's files flip.
    Rot,
    /// A chunkserver's next writes go elsewhere in their file.
    Misdirect,
    /// A chunkserver comes back with an empty disk.
    LoseDisk,
    /// A chunkserver comes back with a disk it had before.
    OldDisk,
    /// A client stops for longer than its session lives.
    Freeze,
    /// A master loses its disk and joins anew.
    LoseMaster,
    /// A master joins.
    AddMaster,
    /// A chunkserver joins.
    AddServer,
    /// A chunkserver's next reads give what is elsewhere in their file.
    Misread,
    /// A master comes back with nothing but its superblock, and has to enter the group anew by itself.
    BareMaster,
    /// A chunkserver is drained: its replicas move to others.
    Drain,
    /// A chunkserver is away for so long that it is declared dead, and comes back.
    LongAway,
}

impl DamageKind {
    /// All of them.
    pub const ALL: [DamageKind; 19] = [
        DamageKind::BlackHole,
        DamageKind::HalfOpen,
        DamageKind::SyncEio,
        DamageKind::WriteEio,
        DamageKind::ReadEio,
        DamageKind::MasterEio,
        DamageKind::FullDisk,
        DamageKind::Rot,
        DamageKind::Misdirect,
        DamageKind::LoseDisk,
        DamageKind::OldDisk,
        DamageKind::Freeze,
        DamageKind::LoseMaster,
        DamageKind::AddMaster,
        DamageKind::AddServer,
        DamageKind::Misread,
        DamageKind::BareMaster,
        DamageKind::Drain,
        DamageKind::LongAway,
    ];

    /// The class that it belongs to.
    pub fn class(self) -> FaultClass {
        match self {
            DamageKind::BlackHole => FaultClass::BlackHole,
            DamageKind::HalfOpen => FaultClass::HalfOpen,
            DamageKind::SyncEio => FaultClass::EioOnFsync,
            DamageKind::WriteEio => FaultClass::EioOnWrite,
            DamageKind::ReadEio => FaultClass::EioOnRead,
            DamageKind::MasterEio => FaultClass::MasterEio,
            DamageKind::FullDisk => FaultClass::FullDisk,
            DamageKind::Rot => FaultClass::Rot,
            DamageKind::Misdirect => FaultClass::MisdirectedWrite,
            DamageKind::LoseDisk => FaultClass::DiskLost,
            DamageKind::OldDisk => FaultClass::OldDisk,
            DamageKind::Freeze => FaultClass::ClientFrozen,
            DamageKind::LoseMaster => FaultClass::MasterWiped,
            DamageKind::AddMaster => FaultClass::MasterAdded,
            DamageKind::AddServer => FaultClass::ServerAdded,
            DamageKind::Misread => FaultClass::MisdirectedRead,
            DamageKind::BareMaster => FaultClass::MasterBare,
            DamageKind::Drain => FaultClass::Drain,
            DamageKind::LongAway => FaultClass::LongAway,
        }
    }

    /// The counter that shows that it was injected.
    pub fn counter(self) -> &'static str {
        match self {
            DamageKind::BlackHole => "damage: black hole",
            DamageKind::HalfOpen => "damage: half open",
            DamageKind::SyncEio => "damage: fsync fails",
            DamageKind::WriteEio => "damage: write fails",
            DamageKind::ReadEio => "damage: reads fail",
            DamageKind::MasterEio => "damage: a master's disk fails",
            DamageKind::FullDisk => "damage: disk full",
            DamageKind::Rot => "damage: rot",
            DamageKind::Misdirect => "damage: misdirected writes",
            DamageKind::LoseDisk => "damage: disk lost",
            DamageKind::OldDisk => "damage: old disk returns",
            DamageKind::Freeze => "damage: client frozen",
            DamageKind::LoseMaster => "damage: master wiped",
            DamageKind::AddMaster => "damage: master added",
            DamageKind::AddServer => "damage: chunkserver added",
            DamageKind::Misread => "damage: misdirected reads",
            DamageKind::BareMaster => "damage: master lost its log",
            DamageKind::Drain => "damage: chunkserver drained",
            DamageKind::LongAway => "damage: chunkserver long away",
        }
    }
}

/// What a run does of this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DamageOptions {
    /// Mean pause between two strikes, milliseconds.
    pub pause_ms: u64,
    /// Kinds that are on.
    pub kinds: Vec<DamageKind>,
    /// Chunkservers that may lose for good what they hold.
    pub victims: u32,
}

impl DamageOptions {
    /// Draws a run's choices; each kind is off in half of the runs. A chunk of copies that was opened while few servers
    /// were there may have two of them, whatever its layout says.
    pub fn draw(seed: u64, (data, parity): (u32, u32)) -> DamageOptions {
        let parity = if data == 1 { parity.min(1) } else { parity };
        let mut rng = Rng::new(seed).fork("damage options");
        let mut kinds = DamageKind::ALL.to_vec();
        kinds.retain(|_| rng.chance(1, 2));
        let victims = rng.range(0, u64::from(parity) + 1).max(u64::from(parity.min(1))) as u32;
        DamageOptions { pause_ms: rng.range(200, 1_500), kinds, victims }
    }
}

/// What only an operator of the cluster can do.
pub trait Operator: Send + Sync + 'static {
    /// A master of this number joins.
    fn add_master(&self, number: u32);
    /// A chunkserver of this number joins.
    fn add_server(&self, number: u32);
    /// This master's log is gone, and with it all that it promised.
    fn master_lost(&self, name: &str);
    /// This master starts anew with another disk. The group does the rest.
    fn master_replaced(&self, name: &str);
    /// This chunkserver is to be emptied.
    fn drain(&self, name: &str);
}

/// Chunkservers that may lose what they hold: of those that were there from the beginning, so that it is the
/// same answer whenever it is asked.
pub fn victims(world: &World) -> Vec<String> {
    let mut servers: Vec<String> =
        (1..=world.options.chunkservers).map(|number| format!("s{number}")).collect();
    world.rng("victims").shuffle(&mut servers);
    servers.truncate(world.options.damage.victims as usize);
    servers
}

/// Strikes until the time is over.
pub async fn damage(world: Arc<World>, operator: Arc<dyn Operator>, time: Duration) {
    let options = world.options.damage.clone();
    let (rng, victims) = (world.rng("damage"), victims(&world));
    trace::line("world", &format!("may lose what they hold: {}", victims.join(",")));
    let end = trace::now_ns() + time.as_nanos() as u64;
    let once = vec![
        DamageKind::LoseMaster,
        DamageKind::AddMaster,
        DamageKind::AddServer,
        DamageKind::Drain,
    ];
    let mut hand = Hand { world, operator, rng, victims, old: None, once, end };
    for number in 1.. {
        // Each step has its own numbers, so that it does the same when another is left out.
        hand.rng = hand.world.rng(&format!("damage {number}"));
        let pause = hand.rng.range(1, 2 * options.pause_ms.max(1));
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if trace::now_ns() >= end || options.kinds.is_empty() {
            return;
        }
        let kind = *hand.rng.pick(&options.kinds);
        if plan::permits(kind.class()) && plan::damages(number, kind.counter()) && hand.strike(kind)
        {
            plan::strikes(kind.class());
            stats::count(kind.counter());
        }
    }
}

/// The files of replicas on a disk.
fn replicas(disk: &SimDisk) -> Vec<String> {
    let mut paths = disk.paths();
    paths.retain(|path| path.ends_with(".dat"));
    paths
}

/// A bit in every other block or so of a file flips.
fn rot_half(disk: &SimDisk, path: &str, rng: &mut Rng) {
    let len = disk.written(path).map_or(0, |bytes| bytes.len() as u64);
    for block in (0..len).step_by(ROT_STEP) {
        if rng.chance(1, 2) {
            let at = block + rng.below(ROT_STEP as u64);
            disk.rot(path, at, 1 << rng.below(8));
        }
    }
}

struct Hand {
    world: Arc<World>,
    operator: Arc<dyn Operator>,
    rng: Rng,
    /// Chunkservers that may lose what they hold.
    victims: Vec<String>,
    /// A disk taken out, and of which machine.
    old: Option<(String, Arc<SimDisk>)>,
    /// What happens once a run.
    once: Vec<DamageKind>,
    /// When the world heals.
    end: u64,
}

impl Hand {
    /// Does one thing; false if the state of the world does not allow it.
    fn strike(&mut self, kind: DamageKind) -> bool {
        match kind {
            DamageKind::BlackHole => self.hole(true),
            DamageKind::HalfOpen => self.hole(false),
            DamageKind::SyncEio => self.broken_server(kind),
            DamageKind::WriteEio => self.broken_server(kind),
            DamageKind::ReadEio => self.failing_reads(),
            DamageKind::MasterEio => self.broken_master(),
            DamageKind::FullDisk => self.full_disk(),
            DamageKind::Rot => self.rot(),
            DamageKind::Misdirect => self.misdirect(),
            DamageKind::LoseDisk | DamageKind::OldDisk => self.other_disk(kind),
            DamageKind::Freeze => self.freeze(),
            DamageKind::LoseMaster => self.lose_master(false),
            DamageKind::BareMaster => self.lose_master(true),
            DamageKind::Misread => self.misread(),
            DamageKind::Drain => self.drain(),
            DamageKind::LongAway => self.long_away(),
            DamageKind::AddMaster | DamageKind::AddServer => self.add(kind),
        }
    }

    fn one_up(&mut self, names: &[String]) -> Option<String> {
        let up: Vec<&String> =
            names.iter().filter(|name| self.world.power(name) == Power::Up).collect();
        (!up.is_empty()).then(|| (*self.rng.pick(&up)).clone())
    }

    fn disk(&self, name: &str) -> Arc<SimDisk> {
        self.world.disks(name)[0].clone()
    }

    fn hole(&mut self, both: bool) -> bool {
        let mut from = self.world.all_names();
        self.rng.shuffle(&mut from);
        let to = from.split_off(self.rng.range(1, from.len() as u64) as usize);
        trace::line("net", &format!("{} -> {} vanishes", from.join(","), to.join(",")));
        self.world.hole(&from, &to);
        if both {
            self.world.hole(&to, &from);
        }
        let (world, ms) = (self.world.clone(), self.rng.range(20, 3_500));
        later(ms, async move { world.no_holes() });
        true
    }

    /// A disk fails once or twice; the machine is restarted, as an operator would.
    fn broken_server(&mut self, kind: DamageKind) -> bool {
        let servers = self.world.names(Role::Chunkserver);
        let Some(name) = self.one_up(&servers) else { return false };
        let (count, disk) = (self.rng.range(1, 3) as u32, self.disk(&name));
        trace::say(trace::Kind::Disk, &name, &format!("{kind:?}, {count} times"));
        disk.set_faults(|faults| match kind {
            DamageKind::SyncEio => faults.next_sync_eio = count,
            _ => faults.next_write_eio = count,
        });
        // Out of use from the first failure on.
        self.world.absences.begin(&name, Why::Disk);
        // Before the world heals: one whose disk is out of use comes back by a restart only.
        let left = self.end.saturating_sub(trace::now_ns()) / 1_000_000;
        let (world, ms) = (self.world.clone(), self.rng.range(300, 3_000).min(left));
        later(ms, async move {
            world.kill(&name);
            world.disks(&name)[0].set_faults(|faults| {
                (faults.next_sync_eio, faults.next_write_eio) = (0, 0);
            });
            world.restart(&name).await;
            world.absences.end(&name, &Why::Disk);
        });
        true
    }

    fn failing_reads(&mut self) -> bool {
        let servers = self.world.names(Role::Chunkserver);
        let Some(name) = self.one_up(&servers) else { return false };
        let disk = self.disk(&name);
        let ratio = Ratio::one_in(self.rng.range(1, 6) as u32);
        trace::say(trace::Kind::Disk, &name, "reads fail");
        disk.set_faults(|faults| faults.read_eio = ratio);
        later(self.rng.range(50, 2_500), async move {
            disk.set_faults(|faults| faults.read_eio = Ratio::NEVER);
        });
        true
    }

    /// A master whose disk fails ends, and is started again by its supervisor.
    fn broken_master(&mut self) -> bool {
        let masters = self.world.names(Role::Master);
        let away = masters.iter().filter(|name| self.world.power(name) != Power::Up).count();
        let Some(name) = self.one_up(&masters) else { return false };
        if masters.len() > 1 && away >= (masters.len() - 1) / 2 {
            return false;
        }
        let (disk, write) = (self.disk(&name), self.rng.chance(1, 3));
        trace::say(trace::Kind::Disk, &name, "its disk fails once");
        disk.set_faults(|faults| match write {
            true => faults.next_write_eio = 1,
            false => faults.next_sync_eio = 1,
        });
        true
    }

    fn full_disk(&mut self) -> bool {
        let servers = self.world.names(Role::Chunkserver);
        let Some(name) = self.one_up(&servers) else { return false };
        trace::say(trace::Kind::Disk, &name, "its disk is full");
        let disk = self.disk(&name);
        disk.set_faults(|faults| faults.full = true);
        self.world.absences.begin(&name, Why::Disk);
        let world = self.world.clone();
        later(self.rng.range(100, 3_000), async move {
            disk.set_faults(|faults| faults.full = false);
            world.absences.end(&name, &Why::Disk);
        });
        true
    }

    fn rot(&mut self) -> bool {
        let victims = self.victims.clone();
        let Some(name) = self.one_up(&victims) else { return false };
        let disk = self.disk(&name);
        let paths = replicas(&disk);
        if paths.is_empty() {
            return false;
        }
        // Single bytes anywhere, and a file of which every other block rots.
        for _ in 0..self.rng.range(1, 6) {
            let path = self.rng.pick(&paths);
            let len = disk.written(path).map_or(0, |bytes| bytes.len() as u64);
            disk.rot(path, self.rng.below(len.max(1)), 1 << self.rng.below(8));
        }
        let path = self.rng.pick(&paths).clone();
        rot_half(&disk, &path, &mut self.rng);
        trace::say(trace::Kind::Disk, &name, "bytes rot");
        true
    }

    fn misdirect(&mut self) -> bool {
        let victims = self.victims.clone();
        let Some(name) = self.one_up(&victims) else { return false };
        let count = self.rng.range(1, 4) as u32;
        trace::say(trace::Kind::Disk, &name, &format!("{count} writes go elsewhere"));
        self.disk(&name).set_faults(|faults| faults.next_misdirect = count);
        true
    }

    fn other_disk(&mut self, kind: DamageKind) -> bool {
        let victims = self.victims.clone();
        let Some(name) = self.one_up(&victims) else { return false };
        let new = match (kind, self.old.take()) {
            (DamageKind::OldDisk, Some((of, old))) if of == name => old,
            (DamageKind::OldDisk, other) => {
                self.old = other;
                return false;
            }
            _ => {
                let seed = self.rng.u64();
                SimDisk::new(&format!("{name} new {}", seed & 0xffff), DISK_BYTES, seed)
            }
        };
        self.world.power_loss(&name);
        self.old = Some((name.clone(), self.world.replace_disk(&name, 0, new)));
        // Its former self counts until it is dead.
        let refused = self.world.limits().server_dead + REFUSED_PAUSE;
        self.world.absences.lasts(&name, Why::Replaced, refused);
        self.back_later(name, 2_000);
        true
    }

    fn back_later(&mut self, name: String, ms_max: u64) {
        let (world, ms) = (self.world.clone(), self.rng.range(50, ms_max));
        later(ms, async move { world.restart(&name).await });
    }

    fn freeze(&mut self) -> bool {
        let clients = self.world.names(Role::Client);
        let Some(name) = self.one_up(&clients) else { return false };
        let ttl = self.world.limits().session_ttl.as_millis() as u64;
        self.world.pause(&name);
        let (world, ms) = (self.world.clone(), ttl + self.rng.range(500, 4_000));
        later(ms, async move { world.resume(&name) });
        true
    }

    fn first_time(&mut self, kind: DamageKind) -> bool {
        let before = self.once.len();
        self.once.retain(|left| *left != kind);
        self.once.len() < before
    }

    /// One in all runs of both kinds: it is all that the budget allows.
    fn lose_master(&mut self, bare: bool) -> bool {
        let masters = self.world.names(Role::Master);
        let all_up = masters.iter().all(|name| self.world.power(name) == Power::Up);
        if masters.len() < 3 || !all_up || !self.first_time(DamageKind::LoseMaster) {
            return false;
        }
        let (name, seed) = (self.rng.pick(&masters).clone(), self.rng.u64());
        self.world.power_loss(&name);
        self.operator.master_lost(&name);
        if bare {
            let rest = self.disk(&name).with_only("superblock", seed);
            self.world.replace_disk(&name, 0, rest);
            self.back_later(name.clone(), 500);
            return true;
        }
        self.world.empty_disk(&name, seed);
        self.operator.master_replaced(&name);
        self.back_later(name, 50);
        true
    }

    fn misread(&mut self) -> bool {
        let victims = self.victims.clone();
        let Some(name) = self.one_up(&victims) else { return false };
        let count = self.rng.range(1, 6) as u32;
        trace::say(trace::Kind::Disk, &name, &format!("{count} reads give what is elsewhere"));
        self.disk(&name).set_faults(|faults| faults.next_misread = count);
        true
    }

    fn long_away(&mut self) -> bool {
        let servers = self.world.names(Role::Chunkserver);
        let away = servers.iter().filter(|name| self.world.power(name) != Power::Up).count();
        let Some(name) = self.one_up(&servers) else { return false };
        if away >= (self.world.options.parity as usize).max(1) {
            return false;
        }
        self.world.kill(&name);
        let dead_ms = self.world.limits().server_dead.as_millis() as u64;
        let (world, ms) = (self.world.clone(), dead_ms + self.rng.range(500, 4_000));
        later(ms, async move { world.restart(&name).await });
        self.rots_unseen(dead_ms.saturating_sub(500));
        true
    }

    /// All that a chunkserver holds rots, so late that no scrub has seen it when replicas are made from it.
    fn rots_unseen(&mut self, ms: u64) {
        if !self.world.options.damage.kinds.contains(&DamageKind::Rot) {
            return;
        }
        let name = self.rng.pick(&self.victims).clone();
        let (world, mut rng, end) = (self.world.clone(), self.rng.fork("rot"), self.end);
        later(ms, async move {
            if trace::now_ns() >= end || !plan::strikes(FaultClass::Rot) {
                return;
            }
            trace::say(trace::Kind::Disk, &name, "everything rots");
            let disk = world.disks(&name)[0].clone();
            replicas(&disk).iter().for_each(|path| rot_half(&disk, path, &mut rng));
        });
    }

    fn drain(&mut self) -> bool {
        let servers = self.world.names(Role::Chunkserver);
        if !self.first_time(DamageKind::Drain) {
            return false;
        }
        let name = self.rng.pick(&servers).clone();
        self.operator.drain(&name);
        let ms = self.rng.below(300);
        self.rots_unseen(ms);
        true
    }

    fn add(&mut self, kind: DamageKind) -> bool {
        if !self.first_time(kind) {
            return false;
        }
        match kind {
            DamageKind::AddMaster => {
                self.operator.add_master(self.world.names(Role::Master).len() as u32 + 1);
            }
            _ => self.operator.add_server(self.world.names(Role::Chunkserver).len() as u32 + 1),
        }
        true
    }
}
