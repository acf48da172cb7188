//! What a leader knows that is not in the log: who was heard from lately. Forgotten when the term changes;
//! every time to live then starts anew (a new leader must not expire what its predecessor kept alive).

use crate::ids::{ChunkId, Generation, ServerId, SessionId, Term};
use crate::limits::Limits;
use crate::pb;
use crate::placement::ServerView;
use crate::seam::{self, Mono};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// The leader's soft state.
#[derive(Default)]
pub(crate) struct Soft {
    /// The term it belongs to; of other terms nothing here means anything.
    pub(crate) term: Term,
    /// When this term's watch began.
    pub(crate) since: Mono,
    /// Chunkservers heard from.
    pub(crate) servers: BTreeMap<ServerId, Beat>,
    /// Sessions and when each was last heard from.
    pub(crate) sessions: BTreeMap<SessionId, Mono>,
    /// Replicas found bad and not yet dropped: chunk -> (generation, shard).
    pub(crate) bad: BTreeMap<u64, BTreeSet<(u64, u32)>>,
    /// Sealed chunks of which some server did not hear that they are.
    pub(crate) untold: BTreeSet<u64>,
    /// Full reports that are coming in.
    pub(crate) reports: Reports,
    /// Chunks with a repair, seal or drop under way.
    pub(crate) busy: BTreeSet<u64>,
    /// Rebuilds under way.
    pub(crate) repairs: usize,
    /// When the last background round began, or ended, with a quorum.
    pub(crate) last_round: Mono,
    /// When this process was last seen not to stand still.
    pub(crate) watched: Mono,
    /// Where the scans for work go on.
    pub(crate) cursors: Cursors,
}

/// Positions of the background scans, so that each round looks at a bounded part.
#[derive(Default)]
pub(crate) struct Cursors {
    /// Per server whose replicas must move: the next chunk.
    pub(crate) leaving: BTreeMap<ServerId, u64>,
    /// The next chunk with a replica found bad.
    pub(crate) bad: u64,
    /// The next degraded chunk.
    pub(crate) degraded: u64,
    /// The next chunk under deletion.
    pub(crate) deleting: u64,
    /// The next unfinished repair copy.
    pub(crate) pending: (ChunkId, Generation),
    /// The next chunk whose servers are told again that it is sealed.
    pub(crate) untold: u64,
    /// The next session whose pins are looked at.
    pub(crate) pinning: SessionId,
    /// The next chunk whose garbage is looked at.
    pub(crate) garbage: u64,
    /// The next chunk whose servers are told its holes.
    pub(crate) punching: u64,
    /// The next replica to delete that has left its chunk.
    pub(crate) doomed: (ServerId, ChunkId, Generation),
}

/// Full reports: what this leader was told of what servers hold.
#[derive(Default)]
pub(crate) struct Reports {
    /// Those under way: per server, the round and the replicas named so far.
    rounds: BTreeMap<ServerId, (Round, Named)>,
    /// Whole ones that are being compared with what the servers should hold.
    whole: BTreeMap<ServerId, Whole>,
    /// The boot whose report was heard to its end, per server.
    heard: BTreeMap<ServerId, u64>,
    /// The server whose report was looked at last.
    cursor: ServerId,
}

/// Replicas by chunk, generation and shard: a server may have another one of the same chunk, which a repair left
/// unfinished.
pub(crate) type Named = BTreeSet<(u64, u64, u32)>;

/// (boot incarnation, report number) of a full report.
pub(crate) type Round = (u64, u64);

/// Everything that a server named in a full report, and how far it was compared.
#[derive(Clone)]
pub(crate) struct Whole {
    pub(crate) named: Arc<Named>,
    /// The next chunk to compare.
    pub(crate) next: ChunkId,
    /// Whether the server is being asked for what it did not name.
    pub(crate) asking: bool,
}

impl Reports {
    /// Takes one page; after the last of an unbroken round, what the round named is to be compared. A page may
    /// come again.
    pub(crate) fn page(
        &mut self,
        server: ServerId,
        round: Round,
        first: bool,
        last: bool,
        replicas: impl Iterator<Item = (u64, u64, u32)>,
    ) {
        if first && self.rounds.get(&server).is_none_or(|(current, _)| *current != round) {
            self.rounds.insert(server, (round, Named::new()));
        }
        let Some((_, present)) =
            self.rounds.get_mut(&server).filter(|(current, _)| *current == round)
        else {
            return;
        };
        present.extend(replicas);
        if last {
            self.heard.insert(server, round.0);
            let named = Arc::new(self.rounds.remove(&server).map_or_else(Named::new, |(_, n)| n));
            self.whole.insert(server, Whole { named, next: ChunkId(0), asking: false });
        }
    }

    /// A report that is to be compared further: each has its turn, so that one whose server does not answer keeps no other
    /// waiting.
    pub(crate) fn next_compared(&mut self) -> Option<(ServerId, Whole)> {
        let waits = |(_, whole): &(&ServerId, &Whole)| !whole.asking;
        let mut after = self.whole.range((Bound::Excluded(self.cursor), Bound::Unbounded));
        let (server, whole) = after.find(waits).or_else(|| self.whole.iter().find(waits))?;
        let found = (*server, whole.clone());
        self.cursor = found.0;
        Some(found)
    }

    /// Goes on with a report, unless there is a newer one: `None` when it is compared to its end.
    pub(crate) fn compared(&mut self, server: ServerId, then: Option<Whole>, named: &Arc<Named>) {
        let same = |whole: &&mut Whole| Arc::ptr_eq(&whole.named, named);
        match (self.whole.get_mut(&server).filter(same), then) {
            (Some(whole), Some(then)) => *whole = then,
            (Some(_), None) => _ = self.whole.remove(&server),
            (None, _) => {}
        }
    }

    /// Whether a whole report of this boot of the server was heard and nothing of it is left to compare.
    pub(crate) fn settled(&self, server: ServerId, incarnation: u64) -> bool {
        self.heard(server, incarnation) && !self.whole.contains_key(&server)
    }

    /// Whether a whole report of this boot of the server was heard.
    pub(crate) fn heard(&self, server: ServerId, incarnation: u64) -> bool {
        self.heard.get(&server) == Some(&incarnation)
    }
}

/// What a chunkserver last said.
#[derive(Clone, Debug)]
pub(crate) struct Beat {
    pub(crate) at: Mono,
    pub(crate) incarnation: u64,
    pub(crate) disks: Vec<pb::DiskStatus>,
}

impl Beat {
    /// Free bytes on working disks.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.disks.iter().filter(|d| !d.failed).map(|d| d.free_bytes).sum()
    }
}

/// What silence is reckoned by.
pub(super) fn clock() -> Mono {
    // WALL: by a clock that may be set.
    if crate::bug!(WALL) { Mono(seam::wall_ns()) } else { seam::now() }
}

impl Soft {
    /// So many chunks with replicas found bad; goes on where it stopped, so that those that can not be repaired
    /// keep nobody else waiting.
    pub(crate) fn some_bad(&mut self, most: usize) -> Vec<u64> {
        let found: Vec<u64> =
            self.bad.range(self.cursors.bad..).take(most).map(|(id, _)| *id).collect();
        self.cursors.bad = found.last().filter(|_| found.len() == most).map_or(0, |id| id + 1);
        found
    }

    /// So many chunks whose seal is to be told again; goes on where it stopped.
    pub(crate) fn take_untold(&mut self, most: usize) -> Vec<u64> {
        let found: Vec<u64> =
            self.untold.range(self.cursors.untold..).take(most).copied().collect();
        self.cursors.untold = found.last().filter(|_| found.len() == most).map_or(0, |id| id + 1);
        for id in &found {
            self.untold.remove(id);
        }
        found
    }

    /// Starts anew for a term.
    pub(crate) fn begin(&mut self, term: Term) {
        let now = clock();
        // What was announced since this master leads is still to be told.
        let untold = std::mem::take(&mut self.untold);
        let watched = self.watched;
        *self = Soft { term, since: now, last_round: now, untold, watched, ..Soft::default() };
    }

    /// Gives every server and session its whole time to live again.
    pub(crate) fn restart_clocks(&mut self) {
        let now = clock();
        self.since = now;
        self.servers.values_mut().for_each(|beat| beat.at = now);
        self.sessions.values_mut().for_each(|last| *last = now);
    }

    /// Whether a server was heard from within the suspicion time. In a term's first moments one that has not
    /// spoken yet is given the benefit of the doubt.
    pub(crate) fn alive(&self, server: ServerId, limits: &Limits) -> bool {
        self.silence(server) < limits.server_suspect
    }

    /// How long a server has been silent, counted at most from the term's start.
    pub(crate) fn silence(&self, server: ServerId) -> std::time::Duration {
        let last = self.servers.get(&server).map_or(self.since, |b| b.at);
        clock().since(last)
    }

    /// What repair and placement see of a committed server.
    pub(crate) fn view(&self, row: &pb::ServerRow, limits: &Limits) -> ServerView {
        let id = ServerId(row.id);
        let beat = self.servers.get(&id);
        ServerView {
            state: row.state(),
            // Nothing is placed on a server that has not spoken to this leader.
            alive: beat.is_some() && self.alive(id, limits),
            labels: row.labels.clone(),
            free_bytes: beat.map_or(0, Beat::free_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_chunk_has_its_turn() {
        let mut soft = Soft::default();
        for chunk in 1..=5 {
            soft.bad.entry(chunk).or_default().insert((chunk, 0));
        }
        assert_eq!(soft.some_bad(2), [1, 2]);
        assert_eq!(soft.some_bad(2), [3, 4], "those before may be beyond repair");
        assert_eq!(soft.some_bad(2), [5]);
        assert_eq!(soft.some_bad(9), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn each_report_has_its_turn() {
        let mut reports = Reports::default();
        for server in [1, 2, 3] {
            reports.page(ServerId(server), (1, 1), true, true, [(5, server, 0)].into_iter());
        }
        let order: Vec<u64> = (0..4)
            .filter_map(|_| reports.next_compared())
            .map(|(server, _)| server.get())
            .collect();
        assert_eq!(order, [1, 2, 3, 1], "none of them was compared to its end");
    }

    #[test]
    fn another_replica_of_a_chunk_does_not_stand_for_the_one_that_is_gone() {
        let (mut reports, server) = (Reports::default(), ServerId(1));
        let page = |reports: &mut Reports, first, last, named: &[(u64, u64, u32)]| {
            reports.page(server, (1, 1), first, last, named.iter().copied())
        };
        page(&mut reports, true, false, &[(5, 9, 0)]);
        assert!(reports.next_compared().is_none(), "a page is to come");
        page(&mut reports, true, false, &[(5, 9, 0)]);
        page(&mut reports, false, true, &[(6, 7, 1)]);
        let named = reports.next_compared().expect("the last page came").1.named;
        assert!(named.contains(&(6, 7, 1)) && named.contains(&(5, 9, 0)));
        assert!(!named.contains(&(5, 7, 0)), "unfinished copies have other generations");
    }
}
