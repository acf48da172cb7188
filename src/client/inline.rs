//! Inline pieces of files that nobody has open: kept for the next reader, within a bound. Without it a mount
//! that wrote many small files would hold all of them in memory for as long as it remembers their inodes.

use super::inode::{FileData, Inode};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

#[derive(Debug, Default)]
struct Queue {
    /// Inodes with the bytes they had when they were closed, oldest first.
    inodes: VecDeque<(Weak<Inode>, u64)>,
    bytes: u64,
}

/// The closed files whose inline pieces are remembered.
#[derive(Debug)]
pub struct InlineKept {
    queue: Mutex<Queue>,
    bytes_max: u64,
}

impl InlineKept {
    /// Nothing yet; at most `bytes_max` bytes later.
    pub fn new(bytes_max: usize) -> InlineKept {
        InlineKept { queue: Mutex::default(), bytes_max: bytes_max as u64 }
    }

    /// The last open file of the inode is gone. Older ones forget their pieces if there are too many bytes.
    pub fn closed(&self, inode: &Arc<Inode>) {
        let bytes = {
            let mut state = inode.lock();
            let Some(file) = &mut state.file else { return };
            let bytes = file.extents.inline_bytes();
            if bytes == 0 || std::mem::replace(&mut file.inline_kept, true) {
                return;
            }
            bytes
        };
        let mut surplus = Vec::new();
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.inodes.push_back((Arc::downgrade(inode), bytes));
            queue.bytes += bytes;
            while queue.bytes > self.bytes_max {
                let Some((oldest, bytes)) = queue.inodes.pop_front() else { break };
                queue.bytes -= bytes;
                surplus.extend(oldest.upgrade());
            }
        }
        for inode in surplus {
            if let Some(file) = &mut inode.lock().file {
                forget(file);
            }
        }
    }
}

/// A file that is open or dirty again keeps what it has; it comes back when it is closed.
fn forget(file: &mut FileData) {
    file.inline_kept = false;
    if file.opens == 0 && !file.is_dirty() {
        crate::mark!("inline pieces forgotten by the client");
        let change = file.extents.change;
        file.extents.reset(change);
    }
}

#[cfg(test)]
mod tests {
    use super::super::extents::Source;
    use super::super::inode::Table;
    use super::*;
    use crate::ids::InodeId;

    #[test]
    fn the_oldest_closed_files_forget_their_pieces() {
        let (table, kept) = (Table::new(100), InlineKept::new(1000));
        let inline = |id: u64| table.get_or_new(InodeId(id)).lock().file().extents.inline_bytes();
        for id in 1..=10 {
            let inode = table.get_or_new(InodeId(id));
            inode.lock().file().extents.set(0, 300, Source::Inline(vec![1; 300].into()));
            if id == 2 {
                inode.lock().file().opens = 1;
            }
            kept.closed(&inode);
            kept.closed(&inode);
        }
        assert_eq!(
            (1..=10).map(inline).filter(|bytes| *bytes > 0).count(),
            4,
            "three, and an open one"
        );
        assert_eq!([inline(1), inline(2), inline(10)], [0, 300, 300]);
        let open = table.get_or_new(InodeId(2));
        open.lock().file().opens = 0;
        kept.closed(&open);
        assert_eq!([inline(2), inline(8)], [300, 0]);
    }
}
