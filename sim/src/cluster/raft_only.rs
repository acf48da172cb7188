//! Masters that are nothing but a raft node with a server: they replicate the namespace and answer the calls
//! OpenSession and SubmitBatch, so that Raft can be put under faults by itself.

use super::{CLUSTER, MASTER_PORT, master_addresses, master_ip};
use crate::disk::SimDisk;
use crate::failure::stuck;
use crate::oracles::{Appliers, Applies};
use crate::trace;
use crate::world::{NodeContext, NodeSpec, Role, World};
use mooseng::ids::{NodeId, Uuid};
use mooseng::pb;
use mooseng::raft::{self, ProposeError, RaftConfig, RaftNode};
use mooseng::seam::{self, Disk, OpenMode};
use mooseng::wire::calls::{OpenSession, SubmitBatch};
use mooseng::wire::{
    Call, Handler, Identity, Incoming, Outgoing, Peer, Pool, Refusal, RefusalCode,
    Role as WireRole, Server,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The running raft nodes by machine, for the test to look into.
#[derive(Clone, Default)]
pub struct Masters {
    running: Arc<Mutex<BTreeMap<String, Arc<RaftNode>>>>,
    /// Oracles that see what the masters apply.
    pub appliers: Appliers,
}

impl Masters {
    /// Adds the machines of the world's masters.
    pub fn add(&self, world: &Arc<World>) {
        for number in 1..=world.options.masters {
            let name = format!("m{number}");
            let disk = SimDisk::new(&name, 256 << 20, world.options.seed);
            let (masters, count) = (self.clone(), world.options.masters);
            let limits = world.limits();
            world.add_node(NodeSpec {
                name,
                role: Role::Master,
                ip: master_ip(number),
                disks: vec![disk],
                start: Arc::new(move |context| {
                    let (masters, limits) = (masters.clone(), limits.clone());
                    let config = Config { number, count, limits };
                    Box::pin(async move {
                        if let Err(error) = masters.run(&context, config).await {
                            context.say(&format!("does not run: {error}"));
                        }
                    })
                }),
            });
        }
    }

    /// Waits until every master is a voter.
    pub async fn form(&self, world: &World) {
        let names = world.names(Role::Master);
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let leader =
                names.iter().filter_map(|name| self.get(name)).find(|node| node.is_leader());
            let Some(leader) = leader else { continue };
            let voters = leader.members().iter().filter(|member| member.voter).count();
            if voters == names.len() {
                trace::line("-", &format!("a group of {voters}"));
                return;
            }
        }
        stuck("O7", "the masters do not form a group within 60 s");
    }

    /// The raft node of this machine; `None` until it has started.
    pub fn get(&self, name: &str) -> Option<Arc<RaftNode>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn put(&self, name: &str, node: &Arc<RaftNode>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(name.to_owned(), node.clone());
    }

    /// How many voters make a majority, as this machine knows its group.
    pub fn majority(&self, name: &str) -> usize {
        let voters = |node: Arc<RaftNode>| node.members().iter().filter(|m| m.voter).count();
        self.get(name).map_or(1, voters) / 2 + 1
    }

    async fn run(&self, context: &NodeContext, config: Config) -> Result<(), String> {
        let disk = context.disks[0].clone();
        let address = format!("{}:{MASTER_PORT}", context.ip);
        let (incarnation, known) = identity(&*disk).map_err(|e| e.to_string())?;
        seam::settle().await;
        let boot = seam::rng::random_u64();
        let me = |node: u64| Identity {
            cluster: Some(CLUSTER),
            role: WireRole::Master,
            node,
            incarnation: boot,
        };
        let node = match known {
            0 if config.number == 1 => 1,
            0 => join(&disk, &config, me(0), incarnation, &address).await?,
            known => known,
        };
        let pool = Pool::new(me(node), config.limits.clone());
        let aborts = context.aborts();
        let (name, appliers) = (context.name.clone(), self.appliers.clone());
        if config.number == 1 && known == 0 {
            raft::prepare(&disk, &config.limits).map_err(|error| error.to_string())?;
        }
        let started = RaftNode::start(
            RaftConfig {
                node: NodeId(node),
                cluster: CLUSTER,
                incarnation,
                address: address.clone(),
                limits: config.limits.clone(),
                disk: disk.clone(),
                bootstrap: config.number == 1 && known == 0,
                fatal: Arc::new(move |why: &str| aborts(why.to_owned())),
                observe: Some(Arc::new(move |applied| appliers.applied(&name, applied))),
            },
            pool,
        );
        let raft = started.await.map_err(|error| error.to_string())?;
        if config.number == 1 && known == 0 {
            begin(&raft, incarnation, &address).await?;
        }
        if known == 0 {
            save(&*disk, incarnation, node).map_err(|e| e.to_string())?;
        }
        seam::settle().await;
        let shell = Arc::new(Shell(OnceLock::from(raft.clone())));
        let server = Server::start(&address, me(node), config.limits.clone(), shell);
        let _server = server.await.map_err(|error| error.to_string())?;
        self.put(&context.name, &raft);
        context.say(&format!("runs as master {node}"));
        watch(context, &raft).await
    }
}

/// The first master's first commands: the root directory, and its own id.
async fn begin(raft: &RaftNode, incarnation: Uuid, address: &str) -> Result<(), String> {
    while !raft.is_leader_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let init = pb::InitClusterCmd {
        cluster: CLUSTER.bytes(),
        default_layout: Some(pb::Layout { data: 1, parity: 0 }),
        cluster_epoch: 1,
        limits: None,
    };
    let (incarnation, address) = (incarnation.bytes(), address.to_owned());
    let register = pb::RegisterMasterCmd { incarnation, address, node: 1 };
    for kind in
        [pb::proposal::Kind::InitCluster(init), pb::proposal::Kind::RegisterMaster(register)]
    {
        let proposal = pb::Proposal { kind: Some(kind) };
        let proposed = loop {
            match raft.propose(proposal.clone()).await {
                // Certainly not done; a master's leader repeats it in its next round.
                Err(ProposeError::Busy) => tokio::time::sleep(Duration::from_millis(5)).await,
                other => break other,
            }
        };
        let (_, _, outcome) = proposed.map_err(|error| error.to_string())?;
        if outcome.errno != 0 {
            return Err(format!("beginning the cluster: errno {}", outcome.errno));
        }
    }
    Ok(())
}

struct Config {
    number: u32,
    count: u32,
    limits: Arc<mooseng::limits::Limits>,
}

/// Says in the timeline who leads, for ever.
async fn watch(context: &NodeContext, raft: &RaftNode) -> Result<(), String> {
    let mut before = (raft.term(), false);
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = (raft.term(), raft.is_leader());
        if now != before {
            let role = if now.1 { "leads" } else { "follows" };
            let text = format!("{role} in {}, applied {}", now.0, raft.applied());
            trace::say(trace::Kind::Role, &context.name, &text);
            before = now;
        }
    }
}

async fn join(
    disk: &Arc<dyn Disk>,
    config: &Config,
    me: Identity,
    incarnation: Uuid,
    address: &str,
) -> Result<u64, String> {
    raft::prepare(disk, &config.limits).map_err(|error| error.to_string())?;
    seam::settle().await;
    let pool = Pool::new(me, config.limits.clone());
    let masters = master_addresses(config.count);
    let cluster = Some(CLUSTER);
    // As a daemon does, which asks until it is taken in.
    loop {
        let asked = raft::join(&pool, &masters, cluster, incarnation, address, &config.limits);
        match asked.await {
            Ok((node, _)) => return Ok(node.get()),
            Err(error) => tracing::debug!("not taken in yet: {error}"),
        }
        tokio::time::sleep(config.limits.retry_pause_max).await;
    }
}

const IDENTITY: &str = "identity";

/// The directory's incarnation and the node id, 0 if it has none yet.
fn identity(disk: &dyn Disk) -> io::Result<(Uuid, u64)> {
    if disk.exists(IDENTITY)? {
        let bytes = disk.open(IDENTITY, OpenMode::Read)?.map(0, 24)?;
        let node = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
        return Ok((Uuid::from_bytes(&bytes[..16]).expect("16 bytes"), node));
    }
    let incarnation = seam::rng::random_uuid();
    save(disk, incarnation, 0)?;
    Ok((incarnation, 0))
}

fn save(disk: &dyn Disk, incarnation: Uuid, node: u64) -> io::Result<()> {
    let file = disk.open("identity.new", OpenMode::Create)?;
    file.write_at(0, &[&incarnation.0[..], &node.to_le_bytes()].concat())?;
    file.sync_data()?;
    disk.rename("identity.new", IDENTITY)?;
    disk.sync_dir("")
}

/// Answers the calls.
struct Shell(OnceLock<Arc<RaftNode>>);

fn refusal(error: ProposeError) -> Refusal {
    match error {
        ProposeError::NotLeader(leader) => {
            Refusal::new(RefusalCode::NotLeader, leader.unwrap_or_default())
        }
        ProposeError::Busy => Refusal::new(RefusalCode::Busy, ""),
        other => Refusal::new(RefusalCode::Internal, other.to_string()),
    }
}

impl Shell {
    async fn answer(&self, peer: Arc<Peer>, request: Incoming) -> Result<Outgoing, Refusal> {
        let raft = self.0.get().expect("set before the server starts");
        let propose = |kind| async move {
            let proposed = raft.propose(pb::Proposal { kind: Some(kind) }).await;
            proposed.map(|(_, _, outcome)| outcome.kind).map_err(refusal)
        };
        let unexpected = || Refusal::new(RefusalCode::Internal, "another outcome than asked for");
        match request.method {
            OpenSession::METHOD => {
                let asked = request.decode::<OpenSession>()?;
                let kind = pb::proposal::Kind::OpenSession(pb::OpenSessionCmd {
                    client_nonce: asked.client_nonce,
                    host: asked.host,
                });
                match propose(kind).await? {
                    Some(pb::outcome::Kind::Session(reply)) => {
                        Ok(Outgoing::new::<OpenSession>(&reply))
                    }
                    _ => Err(unexpected()),
                }
            }
            SubmitBatch::METHOD => {
                let batch = request.decode::<SubmitBatch>()?;
                match propose(pb::proposal::Kind::Batch(batch)).await? {
                    Some(pb::outcome::Kind::Batch(reply)) => {
                        Ok(Outgoing::new::<SubmitBatch>(&reply))
                    }
                    _ => Err(unexpected()),
                }
            }
            _ => raft.handle(peer, request).await,
        }
    }
}

impl Handler for Shell {
    fn handle(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Incoming,
    ) -> Pin<Box<dyn Future<Output = Result<Outgoing, Refusal>> + Send>> {
        Box::pin(async move { self.answer(peer, request).await })
    }
}
