//! The levels merged into one ordered run of rows.

use super::TableError;
use super::base::{BaseRows, Guard};
use super::key::KeyBytes;
use super::view::{Level, Slot, View, bounds};
use bytes::Bytes;
use imbl::ordmap::RangedIter;
use imbl::shared_ptr::DefaultSharedPtr;
use std::cmp::Ordering;

type LevelRows<'a> = RangedIter<'a, KeyBytes, Slot, DefaultSharedPtr>;

/// Raw rows of all levels, in order of keys, read as they are asked for.
pub struct Rows<'a> {
    back: bool,
    memory: [Option<MemoryRows<'a>>; 2],
    base: Option<BaseRows>,
    base_head: Option<(Guard, Guard)>,
}

struct MemoryRows<'a> {
    rows: LevelRows<'a>,
    head: Option<(&'a KeyBytes, &'a Slot)>,
}

impl<'a> MemoryRows<'a> {
    fn new(level: &'a Level, from: &[u8], to: &[u8], back: bool) -> Option<MemoryRows<'a>> {
        let mut rows = MemoryRows { rows: level.range::<_, [u8]>(bounds(from, to)), head: None };
        rows.pull(back);
        rows.head.is_some().then_some(rows)
    }

    fn pull(&mut self, back: bool) {
        self.head = if back { self.rows.next_back() } else { self.rows.next() };
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(view: &'a View, from: &[u8], to: &[u8], back: bool) -> Rows<'a> {
        if from >= to {
            return Rows { back, memory: [None, None], base: None, base_head: None };
        }
        let frozen = view.frozen.as_deref();
        let memory = [
            MemoryRows::new(&view.overlay, from, to, back),
            frozen.and_then(|level| MemoryRows::new(level, from, to, back)),
        ];
        let base = view.base.as_deref().map(|base| base.range(from, to));
        Rows { back, memory, base, base_head: None }
    }

    /// The next row, seen in place; `None` at the end. After an error there is nothing more to see.
    pub fn next_with<R>(
        &mut self,
        see: impl FnOnce(&[u8], &[u8]) -> R,
    ) -> Option<Result<R, TableError>> {
        loop {
            if let Err(error) = self.fill_base_head() {
                (self.memory, self.base) = ([None, None], None);
                return Some(Err(error));
            }
            let level = self.first_level()?;
            if level == self.memory.len() {
                let (key, row) = self.base_head.take()?;
                return Some(Ok(see(key.value(), row.value())));
            }
            let (key, slot) = self.memory[level].as_ref()?.head?;
            self.pass(key.as_slice());
            if let Some(row) = slot.row() {
                return Some(Ok(see(key.as_slice(), row)));
            }
        }
    }

    fn fill_base_head(&mut self) -> Result<(), TableError> {
        if self.base_head.is_none()
            && let Some(rows) = &mut self.base
        {
            self.base_head = rows.pull(self.back)?;
            if self.base_head.is_none() {
                self.base = None;
            }
        }
        Ok(())
    }

    /// The topmost level among those whose head comes first.
    fn first_level(&self) -> Option<usize> {
        let memory = self.memory.iter().map(|rows| Some(rows.as_ref()?.head?.0.as_slice()));
        let base = std::iter::once(self.base_head.as_ref().map(|(key, _)| key.value()));
        let heads = memory.chain(base).enumerate();
        let present = heads.filter_map(|(level, key)| key.map(|key| (level, key)));
        let first = present.reduce(|best, next| {
            let earlier = if self.back { Ordering::Greater } else { Ordering::Less };
            if next.1.cmp(best.1) == earlier { next } else { best }
        });
        first.map(|(level, _)| level)
    }

    /// Moves every level beyond this key.
    fn pass(&mut self, key: &[u8]) {
        for rows in self.memory.iter_mut().flatten() {
            if rows.head.is_some_and(|head| head.0.as_slice() == key) {
                rows.pull(self.back);
            }
        }
        if self.base_head.as_ref().is_some_and(|head| head.0.value() == key) {
            self.base_head = None;
        }
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<(Bytes, Bytes), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(|key, row| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(row)))
    }
}
