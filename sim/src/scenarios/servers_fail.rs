//! Chunkservers restart, or lose their power, between an append and its sync, again and again, and then are all away for longer than an
//! operation may take, under one writer with several descriptions of its file.
//!
//! Checked: chunks that failed are told of, so that a live session has no more open ones than it writes (O6); while
//! nothing can be written the masters are not pressed (O7); each failure is told once, to whoever may write (O11);
//! what a server answers as synced is durable there, also if it has restarted since the append (O13). Not checked: what is in the files (`cluster_chaos`).

use crate::cluster::full::{Cluster, connect, mount};
use crate::disk::Outcome;
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::persist_chunks::PersistChunks;
use crate::oracles::reporting::Description;
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::trace;
use crate::world::{Options, Role, World};
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::namespace::tables::OpenChunks;
use mooseng::tables::Read;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "servers_fail",
    about: "chunkservers restart under a writer, and then all are away: told of, not pressed, told once",
    seeds: 4,
    limit: Duration::from_secs(2500),
    must_count: &[
        "servers restarted under a writer",
        "chunks given up",
        "O13 chunk syncs checked",
        "writes overtaken",
        "O11 calls checked",
        "O11 failures told",
    ],
    run: |seed| Box::pin(run(seed)),
};

const READ_ONLY: i32 = 0;
const READ_WRITE: i32 = 2;
/// O_RDWR, O_SYNC.
const SYNCHRONOUS: i32 = 0o4_010_002;
/// Enough for an append in the background.
const BYTES: usize = 100_000;
const ROUNDS: u64 = 12;
const OVERTAKEN: u64 = 4;
/// Within which an fsync is answered that has nothing to wait for.
const SOON: Duration = Duration::from_secs(5);
/// Chunks that a writer of one kind of files has open at once.
const OPEN_MAX: usize = 2;
/// Chunks that its two lanes may give up in the three seconds in which no server answers and the masters still hope:
/// two at once, then after pauses that double up to half a second.
const GIVEN_UP_MAX: u64 = 36;

async fn run(seed: u64) {
    let drawn =
        Options { masters: 3, chunkservers: 3, parity: 1, tiny: true, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, ..drawn.calm() });
    let cluster = Cluster::default();
    world.frames.watch(PersistChunks::new(&world));
    cluster.add(&world);
    cluster.form(&world).await;
    let done = Arc::new(Mutex::new(false));
    let (over, watched) = (done.clone(), cluster.clone());
    mount(&world, 1, move |context, config| {
        let (over, cluster) = (over.clone(), watched.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            let rng = Rng::new(seed).fork("servers");
            let world = context.world.clone();
            let mut writer = Writer { client, rng, world, cluster };
            writer.servers_restart().await;
            writer.servers_away().await;
            writer.overtaken().await;
            *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
            std::future::pending().await
        })
    });
    for _ in 0..20_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if *done.lock().unwrap_or_else(PoisonError::into_inner) {
            return;
        }
    }
    stuck("O7", "the writer does not end within 2000 s");
}

struct Writer {
    client: Arc<Client>,
    rng: Rng,
    world: Weak<World>,
    cluster: Cluster,
}

impl Writer {
    fn world(&self) -> Arc<World> {
        self.world.upgrade().expect("the world outlives its machines")
    }

    fn failed(&self) -> u64 {
        self.client.stats().failed_writebacks
    }

    fn must<T>(&self, what: &str, outcome: Result<T, Errno>) -> T {
        outcome.unwrap_or_else(|errno| violation("O7", format!("{what}: {errno:?}")))
    }

    async fn create(&self, name: &str) -> (InodeId, Handle) {
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let (attr, handle) =
            self.must("create", self.client.create(ROOT, name.as_bytes(), new).await);
        (InodeId(attr.inode), handle)
    }

    /// A server restarts after an append and before the fsync.
    async fn servers_restart(&mut self) {
        let (world, (_, handle)) = (self.world(), self.create("restarts").await);
        let servers = world.names(Role::Chunkserver);
        for round in 0..ROUNDS {
            let off = round * BYTES as u64;
            let written = self.client.write(handle, off, vec![1; BYTES].into()).await;
            self.must("write", written);
            tokio::time::sleep(Duration::from_millis(self.rng.range(5, 100))).await;
            let name = self.rng.pick(&servers).clone();
            // Every second one forgets what was not synced.
            let power = round % 2 == 1;
            let class = if power { FaultClass::PowerLoss } else { FaultClass::Kill };
            if plan::strikes(class) {
                match power {
                    true => world.power_loss_as(&name, Outcome::DropAll),
                    false => world.kill(&name),
                }
                world.restart(&name).await;
                stats::count("servers restarted under a writer");
            }
            let synced = self.client.fsync(handle, false).await;
            self.must("fsync with two servers of three", synced);
        }
        stats::add("chunks given up", self.client.stats().chunks_lost);
        // For the seals to be committed.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let Some(leader) = self.cluster.leader(&world) else {
            stuck("O7", "no leader on a calm day");
        };
        let open = leader.view().range::<OpenChunks>(&Default::default(), None).count();
        if open > OPEN_MAX {
            violation("O6", format!("{open} chunks are open under a writer that is done"));
        }
        self.client.release(handle).await;
    }

    /// What was written is written again while it can not be written back; the first try fails, the second does not.
    async fn overtaken(&mut self) {
        let (world, (_, handle)) = (self.world(), self.create("overtaken").await);
        let servers = world.names(Role::Chunkserver);
        for _ in 0..OVERTAKEN {
            if plan::strikes(FaultClass::Kill) {
                servers.iter().for_each(|name| world.kill(name));
            }
            let failed = self.failed();
            for _ in 0..2 {
                let written = self.client.write(handle, 0, vec![3; 5000].into()).await;
                self.must("write", written);
                // Longer than what is dirty waits.
                let pause = self.rng.range(800, 2_000);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            for _ in 0..1000 {
                if self.failed() > failed {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for name in &servers {
                world.restart(name).await;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
            // The failure is told; then all is well.
            let _ = self.client.fsync(handle, false).await;
            let asked = trace::now_ns();
            let synced = self.client.fsync(handle, false).await;
            let took = Duration::from_nanos(trace::now_ns() - asked);
            if synced.is_err() || took > SOON {
                violation("O7", format!("fsync of what is committed: {synced:?} after {took:?}"));
            }
            stats::count("writes overtaken");
        }
        self.client.release(handle).await;
    }

    /// No server answers any more, and the masters find that out after a while.
    async fn servers_away(&mut self) {
        let (world, (inode, first)) = (self.world(), self.create("away").await);
        let synchronous = self.must("open", self.client.open(inode, SYNCHRONOUS).await);
        let reader = self.must("open", self.client.open(inode, READ_ONLY).await);
        let described = |name: &str| Description::new(name, self.failed());
        let (mut one, mut other) = (described("first"), described("O_SYNC"));
        let before = self.client.stats().chunks_lost;
        let away = plan::strikes(FaultClass::Kill);
        let servers = world.names(Role::Chunkserver);
        servers.iter().filter(|_| away).for_each(|name| world.kill(name));
        let outcome = self.client.write(synchronous, 0, vec![2; BYTES].into()).await.map(drop);
        if away && outcome.is_ok() {
            violation("O11", "an O_SYNC write succeeds while there is no chunkserver");
        }
        other.answered("an O_SYNC write", outcome, self.failed());
        let lost = self.client.stats().chunks_lost - before;
        if lost > GIVEN_UP_MAX {
            violation("O7", format!("{lost} chunks opened and given up while no server answers"));
        }
        self.must("close of a description that only reads", self.client.flush(reader).await);
        for name in servers {
            world.restart(&name).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for _ in 0..2 {
            let outcome = self.client.fsync(synchronous, false).await;
            other.answered("fsync", outcome, self.failed());
            let outcome = self.client.flush(first).await;
            one.answered("close", outcome, self.failed());
        }
    }
}
