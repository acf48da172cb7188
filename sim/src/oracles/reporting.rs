//! O11: a failed write-back surfaces exactly once per open file description, by its next fsync or close.
//!
//! The client's count of failed write-backs says when one happened; a description that was open then owes its
//! user one error, one that is opened later owes none. Several failures between two calls are told as one.
//!
//! Not checked: that the count is right. The scenario knows of failures that must happen by what it took away,
//! and compares what an fsync vouched for with what another mount reads.

use crate::failure::violation;
use crate::stats;
use mooseng::errno::Errno;

/// One open file description.
pub struct Description {
    name: String,
    /// Failures that it has told, or that happened before it was opened.
    told: u64,
}

impl Description {
    /// Opened when so many write-backs had failed.
    pub fn new(name: &str, failed: u64) -> Description {
        Description { name: name.to_owned(), told: failed }
    }

    /// Whether it has something to tell.
    pub fn owes(&self, failed: u64) -> bool {
        failed > self.told
    }

    /// An fsync or close ended so when `failed` write-backs had failed.
    pub fn answered(&mut self, call: &str, outcome: Result<(), Errno>, failed: u64) {
        stats::count("O11 calls checked");
        let owed = self.owes(failed);
        if owed != outcome.is_err() {
            violation(
                "O11",
                format!(
                    "{call} through {} answers {outcome:?}; {failed} write-backs failed, {} were told or before its time",
                    self.name, self.told
                ),
            );
        }
        if owed {
            stats::count("O11 failures told");
        }
        self.told = failed;
    }
}
