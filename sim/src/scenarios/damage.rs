//! One damaged structure on a master's disk, for each row of the damage table in docs/DISK_FORMAT.md: on a single
//! master, on one of three, on two of five, and on two of three.
//!
//! Checked: a single master starts with everything it acknowledged, or refuses with a line that names the file and
//! what to do. In a group whose majority is whole it has everything, or enters anew under another number, and all
//! agree (O3, O4, O7) without an operator, who is needed for its superblock alone. Without a majority it refuses and
//! its files stay where they are. Not checked: several kinds of damage at once.

use crate::disk::SimDisk;
use crate::failure::{stuck, violation};
use crate::harness::Scenario;
use crate::rng::Rng;
use crate::world::{NodeContext, NodeSpec, Options, Role, World};
use crate::{stats, trace};
use mooseng::erasure::Layout;
use mooseng::ids::{LogIndex, NodeId, Uuid};
use mooseng::limits::Limits;
use mooseng::master::{Master, MasterConfig, format};
use mooseng::pb;
use mooseng::raft::TABLES;
use mooseng::seam::{Disk, OpenMode};
use mooseng::tables::Db;
use mooseng::{namespace, wal};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "damage",
    about: "one damaged structure on a master: right, or refused and replaced, never wrong",
    seeds: 4 * CASES.len() as u64,
    limit: Duration::from_secs(300),
    must_count: &[stats::OPERATIONS, "refused", "harmless", "replaced", "entered anew", "kept"],
    run: |seed| Box::pin(run(seed)),
};

const CLUSTER: Uuid = Uuid(*b"simulatedcluster");
const BLOCK: u64 = 4096;

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It starts, with everything.
    Harmless,
    /// It refuses, and the line names this.
    Refused(&'static str),
    /// Either, or its process ends at the first read; whichever it is must be right.
    Any(&'static str),
    /// It may lack what came last, or refuse.
    Tail(&'static str),
}

type Case = (&'static str, fn(&mut Patient) -> Fate);

const CASES: &[Case] = &[
    ("superblock flipped", |p| p.flip("superblock", 0, Fate::Refused("superblock"))),
    ("superblock cut", |p| p.cut("superblock", Fate::Refused("superblock"))),
    ("superblock gone", |p| p.remove("superblock", Fate::Refused("not empty"))),
    ("log: a head flipped", |p| {
        let path = p.segment_path(0);
        p.flip_at(&path, 20, Fate::Refused("wal/"))
    }),
    ("log: the first record flipped", |p| p.flip_entry(0)),
    ("log: a middle record flipped", |p| p.flip_entry(1)),
    ("log: the last record flipped", |p| p.flip_entry(2)),
    ("log: the last segment cut", |p| {
        let path = p.segment_path(usize::MAX);
        p.cut(&path, Fate::Tail("wal/"))
    }),
    ("log: a needed segment gone", |p| {
        let path = p.segment_path(0);
        p.remove(&path, Fate::Refused("wal"))
    }),
    ("log: all gone", Patient::remove_log),
    ("log: free segments overwritten", Patient::overwrite_free_segments),
    ("log: an older copy restored", Patient::restore_log),
    ("vote flipped", |p| p.flip("wal/vote", 4096, Fate::Harmless)),
    ("vote cut", |p| p.cut("wal/vote", Fate::Harmless)),
    ("vote gone", |p| p.remove("wal/vote", Fate::Harmless)),
    ("tables: head flipped", |p| p.flip_at(TABLES, 20, Fate::Refused(TABLES))),
    ("tables: root slot flipped", |p| p.flip_at(TABLES, BLOCK + 100, Fate::Harmless)),
    ("tables: CRC slot flipped", |p| p.flip_at(TABLES, 4 * BLOCK + 20, Fate::Harmless)),
    ("tables: both root slots flipped", |p| {
        p.flip_at(TABLES, BLOCK + 100, Fate::Harmless);
        p.flip_at(TABLES, 2 * BLOCK + 100, Fate::Refused(TABLES))
    }),
    ("tables: both CRC slots flipped", |p| {
        p.flip_at(TABLES, 3 * BLOCK + 100, Fate::Harmless);
        p.flip_at(TABLES, 4 * BLOCK + 100, Fate::Refused(TABLES))
    }),
    ("tables: pages flipped", Patient::flip_pages),
    ("tables: a page of early rows flipped", Patient::flip_early_page),
    ("tables: all pages zeroed", Patient::zero_pages),
    ("tables: cut", |p| p.cut(TABLES, Fate::Refused(TABLES))),
    ("tables: gone", |p| p.remove(TABLES, Fate::Refused("the tables are at 0"))),
    ("tables: an older copy restored", Patient::restore_tables),
];

/// Masters, and how many of them are damaged.
const GROUPS: [(u32, u32); 4] = [(1, 1), (3, 1), (5, 2), (3, 2)];

async fn run(seed: u64) {
    let case = CASES[(seed as usize / GROUPS.len()) % CASES.len()];
    let (masters, damaged) = GROUPS[seed as usize % GROUPS.len()];
    let options = Options { masters, tiny: true, ..Options::draw(seed).calm() };
    let world = World::new(options);
    trace::line("-", &format!("{} on {damaged} of {masters}", case.0));
    let group = Group::default();
    (1..=masters).for_each(|number| group.add(&world, number, masters));
    group.agree(&world, masters as usize).await;
    let mut rng = world.rng("damage");
    let mut names = world.names(Role::Master);
    rng.shuffle(&mut names);
    names.truncate(damaged as usize);
    group.work(120).await;
    let older: Vec<Files> = names.iter().map(|name| Files::of(&world.disks(name)[0])).collect();
    group.work(300).await;
    group.agree(&world, masters as usize).await;
    // Idle for a heartbeat: the log then says that its last record was durable.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut treated = Vec::new();
    for (name, older) in names.iter().zip(older) {
        let master = group.get(name).unwrap_or_else(|| stuck("O7", format!("{name} is gone")));
        let (applied, node) = (master.raft().applied(), master.node());
        world.kill(name);
        group.forget(name);
        let disk = world.disks(name)[0].clone();
        let incarnation = world.incarnation(name) + 1;
        let mut patient = Patient { incarnation, disk, rng: rng.fork(name), older };
        let fate = (case.1)(&mut patient);
        treated.push(Treated { case: case.0, name: name.clone(), fate, applied, node, masters });
    }
    let majority = masters - damaged > masters / 2;
    for one in &treated {
        let before = Files::of(&world.disks(&one.name)[0]);
        world.restart(&one.name).await;
        if masters == 1 || majority {
            one.recovers(&world, &group).await;
        } else if matches!(one.fate, Fate::Refused(_)) {
            one.stays(&world, &group, &before).await;
        }
    }
    if masters > 1 && majority {
        group.work(20).await;
        group.agree(&world, masters as usize).await;
    }
}

/// The running masters and how those that do not run ended.
#[derive(Clone, Default)]
struct Group(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    running: BTreeMap<String, Arc<Master>>,
    ended: BTreeMap<String, String>,
    sessions: u64,
}

impl Group {
    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &str) -> Option<Arc<Master>> {
        self.ends().running.get(name).cloned()
    }

    fn forget(&self, name: &str) {
        let mut ends = self.ends();
        ends.running.remove(name);
        ends.ended.remove(name);
    }

    fn ended(&self, name: &str) -> Option<String> {
        self.ends().ended.get(name).cloned()
    }

    fn add(&self, world: &Arc<World>, number: u32, masters: u32) {
        let name = format!("m{number}");
        let (group, limits) = (self.clone(), world.limits());
        world.add_node(NodeSpec {
            disks: vec![SimDisk::new(&name, 256 << 20, world.options.seed)],
            name,
            role: Role::Master,
            ip: ip(number),
            start: Arc::new(move |context| {
                let (group, limits) = (group.clone(), limits.clone());
                Box::pin(async move { group.run(context, number, masters, limits).await })
            }),
        });
    }

    async fn run(&self, context: NodeContext, number: u32, masters: u32, limits: Arc<Limits>) {
        let disk = context.disks[0].clone();
        if number == 1 && context.incarnation == 1 {
            let layout = Layout::new(1, 0).expect("one copy");
            format(&disk, CLUSTER, layout, &limits).expect("an empty disk");
        }
        let (aborts, group, name) = (context.aborts(), self.clone(), context.name.clone());
        let fatal = move |why: &str| {
            group.ends().ended.insert(name.clone(), why.to_owned());
            aborts(why.to_owned());
        };
        let config = MasterConfig {
            listen: address(number),
            advertise: None,
            cluster: Some(CLUSTER),
            join: (1..=masters).filter(|other| *other != number).map(address).collect(),
            limits,
            fatal: Arc::new(fatal),
            observe: None,
        };
        match Master::start(config, disk).await {
            Ok(master) => {
                context.say("runs");
                self.ends().running.insert(context.name.clone(), Arc::new(master));
                std::future::pending::<()>().await;
            }
            Err(error) => {
                context.say(&format!("refuses: {error}"));
                self.ends().ended.insert(context.name.clone(), error.to_string());
            }
        }
    }

    fn leader(&self) -> Option<Arc<Master>> {
        let ends = self.ends();
        ends.running.values().find(|master| master.raft().is_leader_ready()).cloned()
    }

    /// Commands that grow the tables, acknowledged one after another.
    async fn work(&self, commands: u64) {
        let mut done = 0;
        let mut failures = 0;
        while done < commands {
            self.ends().sessions += 1;
            let nonce = self.ends().sessions;
            let open = pb::OpenSessionCmd { client_nonce: nonce, host: host() };
            let kind = pb::proposal::Kind::OpenSession(open);
            let answered = match self.leader() {
                Some(leader) => {
                    let done = leader.raft().propose(pb::Proposal { kind: Some(kind) }).await;
                    // A cluster that is not founded yet refuses.
                    done.is_ok_and(|(_, _, outcome)| outcome.errno == 0)
                }
                None => false,
            };
            if answered {
                done += 1;
                stats::count(stats::OPERATIONS);
            } else {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if failures > 1000 {
                stuck("O7", "commands are not acknowledged");
            }
        }
    }

    /// Waits until so many masters are voters and have the same state at the same index.
    async fn agree(&self, world: &World, masters: usize) {
        let mut seen = BTreeMap::new();
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            seen = self.states();
            let mut states = seen.values();
            let first = states.next();
            let same = seen.len() == masters && states.all(|state| Some(state) == first);
            if same && first.is_some_and(|state| state.0 == masters) {
                return self.check(world);
            }
        }
        stuck(
            "O7",
            format!("no agreement of {masters} within 60 s: (voters, index, hash) {seen:x?}"),
        );
    }

    /// Voters it knows, last index and state hash of each running master.
    fn states(&self) -> BTreeMap<String, (usize, u64, u64)> {
        let ends = self.ends();
        let state = |master: &Arc<Master>| {
            let voters = master.raft().members().iter().filter(|member| member.voter).count();
            let (index, view) = master.raft().view_at();
            (voters, index.0, view.hash())
        };
        ends.running.iter().map(|(name, master)| (name.clone(), state(master))).collect()
    }

    fn check(&self, _world: &World) {
        for (name, master) in &self.ends().running {
            let view = master.raft().view();
            let hash = view.hash_of_rows();
            if hash.as_ref().ok() != Some(&view.hash()) {
                violation("O4", format!("{name}: rows hash to {hash:x?}, not {:x}", view.hash()));
            }
            if let Err(broken) = namespace::check(&view) {
                violation("O10", format!("{name}: {broken}"));
            }
        }
    }

    /// Takes a master out of the group, and a new one with an empty disk in.
    async fn replace(&self, world: &Arc<World>, name: &str, masters: u32) {
        let number: u32 = name[1..].parse().expect("m1 to m3");
        world.kill(name);
        self.forget(name);
        for _ in 0..200 {
            let old = address(number);
            let leader = self.leader();
            let members = leader.as_ref().map(|leader| leader.raft().members());
            let bad = members.iter().flatten().find(|member| member.address == old);
            match (&leader, bad) {
                (Some(leader), Some(bad)) => {
                    _ = leader.raft().remove_master(NodeId(bad.node.0)).await
                }
                (Some(_), None) => {
                    // Another machine for each that is replaced.
                    return self.add(world, masters + number, masters);
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stuck("O7", format!("{name} cannot be removed"));
    }
}

fn ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, number as u8)
}

fn address(number: u32) -> String {
    format!("{}:9420", ip(number))
}

/// What was done, and what must follow.
struct Treated {
    case: &'static str,
    name: String,
    fate: Fate,
    applied: LogIndex,
    /// Its number before.
    node: NodeId,
    masters: u32,
}

impl Treated {
    /// It runs, under whatever number, or refuses; in a group it runs in the end.
    async fn recovers(&self, world: &Arc<World>, group: &Group) {
        if self.observe(world, group, &self.name).await {
            if self.masters == 1 {
                group.agree(world, 1).await;
            }
            return;
        }
        if self.masters == 1 {
            return;
        }
        if self.case.starts_with("superblock") {
            group.replace(world, &self.name, self.masters).await;
            stats::count("replaced");
            return;
        }
        // It read what is damaged: whatever it does next ends it, and then it knows.
        for _ in 0..600 {
            if group.ended(&self.name).is_some() {
                break;
            }
            group.work(5).await;
        }
        group.forget(&self.name);
        world.restart(&self.name).await;
        self.enters_anew(world, group).await;
    }

    async fn enters_anew(&self, world: &World, group: &Group) {
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if group.get(&self.name).is_some_and(|master| master.node() != self.node) {
                return self.entered_anew(world);
            }
        }
        stuck("O7", format!("{}: {} does not enter its group anew", self.case, self.name));
    }

    fn entered_anew(&self, world: &World) {
        stats::count("entered anew");
        let disk = &world.disks(&self.name)[0];
        if !disk.paths().iter().any(|path| path.starts_with("damaged/")) {
            violation("O3", format!("{}: what {} had is gone", self.case, self.name));
        }
    }

    /// Without a majority it refuses, and whatever it had is still there.
    async fn stays(&self, world: &World, group: &Group, before: &Files) {
        for _ in 0..2000 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Some(line) = group.ended(&self.name) {
                self.refuses(&line);
                stats::count("kept");
                if !before.are_in(&world.disks(&self.name)[0]) {
                    violation("O3", format!("{}: {} gave its files up", self.case, self.name));
                }
                return;
            }
        }
        stuck("O7", format!("{}: {} neither runs nor refuses", self.case, self.name));
    }

    /// Watches the damaged master start: whether it runs on.
    async fn observe(&self, world: &World, group: &Group, name: &str) -> bool {
        let mut line = None;
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            line = group.ended(name);
            let master = group.get(name).filter(|_| line.is_none());
            if let Some(master) = master
                && self.caught_up(&master)
            {
                line = self.read_all(&master);
                if line.is_none() {
                    break;
                }
            }
            if line.is_some() {
                break;
            }
        }
        match &line {
            None => self.runs(world, group, name),
            Some(line) => self.refuses(line),
        }
        line.is_none()
    }

    fn caught_up(&self, master: &Master) -> bool {
        master.raft().applied() >= self.applied
    }

    /// Reads every row; the error ends the process as the master's own read would.
    fn read_all(&self, master: &Master) -> Option<String> {
        let view = master.raft().view();
        let error = view.hash_of_rows().err()?;
        stats::count("ended at a read");
        Some(error.to_string())
    }

    fn runs(&self, world: &World, group: &Group, name: &str) {
        stats::count("harmless");
        let Some(master) = group.get(name) else {
            stuck("O7", format!("{}: {name} neither runs nor refuses", self.case));
        };
        let applied = master.raft().applied();
        let anew = master.node() != self.node;
        if anew {
            self.entered_anew(world);
        }
        match self.fate {
            Fate::Harmless if anew => {
                violation("O8", format!("{}: {name} gives its number up for nothing", self.case));
            }
            Fate::Refused(_) if anew => {}
            Fate::Refused(_) => {
                violation("O8", format!("{}: {name} runs, it must refuse", self.case));
            }
            Fate::Tail(_) => {}
            Fate::Harmless | Fate::Any(_) if applied < self.applied => {
                let was = self.applied;
                violation("O3", format!("{}: {name} is at {applied}, was at {was}", self.case));
            }
            Fate::Harmless | Fate::Any(_) => {}
        }
    }

    fn refuses(&self, line: &str) {
        stats::count("refused");
        let file = match self.fate {
            Fate::Refused(file) | Fate::Any(file) | Fate::Tail(file) => file,
            Fate::Harmless => violation("O8", format!("{}: refused: {line}", self.case)),
        };
        let remedy = ["--join", "add it as a new", "empty directory"];
        let named = line.contains(file) || line.contains("the log ends at");
        if !named || !remedy.iter().any(|remedy| line.contains(remedy)) {
            violation("O8", format!("{}: the line names no file or remedy: {line}", self.case));
        }
        if line.contains('\n') {
            violation("O8", format!("{}: more than a line: {line}", self.case));
        }
    }
}

/// Long, so that few commands fill the tables.
fn host() -> String {
    "h".repeat(180)
}

/// Nonce of a session from before the last checkpoint.
const EARLY: u64 = 50;

/// Every file of a disk.
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn of(disk: &SimDisk) -> Files {
        let paths = disk.paths().into_iter();
        Files(paths.filter_map(|path| Some((path.clone(), disk.written(&path)?))).collect())
    }

    /// Whether they are on a disk where they were; opening the log changes what is in it, and which segments wait
    /// to be used again.
    fn are_in(&self, disk: &SimDisk) -> bool {
        let paths = disk.paths();
        let log = |path: &&String| path.starts_with("wal/");
        let mut rest = self.0.keys().filter(|path| !log(path));
        let has_log = paths.iter().any(|path| log(&path));
        let aside = paths.iter().any(|path| path.starts_with("damaged/"));
        !aside
            && rest.all(|path| paths.contains(path))
            && has_log == self.0.keys().any(|path| log(&path))
    }
}

/// A stopped master's disk.
struct Patient {
    disk: Arc<SimDisk>,
    incarnation: u64,
    rng: Rng,
    older: Files,
}

impl Patient {
    fn handle(&self) -> Arc<dyn Disk> {
        self.disk.handle(self.incarnation)
    }

    fn len(&self, path: &str) -> u64 {
        self.disk.written(path).expect("the file is there").len() as u64
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let file = self.handle().open(path, OpenMode::Create).expect("open");
        file.set_len(0).expect("cut");
        file.write_at(0, bytes).expect("write");
        file.sync_data().expect("sync");
        self.handle().sync_dir("").expect("sync");
    }

    fn flip_at(&mut self, path: &str, at: u64, fate: Fate) -> Fate {
        let mask = 1 << self.rng.below(8);
        assert!(self.disk.rot(path, at, mask), "{path} has no byte {at}");
        fate
    }

    /// Any byte at or behind `from`.
    fn flip(&mut self, path: &str, from: u64, fate: Fate) -> Fate {
        let at = self.rng.range(from, self.len(path));
        self.flip_at(path, at, fate)
    }

    fn cut(&mut self, path: &str, fate: Fate) -> Fate {
        let len = self.rng.below(self.len(path));
        let file = self.handle().open(path, OpenMode::Write).expect("open");
        file.set_len(len).expect("cut");
        file.sync_data().expect("sync");
        fate
    }

    fn remove(&mut self, path: &str, fate: Fate) -> Fate {
        self.handle().remove(path).expect("remove");
        self.handle().sync_dir("").expect("sync");
        fate
    }

    fn log(&self) -> wal::Recovered {
        wal::inspect(&*self.handle()).expect("an intact log")
    }

    /// Path of the n-th segment that counts.
    fn segment_path(&self, number: usize) -> String {
        let log = self.log();
        let segment = log.live.values().nth(number.min(log.live.len() - 1)).expect("one");
        format!("wal/{:020}.log", segment.slot)
    }

    /// A byte of an entry's payload: the first entry, one in the middle, the last.
    fn flip_entry(&mut self, which: usize) -> Fate {
        let log = self.log();
        let at = [0, log.entries.len() / 2, log.entries.len() - 1][which];
        let entry = log.entries[at];
        let path = format!("wal/{:020}.log", log.live[&entry.generation].slot);
        self.flip_at(&path, entry.offset, Fate::Refused("wal/"))
    }

    fn remove_log(&mut self) -> Fate {
        for name in self.handle().list("wal").expect("a log") {
            self.handle().remove(&format!("wal/{name}")).expect("remove");
        }
        self.handle().sync_dir("wal").expect("sync");
        Fate::Refused("holds no log")
    }

    fn overwrite_free_segments(&mut self) -> Fate {
        let log = self.log();
        for slot in &log.free_slots {
            let path = format!("wal/{slot:020}.log");
            let noise: Vec<u8> = (0..self.len(&path)).map(|_| self.rng.u64() as u8).collect();
            self.write(&path, &noise);
        }
        Fate::Harmless
    }

    /// The log as it was before the newest checkpoint.
    fn restore_log(&mut self) -> Fate {
        self.remove_log();
        let older = std::mem::take(&mut self.older.0);
        for (path, bytes) in older.iter().filter(|(path, _)| path.starts_with("wal/")) {
            self.write(path, bytes);
        }
        Fate::Refused("before the checkpoint")
    }

    /// The tables as they were before the log was purged beyond them.
    fn restore_tables(&mut self) -> Fate {
        // A run that had no checkpoint yet at that time has no older tables to restore.
        let Some(older) = self.older.0.get(TABLES).cloned() else { return Fate::Harmless };
        self.write(TABLES, &older);
        Fate::Refused("the tables are at")
    }

    fn flip_pages(&mut self) -> Fate {
        let pages = self.len(TABLES) / BLOCK - 5;
        for _ in 0..1 + pages / 20 {
            let at = (5 + self.rng.below(pages)) * BLOCK + self.rng.below(BLOCK);
            self.flip_at(TABLES, at, Fate::Any(TABLES));
        }
        Fate::Any(TABLES)
    }

    /// The page that holds an early session, which nothing asks for but a look at all rows; other pages only held
    /// it once. In a development build redb walks all pages when it opens a file, so the master refuses; in a
    /// release build the look at all rows ends it.
    fn flip_early_page(&mut self) -> Fate {
        let bytes = self.disk.written(TABLES).expect("tables");
        let row = pb::SessionRow { client_nonce: EARLY, host: host(), ..Default::default() };
        let row = prost::Message::encode_to_vec(&row);
        let place = |page: &[u8]| page.windows(row.len()).position(|window| window == row);
        let pages = (0..).step_by(BLOCK as usize).zip(bytes.chunks(BLOCK as usize)).skip(5);
        let held = pages.filter_map(|(at, page)| Some(at + place(page)? as u64));
        let live = held.into_iter().find(|at| self.is_live(*at));
        let file = if cfg!(debug_assertions) { Fate::Refused(TABLES) } else { Fate::Any(TABLES) };
        self.flip_at(TABLES, live.expect("the page of that session"), file)
    }

    /// Whether anybody who reads everything meets this byte.
    fn is_live(&self, at: u64) -> bool {
        let copy = self.disk.duplicate(at);
        copy.rot(TABLES, at, 1);
        let opened = Db::open(copy.handle(1), TABLES, &Limits::tiny());
        opened.map_or(true, |(db, _)| db.view().hash_of_rows().is_err())
    }

    fn zero_pages(&mut self) -> Fate {
        let mut bytes = self.disk.written(TABLES).expect("tables");
        bytes[5 * BLOCK as usize..].fill(0);
        self.write(TABLES, &bytes);
        Fate::Refused(TABLES)
    }
}
