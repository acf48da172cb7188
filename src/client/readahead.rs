//! When to read on before anybody asks.

/// How one open file is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadAhead {
    /// Where the last read ended.
    next: u64,
    /// Reads that followed one another.
    streak: u32,
    /// Up to where was read ahead.
    until: u64,
}

impl ReadAhead {
    /// A read of `[off, off + len)`, where at most `window` bytes may be read ahead: what to read now. Reads of
    /// several kernel threads arrive slightly out of order, so "following" is meant generously.
    pub fn read(&mut self, off: u64, len: u64, window: u64) -> Option<(u64, u64)> {
        let end = off + len;
        let near = off <= self.next.saturating_add(window / 2)
            && off.saturating_add(window / 2) >= self.next;
        let follows = self.streak > 0 && near || off == self.next;
        if !follows || len == 0 {
            *self = ReadAhead { next: end, streak: 0, until: end };
            return None;
        }
        self.next = self.next.max(end);
        self.streak = self.streak.saturating_add(1);
        let ahead = (len << self.streak.min(16)).min(window);
        self.until = self.until.max(end);
        // Half the window is left in reserve, so that there are few and large readings.
        if self.until >= end + ahead / 2 {
            return None;
        }
        if crate::fault!("client: not read ahead") {
            return None;
        }
        let from = self.until;
        self.until = end + ahead;
        Some((from, self.until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: u64 = 4 << 20;

    #[test]
    fn sequential_readers_are_served_before_they_ask() {
        let mut ahead = ReadAhead::default();
        let mut until = 0;
        for i in 0..64u64 {
            let off = i << 17;
            if let Some((from, to)) = ahead.read(off, 1 << 17, W) {
                assert!(from >= until && to > from);
                until = to;
            }
            assert!(i < 1 || until >= off + (1 << 17), "read {i} would wait");
            assert!(until <= off + (1 << 17) + W);
        }
    }

    #[test]
    fn random_readers_are_not() {
        let mut ahead = ReadAhead::default();
        ahead.read(100 << 20, 4096, W);
        for off in [50u64 << 20, 7 << 20, 900 << 20, 30 << 20] {
            assert_eq!(ahead.read(off, 4096, W), None);
        }
    }

    #[test]
    fn slight_disorder_does_not_end_it() {
        let mut ahead = ReadAhead::default();
        let mut until = 0;
        for off in [0u64, 1, 3, 2, 5, 4, 6, 7] {
            if let Some((_, to)) = ahead.read(off << 17, 1 << 17, W) {
                until = to;
            }
        }
        assert!(until >= 9 << 17);
    }
}
