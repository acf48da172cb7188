//! Verified bytes of chunks in memory. Bytes of a chunk never change, so nothing here ever goes stale: what a
//! file is made of is the extent map's concern.

use crate::ids::ChunkId;
use bytes::Bytes;
use std::collections::BTreeMap;

type Key = (ChunkId, u64);

/// Stretches by chunk and logical offset, never overlapping, least recently used out first.
#[derive(Debug)]
pub struct BlockCache {
    stretches: BTreeMap<Key, (Bytes, u64)>,
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    bytes_max: usize,
}

impl BlockCache {
    /// An empty cache that holds at most so many bytes.
    pub fn new(bytes_max: usize) -> BlockCache {
        BlockCache {
            stretches: BTreeMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Adds verified bytes; parts that are there already are left as they are.
    pub fn insert(&mut self, chunk: ChunkId, off: u64, data: &Bytes) {
        for (from, to) in self.missing(chunk, off, data.len() as u64) {
            let piece = data.slice((from - off) as usize..(to - off) as usize);
            self.bytes += piece.len();
            self.clock += 1;
            self.by_use.insert(self.clock, (chunk, from));
            self.stretches.insert((chunk, from), (piece, self.clock));
        }
        while self.bytes > self.bytes_max {
            let Some((_, key)) = self.by_use.pop_first() else { break };
            let (gone, _) = self.stretches.remove(&key).expect("both maps hold it");
            self.bytes -= gone.len();
        }
    }

    /// The bytes `[off, off + len)`, if all are here.
    pub fn get(&mut self, chunk: ChunkId, off: u64, len: u64) -> Option<Vec<Bytes>> {
        let end = off + len;
        let mut found = Vec::new();
        let mut hits = Vec::new();
        let mut at = off;
        while at < end {
            let (key, (data, _)) = self.stretches.range(..=(chunk, at)).next_back()?;
            let (start, stop) = (key.1, key.1 + data.len() as u64);
            if key.0 != chunk || stop <= at {
                return None;
            }
            let upto = stop.min(end);
            found.push(data.slice((at - start) as usize..(upto - start) as usize));
            hits.push(*key);
            at = upto;
        }
        for key in hits {
            self.touch(key);
        }
        Some(found)
    }

    /// The parts of `[off, off + len)` that are not here.
    pub fn missing(&self, chunk: ChunkId, off: u64, len: u64) -> Vec<(u64, u64)> {
        let end = off + len;
        let first = self
            .stretches
            .range(..=(chunk, off))
            .next_back()
            .map_or(off, |(key, _)| if key.0 == chunk { key.1 } else { off });
        let mut gaps = Vec::new();
        let mut at = off;
        for (key, (data, _)) in self.stretches.range((chunk, first)..(chunk, end)) {
            let (a, b) = (key.1.max(off), (key.1 + data.len() as u64).min(end));
            if a >= b {
                continue;
            }
            if at < a {
                gaps.push((at, a));
            }
            at = b;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    fn touch(&mut self, key: Key) {
        self.clock += 1;
        if let Some((_, used)) = self.stretches.get_mut(&key) {
            self.by_use.remove(used);
            *used = self.clock;
            self.by_use.insert(self.clock, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ChunkId = ChunkId(3);

    fn bytes(from: u8, len: usize) -> Bytes {
        (0..len).map(|i| from.wrapping_add(i as u8)).collect::<Vec<_>>().into()
    }

    #[test]
    fn finds_what_was_put_in_across_stretches() {
        let mut cache = BlockCache::new(1000);
        cache.insert(C, 100, &bytes(0, 50));
        cache.insert(C, 140, &bytes(40, 50));
        assert_eq!(cache.missing(C, 90, 120), [(90, 100), (190, 210)]);
        let found = cache.get(C, 120, 60).unwrap().concat();
        assert_eq!(found, bytes(20, 60));
        assert!(cache.get(C, 99, 5).is_none());
        assert!(cache.get(C, 185, 10).is_none());
        assert!(cache.get(ChunkId(4), 120, 1).is_none());
        assert!(cache.get(ChunkId(2), 120, 1).is_none());
        assert_eq!(cache.bytes, 90);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = BlockCache::new(100);
        cache.insert(C, 0, &bytes(0, 40));
        cache.insert(C, 40, &bytes(0, 40));
        assert!(cache.get(C, 0, 40).is_some());
        cache.insert(C, 80, &bytes(0, 40));
        assert!(cache.get(C, 0, 40).is_some());
        assert!(cache.get(C, 40, 1).is_none());
        assert!(cache.bytes <= 100);
        assert_eq!(cache.stretches.len(), cache.by_use.len());
    }
}
