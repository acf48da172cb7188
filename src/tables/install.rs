//! Replacing all rows by a snapshot's.

use super::base::{Base, Fill, Store};
use super::checkpoint::Files;
use super::key::KeyBytes;
use super::view::{Level, Slot};
use super::{TableError, row_hash};
use crate::pb;
use std::sync::Arc;

/// The table of remembered replies, for a planted bug.
const REPLIES: u8 = 15;

/// Rows gathered before they go to redb together.
const BATCH_BYTES: usize = 1 << 20;

/// A snapshot on its way in. Begun by [`super::Db::begin_install`]; dropping it changes nothing.
pub struct Install {
    files: Option<Arc<Files>>,
    fill: Option<Fill>,
    store: Option<Arc<Store>>,
    /// Rows since the last batch; without a file, all rows.
    level: Level,
    level_bytes: usize,
    last: Vec<u8>,
    meta: pb::CheckpointMeta,
}

/// A durable snapshot, to be shown to readers by [`super::Db::finish_install`].
#[must_use = "an installed snapshot is to be handed to the tables"]
pub struct Installed {
    pub(super) epoch: u64,
    pub(super) shown: Option<(Arc<Store>, Arc<Base>)>,
    /// All rows, where there is no file.
    pub(super) level: Level,
    pub(super) meta: pb::CheckpointMeta,
}

impl Install {
    pub(super) fn new(files: Option<Arc<Files>>) -> Result<Install, TableError> {
        let store = files.as_ref().map(|files| files.create("install")).transpose()?;
        let fill = store.as_ref().map(Store::fill).transpose()?;
        let (level, level_bytes) = (Level::new(), 0);
        let (last, meta) = (Vec::new(), pb::CheckpointMeta::default());
        Ok(Install { files, fill, store, level, level_bytes, last, meta })
    }

    /// Takes the next raw row; keys ascend. Blocks while the disk takes a batch.
    pub fn push(&mut self, key: &[u8], row: &[u8]) -> Result<(), TableError> {
        if key <= &*self.last || key[0] == u8::MAX {
            return Err(TableError::Snapshot("its rows are not in order"));
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        // M40: replies to repeated requests are taken for a cache, and not for a part of the state.
        if crate::bug!(M40) && key[0] == REPLIES {
            return Ok(());
        }
        self.meta.rows += 1;
        self.meta.row_bytes += (key.len() + row.len()) as u64;
        self.meta.state_hash = self.meta.state_hash.wrapping_add(row_hash(key, row));
        self.level_bytes += key.len() + row.len();
        self.level.insert(KeyBytes::new(key), Slot::Fresh(row.into()));
        if self.level_bytes >= BATCH_BYTES { self.spill() } else { Ok(()) }
    }

    /// Makes the snapshot the state, durably: after a crash there is the old state or the new one. Its rows
    /// must have the state hash that `meta` names. Blocks, also for a checkpoint that is being written.
    pub fn finish(mut self, mut meta: pb::CheckpointMeta) -> Result<Installed, TableError> {
        if meta.state_hash != self.meta.state_hash && !crate::bug!(M40) {
            return Err(TableError::Snapshot("its rows have another hash than it says"));
        }
        (meta.rows, meta.row_bytes) = (self.meta.rows, self.meta.row_bytes);
        let (Some(files), Some(store)) = (self.files.clone(), self.store.clone()) else {
            return Ok(Installed { epoch: 0, shown: None, level: self.level, meta });
        };
        self.spill()?;
        if let Some(fill) = self.fill.take() {
            fill.finish(&meta)?;
        }
        let epoch = files.exclusively(|epoch| {
            files.publish("install")?;
            *epoch += 1;
            Ok(*epoch)
        })?;
        let base = store.base()?;
        Ok(Installed { epoch, shown: Some((store, base)), level: Level::new(), meta })
    }

    fn spill(&mut self) -> Result<(), TableError> {
        let Some(fill) = &self.fill else {
            return Ok(());
        };
        let level = std::mem::take(&mut self.level);
        self.level_bytes = 0;
        fill.change(|table| {
            for (key, slot) in &level {
                if let Some(row) = slot.row() {
                    table.insert(key.as_slice(), &**row)?;
                }
            }
            Ok(())
        })
    }
}
