//! One to five masters replicate the namespace while machines crash, lose power (all at once too) and the
//! network splits and loses frames. Clients create and unlink files of names nobody else uses, repeating each
//! batch until it is answered.
//!
//! Checked: O4, O5, O12, O13; every operation takes effect exactly once (a repeated create must not find its own
//! file); after healing a leader, every client served and all masters agree (O7), the namespace's invariants hold, and what was acknowledged is
//! there. Not checked: reads; membership changes beyond the first joins.

use crate::cluster::raft_only::Masters;
use crate::cluster::{CLUSTER, client_ip, master_addresses};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::liveness::{CONVERGED, Liveness};
use crate::oracles::persist::Persist;
use crate::oracles::raft::Raft;
use crate::rng::Rng;
use crate::world::inject::{Budget, chaos};
use crate::world::{NodeContext, NodeSpec, Options, Role, World};
use crate::{stats, trace};
use mooseng::ids::ROOT;
use mooseng::limits::Limits;
use mooseng::namespace;
use mooseng::pb::{self, op, query};
use mooseng::seam;
use mooseng::wire::calls::{OpenSession, SubmitBatch};
use mooseng::wire::{CallError, Identity, Pool, RefusalCode, Role as WireRole};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "raft_chaos",
    about: "masters replicate the namespace through kills, power losses and partitions",
    seeds: 30,
    limit: Duration::from_secs(300),
    must_count: &[
        stats::OPERATIONS,
        "states compared",
        "O5 entries checked",
        "O5 entries applied",
        "O5 votes checked",
        "O13 votes checked",
        "O13 appends checked",
        "O13 commits checked",
        "fault: kill",
        "fault: power loss",
        "fault: blackout",
        "fault: pause",
        "fault: partition",
        "fault: one-way cut",
        "fault: isolation",
        "fault: lag",
        "fault: clock step",
        "fault: slow disk",
        "fault: lost sectors",
        "fault: request lost",
        "fault: reply lost",
        "fault: frame doubled",
        "fault: frame delayed",
        "fault: connection cut",
        "fault: handler dropped",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Whether each name must exist; `None` while an operation on it has no answer yet.
type Ledger = Arc<Mutex<BTreeMap<String, Option<bool>>>>;

async fn run(seed: u64) {
    let world = World::new(Options { parity: 1, ..Options::draw(seed).with_points() });
    let masters = Masters::default();
    let watching = masters.clone();
    world.frames.watch(Persist::new(&world, move |leader, _| watching.majority(leader)));
    let raft = Raft::new(&world);
    world.frames.watch(raft.clone());
    masters.appliers.add(Arc::new(raft));
    masters.add(&world);
    masters.form(&world).await;
    let (ledger, liveness) = (Ledger::default(), Liveness::default());
    for number in 1..=world.options.clients {
        let (ledger, liveness) = (ledger.clone(), liveness.clone());
        let options = world.options.clone();
        world.add_node(NodeSpec {
            name: format!("c{number}"),
            role: Role::Client,
            ip: client_ip(number),
            disks: vec![],
            start: Arc::new(move |context| {
                let client = Client::new(context, &options, (ledger.clone(), liveness.clone()));
                Box::pin(client.run())
            }),
        });
    }
    tokio::spawn(world.clone().supervise());
    let time = Duration::from_millis(world.options.chaos_ms);
    chaos(world.clone(), Budget::of(&world), time).await;
    let healed = world.heal().await;
    let masters_lead = || {
        let nodes = world.names(Role::Master).into_iter().filter_map(|name| masters.get(&name));
        nodes.into_iter().any(|node| node.is_leader_ready())
    };
    healed.is_led(masters_lead).await;
    let clients = world.names(Role::Client);
    liveness.all_served_again(&clients, healed, Duration::ZERO).await;
    clients.iter().for_each(|name| world.kill(name));
    converges(&world, &masters, healed.at_ns).await;
    check(&world, &masters, &ledger);
    world.count_disk_faults();
}

/// O7: all masters are voters and have applied the same log.
async fn converges(world: &World, masters: &Masters, healed: u64) {
    let names = world.names(Role::Master);
    let mut seen = Vec::new();
    while Duration::from_nanos(trace::now_ns() - healed) < CONVERGED {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let nodes: Vec<_> = names.iter().filter_map(|name| masters.get(name)).collect();
        seen = nodes.iter().map(|node| (node.applied(), node.majority())).collect();
        let all = seen.len() == names.len() && seen.iter().all(|one| *one == seen[0]);
        if all && seen[0].1 == names.len() / 2 + 1 {
            return;
        }
    }
    stuck("O7", format!("masters do not converge within 60 s: (applied, majority) {seen:?}"));
}

trait Majority {
    fn majority(&self) -> usize;
}

impl Majority for mooseng::raft::RaftNode {
    fn majority(&self) -> usize {
        self.members().iter().filter(|member| member.voter).count() / 2 + 1
    }
}

fn check(world: &World, masters: &Masters, ledger: &Ledger) {
    for name in world.names(Role::Master) {
        let view = masters.get(&name).expect("converged").view();
        if let Err(broken) = namespace::check(&view) {
            violation("O10", format!("{name}: {broken}"));
        }
        for (file, exists) in ledger.lock().expect("ledger").iter() {
            let lookup = pb::LookupQuery { parent: ROOT.0, name: file.clone().into() };
            let query = pb::Query { query: Some(query::Query::Lookup(lookup)) };
            let found = namespace::query(&view, &world.limits(), &query).expect("tables");
            let found = found.errno == 0;
            if exists.is_some_and(|exists| exists != found) {
                violation("O3", format!("{name}: {file} acknowledged as {exists:?}, is {found}"));
            }
        }
    }
}

/// One mount's session.
struct Client {
    context: NodeContext,
    masters: Vec<String>,
    limits: Arc<Limits>,
    ledger: Ledger,
    liveness: Liveness,
    rng: Rng,
    leader: String,
    pool: Arc<Pool>,
}

/// A session as its client sees it.
struct Session {
    id: u64,
    next_seq: u64,
    inodes: std::ops::Range<u64>,
    mine: Vec<String>,
    names: u64,
}

impl Client {
    fn new(
        context: NodeContext,
        options: &Options,
        (ledger, liveness): (Ledger, Liveness),
    ) -> Client {
        let masters = master_addresses(options.masters);
        let limits = options.limits();
        let rng = Rng::new(options.seed).fork(&format!("{} {}", context.name, context.incarnation));
        let identity = Identity {
            cluster: Some(CLUSTER),
            role: WireRole::Client,
            node: 0,
            incarnation: context.incarnation,
        };
        let pool = Pool::new(identity, limits.clone());
        Client { leader: masters[0].clone(), masters, limits, ledger, liveness, rng, pool, context }
    }

    async fn run(mut self) {
        loop {
            let mut session = self.open().await;
            self.context.say(&format!("session {}", session.id));
            while self.work(&mut session).await {}
        }
    }

    /// Calls the leader until it answers.
    async fn call<C: mooseng::wire::Call>(&mut self, request: &C::Request) -> C::Reply {
        loop {
            let call =
                self.pool.call::<C>(&self.leader, request, vec![], Duration::from_millis(800));
            match call.await {
                Ok((reply, _)) => return reply,
                Err(CallError::Refused(refusal))
                    if refusal.code == RefusalCode::NotLeader && !refusal.message.is_empty() =>
                {
                    self.leader = refusal.message;
                }
                Err(_) => self.leader = self.rng.pick(&self.masters).clone(),
            }
            let pause = Duration::from_millis(self.rng.range(1, 60));
            tokio::time::sleep(pause).await;
        }
    }

    async fn open(&mut self) -> Session {
        let request =
            pb::OpenSessionRequest { client_nonce: seam::rng::random_u64(), host: "sim".into() };
        let reply = self.call::<OpenSession>(&request).await;
        let inodes = reply.first_inode..reply.first_inode + u64::from(reply.inode_count);
        Session { id: reply.session, next_seq: 1, inodes, mine: vec![], names: 0 }
    }

    /// Sends one batch until it is answered. False when the session is over.
    async fn work(&mut self, session: &mut Session) -> bool {
        if self.context.skips() {
            tokio::time::sleep(Duration::from_millis(self.rng.range(1, 60))).await;
            return true;
        }
        let since = trace::now_ns();
        let ops = self.draw(session);
        let batch = pb::Batch {
            session: session.id,
            first_seq: session.next_seq,
            acked_seq: session.next_seq - 1,
            ops: ops.iter().map(|op| pb::Op { op: Some(op.clone()) }).collect(),
        };
        let reply = self.call::<SubmitBatch>(&batch).await;
        if reply.errno != 0 {
            violation("O1", format!("session {}: batch refused: {reply:?}", session.id));
        }
        self.context.did(since, "batch", &format!("{} operations", ops.len()));
        session.next_seq += ops.len() as u64;
        self.liveness.served(&self.context.name, since);
        for (op, result) in ops.iter().zip(&reply.results) {
            self.learn(session, op, result);
            stats::count(stats::OPERATIONS);
            // An answered metadata operation is durable: it counts as a synced one.
            stats::count(stats::FSYNCS);
        }
        true
    }

    fn note(&self, name: &[u8], exists: Option<bool>) {
        let name = String::from_utf8_lossy(name).into_owned();
        self.ledger.lock().expect("ledger").insert(name, exists);
    }

    fn draw(&mut self, session: &mut Session) -> Vec<op::Op> {
        let count = self.rng.range(1, self.limits.batch_ops_max.min(16) as u64 + 1);
        let mut ops = Vec::new();
        for _ in 0..count {
            let unlink = !session.mine.is_empty() && self.rng.chance(1, 3);
            let op = if unlink {
                let at = self.rng.index(session.mine.len());
                let name = session.mine.swap_remove(at).into_bytes();
                self.note(&name, None);
                op::Op::Unlink(pb::UnlinkOp { parent: ROOT.0, name: name.into(), pin: false })
            } else if let Some(inode) = session.inodes.next() {
                session.names += 1;
                let name = format!("{}-{}-{}", self.context.name, session.id, session.names);
                self.note(name.as_bytes(), None);
                op::Op::Create(pb::CreateOp {
                    parent: ROOT.0,
                    name: name.into(),
                    inode,
                    kind: pb::FileKind::Regular.into(),
                    mode: 0o644,
                    ..pb::CreateOp::default()
                })
            } else {
                ops.push(op::Op::AllocInodes(pb::AllocInodesOp { count: 16 }));
                break;
            };
            ops.push(op);
        }
        ops
    }

    fn learn(&self, session: &mut Session, op: &op::Op, result: &pb::OpResult) {
        let fresh = |what: &str, name: &[u8]| {
            if result.errno != 0 {
                let (name, errno) = (String::from_utf8_lossy(name), result.errno);
                violation("O1", format!("{what} {name}, a name of its own: errno {errno}"));
            }
        };
        match op {
            op::Op::Create(create) => {
                fresh("create", &create.name);
                session.mine.push(String::from_utf8_lossy(&create.name).into_owned());
                self.note(&create.name, Some(true));
            }
            op::Op::Unlink(unlink) => {
                fresh("unlink", &unlink.name);
                self.note(&unlink.name, Some(false));
            }
            _ => {
                fresh("alloc", b"inodes");
                session.inodes =
                    result.first_inode..result.first_inode + u64::from(result.inode_count);
            }
        }
    }
}
