//! All levels at one moment.

use super::base::Base;
use super::key::KeyBytes;
use super::merge::Rows;
use super::{Read, TableError};
use imbl::OrdMap;
use std::ops::Bound;
use std::sync::Arc;

/// What a memory level says of a key.
#[derive(Clone)]
pub(super) enum Slot {
    /// No row, whatever is below.
    Gone,
    /// This row, and none below: deleting it needs no trace.
    Fresh(Arc<[u8]>),
    /// This row in place of one below.
    Changed(Arc<[u8]>),
}

impl Slot {
    pub(super) fn row(&self) -> Option<&Arc<[u8]>> {
        match self {
            Slot::Gone => None,
            Slot::Fresh(row) | Slot::Changed(row) => Some(row),
        }
    }
}

pub(super) type Level = OrdMap<KeyBytes, Slot>;

/// All tables as they were at one moment; cheap to take and to clone, stays as it is while applying goes on.
/// It keeps alive what it shows, so hold one for a request or a snapshot, not for ever.
#[derive(Clone)]
pub struct View {
    pub(super) overlay: Level,
    pub(super) frozen: Option<Arc<Level>>,
    pub(super) base: Option<Arc<Base>>,
    pub(super) hash: u64,
}

impl View {
    pub(super) fn new(base: Option<Arc<Base>>, hash: u64) -> View {
        View { overlay: Level::new(), frozen: None, base, hash }
    }

    /// What a checkpoint writes: a frozen overlay over the rows below it.
    pub(super) fn of_frozen(frozen: Arc<Level>, base: Option<Arc<Base>>) -> View {
        View { frozen: Some(frozen), ..View::new(base, 0) }
    }

    /// The state hash at this moment.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Every row with its raw key, in order of keys: what a snapshot carries.
    pub fn rows(&self) -> Rows<'_> {
        self.raw_range(&[], &[u8::MAX])
    }

    /// As [`View::rows`], from the raw key `from` (inclusive) on.
    pub fn rows_from(&self, from: &[u8]) -> Rows<'_> {
        self.raw_range(from, &[u8::MAX])
    }

    /// The state hash computed from the rows themselves. Reads everything.
    pub fn hash_of_rows(&self) -> Result<u64, TableError> {
        let mut rows = self.rows();
        let mut sum = 0u64;
        while let Some(hash) = rows.next_with(super::row_hash) {
            sum = sum.wrapping_add(hash?);
        }
        Ok(sum)
    }

    /// Raw rows from `from` (inclusive) to `to` (exclusive) upwards.
    pub(super) fn raw_range(&self, from: &[u8], to: &[u8]) -> Rows<'_> {
        Rows::new(self, from, to, false)
    }

    /// The same rows from the last to the first.
    pub(super) fn raw_range_back(&self, from: &[u8], to: &[u8]) -> Rows<'_> {
        Rows::new(self, from, to, true)
    }

    /// Calls `see` with the row of a raw key, in place.
    pub(super) fn with_raw<R>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, TableError> {
        match self.overlay.get(key) {
            // UNDEAD: a row that is gone above may be there below.
            Some(Slot::Gone) if crate::bug!(UNDEAD) => self.with_raw_below(key, see),
            Some(slot) => Ok(see(slot.row().map(|row| &**row))),
            None => self.with_raw_below(key, see),
        }
    }

    /// [`View::with_raw`] below the overlay.
    pub(super) fn with_raw_below<R>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, TableError> {
        if let Some(slot) = self.frozen.as_ref().and_then(|level| level.get(key)) {
            return Ok(see(slot.row().map(|row| &**row)));
        }
        match &self.base {
            Some(base) => base.with_raw(key, see),
            None => Ok(see(None)),
        }
    }
}

impl Read for View {
    fn levels(&self) -> &View {
        self
    }
}

pub(super) fn bounds<'a>(from: &'a [u8], to: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(from), Bound::Excluded(to))
}
