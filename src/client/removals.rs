//! Names that are being removed without a word to the masters that their inode may be open here, and files that are
//! being opened meanwhile.
//!
//! Whoever removes a name asks the masters to keep what is open here. A file that is being opened is not open yet, and
//! the masters may have answered its opener before they removed its last name: nobody would keep it. So each of the
//! two says beforehand what it is about to do and looks afterwards what the other one has said.

use crate::ids::InodeId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Removals that end while files are being opened and are remembered one by one; of more it counts that there were.
const ENDED_MAX: usize = 1024;

#[derive(Debug, Default)]
struct State {
    /// By their number: the inode whose name goes, if it is known.
    under_way: BTreeMap<u64, Option<InodeId>>,
    /// Those that ended since the oldest of the openings that are under way began.
    ended: BTreeMap<u64, Option<InodeId>>,
    next: u64,
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

    /// A name of this inode (or of one that is not known) is about to be removed. To be called before it is looked
    /// whether the inode is open.
    pub fn begin(&self, inode: Option<InodeId>) -> Removal<'_> {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.under_way.insert(number, inode);
        Removal { all: self, number }
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
    number: u64,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state();
        let inode = state.under_way.remove(&self.number).flatten();
        if state.opening > 0 {
            if state.ended.len() >= ENDED_MAX {
                state.ended.clear();
                state.ended.insert(self.number, None);
            } else {
                state.ended.insert(self.number, inode);
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
        let about = |found: &Option<InodeId>| found.is_none_or(|found| found == inode);
        state.under_way.values().any(about) || state.ended.values().any(about)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state();
        state.opening -= 1;
        if state.opening == 0 {
            state.ended.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_hears_of_removals_of_its_inode_and_of_unknown_ones() {
        let removals = Removals::default();
        let before = removals.begin(Some(InodeId(7)));
        let opening = removals.open();
        assert!(opening.may_be_removed(InodeId(7)), "it is under way");
        assert!(!opening.may_be_removed(InodeId(8)));
        drop(before);
        assert!(opening.may_be_removed(InodeId(7)), "it ended meanwhile");
        drop(removals.begin(None));
        assert!(opening.may_be_removed(InodeId(8)));
        drop(opening);
        let opening = removals.open();
        assert!(!opening.may_be_removed(InodeId(7)), "all that was before");
        for _ in 0..2 * ENDED_MAX {
            drop(removals.begin(Some(InodeId(9))));
        }
        assert!(removals.state().ended.len() <= ENDED_MAX);
        assert!(opening.may_be_removed(InodeId(8)), "too many to tell");
    }
}
