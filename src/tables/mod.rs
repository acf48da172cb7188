//! The ordered tables that the state machine lives in: one space of byte keys (table id first) in levels.
//!
//! ```text
//!   apply --> overlay          rows changed since the last checkpoint began (in memory)
//!             frozen overlay   rows that a running checkpoint is writing   (in memory)
//!             base             redb, over a file whose blocks carry CRCs   (on disk)
//! ```
//! A read looks from the top down, a scan merges the levels lazily, a [`View`] is all levels at one moment.
//! Any error is fatal to the process that meets it: it is never turned into a reply.

mod base;
mod blocks;
mod checkpoint;
mod db;
mod fault;
mod hash;
mod install;
mod key;
mod layout;
mod merge;
mod view;

#[cfg(all(test, not(feature = "sim")))]
#[expect(clippy::disallowed_methods, reason = "the tests damage files and remove directories")]
mod disk_tests;
#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoint, Finished, Garbage};
pub use db::Db;
pub use hash::row_hash;
pub use install::{Install, Installed};
pub use key::{FixedPart, Key, Part};
pub use merge::Rows;
pub use view::View;

use std::io;
use std::marker::PhantomData;

/// A table: which keys it has and what its rows are. Ids are never used again for another table.
pub trait Table {
    /// First byte of every key; 255 is reserved.
    const ID: u8;
    /// For messages.
    const NAME: &'static str;
    /// Its keys.
    type Key: Key;
    /// Its rows.
    type Row: prost::Message + Default + Clone;
}

/// Why a table cannot be read or written. The process that meets one stops; it never becomes a reply.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Bytes on disk are not what was written. The file is to be discarded for a peer's snapshot.
    #[error(
        "{file} is corrupt: {detail}; start this master anew in an empty directory with --join; a single master is restored from its backup"
    )]
    Corrupt {
        /// Which file, for people.
        file: String,
        /// What was found.
        detail: String,
    },
    /// The disk failed.
    #[error("{file}: {error}")]
    Io {
        /// Which file, for people.
        file: String,
        /// The first error.
        error: io::Error,
    },
    /// What came as a snapshot is none; the tables are as they were.
    #[error("snapshot refused: {0}")]
    Snapshot(&'static str),
    /// A row is intact but not what its table holds: written by a program that disagrees with this one.
    #[error("table {table}: key {key} holds no such row: {detail}")]
    Malformed {
        /// The table's name.
        table: &'static str,
        /// The raw key, hexadecimal.
        key: String,
        /// What was found.
        detail: String,
    },
}

impl TableError {
    /// Whether a peer's snapshot in place of the file would help.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, TableError::Corrupt { .. })
    }

    /// Whether the disk was full: nothing of the file is lost, and it can be tried again.
    pub fn is_full(&self) -> bool {
        matches!(self, TableError::Io { error, .. } if crate::seam::is_full(error))
    }
}

/// Typed reads of all levels at one moment.
pub trait Read {
    /// The levels.
    fn levels(&self) -> &View;

    /// The row of a key.
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Row>, TableError> {
        let raw = raw_key::<T>(key);
        self.levels().with_raw(&raw, |row| row.map(|row| decode_row::<T>(&raw, row)).transpose())?
    }

    /// Whether a key has a row.
    fn contains<T: Table>(&self, key: &T::Key) -> Result<bool, TableError> {
        self.levels().with_raw(&raw_key::<T>(key), |row| row.is_some())
    }

    /// Rows from `from` (inclusive) to `to` (exclusive; `None` is the end of the table), in order of keys.
    fn range<T: Table>(&self, from: &T::Key, to: Option<&T::Key>) -> Scan<'_, T> {
        let end = to.map_or_else(|| vec![T::ID + 1], raw_key::<T>);
        Scan(self.levels().raw_range(&raw_key::<T>(from), &end), PhantomData)
    }

    /// The last row before `key` (exclusive).
    fn last_before<T: Table>(&self, key: &T::Key) -> Result<Option<KeyRow<T>>, TableError> {
        let rows = self.levels().raw_range_back(&[T::ID], &raw_key::<T>(key));
        Scan::<T>(rows, PhantomData).next().transpose()
    }
}

/// A key and its row.
pub type KeyRow<T> = (<T as Table>::Key, <T as Table>::Row);

/// Rows of one table, read as they are asked for.
pub struct Scan<'a, T: Table>(Rows<'a>, PhantomData<T>);

impl<T: Table> Iterator for Scan<'_, T> {
    type Item = Result<KeyRow<T>, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.0.next_with(|raw, row| {
            let key = T::Key::decode(&raw[1..])
                .ok_or_else(|| malformed::<T>(raw, "no such key".to_owned()))?;
            Ok((key, decode_row::<T>(raw, row)?))
        });
        row.map(|row| row?)
    }
}

fn raw_key<T: Table>(key: &T::Key) -> Vec<u8> {
    const { assert!(T::ID < u8::MAX, "table id 255 is reserved") };
    let mut raw = Vec::with_capacity(48);
    raw.push(T::ID);
    key.encode(&mut raw);
    raw
}

fn decode_row<T: Table>(raw: &[u8], row: &[u8]) -> Result<T::Row, TableError> {
    <T::Row as prost::Message>::decode(row).map_err(|error| malformed::<T>(raw, error.to_string()))
}

fn malformed<T: Table>(raw: &[u8], detail: String) -> TableError {
    let key = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    TableError::Malformed { table: T::NAME, key, detail }
}
