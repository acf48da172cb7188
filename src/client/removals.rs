//! Names that are being removed without a word to the masters that their inode may be open here, and files that are
//! being opened meanwhile.
//!
//! Whoever removes a name asks the masters to keep what is open here. A file that is being opened is not open yet, and
//! the masters may have answered its opener before they removed its last name: nobody would keep it. So each of the
//! two says beforehand what it is about to do and looks afterwards what the other one has said.

use crate::ids::InodeId;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Removals that end while files are being opened and are remembered one by one; of more it counts that there were.
const ENDED_MAX: usize = 1024;

#[derive(Debug, Default)]
struct State {
    /// Inodes a name of which is being removed, and by how many.
    under_way: BTreeMap<InodeId, usize>,
    /// Those of removals that ended since the oldest of the openings that are under way began.
    ended: BTreeSet<InodeId>,
    /// More of them ended than are remembered.
    too_many: bool,
    /// Openings under way.
    opening: usize,
}

/// Removals and openings of one mount.
#[derive(Debug, Default)]
pub struct Removals(Mutex<State>);

impl Removals {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name of this inode is about to be removed, or what keeps it without one to be let go. To be called before it is
    /// looked whether the inode is open.
    pub fn begin(&self, inode: InodeId) -> Removal<'_> {
        *self.state().under_way.entry(inode).or_default() += 1;
        Removal { all: self, inode }
    }

    /// A file is about to be opened.
    pub fn open(&self) -> Opening<'_> {
        self.state().opening += 1;
        Opening { all: self }
    }
}

/// A removal under way.
#[derive(Debug)]
pub struct Removal<'a> {
    all: &'a Removals,
    inode: InodeId,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state();
        if let Entry::Occupied(mut count) = state.under_way.entry(self.inode) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if state.opening > 0 {
            state.ended.insert(self.inode);
            state.too_many |= state.ended.len() > ENDED_MAX;
            if state.too_many {
                state.ended.clear();
            }
        }
    }
}

/// A file that is being opened.
#[derive(Debug)]
pub struct Opening<'a> {
    all: &'a Removals,
}

impl Opening<'_> {
    /// Whether a name of the inode may have been removed, unasked, since the opening began. To be called when others
    /// can see that it is open.
    pub fn may_be_removed(&self, inode: InodeId) -> bool {
        let state = self.all.state();
        // One that began before this opening and ended during it stands in `ended` too.
        state.under_way.contains_key(&inode) || state.ended.contains(&inode) || state.too_many
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state();
        state.opening -= 1;
        if state.opening == 0 {
            state.ended.clear();
            state.too_many = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_hears_of_removals_of_its_inode() {
        let removals = Removals::default();
        let before = removals.begin(InodeId(7));
        let opening = removals.open();
        assert!(opening.may_be_removed(InodeId(7)), "it is under way");
        assert!(!opening.may_be_removed(InodeId(8)));
        drop(before);
        assert!(opening.may_be_removed(InodeId(7)), "it ended meanwhile");
        drop(opening);
        let opening = removals.open();
        assert!(!opening.may_be_removed(InodeId(7)), "all that was before");
        for inode in 100..100 + 2 * ENDED_MAX as u64 {
            drop(removals.begin(InodeId(inode)));
        }
        assert!(removals.state().ended.len() <= ENDED_MAX);
        assert!(opening.may_be_removed(InodeId(8)), "too many to tell");
        drop(opening);
        assert!(!removals.open().may_be_removed(InodeId(8)));
    }
}
