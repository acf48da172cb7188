//! Reading: what this mount has written and not committed lies over what the extents say.

use super::Client;
use super::extents::Source;
use super::fetch::ReadError;
use super::handles::OpenFile;
use super::inode::{Inode, State};
use super::types::Handle;
use crate::errno::Errno;
use crate::ids::{ChunkId, InodeId};
use crate::pb::{self, query::Query, query_result::Result as Found};
use bytes::Bytes;
use futures_util::future::join_all;
use std::sync::{Arc, PoisonError};

/// Extents asked for at a time.
const EXTENTS_ASKED: u32 = 1024;
/// Extents of one inode that are remembered; beyond, it starts again with those just needed.
const EXTENTS_KEPT: usize = 64 << 10;
/// How often a read starts again because chunks or extents went away under it.
const ATTEMPTS_MAX: usize = 32;
/// Zeros are handed out in pieces of this length.
const ZEROS_BYTES: usize = 1 << 20;

static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// Where a stretch of a read comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Memory.
    Here(Bytes),
    /// Nowhere: so many zeros.
    Zeros(u64),
    /// A chunk: from this offset, so many bytes.
    Chunk(ChunkId, u64, u64),
    /// The masters know: ask for the extents from this offset of the file on.
    Unknown(u64),
}

impl Client {
    /// Reads; short only at the end of the file. The pieces are slices of what arrived, not copies.
    pub async fn read(&self, handle: Handle, off: u64, len: usize) -> Result<Vec<Bytes>, Errno> {
        let open = self.handles.get(handle)?;
        if !open.readable() {
            return Err(Errno::EBADF);
        }
        let found = self.read_range(&open.inode, off, len as u64).await?;
        self.read_ahead(&open, off, found.iter().map(Bytes::len).sum());
        Ok(found)
    }

    /// [`Client::read`] from the caches, if they hold all of it.
    pub fn read_cached(&self, handle: Handle, off: u64, len: usize) -> Option<Vec<Bytes>> {
        let open = self.handles.get(handle).ok().filter(|open| open.readable())?;
        let parts = plan(&mut open.inode.lock(), off, len as u64);
        let mut found = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Part::Here(data) => found.push(data),
                Part::Zeros(len) => push_zeros(&mut found, len),
                Part::Chunk(chunk, at, len) => found.extend(self.fetcher.cached(chunk, at, len)?),
                Part::Unknown(_) => return None,
            }
        }
        self.read_ahead(&open, off, found.iter().map(Bytes::len).sum());
        Some(found)
    }

    /// The bytes of a file as this mount sees it.
    async fn read_range(
        &self,
        inode: &Arc<Inode>,
        off: u64,
        len: u64,
    ) -> Result<Vec<Bytes>, Errno> {
        for _ in 0..ATTEMPTS_MAX {
            let parts = plan(&mut inode.lock(), off, len);
            let unknown = parts.iter().find_map(|part| match part {
                Part::Unknown(at) => Some(*at),
                _ => None,
            });
            if let Some(at) = unknown {
                self.load_extents(inode, at).await?;
                continue;
            }
            match self.gather(parts).await {
                Ok(found) => return Ok(found),
                Err((chunk, ReadError::Stale)) => {
                    // Rule A5: the data moved; never an error of the reader.
                    crate::mark!("extents were out of date");
                    let mut state = inode.lock();
                    state.file().extents.forget_chunk(chunk);
                }
                Err((_, error @ ReadError::Failed)) => return Err(error.into()),
            }
        }
        Err(Errno::EIO)
    }

    async fn gather(&self, parts: Vec<Part>) -> Result<Vec<Bytes>, (ChunkId, ReadError)> {
        let fetches = parts.into_iter().map(|part| async move {
            match part {
                Part::Here(data) => Ok(vec![data]),
                Part::Zeros(len) => {
                    let mut found = Vec::new();
                    push_zeros(&mut found, len);
                    Ok(found)
                }
                Part::Chunk(chunk, at, len) => {
                    self.fetcher.get(chunk, at, len).await.map_err(|error| (chunk, error))
                }
                Part::Unknown(_) => Ok(Vec::new()),
            }
        });
        let mut found = Vec::new();
        for part in join_all(fetches).await {
            found.extend(part?);
        }
        Ok(found)
    }

    /// Asks for the extents from `from` on, and with them for the attributes.
    pub(super) async fn load_extents(
        &self,
        inode: &Arc<Inode>,
        from: u64,
    ) -> Result<pb::Attr, Errno> {
        let query = Query::Extents(pb::ExtentsQuery {
            inode: inode.id.get(),
            from,
            to: 0,
            limit: EXTENTS_ASKED,
        });
        let answer = self.queries.ask(query).await?;
        let Some(Found::Extents(found)) = answer.result.result else { return Err(Errno::EIO) };
        let attr = found.attr.ok_or(Errno::EIO)?;
        self.fetcher.learn(&found.chunks);
        let until = self.meta.until(answer.asked);
        let mut state = inode.lock();
        state.learn(&attr, until);
        let file = state.file();
        if file.extents.entries() > EXTENTS_KEPT {
            let change = file.extents.change;
            file.extents.reset(change);
        }
        let last = found.extents.last().map_or(from, |extent| extent.file_off + extent.len);
        let known_to = if found.end { u64::MAX } else { last };
        let used = file.extents.load(attr.change, from, known_to, &found.extents);
        let (version, known) = (attr.change, file.extents.change);
        tracing::trace!(inode = %inode.id, from, known_to, version, known, used, "extents told");
        if !used {
            crate::mark!("extents changed while asked for");
        }
        Ok(attr)
    }

    /// Starts reading what a sequential reader will ask for next.
    fn read_ahead(&self, open: &Arc<OpenFile>, off: u64, len: usize) {
        let window = self.limits.readahead_bytes.min(self.limits.data_cache_bytes / 4) as u64;
        let next = {
            let mut ahead = open.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            ahead.read(off, len as u64, window)
        };
        let Some((from, to)) = next else { return };
        let to = to.min(open.inode.lock().size());
        if from >= to {
            return;
        }
        let (Some(me), inode) = (self.me.upgrade(), open.inode.clone()) else { return };
        self.runtime.spawn(async move {
            // Whoever needs the bytes asks again, and hears of the failure.
            let _ = me.read_range(&inode, from, to - from).await;
        });
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; `ENXIO` past the end.
    pub async fn lseek_data_hole(
        &self,
        handle: Handle,
        off: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let open = self.handles.get(handle)?;
        let want_data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let mut at = off;
        for _ in 0..ATTEMPTS_MAX * 1024 {
            let (parts, size) = {
                let mut state = open.inode.lock();
                let size = state.size();
                (plan(&mut state, at, size.saturating_sub(at)), size)
            };
            if at >= size {
                return if want_data || off >= size { Err(Errno::ENXIO) } else { Ok(size) };
            }
            let mut unknown = None;
            for part in parts {
                let (is_data, len) = match part {
                    Part::Here(data) => (true, data.len() as u64),
                    Part::Chunk(_, _, len) => (true, len),
                    Part::Zeros(len) => (false, len),
                    Part::Unknown(from) => {
                        unknown = Some(from);
                        break;
                    }
                };
                if is_data == want_data {
                    return Ok(at);
                }
                at += len;
            }
            if let Some(from) = unknown {
                self.load_extents(&open.inode, from).await?;
            }
        }
        Err(Errno::EIO)
    }

    /// An inode's attributes, asked for now.
    pub(super) async fn getattr_fresh(&self, ino: InodeId) -> Result<pb::Attr, Errno> {
        let query = Query::Getattr(pb::GetattrQuery { inode: ino.get() });
        let answer = match self.queries.ask(query).await {
            Err(Errno::ESTALE) => {
                // Gone, unless it is open here: then what is known of it is the last word.
                let inode = self.meta.table.get(ino).ok_or(Errno::ESTALE)?;
                self.meta.gone(&inode);
                let view = inode.lock().view();
                return view.filter(|attr| attr.nlink == 0).ok_or(Errno::ESTALE);
            }
            other => other?,
        };
        let Some(Found::Attr(attr)) = answer.result.result else { return Err(Errno::EIO) };
        let inode = self.meta.learn(&attr, answer.asked);
        let view = inode.lock().view();
        view.ok_or(Errno::EIO)
    }
}

/// `[off, off + len)` of the file, cut at its end, newest bytes first: the dirty map, then flights from the
/// newest to the oldest, then the extents.
pub(super) fn plan(state: &mut State, off: u64, len: u64) -> Vec<Part> {
    let end = off.saturating_add(len).min(state.size());
    if off >= end {
        return Vec::new();
    }
    let file = state.file();
    let mut parts: Vec<(u64, Part)> = Vec::new();
    let mut gaps = vec![(off, end)];
    if !file.dirty.is_empty() {
        gaps = lay(&mut parts, gaps, |from, to| file.dirty.get(from, to - from));
    }
    for flight in file.flights.iter().rev() {
        gaps = lay(&mut parts, gaps, |from, to| {
            let first = flight.pieces.range(..=from).next_back().map_or(from, |(at, _)| *at);
            let held = flight.pieces.range(first..to);
            held.filter_map(|(at, data)| {
                let (a, b) = ((*at).max(from), (at + data.len() as u64).min(to));
                (a < b).then(|| (a, data.slice((a - at) as usize..(b - at) as usize)))
            })
            .collect()
        });
    }
    for (from, to) in gaps {
        for (at, len, source) in file.extents.lookup(from, to - from) {
            let part = match source {
                None => Part::Unknown(at),
                Some(Source::Hole) => Part::Zeros(len),
                Some(Source::Inline(data)) => Part::Here(data),
                Some(Source::Chunk(chunk, off)) => Part::Chunk(chunk, off, len),
            };
            parts.push((at, part));
        }
    }
    parts.sort_by_key(|(at, _)| *at);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// Fills gaps with what a layer holds; answers the gaps that are left.
fn lay(
    parts: &mut Vec<(u64, Part)>,
    gaps: Vec<(u64, u64)>,
    mut layer: impl FnMut(u64, u64) -> Vec<(u64, Bytes)>,
) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    for (from, to) in gaps {
        let mut at = from;
        for (off, data) in layer(from, to) {
            if at < off {
                left.push((at, off));
            }
            at = off + data.len() as u64;
            parts.push((off, Part::Here(data)));
        }
        if at < to {
            left.push((at, to));
        }
    }
    left
}

fn push_zeros(found: &mut Vec<Bytes>, len: u64) {
    let mut left = len;
    while left > 0 {
        let part = left.min(ZEROS_BYTES as u64);
        found.push(Bytes::from_static(&ZEROS[..part as usize]));
        left -= part;
    }
}

#[cfg(test)]
mod tests {
    use super::super::inode::Flight;
    use super::*;
    use crate::seam::Mono;
    use std::collections::BTreeMap;

    fn file(size: u64) -> State {
        let mut state = State::default();
        let attr = pb::Attr { inode: 9, change: 1, size, ..Default::default() };
        state.learn(&attr, Mono(1));
        let chunk =
            pb::extent::Source::Chunk(pb::ChunkRange { chunk: 4, off: 1000, commit_index: 0 });
        let extent = pb::Extent { file_off: 0, len: 50, source: Some(chunk) };
        assert!(state.file().extents.load(1, 0, 80, &[extent]));
        state
    }

    #[test]
    fn newest_bytes_first() {
        let mut state = file(100);
        let flight = |number, off: u64, byte, len| Flight {
            number,
            pieces: Arc::new(BTreeMap::from([(off, vec![byte; len].into())])),
            bytes: len,
            upto: 0,
        };
        state.file().flights.push_back(flight(1, 10, 1, 20));
        state.file().flights.push_back(flight(2, 20, 2, 20));
        state.file().dirty.write(35, &[3; 10]);
        let here = |byte, len| Part::Here(vec![byte; len].into());
        assert_eq!(
            plan(&mut state, 5, 1000),
            [
                Part::Chunk(ChunkId(4), 1005, 5),
                here(1, 10),
                here(2, 15),
                here(3, 10),
                Part::Chunk(ChunkId(4), 1045, 5),
                Part::Zeros(30),
                Part::Unknown(80),
            ]
        );
        assert_eq!(plan(&mut state, 60, 5), [Part::Zeros(5)]);
        assert_eq!(plan(&mut state, 100, 5), []);
    }

    #[test]
    fn dirty_bytes_extend_the_file_over_a_hole() {
        let mut state = file(60);
        state.file().extents.load(1, 60, u64::MAX, &[]);
        state.file().dirty.write(90, b"xyz");
        assert_eq!(
            plan(&mut state, 55, 100),
            [Part::Zeros(35), Part::Here(Bytes::from_static(b"xyz")),]
        );
    }
}
