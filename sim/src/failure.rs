//! How a run fails: at once, saying which property was violated and what kind of failure it is.

use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// Kinds of failure, apart also in the exit code of a run's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The code panicked.
    Crash,
    /// Something that must happen did not.
    Liveness,
    /// Something happened that must not.
    Correctness,
}

impl Kind {
    /// Exit code of the process that ran the seed.
    pub fn exit_code(self) -> i32 {
        match self {
            Kind::Crash => 10,
            Kind::Liveness => 11,
            Kind::Correctness => 12,
        }
    }
}

/// A failure with the oracle that saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind.
    pub kind: Kind,
    /// Which oracle or check, for instance "O13".
    pub oracle: String,
    /// What is wrong, one line.
    pub message: String,
}

impl Failure {
    /// Whether an oracle saw it from the outside: not a panic, not an assertion of the library, not a process
    /// that died, not a run that took too long.
    pub fn by_oracle(&self) -> bool {
        let number = self.oracle.strip_prefix('O');
        number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// Whether the code panicked, by an assertion of its own or otherwise.
    pub fn by_panic(&self) -> bool {
        self.oracle == OWN_ASSERTION || self.oracle.starts_with(PANIC)
    }
}

/// What stands as the oracle where an `invariant!` of the library fails.
pub const OWN_ASSERTION: &str = "own assertion";
/// What stands as the oracle, with the place, where anything else panics.
pub const PANIC: &str = "panic";

static FIRST: Mutex<Option<Failure>> = Mutex::new(None);

/// The first failure of this process.
pub fn first() -> Option<Failure> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Ends the run: something that must not happen did.
#[track_caller]
pub fn violation(oracle: &str, message: impl Into<String>) -> ! {
    fail(Kind::Correctness, oracle, message.into())
}

/// Ends the run: something that must happen did not.
#[track_caller]
pub fn stuck(oracle: &str, message: impl Into<String>) -> ! {
    fail(Kind::Liveness, oracle, message.into())
}

#[track_caller]
fn fail(kind: Kind, oracle: &str, message: String) -> ! {
    let failure = Failure { kind, oracle: oracle.to_owned(), message };
    crate::trace::say(
        crate::trace::Kind::Broken,
        "-",
        &format!("{oracle} fails: {}", failure.message),
    );
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure.clone());
    panic!("{oracle}: {}", failure.message)
}
