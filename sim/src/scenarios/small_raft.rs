//! The small world of Raft: three masters on a calm network, programs of one and of two steps (a proposal, or
//! the death of the leader), and one machine that loses its power at the n-th change of its disk after the
//! program began, with one fate of what was not synced: nothing kept, everything, each choice of up to two
//! units, each unit torn.
//!
//! The seed is the number of the case, so that seeds 1 to [`CASES`] are the whole world; each has its own times. A
//! case whose program does not reach that change, or has not that many fates, is counted as one beyond the end. The
//! table must reach that end: a crash at its last change, or a fate that has no place in it, fails the run.
//!
//! Checked: O4, O5, O7, O13, O10; what was answered is there on every master. Not checked: longer programs,
//! other faults (`raft_chaos`).

use crate::cluster::raft_only::Masters;
use crate::cluster::{CLUSTER, client_ip, master_addresses};
use crate::disk::{Chosen, Outcome};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::persist::Persist;
use crate::oracles::raft::Raft;
use crate::stats;
use crate::world::{NodeContext, NodeSpec, Options, Power, Role, World};
use mooseng::ids::ROOT;
use mooseng::limits::Limits;
use mooseng::namespace;
use mooseng::pb::{self, op, query};
use mooseng::seam;
use mooseng::wire::calls::{OpenSession, SubmitBatch};
use mooseng::wire::{Call, CallError, Identity, Pool, RefusalCode, Role as WireRole};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Programs, machines, changes of the disk and fates of the table of cases.
const PROGRAMS: [&[Step]; 6] = [
    &[Step::Propose],
    &[Step::LeaderDies],
    &[Step::Propose, Step::Propose],
    &[Step::Propose, Step::LeaderDies],
    &[Step::LeaderDies, Step::Propose],
    &[Step::LeaderDies, Step::LeaderDies],
];
const MACHINES: u64 = 3;
const CHANGES: u64 = 40;
const FATES: u64 = 30;
/// All of them.
pub const CASES: u64 = PROGRAMS.len() as u64 * MACHINES * CHANGES * FATES;

pub const SCENARIO: Scenario = Scenario {
    name: "small_raft",
    about: "three masters, small programs, a power loss at each change of a disk with each fate",
    seeds: 240,
    limit: Duration::from_secs(200),
    must_count: &[
        "cases crashed",
        "cases beyond the last change",
        "cases beyond the last fate",
        "O5 votes checked",
        "states compared",
    ],
    run: |seed| Box::pin(run(seed)),
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Propose,
    LeaderDies,
}

/// One case of the table.
#[derive(Debug)]
struct Case {
    program: &'static [Step],
    /// 0 is the one that leads when the program begins.
    machine: usize,
    change: u64,
    fate: usize,
}

impl Case {
    /// Spread over the table, so that any few seeds see something of everything.
    fn of(seed: u64) -> Case {
        // A step without common divisor with the number of cases visits all of them; the golden section of it
        // spreads best.
        let number = (seed.wrapping_sub(1) % CASES) * 13_349 % CASES;
        let (rest, fate) = (number / FATES, (number % FATES) as usize);
        let (rest, change) = (rest / CHANGES, rest % CHANGES);
        let (program, machine) = (rest / MACHINES, (rest % MACHINES) as usize);
        Case { program: PROGRAMS[program as usize], machine, change, fate }
    }
}

async fn run(seed: u64) {
    let case = Case::of(seed);
    let calm = Options { masters: 3, clients: 1, tiny: true, ..Options::draw(1) }.calm();
    let world = World::new(Options { seed, ..calm });
    let masters = Masters::default();
    let watching = masters.clone();
    world.frames.watch(Persist::new(&world, move |leader, _| watching.majority(leader)));
    let raft = Raft::new(&world);
    world.frames.watch(raft.clone());
    masters.appliers.add(Arc::new(raft));
    masters.add(&world);
    masters.form(&world).await;
    let done = Arc::new(Mutex::new(Progress::default()));
    let victim = victim(&world, &masters, &case);
    let disk = world.disks(&victim)[0].clone();
    disk.die_after(case.change);
    start(&world, &masters, case.program, &done);
    stats::count(crash(&world, &victim, &case, &done).await);
    disk.revive();
    finish(&world, &done).await;
    converge(&world, &masters).await;
    check(&world, &masters, &done);
}

fn victim(world: &World, masters: &Masters, case: &Case) -> String {
    let mut names = world.names(Role::Master);
    let leads = |name: &String| masters.get(name).is_some_and(|node| node.is_leader());
    names.sort_by_key(|name| !leads(name));
    names[case.machine].clone()
}

/// What the program has done.
#[derive(Default)]
struct Progress {
    answered: Vec<String>,
    over: bool,
}

type Done = Arc<Mutex<Progress>>;

fn progress<T>(done: &Done, look: impl FnOnce(&mut Progress) -> T) -> T {
    look(&mut done.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits for the change at which the disk stops, and takes the power away. What came of it, as a counter.
async fn crash(world: &World, victim: &str, case: &Case, done: &Done) -> &'static str {
    let disk = world.disks(victim)[0].clone();
    let mut calm = 0;
    while !disk.is_dead() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        // What a program sets off goes on for a while.
        calm += u64::from(progress(done, |progress| progress.over));
        if calm > 300 {
            return "cases beyond the last change";
        }
    }
    let (sectors, names) = disk.unsynced();
    let mut fates = vec![Outcome::DropAll, Outcome::KeepAll];
    fates.extend(Chosen::all(sectors + names).into_iter().map(Outcome::Only));
    if case.change + 1 == CHANGES {
        violation("table", format!("{case:?}: its changes go on beyond the table"));
    }
    if fates.len() as u64 > FATES {
        violation("table", format!("{case:?}: {} fates of {sectors} + {names} units", fates.len()));
    }
    let Some(fate) = fates.get(case.fate) else { return "cases beyond the last fate" };
    world.power_loss_as(victim, *fate);
    disk.revive();
    tokio::time::sleep(Duration::from_millis(40)).await;
    world.restart(victim).await;
    "cases crashed"
}

/// O7: the program ends.
async fn finish(world: &World, done: &Done) {
    for name in world.names(Role::Master) {
        world.restart(&name).await;
    }
    for _ in 0..600 {
        if progress(done, |progress| progress.over) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stuck("O7", "the program does not end within 30 s");
}

/// O7: all masters run and have applied the same.
async fn converge(world: &World, masters: &Masters) {
    let names = world.names(Role::Master);
    let mut applied = Vec::new();
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for name in &names {
            world.restart(name).await;
        }
        let nodes = names.iter().filter_map(|name| masters.get(name));
        applied = nodes.map(|node| node.applied()).collect();
        let leads = names.iter().filter_map(|n| masters.get(n)).any(|node| node.is_leader_ready());
        if leads && applied.len() == names.len() && applied.iter().all(|at| *at == applied[0]) {
            return;
        }
    }
    stuck("O7", format!("masters do not converge within 30 s: {applied:?}"));
}

fn check(world: &World, masters: &Masters, done: &Done) {
    let answered = progress(done, |progress| progress.answered.clone());
    for master in world.names(Role::Master) {
        let view = masters.get(&master).expect("converged").view();
        if let Err(broken) = namespace::check(&view) {
            violation("O10", format!("{master}: {broken}"));
        }
        for name in &answered {
            let lookup = pb::LookupQuery { parent: ROOT.0, name: name.clone().into() };
            let query = pb::Query { query: Some(query::Query::Lookup(lookup)) };
            let found = namespace::query(&view, &world.limits(), &query).expect("tables");
            if found.errno != 0 {
                violation("O3", format!("{master}: {name} was answered and is not there"));
            }
        }
    }
}

// ---- the program ----

fn start(world: &Arc<World>, masters: &Masters, program: &'static [Step], done: &Done) {
    let (own, masters, done) = (Arc::downgrade(world), masters.clone(), done.clone());
    let limits = world.limits();
    world.add_node(NodeSpec {
        name: "c1".to_owned(),
        role: Role::Client,
        ip: client_ip(1),
        disks: vec![],
        start: Arc::new(move |context| {
            let (own, masters, done) = (own.clone(), masters.clone(), done.clone());
            let mut client = Client::new(&context, limits.clone());
            Box::pin(async move {
                client.open().await;
                for step in program {
                    match step {
                        Step::Propose => {
                            let name = client.create().await;
                            progress(&done, |progress| progress.answered.push(name));
                        }
                        Step::LeaderDies => {
                            let world = own.upgrade().expect("the world outlives its machines");
                            leader_dies(&world, &masters).await;
                        }
                    }
                }
                progress(&done, |progress| progress.over = true);
                std::future::pending().await
            })
        }),
    });
}

/// The leader is killed, and comes back when another has had the time to take over.
async fn leader_dies(world: &Arc<World>, masters: &Masters) {
    let leads = |name: &String| {
        world.power(name) == Power::Up && masters.get(name).is_some_and(|node| node.is_leader())
    };
    let Some(leader) = world.names(Role::Master).into_iter().find(leads) else { return };
    world.kill(&leader);
    tokio::time::sleep(Duration::from_millis(900)).await;
    world.restart(&leader).await;
}

struct Client {
    pool: Arc<Pool>,
    masters: Vec<String>,
    turn: usize,
    session: pb::OpenSessionReply,
    seq: u64,
}

impl Client {
    fn new(context: &NodeContext, limits: Arc<Limits>) -> Client {
        let identity = Identity {
            cluster: Some(CLUSTER),
            role: WireRole::Client,
            node: 0,
            incarnation: context.incarnation,
        };
        let (pool, masters) = (Pool::new(identity, limits), master_addresses(3));
        Client { pool, masters, turn: 0, session: pb::OpenSessionReply::default(), seq: 0 }
    }

    async fn call<C: Call>(&mut self, request: &C::Request) -> C::Reply {
        let mut target = self.masters[0].clone();
        loop {
            let deadline = Duration::from_millis(600);
            match self.pool.call::<C>(&target, request, vec![], deadline).await {
                Ok((reply, _)) => return reply,
                Err(CallError::Refused(refusal))
                    if refusal.code == RefusalCode::NotLeader && !refusal.message.is_empty() =>
                {
                    target = refusal.message;
                }
                Err(_) => {
                    self.turn += 1;
                    target = self.masters[self.turn % self.masters.len()].clone();
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn open(&mut self) {
        let request =
            pb::OpenSessionRequest { client_nonce: seam::rng::random_u64(), host: "sim".into() };
        self.session = self.call::<OpenSession>(&request).await;
    }

    async fn create(&mut self) -> String {
        self.seq += 1;
        let name = format!("f{}", self.seq);
        let create = op::Op::Create(pb::CreateOp {
            parent: ROOT.0,
            name: name.clone().into(),
            inode: self.session.first_inode + self.seq,
            kind: pb::FileKind::Regular.into(),
            mode: 0o644,
            ..pb::CreateOp::default()
        });
        let batch = pb::Batch {
            session: self.session.session,
            first_seq: self.seq,
            acked_seq: self.seq - 1,
            ops: vec![pb::Op { op: Some(create) }],
        };
        let reply = self.call::<SubmitBatch>(&batch).await;
        if reply.errno != 0 || reply.results.iter().any(|result| result.errno != 0) {
            violation("O1", format!("creating {name}: {reply:?}"));
        }
        name
    }
}
