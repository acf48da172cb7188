//! Wall clocks of masters jump by an hour, ahead or back, and later return: the leader's alone, or those of two of
//! three the same way. A client makes directories all the time; nothing else happens.
//!
//! Checked (rule B3): O7 (a leader whose clock alone jumped is another's follower within ten seconds, and stays one;
//! nobody leads in turns; no error and no gap beyond two seconds), O10 (directories are stamped within ten seconds of
//! the masters' median, or not earlier than before). Not checked: clocks that differ while faults strike
//! (`raft_chaos`, `frame_chaos`).

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{NodeContext, Options, Role, World};
use mooseng::client::{Client, NewNode};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use mooseng::pb::FileKind;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "wrong_clock",
    about: "masters' wall clocks jump by an hour under a writer",
    seeds: 4,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        "fault: the leader's clock jumps",
        "fault: two of three clocks jump",
        "leaders that gave up for their clock",
        "times checked",
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Jumps, and returns, in one run.
const STRIKES: u64 = 5;
const HOUR_MS: i64 = 3_600_000;
/// Another leads by then.
const HANDED_OVER: Duration = Duration::from_secs(10);
/// And then nothing changes for so long.
const WATCHED: Duration = Duration::from_secs(8);
/// Changes of the leader after a jump: it hands over, and perhaps to one that is not the last.
const CHANGES_MAX: usize = 2;
const GAP_MAX: Duration = Duration::from_secs(2);
/// How far a directory's time may be from the median.
const APART_MS_MAX: i64 = 10_000;
/// When most clocks jump, the masters may take so long to know it.
const TOLD: Duration = Duration::from_secs(2);

/// What the writer saw, and what it is held against.
struct Watch {
    world: Weak<World>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last_ns: u64,
    longest_ns: u64,
    /// The latest that the masters' median was so far: times never run back behind it.
    latest_ms: i64,
    /// Until when times may be the old median's.
    lenient_until_ns: u64,
}

impl Watch {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The median now, or what it was at its latest.
    fn look(&self) -> i64 {
        let Some(world) = self.world.upgrade() else { return 0 };
        let names = world.names(Role::Master);
        let mut clocks: Vec<i64> = names.iter().map(|name| world.wall_ms(name)).collect();
        clocks.sort_unstable();
        let mut seen = self.seen();
        seen.latest_ms = seen.latest_ms.max(clocks[clocks.len() / 2]);
        seen.latest_ms
    }

    /// A directory was made between the two moments.
    fn made(&self, began_ms: i64, time_ns: i64) {
        let (ended_ms, now, time_ms) = (self.look(), trace::now_ns(), time_ns / 1_000_000);
        let mut seen = self.seen();
        let gap = now.saturating_sub(seen.last_ns);
        (seen.longest_ns, seen.last_ns) = (seen.longest_ns.max(gap), now);
        let lenient = now < seen.lenient_until_ns;
        drop(seen);
        stats::count(stats::OPERATIONS);
        stats::count("times checked");
        let early = time_ms < began_ms - APART_MS_MAX && !lenient;
        if early || time_ms > ended_ms + APART_MS_MAX {
            violation(
                "O10",
                format!(
                    "made at {time_ms} ms by its time, the median was {began_ms} to {ended_ms}"
                ),
            );
        }
    }

    fn longest_gap(&self) -> Duration {
        let seen = self.seen();
        let open = trace::now_ns().saturating_sub(seen.last_ns);
        Duration::from_nanos(seen.longest_ns.max(open))
    }
}

async fn run(seed: u64) {
    let mut options = Options::draw(seed).calm();
    (options.masters, options.chunkservers, options.clients) = (3, 1, 1);
    (options.data, options.parity, options.tiny) = (1, 0, false);
    options.clock.offset_ms_max = options.clock.offset_ms_max.min(2_000);
    let world = World::new(options);
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let watch = Arc::new(Watch { world: Arc::downgrade(&world), seen: Mutex::default() });
    let writer = watch.clone();
    mount(&world, 1, move |context, config| {
        let watch = writer.clone();
        Box::pin(async move {
            let client = connect(&context, &config).await;
            write_on(&context, &client, &watch).await;
        })
    });
    while watch.seen().last_ns == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    watch.seen().longest_ns = 0;
    let mut rng = Rng::new(seed).fork("wrong clocks");
    for number in 0..STRIKES {
        // Each kind in each run.
        let two = number == 1 || number > 1 && rng.chance(1, 3);
        strike(&world, &cluster, &watch, &mut rng, two).await;
        let gap = watch.longest_gap();
        stats::add("ms of the longest gaps", gap.as_millis() as u64);
        if gap > GAP_MAX {
            stuck("O7", format!("the writer stood still for {gap:?}"));
        }
    }
}

/// Clocks jump, and after a while return.
async fn strike(world: &Arc<World>, cluster: &Cluster, watch: &Watch, rng: &mut Rng, two: bool) {
    tokio::time::sleep(Duration::from_millis(rng.range(500, 3_000))).await;
    let leader = leader(world, cluster).await;
    let by_ms = if rng.chance(1, 2) { HOUR_MS } else { -HOUR_MS };
    let mut struck = vec![leader.clone()];
    stats::count(if two {
        "fault: two of three clocks jump"
    } else {
        "fault: the leader's clock jumps"
    });
    if two {
        let others: Vec<String> =
            world.names(Role::Master).into_iter().filter(|name| *name != leader).collect();
        struck.push(others[rng.index(2)].clone());
        // Or it is the leader's that stays.
        if rng.chance(1, 2) {
            struck = others;
        }
    }
    let single = (!two).then_some(&leader);
    jump(world, watch, &struck, by_ms);
    settle(world, cluster, single).await;
    jump(world, watch, &struck, -by_ms);
    settle(world, cluster, None).await;
}

fn jump(world: &Arc<World>, watch: &Watch, struck: &[String], by_ms: i64) {
    if struck.len() > 1 {
        watch.seen().lenient_until_ns = trace::now_ns() + TOLD.as_nanos() as u64;
    }
    for name in struck {
        world.step_clock(name, by_ms);
    }
    watch.look();
}

async fn leader(world: &Arc<World>, cluster: &Cluster) -> String {
    for _ in 0..100 {
        if let Some(name) = cluster.leader_name(world) {
            return name;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stuck("O7", "nobody leads")
}

/// Watches who leads: the wrong one no longer, if there is one, and nobody in turns.
async fn settle(world: &Arc<World>, cluster: &Cluster, wrong: Option<&String>) {
    let began = trace::now_ns();
    let passed = || Duration::from_nanos(trace::now_ns() - began);
    let mut terms = BTreeMap::new();
    let mut given_up = None;
    while passed() < HANDED_OVER + WATCHED {
        if let Some(name) = cluster.leader_name(world) {
            let term = cluster.get(&name).map(|node| node.term());
            if wrong.is_some_and(|wrong| *wrong != name) {
                given_up.get_or_insert(passed());
            }
            if let Some(after) = given_up.filter(|_| wrong == Some(&name)) {
                violation("O7", format!("{name} leads again, {after:?} after its clock jumped"));
            }
            terms.insert(term, name);
        }
        if wrong.is_some() && given_up.is_none() && passed() > HANDED_OVER {
            let wrong = wrong.map_or("nobody", String::as_str);
            stuck("O7", format!("{wrong} leads {HANDED_OVER:?} after its clock jumped"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if let Some(after) = given_up {
        stats::count("leaders that gave up for their clock");
        stats::add("ms until another led", after.as_millis() as u64);
    }
    if terms.len() > CHANGES_MAX + 1 {
        violation("O7", format!("leaders change although nothing happens: {terms:?}"));
    }
}

async fn write_on(context: &NodeContext, client: &Arc<Client>, watch: &Watch) {
    let new = NewNode { kind: FileKind::Directory, mode: 0o755, uid: 1, gid: 1, rdev: 0 };
    for number in 0.. {
        let began_ms = watch.look();
        let name = format!("directory {number}");
        match client.mkdir(ROOT, name.as_bytes(), new).await {
            Ok(attr) => watch.made(began_ms, attr.ctime_ns),
            Err(errno) => fail(context, &name, errno),
        }
        if let Err(errno) = client.rmdir(ROOT, name.as_bytes()).await {
            fail(context, &name, errno);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn fail(context: &NodeContext, name: &str, errno: Errno) {
    context.say(&format!("{name}: {errno:?}"));
    violation("O7", format!("{name}: {errno:?}, although no machine failed"));
}
