//! What the kernel has been told about each inode it knows, so that an open can make it ask again when the
//! cluster has moved on (close-to-open coherence), and keep its pages when it has not.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;

#[derive(Clone, Copy, Default)]
struct Known {
    /// Change counter of the attributes last given to the kernel.
    attrs: Option<u64>,
    /// Change counter at the last open: no page in the cache is older.
    pages: Option<u64>,
}

/// What an open must do about the kernel's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtOpen {
    /// The kernel's attributes may be older than the file.
    pub(crate) stale_attrs: bool,
    /// The kernel's pages are those of this very version.
    pub(crate) keep_pages: bool,
}

/// Change counters by inode; forgotten when the kernel forgets the inode, which bounds it.
#[derive(Default)]
pub(crate) struct KernelView {
    shards: [Mutex<HashMap<u64, Known>>; SHARDS],
}

impl KernelView {
    fn shard(&self, ino: u64) -> MutexGuard<'_, HashMap<u64, Known>> {
        self.shards[ino as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is being given attributes of this version.
    pub(crate) fn told(&self, ino: u64, change: u64) {
        self.shard(ino).entry(ino).or_default().attrs = Some(change);
    }

    /// The file is being opened; `change` is its version now, if known.
    pub(crate) fn open(&self, ino: u64, change: Option<u64>) -> AtOpen {
        let mut shard = self.shard(ino);
        let known = shard.entry(ino).or_default();
        let Some(change) = change else {
            known.pages = None;
            return AtOpen { stale_attrs: true, keep_pages: false };
        };
        let stale_attrs = known.attrs != Some(change);
        let keep_pages = known.pages == Some(change);
        known.pages = Some(change);
        AtOpen { stale_attrs, keep_pages }
    }

    /// The kernel dropped the inode.
    pub(crate) fn forget(&self, ino: u64) {
        self.shard(ino).remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(view: &KernelView, change: Option<u64>) -> (bool, bool) {
        let at = view.open(7, change);
        (at.stale_attrs, at.keep_pages)
    }

    #[test]
    fn pages_are_kept_only_between_opens_of_one_version() {
        let view = KernelView::default();
        view.told(7, 1);
        assert_eq!(open(&view, Some(1)), (false, false));
        assert_eq!(open(&view, Some(1)), (false, true));
        assert_eq!(open(&view, Some(2)), (true, false));
        view.told(7, 2);
        assert_eq!(open(&view, Some(2)), (false, true));
        assert_eq!(open(&view, None), (true, false));
        assert_eq!(open(&view, Some(2)), (false, false));
        view.forget(7);
        assert_eq!(open(&view, Some(2)), (true, false));
    }
}
