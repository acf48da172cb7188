//! One machine: a name, an address, disks that outlive its process, and how its process starts.

use super::World;
use crate::disk::{Counters, Event, SimDisk};
use crate::plan;
use crate::trace::{self, Kind};
use madsim::runtime::Handle;
use madsim::task::NodeId;
use mooseng::checksum::crc32c;
use mooseng::seam::Disk;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A master.
    Master,
    /// A chunkserver.
    Chunkserver,
    /// A client.
    Client,
}

/// Whether its process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It runs.
    Up,
    /// It was killed or ended.
    Down,
    /// The machine has no power.
    Off,
    /// It is stopped.
    Paused,
}

/// The process's main function: called at each start; its end is the process's.
pub type StartFn = Arc<dyn Fn(NodeContext) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync>;

/// What a machine is made of.
#[derive(Clone)]
pub struct NodeSpec {
    /// A short name, unique.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its address, unique.
    pub ip: Ipv4Addr,
    /// Its disks.
    pub disks: Vec<Arc<SimDisk>>,
    /// Its process.
    pub start: StartFn,
}

/// What a process is given at its start.
#[derive(Clone)]
pub struct NodeContext {
    /// The machine's name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// The number of this start, from 1.
    pub incarnation: u64,
    /// Its disks, as this start may use them.
    pub disks: Vec<Arc<dyn Disk>>,
    /// The world, for processes that are part of the test.
    pub world: Weak<World>,
}

impl NodeContext {
    /// A line in the timeline.
    pub fn say(&self, text: &str) {
        trace::line(&self.name, text);
        if let Some(world) = self.world.upgrade() {
            text.clone_into(&mut world.node(&self.name).shared.state().said);
        }
    }

    /// Asked before each operation of a client's program: whether the run's plan leaves it out.
    pub fn skips(&self) -> bool {
        plan::skips(&self.name)
    }

    /// The start of this process has succeeded.
    pub fn runs(&self) {
        if let Some(world) = self.world.upgrade()
            && world.incarnation(&self.name) == self.incarnation
        {
            world.node(&self.name).runs();
        }
    }

    /// An operation that began at `since_ns` of [`trace::now_ns`] has ended.
    pub fn did(&self, since_ns: u64, what: &str, outcome: &str) {
        trace::operation(&self.name, since_ns, &format!("{what}: {outcome}"));
    }

    /// A callback that ends this process, as abort(3) does.
    pub fn aborts(&self) -> Arc<dyn Fn(String) + Send + Sync> {
        let (name, world, incarnation) = (self.name.clone(), self.world.clone(), self.incarnation);
        Arc::new(move |reason| {
            trace::line(&name, &format!("aborts: {reason}"));
            if let Some(world) = world.upgrade()
                && world.incarnation(&name) == incarnation
            {
                world.kill(&name);
                world.node(&name).shared.ended(reason);
            }
        })
    }
}

/// A process that ended by itself, as its supervisor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// It did not, or somebody has killed it since.
    No,
    /// The supervisor has not seen it yet.
    Fresh,
    /// The supervisor will start it again.
    Noticed,
}

struct State {
    power: Power,
    incarnation: u64,
    exit: Exit,
    /// Why it ended by itself.
    why: String,
    /// The last line it has written.
    said: String,
    /// What it needs was taken away, or an earlier process left its disk in a state that is still to be got over: it may
    /// end for that, until it runs.
    crippled: bool,
    /// The disks' counters when the process began.
    before: Vec<Counters>,
    /// Its start has succeeded.
    runs: bool,
    /// It stands still for its disk.
    stalled: bool,
}

impl State {
    /// How many faults of a kind the disks have injected since the process began.
    fn met(&self, now: &[Counters], kind: impl Fn(&Counters) -> u64) -> u64 {
        let pairs = now.iter().zip(&self.before);
        pairs.map(|(now, before)| kind(now).saturating_sub(kind(before))).sum()
    }
}

struct Shared {
    spec: NodeSpec,
    /// Those in it now.
    disks: Mutex<Vec<Arc<SimDisk>>>,
    state: Mutex<State>,
    world: Weak<World>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disks(&self) -> Vec<Arc<SimDisk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn counters(&self) -> Vec<Counters> {
        self.disks().iter().map(|disk| disk.counters()).collect()
    }

    fn begin(&self) -> NodeContext {
        let incarnation = {
            let mut state = self.state();
            state.power = Power::Up;
            state.exit = Exit::No;
            state.incarnation += 1;
            self.begin_counting(&mut state);
            state.incarnation
        };
        let NodeSpec { name, ip, .. } = &self.spec;
        let disks = self.disks();
        disks.iter().for_each(|disk| disk.fence(incarnation));
        let disks = disks.iter().map(|disk| disk.handle(incarnation)).collect();
        trace::say(Kind::Starts, name, &format!("starts, incarnation {incarnation}"));
        let world = self.world.clone();
        NodeContext { name: name.clone(), ip: *ip, incarnation, disks, world }
    }

    /// The process before this one may have left behind what it met.
    fn begin_counting(&self, state: &mut State) {
        let now = self.counters();
        state.crippled |= state.met(&now, Counters::failures) > 0;
        (state.before, state.runs) = (now, false);
    }

    fn ended(&self, why: String) {
        let mut state = self.state();
        (state.exit, state.why) = (Exit::Fresh, why);
    }

    /// The main function returned: as when a process exits, its other tasks and its sockets go with it.
    fn end(&self, incarnation: u64) {
        trace::say(Kind::Ends, &self.spec.name, "process ends");
        if let Some(world) = self.world.upgrade()
            && self.state().incarnation == incarnation
        {
            world.stop(&self.spec.name);
            let said = self.state().said.clone();
            self.ended(said);
        }
    }
}

pub(super) struct Node {
    id: OnceLock<NodeId>,
    shared: Arc<Shared>,
}

static NAMES: Mutex<BTreeMap<NodeId, String>> = Mutex::new(BTreeMap::new());

/// The name of the machine whose task is running; "-" for the test's own.
pub fn here() -> String {
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.get(&madsim::plugin::node()).cloned().unwrap_or_else(|| "-".to_owned())
}

impl Node {
    /// Builds the machine; its process begins as soon as other tasks run.
    pub(super) fn build(handle: &Handle, spec: NodeSpec, world: Weak<World>) -> Arc<Node> {
        let (name, ip) = (spec.name.clone(), IpAddr::V4(spec.ip));
        for (index, disk) in spec.disks.iter().enumerate() {
            watch(disk, format!("{name}/{index}"));
        }
        let (exit, why, said) = (Exit::No, String::new(), String::new());
        let before = spec.disks.iter().map(|disk| disk.counters()).collect();
        let (power, incarnation) = (Power::Down, 0);
        let (crippled, runs, stalled) = (false, false, false);
        let state = State { power, incarnation, exit, why, said, crippled, before, runs, stalled };
        let disks = Mutex::new(spec.disks.clone());
        let shared = Arc::new(Shared { spec, disks, state: Mutex::new(state), world });
        let process = shared.clone();
        let built = handle.create_node().name(&name).ip(ip).init(move || {
            let (shared, context) = (process.clone(), process.begin());
            let incarnation = context.incarnation;
            let main = (shared.spec.start)(context);
            async move {
                main.await;
                shared.end(incarnation);
            }
        });
        let node = Arc::new(Node { id: OnceLock::new(), shared });
        let id = built.build().id();
        _ = node.id.set(id);
        NAMES.lock().unwrap_or_else(PoisonError::into_inner).insert(id, name);
        node
    }

    pub(super) fn id(&self) -> NodeId {
        *self.id.get().expect("set when built")
    }

    pub(super) fn name(&self) -> &str {
        &self.shared.spec.name
    }

    pub(super) fn ip(&self) -> Ipv4Addr {
        self.shared.spec.ip
    }

    pub(super) fn role(&self) -> Role {
        self.shared.spec.role
    }

    pub(super) fn disks(&self) -> Vec<Arc<SimDisk>> {
        self.shared.disks()
    }

    /// Takes a disk out and puts another in; the machine must be off. The old one is returned.
    pub(super) fn replace_disk(&self, index: usize, new: Arc<SimDisk>) -> Arc<SimDisk> {
        new.fence(self.incarnation());
        watch(&new, format!("{}/{index}", self.name()));
        let counters = new.counters();
        let mut disks = self.shared.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut disks[index], new);
        drop(disks);
        self.shared.state().before[index] = counters;
        old
    }

    pub(super) fn power(&self) -> Power {
        self.shared.state().power
    }

    pub(super) fn set_power(&self, power: Power) {
        self.shared.state().power = power;
    }

    /// It stands still for its disk from now on, or no more; whether it did before.
    pub(super) fn set_stalled(&self, stalled: bool) -> bool {
        std::mem::replace(&mut self.shared.state().stalled, stalled)
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.shared.state().incarnation
    }

    /// The running process loses its disks.
    pub(super) fn fence(&self) {
        let next = self.incarnation() + 1;
        self.disks().iter().for_each(|disk| disk.fence(next));
    }

    /// Why the process ended by itself, if it did since the last time this was asked.
    pub(super) fn take_exit(&self) -> Option<String> {
        let mut state = self.shared.state();
        let fresh = state.exit == Exit::Fresh;
        fresh.then(|| {
            state.exit = Exit::Noticed;
            std::mem::take(&mut state.why)
        })
    }

    /// Whether one that ended by itself had a reason for it: since it began a disk failed, lied or was full, bytes of it
    /// are not those that were written, or it lacks what was on it. A chunkserver that runs bears most of that.
    pub(super) fn may_end(&self) -> bool {
        let (disks, now) = (self.disks(), self.shared.counters());
        let state = self.shared.state();
        let bears = state.runs && self.role() == Role::Chunkserver;
        let failures = |counters: &Counters| match bears {
            true => counters.failures() - counters.bearable(),
            false => counters.failures(),
        };
        let damaged = now.iter().any(|counters| counters.changed_unasked() > 0);
        let dead = disks.iter().any(|disk| disk.is_dead());
        state.crippled || damaged || dead || state.met(&now, failures) > 0
    }

    /// Whether a write or an fsync of a disk has failed since the process began, after which the disk is out of use.
    pub(super) fn has_failing_disk(&self) -> bool {
        let now = self.shared.counters();
        self.shared.state().met(&now, |counters| counters.write_eio + counters.sync_eio) > 0
    }

    /// Whether something that it needs to run is taken from it.
    pub(super) fn cripple(&self, crippled: bool) {
        self.shared.state().crippled = crippled;
    }

    /// Its start has succeeded: whatever was wrong before is got over.
    pub(super) fn runs(&self) {
        let mut state = self.shared.state();
        (state.runs, state.crippled) = (true, false);
    }

    /// Whether it is still as [`Node::take_exit`] found it.
    pub(super) fn has_ended(&self) -> bool {
        self.shared.state().exit == Exit::Noticed
    }

    /// Somebody else decides when it starts again.
    pub(super) fn forget_exit(&self) {
        self.shared.state().exit = Exit::No;
    }
}

/// Takes every change of a disk into the trace.
fn watch(disk: &SimDisk, name: String) {
    disk.observe(move |event: &Event<'_>| {
        let mut payload = Vec::with_capacity(64);
        payload.extend_from_slice(event.path.as_bytes());
        payload.extend_from_slice(&event.file.to_le_bytes());
        payload.extend_from_slice(&event.offset.to_le_bytes());
        payload.extend_from_slice(&(event.bytes.len() as u64).to_le_bytes());
        payload.extend_from_slice(&crc32c(event.bytes).to_le_bytes());
        payload.push(u8::from(event.ok));
        trace::event(event.kind, &name, &payload);
    });
}
