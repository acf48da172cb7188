//! Real nodes on loopback, with real disks. The simulator does the rest.

use super::*;
use crate::pb::proposal::Kind;
use crate::seam::real::RealDisk;
use crate::wire::{Handler, Identity, Role, Server};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

const CLUSTER: Uuid = Uuid([9; 16]);

/// Hands calls to the node once it is there.
#[derive(Default)]
struct Door(OnceLock<Arc<RaftNode>>);

impl Handler for Door {
    fn handle(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Incoming,
    ) -> Pin<Box<dyn Future<Output = Result<Outgoing, Refusal>> + Send>> {
        Box::pin(async move {
            match self.0.get() {
                Some(node) => node.handle(peer, request).await,
                None => Err(Refusal::new(crate::wire::RefusalCode::Busy, "starting")),
            }
        })
    }
}

struct Running {
    node: Arc<RaftNode>,
    server: Server,
    pool: Arc<Pool>,
    address: String,
}

/// Where one master lives across restarts.
#[derive(Clone)]
struct Home {
    dir: PathBuf,
    node: u64,
    incarnation: Uuid,
    address: String,
    limits: Arc<Limits>,
}

impl Home {
    fn disk(&self) -> Arc<dyn Disk> {
        RealDisk::create(&self.dir).expect("a directory")
    }

    fn identity(&self) -> Identity {
        Identity { cluster: Some(CLUSTER), role: Role::Master, node: self.node, incarnation: 1 }
    }

    async fn start(&self, bootstrap: bool) -> Result<Running, StartError> {
        let door = Arc::new(Door::default());
        let pool = Pool::new(self.identity(), self.limits.clone());
        let listen = if self.address.is_empty() { "127.0.0.1:0" } else { &self.address };
        let server =
            Server::start(listen, self.identity(), self.limits.clone(), door.clone()).await;
        let server = server.expect("listens");
        let address = server.local_addr().to_string();
        let config = RaftConfig {
            node: NodeId(self.node),
            cluster: CLUSTER,
            incarnation: self.incarnation,
            address: address.clone(),
            limits: self.limits.clone(),
            disk: self.disk(),
            bootstrap,
            fatal: Arc::new(|line| panic!("{line}")),
            observe: None,
        };
        let node = match RaftNode::start(config, pool.clone()).await {
            Ok(node) => node,
            Err(error) => {
                server.stop().await;
                return Err(error);
            }
        };
        assert!(door.0.set(node.clone()).is_ok());
        Ok(Running { node, server, pool, address })
    }
}

impl Running {
    async fn stop(self) {
        self.node.shutdown().await;
        self.pool.close();
        self.server.stop().await;
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mooseng-raft-{name}-{}", std::process::id()));
    let _ = remove(&dir);
    dir
}

#[allow(clippy::disallowed_methods)]
fn remove(dir: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(dir)
}

fn home(name: &str, node: u64, limits: Limits) -> Home {
    Home {
        dir: scratch(&format!("{name}-{node}")),
        node,
        incarnation: Uuid([node as u8; 16]),
        address: String::new(),
        limits: Arc::new(limits),
    }
}

fn session(nonce: u64) -> pb::Proposal {
    let host = "x".repeat(200);
    pb::Proposal { kind: Some(Kind::OpenSession(pb::OpenSessionCmd { client_nonce: nonce, host })) }
}

fn init() -> pb::Proposal {
    pb::Proposal {
        kind: Some(Kind::InitCluster(pb::InitClusterCmd {
            cluster: CLUSTER.bytes(),
            default_layout: Some(pb::Layout { data: 1, parity: 1 }),
            ..Default::default()
        })),
    }
}

fn register(home: &Home) -> pb::Proposal {
    pb::Proposal {
        kind: Some(Kind::RegisterMaster(pb::RegisterMasterCmd {
            incarnation: home.incarnation.bytes(),
            address: home.address.clone(),
            node: home.node,
        })),
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

async fn leading(running: &Running) {
    until("a ready leader", || running.node.is_leader_ready()).await;
}

#[tokio::test]
async fn one_master_answers_and_remembers() {
    let home = home("one", 1, Limits::tiny());
    prepare(&home.disk(), &home.limits).expect("an empty log");
    let running = home.start(true).await.expect("starts");
    leading(&running).await;
    running.node.propose(init()).await.expect("initialised");
    for nonce in 1..400 {
        let (_, index, outcome) = running.node.propose(session(nonce)).await.expect("proposed");
        assert_eq!(outcome.errno, 0);
        assert!(running.node.applied() >= index);
    }
    let (_, read) = running.node.read_index().await.expect("reads");
    assert_eq!(read, running.node.applied());
    let hash = running.node.with_namespace(|namespace| namespace.db().hash());
    running.stop().await;
    // Long enough that checkpoints were made and the log purged behind them.
    assert!(wal::inspect(&*home.disk()).expect("readable").purged.is_some());

    let again = home.start(true).await.expect("starts again");
    leading(&again).await;
    assert_eq!(again.node.with_namespace(|namespace| namespace.db().hash()), hash);
    again.stop().await;

    // Rule B4: neither a lost log nor one that was rolled back goes unnoticed, with tables or without.
    remove(&home.dir.join("wal")).expect("removed");
    let refused = home.start(true).await.err().expect("refused");
    assert!(matches!(refused, StartError::Lost(_)), "{refused}");
    prepare(&home.disk(), &home.limits).expect("an empty log");
    let refused = home.start(false).await.err().expect("refused");
    assert!(refused.to_string().contains("before the checkpoint"), "{refused}");
    remove(&home.dir).expect("removed");
    let refused = home.start(true).await.err().expect("the founder's number, and nothing else");
    assert!(matches!(refused, StartError::Lost(_)), "{refused}");
    remove(&home.dir).expect("removed");
}

#[tokio::test]
async fn many_proposals_share_an_entry() {
    let home = home("many", 1, Limits::production());
    prepare(&home.disk(), &home.limits).expect("an empty log");
    let running = home.start(true).await.expect("starts");
    leading(&running).await;
    running.node.propose(init()).await.expect("initialised");
    let before = running.node.metrics();
    let clients: Vec<_> = (0..64u64)
        .map(|client| {
            let node = running.node.clone();
            seam::spawn(async move {
                for nonce in 0..50 {
                    node.propose(session(1 + client * 1000 + nonce)).await.expect("proposed");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("done");
    }
    let after = running.node.metrics();
    let operations = after.operations - before.operations;
    let fsyncs = after.fsyncs - before.fsyncs;
    assert_eq!(operations, 64 * 50);
    assert!(operations > 8 * fsyncs, "{operations} operations, {fsyncs} fsyncs");
    running.stop().await;
    remove(&home.dir).expect("removed");
}

async fn join_group(first: &Running, home: &mut Home) -> Running {
    prepare(&home.disk(), &home.limits).expect("an empty log");
    // Its address must be known before it runs: take a free port.
    let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    home.address = probe.local_addr().expect("an address").to_string();
    drop(probe);
    let masters = [first.address.clone()];
    let (node, cluster) = join(
        &Pool::new(Identity { node: 0, ..home.identity() }, home.limits.clone()),
        &masters,
        Some(CLUSTER),
        home.incarnation,
        &home.address,
        &home.limits,
    )
    .await
    .expect("joins");
    assert_eq!(cluster, CLUSTER);
    home.node = node.0;
    home.start(false).await.expect("starts")
}

#[tokio::test]
async fn masters_join_fail_over_and_leave() {
    let mut homes = [2, 3].map(|node| home("group", node, Limits::tiny()));
    let mut first_home = home("group", 1, Limits::tiny());
    prepare(&first_home.disk(), &first_home.limits).expect("an empty log");
    let first = first_home.start(true).await.expect("starts");
    first_home.address = first.address.clone();
    leading(&first).await;
    first.node.propose(init()).await.expect("initialised");
    first.node.propose(register(&first_home)).await.expect("registered");
    // Enough that the log was purged: the others need a snapshot.
    for nonce in 1..300 {
        first.node.propose(session(nonce)).await.expect("proposed");
    }
    let mut others = Vec::new();
    for home in &mut homes {
        others.push(join_group(&first, home).await);
    }
    until("three voters", || {
        first.node.members().iter().filter(|member| member.voter).count() == 3
    })
    .await;
    let (_, index, _) = first.node.propose(session(1000)).await.expect("proposed");
    until("applied everywhere", || others.iter().all(|o| o.node.applied() >= index)).await;
    let hashes = |nodes: &[Running]| -> Vec<u64> {
        nodes.iter().map(|o| o.node.with_namespace(|namespace| namespace.db().hash())).collect()
    };
    let hash = first.node.with_namespace(|namespace| namespace.db().hash());
    assert_eq!(hashes(&others), vec![hash, hash]);

    // The leader goes; one of the others takes over and serves.
    first.stop().await;
    until("a new leader", || others.iter().any(|o| o.node.is_leader_ready())).await;
    let leader = others.iter().find(|o| o.node.is_leader_ready()).expect("a leader");
    leader.node.propose(session(2000)).await.expect("proposed");
    let follower = others.iter().find(|o| !o.node.is_leader()).expect("a follower");
    let refused = follower.node.propose(session(2001)).await.expect_err("refused");
    assert_eq!(refused, ProposeError::NotLeader(Some(leader.address.clone())));

    // The first comes back, catches up, and is taken out again.
    let first = first_home.start(true).await.expect("starts again");
    let (_, index, _) = leader.node.propose(session(2002)).await.expect("proposed");
    until("caught up", || first.node.applied() >= index).await;
    leader.node.remove_master(NodeId(1)).await.expect("removed");
    assert_eq!(leader.node.members().len(), 2);
    leader.node.propose(session(2003)).await.expect("proposed");

    // A peer that lost its directory is refused under its old id.
    let wiped = Home { incarnation: Uuid([77; 16]), ..homes[0].clone() };
    let refused = leader.node.handle(
        Arc::new(Peer { identity: wiped.identity(), address: String::new() }),
        vote_request(&wiped, leader),
    );
    let refused = refused.await.expect_err("refused");
    assert_eq!(refused.code, crate::wire::RefusalCode::WrongIncarnation);
    for running in others.into_iter().chain([first]) {
        running.stop().await;
    }
    for home in homes.iter().chain([&first_home]) {
        remove(&home.dir).expect("removed");
    }
}

fn vote_request(from: &Home, to: &Running) -> Incoming {
    use crate::wire::{Call, calls};
    use prost::Message;
    let request = pb::RaftVoteRequest {
        vote: Some(pb::RaftVote { term: 1000, node: from.node, committed: false }),
        last_log: None,
        from_incarnation: from.incarnation.bytes(),
        to: to.node.core.node.0,
        to_incarnation: to.node.core.incarnation.bytes(),
    };
    Incoming {
        method: calls::RaftVote::METHOD,
        body: request.encode_to_vec().into(),
        payload: bytes::Bytes::new(),
        deadline: seam::now() + Duration::from_secs(1),
        memory: Default::default(),
    }
}
