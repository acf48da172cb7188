//! What is known of where a file's committed bytes are.

use crate::ids::ChunkId;
use crate::pb;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Where a run of committed bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: it reads as zeros.
    Hole,
    /// In the metadata.
    Inline(Bytes),
    /// In a chunk, from this logical offset on.
    Chunk(ChunkId, u64),
}

impl Source {
    /// The source of what begins `skip` bytes later and is `len` bytes long.
    fn part(&self, skip: u64, len: u64) -> Source {
        match self {
            Source::Hole => Source::Hole,
            Source::Inline(data) => {
                let from = (skip as usize).min(data.len());
                let to = from.saturating_add(len as usize).min(data.len());
                Source::Inline(data.slice(from..to))
            }
            Source::Chunk(chunk, off) => Source::Chunk(*chunk, off + skip),
        }
    }

    /// Whether a run of `len` bytes goes on in `next`.
    fn continues(&self, len: u64, next: &Source) -> bool {
        match (self, next) {
            (Source::Hole, Source::Hole) => true,
            (Source::Chunk(a, at), Source::Chunk(b, next)) => a == b && at + len == *next,
            _ => false,
        }
    }
}

/// A stretch of a file and its source; `None` where the map does not know.
pub type Stretch = (u64, u64, Option<Source>);

/// Sources by file offset. What no entry covers is not known.
#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    /// The inode's change counter that the map is true for.
    pub change: u64,
    /// Everything since this value of the counter was an own change, and is in the map.
    base: u64,
    map: BTreeMap<u64, (u64, Source)>,
    /// Bytes that the map knows of; all of `u64` for a file that is known whole.
    known: u64,
    /// Of these, inline.
    inline: u64,
}

impl ExtentMap {
    /// An empty file's map: everything known, all of it holes.
    pub fn of_new_file(change: u64) -> ExtentMap {
        let map = BTreeMap::from([(0, (u64::MAX, Source::Hole))]);
        ExtentMap { change, base: change, map, known: u64::MAX, inline: 0 }
    }

    /// Forgets everything and is true for another version of the file.
    pub fn reset(&mut self, change: u64) {
        *self = ExtentMap { change, base: change, ..ExtentMap::default() };
    }

    /// Entries held, for bounds.
    pub fn entries(&self) -> usize {
        self.map.len()
    }

    /// `[off, off + len)` is at `source`, whatever was known before.
    pub fn set(&mut self, off: u64, len: u64, source: Source) {
        if len == 0 {
            return;
        }
        self.clear(off, off.saturating_add(len));
        let (mut off, mut len, mut source) = (off, len, source);
        if let Some((at, (before, left))) = self.map.range(..off).next_back()
            && at + before == off
            && left.continues(*before, &source)
        {
            let at = *at;
            let (before, left) = self.remove(at);
            (off, len, source) = (at, before + len, left);
        }
        let end = off.saturating_add(len);
        if let Some((_, right)) = self.map.get(&end)
            && source.continues(len, right)
        {
            len += self.remove(end).0;
        }
        self.insert(off, len, source);
    }

    fn insert(&mut self, off: u64, len: u64, source: Source) {
        self.known += len;
        self.inline += if matches!(source, Source::Inline(_)) { len } else { 0 };
        self.map.insert(off, (len, source));
    }

    fn remove(&mut self, off: u64) -> (u64, Source) {
        let (len, source) = self.map.remove(&off).expect("the caller has just seen it");
        self.known -= len;
        self.inline -= if matches!(source, Source::Inline(_)) { len } else { 0 };
        (len, source)
    }

    /// The masters' answer for `[from, to)` as of `change`: what no extent covers is a hole. What the map knows
    /// already stays, because it is newer or the same. Whether the answer could be used: it could not if
    /// somebody else changed the file after it was given.
    pub fn load(&mut self, change: u64, from: u64, to: u64, extents: &[pb::Extent]) -> bool {
        if change < self.base {
            return false;
        }
        if change > self.change {
            self.reset(change);
        }
        for (at, len, source) in self.lookup(from, to.saturating_sub(from)) {
            if source.is_none() {
                self.load_gap(at, at + len, extents);
            }
        }
        true
    }

    fn load_gap(&mut self, from: u64, to: u64, extents: &[pb::Extent]) {
        let mut at = from;
        for extent in extents {
            let start = extent.file_off.max(at).min(to);
            let end = extent.file_off.saturating_add(extent.len).min(to);
            if start >= end {
                continue;
            }
            self.set(at, start - at, Source::Hole);
            let source = source_of(extent).part(start - extent.file_off, end - start);
            self.set(start, end - start, source);
            at = end;
        }
        self.set(at, to.saturating_sub(at), Source::Hole);
    }

    /// Own extents that were committed.
    pub fn commit(&mut self, extents: &[pb::Extent]) {
        for extent in extents {
            self.set(extent.file_off, extent.len, source_of(extent));
        }
    }

    /// The file was cut or extended to `size`: nothing but a hole is behind it.
    pub fn truncate(&mut self, size: u64) {
        self.set(size, u64::MAX - size, Source::Hole);
    }

    /// `[off, off + len)` in stretches of one source each.
    pub fn lookup(&self, off: u64, len: u64) -> Vec<Stretch> {
        let end = off.saturating_add(len);
        let mut found = Vec::new();
        let mut at = off;
        let first = self.map.range(..=off).next_back().map_or(off, |(start, _)| *start);
        for (start, (length, source)) in self.map.range(first..end) {
            let (a, b) = ((*start).max(at), start.saturating_add(*length).min(end));
            if a >= b {
                continue;
            }
            if at < a {
                found.push((at, a - at, None));
            }
            found.push((a, b - a, Some(source.part(a - start, b - a))));
            at = b;
        }
        if at < end {
            found.push((at, end - at, None));
        }
        found
    }

    /// Bytes held in memory because they are in the metadata.
    pub fn inline_bytes(&self) -> u64 {
        self.inline
    }

    /// Inline bytes that stay when the given ranges are replaced; `None` if part of the file is not known.
    pub fn inline_bytes_beside(&self, ranges: &[(u64, u64)]) -> Option<u64> {
        if self.known != u64::MAX {
            return None;
        }
        let replaced = |(from, to): &(u64, u64)| -> u64 {
            let stretches = self.lookup(*from, to - from).into_iter();
            stretches.filter(|s| matches!(s.2, Some(Source::Inline(_)))).map(|s| s.1).sum()
        };
        Some(self.inline - ranges.iter().map(replaced).sum::<u64>())
    }

    /// Forgets everything that points into a chunk.
    pub fn forget_chunk(&mut self, chunk: ChunkId) {
        let points = |source: &Source| matches!(source, Source::Chunk(id, _) if *id == chunk);
        let gone: Vec<u64> =
            self.map.iter().filter(|(_, entry)| points(&entry.1)).map(|(off, _)| *off).collect();
        gone.into_iter().for_each(|off| drop(self.remove(off)));
    }

    fn clear(&mut self, from: u64, to: u64) {
        let first = self.map.range(..from).next_back().map(|(start, _)| *start);
        let inside = self.map.range(from..to).map(|(start, _)| *start);
        let hit: Vec<u64> = first.into_iter().chain(inside).collect();
        for start in hit {
            let end = start.saturating_add(self.map[&start].0);
            if end <= from {
                continue;
            }
            let (_, source) = self.remove(start);
            if start < from {
                self.insert(start, from - start, source.part(0, from - start));
            }
            if end > to {
                self.insert(to, end - to, source.part(to - start, end - to));
            }
        }
    }
}

fn source_of(extent: &pb::Extent) -> Source {
    match &extent.source {
        Some(pb::extent::Source::Chunk(range)) => Source::Chunk(ChunkId(range.chunk), range.off),
        Some(pb::extent::Source::Inline(data)) => Source::Inline(data.clone()),
        None => Source::Hole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(off: u64, len: u64, chunk: u64, at: u64) -> pb::Extent {
        let range = pb::ChunkRange { chunk, off: at, commit_index: 0 };
        pb::Extent { file_off: off, len, source: Some(pb::extent::Source::Chunk(range)) }
    }

    fn inline(off: u64, data: &'static [u8]) -> pb::Extent {
        let source = Some(pb::extent::Source::Inline(Bytes::from_static(data)));
        pb::Extent { file_off: off, len: data.len() as u64, source }
    }

    #[test]
    fn loads_with_holes_and_unknown_ends() {
        let mut map = ExtentMap::default();
        map.load(0, 100, 300, &[chunk(50, 100, 7, 1000), inline(200, b"abc")]);
        let found = map.lookup(0, 400);
        assert_eq!(
            found,
            [
                (0, 100, None),
                (100, 50, Some(Source::Chunk(ChunkId(7), 1050))),
                (150, 50, Some(Source::Hole)),
                (200, 3, Some(Source::Inline(Bytes::from_static(b"abc")))),
                (203, 97, Some(Source::Hole)),
                (300, 100, None),
            ]
        );
    }

    #[test]
    fn commits_replace_and_join() {
        let mut map = ExtentMap::of_new_file(1);
        map.commit(&[chunk(0, 100, 1, 0)]);
        map.commit(&[chunk(100, 100, 1, 100)]);
        assert_eq!(map.lookup(0, 200), [(0, 200, Some(Source::Chunk(ChunkId(1), 0)))]);
        map.commit(&[inline(50, b"xy")]);
        assert_eq!(map.lookup(0, 200)[2], (52, 148, Some(Source::Chunk(ChunkId(1), 52))));
        map.truncate(51);
        assert_eq!(
            map.lookup(50, 10),
            [(50, 1, Some(Source::Inline(Bytes::from_static(b"x")))), (51, 9, Some(Source::Hole))]
        );
        map.forget_chunk(ChunkId(1));
        assert_eq!(map.lookup(0, 51)[0], (0, 50, None));
    }

    #[test]
    fn counts_inline_bytes_that_stay() {
        let mut map = ExtentMap::of_new_file(1);
        map.commit(&[inline(0, b"abcd"), inline(100, b"efgh")]);
        assert_eq!(map.inline_bytes_beside(&[]), Some(8));
        assert_eq!(map.inline_bytes_beside(&[(2, 102)]), Some(4));
        map.reset(2);
        assert_eq!(map.inline_bytes_beside(&[]), None);
        map.load(2, 0, u64::MAX, &[inline(7, b"abc")]);
        assert_eq!(map.inline_bytes_beside(&[]), Some(3));
    }

    #[test]
    fn answers_that_others_made_old_are_refused() {
        let mut map = ExtentMap::default();
        map.reset(5);
        map.commit(&[chunk(0, 100, 1, 0)]);
        map.change = 6;
        assert!(map.load(5, 0, 200, &[chunk(0, 200, 9, 0)]), "only own changes since");
        assert_eq!(map.lookup(0, 100), [(0, 100, Some(Source::Chunk(ChunkId(1), 0)))]);
        assert_eq!(map.lookup(100, 100), [(100, 100, Some(Source::Chunk(ChunkId(9), 100)))]);
        assert!(!map.load(4, 0, 200, &[]));
        assert!(map.load(9, 0, 50, &[]));
        assert_eq!(map.lookup(0, 100), [(0, 50, Some(Source::Hole)), (50, 50, None)]);
    }

    #[test]
    fn against_an_array() {
        const LEN: u64 = 120;
        let mut seed = 99u64;
        let mut next = |bound: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % bound
        };
        for _ in 0..300 {
            let mut map = ExtentMap::default();
            let mut model: Vec<Option<(u64, u64)>> = vec![None; LEN as usize];
            for step in 1..30 {
                let off = next(LEN);
                let len = 1 + next((LEN - off).min(30));
                let (id, at) = (1 + next(2), if next(2) == 0 { off } else { step * 1000 });
                let hole = next(4) == 0;
                map.set(off, len, if hole { Source::Hole } else { Source::Chunk(ChunkId(id), at) });
                for i in 0..len {
                    model[(off + i) as usize] = Some(if hole { (0, 0) } else { (id, at + i) });
                }
                let mut seen = Vec::new();
                for (off, len, source) in map.lookup(0, LEN) {
                    assert_eq!(off, seen.len() as u64);
                    for i in 0..len {
                        seen.push(source.as_ref().map(|s| match s {
                            Source::Chunk(id, at) => (id.0, at + i),
                            _ => (0, 0),
                        }));
                    }
                }
                assert_eq!(seen, model);
            }
        }
    }
}
