//! How long a client stands still when the leader dies: three masters, messages of about a millisecond, a
//! writer that creates, writes and syncs one small file after another. The leader is killed or loses its
//! power (nobody is told), comes back later, and so on.
//!
//! Checked: O7 (no gap reaches two seconds, of all seeds' gaps 99 % stay below one; the writer sees no error). Not checked:
//! what is in the files (`cluster_chaos` does), a client or chunkserver that dies with the leader.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::{stuck, violation};
use crate::harness::{Scenario, Share};
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{NodeContext, Options, World, frames};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::ROOT;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "failover",
    about: "the leader dies again and again under a writer",
    seeds: 5,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::FSYNCS,
        "fault: leader killed",
        "fault: leader lost its power",
        frames::UNANSWERED,
    ],
    run: |seed| Box::pin(run(seed)),
};

/// Gaps by their length, each counter's up to the time beside it, milliseconds.
const BUCKETS: [(u128, &str); 5] = [
    (500, "gaps below 0.5 s"),
    (800, "gaps of 0.5 to 0.8 s"),
    (1_000, "gaps of 0.8 to 1 s"),
    (2_000, "gaps of 1 to 2 s"),
    (u128::MAX, "gaps of 2 s and more"),
];

/// Two elections can follow one another when both candidates split the votes: of all seeds' gaps a hundredth may
/// be that long.
pub const GAPS: Share = Share {
    scenario: "failover",
    about: "gaps below 1 s",
    good: &[BUCKETS[0].1, BUCKETS[1].1, BUCKETS[2].1],
    bad: &[BUCKETS[3].1, BUCKETS[4].1],
    percent: 99,
};

/// Leaders that die in one run.
const DEATHS: usize = 20;
/// No gap may be as long as this.
const GAP_MAX: Duration = Duration::from_secs(2);
/// So long should a gap be at most, and so many of a run's may be longer: two elections can follow one
/// another when both candidates split the votes.
const GAP_USUAL: Duration = Duration::from_secs(1);
const LONG_GAPS_MAX: usize = 2;
/// Open flags.
const READ_WRITE: i32 = 2;

/// When the writer last got on, and the longest time it did not.
#[derive(Default)]
struct Progress {
    files: AtomicU64,
    last_ns: AtomicU64,
    longest_ns: AtomicU64,
    failed: Mutex<Option<Errno>>,
}

impl Progress {
    fn advance(&self) {
        let now = trace::now_ns();
        let gap = now - self.last_ns.swap(now, Relaxed).min(now);
        self.longest_ns.fetch_max(gap, Relaxed);
        self.files.fetch_add(1, Relaxed);
        stats::count(stats::FSYNCS);
    }

    /// Forgets gaps until now.
    fn begin(&self) {
        self.longest_ns.store(0, Relaxed);
    }

    /// The longest gap, also one that has not ended.
    fn longest(&self) -> Duration {
        let open = trace::now_ns().saturating_sub(self.last_ns.load(Relaxed));
        Duration::from_nanos(self.longest_ns.load(Relaxed).max(open))
    }
}

async fn run(seed: u64) {
    let mut options = Options::draw(seed).calm();
    (options.masters, options.chunkservers, options.clients) = (3, 3, 1);
    (options.data, options.parity, options.tiny) = (1, 1, false);
    (options.net.latency_us_min, options.net.latency_us_max) = (500, 1500);
    let world = World::new(options);
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let progress = Arc::new(Progress::default());
    let shown = progress.clone();
    mount(&world, 1, move |context, config| {
        let progress = shown.clone();
        Box::pin(async move {
            let client = connect(&context, &config).await;
            write_on(&context, &client, &progress).await;
        })
    });
    while progress.files.load(Relaxed) < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rng = Rng::new(seed).fork("failover");
    let mut gaps = Vec::new();
    for _ in 0..DEATHS {
        gaps.push(one(&world, &cluster, &progress, &mut rng).await);
    }
    judge(&mut gaps);
}

/// Who leads; one whose clock is wrong may be handing over just now.
async fn leader(world: &World, cluster: &Cluster) -> String {
    for _ in 0..100 {
        if let Some(leader) = cluster.leader_name(world) {
            return leader;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stuck("O7", "nobody leads within 2 s");
}

/// Kills one leader; how long the writer stood still.
async fn one(
    world: &Arc<World>,
    cluster: &Cluster,
    progress: &Progress,
    rng: &mut Rng,
) -> Duration {
    tokio::time::sleep(Duration::from_millis(rng.range(1_000, 1_400))).await;
    let leader = leader(world, cluster).await;
    progress.begin();
    if rng.chance(1, 2) {
        stats::count("fault: leader killed");
        world.kill(&leader);
    } else {
        stats::count("fault: leader lost its power");
        world.power_loss(&leader);
    }
    tokio::time::sleep(GAP_MAX + Duration::from_millis(500)).await;
    let gap = progress.longest();
    trace::line("-", &format!("the writer stood still for {} ms", gap.as_millis()));
    if let Some(errno) = progress.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        violation("O7", format!("the writer saw {errno:?} when {leader} died"));
    }
    world.restart(&leader).await;
    cluster.form(world).await;
    gap
}

fn judge(gaps: &mut [Duration]) {
    gaps.sort_unstable();
    for gap in gaps.iter() {
        let bucket = BUCKETS.iter().find(|(below, _)| gap.as_millis() < *below);
        stats::count(bucket.unwrap_or(&BUCKETS[4]).1);
    }
    let long = gaps.iter().filter(|gap| **gap >= GAP_USUAL).count();
    let longest = gaps.last().copied().unwrap_or_default();
    if longest >= GAP_MAX || long > LONG_GAPS_MAX {
        stuck("O7", format!("gaps of the writer: {gaps:?}"));
    }
}

async fn write_on(context: &NodeContext, client: &Arc<Client>, progress: &Progress) {
    progress.last_ns.store(trace::now_ns(), Relaxed);
    for number in 0.. {
        match write_one(client, number).await {
            Ok(()) => progress.advance(),
            Err(errno) => {
                context.say(&format!("file {number}: {errno:?}"));
                *progress.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(errno);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Larger than what goes into the metadata: chunkservers take part.
async fn write_one(client: &Arc<Client>, number: u64) -> Result<(), Errno> {
    let name = format!("file {number}");
    let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
    let (_, handle) = client.create(ROOT, name.as_bytes(), new).await?;
    let written = client.write(handle, 0, vec![number as u8; 8192].into()).await;
    let synced = match written {
        Ok(_) => client.fsync(handle, false).await,
        Err(errno) => Err(errno),
    };
    client.release(handle).await;
    synced
}
