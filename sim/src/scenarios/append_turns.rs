//! Mounts append records to one file in turns, each when the one before is committed and known everywhere, while
//! masters and chunkservers die, disks are slow and the network splits. Descriptors stay open all the time.
//!
//! Checked: O2 and O3 for O_APPEND (the file is the acknowledged records in the order of their turns, each whole
//! and once, for whoever opens it). Not checked: appends at the same time, which may overwrite each other; mounts
//! that die or lose their session: a record without an answer ends the turns.

use crate::cluster::full::{Cluster, connect, mount};
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::stats;
use crate::world::inject::{Budget, chaos};
use crate::world::{FaultKind, NodeContext, Options, Role, World};
use mooseng::client::{Client, Handle, NewFile};
use mooseng::errno::Errno;
use mooseng::ids::{InodeId, ROOT};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "append_turns",
    about: "mounts append to one file in turns while servers die and the network splits",
    seeds: 16,
    limit: Duration::from_secs(600),
    must_count: &[
        "records appended",
        "records read by others",
        "fault: kill",
        "fault: power loss",
        "fault: partition",
    ],
    run: |seed| Box::pin(run(seed)),
};

const NAME: &[u8] = b"log";
/// Open flags.
const APPEND: i32 = 0o2002;
const READ_ONLY: i32 = 0;
/// Longest record: some rest in the metadata, some take several appends to a chunk.
const RECORD_MAX: u64 = 40_000;

#[derive(Default)]
struct State {
    /// Which mount may append.
    whose: u32,
    /// What is acknowledged.
    file: Vec<u8>,
    /// A record has no answer: nobody knows what is behind the acknowledged ones.
    uncertain: bool,
    /// Nobody takes a turn any more.
    over: bool,
    /// Somebody is at it.
    busy: bool,
}

#[derive(Clone, Default)]
struct Turns(Arc<Mutex<State>>);

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, number: u32) -> bool {
        let mut state = self.state();
        let mine = state.whose == number && !state.over;
        state.busy |= mine;
        mine
    }

    fn pass(&self, to: u32) {
        let mut state = self.state();
        (state.whose, state.busy) = (to, false);
    }
}

async fn run(seed: u64) {
    let drawn = Options::draw(seed);
    let (clients, chunkservers) = (2 + drawn.clients % 2, drawn.chunkservers.max(drawn.parity + 2));
    let chaos_ms = drawn.chaos_ms * 3;
    let mut options = Options { clients, chunkservers, chaos_ms, ..drawn };
    // A blackout takes the mounts too; a clock that jumps says nothing here.
    options.faults.kinds.retain(|k| !matches!(k, FaultKind::Blackout | FaultKind::ClockStep));
    let world = World::new(options);
    let (cluster, turns) = (Cluster::default(), Turns::default());
    cluster.add(&world);
    cluster.form(&world).await;
    for number in 0..clients {
        let turns = turns.clone();
        let ttl = world.limits().attr_ttl;
        mount(&world, number + 1, move |context, config| {
            let turns = turns.clone();
            Box::pin(async move {
                let client = connect(&context, &config).await;
                let rng = Rng::new(seed).fork(&context.name);
                Mount { context, client, turns, number, clients, ttl, rng }.run().await
            })
        });
    }
    tokio::spawn(world.clone().supervise());
    let time = Duration::from_millis(world.options.chaos_ms);
    let budget = Budget { clients: 0, ..Budget::of(&world) };
    chaos(world.clone(), budget, time).await;
    _ = world.heal().await;
    turns.state().over = true;
    for _ in 0..1500 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if !turns.state().busy {
            return audit(&world, &turns).await;
        }
    }
    stuck("O7", "an append has no answer 150 s after healing");
}

/// A new mount reads what all have appended.
async fn audit(world: &Arc<World>, turns: &Turns) {
    let number = world.names(Role::Client).len() as u32 + 1;
    let (turns, done) = (turns.clone(), Arc::new(Mutex::new(false)));
    let finished = done.clone();
    mount(world, number, move |context, config| {
        let (turns, finished) = (turns.clone(), finished.clone());
        Box::pin(async move {
            let client = connect(&context, &config).await;
            while let Err(errno) = read_all(&context, &client, &turns).await {
                context.say(&format!("audit: {errno:?}"));
            }
            *finished.lock().expect("audit") = true;
            std::future::pending().await
        })
    });
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if *done.lock().expect("audit") {
            return;
        }
    }
    stuck("O7", "the file can not be read 60 s after healing");
}

/// The file is what was acknowledged; behind an uncertain record nothing is known.
async fn read_all(context: &NodeContext, client: &Arc<Client>, turns: &Turns) -> Result<(), Errno> {
    let attr = match client.lookup(ROOT, NAME).await {
        Err(Errno::ENOENT) if turns.state().file.is_empty() => return Ok(()),
        other => other?,
    };
    let handle = client.open(InodeId(attr.inode), READ_ONLY).await?;
    let (wanted, uncertain) = {
        let state = turns.state();
        (state.file.clone(), state.uncertain)
    };
    let read = client.read(handle, 0, wanted.len() + 1).await;
    client.release(handle).await;
    let found = read?.concat();
    let same = found.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let longer = found.len() > wanted.len() && !uncertain;
    if same < wanted.len() || longer {
        let what = format!(
            "{} reads the log: {} bytes of {} as they were appended, {} in all",
            context.name,
            same,
            wanted.len(),
            found.len()
        );
        violation("O2", what);
    }
    stats::count("records read by others");
    Ok(())
}

/// One of those that take turns.
struct Mount {
    context: NodeContext,
    client: Arc<Client>,
    turns: Turns,
    number: u32,
    clients: u32,
    ttl: Duration,
    rng: Rng,
}

impl Mount {
    async fn run(mut self) {
        let mut open = None;
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.range(2, 20))).await;
            if !self.turns.take(self.number) {
                continue;
            }
            // What another mount has changed is known everywhere after the time to live of caches, by any clock.
            tokio::time::sleep(self.ttl + self.ttl / 50).await;
            let handle = match open {
                Some(handle) => handle,
                None => *open.insert(self.open().await),
            };
            self.append(handle).await;
            if self.rng.chance(1, 3)
                && let Err(errno) = read_all(&self.context, &self.client, &self.turns).await
            {
                self.context.say(&format!("read: {errno:?}"));
            }
            self.turns.pass((self.number + 1) % self.clients);
        }
    }

    async fn open(&self) -> Handle {
        loop {
            let opened = match self.client.lookup(ROOT, NAME).await {
                Ok(attr) => self.client.open(InodeId(attr.inode), APPEND).await,
                Err(Errno::ENOENT) => {
                    let new = NewFile { mode: 0o644, flags: APPEND, ..NewFile::default() };
                    self.client.create(ROOT, NAME, new).await.map(|(_, handle)| handle)
                }
                Err(errno) => Err(errno),
            };
            match opened {
                Ok(handle) => return handle,
                Err(errno) => self.context.say(&format!("open: {errno:?}")),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn append(&mut self, handle: Handle) {
        let len = match self.rng.chance(1, 2) {
            true => self.rng.range(1, 600),
            false => self.rng.range(600, RECORD_MAX),
        };
        let record: Vec<u8> = (0..len).map(|_| self.rng.u64() as u8).collect();
        let written = self.client.write(handle, 0, record.clone().into()).await;
        let synced = match written {
            Ok(_) => self.client.fsync(handle, false).await,
            Err(errno) => Err(errno),
        };
        let mut state = self.turns.state();
        match synced {
            Ok(()) => {
                state.file.extend(record);
                stats::count("records appended");
            }
            Err(errno) => {
                self.context.say(&format!("append: {errno:?}"));
                (state.uncertain, state.over) = (true, true);
                stats::count("records without an answer");
            }
        }
    }
}
