//! Everything that reads bytes from the wire or from disks, behind one kind of function: the property tests and
//! the fuzzer run the same ones. Each takes any bytes, must not panic, and checks what must hold of whatever it
//! made of them.
//!
//! Checksums would turn nearly all inputs away. Where the first byte of an input is odd, those of the structures
//! in the rest are set to what they should be, so that what stands behind them is reached.

mod bytes;
mod disks;
mod frames;
mod machine;
mod messages;
mod rows;

pub use bytes::Reader;
pub use frames::frame_count;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// Name, also of the fuzzer's target and of its corpus.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(&[u8]),
    /// Inputs that it makes something of.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Bytes of memory that it may take at once beside 16 times its input.
    pub fixed_bytes: usize,
}

/// For errors and the like.
const LITTLE: usize = 4 << 10;
/// Reserved for what a frame's header claims, and the buffer that it is read into.
const FRAME: usize = (1 << 20) + (80 << 10);
/// Caches of logs and stores, and the files of the disk themselves.
const DISK: usize = 2 << 20;
/// A state machine with what is in it, and the largest answer.
const STATE: usize = 8 << 20;

/// All of them.
pub const ALL: &[Decoder] = &[
    Decoder {
        name: "frames",
        about: "a stream of frames and the message in each",
        run: frames::run,
        seeds: frames::seeds,
        fixed_bytes: FRAME + LITTLE,
    },
    Decoder {
        name: "messages",
        about: "one message of a call, of the log or of a disk",
        run: messages::run,
        seeds: messages::seeds,
        fixed_bytes: LITTLE,
    },
    Decoder {
        name: "records",
        about: "framed records and the message in each",
        run: messages::run_records,
        seeds: messages::record_seeds,
        fixed_bytes: LITTLE,
    },
    Decoder {
        name: "rows",
        about: "keys and rows of the tables",
        run: rows::run,
        seeds: rows::seeds,
        fixed_bytes: LITTLE,
    },
    Decoder {
        name: "log",
        about: "a directory of log segments and the vote",
        run: disks::run_log,
        seeds: disks::log_seeds,
        fixed_bytes: DISK,
    },
    Decoder {
        name: "replicas",
        about: "a chunkserver's disk",
        run: disks::run_replicas,
        seeds: disks::replica_seeds,
        fixed_bytes: DISK,
    },
    Decoder {
        name: "commands",
        about: "commands of the log, applied",
        run: machine::run_commands,
        seeds: machine::command_seeds,
        fixed_bytes: STATE,
    },
    Decoder {
        name: "queries",
        about: "queries of clients, answered",
        run: machine::run_queries,
        seeds: machine::query_seeds,
        fixed_bytes: STATE,
    },
];

/// The decoder of this name.
pub fn find(name: &str) -> &'static Decoder {
    ALL.iter().find(|decoder| decoder.name == name).expect("a decoder of this name")
}

/// The first byte of an input: whether checksums are to be mended, and a small number; then the rest.
fn split(input: &[u8]) -> (bool, u8, &[u8]) {
    let (first, rest) = input.split_first().map_or((0, input), |(first, rest)| (*first, rest));
    (first & 1 == 1, first >> 1, rest)
}

/// An input that begins with such a byte.
fn with_first(mends: bool, number: u8, rest: &[u8]) -> Vec<u8> {
    [&[number << 1 | u8::from(mends)], rest].concat()
}
