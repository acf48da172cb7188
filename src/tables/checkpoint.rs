//! Writing a frozen overlay to disk while applying goes on above it.

use super::TableError;
use super::base::{Base, Store};
use super::view::{Level, View};
use crate::limits::{BLOCK_BYTES, Limits};
use crate::pb;
use crate::seam::Disk;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// How many times its rows a table file may take, beside a fixed slack.
const BLOAT: u64 = 4;

/// The names of a table file, and who may write to it.
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    path: String,
    cache_bytes: usize,
    slack_bytes: u64,
    /// Raised by each installed snapshot; held by whoever writes. A checkpoint of an older epoch is void.
    epoch: Mutex<u64>,
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, path: &str, limits: &Limits) -> Files {
        Files {
            disk,
            path: path.to_owned(),
            cache_bytes: limits.redb_cache_bytes,
            slack_bytes: limits.table_slack_bytes,
            epoch: Mutex::new(0),
        }
    }

    /// Removes what a crash left of files that were never published.
    pub(super) fn clean(&self) -> Result<(), TableError> {
        for suffix in ["new", "install"] {
            match self.disk.remove(&self.temporary(suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io_error(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn exists(&self) -> Result<bool, TableError> {
        self.disk.exists(&self.path).map_err(|error| self.io_error(error))
    }

    /// Opens the file. Its name is made durable first: a process that was killed may have left it otherwise.
    pub(super) fn open(&self) -> Result<Arc<Store>, TableError> {
        self.disk.sync_dir(self.directory()).map_err(|error| self.io_error(error))?;
        Store::open(&*self.disk, &self.path, self.cache_bytes)
    }

    pub(super) fn create(&self, suffix: &str) -> Result<Arc<Store>, TableError> {
        Store::create(&*self.disk, &self.temporary(suffix), self.cache_bytes)
    }

    /// Runs `work` as the only writer, and raises the epoch if it says so.
    pub(super) fn exclusively<R>(&self, work: impl FnOnce(&mut u64) -> R) -> R {
        work(&mut self.epoch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets a durable temporary file take the name: after a crash there is the old file or the new one.
    pub(super) fn publish(&self, suffix: &str) -> Result<(), TableError> {
        let renamed = self.disk.rename(&self.temporary(suffix), &self.path);
        let durable = renamed.and_then(|()| self.disk.sync_dir(self.directory()));
        durable.map_err(|error| self.io_error(error))
    }

    fn directory(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(directory, _)| directory)
    }

    /// Whether writing anew is worth it, and there is room to. On a disk that is nearly full it is worth it
    /// sooner.
    fn bloated(&self, store: &Store, row_bytes: u64) -> Result<bool, TableError> {
        let file = store.written_bytes();
        if file <= self.used_at_most(row_bytes) {
            return Ok(false);
        }
        let space = self.disk.space().map_err(|error| self.io_error(error))?;
        let much = file > row_bytes * BLOAT + self.slack_bytes || space.free < file / 2;
        Ok(much && space.free > row_bytes * 2 + self.slack_bytes / 4)
    }

    /// What rows take of a table file at most: a page may be filled to a third, and redb keeps books.
    fn used_at_most(&self, row_bytes: u64) -> u64 {
        row_bytes * 3 + self.slack_bytes / 4
    }

    /// What a checkpoint takes of the disk at worst, bytes: each changed row copies a page of its own, but no
    /// more than all pages; pages that the file has and does not use are taken first.
    pub(super) fn checkpoint_bytes(&self, changed_rows: usize, row_bytes: u64, file: u64) -> u64 {
        let pages = (changed_rows as u64 * BLOCK_BYTES as u64).min(row_bytes * 2);
        let unused = file.saturating_sub(self.used_at_most(row_bytes));
        (pages + pages / 2 + self.slack_bytes / 4).saturating_sub(unused)
    }

    /// Whether the disk can take a checkpoint. A disk that cannot say is not full.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.disk.space().map_or(true, |space| space.free >= bytes)
    }

    fn temporary(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.path)
    }

    fn io_error(&self, error: io::Error) -> TableError {
        TableError::Io { file: format!("{}/{}", self.disk.describe(), self.path), error }
    }
}

/// An overlay on its way to disk. Begun by [`super::Db::begin_checkpoint`].
#[must_use = "a checkpoint is to be written and finished"]
pub struct Checkpoint {
    pub(super) files: Arc<Files>,
    pub(super) epoch: u64,
    pub(super) store: Option<Arc<Store>>,
    pub(super) base: Option<Arc<Base>>,
    pub(super) frozen: Arc<Level>,
    pub(super) meta: pb::CheckpointMeta,
}

/// A durable checkpoint, to be shown to readers by [`super::Db::finish_checkpoint`].
#[must_use = "a finished checkpoint is to be handed to the tables"]
pub struct Finished {
    pub(super) epoch: u64,
    pub(super) shown: Option<(Arc<Store>, Arc<Base>)>,
    pub(super) frozen: Arc<Level>,
}

/// What nobody reads any more. Dropping it takes long (a million rows: 100 ms): do it where that matters
/// to nobody, as in `seam::blocking(move || drop(garbage))`.
#[must_use = "drop it on another thread"]
#[derive(Default)]
pub struct Garbage {
    pub(super) _levels: Vec<Arc<Level>>,
    pub(super) _view: Option<View>,
    pub(super) _store: Option<Arc<Store>>,
}

impl Checkpoint {
    /// Writes it: blocks for as long as the disk takes, on any thread. If the disk is full
    /// ([`TableError::is_full`]) all is as it was, also for readers, and it can be tried again.
    pub fn write(&mut self) -> Result<Finished, TableError> {
        let files = self.files.clone();
        files.exclusively(|epoch| {
            let shown = if *epoch == self.epoch {
                Some(self.write_alone()?)
            } else {
                crate::mark!("checkpoint void after install");
                None
            };
            Ok(Finished { epoch: self.epoch, shown, frozen: self.frozen.clone() })
        })
    }

    fn write_alone(&mut self) -> Result<(Arc<Store>, Arc<Base>), TableError> {
        if self.store.as_ref().is_some_and(|store| store.is_spoiled()) {
            let store = self.files.open()?;
            if let Some(base) = &self.base
                && !crate::bug!(UNPINNED)
            {
                base.pin(store.base()?);
            }
            self.store = Some(store);
        }
        let store = match &self.store {
            Some(store) if !self.files.bloated(store, self.meta.row_bytes)? => {
                store.apply(&self.frozen, &self.meta)?;
                store.clone()
            }
            _ => self.write_anew().inspect_err(|error| {
                if error.is_full() {
                    crate::mark!("table file not written anew, the disk is full");
                    // It may hold the last blocks of the disk; a start removes it too.
                    let _ = self.files.disk.remove(&self.files.temporary("new"));
                }
            })?,
        };
        let base = store.base()?;
        #[cfg(any(feature = "sim", test))]
        verify(&base, &self.meta)?;
        Ok((store, base))
    }

    fn write_anew(&self) -> Result<Arc<Store>, TableError> {
        crate::maybe!(self.store.is_some(), "table file written anew");
        let store = self.files.create("new")?;
        let fill = store.fill()?;
        let view = View::of_frozen(self.frozen.clone(), self.base.clone());
        let mut rows = view.rows();
        let mut result = Ok(());
        fill.change(|table| {
            while let Some(row) = rows.next_with(|key, row| table.insert(key, row).map(drop)) {
                match row {
                    Ok(inserted) => inserted?,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            Ok(())
        })?;
        result?;
        fill.finish(&self.meta)?;
        self.files.publish("new")?;
        if let Some(old) = &self.store {
            old.retire();
        }
        Ok(store)
    }
}

/// In tests and simulation: what is on disk is what was meant to be.
#[cfg(any(feature = "sim", test))]
fn verify(base: &Arc<Base>, meta: &pb::CheckpointMeta) -> Result<(), TableError> {
    let hash = View::new(Some(base.clone()), 0).hash_of_rows()?;
    crate::invariant!(hash == meta.state_hash, "the rows on disk have the hash that was meant");
    crate::invariant!(base.meta()? == *meta, "the checkpoint record on disk is what was meant");
    Ok(())
}
