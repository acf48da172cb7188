//! Open directories: entries are fetched in large pieces and handed to the kernel in its small ones.
//!
//! The kernel's offset of an entry is its cookie plus 2; 1 and 2 are `.` and `..`.

use mooseng::client::Client;
use mooseng::errno::Errno;
use mooseng::ids::InodeId;
use mooseng::pb::DirEntry;
use mooseng::seam::{Mono, now};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Entries asked for at once.
const PIECE: usize = 512;
/// Offsets that `.` and `..` take.
pub(crate) const DOTS: u64 = 2;

#[derive(Default)]
struct Ahead {
    entries: VecDeque<DirEntry>,
    /// Cookie that comes before the first of `entries`.
    after: u64,
    end: bool,
    fetched: Mono,
    /// The directory's change counter then.
    change: Option<u64>,
}

/// One open directory.
#[derive(Default)]
pub(crate) struct Directory(Mutex<Ahead>);

impl Directory {
    /// Entries after `cookie`, empty at the end. What was fetched longer than `ttl` ago, or before the directory was
    /// changed here, is fetched again: the kernel takes what it is told for what is so now.
    /// Entries that do not fit the kernel's buffer are given back by [`Directory::keep`].
    pub(crate) async fn after(
        &self,
        client: &Client,
        ino: InodeId,
        cookie: u64,
        ttl: Duration,
    ) -> Result<VecDeque<DirEntry>, Errno> {
        if let Some(entries) = self.take(cookie, ttl, change_of(client, ino)) {
            return Ok(entries);
        }
        let (entries, end) = client.readdir(ino, cookie, PIECE).await?;
        let change = change_of(client, ino);
        let mut ahead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *ahead = Ahead { entries: VecDeque::new(), after: cookie, end, fetched: now(), change };
        Ok(entries.into())
    }

    /// What is in memory after `cookie`: some entries, or none because that is the end.
    /// `change` is the directory's change counter now.
    pub(crate) fn take(
        &self,
        cookie: u64,
        ttl: Duration,
        change: Option<u64>,
    ) -> Option<VecDeque<DirEntry>> {
        let mut ahead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = now().since(ahead.fetched) < ttl && change.is_some() && ahead.change == change;
        let usable = cookie != 0 && ahead.after == cookie && recent;
        if !usable || ahead.entries.is_empty() && !ahead.end {
            return None;
        }
        Some(std::mem::take(&mut ahead.entries))
    }

    /// `rest` comes after `cookie` and was not handed out.
    pub(crate) fn keep(&self, cookie: u64, rest: VecDeque<DirEntry>) {
        let mut ahead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.after = cookie;
        ahead.entries = rest;
    }
}

/// A directory's change counter, if it is known now.
pub(crate) fn change_of(client: &Client, ino: InodeId) -> Option<u64> {
    client.getattr_cached(ino).map(|attr| attr.change)
}

/// The open directories of a mount.
#[derive(Default)]
pub(crate) struct Directories {
    open: Mutex<HashMap<u64, Arc<Directory>>>,
    next: AtomicU64,
}

impl Directories {
    pub(crate) fn open(&self) -> u64 {
        let number = self.next.fetch_add(1, Relaxed);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::default());
        number
    }

    /// A number that was never given reads like a directory opened just now.
    pub(crate) fn get(&self, number: u64) -> Arc<Directory> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&number).cloned().unwrap_or_default()
    }

    pub(crate) fn close(&self, number: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(cookies: &[u64]) -> VecDeque<DirEntry> {
        cookies.iter().map(|cookie| DirEntry { cookie: *cookie, ..DirEntry::default() }).collect()
    }

    #[test]
    fn kept_entries_serve_only_the_place_they_belong_to() {
        let ttl = Duration::from_secs(60);
        let directory = Directory::default();
        let take = |cookie, ttl| directory.take(cookie, ttl, Some(1));
        assert_eq!(take(5, ttl), None);
        {
            let mut ahead = directory.0.lock().unwrap();
            (ahead.fetched, ahead.change) = (now(), Some(1));
        }
        directory.keep(5, entries(&[6, 7]));
        assert_eq!(take(4, ttl), None);
        assert_eq!(take(5, Duration::ZERO), None);
        assert_eq!(directory.take(5, ttl, Some(2)), None, "changed since");
        assert_eq!(directory.take(5, ttl, None), None, "perhaps changed since");
        assert_eq!(take(5, ttl), Some(entries(&[6, 7])));
        directory.keep(7, entries(&[]));
        assert_eq!(take(7, ttl), None, "not known to be the end");
        directory.0.lock().unwrap().end = true;
        assert_eq!(take(7, ttl), Some(entries(&[])));
    }

    #[test]
    fn a_closed_directory_forgets_what_it_held() {
        let directories = Directories::default();
        let number = directories.open();
        assert_ne!(number, directories.open());
        directories.get(number).keep(1, entries(&[2]));
        assert_eq!(directories.get(number).0.lock().unwrap().entries.len(), 1);
        directories.close(number);
        assert_eq!(directories.get(number).0.lock().unwrap().entries.len(), 0);
    }
}
