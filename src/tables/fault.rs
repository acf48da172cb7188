//! The first fault of a file, which every later call repeats: after one nothing of the file is trusted.

use super::TableError;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Shared by everything that reads or writes one file.
pub(super) struct Fault {
    file: String,
    first: Mutex<Option<Cause>>,
}

#[derive(Clone)]
struct Cause {
    corrupt: bool,
    os: Option<i32>,
    text: String,
}

impl Fault {
    pub(super) fn new(file: String) -> Fault {
        Fault { file, first: Mutex::new(None) }
    }

    /// Fails if the file failed before.
    pub(super) fn check(&self) -> io::Result<()> {
        self.first().map_or(Ok(()), |cause| Err(cause.io()))
    }

    /// Remembers the first error of the disk and passes errors on.
    pub(super) fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            let os = error.raw_os_error();
            self.latch(Cause { corrupt: false, os, text: error.to_string() });
        })
    }

    /// Remembers that the file holds other bytes than were written.
    pub(super) fn corrupt(&self, detail: String) -> io::Error {
        self.latch(Cause { corrupt: true, os: None, text: detail.clone() });
        io::Error::new(io::ErrorKind::InvalidData, detail)
    }

    /// What a caller of the tables is told: the first fault if there is one, else redb's own word.
    pub(super) fn error(&self, error: impl Into<redb::Error>) -> TableError {
        let file = self.file.clone();
        match (self.first(), error.into()) {
            (Some(cause), _) if cause.corrupt => TableError::Corrupt { file, detail: cause.text },
            (Some(cause), _) => TableError::Io { file, error: cause.io() },
            (None, redb::Error::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
                TableError::Io { file, error }
            }
            (None, other) => TableError::Corrupt { file, detail: other.to_string() },
        }
    }

    /// What was found, if the file holds other bytes than were written.
    pub(super) fn corruption(&self) -> Option<String> {
        let cause = self.first().filter(|cause| cause.corrupt)?;
        Some(format!("{} is corrupt: {}", self.file, cause.text))
    }

    fn first(&self) -> Option<Cause> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn latch(&self, cause: Cause) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
    }
}

impl Cause {
    fn io(&self) -> io::Error {
        match self.os {
            Some(code) => io::Error::from_raw_os_error(code),
            None if self.corrupt => io::Error::new(io::ErrorKind::InvalidData, self.text.clone()),
            None => io::Error::other(self.text.clone()),
        }
    }
}
