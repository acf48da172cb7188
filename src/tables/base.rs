//! The level on disk: one redb table of raw keys and rows.

use super::TableError;
use super::view::bounds;
use redb::{AccessGuard, Range, ReadOnlyTable, StorageError};
use std::io;
use std::sync::Arc;

/// The rows as one read transaction of redb sees them.
pub(super) struct Base {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    file: Arc<str>,
}

impl Base {
    /// Calls `see` with the row of a raw key, in place.
    pub(super) fn with_raw<R>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, TableError> {
        let row = self.rows.get(key).map_err(|error| table_error(&self.file, error))?;
        Ok(see(row.as_ref().map(AccessGuard::value)))
    }

    /// Rows from `from` (inclusive) to `to` (exclusive). An error shows at the first row.
    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> BaseRows {
        BaseRows { rows: self.rows.range::<&[u8]>(bounds(from, to)), file: self.file.clone() }
    }
}

/// A scan of a [`Base`], read page by page as it advances.
pub(super) struct BaseRows {
    rows: Result<Range<'static, &'static [u8], &'static [u8]>, StorageError>,
    file: Arc<str>,
}

/// A key or a row, in redb's page.
pub(super) type Guard = AccessGuard<'static, &'static [u8]>;

impl BaseRows {
    /// The next row from the front, or from the back.
    pub(super) fn pull(&mut self, back: bool) -> Result<Option<(Guard, Guard)>, TableError> {
        let next = match &mut self.rows {
            Ok(rows) if back => rows.next_back().transpose(),
            Ok(rows) => rows.next().transpose(),
            Err(error) => Err(std::mem::replace(error, StorageError::PreviousIo)),
        };
        next.map_err(|error| table_error(&self.file, error))
    }
}

/// redb's word for a fault, in ours: bytes that are not what was written are told from a disk that failed.
pub(super) fn table_error(file: &str, error: impl Into<redb::Error>) -> TableError {
    let file = file.to_owned();
    match error.into() {
        redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => {
            TableError::Io { file, error }
        }
        redb::Error::Io(error) => TableError::Corrupt { file, detail: error.to_string() },
        other => TableError::Corrupt { file, detail: other.to_string() },
    }
}
