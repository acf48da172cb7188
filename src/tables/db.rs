//! The writer's side: what `apply` changes.

use super::key::KeyBytes;
use super::view::{Slot, View};
use super::{Key, Read, Table, TableError, row_hash};
use std::sync::Arc;

/// What a row in the overlay takes beside its bytes: its place in a node, the row's header, slack.
const SLOT_BYTES: usize = 96;

/// The tables, with the one writer's methods. Reads see every write at once.
pub struct Db {
    view: View,
    overlay_bytes: usize,
    key: Vec<u8>,
    row: Vec<u8>,
}

impl Db {
    /// Tables that live in memory only.
    pub fn memory() -> Db {
        Db { view: View::new(None, 0), overlay_bytes: 0, key: Vec::new(), row: Vec::new() }
    }

    /// Sets the row of a key.
    pub fn put<T: Table>(&mut self, key: &T::Key, row: &T::Row) -> Result<(), TableError> {
        self.set_key::<T>(key);
        self.row.clear();
        prost::Message::encode(row, &mut self.row).expect("a Vec takes any message");
        self.put_raw()
    }

    /// Removes the row of a key; one that is not there is fine.
    pub fn delete<T: Table>(&mut self, key: &T::Key) -> Result<(), TableError> {
        self.set_key::<T>(key);
        self.delete_raw()
    }

    /// The state hash: the sum of [`row_hash`] over all rows.
    pub fn hash(&self) -> u64 {
        self.view.hash
    }

    /// All levels as they are now, in O(1).
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Memory of the rows changed since the last checkpoint began, bytes, roughly.
    pub fn overlay_bytes(&self) -> usize {
        self.overlay_bytes
    }

    fn set_key<T: Table>(&mut self, key: &T::Key) {
        self.key.clear();
        self.key.push(T::ID);
        key.encode(&mut self.key);
    }

    fn put_raw(&mut self) -> Result<(), TableError> {
        let (key, row) = (&*self.key, &*self.row);
        let old = match self.view.overlay.get_mut(key) {
            Some(slot) => {
                let old = slot.row().map(|old| (old.len(), row_hash(key, old)));
                *slot = match slot {
                    Slot::Fresh(_) => Slot::Fresh(row.into()),
                    Slot::Gone | Slot::Changed(_) => Slot::Changed(row.into()),
                };
                self.overlay_bytes -= old.map_or(0, |(len, _)| len);
                old.map(|(_, hash)| hash)
            }
            None => {
                let hash = |old: Option<&[u8]>| old.map(|old| row_hash(key, old));
                let old = self.view.with_raw_below(key, hash)?;
                let slot = if old.is_some() { Slot::Changed } else { Slot::Fresh };
                self.view.overlay.insert(KeyBytes::new(key), slot(Arc::from(row)));
                self.overlay_bytes += slot_bytes(key);
                old
            }
        };
        self.overlay_bytes += row.len();
        let new = row_hash(key, row);
        self.view.hash = self.view.hash.wrapping_sub(old.unwrap_or(0)).wrapping_add(new);
        Ok(())
    }

    fn delete_raw(&mut self) -> Result<(), TableError> {
        let key = &*self.key;
        let hash = |old: Option<&[u8]>| old.map(|old| row_hash(key, old));
        let old = match self.view.overlay.get(key) {
            Some(Slot::Gone) => return Ok(()),
            Some(Slot::Fresh(old)) => {
                let (len, hash) = (old.len(), row_hash(key, old));
                self.view.overlay.remove(key);
                self.overlay_bytes -= slot_bytes(key) + len;
                Some(hash)
            }
            Some(Slot::Changed(old)) => {
                let (len, hash) = (old.len(), row_hash(key, old));
                self.view.overlay.insert(KeyBytes::new(key), Slot::Gone);
                self.overlay_bytes -= len;
                Some(hash)
            }
            None => {
                let old = self.view.with_raw_below(key, hash)?;
                if old.is_some() {
                    self.view.overlay.insert(KeyBytes::new(key), Slot::Gone);
                    self.overlay_bytes += slot_bytes(key);
                }
                old
            }
        };
        self.view.hash = self.view.hash.wrapping_sub(old.unwrap_or(0));
        Ok(())
    }
}

fn slot_bytes(key: &[u8]) -> usize {
    SLOT_BYTES + KeyBytes::heap_bytes(key.len())
}

impl Read for Db {
    fn levels(&self) -> &View {
        &self.view
    }
}
