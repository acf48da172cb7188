//! Bytes of a file in memory that are not committed yet: pieces that never overlap, the newest write wins.

use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// Longest buffer that small sequential writes are gathered in, bytes.
const TAIL_BYTES_MAX: usize = 256 << 10;
/// Handed-over bytes from this length on are kept as they are instead of being copied behind their neighbours.
const COPY_BELOW: usize = 32 << 10;

/// A run of a file without a gap: where, and its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Offset in the file.
    pub off: u64,
    /// Its bytes in order.
    pub parts: Vec<Bytes>,
    /// Their sum.
    pub len: u64,
}

impl Run {
    /// First byte after it.
    pub fn end(&self) -> u64 {
        self.off + self.len
    }
}

/// Where a buffer is still being filled.
#[derive(Debug)]
struct Tail {
    start: u64,
    buf: BytesMut,
}

impl Tail {
    fn end(&self) -> u64 {
        self.start + self.buf.len() as u64
    }
}

/// Pieces by file offset.
#[derive(Debug, Default)]
pub struct PieceMap {
    pieces: BTreeMap<u64, Bytes>,
    tail: Option<Tail>,
    bytes: usize,
    grow: usize,
}

impl PieceMap {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// First byte after the last piece; 0 if empty.
    pub fn end(&self) -> u64 {
        let last = self.pieces.last_key_value().map_or(0, |(off, data)| off + data.len() as u64);
        last.max(self.tail.as_ref().map_or(0, Tail::end))
    }

    /// Copies `data` in. Small sequential writes share buffers that grow with their number.
    pub fn write(&mut self, off: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let continues = self.tail.as_ref().is_some_and(|tail| tail.end() == off);
        let room = self.tail.as_ref().map_or(0, |tail| tail.buf.capacity() - tail.buf.len());
        if continues && room >= data.len() && !self.overlaps(off, data.len() as u64) {
            let tail = self.tail.as_mut().expect("it continues");
            tail.buf.extend_from_slice(data);
            self.bytes += data.len();
            return;
        }
        self.grow = if continues { (self.grow * 2).min(TAIL_BYTES_MAX) } else { data.len() };
        self.close_tail();
        self.carve(off, data.len() as u64);
        let mut buf = BytesMut::with_capacity(self.grow.max(data.len()));
        buf.extend_from_slice(data);
        self.bytes += data.len();
        self.tail = Some(Tail { start: off, buf });
    }

    /// Takes `data` over; copies it only if it is small.
    pub fn insert(&mut self, off: u64, data: Bytes) {
        if data.len() < COPY_BELOW {
            return self.write(off, &data);
        }
        self.close_tail();
        self.carve(off, data.len() as u64);
        self.bytes += data.len();
        self.pieces.insert(off, data);
    }

    /// Puts an older piece back: only where nothing newer is. Returns the bytes that found room.
    pub fn insert_under(&mut self, off: u64, data: &Bytes) -> usize {
        self.close_tail();
        let (mut at, end, mut kept) = (off, off + data.len() as u64, 0);
        for (from, to) in self.spans(off, end) {
            kept += self.insert_gap(off, data, at, from);
            at = to;
        }
        kept + self.insert_gap(off, data, at, end)
    }

    fn insert_gap(&mut self, off: u64, data: &Bytes, from: u64, to: u64) -> usize {
        if from >= to {
            return 0;
        }
        let piece = data.slice((from - off) as usize..(to - off) as usize);
        self.bytes += piece.len();
        self.pieces.insert(from, piece);
        (to - from) as usize
    }

    /// The held ranges within `[from, to)`, in order.
    pub fn spans(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let first = self.pieces.range(..=from).next_back().map_or(from, |(off, _)| *off);
        let held = self.pieces.range(first..to).map(|(off, data)| (*off, off + data.len() as u64));
        let tail = self.tail.as_ref().map(|tail| (tail.start, tail.end()));
        for (a, b) in held.chain(tail) {
            let (a, b) = (a.max(from), b.min(to));
            if a < b {
                spans.push((a, b));
            }
        }
        spans.sort_unstable();
        spans
    }

    /// The bytes held within `[off, off + len)`, as slices, in order of their offset.
    pub fn get(&mut self, off: u64, len: u64) -> Vec<(u64, Bytes)> {
        let end = off + len;
        if self.tail.as_ref().is_some_and(|tail| tail.start < end && tail.end() > off) {
            self.share_tail();
        }
        let first = self.pieces.range(..=off).next_back().map_or(off, |(at, _)| *at);
        let mut found = Vec::new();
        for (at, data) in self.pieces.range(first..end) {
            let (a, b) = ((*at).max(off), (at + data.len() as u64).min(end));
            if a < b {
                found.push((a, data.slice((a - at) as usize..(b - at) as usize)));
            }
        }
        found
    }

    /// Drops everything from `size` on; returns the bytes dropped.
    pub fn truncate(&mut self, size: u64) -> usize {
        self.close_tail();
        let before = self.bytes;
        self.carve(size, u64::MAX - size);
        before - self.bytes
    }

    /// Takes everything.
    pub fn take(&mut self) -> BTreeMap<u64, Bytes> {
        self.close_tail();
        self.bytes = 0;
        self.grow = 0;
        std::mem::take(&mut self.pieces)
    }

    /// Takes whole multiples of `unit` bytes from the front of each run that is at least that long.
    pub fn take_units(&mut self, unit: u64) -> BTreeMap<u64, Bytes> {
        self.close_tail();
        let whole: Vec<(u64, u64)> = runs(&self.pieces)
            .into_iter()
            .filter(|run| run.len >= unit)
            .map(|run| (run.off, run.len / unit * unit))
            .collect();
        let mut taken = BTreeMap::new();
        for (off, len) in whole {
            taken.extend(self.get(off, len));
            self.carve(off, len);
        }
        taken
    }

    fn overlaps(&self, off: u64, len: u64) -> bool {
        let before = self.pieces.range(..off + len).next_back();
        before.is_some_and(|(at, data)| at + data.len() as u64 > off)
    }

    /// The buffer's bytes become a piece; what room it has left is used on.
    fn share_tail(&mut self) {
        if let Some(tail) = &mut self.tail
            && !tail.buf.is_empty()
        {
            let (start, end) = (tail.start, tail.end());
            self.pieces.insert(start, tail.buf.split().freeze());
            tail.start = end;
        }
    }

    fn close_tail(&mut self) {
        self.share_tail();
        self.tail = None;
    }

    /// Removes a range, splitting what straddles its ends. The tail is closed.
    fn carve(&mut self, off: u64, len: u64) {
        let end = off.saturating_add(len);
        let first = self.pieces.range(..=off).next_back().map_or(off, |(at, _)| *at);
        let hit: Vec<u64> = self
            .pieces
            .range((Excluded(first), Unbounded))
            .map(|(at, _)| *at)
            .take_while(|at| *at < end)
            .collect();
        for at in std::iter::once(first).chain(hit) {
            let Some(data) = self.pieces.get(&at) else { continue };
            let piece_end = at + data.len() as u64;
            if piece_end <= off || at >= end {
                continue;
            }
            let data = self.pieces.remove(&at).expect("just seen");
            self.bytes -= (piece_end.min(end) - at.max(off)) as usize;
            if at < off {
                self.pieces.insert(at, data.slice(..(off - at) as usize));
            }
            if piece_end > end {
                self.pieces.insert(end, data.slice((end - at) as usize..));
            }
        }
    }
}

/// Neighbouring pieces gathered into runs.
pub fn runs(pieces: &BTreeMap<u64, Bytes>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (off, data) in pieces {
        match runs.last_mut() {
            Some(run) if run.end() == *off => {
                run.len += data.len() as u64;
                run.parts.push(data.clone());
            }
            _ => runs.push(Run { off: *off, parts: vec![data.clone()], len: data.len() as u64 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a map holds, byte by byte.
    fn image(map: &mut PieceMap, len: u64) -> Vec<Option<u8>> {
        let mut image = vec![None; len as usize];
        for (off, data) in map.get(0, len) {
            for (i, byte) in data.iter().enumerate() {
                assert!(image[off as usize + i].replace(*byte).is_none(), "pieces overlap");
            }
        }
        assert_eq!(image.iter().flatten().count(), map.bytes());
        image
    }

    fn check(map: &mut PieceMap, model: &[Option<u8>]) {
        assert_eq!(image(map, model.len() as u64), model);
        let end = model.iter().rposition(Option::is_some).map_or(0, |at| at + 1);
        assert_eq!(map.end(), end as u64);
        let mut spans = vec![false; model.len()];
        for (a, b) in map.spans(0, model.len() as u64) {
            (a..b).for_each(|at| spans[at as usize] = true);
        }
        let held: Vec<bool> = model.iter().map(Option::is_some).collect();
        assert_eq!(spans, held);
    }

    #[test]
    fn against_an_array_of_bytes() {
        const LEN: usize = 300;
        let mut seed = 12345u64;
        let mut next = |bound: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % bound
        };
        for _ in 0..200 {
            let (mut map, mut model) = (PieceMap::default(), vec![None; LEN]);
            let mut at = 0;
            for step in 0..40u8 {
                let off = if next(3) == 0 { next(LEN) } else { at };
                let len = (1 + next(40)).min(LEN - off);
                let data = vec![step; len];
                match next(8) {
                    0 => {
                        map.truncate(off as u64);
                        model[off..].fill(None);
                    }
                    1 => {
                        map.insert_under(off as u64, &data.into());
                        model[off..off + len].iter_mut().for_each(|b| *b = b.or(Some(step)));
                    }
                    2 => {
                        map.close_tail();
                        map.carve(off as u64, len as u64);
                        map.bytes += len;
                        map.pieces.insert(off as u64, data.into());
                        model[off..off + len].fill(Some(step));
                    }
                    _ => {
                        map.write(off as u64, &data);
                        model[off..off + len].fill(Some(step));
                        at = if off + len < LEN { off + len } else { 0 };
                    }
                }
                if next(2) == 0 {
                    check(&mut map, &model);
                }
            }
            check(&mut map, &model);
            let taken = map.take();
            assert_eq!(
                taken.values().map(Bytes::len).sum::<usize>(),
                model.iter().flatten().count()
            );
            assert!(map.is_empty());
        }
    }

    #[test]
    fn sequential_small_writes_share_buffers() {
        let mut map = PieceMap::default();
        for i in 0..64u64 {
            map.write(i * 4096, &[i as u8; 4096]);
        }
        assert_eq!(map.bytes(), 64 * 4096);
        assert!(map.take().len() <= 7);
    }

    #[test]
    fn reading_the_tail_leaves_its_room() {
        let mut map = PieceMap::default();
        map.write(0, &[1; 100]);
        map.write(100, &[2; 100]);
        assert_eq!(map.get(0, 200).len(), 2);
        map.write(200, &[3; 10]);
        let all: Vec<u8> = map.get(0, 300).iter().flat_map(|(_, data)| data.to_vec()).collect();
        assert_eq!(all, [vec![1; 100], vec![2; 100], vec![3; 10]].concat());
    }

    #[test]
    fn whole_units_leave_the_rest() {
        let mut map = PieceMap::default();
        map.write(0, &[1; 250]);
        map.write(1000, &[2; 99]);
        let taken = map.take_units(100);
        assert_eq!(taken.values().map(Bytes::len).sum::<usize>(), 200);
        assert_eq!(map.spans(0, 2000), [(200, 250), (1000, 1099)]);
        assert_eq!(map.bytes(), 149);
    }

    #[test]
    fn runs_join_neighbours() {
        let mut map = PieceMap::default();
        map.write(10, &[1; 10]);
        map.insert(20, vec![2; COPY_BELOW].into());
        map.write(5, &[3; 2]);
        let runs = runs(&map.take());
        assert_eq!(
            runs.iter().map(|r| (r.off, r.len)).collect::<Vec<_>>(),
            [(5, 2), (10, 10 + COPY_BELOW as u64)]
        );
    }
}
