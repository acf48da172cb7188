//! The injector: strikes at random moments with the kinds of fault that the run has on, within a budget that
//! keeps a majority of masters and enough chunkservers up, except when everything goes dark at once.

use super::node::{Power, Role};
use super::{FaultKind, World};
use crate::plan::{FaultClass, Planned, Strike};
use crate::rng::{Ratio, Rng};
use crate::trace::Kind;
use crate::{plan, stats, trace};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a disk to reach the call at which its machine goes down, milliseconds.
const MID_CALL_MS: u64 = 300;

/// Runs of at least this length have a few pauses of up to a minute, milliseconds.
const LONG_RUN_MS: u64 = 60_000;
/// Bounds of a long pause, milliseconds: half of them end before the next blackout is likely.
const LONG_PAUSE_MS: [std::ops::Range<u64>; 2] = [4_000..15_000, 4_000..60_001];

/// How many processes of a role may be away at a time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Masters.
    pub masters: usize,
    /// Chunkservers.
    pub chunkservers: usize,
    /// Clients.
    pub clients: usize,
}

impl Budget {
    /// A minority of masters, and as many chunkservers as the layout tolerates, but at least one of each
    /// (everything comes back).
    pub fn of(world: &World) -> Budget {
        let options = &world.options;
        Budget {
            masters: (options.masters.saturating_sub(1) as usize / 2).max(1),
            chunkservers: (options.parity as usize).max(1),
            clients: 1,
        }
    }

    fn most(&self, role: Role) -> usize {
        match role {
            Role::Master => self.masters,
            Role::Chunkserver => self.chunkservers,
            Role::Client => self.clients,
        }
    }
}

/// Injects faults until the time is over: those of the given plan, or else what it draws.
pub async fn chaos(world: Arc<World>, budget: Budget, time: Duration) {
    let end = trace::now_ns() + time.as_nanos() as u64;
    match plan::given_strikes() {
        Some(steps) => carry_out(&world, steps, end).await,
        None => draw_all(&world, &budget, end).await,
    }
    // What was to strike inside a call has struck by then, not after the world is healed.
    let last = Duration::from_millis(MID_CALL_MS + 1).as_nanos() as u64;
    let left = (end + last).saturating_sub(trace::now_ns());
    tokio::time::sleep(Duration::from_nanos(left)).await;
}

async fn draw_all(world: &Arc<World>, budget: &Budget, end: u64) {
    let mut rng = world.rng("injector");
    let kinds = world.options.faults.kinds.clone();
    let mut pauses = world.rng("long pauses");
    loop {
        let pause_ms = rng.range(1, 2 * world.options.faults.pause_ms.max(1));
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        let over = trace::now_ns() >= end || kinds.is_empty();
        let strike = if over { None } else { draw(world, budget, &kinds, &mut rng) };
        let strike = strike.map(|strike| lengthen(world, strike, &mut pauses));
        plan::record_strike(Planned { pause_ms, strike: strike.clone() });
        if let Some(strike) = strike {
            perform(world, strike);
        }
        if over {
            return;
        }
    }
}

async fn carry_out(world: &Arc<World>, steps: Vec<Planned>, end: u64) {
    for step in steps {
        tokio::time::sleep(Duration::from_millis(step.pause_ms)).await;
        if trace::now_ns() >= end {
            return;
        }
        plan::record_strike(step.clone());
        if let Some(strike) = step.strike
            && possible(world, &strike)
        {
            perform(world, strike);
        }
    }
}

/// Whether the machines that the strike names exist: a plan may be carried out in a smaller world.
fn possible(world: &World, strike: &Strike) -> bool {
    let names = world.all_names();
    let known = |name: &String| names.contains(name);
    match strike {
        Strike::Down { node, inside, .. } => {
            known(node) && inside.is_none_or(|(disk, _)| disk < world.disks(node).len())
        }
        Strike::SlowDisk { node, disk, .. } => known(node) && *disk < world.disks(node).len(),
        Strike::Pause { node, .. } | Strike::ClockStep { node, .. } => known(node),
        Strike::Cut { from, to, .. } => from.iter().chain(to).all(known),
        Strike::SlowLink { from, to, .. } => known(from) && known(to),
        Strike::Blackout { back_ms } => back_ms.keys().all(known),
        Strike::Lag { .. } => true,
    }
}

/// Something to do; `None` if the budget or the state of the world does not allow it.
fn draw(world: &World, budget: &Budget, kinds: &[FaultKind], rng: &mut Rng) -> Option<Strike> {
    let kind = *rng.pick(kinds);
    let strike = match kind {
        FaultKind::Kill => one_down(world, budget, rng, 3_000, false)?,
        FaultKind::PowerLoss => one_down(world, budget, rng, 4_000, true)?,
        FaultKind::Blackout => Strike::Blackout {
            back_ms: world.all_names().into_iter().map(|n| (n, rng.range(50, 1_500))).collect(),
        },
        FaultKind::Pause => {
            Strike::Pause { node: victim(world, budget, rng)?, ms: rng.range(5, 4_000) }
        }
        FaultKind::Partition => split(world, rng, true)?,
        FaultKind::OneWay => split(world, rng, false)?,
        FaultKind::Isolate => {
            let all = world.all_names();
            let one = rng.pick(&all).clone();
            let rest = all.into_iter().filter(|name| *name != one).collect();
            Strike::Cut { from: vec![one], to: rest, both: true, ms: rng.range(20, 4_000) }
        }
        FaultKind::Lag => Strike::Lag {
            least_ms: rng.range(1, 50),
            most_ms: rng.range(60, 500),
            ms: rng.range(50, 2_000),
        },
        FaultKind::ClockStep => Strike::ClockStep {
            node: rng.pick(&world.all_names()).clone(),
            by_ms: rng.below(7_200_001) as i64 - 3_600_000,
        },
        FaultKind::SlowDisk => slow_disk(world, rng)?,
        FaultKind::SlowLink => slow_link(world, rng)?,
    };
    if !plan::strikes(kind.class()) {
        return None;
    }
    stats::count(kind.counter());
    Some(without_manners(strike))
}

/// In a long run one pause in three of a master or a chunkserver is a long one: of a chunkserver mostly longer than it
/// takes to be declared dead.
fn lengthen(world: &World, strike: Strike, rng: &mut Rng) -> Strike {
    match strike {
        Strike::Pause { node, .. }
            if world.options.chaos_ms >= LONG_RUN_MS
                && !world.names(Role::Client).contains(&node)
                && rng.chance(1, 3) =>
        {
            stats::count("fault: long pause");
            let bounds = rng.pick(&LONG_PAUSE_MS).clone();
            Strike::Pause { node, ms: rng.range(bounds.start, bounds.end) }
        }
        other => other,
    }
}

/// The strike as it is if its manner is left out.
fn without_manners(strike: Strike) -> Strike {
    match strike {
        Strike::Down { node, power, inside: Some(at), back_ms } => {
            let inside = plan::strikes(FaultClass::InsideCall).then_some(at);
            Strike::Down { node, power, inside, back_ms }
        }
        other => other,
    }
}

/// A running machine whose role has room in the budget.
fn victim(world: &World, budget: &Budget, rng: &mut Rng) -> Option<String> {
    let role = *rng.pick(&[Role::Master, Role::Chunkserver, Role::Client]);
    let names = world.names(role);
    let (up, away): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| world.power(name) == Power::Up);
    (!up.is_empty() && away.len() < budget.most(role)).then(|| rng.pick(&up).clone())
}

fn one_down(
    world: &World,
    budget: &Budget,
    rng: &mut Rng,
    ms_max: u64,
    power: bool,
) -> Option<Strike> {
    let node = victim(world, budget, rng)?;
    let (back_ms, disks) = (rng.range(5, ms_max), world.disks(&node).len());
    let at_once = disks == 0 || rng.chance(1, 2);
    let inside = (!at_once).then(|| (rng.index(disks), rng.below(12)));
    Some(Strike::Down { node, power, inside, back_ms })
}

/// A cut between two groups that together are everybody, neither empty.
fn split(world: &World, rng: &mut Rng, both: bool) -> Option<Strike> {
    let mut from = world.all_names();
    rng.shuffle(&mut from);
    let to = from.split_off(rng.range(1, from.len() as u64) as usize);
    let nobody = from.is_empty() || to.is_empty();
    (!nobody).then(|| Strike::Cut { from, to, both, ms: rng.range(20, 4_000) })
}

fn slow_disk(world: &World, rng: &mut Rng) -> Option<Strike> {
    let node = rng.pick(&world.all_names()).clone();
    let disks = world.disks(&node).len();
    (disks > 0).then(|| Strike::SlowDisk {
        node,
        disk: rng.index(disks),
        one_in: rng.range(1, 10) as u32,
        most_ms: rng.range(5, 2_000),
        ms: rng.range(100, 3_000),
    })
}

fn slow_link(world: &World, rng: &mut Rng) -> Option<Strike> {
    let mut all = world.all_names();
    rng.shuffle(&mut all);
    let mut two = all.into_iter();
    let (late_ms, ms) = (rng.range(5, 1_200), rng.range(100, 4_000));
    Some(Strike::SlowLink { from: two.next()?, to: two.next()?, late_ms, ms })
}

/// Does it.
fn perform(world: &Arc<World>, strike: Strike) {
    match strike {
        Strike::Down { node, power, inside: None, back_ms } => {
            down(world, &node, power);
            restart_later(world, node, back_ms);
        }
        Strike::Down { node, power, inside: Some((disk, changes)), back_ms } => {
            down_inside(world, node, power, (disk, changes), back_ms);
        }
        Strike::Blackout { back_ms } => {
            trace::say(Kind::Phase, "world", "blackout");
            for (name, ms) in back_ms {
                world.power_loss(&name);
                restart_later(world, name, ms);
            }
        }
        Strike::Pause { node, ms } => {
            world.pause(&node);
            tokio::spawn(resume_later(world.clone(), node, ms));
        }
        Strike::Cut { from, to, both, ms } => {
            match both {
                true => world.cut(&from, &to),
                false => world.cut_one_way(&from, &to),
            }
            let world = world.clone();
            later(ms, async move { world.join(&from, &to) });
        }
        Strike::Lag { least_ms, most_ms, ms } => {
            trace::say(Kind::Lag, "net", &format!("messages take {least_ms}-{most_ms} ms"));
            world.latency(Duration::from_millis(least_ms), Duration::from_millis(most_ms));
            let world = world.clone();
            later(ms, async move { world.usual_latency() });
        }
        Strike::SlowLink { from, to, late_ms, ms } => {
            let what = format!("frames between {from} and {to} are {late_ms} ms late");
            trace::say(Kind::Lag, "net", &what);
            world.slow_link(&from, &to, late_ms);
            let world = world.clone();
            later(ms, async move { world.slow_link(&from, &to, 0) });
        }
        Strike::ClockStep { node, by_ms } => world.step_clock(&node, by_ms),
        Strike::SlowDisk { node, disk, one_in, most_ms, ms } => {
            trace::say(Kind::Disk, &node, &format!("a disk takes up to {most_ms} ms"));
            let disk = world.disks(&node)[disk].clone();
            let ratio = Ratio::one_in(one_in);
            disk.set_faults(|faults| (faults.slow, faults.slow_ms_max) = (ratio, most_ms));
            later(ms, async move { disk.set_faults(|faults| faults.slow = Ratio::NEVER) });
        }
    }
}

fn down(world: &World, node: &str, power: bool) {
    match power {
        true => world.power_loss(node),
        false => world.kill(node),
    }
}

/// Its disk answers nothing from one of the next changes on, then the machine is gone.
fn down_inside(
    world: &Arc<World>,
    node: String,
    power: bool,
    (disk, changes): (usize, u64),
    back_ms: u64,
) {
    let (world, disk) = (world.clone(), world.disks(&node)[disk].clone());
    disk.die_after(changes);
    tokio::spawn(async move {
        for _ in 0..MID_CALL_MS {
            if disk.is_dead() {
                stats::count("fault: down inside a disk call");
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        down(&world, &node, power);
        disk.revive();
        restart_later(&world, node, back_ms);
    });
}

/// The process goes on after so many milliseconds; counted is whether it was stopped for longer than it
/// takes to be declared dead.
async fn resume_later(world: Arc<World>, node: String, ms: u64) {
    let server = world.names(Role::Chunkserver).contains(&node);
    let (starts, dead) = (world.incarnation(&node), world.limits().server_dead);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    let slept = world.power(&node) == Power::Paused && world.incarnation(&node) == starts;
    if server && slept && Duration::from_millis(ms) > dead {
        stats::count("fault: chunkserver stopped past server_dead");
    }
    world.resume(&node);
}

/// Does something after so many milliseconds.
pub(super) fn later<F>(ms: u64, work: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        work.await;
    });
}

fn restart_later(world: &Arc<World>, name: String, ms: u64) {
    let world = world.clone();
    later(ms, async move { world.restart(&name).await });
}
