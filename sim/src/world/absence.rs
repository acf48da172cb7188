//! Which chunkservers the masters may not have been able to reckon with, and when: it is asked afterwards whether
//! there were too few for new data.
//!
//! Not seen: single frames that are lost; slow links.

use crate::trace;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why a chunkserver is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its process does not run.
    Down,
    /// Its disk takes no data.
    Disk,
    /// Its disk is another one than it was.
    Replaced,
    /// The links between it and this master are cut, or one of the two directions.
    Cut(String),
    /// Frames between it and this master vanish.
    Hole(String),
    /// It is being emptied.
    Drained,
}

struct Absence {
    server: String,
    why: Why,
    from_ns: u64,
    /// `None` as long as it lasts.
    to_ns: Option<u64>,
}

/// All of them since the run began.
#[derive(Default)]
pub struct Absences(Mutex<Vec<Absence>>);

impl Absences {
    fn list(&self) -> MutexGuard<'_, Vec<Absence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is away from now on.
    pub fn begin(&self, server: &str, why: Why) {
        let mut list = self.list();
        let known = |a: &Absence| a.to_ns.is_none() && a.server == server && a.why == why;
        if !list.iter().any(known) {
            let (server, from_ns) = (server.to_owned(), trace::now_ns());
            list.push(Absence { server, why, from_ns, to_ns: None });
        }
    }

    /// It is not away for this any more.
    pub fn end(&self, server: &str, why: &Why) {
        self.end_those(|a| a.server == server && a.why == *why, Duration::ZERO);
    }

    /// It is away for so long.
    pub fn lasts(&self, server: &str, why: Why, time: Duration) {
        self.begin(server, why.clone());
        self.end_those(|a| a.server == server && a.why == why, time);
    }

    fn end_those(&self, ends: impl Fn(&Absence) -> bool, after: Duration) {
        let now = trace::now_ns() + after.as_nanos() as u64;
        let mut list = self.list();
        let over = list.iter_mut().filter(|a| a.to_ns.is_none() && ends(a));
        over.for_each(|a| a.to_ns = Some(now));
    }

    /// The most chunkservers that were away at one time between, each for `after` longer than it was.
    pub fn most(&self, from_ns: u64, to_ns: u64, after: Duration) -> usize {
        let list = self.list();
        let after = after.as_nanos() as u64;
        let end = |a: &Absence| a.to_ns.map_or(u64::MAX, |to| to + after);
        let at = |time: u64| {
            let away = list.iter().filter(|a| (a.from_ns..=end(a)).contains(&time));
            away.map(|a| a.server.as_str()).collect::<BTreeSet<_>>().len()
        };
        let begins = list.iter().map(|a| a.from_ns).filter(|time| (from_ns..=to_ns).contains(time));
        begins.chain([from_ns]).map(at).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_at_one_time_counts() {
        let absence = |server: &str, from_ns, to_ns| {
            let (server, why) = (server.to_owned(), Why::Down);
            Absence { server, why, from_ns, to_ns }
        };
        let list = vec![
            absence("s1", 10, Some(20)),
            absence("s1", 12, Some(14)),
            absence("s2", 25, Some(30)),
            absence("s3", 40, None),
        ];
        let absences = Absences(Mutex::new(list));
        let most = |from, to, after| absences.most(from, to, Duration::from_nanos(after));
        assert_eq!((most(0, 9, 0), most(0, 35, 0), most(15, 15, 0)), (0, 1, 1));
        assert_eq!((most(0, 35, 5), most(0, 90, 9), most(26, 90, 10)), (2, 2, 2));
        assert_eq!((most(0, 90, 25), most(35, 39, 0), most(80, 90, 0)), (3, 0, 1));
    }
}
