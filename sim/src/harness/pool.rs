//! As many children at once as there are cores.

use super::child::{Outcome, spawn};
use super::job::Job;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// How many children run at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get())
}

/// Lets so many children run at once, whatever the number of sweeps.
struct Slots(Mutex<usize>, Condvar);

static SLOTS: Slots = Slots(Mutex::new(0), Condvar::new());

/// Runs the job in a child as soon as a core is free.
pub fn run(job: &Job) -> Outcome {
    let mut taken = SLOTS.0.lock().unwrap_or_else(PoisonError::into_inner);
    while *taken >= cores() {
        taken = SLOTS.1.wait(taken).unwrap_or_else(PoisonError::into_inner);
    }
    *taken += 1;
    drop(taken);
    let outcome = spawn(job);
    *SLOTS.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    SLOTS.1.notify_one();
    outcome
}

/// Works through jobs on all cores, handing each outcome over as it comes, until there are no more or `done`
/// says that it is enough.
pub fn each(next: impl Fn() -> Option<Job> + Sync, done: impl Fn(Job, Outcome) -> bool + Sync) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Some(job) = next() else { return };
                    let outcome = run(&job);
                    if done(job, outcome) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Does `work` for every item on as many threads as there are cores, in order of their results.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..cores().min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
