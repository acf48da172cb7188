//! The injector: strikes at random moments with the kinds of fault that the run has on, within a budget that
//! keeps a majority of masters and enough chunkservers up, except when everything goes dark at once.

use super::node::{Power, Role};
use super::{FaultKind, World};
use crate::rng::{Ratio, Rng};
use crate::{stats, trace};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a disk to reach the call at which its machine goes down, milliseconds.
const MID_CALL_MS: u64 = 300;

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

/// Injects faults until the time is over.
pub async fn chaos(world: Arc<World>, budget: Budget, time: Duration) {
    let mut rng = world.rng("injector");
    let end = trace::now_ns() + time.as_nanos() as u64;
    let kinds = world.options.faults.kinds.clone();
    loop {
        let pause = rng.range(1, 2 * world.options.faults.pause_ms.max(1));
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if trace::now_ns() >= end || kinds.is_empty() {
            break;
        }
        let kind = *rng.pick(&kinds);
        if strike(&world, kind, &budget, &mut rng) {
            stats::count(kind.counter());
        }
    }
    let left = end.saturating_sub(trace::now_ns());
    tokio::time::sleep(Duration::from_nanos(left)).await;
}

/// Does one thing; false if the budget or the state of the world does not allow it.
fn strike(world: &Arc<World>, kind: FaultKind, budget: &Budget, rng: &mut Rng) -> bool {
    match kind {
        FaultKind::Kill => one_down(world, budget, rng, 3_000, World::kill),
        FaultKind::PowerLoss => one_down(world, budget, rng, 4_000, World::power_loss),
        FaultKind::Blackout => blackout(world, rng),
        FaultKind::Pause => pause(world, budget, rng),
        FaultKind::Partition => {
            let (a, b) = split(world, rng);
            cut_for_a_while(world, rng, a, b, World::cut)
        }
        FaultKind::OneWay => {
            let (a, b) = split(world, rng);
            cut_for_a_while(world, rng, a, b, World::cut_one_way)
        }
        FaultKind::Isolate => {
            let all = world.all_names();
            let one = rng.pick(&all).clone();
            let rest = all.into_iter().filter(|name| *name != one).collect();
            cut_for_a_while(world, rng, vec![one], rest, World::cut)
        }
        FaultKind::Lag => lag(world, rng),
        FaultKind::ClockStep => {
            let name = rng.pick(&world.all_names()).clone();
            world.step_clock(&name, rng.below(7_200_001) as i64 - 3_600_000);
            true
        }
        FaultKind::SlowDisk => slow_disk(world, rng),
    }
}

/// Does something after so many milliseconds.
fn later<F>(ms: u64, work: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        work.await;
    });
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
    world: &Arc<World>,
    budget: &Budget,
    rng: &mut Rng,
    ms_max: u64,
    down: fn(&World, &str),
) -> bool {
    let Some(name) = victim(world, budget, rng) else { return false };
    let (back, disks) = (rng.range(5, ms_max), world.disks(&name));
    if disks.is_empty() || rng.chance(1, 2) {
        down(world, &name);
        restart_later(world, name, back);
        return true;
    }
    // Inside a call: its disk answers nothing from one of the next changes on, then the machine is gone.
    let disk = rng.pick(&disks).clone();
    disk.die_after(rng.below(12));
    let world = world.clone();
    tokio::spawn(async move {
        for _ in 0..MID_CALL_MS {
            if disk.is_dead() {
                stats::count("fault: down inside a disk call");
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        down(&world, &name);
        disk.revive();
        restart_later(&world, name, back);
    });
    true
}

fn restart_later(world: &Arc<World>, name: String, ms: u64) {
    let world = world.clone();
    later(ms, async move { world.restart(&name).await });
}

fn blackout(world: &Arc<World>, rng: &mut Rng) -> bool {
    trace::line("world", "blackout");
    for name in world.all_names() {
        world.power_loss(&name);
        restart_later(world, name, rng.range(50, 1_500));
    }
    true
}

fn pause(world: &Arc<World>, budget: &Budget, rng: &mut Rng) -> bool {
    let Some(name) = victim(world, budget, rng) else { return false };
    world.pause(&name);
    let (world, ms) = (world.clone(), rng.range(5, 4_000));
    later(ms, async move { world.resume(&name) });
    true
}

/// Two groups that together are everybody, neither empty.
fn split(world: &World, rng: &mut Rng) -> (Vec<String>, Vec<String>) {
    let mut all = world.all_names();
    rng.shuffle(&mut all);
    let rest = all.split_off(rng.range(1, all.len() as u64) as usize);
    (all, rest)
}

fn cut_for_a_while(
    world: &Arc<World>,
    rng: &mut Rng,
    a: Vec<String>,
    b: Vec<String>,
    cut: impl Fn(&World, &[String], &[String]),
) -> bool {
    if a.is_empty() || b.is_empty() {
        return false;
    }
    cut(world, &a, &b);
    let (world, ms) = (world.clone(), rng.range(20, 4_000));
    later(ms, async move { world.join(&a, &b) });
    true
}

fn lag(world: &Arc<World>, rng: &mut Rng) -> bool {
    let (least, most) = (rng.range(1, 50), rng.range(60, 500));
    trace::line("net", &format!("messages take {least}-{most} ms"));
    world.latency(Duration::from_millis(least), Duration::from_millis(most));
    let (world, ms) = (world.clone(), rng.range(50, 2_000));
    later(ms, async move { world.usual_latency() });
    true
}

fn slow_disk(world: &Arc<World>, rng: &mut Rng) -> bool {
    let name = rng.pick(&world.all_names()).clone();
    let disks = world.disks(&name);
    if disks.is_empty() {
        return false;
    }
    let disk = rng.pick(&disks).clone();
    let (ratio, most) = (Ratio::one_in(rng.range(1, 10) as u32), rng.range(5, 2_000));
    trace::line(&name, &format!("a disk takes up to {most} ms"));
    disk.set_faults(|faults| (faults.slow, faults.slow_ms_max) = (ratio, most));
    later(rng.range(100, 3_000), async move {
        disk.set_faults(|faults| faults.slow = Ratio::NEVER);
    });
    true
}
