//! The simulated world of one run: machines with disks and clocks, the network between them, and what is done
//! to them. Everything is drawn from the seed; one process runs one world.

pub mod absence;
mod clocks;
pub mod damage;
pub mod frames;
pub mod inject;
mod net;
mod node;
pub mod options;
mod stalls;

pub use frames::Frames;
pub use node::{NodeContext, NodeSpec, Power, Role, StartFn, here};
pub use options::{FaultKind, NetOptions, Options};

use crate::disk::Outcome;
use crate::failure::violation;
use crate::oracles::liveness::Healed;
use crate::rng::Rng;
use crate::trace::Kind;
use crate::{plan, stats, trace};
use absence::{Absences, Why};
use madsim::net::NetSim;
use madsim::runtime::Handle;
use node::Node;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a machine stays silent between the end of its old tasks and its restart.
const SETTLE: Duration = Duration::from_millis(2);

/// Makes the simulated clocks the process's, for scenarios without machines.
pub fn install_clocks() {
    clocks::install();
}

/// The machines of one run.
pub struct World {
    /// What the run chose.
    pub options: Options,
    /// What happens to frames.
    pub frames: Arc<Frames>,
    /// When chunkservers were away.
    pub absences: Absences,
    handle: Handle,
    rng: Rng,
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
}

impl World {
    /// An empty world. Call once, on the simulation's first task.
    pub fn new(options: Options) -> Arc<World> {
        clocks::install();
        let options = plan::options(options);
        plan::begin_points(options.seed, options.points);
        let rng = Rng::new(options.seed);
        let text = serde_json::to_string(&options).expect("options print");
        trace::say(Kind::Phase, "world", &format!("options {text}"));
        let frames = Frames::install(rng.fork("frames"), options.net.clone(), &options.limits());
        let nodes = Mutex::new(BTreeMap::new());
        let (handle, absences) = (Handle::current(), Absences::default());
        let world = Arc::new(World { handle, frames, absences, rng, nodes, options });
        world.usual_latency();
        stalls::begin(&world);
        world
    }

    /// A random generator of its own for each name.
    pub fn rng(&self, name: &str) -> Rng {
        self.rng.fork(name)
    }

    /// The options' limits.
    pub fn limits(&self) -> Arc<mooseng::limits::Limits> {
        self.options.limits()
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds a machine and starts its process.
    pub fn add_node(self: &Arc<World>, spec: NodeSpec) {
        let name = spec.name.clone();
        let mut rng = self.rng(&name);
        let node = Node::build(&self.handle, spec, Arc::downgrade(self));
        let clock = &self.options.clock;
        let signed = |draw: u64, most: u64| draw as i64 - most as i64;
        let (offset, ppm) = (clock.offset_ms_max, clock.drift_ppm_max);
        clocks::step_wall(node.id(), signed(rng.below(2 * offset + 1), offset));
        clocks::drift(node.id(), signed(rng.below(2 * ppm + 1), ppm));
        clocks::reboot(node.id(), rng.below(1 << 50));
        self.nodes().insert(name, node);
    }

    fn node(&self, name: &str) -> Arc<Node> {
        self.nodes().get(name).unwrap_or_else(|| panic!("no machine is called {name}")).clone()
    }

    /// Names of the machines of a role, sorted.
    pub fn names(&self, role: Role) -> Vec<String> {
        let nodes = self.nodes();
        let found = nodes.values().filter(|node| node.role() == role);
        found.map(|node| node.name().to_owned()).collect()
    }

    /// Names of all machines, sorted.
    pub fn all_names(&self) -> Vec<String> {
        self.nodes().keys().cloned().collect()
    }

    /// Whether the machine runs.
    pub fn power(&self, name: &str) -> Power {
        self.node(name).power()
    }

    /// The machine's disks.
    pub fn disks(&self, name: &str) -> Vec<Arc<crate::disk::SimDisk>> {
        self.node(name).disks()
    }

    /// Whether a write or an fsync of one of its disks has failed since its process began.
    pub fn has_failing_disk(&self, name: &str) -> bool {
        self.node(name).has_failing_disk()
    }

    /// Puts another disk into a machine that is off; the old one is returned.
    pub fn replace_disk(
        &self,
        name: &str,
        index: usize,
        new: Arc<crate::disk::SimDisk>,
    ) -> Arc<crate::disk::SimDisk> {
        let node = self.node(name);
        assert!(matches!(node.power(), Power::Down | Power::Off), "{name} runs");
        trace::line(name, &format!("disk {index} is now {}", new.name()));
        node.replace_disk(index, new)
    }

    /// An empty disk instead of the first one of a machine that is off; the old one is returned.
    pub fn empty_disk(&self, name: &str, seed: u64) -> Arc<crate::disk::SimDisk> {
        let new = crate::disk::SimDisk::new(&format!("{name} new"), crate::disk::DISK_BYTES, seed);
        self.replace_disk(name, 0, new)
    }

    /// The number of starts of the machine's process so far.
    pub fn incarnation(&self, name: &str) -> u64 {
        self.node(name).incarnation()
    }

    /// Kills the process (kill -9). Its page cache survives, its sockets close, its destructors run but reach
    /// no disk.
    pub fn kill(&self, name: &str) {
        let node = self.node(name);
        // Whoever kills it decides when it starts again, also if it has just ended by itself.
        node.forget_exit();
        if matches!(node.power(), Power::Down | Power::Off) {
            return;
        }
        trace::say(Kind::Killed, name, "killed");
        self.stop(name);
    }

    /// The process is gone.
    fn stop(&self, name: &str) {
        let node = self.node(name);
        node.fence();
        node.disks().iter().for_each(|disk| disk.crash());
        self.handle.resume(node.id());
        self.handle.kill(node.id());
        self.set_power(&node, Power::Down);
    }

    fn set_power(&self, node: &Node, power: Power) {
        node.set_power(power);
        match power {
            _ if node.role() != Role::Chunkserver => {}
            Power::Up => self.absences.end(node.name(), &Why::Down),
            _ => self.absences.begin(node.name(), Why::Down),
        }
    }

    /// The machine loses power: un-synced bytes and names are kept, dropped or torn; nobody is told.
    pub fn power_loss(&self, name: &str) {
        self.power_loss_as(name, Outcome::Mixed);
    }

    /// A power loss with a chosen outcome.
    pub fn power_loss_as(&self, name: &str, outcome: Outcome) {
        let node = self.node(name);
        node.forget_exit();
        if node.power() == Power::Off {
            return;
        }
        let disks = node.disks();
        let unsynced = disks.iter().map(|disk| disk.unsynced());
        let (sectors, names) = unsynced.fold((0, 0), |all, disk| (all.0 + disk.0, all.1 + disk.1));
        trace::say(
            Kind::PowerLoss,
            name,
            &format!("loses power, un-synced: {sectors} sectors, {names} names"),
        );
        node.fence();
        disks.iter().for_each(|disk| disk.power_loss_as(outcome));
        // Stopped tasks keep their sockets open and silent; they are dropped at the restart.
        self.handle.pause(node.id());
        NetSim::current().clog_node(node.id());
        self.frames.set_dark(node.ip().to_string(), true);
        self.set_power(&node, Power::Off);
    }

    /// Starts the machine's process again; one that runs is left alone.
    pub async fn restart(&self, name: &str) {
        let node = self.node(name);
        loop {
            let power = node.power();
            if matches!(power, Power::Up | Power::Paused) {
                return;
            }
            if power == Power::Off {
                self.handle.resume(node.id());
            }
            // One that ended by itself may have left tasks behind, which end with their process.
            self.handle.kill(node.id());
            tokio::time::sleep(SETTLE).await;
            if node.power() != power {
                // Meanwhile it lost power, or somebody else has started it.
                continue;
            }
            if power == Power::Off {
                NetSim::current().unclog_node(node.id());
                self.frames.set_dark(node.ip().to_string(), false);
                clocks::reboot(node.id(), self.rng(&format!("{name} boots")).below(1 << 50));
            }
            self.handle.restart(node.id());
            self.absences.end(name, &Why::Down);
            return;
        }
    }

    /// Stops the process as SIGSTOP does.
    pub fn pause(&self, name: &str) {
        let node = self.node(name);
        if node.power() == Power::Up {
            trace::say(Kind::Stopped, name, "stopped");
            self.handle.pause(node.id());
            self.set_power(&node, Power::Paused);
        }
    }

    /// Lets a stopped process go on.
    pub fn resume(&self, name: &str) {
        let node = self.node(name);
        if node.power() == Power::Paused {
            trace::say(Kind::Continues, name, "continues");
            self.handle.resume(node.id());
            self.set_power(&node, Power::Up);
        }
    }

    /// The node's wall clock jumps.
    pub fn step_clock(&self, name: &str, by_ms: i64) {
        trace::say(Kind::Clock, name, &format!("wall clock jumps by {by_ms} ms"));
        clocks::step_wall(self.node(name).id(), by_ms);
    }

    /// What the node's wall clock shows, milliseconds since 1970.
    pub fn wall_ms(&self, name: &str) -> i64 {
        clocks::wall_ms(self.node(name).id())
    }

    /// Ends every fault: nothing happens to frames any more, links are whole, everything runs and disks are
    /// quick. Injectors must have ended.
    pub async fn heal(&self) -> Healed {
        trace::say(Kind::Phase, "world", "heals");
        plan::healed();
        self.frames.quiet();
        self.no_holes();
        self.join_all();
        self.usual_latency();
        for name in self.all_names() {
            for disk in self.disks(&name) {
                disk.set_faults(|faults| *faults = Default::default());
            }
            self.resume(&name);
            self.restart(&name).await;
        }
        let at_ns = trace::now_ns();
        let slow = |names: Vec<String>| {
            let disks = names.iter().flat_map(|name| self.disks(name));
            let until_ns = disks.map(|disk| disk.slow_until_ns()).max().unwrap_or(0);
            Duration::from_nanos(until_ns.saturating_sub(at_ns))
        };
        let slow_masters = slow(self.names(Role::Master));
        Healed { at_ns, slow: slow(self.all_names()), slow_masters }
    }

    /// Restarts processes that ended by themselves, as a service manager does, until the world ends. None may without
    /// a reason that lies in its disk.
    pub async fn supervise(self: Arc<World>) {
        let mut rng = self.rng("supervisor");
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            for name in self.all_names() {
                if let Some(why) = self.node(&name).take_exit() {
                    self.judge(&name, &why);
                    let (world, pause) = (self.clone(), rng.range(100, 1500));
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                        if world.node(&name).has_ended() {
                            world.restart(&name).await;
                        }
                    });
                }
            }
        }
    }

    /// O7: nothing but its disk makes a server end by itself. Machines of the role client run the test.
    fn judge(&self, name: &str, why: &str) {
        let node = self.node(name);
        stats::count("processes that ended by themselves");
        if node.role() != Role::Client && !node.may_end() {
            violation(
                "O7",
                format!("{name} ends by itself, and its disk is as it was left: {why}"),
            );
        }
    }

    /// What is on this machine's disk is taken away: it may refuse to run, until it gets another one.
    pub fn cripple(&self, name: &str, crippled: bool) {
        self.node(name).cripple(crippled);
    }

    /// Takes what the disks injected into the run's counters.
    pub fn count_disk_faults(&self) {
        for name in self.all_names() {
            for disk in self.disks(&name) {
                let counters = disk.counters();
                stats::add("disk syncs", counters.syncs + counters.dir_syncs);
                stats::add("fault: lost sectors", counters.sectors_lost);
                stats::add("fault: lost names", counters.names_lost);
                stats::add("fault: slow disk calls", counters.slow);
                stats::add("fault: EIO on read", counters.read_eio);
                stats::add("fault: EIO on write", counters.write_eio);
                stats::add("fault: EIO on fsync", counters.sync_eio);
                stats::add("fault: no space", counters.enospc);
                stats::add("fault: misdirected write", counters.misdirected);
                stats::add("fault: misdirected read", counters.misread);
                stats::add("fault: bytes rotted", counters.rotten);
            }
        }
    }
}
