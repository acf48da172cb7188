//! Content: extents, cuts, xattrs, orphans, totals.

use super::tree::Inodes_;
use super::{Verdict, all, hold, same};
use crate::ids::InodeId;
use crate::namespace::extents::end_of;
use crate::namespace::state::Inode;
use crate::namespace::tables::{Counters, Cuts, Extents, Orphans, Xattrs};
use crate::pb::{EmptyRow, Extent, FileKind, extent::Source};
use crate::tables::Read;
use std::collections::BTreeMap;

type Ranges = Vec<(u64, u64)>;

pub(super) fn check(read: &impl Read, inodes: &Inodes_) -> Verdict {
    let mut extents: BTreeMap<InodeId, Vec<Extent>> = BTreeMap::new();
    for ((inode, off), extent) in all::<Extents>(read)? {
        hold!(extent.file_off == off, "{inode}: extent at {off} says {}", extent.file_off);
        extents.entry(inode).or_default().push(extent);
    }
    let mut cuts: BTreeMap<InodeId, Ranges> = BTreeMap::new();
    for ((inode, from), cut) in all::<Cuts>(read)? {
        cuts.entry(inode).or_default().push((from, cut.end));
    }
    let mut xattrs: BTreeMap<InodeId, u32> = BTreeMap::new();
    for (inode, _) in all::<Xattrs>(read)?.into_keys() {
        *xattrs.entry(inode).or_default() += 1;
    }
    let mut orphans = BTreeMap::new();
    let mut bytes = 0;
    for (id, inode) in inodes {
        let pieces = extents.remove(id).unwrap_or_default();
        let cuts = cuts.remove(id).unwrap_or_default();
        content(inode, &pieces, &cuts)?;
        bytes += inode.attr.allocated;
        let count = xattrs.remove(id).unwrap_or(0);
        hold!(inode.row.xattrs == count, "{id}: {} xattrs, has {count}", inode.row.xattrs);
        if inode.is_orphan() || !cuts.is_empty() {
            orphans.insert(*id, EmptyRow {});
        }
    }
    hold!(extents.is_empty(), "extents of inodes that are gone: {:?}", extents.keys());
    hold!(cuts.is_empty(), "cuts of inodes that are gone: {:?}", cuts.keys());
    hold!(xattrs.is_empty(), "xattrs of inodes that are gone: {:?}", xattrs.keys());
    same("orphan", &all::<Orphans>(read)?, &orphans)?;
    let counters = read.get::<Counters>(&0)?.unwrap_or_default();
    let count = inodes.len() as u64;
    hold!(counters.inodes == count, "{} inodes counted, there are {count}", counters.inodes);
    hold!(counters.bytes == bytes, "{} bytes counted, files hold {bytes}", counters.bytes);
    Ok(())
}

fn content(inode: &Inode, pieces: &[Extent], cuts: &Ranges) -> Verdict {
    let id = inode.id();
    let (mut bytes, mut inline, mut end) = (0, 0, 0);
    for piece in pieces {
        hold!(piece.len > 0, "{id}: empty extent at {}", piece.file_off);
        hold!(piece.file_off >= end, "{id}: extents overlap at {}", piece.file_off);
        end = end_of(piece);
        bytes += piece.len;
        if let Some(Source::Inline(data)) = &piece.source {
            hold!(data.len() as u64 == piece.len, "{id}: inline length at {}", piece.file_off);
            inline += piece.len;
        }
        let cut = cuts.iter().find(|cut| cut.0 < end && cut.1 > piece.file_off);
        match cut {
            Some(cut) => {
                let whole = cut.0 <= piece.file_off && end <= cut.1;
                hold!(whole, "{id}: cut {cut:?} splits the extent at {}", piece.file_off);
            }
            None => hold!(end <= inode.attr.size, "{id}: extent to {end} beyond the size"),
        }
    }
    for pair in cuts.windows(2) {
        hold!(pair[0].1 <= pair[1].0, "{id}: cuts {:?} and {:?} overlap", pair[0], pair[1]);
    }
    for cut in cuts {
        hold!(cut.0 < cut.1, "{id}: empty cut {cut:?}");
    }
    let row = &inode.row;
    let count = pieces.len() as u64;
    hold!(row.extents == count, "{id}: {} extents, has {count}", row.extents);
    hold!(row.inline_bytes == inline, "{id}: {} inline bytes, has {inline}", row.inline_bytes);
    hold!(inode.attr.allocated == bytes, "{id}: {} bytes, has {bytes}", inode.attr.allocated);
    hold!(row.cuts as usize == cuts.len(), "{id}: {} cuts, has {}", row.cuts, cuts.len());
    let kind = inode.attr.kind();
    let regular = kind == FileKind::Regular;
    hold!(regular || pieces.is_empty(), "{id} is no file but has extents");
    let link = kind == FileKind::Symlink;
    hold!(link != row.target.is_empty(), "{id}: only symlinks have targets");
    hold!(!link || inode.attr.size == row.target.len() as u64, "{id}: size of a symlink");
    Ok(())
}
