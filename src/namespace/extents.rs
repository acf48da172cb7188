//! The extent map of one inode, its reverse index, and what was cut off it.
//!
//! A truncation frees a bounded number of extents at once; the rest stays in the table under a *cut*: a range
//! of the file whose extents no longer count. Readers jump over cuts, commits into a cut take their range out
//! of it, purges empty cuts step by step. Cuts cover whole extents.

use super::state::{Inode, Outcome, State};
use super::tables::{Cuts, Deletable, Extents, Inodes, Orphans, Refs, Xattrs};
use crate::errno::Errno;
use crate::ids::{ChunkId, InodeId};
use crate::pb::{self, Attr, ChunkRange, Extent, extent::Source};
use crate::tables::Read;

pub(super) fn end_of(extent: &Extent) -> u64 {
    extent.file_off + extent.len
}

/// The part of an extent in `[from, to)`, which it overlaps.
pub(super) fn clip(extent: &Extent, from: u64, to: u64) -> Extent {
    let (start, end) = (extent.file_off.max(from), end_of(extent).min(to));
    let skip = start - extent.file_off;
    let len = end - start;
    let source = extent.source.as_ref().map(|source| match source {
        Source::Chunk(range) => Source::Chunk(ChunkRange { off: range.off + skip, ..*range }),
        Source::Inline(bytes) => {
            let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            let keep = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len() - skip);
            Source::Inline(bytes.slice(skip..skip + keep))
        }
    });
    Extent { file_off: start, len, source }
}

/// Extents that overlap `[from, to)`, cuts or not, whole, in order, at most `max`.
pub(super) fn overlapping(
    read: &impl Read,
    inode: InodeId,
    (from, to): (u64, u64),
    max: usize,
) -> Outcome<Vec<Extent>> {
    let mut found = Vec::new();
    let before = read.last_before::<Extents>(&(inode, from))?;
    if let Some((key, extent)) = before
        && key.0 == inode
        && end_of(&extent) > from
    {
        found.push(extent);
    }
    for row in read.range::<Extents>(&(inode, from), Some(&(inode, to))) {
        if found.len() >= max {
            break;
        }
        found.push(row?.1);
    }
    Ok(found)
}

/// The cuts of an inode that overlap `[from, to)`, in order.
pub(super) fn cuts_over(
    read: &impl Read,
    inode: InodeId,
    (from, to): (u64, u64),
) -> Outcome<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    if let Some((key, row)) = read.last_before::<Cuts>(&(inode, from))?
        && key.0 == inode
        && row.end > from
    {
        found.push((key.1, row.end));
    }
    for row in read.range::<Cuts>(&(inode, from), Some(&(inode, to))) {
        let (key, row) = row?;
        found.push((key.1, row.end));
    }
    Ok(found)
}

impl State<'_> {
    /// Writes an extent that overlaps nothing.
    pub fn put_extent(&mut self, inode: &mut Inode, extent: &Extent) -> Outcome<()> {
        let id = inode.id();
        self.db.put::<Extents>(&(id, extent.file_off), extent)?;
        match &extent.source {
            Some(Source::Chunk(range)) => {
                let key = (ChunkId(range.chunk), range.off, id, extent.file_off);
                self.db.put::<Refs>(&key, &pb::RefRow { len: extent.len })?;
            }
            _ => inode.row.inline_bytes += extent.len,
        }
        inode.row.extents += 1;
        inode.attr.allocated += extent.len;
        self.counters.bytes += extent.len;
        Ok(())
    }

    /// Removes an extent as it is in the table. The caller calls [`State::unreferenced`] for its chunk when
    /// all pieces are in place.
    pub fn drop_extent(&mut self, inode: &mut Inode, extent: &Extent) -> Outcome<()> {
        let id = inode.id();
        self.db.delete::<Extents>(&(id, extent.file_off))?;
        match &extent.source {
            Some(Source::Chunk(range)) => {
                let key = (ChunkId(range.chunk), range.off, id, extent.file_off);
                self.db.delete::<Refs>(&key)?;
            }
            _ => inode.row.inline_bytes -= extent.len,
        }
        inode.row.extents -= 1;
        inode.attr.allocated -= extent.len;
        self.counters.bytes -= extent.len;
        Ok(())
    }

    /// After a reference to these bytes went: a sealed chunk without any becomes deletable, another has more
    /// garbage.
    pub fn unreferenced(&mut self, extent: &Extent) -> Outcome<()> {
        let Some(Source::Chunk(range)) = &extent.source else { return Ok(()) };
        let id = ChunkId(range.chunk);
        if self.is_sealed(id)? && !self.is_referenced_near(id, range.off)? {
            return Ok(self.db.put::<Deletable>(&id, &pb::EmptyRow {})?);
        }
        self.add_garbage(id, extent.len)
    }

    /// Whether anything refers to the chunk.
    pub fn is_referenced(&self, chunk: ChunkId) -> Outcome<bool> {
        self.is_referenced_near(chunk, 0)
    }

    /// The same, looking from `off` of the chunk on first, where a reference has just gone: those that went
    /// earlier are tombstones until the next checkpoint, and mostly lie before it.
    fn is_referenced_near(&self, chunk: ChunkId, off: u64) -> Outcome<bool> {
        let [start, near, end] = [(chunk, 0), (chunk, off), (ChunkId(chunk.0 + 1), 0)]
            .map(|(chunk, off)| (chunk, off, InodeId(0), 0));
        for (from, to) in [(near, end), (start, near)] {
            if self.db.range::<Refs>(&from, Some(&to)).next().transpose()?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes `[from, to)` out of the map, splitting what straddles its ends.
    pub fn clear_range(&mut self, inode: &mut Inode, (from, to): (u64, u64)) -> Outcome<()> {
        if inode.row.extents == 0 {
            return self.uncut(inode, (from, to));
        }
        for extent in overlapping(self.db, inode.id(), (from, to), usize::MAX)? {
            self.drop_extent(inode, &extent)?;
            if extent.file_off < from {
                self.put_extent(inode, &clip(&extent, 0, from))?;
            }
            if end_of(&extent) > to {
                self.put_extent(inode, &clip(&extent, to, u64::MAX))?;
            }
            self.unreferenced(&clip(&extent, from, to))?;
        }
        self.uncut(inode, (from, to))
    }

    /// Puts a piece in place of whatever it overlaps, joined with its neighbours where they continue it.
    pub fn place(&mut self, inode: &mut Inode, piece: Extent) -> Outcome<()> {
        let end = end_of(&piece);
        self.clear_range(inode, (piece.file_off, end))?;
        let mut piece = piece;
        if inode.row.cuts == 0 && inode.row.extents > 0 {
            let id = inode.id();
            if let Some((key, left)) = self.db.last_before::<Extents>(&(id, piece.file_off))?
                && key.0 == id
                && let Some(joined) = join(&left, &piece, self.limits.inline_bytes_max)
            {
                self.drop_extent(inode, &left)?;
                piece = joined;
            }
            if let Some(right) = self.db.get::<Extents>(&(id, end))?
                && let Some(joined) = join(&piece, &right, self.limits.inline_bytes_max)
            {
                self.drop_extent(inode, &right)?;
                piece = joined;
            }
        }
        self.put_extent(inode, &piece)
    }

    // ---- cuts ----

    /// Cuts everything from `from` on, where the file ended at `size`. Frees what the command's budget allows.
    pub fn cut(&mut self, inode: &mut Inode, from: u64, size: u64) -> Outcome<()> {
        if inode.row.extents == 0 || from >= size {
            return Ok(());
        }
        let before = self.db.last_before::<Extents>(&(inode.id(), from))?;
        if let Some((key, extent)) = before
            && key.0 == inode.id()
            && end_of(&extent) > from
        {
            self.drop_extent(inode, &extent)?;
            self.put_extent(inode, &clip(&extent, 0, from))?;
            self.unreferenced(&clip(&extent, from, u64::MAX))?;
        }
        let mut budget = std::mem::take(&mut self.purge_budget);
        let done = self.free_range(inode, (from, u64::MAX), &mut budget)?;
        self.purge_budget = budget;
        let had_cuts = inode.row.cuts > 0;
        let end = self.drop_cuts_from(inode, from)?.max(size);
        if !done {
            crate::mark!("truncation left to the purge");
            self.put_cut(inode, (from, end))?;
            self.db.put::<Orphans>(&inode.id(), &pb::EmptyRow {})?;
        }
        if had_cuts { self.close_cuts(inode) } else { Ok(()) }
    }

    fn put_cut(&mut self, inode: &mut Inode, (from, end): (u64, u64)) -> Outcome<()> {
        self.db.put::<Cuts>(&(inode.id(), from), &pb::CutRow { end })?;
        inode.row.cuts += 1;
        Ok(())
    }

    fn drop_cut(&mut self, inode: &mut Inode, from: u64) -> Outcome<()> {
        self.db.delete::<Cuts>(&(inode.id(), from))?;
        inode.row.cuts -= 1;
        Ok(())
    }

    /// Takes everything from `from` on out of the cuts; returns where the last of them ended.
    fn drop_cuts_from(&mut self, inode: &mut Inode, from: u64) -> Outcome<u64> {
        let mut last = 0;
        for (start, end) in self.cuts_over(inode, (from, u64::MAX))? {
            self.drop_cut(inode, start)?;
            if start < from {
                self.put_cut(inode, (start, from))?;
            }
            last = end;
        }
        Ok(last)
    }

    /// The cuts that overlap `[from, to)`.
    fn cuts_over(&self, inode: &Inode, (from, to): (u64, u64)) -> Outcome<Vec<(u64, u64)>> {
        if inode.row.cuts == 0 {
            return Ok(Vec::new());
        }
        cuts_over(self.db, inode.id(), (from, to))
    }

    /// `[from, to)` holds live bytes again.
    fn uncut(&mut self, inode: &mut Inode, (from, to): (u64, u64)) -> Outcome<()> {
        if inode.row.cuts == 0 {
            return Ok(());
        }
        for (start, end) in self.cuts_over(inode, (from, to))? {
            self.drop_cut(inode, start)?;
            if start < from {
                self.put_cut(inode, (start, from))?;
            }
            if end > to {
                self.put_cut(inode, (to, end))?;
            }
        }
        self.close_cuts(inode)
    }

    /// Without cuts a named inode has no business among the orphans.
    fn close_cuts(&mut self, inode: &Inode) -> Outcome<()> {
        if inode.row.cuts == 0 {
            self.db.delete::<Orphans>(&inode.id())?;
        }
        Ok(())
    }

    // ---- freeing ----

    /// Removes extents that begin in `[from, to)` until `budget` is used up; whether all are gone.
    fn free_range(
        &mut self,
        inode: &mut Inode,
        (from, to): (u64, u64),
        budget: &mut u32,
    ) -> Outcome<bool> {
        let id = inode.id();
        let (from, to) = ((id, from), (id, to));
        let rows = self.db.range::<Extents>(&from, Some(&to));
        let most = *budget as usize + 1;
        let mut extents =
            rows.take(most).map(|row| row.map(|r| r.1)).collect::<Result<Vec<_>, _>>()?;
        let done = extents.len() < most;
        extents.truncate(most - 1);
        for extent in extents {
            self.drop_extent(inode, &extent)?;
            self.unreferenced(&extent)?;
            *budget -= 1;
        }
        Ok(done)
    }

    /// Puts an inode back that lost a name or a pin, or frees it when that was the last.
    pub fn save_or_free(&mut self, mut inode: Inode) -> Outcome<Attr> {
        let attr = inode.attr;
        let early = crate::bug!(M47) && inode.attr.nlink == 0;
        if !inode.is_orphan() && !early {
            return self.save(inode);
        }
        let budget = self.purge_budget;
        let freed = self.free_all(&mut inode, budget)?;
        self.purge_budget -= freed;
        let listed = inode.row.cuts > 0;
        if self.remove_if_empty(&inode, listed)? {
            return Ok(attr);
        }
        crate::mark!("inode left to the purge");
        self.db.put::<Orphans>(&inode.id(), &pb::EmptyRow {})?;
        self.save(inode)?;
        Ok(attr)
    }

    /// Frees extents, then xattrs, at most `max`; how many.
    fn free_all(&mut self, inode: &mut Inode, max: u32) -> Outcome<u32> {
        let mut left = max;
        if inode.row.extents > 0 && !self.free_range(inode, (0, u64::MAX), &mut left)? {
            return Ok(max - left);
        }
        let id = inode.id();
        let (from, to) = ((id, Vec::new()), (InodeId(id.0 + 1), Vec::new()));
        let mut names = Vec::new();
        if inode.row.xattrs > 0 {
            for row in self.db.range::<Xattrs>(&from, Some(&to)).take(left as usize) {
                names.push(row?.0.1);
            }
        }
        for name in names {
            self.db.delete::<Xattrs>(&(id, name))?;
            inode.row.xattrs -= 1;
            left -= 1;
        }
        Ok(max - left)
    }

    fn remove_if_empty(&mut self, inode: &Inode, listed: bool) -> Outcome<bool> {
        if inode.row.extents > 0 || inode.row.xattrs > 0 {
            return Ok(false);
        }
        let id = inode.id();
        if inode.row.cuts > 0 {
            for (start, _) in cuts_over(self.db, id, (0, u64::MAX))? {
                self.db.delete::<Cuts>(&(id, start))?;
            }
        }
        if listed {
            self.db.delete::<Orphans>(&id)?;
        }
        self.db.delete::<Inodes>(&id)?;
        self.counters.inodes -= 1;
        Ok(true)
    }

    /// One bounded step of freeing an orphan or a cut. Answers how many rows went; ENOENT when there is
    /// nothing to do for this inode.
    pub fn purge_inode(&mut self, cmd: &pb::PurgeInodeCmd) -> Outcome<u64> {
        let id = InodeId(cmd.inode);
        self.db.get::<Orphans>(&id)?.ok_or(Errno::ENOENT)?;
        let row = self.db.get::<Inodes>(&id)?.ok_or(Errno::ENOENT)?;
        let mut inode = Inode::from_row(row);
        let max = cmd.max_extents.clamp(1, self.limits.purge_extents.max(1));
        if inode.is_orphan() {
            let freed = self.free_all(&mut inode, max)?;
            if !self.remove_if_empty(&inode, true)? {
                self.save(inode)?;
            }
            return Ok(freed.into());
        }
        let mut left = max;
        for (start, end) in cuts_over(self.db, id, (0, u64::MAX))? {
            let done = self.free_range(&mut inode, (start, end), &mut left)?;
            if !done {
                break;
            }
            self.drop_cut(&mut inode, start)?;
        }
        self.close_cuts(&inode)?;
        self.save(inode)?;
        Ok((max - left).into())
    }
}

/// One extent for two that continue each other, in the file and in the chunk, or both inline and short.
fn join(left: &Extent, right: &Extent, inline_max: u64) -> Option<Extent> {
    if end_of(left) != right.file_off {
        return None;
    }
    let source = match (left.source.as_ref()?, right.source.as_ref()?) {
        (Source::Chunk(a), Source::Chunk(b)) if a.chunk == b.chunk && a.off + left.len == b.off => {
            let commit_index = a.commit_index.max(b.commit_index);
            Source::Chunk(ChunkRange { commit_index, ..*a })
        }
        (Source::Inline(a), Source::Inline(b)) if left.len + right.len <= inline_max => {
            Source::Inline([a.as_ref(), b.as_ref()].concat().into())
        }
        _ => return None,
    };
    Some(Extent { file_off: left.file_off, len: left.len + right.len, source: Some(source) })
}
