//! A mount writes through several descriptions of one file and then loses what it needs to write back: its
//! session (it is frozen for longer than that lives) or all chunkservers, for longer than an operation may
//! take; or, in the scenario `fsync_errors`, every disk fails the fsync, or one does.
//!
//! Checked: O11; an fsync without chunkservers, or whose every fdatasync failed, does not succeed; a disk that
//! failed one sees no other until its server starts again; what an fsync vouches for, another mount reads, also
//! after later failures, and without the disk that failed where that was one. Not checked: whether a failure of one
//! chunkserver is told: nobody needs to be told of it, but whoever is, is told once.

use crate::cluster::full::{Cluster, connect, mount};
use crate::disk::SimDisk;
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::oracles::reporting::Description;
use crate::plan::{self, FaultClass};
use crate::rng::Rng;
use crate::stats;
use crate::world::{NodeContext, Options, Role, World};
use mooseng::client::{Client, ClientConfig, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::limits::Limits;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "error_reporting",
    about: "write-backs fail, and every open file description is told once",
    seeds: 8,
    limit: Duration::from_secs(4000),
    must_count: &[
        "O11 calls checked",
        "O11 failures told",
        "sessions lost with dirty data",
        "write-backs without servers",
    ],
    run: |seed| Box::pin(run(seed, Loses::SessionOrServers)),
};

pub const FSYNC_ERRORS: Scenario = Scenario {
    name: "fsync_errors",
    about: "every disk fails an fsync, or one: told once, the disk stays out of use, nothing acknowledged is lost",
    seeds: 4,
    limit: Duration::from_secs(4000),
    must_count: &[
        "O11 calls checked",
        "O11 failures told",
        "fsyncs that failed on every disk",
        "fsyncs that failed on one disk",
        "fault: EIO on fsync",
    ],
    run: |seed| Box::pin(run(seed, Loses::Disks)),
};

/// What a run takes away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loses {
    SessionOrServers,
    Disks,
}

impl Loses {
    /// Files of one run.
    fn files(self) -> u64 {
        match self {
            Loses::SessionOrServers => 4,
            Loses::Disks => 25,
        }
    }

    /// Bounds of the mount. With failing disks it gives up soon: nothing else is waited for.
    fn limits(self, of: &Limits) -> Limits {
        match self {
            Loses::SessionOrServers => of.clone(),
            Loses::Disks => Limits { operation_deadline: Duration::from_secs(10), ..of.clone() },
        }
    }
}

const READ_WRITE: i32 = 2;

/// What the mount wants of the world.
const NOTHING: u8 = 0;
const FREEZE: u8 = 1;
const OVER: u8 = 2;

async fn run(seed: u64, loses: Loses) {
    let masters = if seed.is_multiple_of(2) { 1 } else { 3 };
    let drawn = Options { masters, chunkservers: 3, parity: 1, tiny: true, ..Options::draw(seed) };
    let world = World::new(drawn.calm());
    let cluster = Cluster::default();
    cluster.add(&world);
    cluster.form(&world).await;
    let wish = Arc::new(AtomicU8::new(NOTHING));
    let asks = wish.clone();
    mount(&world, 1, move |context, config| {
        let asks = asks.clone();
        Box::pin(async move {
            let config = ClientConfig { limits: Arc::new(loses.limits(&config.limits)), ..config };
            let client = connect(&context, &config).await;
            let rng = Rng::new(seed).fork("files");
            let (world, vouched) = (context.world.clone(), Vec::new());
            let disks = Rng::new(seed).fork("disks that fail");
            let mut writer =
                Writer { context, config, client, rng, disks, world, wish: asks, loses, vouched };
            for number in 0..loses.files() {
                writer.file(number).await;
            }
            for (name, bytes) in &writer.vouched {
                writer.compare(name, bytes).await;
            }
            writer.wish.store(OVER, Ordering::Relaxed);
            std::future::pending().await
        })
    });
    let ttl = world.limits().session_ttl;
    for _ in 0..3_000_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match wish.load(Ordering::Relaxed) {
            FREEZE => {
                world.pause("c1");
                tokio::time::sleep(ttl + Duration::from_secs(2)).await;
                wish.store(NOTHING, Ordering::Relaxed);
                world.resume("c1");
            }
            OVER => return world.count_disk_faults(),
            _ => {}
        }
    }
    stuck("O7", "the writer does not end");
}

struct Writer {
    context: NodeContext,
    config: ClientConfig,
    client: Arc<Client>,
    rng: Rng,
    /// Decides which disks fail.
    disks: Rng,
    world: Weak<World>,
    wish: Arc<AtomicU8>,
    loses: Loses,
    /// Files and what an fsync vouched for in them.
    vouched: Vec<(String, Vec<u8>)>,
}

struct Open {
    handle: Handle,
    told: Description,
}

impl Writer {
    fn failed(&self) -> u64 {
        self.client.stats().failed_writebacks
    }

    /// One file: opened several times, written, its write-back made to fail, and written again.
    async fn file(&mut self, number: u64) {
        let name = format!("f{number}");
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let created = self.client.create(ROOT, name.as_bytes(), new).await;
        let (attr, handle) = self.must("create", created);
        let inode = InodeId(attr.inode);
        let told = Description::new(&format!("{name}:0"), self.failed());
        let mut open = vec![Open { handle, told }];
        for nth in 1..self.rng.range(1, 4) {
            open.push(self.open(inode, &format!("{name}:{nth}")).await);
        }
        let len = self.rng.range(20_000, 60_000) as usize;
        let bytes = vec![number as u8 + 1; len];
        match (self.loses, self.rng.chance(1, 2)) {
            (Loses::Disks, _) if self.disks.chance(1, 2) => {
                self.fail_one_disk(&name, &mut open, &bytes).await;
            }
            (Loses::Disks, _) => self.fail_disks(&mut open, &bytes).await,
            (_, true) if plan::strikes(FaultClass::ClientFrozen) => {
                self.lose_session(&mut open, &bytes).await;
            }
            (_, false) if plan::strikes(FaultClass::Kill) => {
                self.lose_servers(&mut open, &bytes).await;
            }
            _ => {
                let written = self.client.write(open[0].handle, 0, bytes.clone().into()).await;
                self.must("write", written);
            }
        }
        self.rng.shuffle(&mut open);
        for one in &mut open {
            self.ask(one).await;
            self.ask(one).await;
        }
        // One that was opened afterwards has nothing to tell, and what it vouches for is there.
        let mut late = self.open(inode, &format!("{name}:late")).await;
        let written = self.client.write(late.handle, 0, bytes.clone().into()).await;
        self.must("write", written);
        self.ask(&mut late).await;
        self.compare(&name, &bytes).await;
        self.vouched.push((name, bytes));
        for one in open.into_iter().chain([late]) {
            self.client.release(one.handle).await;
        }
    }

    fn must<T>(&self, what: &str, outcome: Result<T, Errno>) -> T {
        outcome.unwrap_or_else(|errno| violation("O7", format!("{what} on a calm day: {errno:?}")))
    }

    async fn open(&mut self, inode: InodeId, name: &str) -> Open {
        let opened = self.client.open(inode, READ_WRITE).await;
        let handle = self.must("open", opened);
        Open { handle, told: Description::new(name, self.failed()) }
    }

    /// One fsync, or what close(2) does.
    async fn ask(&mut self, one: &mut Open) {
        let (call, outcome) = match self.rng.chance(2, 3) {
            true => ("fsync", self.client.fsync(one.handle, false).await),
            false => ("close", self.client.flush(one.handle).await),
        };
        one.told.answered(call, outcome, self.failed());
    }

    /// Written, and then the mount stands still until its session is over.
    async fn lose_session(&mut self, open: &mut [Open], bytes: &[u8]) {
        let sessions = self.client.stats().sessions;
        let written = self.client.write(open[0].handle, 0, bytes.to_vec().into()).await;
        self.must("write", written);
        let before = self.failed();
        self.wish.store(FREEZE, Ordering::Relaxed);
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.client.stats().sessions > sessions {
                self.context.say("has another session");
                let lost = self.failed() > before;
                stats::add("sessions lost with dirty data", u64::from(lost));
                return;
            }
        }
        stuck("O7", "no new session within 60 s of the end of the old one");
    }

    /// Written while there is nothing to write to; the fsync must say so. Then the servers return, and an
    /// fsync must bring to them what was written before.
    async fn lose_servers(&mut self, open: &mut [Open], bytes: &[u8]) {
        let world = self.world.upgrade().expect("the world outlives its machines");
        let servers = world.names(Role::Chunkserver);
        servers.iter().for_each(|name| world.kill(name));
        let written = self.client.write(open[0].handle, 0, bytes.to_vec().into()).await;
        self.must("write", written);
        let outcome = self.client.fsync(open[0].handle, false).await;
        if outcome.is_ok() {
            violation("O11", "an fsync succeeds while there is no chunkserver");
        }
        stats::count("write-backs without servers");
        open[0].told.answered("fsync", outcome, self.failed());
        self.recovers(&world, &mut open[0], bytes).await;
    }

    /// Servers that are down start again, and an fsync brings to them what was written before.
    async fn recovers(&mut self, world: &Arc<World>, open: &mut Open, bytes: &[u8]) {
        for name in world.names(Role::Chunkserver) {
            world.restart(&name).await;
        }
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let outcome = self.client.fsync(open.handle, false).await;
            open.told.answered("fsync", outcome, self.failed());
            if outcome.is_ok() {
                let name = format!("f{}", bytes[0] - 1);
                return self.compare(&name, bytes).await;
            }
        }
        stuck("O7", "no fsync succeeds within 600 s of the servers' return");
    }

    /// Written; then the next fdatasync of every disk fails, once. Asked again it would succeed, with the
    /// bytes gone: no disk may be asked again.
    async fn fail_disks(&mut self, open: &mut [Open], bytes: &[u8]) {
        let world = self.world.upgrade().expect("the world outlives its machines");
        let servers = world.names(Role::Chunkserver);
        let disks: Vec<_> = servers.iter().map(|name| world.disks(name)[0].clone()).collect();
        let written = self.client.write(open[0].handle, 0, bytes.to_vec().into()).await;
        self.must("write", written);
        disks.iter().for_each(|disk| disk.set_faults(|faults| faults.next_sync_eio = 1));
        let outcome = self.client.fsync(open[0].handle, false).await;
        if outcome.is_ok() {
            violation("O11", "an fsync succeeds although it failed on every disk");
        }
        stats::count("fsyncs that failed on every disk");
        open[0].told.answered("fsync", outcome, self.failed());
        let mut struck = disks.clone();
        struck.retain(|disk| disk.faults().next_sync_eio == 0);
        stay_out(&struck).await;
        for (name, disk) in servers.iter().zip(&disks) {
            disk.set_faults(|faults| faults.next_sync_eio = 0);
            world.kill(name);
        }
        self.recovers(&world, &mut open[0], bytes).await;
    }

    /// Written; then the next fdatasync of one disk fails, once. Others can hold what it was to hold: an fsync that
    /// succeeds vouches for bytes that are there without that disk.
    async fn fail_one_disk(&mut self, name: &str, open: &mut [Open], bytes: &[u8]) {
        let world = self.world.upgrade().expect("the world outlives its machines");
        let server = self.disks.pick(&world.names(Role::Chunkserver)).clone();
        let disk = world.disks(&server)[0].clone();
        let written = self.client.write(open[0].handle, 0, bytes.to_vec().into()).await;
        self.must("write", written);
        disk.set_faults(|faults| faults.next_sync_eio = 1);
        let outcome = self.client.fsync(open[0].handle, false).await;
        open[0].told.answered("fsync", outcome, self.failed());
        if disk.faults().next_sync_eio == 0 {
            stats::count("fsyncs that failed on one disk");
            stay_out(std::slice::from_ref(&disk)).await;
        } else {
            stats::count("disks that no fsync asked");
        }
        disk.set_faults(|faults| faults.next_sync_eio = 0);
        world.kill(&server);
        match outcome {
            Ok(()) => self.compare(name, bytes).await,
            Err(_) => stats::count("fsyncs that one disk made fail"),
        }
        self.recovers(&world, &mut open[0], bytes).await;
    }

    /// Another mount reads what an fsync has vouched for.
    async fn compare(&self, name: &str, bytes: &[u8]) {
        let other = connect(&self.context, &self.config).await;
        let attr = self.must("lookup", other.lookup(ROOT, name.as_bytes()).await);
        let handle = self.must("open", other.open(InodeId(attr.inode), 0).await);
        let read = self.must("read", other.read(handle, 0, bytes.len()).await).concat();
        if read != bytes {
            violation("O3", format!("{name}: an fsync vouched for bytes that are not there"));
        }
        self.must("shutdown", other.shutdown().await);
    }
}

/// Disks whose fsync failed are asked for none again.
async fn stay_out(struck: &[Arc<SimDisk>]) {
    let syncs = || struck.iter().map(|disk| disk.counters().syncs);
    let before: Vec<u64> = syncs().collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    if syncs().ne(before) {
        violation("O11", "a disk whose fsync failed is synced again");
    }
}
