//! Content and attributes of inodes: commits of extents, truncation, chmod and the like.

use super::dirs::{SETGID, SETUID};
use super::extents::{end_of, overlapping};
use super::state::{Inode, Outcome, State};
use super::tables::{Chunks, Deletable, Xattrs};
use crate::errno::Errno;
use crate::ids::{ChunkId, SessionId};
use crate::limits::{CHUNK_BYTES_MAX, FILE_BYTES_MAX};
use crate::pb::{
    self, ChunkEpoch, ChunkRange, ChunkState, CommitOp, Extent, FileKind, OpResult, SetattrOp,
    extent::Source,
};
use crate::tables::Read;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

const GROUP_EXECUTE: u32 = 0o010;
const CAPABILITY: &[u8] = b"security.capability";

/// Bytes that an operation makes part of a file.
pub(super) struct Content<'a> {
    pub extents: &'a [Extent],
    pub epochs: &'a [ChunkEpoch],
    /// The file is at least this long afterwards.
    pub size: u64,
}

/// The chunks that a vetted content names, as they were then.
pub(super) type Named = BTreeMap<u64, pb::Chunk>;

impl State<'_> {
    /// Whether the content may become part of the file: pieces sorted and apart, within the file's and the
    /// inode's bounds (EFBIG), inline ones short, those in chunks by rule A3 (ECANCELED).
    pub fn vet_content(
        &self,
        session: SessionId,
        inode: &Inode,
        content: &Content<'_>,
    ) -> Outcome<Named> {
        let mut chunks = Named::new();
        let mut end = 0;
        let mut inline = inode.row.inline_bytes;
        let mut extents = inode.row.extents;
        for extent in content.extents {
            if extent.len == 0 || extent.file_off < end {
                return Err(Errno::EINVAL.into());
            }
            end = extent.file_off.checked_add(extent.len).ok_or(Errno::EFBIG)?;
            match extent.source.as_ref().ok_or(Errno::EINVAL)? {
                Source::Inline(bytes) => {
                    if bytes.len() as u64 != extent.len {
                        return Err(Errno::EINVAL.into());
                    }
                    if extent.len > self.limits.inline_bytes_max {
                        return Err(Errno::EFBIG.into());
                    }
                    inline += extent.len;
                }
                Source::Chunk(range) => {
                    self.vet_range(session, content.epochs, (range, extent.len), &mut chunks)?;
                }
            }
            let (fewer, freed) = self.displaced(inode, extent)?;
            extents = (extents + 1).saturating_sub_signed(fewer);
            inline -= freed;
        }
        let too_big = end.max(content.size) > FILE_BYTES_MAX
            || inline > self.limits.inline_total_bytes_max
            || extents > self.limits.extents_max;
        if too_big { Err(Errno::EFBIG.into()) } else { Ok(chunks) }
    }

    /// How many extents fewer the inode has once `piece` took their place (a split gives one more), and how
    /// many inline bytes fewer.
    fn displaced(&self, inode: &Inode, piece: &Extent) -> Outcome<(i64, u64)> {
        let (from, to) = (piece.file_off, end_of(piece));
        let (mut fewer, mut inline) = (0, 0);
        if inode.row.extents == 0 {
            return Ok((0, 0));
        }
        for extent in overlapping(self.db, inode.id(), (from, to), usize::MAX)? {
            let remains = i64::from(extent.file_off < from) + i64::from(end_of(&extent) > to);
            fewer += 1 - remains;
            if matches!(extent.source, Some(Source::Inline(_))) {
                inline += end_of(&extent).min(to) - extent.file_off.max(from);
            }
        }
        Ok((fewer, inline))
    }

    /// Rule A3: a range of a chunk may become part of a file if and only if this session opened the chunk and
    /// either the range ends within the sealed length, or the chunk is open and its replica set is still the
    /// one that the client synced against.
    fn vet_range(
        &self,
        session: SessionId,
        epochs: &[ChunkEpoch],
        (range, len): (&ChunkRange, u64),
        chunks: &mut Named,
    ) -> Outcome<()> {
        let end = range.off.checked_add(len).ok_or(Errno::EINVAL)?;
        if end > CHUNK_BYTES_MAX as u64 {
            return Err(Errno::EINVAL.into());
        }
        let chunk = match chunks.entry(range.chunk) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let chunk = self.db.get::<Chunks>(&ChunkId(range.chunk))?;
                new.insert(chunk.ok_or(Errno::ECANCELED)?)
            }
        };
        let synced = || epochs.iter().any(|e| e.chunk == chunk.id && e.epoch == chunk.epoch);
        let held = match chunk.state() {
            ChunkState::Open => synced(),
            ChunkState::Sealed => end <= chunk.committed_len || crate::bug!(M26),
            ChunkState::Deleting | ChunkState::Unspecified => false,
        };
        let (sealed, id) = (chunk.state() == ChunkState::Sealed, ChunkId(chunk.id));
        if chunk.session != session.get() || !held {
            crate::mark!("commit refused by rule A3");
            return Err(Errno::ECANCELED.into());
        }
        if sealed && self.meets_hole(id, (range.off, end))? {
            crate::mark!("commit into a hole refused");
            return Err(Errno::ECANCELED.into());
        }
        Ok(())
    }

    /// Makes vetted content part of the inode; the caller saves it.
    pub fn put_content(
        &mut self,
        inode: &mut Inode,
        content: &Content<'_>,
        mut chunks: Named,
    ) -> Outcome<()> {
        let mut size = inode.attr.size.max(content.size);
        for extent in content.extents {
            let mut piece = extent.clone();
            if let Some(Source::Chunk(range)) = &mut piece.source {
                range.commit_index = self.index.get();
                let end = range.off + piece.len;
                if let Some(chunk) = chunks.get_mut(&range.chunk) {
                    chunk.committed_len = chunk.committed_len.max(end);
                }
            }
            size = size.max(end_of(extent));
            self.place(inode, piece)?;
        }
        inode.attr.size = size;
        for (id, chunk) in chunks {
            let id = ChunkId(id);
            if chunk.state() == ChunkState::Open {
                self.db.put::<Chunks>(&id, &chunk)?;
                continue;
            }
            self.referred_late(id)?;
            if self.db.get::<Deletable>(&id)?.is_some() {
                self.db.delete::<Deletable>(&id)?;
            }
        }
        Ok(())
    }

    /// Makes synced bytes part of the file.
    pub fn commit(&mut self, session: SessionId, op: &CommitOp) -> Outcome<OpResult> {
        let mut inode = self.inode(op.inode)?;
        vet_regular(&inode)?;
        let content = Content { extents: &op.extents, epochs: &op.epochs, size: op.size_at_least };
        let chunks = self.vet_content(session, &inode, &content)?;
        self.put_content(&mut inode, &content, chunks)?;
        if op.kill_priv {
            self.kill_privileges(&mut inode)?;
        }
        inode.modified(self.now);
        inode.attr.mtime_ns = op.mtime_ns.unwrap_or(self.now);
        let attr = Some(self.save(inode)?);
        Ok(OpResult { attr, ..OpResult::default() })
    }

    pub fn setattr(&mut self, op: &SetattrOp) -> Outcome<OpResult> {
        let mut inode = self.inode(op.inode)?;
        if let Some(class) = op.class {
            self.vet_class(class)?;
            inode.attr.class = class;
        }
        if let Some(size) = op.size {
            vet_regular(&inode)?;
            if size > FILE_BYTES_MAX {
                return Err(Errno::EFBIG.into());
            }
            let old = std::mem::replace(&mut inode.attr.size, size);
            self.cut(&mut inode, size, old)?;
            inode.attr.mtime_ns = self.now;
        }
        if (op.uid.is_some() || op.gid.is_some()) && !inode.is_dir() {
            self.kill_privileges(&mut inode)?;
        }
        let attr = &mut inode.attr;
        attr.uid = op.uid.unwrap_or(attr.uid);
        attr.gid = op.gid.unwrap_or(attr.gid);
        attr.mode = op.mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.atime_ns = op.atime_ns.unwrap_or(attr.atime_ns);
        attr.mtime_ns = op.mtime_ns.unwrap_or(attr.mtime_ns);
        if op.atime_now {
            attr.atime_ns = self.now;
        }
        if op.mtime_now {
            attr.mtime_ns = self.now;
        }
        // A directory's setgid is no privilege: what is made in it inherits the group.
        if op.kill_priv && !inode.is_dir() {
            self.kill_privileges(&mut inode)?;
        }
        inode.changed(self.now);
        let attr = Some(self.save(inode)?);
        Ok(OpResult { attr, ..OpResult::default() })
    }

    /// What a write or a change of owner takes from a file: setuid, setgid where the group may execute (else
    /// it meant mandatory locking), capabilities.
    fn kill_privileges(&mut self, inode: &mut Inode) -> Outcome<()> {
        inode.attr.mode &= !SETUID;
        if inode.attr.mode & GROUP_EXECUTE != 0 {
            inode.attr.mode &= !SETGID;
        }
        let key = (inode.id(), CAPABILITY.to_vec());
        if inode.row.xattrs > 0 && self.db.get::<Xattrs>(&key)?.is_some() {
            self.db.delete::<Xattrs>(&key)?;
            inode.row.xattrs -= 1;
        }
        Ok(())
    }
}

fn vet_regular(inode: &Inode) -> Result<(), Errno> {
    match inode.attr.kind() {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}
