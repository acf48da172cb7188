//! One of a chunkserver's three disks hangs under appends, more of them than the server has memory or room for.
//!
//! Checked: appends to its other disks meet their deadline, and a connection all of whose calls hang is not given up:
//! they end at their own deadline (O7). Not checked: what is written (`store_model`, `cluster_chaos`).

use crate::cluster::full::errand;
use crate::cluster::{CLUSTER, chunkserver_ip};
use crate::disk::{DISK_BYTES, SimDisk};
use crate::failure::violation;
use crate::harness::Scenario;
use crate::plan::{self, FaultClass};
use crate::rng::{Ratio, Rng};
use crate::stats;
use crate::world::{NodeContext, NodeSpec, Options, Role, World};
use bytes::Bytes;
use mooseng::checksum::block_crcs;
use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::ids::{ChunkId, Generation};
use mooseng::limits::{BLOCK_BYTES, Limits};
use mooseng::pb;
use mooseng::store::ReplicaId;
use mooseng::wire::{CallError, Identity, Pool, RefusalCode, Role as WireRole, calls};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "hung_disk",
    about: "one of a chunkserver's disks hangs under appends: the others go on, connections live",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &[
        "appends that hang",
        "appends refused by a full queue",
        "appends beside a disk that hangs",
    ],
    run: |seed| Box::pin(run(seed)),
};

const PORT: u16 = 9422;
const DISKS: usize = 3;
/// Replicas, spread over the disks.
const REPLICAS: u64 = 24;
/// A call on the disk that hangs takes up to this long.
const HANGS_MS: u64 = 600_000;
/// Short appends at once on one connection: more than a server carries out of one.
const HELD_BACK: usize = 80;
/// Within which those are to be answered; longer than a silent peer is borne.
const HELD_BACK_DEADLINE: Duration = Duration::from_secs(6);
/// Appends of the greatest length for the disk that hangs: more than its queue takes.
const LONG: usize = 20;
const LONG_BYTES: usize = 4 << 20;
/// Appends to the other disks meanwhile, one after another.
const BESIDE: usize = 16;
const BESIDE_BYTES: usize = 1 << 20;

async fn run(seed: u64) {
    let drawn = Options { masters: 1, chunkservers: 1, clients: 1, ..Options::draw(seed) };
    let world = World::new(Options { tiny: false, ..drawn.calm() });
    add_server(&world);
    let appends = errand(&world, 1, move |context, _| async move {
        program(&context, &mut Rng::new(seed).fork("appends")).await;
    });
    appends.ends(Duration::from_secs(250), "the appends do not end").await;
}

/// Without masters: it serves what it has.
fn add_server(world: &Arc<World>) {
    let limits = world.limits();
    let disk = |number| SimDisk::new(&format!("s1-{number}"), DISK_BYTES, world.options.seed);
    let start = move |context: NodeContext| {
        let config = ChunkserverConfig {
            listen: format!("{}:{PORT}", context.ip),
            masters: vec![],
            limits: limits.clone(),
            cluster: Some(CLUSTER),
            ..ChunkserverConfig::default()
        };
        Box::pin(async move {
            match Chunkserver::start(config, context.disks.clone()).await {
                Ok(_running) => pending().await,
                Err(error) => context.say(&format!("does not run: {error}")),
            }
        }) as std::pin::Pin<Box<dyn Future<Output = ()>>>
    };
    let (name, role, ip) = ("s1".to_owned(), Role::Chunkserver, chunkserver_ip(1));
    let disks = (0..DISKS).map(disk).collect();
    world.add_node(NodeSpec { name, role, ip, disks, start: Arc::new(start) });
}

async fn program(context: &NodeContext, rng: &mut Rng) {
    let world = context.world.upgrade().expect("the world outlives its machines");
    let limits = world.limits();
    place(&connect(context, &limits)).await;
    let hangs = world.disks("s1")[rng.index(DISKS)].clone();
    let is_there = |chunk: &u64| {
        let name = format!("/{chunk:016x}-");
        hangs.paths().iter().any(|path| path.contains(&name))
    };
    let (there, elsewhere): (Vec<u64>, Vec<u64>) = (1..=REPLICAS).partition(is_there);
    let hung = plan::strikes(FaultClass::SlowDisk);
    if hung {
        hangs.set_faults(|faults| {
            (faults.slow, faults.slow_ms_max) = (Ratio::one_in(1), HANGS_MS);
        });
    }
    held_back(&connect(context, &limits), *rng.pick(&there), hung).await;
    let (long, beside) = (connect(context, &limits), connect(context, &limits));
    let pause = Duration::from_millis(rng.range(1, 100));
    let deadline = limits.chunk_write_deadline;
    tokio::join!(
        appends_that_hang(&long, &there, pause, deadline),
        appends_beside(&beside, &elsewhere, deadline),
    );
}

/// With connections of its own.
fn connect(context: &NodeContext, limits: &Arc<Limits>) -> Arc<Pool> {
    let (cluster, incarnation) = (Some(CLUSTER), context.incarnation);
    let me = Identity { cluster, role: WireRole::Client, node: 0, incarnation };
    Pool::new(me, limits.clone())
}

/// Appends at the end of the replica's first `blocks` blocks.
async fn append(
    pool: &Arc<Pool>,
    (chunk, blocks): (u64, usize),
    bytes: usize,
    deadline: Duration,
) -> Result<(), CallError> {
    let (chunk, generation) = (ChunkId(chunk), Generation(1));
    let id = ReplicaId { chunk, generation, shard: 0, data_shards: 1 };
    let data = Bytes::from(vec![7; bytes]);
    let request = pb::AppendRequest {
        replica: Some(id.to_pb()),
        offset: (blocks * BLOCK_BYTES) as u64,
        crcs: block_crcs(id.chunk, id.crc_shard(), blocks as u32, &data),
        create: blocks == 0,
        sync: true,
        server: 0,
        incarnation: 0,
    };
    let address = format!("{}:{PORT}", chunkserver_ip(1));
    pool.call::<calls::Append>(&address, &request, vec![data], deadline).await.map(drop)
}

/// Begins the replicas with a block each, once the server runs.
async fn place(pool: &Arc<Pool>) {
    for chunk in 1..=REPLICAS {
        for attempt in 0.. {
            match append(pool, (chunk, 0), BLOCK_BYTES, Duration::from_secs(1)).await {
                Ok(()) => break,
                Err(error) if attempt == 100 => violation("O7", format!("on a calm day: {error}")),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// So many short appends on one connection that the server reads no more of it.
async fn held_back(pool: &Arc<Pool>, chunk: u64, hung: bool) {
    let calls = (0..HELD_BACK).map(|_| {
        let pool = pool.clone();
        tokio::spawn(
            async move { append(&pool, (chunk, 1), BLOCK_BYTES, HELD_BACK_DEADLINE).await },
        )
    });
    for call in calls.collect::<Vec<_>>() {
        match call.await.expect("not cancelled") {
            Err(CallError::Deadline) if hung => stats::count("appends that hang"),
            Ok(()) if !hung => {}
            other => violation("O7", format!("an append among {HELD_BACK} ends in {other:?}")),
        }
    }
}

/// More bytes for the disk that hangs than it and the server together have memory for.
async fn appends_that_hang(
    pool: &Arc<Pool>,
    replicas: &[u64],
    pause: Duration,
    deadline: Duration,
) {
    let mut calls = Vec::new();
    for number in 0..LONG {
        let (pool, chunk) = (pool.clone(), replicas[number % replicas.len()]);
        calls.push(tokio::spawn(async move {
            match append(&pool, (chunk, 2), LONG_BYTES, deadline).await {
                Err(CallError::Refused(why)) if why.code == RefusalCode::Busy => {
                    stats::count("appends refused by a full queue");
                }
                _ => stats::count("long appends to one disk"),
            }
        }));
        tokio::time::sleep(pause).await;
    }
    for call in calls {
        call.await.expect("not cancelled");
    }
}

async fn appends_beside(pool: &Arc<Pool>, replicas: &[u64], deadline: Duration) {
    for number in 0..BESIDE {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (chunk, round) = (replicas[number % replicas.len()], number / replicas.len());
        let blocks = 1 + round * (BESIDE_BYTES / BLOCK_BYTES);
        match append(pool, (chunk, blocks), BESIDE_BYTES, deadline).await {
            Ok(()) => stats::count("appends beside a disk that hangs"),
            Err(error) => violation("O7", format!("an append to a disk that works: {error}")),
        }
    }
}
