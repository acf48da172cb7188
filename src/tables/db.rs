//! The writer's side: what `apply` changes.

use super::base::{Base, Store};
use super::checkpoint::{Checkpoint, Files, Finished, Garbage};
use super::install::{Install, Installed};
use super::key::KeyBytes;
use super::view::{Level, Slot, View};
use super::{Key, Read, Table, TableError, row_hash};
use crate::limits::Limits;
use crate::pb;
use crate::seam::Disk;
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// What a row in the overlay takes beside its bytes: its place in a node, the row's header, slack.
const SLOT_BYTES: usize = 96;

/// The tables, with the one writer's methods. Reads see every write at once.
pub struct Db {
    view: View,
    overlay_bytes: usize,
    rows: u64,
    row_bytes: u64,
    files: Option<Arc<Files>>,
    store: Option<Arc<Store>>,
    epoch: u64,
    key: Vec<u8>,
    row: Vec<u8>,
}

impl Db {
    /// Tables that live in memory only.
    pub fn memory() -> Db {
        Db {
            view: View::new(None, 0),
            overlay_bytes: 0,
            rows: 0,
            row_bytes: 0,
            files: None,
            store: None,
            epoch: 0,
            key: Vec::new(),
            row: Vec::new(),
        }
    }

    /// The tables as the last checkpoint in `path` left them, and what it is a checkpoint of; empty ones if
    /// there is no file (the first checkpoint makes it). A file that is not as it was written is
    /// [`TableError::Corrupt`]: [`Db::discard`] it if a peer can send a snapshot.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &str,
        limits: &Limits,
    ) -> Result<(Db, Option<pb::CheckpointMeta>), TableError> {
        let files = Arc::new(Files::new(disk, path, limits));
        files.clean()?;
        let mut db = Db::memory();
        let mut found = None;
        if files.exists()? {
            let store = files.open()?;
            let base = store.base()?;
            let meta = base.meta()?;
            db.show(Some((store, base)), &meta);
            found = Some(meta);
        }
        db.files = Some(files);
        Ok((db, found))
    }

    /// What was found to be corrupt in the file since it was opened: it is to be discarded for a peer's snapshot.
    pub fn corruption(&self) -> Option<String> {
        self.store.as_ref().and_then(|store| store.corruption())
    }

    /// From now on nothing is written to the file, also not by what is closed later.
    pub fn retire(&mut self) {
        if let Some(store) = &self.store {
            store.retire();
        }
    }

    /// Removes a table file, durably.
    pub fn discard(disk: &dyn Disk, path: &str) -> io::Result<()> {
        match disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        disk.sync_dir(path.rsplit_once('/').map_or("", |(directory, _)| directory))
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

    /// What a checkpoint of so many changed rows would take of the disk at worst, bytes.
    fn checkpoint_bytes(&self, changed_rows: usize) -> u64 {
        let Some(files) = &self.files else { return 0 };
        let file = self.store.as_ref().map_or(0, |store| store.written_bytes());
        files.checkpoint_bytes(changed_rows, self.row_bytes, file)
    }

    /// What even a checkpoint of little takes of the disk, bytes: less where the file has room inside.
    pub fn least_checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes(0)
    }

    /// What the checkpoint of all changes that are not durable yet would take at worst, bytes; 0 if there are
    /// none.
    pub fn pending_checkpoint_bytes(&self) -> u64 {
        let frozen = self.view.frozen.as_ref().map_or(0, |level| level.len());
        match self.view.overlay.len() + frozen {
            0 => 0,
            rows => self.checkpoint_bytes(rows),
        }
    }

    /// Whether the changes that wait for a checkpoint may take half of what the disk has: then it is due, and
    /// little should be added.
    pub fn is_squeezed(&self) -> bool {
        let Some(files) = &self.files else { return false };
        !self.view.overlay.is_empty() && !files.has_room(self.pending_checkpoint_bytes() * 2)
    }

    /// Freezes the overlay for a checkpoint of the state as it is; `None` while another is under way, while
    /// the disk might have no room for it, unless there is no other way (`pressed`), or without a file. Hash and
    /// counts in `meta` are filled in.
    pub fn begin_checkpoint(
        &mut self,
        mut meta: pb::CheckpointMeta,
        pressed: bool,
    ) -> Option<Checkpoint> {
        if self.view.frozen.is_some() {
            return None;
        }
        let files = self.files.clone()?;
        if !pressed && !files.has_room(self.checkpoint_bytes(self.view.overlay.len())) {
            crate::mark!("checkpoint waits for space");
            return None;
        }
        (meta.state_hash, meta.rows, meta.row_bytes) = (self.view.hash, self.rows, self.row_bytes);
        let frozen = Arc::new(std::mem::take(&mut self.view.overlay));
        self.view.frozen = Some(frozen.clone());
        self.overlay_bytes = 0;
        let (epoch, store, base) = (self.epoch, self.store.clone(), self.view.base.clone());
        Some(Checkpoint { files, epoch, store, base, frozen, meta })
    }

    /// Shows the written checkpoint in place of the frozen overlay: one step for readers.
    pub fn finish_checkpoint(&mut self, finished: Finished) -> Garbage {
        let mut garbage = Garbage { _levels: vec![finished.frozen], ..Garbage::default() };
        if let Some((store, base)) = finished.shown
            && finished.epoch == self.epoch
        {
            let view = View { overlay: Level::new(), ..self.view.clone() };
            garbage._levels.extend(self.view.frozen.take());
            self.view.base = Some(base);
            garbage._store = self.store.replace(store);
            garbage._view = Some(view);
        }
        garbage
    }

    /// Begins to take a snapshot in; rows go on to be served meanwhile. One at a time.
    pub fn begin_install(&self) -> Result<Install, TableError> {
        Install::new(self.files.clone())
    }

    /// Shows the installed snapshot in place of everything. A checkpoint that is under way becomes void.
    pub fn finish_install(&mut self, installed: Installed) -> Garbage {
        let old = std::mem::replace(&mut self.view, View::new(None, 0));
        let mut garbage = Garbage { _view: Some(old), ..Garbage::default() };
        if let Some(old) = &self.store {
            old.retire();
        }
        garbage._store = self.store.take();
        self.epoch = installed.epoch;
        self.show(installed.shown, &installed.meta);
        self.view.overlay = installed.level;
        garbage
    }

    /// [`Db::begin_install`] to [`Db::finish_install`] in one call.
    pub fn install(
        &mut self,
        rows: impl IntoIterator<Item = Result<(Bytes, Bytes), TableError>>,
        meta: pb::CheckpointMeta,
    ) -> Result<Garbage, TableError> {
        let mut install = self.begin_install()?;
        for row in rows {
            let (key, row) = row?;
            install.push(&key, &row)?;
        }
        let installed = install.finish(meta)?;
        Ok(self.finish_install(installed))
    }

    fn show(&mut self, shown: Option<(Arc<Store>, Arc<Base>)>, meta: &pb::CheckpointMeta) {
        let (store, base) = shown.unzip();
        self.view = View::new(base, meta.state_hash);
        (self.store, self.overlay_bytes) = (store, 0);
        (self.rows, self.row_bytes) = (meta.rows, meta.row_bytes);
    }

    /// What the table file takes on disk, bytes; 0 without one.
    pub fn file_bytes(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.written_bytes())
    }

    fn set_key<T: Table>(&mut self, key: &T::Key) {
        self.key.clear();
        self.key.push(T::ID);
        key.encode(&mut self.key);
    }

    fn put_raw(&mut self) -> Result<(), TableError> {
        let (key, row) = (&*self.key, &*self.row);
        let measure = |old: &[u8]| (old.len(), row_hash(key, old));
        let old = match self.view.overlay.get_mut(key) {
            Some(slot) => {
                let old = slot.row().map(|old| measure(old));
                *slot = match slot {
                    Slot::Fresh(_) => Slot::Fresh(row.into()),
                    Slot::Gone | Slot::Changed(_) => Slot::Changed(row.into()),
                };
                self.overlay_bytes -= old.map_or(0, |(len, _)| len);
                old
            }
            None => {
                let old = self.view.with_raw_below(key, |old| old.map(measure))?;
                let slot = if old.is_some() { Slot::Changed } else { Slot::Fresh };
                self.view.overlay.insert(KeyBytes::new(key), slot(row.into()));
                self.overlay_bytes += slot_bytes(key);
                old
            }
        };
        self.overlay_bytes += row.len();
        self.forget(old);
        self.rows += 1;
        self.row_bytes += (self.key.len() + self.row.len()) as u64;
        self.view.hash = self.view.hash.wrapping_add(row_hash(&self.key, &self.row));
        Ok(())
    }

    fn delete_raw(&mut self) -> Result<(), TableError> {
        let key = &*self.key;
        let measure = |old: &[u8]| (old.len(), row_hash(key, old));
        let overlay = &mut self.view.overlay;
        let old = match overlay.get(key) {
            Some(Slot::Gone) => None,
            Some(Slot::Fresh(old)) => {
                let old = measure(old);
                overlay.remove(key);
                self.overlay_bytes -= slot_bytes(key) + old.0;
                Some(old)
            }
            Some(Slot::Changed(old)) => {
                let old = measure(old);
                overlay.insert(KeyBytes::new(key), Slot::Gone);
                self.overlay_bytes -= old.0;
                Some(old)
            }
            None => {
                let old = self.view.with_raw_below(key, |old| old.map(measure))?;
                if old.is_some() {
                    self.view.overlay.insert(KeyBytes::new(key), Slot::Gone);
                    self.overlay_bytes += slot_bytes(key);
                }
                old
            }
        };
        self.forget(old);
        Ok(())
    }

    /// Takes a row that is no more (length and hash) out of the sums.
    fn forget(&mut self, old: Option<(usize, u64)>) {
        if let Some((len, hash)) = old {
            self.rows -= 1;
            self.row_bytes -= (self.key.len() + len) as u64;
            self.view.hash = self.view.hash.wrapping_sub(hash);
        }
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
