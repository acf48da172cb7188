//! Answers from any consistent view of the tables.

use super::extents::{cuts_over, overlapping};
use super::state::{Inode, Outcome, dir, inode, settle};
use super::tables::{
    Chunks, Classes, Cluster, Cookies, Counters, Dentries, Inodes, Servers, Xattrs,
};
use super::xattrs::vet_xattr_name;
use crate::errno::Errno;
use crate::ids::{ChunkId, InodeId, ServerId};
use crate::limits::Limits;
use crate::pb::{
    self, ChunkInfo, ChunksResult, ClassesResult, DirEntry, Extent, ExtentsResult, FileKind,
    NamesResult, QueryResult, ReaddirResult, ServerAddr, ServerState, StatfsResult, extent::Source,
    query, query_result,
};
use crate::tables::{Read, TableError};
use std::collections::BTreeMap;

/// Most entries, extents or chunks in one answer, whatever was asked.
const ROWS_MAX: usize = 4096;

/// Answers one query at the moment the view shows. Chunk servers come with the address they registered and
/// `alive` unless declared dead or removed; who knows better overwrites that. Statfs counts what files hold;
/// the size of the disks is not known here (0).
pub fn query(
    read: &impl Read,
    _limits: &Limits,
    query: &pb::Query,
) -> Result<QueryResult, TableError> {
    let mut result = QueryResult::default();
    match settle(answer(read, query, &mut result))? {
        Ok(answer) => result.result = Some(answer),
        Err(errno) => result.errno = errno.get(),
    }
    Ok(result)
}

/// The cluster's identity and the bounds it was made with; `None` before `InitCluster`.
pub fn cluster(read: &impl Read) -> Result<Option<pb::ClusterRow>, TableError> {
    read.get::<Cluster>(&0)
}

/// A chunk and where its servers are; `None` if it is gone.
pub fn chunk_info(read: &impl Read, id: ChunkId) -> Result<Option<ChunkInfo>, TableError> {
    let Some(chunk) = read.get::<Chunks>(&id)? else { return Ok(None) };
    let mut servers = Vec::with_capacity(chunk.replicas.len());
    for replica in &chunk.replicas {
        if let Some(row) = read.get::<Servers>(&ServerId(replica.server))? {
            let alive = matches!(row.state(), ServerState::Active | ServerState::Draining);
            servers.push(ServerAddr {
                server: row.id,
                address: row.address,
                alive,
                incarnation: 0,
            });
        }
    }
    Ok(Some(ChunkInfo { chunk: Some(chunk), servers }))
}

fn answer(
    read: &impl Read,
    query: &pb::Query,
    result: &mut QueryResult,
) -> Outcome<query_result::Result> {
    use query::Query;
    use query_result::Result as Answer;
    Ok(match query.query.as_ref().ok_or(Errno::EINVAL)? {
        Query::Lookup(q) => Answer::Attr(lookup(read, q, result)?),
        Query::Getattr(q) => Answer::Attr(inode(read, InodeId(q.inode))?.attr),
        Query::Readdir(q) => Answer::Readdir(readdir(read, q, result)?),
        Query::Readlink(q) => Answer::Data(readlink(read, InodeId(q.inode))?),
        Query::Extents(q) => Answer::Extents(extents(read, q)?),
        Query::Getxattr(q) => Answer::Data(getxattr(read, q)?),
        Query::Listxattr(q) => Answer::Names(listxattr(read, InodeId(q.inode))?),
        Query::Statfs(_) => Answer::Statfs(statfs(read)?),
        Query::Chunks(q) => Answer::Chunks(chunks(read, q)?),
        Query::Classes(_) => Answer::Classes(classes(read)?),
    })
}

fn lookup(read: &impl Read, q: &pb::LookupQuery, result: &mut QueryResult) -> Outcome<pb::Attr> {
    let parent = dir(read, InodeId(q.parent))?;
    result.dir = Some(parent.attr);
    let id = match q.name.as_ref() {
        b"." => parent.id(),
        b".." => InodeId(if parent.row.parent == 0 { q.parent } else { parent.row.parent }),
        name if name.len() > crate::limits::NAME_BYTES_MAX => {
            return Err(Errno::ENAMETOOLONG.into());
        }
        name => {
            let entry = read.get::<Dentries>(&(parent.id(), name.to_vec()))?;
            InodeId(entry.ok_or(Errno::ENOENT)?.inode)
        }
    };
    Ok(inode(read, id)?.attr)
}

/// Real entries only, in order of their cookies; "." and ".." (cookies 1 and 2) are the caller's to add.
fn readdir(
    read: &impl Read,
    q: &pb::ReaddirQuery,
    result: &mut QueryResult,
) -> Outcome<ReaddirResult> {
    let dir = dir(read, InodeId(q.inode))?;
    result.dir = Some(dir.attr);
    let limit = (q.limit as usize).clamp(1, ROWS_MAX);
    let limit = if crate::fault!("namespace: page of a directory cut short") { 1 } else { limit };
    let next = if crate::bug!(M45) { q.cookie } else { q.cookie.saturating_add(1) };
    let (from, to) = ((dir.id(), next), (InodeId(q.inode + 1), 0));
    let mut rows = read.range::<Cookies>(&from, Some(&to));
    let mut entries = Vec::new();
    for row in rows.by_ref().take(limit) {
        let ((_, cookie), row) = row?;
        entries.push(dir_entry(read, &dir, (cookie, row.name), q.with_attrs)?);
    }
    let end = rows.next().transpose()?.is_none();
    let parent = if dir.row.parent == 0 { q.inode } else { dir.row.parent };
    Ok(ReaddirResult { entries, end, parent })
}

fn dir_entry(
    read: &impl Read,
    dir: &Inode,
    (cookie, name): (u64, bytes::Bytes),
    with_attrs: bool,
) -> Outcome<DirEntry> {
    let dentry = read.get::<Dentries>(&(dir.id(), name.to_vec()))?.ok_or(Errno::EIO)?;
    let attr = match with_attrs {
        true => read.get::<Inodes>(&InodeId(dentry.inode))?.and_then(|row| row.attr),
        false => None,
    };
    Ok(DirEntry { name, inode: dentry.inode, kind: dentry.kind, cookie, attr })
}

fn readlink(read: &impl Read, id: InodeId) -> Outcome<bytes::Bytes> {
    let link = inode(read, id)?;
    if link.attr.kind() == FileKind::Symlink {
        Ok(link.row.target)
    } else {
        Err(Errno::EINVAL.into())
    }
}

/// The live extents that overlap `[from, to)` (`to` 0: to the end of the file), whole where no cut clips
/// them, at most `limit`; what is missing between them reads as zeros.
fn extents(read: &impl Read, q: &pb::ExtentsQuery) -> Outcome<ExtentsResult> {
    let file = inode(read, InodeId(q.inode))?;
    if file.attr.kind() != FileKind::Regular {
        return Err(if file.is_dir() { Errno::EISDIR } else { Errno::EINVAL }.into());
    }
    let limit = (q.limit as usize).clamp(1, ROWS_MAX);
    let to = if q.to == 0 { file.attr.size } else { q.to.min(file.attr.size) };
    let mut found = Vec::new();
    if file.row.extents > 0 && q.from < to {
        for (from, to) in uncut_parts(read, &file, (q.from, to))? {
            let room = limit + 1 - found.len();
            found.extend(overlapping(read, file.id(), (from, to), room)?);
            if found.len() > limit {
                break;
            }
        }
    }
    let end = found.len() <= limit;
    found.truncate(limit);
    let chunks = chunks_of(read, &found)?;
    Ok(ExtentsResult { extents: found, chunks, attr: Some(file.attr), end })
}

/// `[from, to)` without the file's cuts, in order.
fn uncut_parts(read: &impl Read, file: &Inode, (from, to): (u64, u64)) -> Outcome<Vec<(u64, u64)>> {
    if file.row.cuts == 0 {
        return Ok(vec![(from, to)]);
    }
    let mut parts = Vec::new();
    let mut at = from;
    for (start, end) in cuts_over(read, file.id(), (from, to))? {
        if start > at {
            parts.push((at, start));
        }
        at = at.max(end);
    }
    if at < to {
        parts.push((at, to));
    }
    Ok(parts)
}

fn chunks_of(read: &impl Read, extents: &[Extent]) -> Outcome<Vec<ChunkInfo>> {
    let mut infos = BTreeMap::new();
    for extent in extents {
        if let Some(Source::Chunk(range)) = &extent.source
            && !infos.contains_key(&range.chunk)
        {
            infos.insert(range.chunk, chunk_info(read, ChunkId(range.chunk))?);
        }
    }
    Ok(infos.into_values().flatten().collect())
}

fn getxattr(read: &impl Read, q: &pb::GetxattrQuery) -> Outcome<bytes::Bytes> {
    vet_xattr_name(&q.name)?;
    let inode = inode(read, InodeId(q.inode))?;
    if inode.row.xattrs == 0 {
        return Err(Errno::ENODATA.into());
    }
    let row = read.get::<Xattrs>(&(inode.id(), q.name.to_vec()))?;
    Ok(row.ok_or(Errno::ENODATA)?.value)
}

fn listxattr(read: &impl Read, id: InodeId) -> Outcome<NamesResult> {
    let inode = inode(read, id)?;
    if inode.row.xattrs == 0 {
        return Ok(NamesResult::default());
    }
    let (from, to) = ((id, Vec::new()), (InodeId(id.0 + 1), Vec::new()));
    let rows = read.range::<Xattrs>(&from, Some(&to));
    let names = rows.map(|row| row.map(|(key, _)| key.1.into())).collect::<Result<_, _>>()?;
    Ok(NamesResult { names })
}

fn statfs(read: &impl Read) -> Outcome<StatfsResult> {
    let counters = read.get::<Counters>(&0)?.unwrap_or_default();
    let max_inodes = u64::from(u32::MAX).max(counters.inodes * 2);
    Ok(StatfsResult { inodes: counters.inodes, max_inodes, ..StatfsResult::default() })
}

fn chunks(read: &impl Read, q: &pb::ChunksQuery) -> Outcome<ChunksResult> {
    let ids = q.chunks.iter().take(ROWS_MAX);
    let infos = ids.map(|&id| chunk_info(read, ChunkId(id))).collect::<Result<Vec<_>, _>>()?;
    Ok(ChunksResult { chunks: infos.into_iter().flatten().collect() })
}

fn classes(read: &impl Read) -> Outcome<ClassesResult> {
    let rows = read.range::<Classes>(&0, None).map(|row| row.map(|(_, class)| class));
    Ok(ClassesResult { classes: rows.collect::<Result<_, _>>()? })
}
