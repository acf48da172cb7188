//! What a filesystem should do, said as plainly as possible: an in-memory model, operations on it, and a
//! generator of operations. The property tests compare the state machine and the client with it; the
//! simulator uses the same model, so that there is one definition of correct.

#[cfg(all(feature = "sim", not(madsim)))]
compile_error!(
    "the feature `sim` needs --cfg madsim, which .cargo/config.toml sets; a set RUSTFLAGS overrides it: unset it"
);

mod app;
pub mod decoders;
pub mod disk_conformance;
mod draw;
mod generate;
pub mod machine;
mod mem_disk;
mod model;
mod ops;

pub use app::{App, is_last_glimpse, kernel_answers};
pub use draw::{Draw, SplitMix, Tape};
pub use generate::{OpGen, Weights};
pub use mem_disk::MemDisk;
pub use model::{ModelFs, Node};
pub use ops::{FsOp, FsOut, Ino, Kind, Stat};
