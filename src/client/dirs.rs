//! What is known of a directory's names.
//!
//! Every change of a directory raises its change counter, so all entries recorded since the counter had its
//! present value are true as long as it has it: one answer of the masters that carries the directory's
//! attributes renews them all. An own operation that raised the counter by exactly one is applied to the
//! entries; anything else makes them void.

use crate::ids::InodeId;
use crate::seam::Mono;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// Misses within the time to live after which the directory is read ahead.
const MISSES_BEFORE_PREFETCH: u32 = 3;
/// Directories whose reading did not end after so many names are not read ahead for names that are absent.
const COMPLETE_NAMES_MAX: usize = 8192;

/// What the cache says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It names this inode.
    Is(InodeId),
    /// There is no such name.
    Absent,
    /// Ask.
    No,
}

/// A directory's names as far as they are known.
#[derive(Debug, Default)]
pub struct Dir {
    /// The change counter at which the entries are true; 0 before anything is known.
    change: u64,
    /// Until when they may be used without asking.
    until: Mono,
    /// `None` says that the name is absent.
    entries: BTreeMap<Bytes, Option<InodeId>>,
    /// Every name is in `entries`.
    complete: bool,
    /// The next cookie to read on from while no page is missing from the beginning on.
    read_to: Option<u64>,
    misses: u32,
    missed_since: Mono,
    reading: bool,
}

impl Dir {
    /// What is known of `name` now.
    pub fn get(&self, name: &[u8], now: Mono) -> Known {
        if now >= self.until {
            return Known::No;
        }
        match self.entries.get(name) {
            Some(Some(inode)) => Known::Is(*inode),
            Some(None) => Known::Absent,
            None if self.complete => Known::Absent,
            None => Known::No,
        }
    }

    /// The inode of `name` if it was ever seen and nothing says that it changed; may be out of date.
    pub fn hint(&self, name: &[u8]) -> Option<InodeId> {
        self.entries.get(name).copied().flatten()
    }

    /// Names that are remembered, absent ones too.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Until when they may be used without asking.
    pub fn usable_until(&self) -> Mono {
        self.until
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Dir { misses: self.misses, missed_since: self.missed_since, ..Dir::default() };
    }

    /// The masters said that the directory's counter was `change` in an answer to what was asked `asked` ago.
    /// Whether what came with that answer may be recorded.
    pub fn observe(&mut self, change: u64, until: Mono) -> bool {
        if change < self.change {
            return false;
        }
        if change > self.change {
            self.forget_names();
            self.change = change;
        }
        self.until = self.until.max(until);
        true
    }

    /// Records a name found or found absent by an answer that [`Dir::observe`] accepted.
    pub fn record(&mut self, name: &[u8], inode: Option<InodeId>) {
        self.entries.insert(Bytes::copy_from_slice(name), inode);
    }

    /// An own operation made these names point to these inodes (or nowhere) and left the counter at `change`.
    pub fn own(&mut self, names: &[(&[u8], Option<InodeId>)], change: u64, until: Mono) {
        if change <= self.change {
            return;
        }
        if change != self.change + 1 {
            self.forget_names();
        }
        self.until = self.until.max(until);
        self.change = change;
        for (name, inode) in names {
            // What is not among all names is absent.
            match (inode, self.complete) {
                (None, true) => _ = self.entries.remove(*name),
                _ => self.record(name, *inode),
            }
        }
    }

    /// A directory that this client has just created: empty.
    pub fn created(&mut self, change: u64, until: Mono) {
        *self = Dir { change, until, complete: true, read_to: None, ..Dir::default() };
    }

    /// A page of the directory, read from `cookie` on, that [`Dir::observe`] accepted.
    pub fn page<'a>(
        &mut self,
        cookie: u64,
        names: impl Iterator<Item = (&'a [u8], InodeId)>,
        next: u64,
        end: bool,
    ) {
        names.for_each(|(name, inode)| self.record(name, Some(inode)));
        if cookie == 0 || self.read_to == Some(cookie) {
            self.read_to = Some(next);
            self.complete |= end;
        }
    }

    /// A lookup had to ask, and found something or not. Whether reading the directory now would spare more
    /// such questions: from which cookie on.
    pub fn missed(&mut self, found: bool, now: Mono, ttl: Duration) -> Option<u64> {
        if now.since(self.missed_since) > ttl * 2 {
            self.misses = 0;
        }
        self.missed_since = now;
        self.misses += 1;
        let large = self.entries.len() >= COMPLETE_NAMES_MAX;
        if self.misses < MISSES_BEFORE_PREFETCH || self.reading || (large && !found) {
            return None;
        }
        self.reading = true;
        let from = if self.complete { 0 } else { self.read_to.unwrap_or(0) };
        Some(from)
    }

    /// The reading that [`Dir::missed`] asked for is over.
    pub fn read_done(&mut self) {
        self.reading = false;
    }

    fn forget_names(&mut self) {
        self.entries.clear();
        self.complete = false;
        self.read_to = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    #[test]
    fn entries_live_as_long_as_the_change_counter() {
        let mut dir = Dir::default();
        assert!(dir.observe(5, at(1000)));
        dir.record(b"a", Some(InodeId(7)));
        dir.record(b"b", None);
        assert_eq!(dir.get(b"a", at(10)), Known::Is(InodeId(7)));
        assert_eq!(dir.get(b"b", at(10)), Known::Absent);
        assert_eq!(dir.get(b"c", at(10)), Known::No);
        assert_eq!(dir.get(b"a", at(1000)), Known::No, "expired");
        assert!(dir.observe(5, at(2000)));
        assert_eq!(dir.get(b"a", at(1500)), Known::Is(InodeId(7)), "renewed");
        assert!(!dir.observe(4, at(9000)), "an older answer counts for nothing");
        assert!(dir.observe(6, at(2500)));
        assert_eq!(dir.get(b"a", at(1500)), Known::No);
    }

    #[test]
    fn own_operations_keep_the_rest() {
        let mut dir = Dir::default();
        dir.observe(5, at(1000));
        dir.page(0, [(&b"a"[..], InodeId(1))].into_iter(), 9, true);
        assert_eq!(dir.get(b"zzz", at(1)), Known::Absent);
        dir.own(&[(b"b", Some(InodeId(2)))], 6, at(1000));
        dir.own(&[(b"a", None)], 7, at(1000));
        assert_eq!(dir.get(b"b", at(1)), Known::Is(InodeId(2)));
        assert_eq!(dir.get(b"a", at(1)), Known::Absent);
        assert_eq!(dir.get(b"zzz", at(1)), Known::Absent, "still complete");
        dir.own(&[(b"c", Some(InodeId(3)))], 9, at(1000));
        assert_eq!(dir.get(b"b", at(1)), Known::No, "somebody else was in between");
        assert_eq!(dir.get(b"c", at(1)), Known::Is(InodeId(3)));
        assert_eq!(dir.get(b"zzz", at(1)), Known::No);
        dir.own(&[(b"c", None)], 9, at(1000));
        assert_eq!(
            dir.get(b"c", at(1)),
            Known::Is(InodeId(3)),
            "the entries are newer than the reply"
        );
    }

    #[test]
    fn pages_make_it_complete_only_without_a_gap() {
        let mut dir = Dir::default();
        dir.observe(1, at(1000));
        dir.page(50, [(&b"x"[..], InodeId(1))].into_iter(), 60, true);
        assert_eq!(dir.get(b"q", at(1)), Known::No);
        dir.page(0, [(&b"a"[..], InodeId(2))].into_iter(), 20, false);
        dir.page(20, std::iter::empty(), 50, false);
        assert_eq!(dir.get(b"q", at(1)), Known::No);
        dir.page(50, std::iter::empty(), 60, true);
        assert_eq!(dir.get(b"q", at(1)), Known::Absent);
    }

    #[test]
    fn repeated_misses_ask_for_a_page() {
        let mut dir = Dir::default();
        dir.observe(1, at(1000));
        assert_eq!(dir.missed(true, at(1), TTL), None);
        assert_eq!(dir.missed(true, at(2), TTL), None);
        assert_eq!(dir.missed(true, at(3), TTL), Some(0));
        assert_eq!(dir.missed(true, at(4), TTL), None, "one reading at a time");
        dir.page(0, [(&b"a"[..], InodeId(2))].into_iter(), 20, false);
        dir.read_done();
        assert_eq!(dir.missed(true, at(5), TTL), Some(20));
        dir.read_done();
        assert_eq!(dir.missed(true, at(9000), TTL), None, "long ago");
    }
}
