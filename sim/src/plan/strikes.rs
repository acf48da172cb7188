//! What the injector does, with every time and target.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One thing that the injector does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strike {
    /// A process is killed, or its machine loses power.
    Down {
        /// The machine.
        node: String,
        /// It loses power.
        power: bool,
        /// Not now, but inside a call of this disk, after so many further changes.
        inside: Option<(usize, u64)>,
        /// It starts again so much later, milliseconds.
        back_ms: u64,
    },
    /// All machines lose power at once.
    Blackout {
        /// When each starts again, milliseconds.
        back_ms: BTreeMap<String, u64>,
    },
    /// A process stops.
    Pause {
        /// The machine.
        node: String,
        /// For so long, milliseconds.
        ms: u64,
    },
    /// Links between two groups are cut.
    Cut {
        /// One group.
        from: Vec<String>,
        /// The other.
        to: Vec<String>,
        /// Both ways.
        both: bool,
        /// For so long, milliseconds.
        ms: u64,
    },
    /// Messages are slow.
    Lag {
        /// They take at least so long, milliseconds.
        least_ms: u64,
        /// And at most so long.
        most_ms: u64,
        /// For so long.
        ms: u64,
    },
    /// Frames between two machines are late, in both directions.
    SlowLink {
        /// One of them.
        from: String,
        /// The other.
        to: String,
        /// By so much, milliseconds.
        late_ms: u64,
        /// For so long.
        ms: u64,
    },
    /// A wall clock jumps.
    ClockStep {
        /// The machine.
        node: String,
        /// By so much, milliseconds.
        by_ms: i64,
    },
    /// A disk is slow.
    SlowDisk {
        /// The machine.
        node: String,
        /// Which of its disks.
        disk: usize,
        /// One call in so many ...
        one_in: u32,
        /// ... takes up to so long, milliseconds.
        most_ms: u64,
        /// For so long, milliseconds.
        ms: u64,
    },
}

/// A step of the injector: it waits, then does something or finds nothing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Since the step before, milliseconds.
    pub pause_ms: u64,
    /// What it does.
    pub strike: Option<Strike>,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strike::Down { node, power, inside, back_ms } => {
                let what = if *power { "loses power" } else { "is killed" };
                write!(f, "{node} {what}")?;
                if let Some((disk, changes)) = inside {
                    write!(f, " inside a call of disk {disk}, {changes} changes later")?;
                }
                write!(f, ", back after {back_ms} ms")
            }
            Strike::Blackout { back_ms } => {
                let back: Vec<String> =
                    back_ms.iter().map(|(node, ms)| format!("{node} {ms}")).collect();
                write!(f, "everything loses power, back after ms: {}", back.join(", "))
            }
            Strike::Pause { node, ms } => write!(f, "{node} stops for {ms} ms"),
            Strike::Cut { from, to, both, ms } => {
                let arrow = if *both { "<>" } else { "->" };
                write!(f, "cut {} {arrow} {} for {ms} ms", from.join(","), to.join(","))
            }
            Strike::Lag { least_ms, most_ms, ms } => {
                write!(f, "messages take {least_ms}-{most_ms} ms for {ms} ms")
            }
            Strike::SlowLink { from, to, late_ms, ms } => {
                write!(f, "frames between {from} and {to} are {late_ms} ms late for {ms} ms")
            }
            Strike::ClockStep { node, by_ms } => write!(f, "{node}: wall clock jumps {by_ms} ms"),
            Strike::SlowDisk { node, disk, one_in, most_ms, ms } => write!(
                f,
                "{node}: one call in {one_in} of disk {disk} takes up to {most_ms} ms, for {ms} ms"
            ),
        }
    }
}
