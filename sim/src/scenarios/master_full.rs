//! Masters whose disks fill up: a client makes small files until there is no space, is refused, removes files,
//! and makes new ones. In half of the runs a master is killed while its disk is full; in the others somebody
//! else takes all space of a master's disk for moments, also in the middle of a checkpoint. `master_tight`: after most files
//! were removed somebody else takes nearly all that came free beside the table file, which has room inside then.
//!
//! Checked: the refusal is ENOSPC and nothing else; while the disk is full, removing works, every file that was
//! acknowledged can be read, and no master ends or fails to start; afterwards files can be made again; all
//! masters agree and the namespace's invariants hold (O4, O7, O10). Not checked: full chunkservers; the network.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::world::{NodeContext, Options, Role, World};
use crate::{stats, trace};
use mooseng::client::{Client, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use mooseng::namespace;
use mooseng::raft::RESERVE;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "master_full",
    about: "the masters' disks fill up: ENOSPC, removing works, then writing again",
    seeds: 4,
    limit: Duration::from_secs(300),
    must_count: &[
        stats::OPERATIONS,
        "refused for space",
        "removed while full",
        "killed while full",
        "filled by somebody else",
        "raft: checkpoint tried again",
    ],
    run: |seed| Box::pin(run(seed, false)),
};

/// Little is left beside a table file with room inside.
pub const TIGHT: Scenario = Scenario {
    name: "master_tight",
    about: "most files were removed, and little is left beside the masters' tables: writing again",
    seeds: 2,
    limit: Duration::from_secs(300),
    must_count: &[
        stats::OPERATIONS,
        "refused for space",
        "removed while full",
        "little left beside the table file",
        "files made with little left",
    ],
    run: |seed| Box::pin(run(seed, true)),
};

/// Of each master. Two segments of the log, what is kept free, and a table file of some hundred KiB.
const MASTER_BYTES: u64 = 2 << 20;
/// Content of each file, kept in its inode.
const FILE_BYTES: usize = 500;
const FILES_MAX: u32 = 20_000;
/// Files on a disk that somebody else fills for moments: half of what fits.
const SHARED_MAX: usize = 350;
const READ_WRITE: i32 = 2;
const READ_ONLY: i32 = 0;

async fn run(seed: u64, tight: bool) {
    let masters = if seed.is_multiple_of(4) { 3 } else { 1 };
    let options =
        Options { masters, chunkservers: 3, clients: 1, tiny: true, ..Options::draw(seed) };
    let world = World::new(Options { data: 1, parity: 0, ..options.calm() });
    let cluster = Cluster::of_small_masters(MASTER_BYTES);
    cluster.add(&world);
    cluster.form(&world).await;
    let done = Arc::new(Mutex::new(false));
    let finished = done.clone();
    mount(&world, 1, move |context, config| {
        let finished = finished.clone();
        Box::pin(async move {
            let client = connect(&context, &config).await;
            let rng = Rng::new(seed).fork("filler");
            let kills = seed.is_multiple_of(2);
            let filler = Filler { context, client, rng, kills, files: VecDeque::new(), next: 0 };
            match tight {
                true => filler.run_tight().await,
                false => filler.run().await,
            }
            *finished.lock().expect("done") = true;
            std::future::pending::<()>().await;
        })
    });
    tokio::spawn(world.clone().supervise());
    for _ in 0..3000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if *done.lock().expect("done") {
            return end(&world, &cluster).await;
        }
    }
    stuck("O7", "the client is not done within 300 s");
}

async fn end(world: &World, cluster: &Cluster) {
    cluster.converge(world).await;
    for name in world.names(Role::Master) {
        let view = cluster.get(&name).expect("converged").view();
        if let Err(broken) = namespace::check(&view) {
            violation("O10", format!("{name}: {broken}"));
        }
    }
    let again = mooseng::marks::hits().get("raft: checkpoint tried again").copied();
    stats::add("raft: checkpoint tried again", again.unwrap_or(0));
    if stats::get("processes that ended by themselves") > 0 {
        violation("O7", "a master ended because its disk was full".to_owned());
    }
}

struct Filler {
    context: NodeContext,
    client: Arc<Client>,
    rng: Rng,
    kills: bool,
    files: VecDeque<(String, u8)>,
    next: u32,
}

impl Filler {
    async fn run(mut self) {
        for round in 0..3 {
            if !self.kills {
                self.share_the_disk().await;
            }
            self.fill().await;
            self.stays_full().await;
            if self.kills && round == 0 {
                self.kill_one().await;
            }
            self.read_all().await;
            self.remove_most().await;
            self.writes_again().await;
        }
    }

    async fn run_tight(mut self) {
        self.fill().await;
        self.stays_full().await;
        self.remove_most().await;
        self.leave_little().await;
        self.writes_again().await;
        self.works_on().await;
    }

    /// As many segments of the log as there never were at once, with little left beside the table file.
    async fn works_on(&mut self) {
        let mut refused = 0;
        for _ in 0..600 {
            match self.create().await {
                Ok(()) => {
                    stats::count("files made with little left");
                    refused = 0;
                }
                Err(Errno::ENOSPC) => {
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(errno) => violation("O7", format!("a full disk shows as {errno:?}")),
            }
            if refused == 100 {
                stuck("O7", "with room inside the table file no file can be made for 2 s");
            }
            if self.files.len() > 20 {
                self.remove_first().await;
            }
        }
        self.read_all().await;
    }

    /// One more file, durable when this returns.
    async fn create(&mut self) -> Result<(), Errno> {
        self.next += 1;
        let (name, fill) = (format!("{:0>40}", self.next), self.next as u8);
        let new = NewFile { mode: 0o644, flags: READ_WRITE, ..NewFile::default() };
        let (_, handle) = self.client.create(ROOT, name.as_bytes(), new).await?;
        let written = self.client.write(handle, 0, vec![fill; FILE_BYTES].into()).await;
        let synced = match written {
            Ok(_) => self.client.fsync(handle, false).await,
            Err(errno) => Err(errno),
        };
        self.client.release(handle).await;
        match synced {
            Ok(()) => {
                self.files.push_back((name, fill));
                stats::count(stats::OPERATIONS);
                Ok(())
            }
            Err(errno) => {
                // The name may be there without its content.
                self.remove(&name).await;
                Err(errno)
            }
        }
    }

    /// Makes files on a disk that somebody else fills for moments: that is ENOSPC as well, and passes.
    async fn share_the_disk(&mut self) {
        let world = self.context.world.upgrade().expect("the world");
        let masters = world.names(Role::Master);
        for _ in 0..40 {
            let disk = world.disks(&masters[self.rng.index(masters.len())])[0].clone();
            disk.fill_after(self.rng.below(60));
            for _ in 0..self.rng.range(10, 60) {
                match self.create().await {
                    Ok(()) => {}
                    Err(Errno::ENOSPC) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(errno) => violation("O7", format!("a full disk shows as {errno:?}")),
                }
            }
            disk.relieve();
            stats::count("filled by somebody else");
            // Alone they would not fill it.
            while self.files.len() > SHARED_MAX {
                self.remove_first().await;
            }
            self.writes_again().await;
        }
        self.read_all().await;
        while self.files.len() > 100 {
            self.remove_first().await;
        }
    }

    /// Less than a segment of the log, the reserve counted in; what comes free meanwhile is taken as well.
    async fn leave_little(&self) {
        let world = self.context.world.upgrade().expect("the world");
        let segment = world.limits().wal_segment_bytes;
        let little = world.rng("little").range(segment / 4, segment);
        for _ in 0..50 {
            for name in world.names(Role::Master) {
                world.disks(&name)[0].leave_free(little, RESERVE);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stats::count("little left beside the table file");
    }

    async fn fill(&mut self) {
        for _ in 0..FILES_MAX {
            match self.create().await {
                Ok(()) => {}
                Err(Errno::ENOSPC) => {
                    trace::line(
                        &self.context.name,
                        &format!("full with {} files", self.files.len()),
                    );
                    stats::count("refused for space");
                    return;
                }
                Err(errno) => violation("O7", format!("a full disk shows as {errno:?}")),
            }
        }
        stuck("O7", format!("{FILES_MAX} files do not fill the disk"));
    }

    /// Refused for as long as nothing is removed; what a checkpoint gives back is used up.
    async fn stays_full(&mut self) {
        let mut refused = 0;
        for _ in 0..FILES_MAX {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match self.create().await {
                Ok(()) => refused = 0,
                Err(Errno::ENOSPC) => refused += 1,
                Err(errno) => violation("O7", format!("a full disk shows as {errno:?}")),
            }
            if refused == 100 {
                return;
            }
        }
        stuck("O7", "the disk does not stay full");
    }

    async fn kill_one(&self) {
        let world = self.context.world.upgrade().expect("the world");
        world.kill("m1");
        stats::count("killed while full");
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.restart("m1").await;
    }

    async fn read_all(&self) {
        for (name, fill) in &self.files {
            let read = self.read(name).await;
            if !read.as_ref().is_ok_and(|bytes| *bytes == vec![*fill; FILE_BYTES]) {
                violation("O3", format!("{name}, acknowledged: {read:?}"));
            }
        }
    }

    async fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let attr = self.client.lookup(ROOT, name.as_bytes()).await?;
        let handle = self.client.open(InodeId(attr.inode), READ_ONLY).await?;
        let read = self.client.read(handle, 0, FILE_BYTES + 1).await;
        self.client.release(handle).await;
        Ok(read?.concat())
    }

    async fn remove(&self, name: &str) {
        match self.client.unlink(ROOT, name.as_bytes()).await {
            Ok(()) => stats::count("removed while full"),
            Err(errno) => violation("O7", format!("a full disk refuses to remove: {errno:?}")),
        }
    }

    async fn remove_most(&mut self) {
        for _ in 0..self.files.len() * 3 / 4 {
            self.remove_first().await;
        }
    }

    async fn remove_first(&mut self) {
        let (name, _) = self.files.pop_front().expect("counted");
        self.remove(&name).await;
    }

    async fn writes_again(&mut self) {
        for _ in 0..600 {
            match self.create().await {
                Ok(()) => return,
                Err(Errno::ENOSPC) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(errno) => violation("O7", format!("a full disk shows as {errno:?}")),
            }
        }
        stuck("O7", "no file can be made although most were removed");
    }
}
