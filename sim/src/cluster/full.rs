//! A whole cluster: masters, chunkservers and mounts as the daemons run them.

use super::{CLUSTER, MASTER_PORT, chunkserver_ip, client_ip, master_addresses, master_ip};
use crate::disk::{DISK_BYTES, SimDisk};
use crate::failure::stuck;
use crate::oracles::liveness::CONVERGED;
use crate::oracles::{Appliers, Applies};
use crate::stats;
use crate::trace;
use crate::world::absence::Why;
use crate::world::damage::Operator;
use crate::world::{NodeContext, NodeSpec, Power, Role, World};
use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::client::{Client, ClientConfig};
use mooseng::erasure::Layout;
use mooseng::ids::{ChunkId, NodeId, ServerId};
use mooseng::master::admin::Admin;
use mooseng::master::{self, Master, MasterConfig};
use mooseng::namespace::tables::{Degraded, ServerChunks, Servers};
use mooseng::pb::{self, ServerState};
use mooseng::raft::RaftNode;
use mooseng::tables::Read;
use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

const CHUNK_PORT: u16 = 9422;

/// A master's process.
#[derive(Clone)]
struct Running {
    raft: Arc<RaftNode>,
    admin: Admin,
}

/// The running masters by machine, for the test to look into.
#[derive(Clone)]
pub struct Cluster {
    master_bytes: u64,
    masters: Arc<Mutex<BTreeMap<String, Running>>>,
    /// What each machine last was in the group, whether its process runs or not.
    members: Arc<Mutex<BTreeMap<String, NodeId>>>,
    /// By log index: how many masters made a majority from there on.
    majorities: Arc<Mutex<BTreeMap<u64, usize>>>,
    /// The chunkserver that is being drained.
    drained: Arc<Mutex<Option<ServerId>>>,
    /// The first master has formatted its disk: an empty one means that it was lost.
    founded: Arc<AtomicBool>,
    /// Oracles that see what the masters apply.
    pub appliers: Appliers,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster::of_small_masters(DISK_BYTES)
    }
}

impl Cluster {
    /// One whose masters have disks of this size.
    pub fn of_small_masters(master_bytes: u64) -> Cluster {
        let (masters, members, majorities, drained, founded, appliers) = Default::default();
        Cluster { master_bytes, masters, members, majorities, drained, founded, appliers }
    }

    /// Adds the machines of masters and chunkservers.
    pub fn add(&self, world: &Arc<World>) {
        (1..=world.options.masters).for_each(|number| self.add_master(world, number));
        (1..=world.options.chunkservers).for_each(|number| self.add_server(world, number));
    }

    /// Adds a master's machine.
    pub fn add_master(&self, world: &Arc<World>, number: u32) {
        let name = format!("m{number}");
        let disk = SimDisk::new(&name, self.master_bytes, world.options.seed);
        let (cluster, options) = (self.clone(), world.options.clone());
        let start = move |context: NodeContext| {
            let (cluster, options) = (cluster.clone(), options.clone());
            let main = async move {
                if let Err(error) = cluster.master(&context, number, &options).await {
                    context.say(&format!("does not run: {error}"));
                }
            };
            Box::pin(main) as Pin<Box<dyn Future<Output = ()>>>
        };
        let (role, ip) = (Role::Master, master_ip(number));
        world.add_node(NodeSpec { name, role, ip, disks: vec![disk], start: Arc::new(start) });
    }

    /// Adds a chunkserver's machine.
    pub fn add_server(&self, world: &Arc<World>, number: u32) {
        let name = format!("s{number}");
        let disk = SimDisk::new(&name, DISK_BYTES, world.options.seed);
        let (limits, masters) = (world.limits(), master_addresses(world.options.masters));
        let start = move |context: NodeContext| {
            let config = ChunkserverConfig {
                listen: format!("{}:{CHUNK_PORT}", context.ip),
                masters: masters.clone(),
                limits: limits.clone(),
                cluster: Some(CLUSTER),
                ..ChunkserverConfig::default()
            };
            let main = async move {
                match Chunkserver::start(config, context.disks.clone()).await {
                    Ok(_running) => {
                        context.runs();
                        pending().await
                    }
                    Err(error) => context.say(&format!("does not run: {error}")),
                }
            };
            Box::pin(main) as Pin<Box<dyn Future<Output = ()>>>
        };
        let (role, ip) = (Role::Chunkserver, chunkserver_ip(number));
        world.add_node(NodeSpec { name, role, ip, disks: vec![disk], start: Arc::new(start) });
    }

    async fn master(
        &self,
        context: &NodeContext,
        number: u32,
        options: &crate::world::Options,
    ) -> Result<(), String> {
        // The one that ran here before is dead, whatever it believes.
        self.masters.lock().unwrap_or_else(PoisonError::into_inner).remove(&context.name);
        let (disk, limits) = (context.disks[0].clone(), options.limits());
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let fresh = !disk.exists("superblock").map_err(|e| text(&e))?;
        if number == 1 && fresh && !self.founded.load(Ordering::Relaxed) {
            let layout = Layout::new(options.data, options.parity).map_err(|e| text(&e))?;
            master::format(&disk, CLUSTER, layout, &limits).map_err(|e| text(&e))?;
        }
        let (name, appliers) = (context.name.clone(), self.appliers.clone());
        let aborts = context.aborts();
        let config = MasterConfig {
            listen: format!("{}:{MASTER_PORT}", context.ip),
            advertise: None,
            cluster: Some(CLUSTER),
            join: master_addresses(options.masters),
            limits,
            fatal: Arc::new(move |why: &str| aborts(why.to_owned())),
            observe: Some(Arc::new(move |applied| appliers.applied(&name, applied))),
        };
        let master = Master::start(config, disk).await.map_err(|e| text(&e))?;
        let raft = master.raft().clone();
        self.put(&context.name, Running { raft: raft.clone(), admin: master.admin() });
        context.say(&format!("runs as {}", master.node()));
        context.runs();
        let mut before = (raft.term(), false);
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = (raft.term(), raft.is_leader());
            if now != before {
                let role = if now.1 { "leads" } else { "follows" };
                let text = format!("{role} in {}, applied {}", now.0, raft.applied());
                trace::say(trace::Kind::Role, &context.name, &text);
                before = now;
            }
        }
    }

    /// The raft node of this machine; `None` until it has started.
    pub fn get(&self, name: &str) -> Option<Arc<RaftNode>> {
        self.running(name).map(|running| running.raft)
    }

    fn running(&self, name: &str) -> Option<Running> {
        self.masters.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn put(&self, name: &str, node: Running) {
        let mut running = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(name.to_owned(), node.clone());
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.insert(name.to_owned(), node.raft.node());
    }

    /// How many voters make a majority, as this machine knows its group.
    pub fn majority(&self, name: &str) -> usize {
        self.get(name).map_or(1, |node| voters(&node)) / 2 + 1
    }

    /// How many voters made a majority when an entry of this index was committed, as far as it was seen: members
    /// who came later have to catch up first, whatever was promised before them.
    pub fn majority_at(&self, name: &str, index: u64) -> usize {
        let since = self.get(name).map_or(0, |node| node.members_since().get());
        let mut seen = self.majorities.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(since, self.majority(name));
        let first = seen.range(..=index).next_back().map_or(0, |(since, _)| *since);
        seen.range(first..).map(|(_, majority)| *majority).min().unwrap_or(1)
    }

    /// A leader that serves.
    pub fn leader(&self, world: &World) -> Option<Arc<RaftNode>> {
        let names = world.names(Role::Master);
        let up = names.iter().filter(|name| world.power(name) == Power::Up);
        up.filter_map(|name| self.get(name)).find(|node| node.is_leader_ready())
    }

    /// The machine whose master leads.
    pub fn leader_name(&self, world: &World) -> Option<String> {
        let leads = |name: &String| {
            world.power(name) == Power::Up
                && self.get(name).is_some_and(|node| node.is_leader_ready())
        };
        world.names(Role::Master).into_iter().find(leads)
    }

    /// Waits until all masters vote and all chunkservers are registered.
    pub async fn form(&self, world: &World) {
        let servers = world.options.chunkservers as usize;
        for _ in 0..900 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Some(leader) = self.leader(world) else { continue };
            let known = leader.view().range::<Servers>(&ServerId(0), None).count();
            // Between memberships a majority of the older, smaller one is needed as well: two of two masters, say.
            let grown = !leader.is_between_memberships()
                && voters(&leader) == world.names(Role::Master).len();
            if grown && known == servers {
                self.founded.store(true, Ordering::Relaxed);
                trace::line("-", &format!("{} masters, {known} chunkservers", voters(&leader)));
                return;
            }
        }
        stuck("O7", "the cluster does not form within 90 s");
    }

    /// Begins to empty a chunkserver.
    pub async fn drain(&self, world: &World, number: u32) {
        let address = format!("{}:{CHUNK_PORT}", chunkserver_ip(number));
        // It gets no new data; after the run has healed, when it is put back to use, no error is excused.
        world.absences.begin(&format!("s{number}"), Why::Drained);
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Some(leader) = self.leader(world) else { continue };
            let view = leader.view();
            let rows = view.range::<Servers>(&ServerId(0), None);
            let rows = rows.map(|row| row.expect("tables").1);
            let found = rows
                .filter(|row| row.address == address)
                .find(|row| matches!(row.state(), ServerState::Active | ServerState::Draining));
            let Some(row) = found else { return };
            *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = Some(ServerId(row.id));
            if row.state() == ServerState::Draining {
                trace::line("world", &format!("s{number} is being drained"));
                return;
            }
            set_state(&leader, ServerId(row.id), ServerState::Draining).await;
        }
    }

    /// O7: after healing, a server that is drained gets empty; it is put back to use then. When it was, if one was
    /// drained.
    pub async fn empties(&self, world: &World) -> Option<u64> {
        let drained = self.drained.lock().unwrap_or_else(PoisonError::into_inner).take();
        let server = drained?;
        let healed = trace::now_ns();
        let mut left = 0;
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Some(leader) = self.leader(world) else { continue };
            let view = leader.view();
            let row = view.get::<Servers>(&server).expect("tables");
            if row.is_none_or(|row| !row.draining || is_replaced(&view, &row)) {
                stats::add("ms until emptied", (trace::now_ns() - healed) / 1_000_000);
                return Some(trace::now_ns());
            }
            let (from, to) = ((server, ChunkId(0)), (ServerId(server.0 + 1), ChunkId(0)));
            left = view.range::<ServerChunks>(&from, Some(&to)).count();
            if left == 0 {
                stats::count("chunkservers emptied");
                set_state(&leader, server, ServerState::Active).await;
            }
        }
        stuck("O7", format!("{server} is drained and has {left} chunks 60 s after healing"));
    }

    /// Active servers of which the leader does not know all that they hold.
    fn unreported(&self, world: &World) -> usize {
        let leader = self.leader_name(world).and_then(|name| self.running(&name));
        leader.map_or(0, |running| running.admin.unreported().len())
    }

    /// O7: after healing, all masters have applied the same, every chunk is whole again, and the leader knows what
    /// every chunkserver holds.
    pub async fn converge(&self, world: &World) {
        self.converge_since(world, trace::now_ns()).await;
    }

    /// The same, healed or disturbed for the last time at `healed`.
    pub async fn converge_since(&self, world: &World, healed: u64) {
        let mut why = "not looked at".to_owned();
        while Duration::from_nanos(trace::now_ns() - healed) < CONVERGED {
            tokio::time::sleep(Duration::from_millis(100)).await;
            match self.diverges(world) {
                None => {
                    return stats::add(
                        "ms until converged",
                        (trace::now_ns() - healed) / 1_000_000,
                    );
                }
                Some(what) => why = what,
            }
        }
        stuck("O7", format!("not converged {CONVERGED:?} after healing: {why}"));
    }

    /// In what masters and chunkservers have not converged.
    fn diverges(&self, world: &World) -> Option<String> {
        let (names, servers) = (world.names(Role::Master), world.names(Role::Chunkserver).len());
        let nodes: Vec<_> = names.iter().filter_map(|name| self.get(name)).collect();
        let Some(leader) = self.leader(world) else { return Some("no leader".to_owned()) };
        let applied: Vec<_> = nodes.iter().map(|node| node.applied()).collect();
        let view = leader.view();
        let degraded = view.range::<Degraded>(&Default::default(), None).count();
        // One whose disk was lost stays in the table as dead, and is another from then on.
        let rows = view.range::<Servers>(&ServerId(0), None);
        let active =
            rows.filter(|row| row.as_ref().is_ok_and(|(_, r)| r.state() == ServerState::Active));
        let (active, voters) = (active.count(), voters(&leader));
        // All of them: one that is still starting has not converged.
        let all = applied.len() == names.len();
        let same = all && applied.iter().all(|index| *index == applied[0]);
        let settled = !leader.is_between_memberships();
        let whole = degraded == 0 && active == servers && voters == names.len() && settled;
        let unheard = self.unreported(world);
        (!same || !whole || unheard > 0).then(|| {
            format!(
                "applied {applied:?}, {degraded} degraded chunks, {active} of {servers} servers active, {unheard} not heard, {voters} voters, settled: {settled}"
            )
        })
    }
}

/// What an operator does to a cluster.
pub struct Hands {
    /// The cluster.
    pub cluster: Cluster,
    /// Its machines.
    pub world: Arc<World>,
    /// Told of each master that lost its log.
    pub lost: Box<dyn Fn(&str) + Send + Sync>,
    /// Told of each master that got another disk.
    pub replaced: Box<dyn Fn(&str) + Send + Sync>,
}

impl Operator for Hands {
    fn add_master(&self, number: u32) {
        self.cluster.add_master(&self.world, number);
    }

    fn add_server(&self, number: u32) {
        self.cluster.add_server(&self.world, number);
    }

    fn drain(&self, name: &str) {
        let number = name.trim_start_matches('s').parse().expect("s1, s2, ...");
        let (cluster, world) = (self.cluster.clone(), self.world.clone());
        tokio::spawn(async move { cluster.drain(&world, number).await });
    }

    fn master_lost(&self, name: &str) {
        self.world.cripple(name, true);
        (self.lost)(name);
    }

    fn master_replaced(&self, name: &str) {
        (self.replaced)(name);
    }
}

async fn set_state(leader: &RaftNode, server: ServerId, state: ServerState) {
    let command = pb::ServerStateCmd { server: server.0, state: state as i32 };
    let proposal = pb::Proposal { kind: Some(pb::proposal::Kind::ServerState(command)) };
    if let Err(error) = leader.propose(proposal).await {
        trace::line("world", &format!("{server} is not {state:?}: {error}"));
    }
}

/// Whether a server is dead for good, as its machine has another disk. Otherwise it is drained on when it comes back.
fn is_replaced(view: &impl Read, row: &pb::ServerRow) -> bool {
    let rows = view.range::<Servers>(&ServerId(0), None);
    let others = rows.map(|row| row.expect("tables").1).filter(|other| other.id != row.id);
    let mut active = others.filter(|other| other.state() == ServerState::Active);
    row.state() == ServerState::Dead && active.any(|other| other.address == row.address)
}

fn voters(node: &RaftNode) -> usize {
    node.members().iter().filter(|member| member.voter).count()
}

/// A machine that mounts the cluster.
pub fn mount(
    world: &Arc<World>,
    number: u32,
    main: impl Fn(NodeContext, ClientConfig) -> Pin<Box<dyn Future<Output = ()>>>
    + Send
    + Sync
    + 'static,
) {
    let config = ClientConfig {
        masters: master_addresses(world.options.masters),
        cluster: Some(CLUSTER),
        host: format!("c{number}"),
        limits: world.limits(),
    };
    world.add_node(NodeSpec {
        name: config.host.clone(),
        role: Role::Client,
        ip: client_ip(number),
        disks: vec![],
        start: Arc::new(move |context| main(context, config.clone())),
    });
}

/// What a mount has to do, which comes to an end; the machine stays.
pub struct Errand(mpsc::Receiver<()>);

/// A machine that mounts the cluster for this. What `main` returns, the mount itself, is kept.
pub fn errand<F: Future + 'static>(
    world: &Arc<World>,
    number: u32,
    main: impl Fn(NodeContext, ClientConfig) -> F + Send + Sync + 'static,
) -> Errand {
    let (done, finished) = mpsc::channel(1);
    mount(world, number, move |context, config| {
        let (work, done) = (main(context, config), done.clone());
        Box::pin(async move {
            let _kept = work.await;
            let _ = done.send(()).await;
            pending().await
        })
    });
    Errand(finished)
}

impl Errand {
    /// O7: it comes to its end within `bound`. `what` says who does not otherwise.
    pub async fn ends(mut self, bound: Duration, what: &str) {
        if tokio::time::timeout(bound, self.0.recv()).await.is_err() {
            stuck("O7", format!("{what} within {bound:?}"));
        }
    }
}

/// Connects until it succeeds.
pub async fn connect(context: &NodeContext, config: &ClientConfig) -> Arc<Client> {
    loop {
        match Client::connect(config.clone()).await {
            Ok(client) => return client,
            Err(error) => context.say(&format!("no session: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
