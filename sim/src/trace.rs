//! What happened in this run: a rolling hash over (simulated time, node, event, payload), which must be the
//! same in every process that runs the seed (oracle O12), and a timeline for people, one line a transition.
//!
//! One process runs one seed, so this state is the process's.

use mooseng::checksum::crc32c;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Lines kept for the end of a failing run.
const LINES_KEPT: usize = 120;

struct Trace {
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
    print: bool,
}

static TRACE: Mutex<Trace> =
    Mutex::new(Trace { hash: 0, events: 0, lines: VecDeque::new(), print: false });

fn with<T>(work: impl FnOnce(&mut Trace) -> T) -> T {
    work(&mut TRACE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// True simulated time, nanoseconds since the start of the run; 0 outside of one.
pub fn now_ns() -> u64 {
    let time = madsim::time::TimeHandle::try_current();
    time.map_or(0, |time| u64::try_from(time.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Takes an event into the hash.
pub fn event(kind: &str, node: &str, payload: &[u8]) {
    let (time, crcs) = (now_ns(), [kind.as_bytes(), node.as_bytes(), payload].map(crc32c));
    with(|trace| {
        trace.events += 1;
        let numbers = crcs.iter().fold(mix(trace.hash, time), |hash, crc| mix(hash, (*crc).into()));
        trace.hash = mix(numbers, payload.len() as u64);
    });
}

/// Takes an event into the hash and its line into the timeline.
pub fn line(node: &str, text: &str) {
    event("line", node, text.as_bytes());
    let time = now_ns();
    let line =
        format!("{:>4}.{:06} {node:<6} {text}", time / 1_000_000_000, time / 1000 % 1_000_000);
    with(|trace| {
        if trace.print {
            println!("{line}");
        }
        if trace.lines.len() == LINES_KEPT {
            trace.lines.pop_front();
        }
        trace.lines.push_back(line);
    });
}

/// Prints lines as they come.
pub fn print_lines() {
    with(|trace| trace.print = true);
}

/// The hash so far and how many events it covers.
pub fn hash() -> (u64, u64) {
    with(|trace| (trace.hash, trace.events))
}

/// The last lines of the timeline.
pub fn last_lines() -> Vec<String> {
    with(|trace| trace.lines.iter().cloned().collect())
}
