//! What happened in this run: a rolling hash over (simulated time, node, event, payload), which must be the
//! same in every process that runs the seed (oracle O12), and a timeline for people, one line a transition.
//!
//! One process runs one seed, so this state is the process's.

use mooseng::checksum::crc32c;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Lines kept for the end of a failing run.
const LINES_KEPT: usize = 120;

/// What a line of the timeline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Anything else.
    Note,
    /// The run enters another phase.
    Phase,
    /// A process starts.
    Starts,
    /// A process ended by itself.
    Ends,
    /// A process was killed.
    Killed,
    /// A machine lost power.
    PowerLoss,
    /// A process was stopped.
    Stopped,
    /// A stopped process goes on.
    Continues,
    /// Links were cut.
    Cut,
    /// Links were mended.
    Mended,
    /// Messages take another time from now on.
    Lag,
    /// A wall clock jumped.
    Clock,
    /// Something happened to a disk.
    Disk,
    /// A master leads or follows.
    Role,
    /// A client's operation ended.
    Operation,
    /// A promise was broken.
    Broken,
}

/// A line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// True simulated time, nanoseconds since the start of the run.
    pub time_ns: u64,
    /// The machine, or `net`, `world`, `-`.
    pub node: String,
    /// What it is about.
    pub kind: Kind,
    /// What happened.
    pub text: String,
    /// When it began, where that is another time.
    pub since_ns: Option<u64>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.time_ns / 1_000_000_000, self.time_ns / 1000 % 1_000_000);
        write!(f, "{seconds:>4}.{micros:06} {:<6} {}", self.node, self.text)?;
        match self.since_ns {
            Some(since) => write!(f, " ({} us)", self.time_ns.saturating_sub(since) / 1000),
            None => Ok(()),
        }
    }
}

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// All are kept, instead of the last.
    pub all: bool,
    /// They are printed as they come ...
    pub print: bool,
    /// ... those of clients' operations too.
    pub print_operations: bool,
}

struct Trace {
    hash: u64,
    events: u64,
    last_ns: u64,
    lines: VecDeque<Entry>,
    keep: Keep,
}

static TRACE: Mutex<Trace> = Mutex::new(Trace {
    hash: 0,
    events: 0,
    last_ns: 0,
    lines: VecDeque::new(),
    keep: Keep { all: false, print: false, print_operations: false },
});

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
        trace.last_ns = trace.last_ns.max(time);
        let numbers = crcs.iter().fold(mix(trace.hash, time), |hash, crc| mix(hash, (*crc).into()));
        trace.hash = mix(numbers, payload.len() as u64);
    });
}

/// Takes an event into the hash and its line into the timeline.
pub fn line(node: &str, text: &str) {
    say(Kind::Note, node, text);
}

/// The same, for something that the timeline draws in its own way.
pub fn say(kind: Kind, node: &str, text: &str) {
    add(kind, node, text, None);
}

/// A client's operation that began at `since_ns` has ended.
pub fn operation(node: &str, since_ns: u64, text: &str) {
    add(Kind::Operation, node, text, Some(since_ns));
}

/// The run ended here, as nobody inside of it said.
pub fn broken(text: &str) {
    let time_ns = last_ns();
    let entry = Entry {
        time_ns,
        node: "-".to_owned(),
        kind: Kind::Broken,
        text: text.to_owned(),
        since_ns: None,
    };
    with(|trace| trace.put(entry));
}

fn add(kind: Kind, node: &str, text: &str, since_ns: Option<u64>) {
    event("line", node, text.as_bytes());
    let (node, text) = (node.to_owned(), text.to_owned());
    let entry = Entry { time_ns: now_ns(), node, kind, text, since_ns };
    with(|trace| trace.put(entry));
}

impl Trace {
    fn put(&mut self, entry: Entry) {
        let rare = entry.kind != Kind::Operation;
        if self.keep.print && (rare || self.keep.print_operations) {
            println!("{entry}");
        }
        if !self.keep.all && !rare {
            return;
        }
        if !self.keep.all && self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(entry);
    }
}

/// Says what becomes of the lines from now on.
pub fn keep(keep: Keep) {
    with(|trace| trace.keep = keep);
}

/// The hash so far and how many events it covers.
pub fn hash() -> (u64, u64) {
    with(|trace| (trace.hash, trace.events))
}

/// The time of the latest event.
pub fn last_ns() -> u64 {
    with(|trace| trace.last_ns)
}

/// The lines that were kept.
pub fn lines() -> Vec<Entry> {
    with(|trace| trace.lines.iter().cloned().collect())
}
