//! The level on disk: one redb table of raw keys and rows, in a file of checked blocks.

use super::TableError;
use super::blocks::Blocks;
use super::fault::Fault;
use super::view::{Level, bounds};
use crate::pb;
use crate::seam::{Disk, OpenMode};
use prost::Message;
use redb::{AccessGuard, Database, Range, ReadOnlyTable, ReadableDatabase, StorageError};
use redb::{TableDefinition, WriteTransaction};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
/// The one key above all rows: the checkpoint's [`pb::CheckpointMeta`].
const META: &[u8] = &[u8::MAX];
type RowsTable<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

/// An open table file.
pub(super) struct Store {
    db: Database,
    blocks: Arc<Blocks>,
    fault: Arc<Fault>,
}

impl Store {
    /// A new file of this name, replacing one that a crash left. Nothing of it is durable yet.
    pub(super) fn create(
        disk: &dyn Disk,
        path: &str,
        cache_bytes: usize,
    ) -> Result<Arc<Store>, TableError> {
        let fault = Arc::new(Fault::new(format!("{}/{path}", disk.describe())));
        // Somebody may still have the one of this name and write to it when he lets it go: it stays his.
        if let Err(error) = disk.remove(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(fault.error(StorageError::Io(error)));
        }
        let file = fault.note(disk.open(path, OpenMode::Create));
        let id = crate::seam::rng::random_u64();
        let blocks = file.and_then(|file| Blocks::create(file, id, fault.clone()));
        Store::start(blocks, fault, cache_bytes)
    }

    /// The existing file of this name.
    pub(super) fn open(
        disk: &dyn Disk,
        path: &str,
        cache_bytes: usize,
    ) -> Result<Arc<Store>, TableError> {
        let fault = Arc::new(Fault::new(format!("{}/{path}", disk.describe())));
        let file = fault.note(disk.open(path, OpenMode::Write));
        let blocks = file.and_then(|file| Blocks::open(file, fault.clone()));
        Store::start(blocks, fault, cache_bytes)
    }

    fn start(
        blocks: io::Result<Blocks>,
        fault: Arc<Fault>,
        cache_bytes: usize,
    ) -> Result<Arc<Store>, TableError> {
        let blocks = Arc::new(blocks.map_err(|error| fault.error(StorageError::Io(error)))?);
        let mut builder = Database::builder();
        builder.set_cache_size(cache_bytes);
        match builder.create_with_backend(Shared(blocks.clone())) {
            Ok(db) => Ok(Arc::new(Store { db, blocks, fault })),
            Err(error) => Err(fault.error(error)),
        }
    }

    /// What was found to be corrupt in it.
    pub(super) fn corruption(&self) -> Option<String> {
        self.fault.corruption()
    }

    /// What a file that is being replaced still says; nothing is written to it any more.
    pub(super) fn retire(&self) {
        self.blocks.retire();
    }

    /// Bytes the file takes on disk.
    pub(super) fn written_bytes(&self) -> u64 {
        self.blocks.written_bytes()
    }

    /// Whether a transaction found the disk full. Readers go on; for the next one the file is opened anew.
    pub(super) fn is_spoiled(&self) -> bool {
        self.blocks.is_spoiled()
    }

    /// Writes a frozen overlay and what it is a checkpoint of, durably, in one transaction.
    pub(super) fn apply(
        self: &Arc<Store>,
        level: &Level,
        meta: &pb::CheckpointMeta,
    ) -> Result<(), TableError> {
        self.blocks.write_in_place();
        let fill = self.fill()?;
        fill.change(|table| {
            for (key, slot) in level {
                match slot.row() {
                    Some(row) => drop(table.insert(key.as_slice(), &**row)?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            Ok(())
        })?;
        fill.finish(meta)?;
        if self.is_spoiled() && !crate::bug!(SPOILED) {
            self.retire();
            return Err(self.fault.error(StorageError::Io(io::ErrorKind::StorageFull.into())));
        }
        Ok(())
    }

    /// Begins the one transaction that may be under way.
    pub(super) fn fill(self: &Arc<Store>) -> Result<Fill, TableError> {
        let mut txn = self.db.begin_write().map_err(|error| self.fault.error(error))?;
        // Two-phase commits, and the allocator's state with them: after a crash the file is not scanned.
        txn.set_quick_repair(true);
        Ok(Fill { store: self.clone(), txn })
    }

    /// The rows as the last transaction left them.
    pub(super) fn base(self: &Arc<Store>) -> Result<Arc<Base>, TableError> {
        let txn = self.db.begin_read().map_err(|error| self.fault.error(error))?;
        let rows = txn.open_table(ROWS).map_err(|error| self.fault.error(error))?;
        Ok(Arc::new(Base { rows, pinned: Mutex::default(), store: self.clone() }))
    }
}

/// A transaction that changes a [`Store`].
pub(super) struct Fill {
    store: Arc<Store>,
    txn: WriteTransaction,
}

impl Fill {
    /// Changes rows. Sorted keys go fastest.
    pub(super) fn change(
        &self,
        change: impl FnOnce(&mut RowsTable<'_>) -> Result<(), StorageError>,
    ) -> Result<(), TableError> {
        let fault = &self.store.fault;
        let mut table = self.txn.open_table(ROWS).map_err(|error| fault.error(error))?;
        change(&mut table).map_err(|error| fault.error(error))
    }

    /// Makes it durable.
    pub(super) fn finish(self, meta: &pb::CheckpointMeta) -> Result<(), TableError> {
        let meta = meta.encode_to_vec();
        self.change(|table| table.insert(META, &*meta).map(drop))?;
        let Store { fault, blocks, .. } = &*self.store;
        self.txn.commit().map_err(|error| fault.error(error))?;
        blocks.settle().map_err(|error| fault.error(StorageError::Io(error)))
    }
}

/// The rows as one read transaction of redb sees them.
pub(super) struct Base {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// The same rows in the same file, opened anew: redb does not write to pages that one of its readers sees.
    pinned: Mutex<Vec<Arc<Base>>>,
    // After the rows: a database that closes cuts its readers off.
    store: Arc<Store>,
}

impl Base {
    /// What these rows are a checkpoint of.
    pub(super) fn meta(&self) -> Result<pb::CheckpointMeta, TableError> {
        let fault = &self.store.fault;
        let decoded = self.with_raw(META, |row| row.map(pb::CheckpointMeta::decode))?;
        let detail = match decoded {
            Some(Ok(meta)) => return Ok(meta),
            Some(Err(error)) => format!("checkpoint record: {error}"),
            None => "it has no checkpoint record".to_owned(),
        };
        Err(fault.error(StorageError::Io(fault.corrupt(detail))))
    }

    /// For as long as these rows are looked at, who writes to the file that `again` has opened anew leaves
    /// them where they are.
    pub(super) fn pin(&self, again: Arc<Base>) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).push(again);
    }

    /// Calls `see` with the row of a raw key, in place.
    pub(super) fn with_raw<R>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, TableError> {
        let row = self.rows.get(key).map_err(|error| self.store.fault.error(error))?;
        Ok(see(row.as_ref().map(AccessGuard::value)))
    }

    /// Rows from `from` (inclusive) to `to` (exclusive). An error shows at the first row.
    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> BaseRows {
        let rows = self.rows.range::<&[u8]>(bounds(from, to));
        BaseRows { rows, fault: self.store.fault.clone() }
    }
}

/// A scan of a [`Base`], read page by page as it advances.
pub(super) struct BaseRows {
    rows: Result<Range<'static, &'static [u8], &'static [u8]>, StorageError>,
    fault: Arc<Fault>,
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
        next.map_err(|error| self.fault.error(error))
    }
}

/// redb owns its storage; the store goes on to see it too.
#[derive(Debug)]
struct Shared(Arc<Blocks>);

impl redb::StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
