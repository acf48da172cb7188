//! Write-back: dirty bytes of an inode leave in flights. A flight takes what is dirty, places it (inline in
//! the command, or in chunks), makes it durable on every server, and commits it; flights of one inode commit
//! in their order. Until then its bytes stay in memory, readable, and are sent again wherever that is needed.
//!
//! **Invariant:** an inode's bytes leave memory only when their commit was applied (rule A3), or when it was
//! recorded that they are lost.

use super::Client;
use super::inode::{FileData, Flight, Inode, State};
use super::pieces::{Run, runs};
use super::plan::{Rope, partial_layout};
use super::writers::Placed;
use crate::bug;
use crate::erasure::Layout;
use crate::errno::Errno;
use crate::pb::{ChunkEpoch, ChunkRange, CommitOp, Extent, extent::Source, op};
use crate::seam::{self, Mono};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Flights of one inode at once: one is committed while the next is sent.
const FLIGHTS_MAX: usize = 2;
/// Extents in one commit.
const COMMIT_EXTENTS_MAX: usize = 512;

/// Why a flight begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Somebody waits for it: all of it.
    Asked,
    /// It is old, or there is too much of everything: all of it.
    Old,
    /// There is enough: what makes whole stripes.
    Enough,
}

impl Client {
    /// Starts the flights that are due.
    pub(super) fn advance(&self, inode: &Arc<Inode>) {
        let pressure = self.meta.dirty.bytes() > self.limits.dirty_bytes_max / 2;
        let mut began = Vec::new();
        {
            let mut state = inode.lock();
            let layout = self.layout_of(&state);
            let Some(file) = &mut state.file else { return };
            while file.frozen == 0 && file.flights.len() < FLIGHTS_MAX {
                let Some(due) = self.due(file, pressure) else { break };
                let Some(flight) = begin(file, due, layout) else { break };
                began.push((flight, due));
            }
        }
        for (flight, due) in began {
            let Some(me) = self.me.upgrade() else { return };
            let fly = me.fly(inode.clone(), flight, due != Due::Enough);
            if due == Due::Asked {
                let _runtime = self.runtime.enter();
                seam::spawn_eager(fly);
            } else {
                // Whoever writes goes on writing.
                self.runtime.spawn(fly);
            }
        }
    }

    fn due(&self, file: &FileData, pressure: bool) -> Option<Due> {
        if file.dirty.is_empty() {
            return None;
        }
        if file.wanted > file.covered() {
            return Some(Due::Asked);
        }
        let now = seam::now();
        if now < file.retry_at {
            return None;
        }
        let old = file.dirty_since.is_some_and(|t| now.since(t) >= self.limits.dirty_age_max);
        if old && !pressure && crate::fault!("client: flush late") {
            return None;
        }
        let old = old || crate::fault!("client: flush early");
        if old || pressure {
            return Some(Due::Old);
        }
        (file.dirty.bytes() >= self.limits.flush_bytes).then_some(Due::Enough)
    }

    async fn fly(self: Arc<Client>, inode: Arc<Inode>, flight: Flight, urgent: bool) {
        let outcome = self.carry(&inode, &flight, urgent).await;
        self.land(&inode, &flight, outcome);
    }

    /// Brings a flight's bytes to where they belong and commits them.
    async fn carry(
        self: &Arc<Client>,
        inode: &Arc<Inode>,
        flight: &Flight,
        urgent: bool,
    ) -> Result<(), Errno> {
        let until = seam::now() + self.limits.operation_deadline;
        if self.fits_inline(inode, flight) {
            self.turn(inode, flight).await?;
            match self.commit(inode, inline_extents(&flight.pieces), Vec::new()).await {
                // The masters know of more inline bytes than this client: into a chunk then.
                Err(Errno::EFBIG) => {
                    crate::mark!("inline flush refused");
                }
                other => return other,
            }
        }
        let mut left = runs(&flight.pieces);
        while !left.is_empty() {
            let durable = self.settle(inode, flight, left, (urgent, until)).await?;
            if crate::fault!("client: commit late") {
                tokio::time::sleep(self.limits.retry_pause * 2).await;
            }
            if let Err(errno) = self.turn(inode, flight).await {
                durable.iter().for_each(|part| self.writers.release(part));
                return Err(errno);
            }
            let refused = self.commit_placed(inode, durable).await?;
            left = self.rescue(flight, refused);
            left.sort_by_key(|run| run.off);
            crate::maybe!(!left.is_empty(), "bytes placed again elsewhere");
        }
        Ok(())
    }

    /// Places bytes, again elsewhere where that fails, until all of them are durable: a flush is committed as a whole.
    async fn settle(
        self: &Arc<Client>,
        inode: &Arc<Inode>,
        flight: &Flight,
        mut left: Vec<Run>,
        (urgent, until): (bool, Mono),
    ) -> Result<Vec<Placed>, Errno> {
        let mut ready: Vec<Placed> = Vec::new();
        while !left.is_empty() {
            let placed = if seam::now() < until {
                self.place(inode, left, urgent).await
            } else {
                Err(Errno::EIO)
            };
            let placed = placed.inspect_err(|_| {
                ready.iter().for_each(|part| self.writers.release(part));
            })?;
            let (durable, lost) = self.make_durable(placed).await;
            if bug!(M38) {
                self.forge(inode, flight);
            }
            ready.extend(durable);
            left = self.rescue(flight, lost);
            crate::maybe!(!left.is_empty(), "bytes placed again elsewhere");
        }
        Ok(ready)
    }

    /// M38: whoever waits for the flight is told that it is committed as soon as its data is durable.
    fn forge(&self, inode: &Inode, flight: &Flight) {
        if let Some(file) = &mut inode.lock().file {
            file.committed = file.committed.max(flight.upto);
        }
        inode.changed.notify_waiters();
    }

    /// Waits until all earlier flights have landed; an error if this one was given up meanwhile.
    async fn turn(&self, inode: &Inode, flight: &Flight) -> Result<(), Errno> {
        let ready = |state: &mut State| {
            let flights = &state.file.as_ref()?.flights;
            if !flights.iter().any(|other| other.number == flight.number) {
                return Some(Err(Errno::EIO));
            }
            flights.front().is_some_and(|f| f.number == flight.number).then_some(Ok(()))
        };
        // Earlier flights end by their own deadline.
        let deadline = self.limits.operation_deadline * 2;
        let turn = tokio::time::timeout(deadline, inode.wait_until(ready));
        turn.await.unwrap_or(Err(Errno::EIO))
    }

    // ---- placing ----

    /// Whether the bytes go into the metadata: few, and the inode keeps few enough there.
    fn fits_inline(&self, inode: &Inode, flight: &Flight) -> bool {
        if flight.bytes > self.limits.inline_bytes_max {
            return false;
        }
        let total = self.limits.inline_total_bytes_max as u64;
        let mut state = inode.lock();
        if state.size() <= total {
            return true;
        }
        let ranges: Vec<(u64, u64)> =
            runs(&flight.pieces).iter().map(|run| (run.off, run.end())).collect();
        let beside = state.file().extents.inline_bytes_beside(&ranges);
        beside.is_some_and(|beside| beside + flight.bytes as u64 <= total)
    }

    async fn place(
        self: &Arc<Client>,
        inode: &Inode,
        runs: Vec<Run>,
        urgent: bool,
    ) -> Result<Vec<Placed>, Errno> {
        let (class, layout) = {
            let state = inode.lock();
            (state.attr.map_or(0, |attr| attr.class), self.layout_of(&state))
        };
        let (whole, rest) = split_stripes(runs, layout);
        let partial = partial_layout(layout);
        let whole = self.writers.place(class, layout, whole, urgent);
        let rest = self.writers.place(class, partial, rest, urgent);
        let (whole, rest) = tokio::join!(whole, rest);
        match (whole, rest) {
            (Ok(mut placed), Ok(rest)) => {
                placed.extend(rest);
                Ok(placed)
            }
            (Ok(placed), Err(errno)) | (Err(errno), Ok(placed)) => {
                placed.iter().for_each(|placed| self.writers.release(placed));
                Err(errno)
            }
            (Err(errno), Err(_)) => Err(errno),
        }
    }

    /// Syncs every chunk that holds placed bytes: all servers of all chunks at once. What is durable, and what
    /// was in chunks that were lost.
    async fn make_durable(&self, placed: Vec<Placed>) -> (Vec<Placed>, Vec<Placed>) {
        let mut chunks = BTreeMap::new();
        for part in &placed {
            let end = part.at + part.len;
            let entry = chunks.entry(part.chunk.id).or_insert((part.chunk.clone(), end));
            entry.1 = entry.1.max(end);
        }
        let syncs = chunks
            .values()
            .map(|(chunk, end)| async move { (chunk.id, self.writers.sync(chunk, *end).await) });
        let synced: BTreeMap<_, _> = join_all(syncs).await.into_iter().collect();
        placed.into_iter().partition(|part| synced.get(&part.chunk.id) == Some(&true))
    }

    /// The bytes of placements that came to nothing.
    fn rescue(&self, flight: &Flight, placed: Vec<Placed>) -> Vec<Run> {
        placed
            .iter()
            .map(|part| {
                self.writers.release(part);
                Run { off: part.off, parts: cut(&flight.pieces, part.off, part.len), len: part.len }
            })
            .collect()
    }

    // ---- committing ----

    /// Commits durable placements; returns those that the masters refused because their chunk was sealed or
    /// changed (rule A3).
    async fn commit_placed(
        self: &Arc<Client>,
        inode: &Inode,
        mut placed: Vec<Placed>,
    ) -> Result<Vec<Placed>, Errno> {
        placed.sort_by_key(|part| part.off);
        let mut batches = Vec::new();
        while !placed.is_empty() {
            let rest = placed.split_off(placed.len().min(COMMIT_EXTENTS_MAX));
            batches.push(std::mem::replace(&mut placed, rest));
        }
        let commits = batches.iter().map(|batch| {
            let extents = batch.iter().map(chunk_extent).collect();
            let mut epochs: Vec<ChunkEpoch> = Vec::new();
            for part in batch {
                let chunk = part.chunk.id.get();
                if !epochs.iter().any(|known| known.chunk == chunk) {
                    epochs.push(ChunkEpoch { chunk, epoch: part.chunk.epoch });
                }
            }
            self.commit(inode, extents, epochs)
        });
        let outcomes = join_all(commits).await;
        let mut refused = Vec::new();
        let mut failure = None;
        for (batch, outcome) in batches.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => batch.iter().for_each(|part| self.writers.release(part)),
                Err(Errno::ECANCELED) => {
                    crate::mark!("commit refused, sent elsewhere");
                    batch.iter().for_each(|part| self.writers.lost(&part.chunk, &[]));
                    refused.extend(batch);
                }
                Err(errno) => {
                    batch.iter().for_each(|part| self.writers.release(part));
                    failure = Some(errno);
                }
            }
        }
        match failure {
            None => Ok(refused),
            Some(errno) => {
                refused.iter().for_each(|part| self.writers.release(part));
                Err(errno)
            }
        }
    }

    async fn commit(
        &self,
        inode: &Inode,
        extents: Vec<Extent>,
        epochs: Vec<ChunkEpoch>,
    ) -> Result<(), Errno> {
        let size_at_least = extents.last().map_or(0, |extent| extent.file_off + extent.len);
        let kill_priv = std::mem::take(&mut inode.lock().file().kill_priv);
        let commit = CommitOp {
            inode: inode.id.get(),
            extents,
            epochs,
            size_at_least,
            kill_priv,
            mtime_ns: None,
        };
        let outcome = self.session.run(op::Op::Commit(commit)).await;
        if kill_priv && outcome.is_err() {
            inode.lock().file().kill_priv = true;
        }
        outcome.map(|_| ())
    }

    // ---- landing ----

    fn land(&self, inode: &Arc<Inode>, flight: &Flight, outcome: Result<(), Errno>) {
        {
            let mut state = inode.lock();
            let Some(file) = &mut state.file else { return };
            let Some(at) = file.flights.iter().position(|f| f.number == flight.number) else {
                return;
            };
            let before = file.dirty_bytes();
            file.flights.remove(at);
            let (number, upto) = (flight.number, flight.upto);
            tracing::trace!(inode = %inode.id, number, upto, ?outcome, "flight landed");
            match outcome {
                Ok(()) => landed(file, flight),
                Err(errno) => self.crashed(&mut state, flight, errno),
            }
            let after = state.file().dirty_bytes();
            self.meta.dirty.changed(before, after);
            if matches!(outcome, Err(Errno::ESTALE | Errno::EFBIG | Errno::EINVAL)) {
                // The inode is gone, or can never hold this: trying again would not help.
                self.meta.drop_dirty(&mut state);
            }
        }
        self.meta.dirty.remove(inode);
        inode.changed.notify_waiters();
        if outcome.is_err() {
            // Whoever waits for room hears of the failure.
            self.meta.dirty.room.notify_waiters();
        }
        self.advance(inode);
    }

    /// The bytes of a failed flight are dirty again, except where newer ones are; whoever has the file open
    /// is told once.
    fn crashed(&self, state: &mut State, flight: &Flight, errno: Errno) {
        tracing::warn!(%errno, bytes = flight.bytes, "write-back failed");
        crate::mark!("write-back failed");
        let file = state.file();
        let newer: Vec<Arc<BTreeMap<u64, Bytes>>> = file
            .flights
            .iter()
            .filter(|other| other.number > flight.number)
            .map(|other| other.pieces.clone())
            .collect();
        file.tainted = file.last_flight;
        file.wanted = 0;
        let now = seam::now();
        file.retry_at = now + self.limits.dirty_age_max;
        // M36: what could not be written is forgotten.
        if crate::bug!(M36) {
            file.committed = file.written;
        } else {
            for (off, data) in flight.pieces.iter() {
                put_under(file, *off, data, &newer, now);
            }
        }
        // M37: nobody is told, and fsync takes the bytes for committed.
        if crate::bug!(M37) {
            file.committed = file.committed.max(flight.upto);
            return;
        }
        self.meta.failed(file, errno);
    }

    /// Commits everything written to the inode before the call. A failure of a write-back meanwhile is the
    /// error, whoever else is told of it too.
    pub(super) async fn commit_all(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        let (target, failures) = {
            let mut state = inode.lock();
            let Some(file) = &mut state.file else { return Ok(()) };
            if file.committed >= file.written {
                return Ok(());
            }
            file.wanted = file.wanted.max(file.written);
            (file.written, file.failures)
        };
        self.advance(inode);
        let ready = |state: &mut State| {
            let file = state.file();
            if file.failures > failures {
                return Some(Err(file.failure.unwrap_or(Errno::EIO)));
            }
            (file.committed >= target).then_some(Ok(()))
        };
        // Flights end by their own deadline, at most two before ours.
        let deadline = self.limits.operation_deadline * 3;
        let done = tokio::time::timeout(deadline, inode.wait_until(ready)).await;
        done.unwrap_or(Err(Errno::EIO))
    }

    /// No flight of the inode begins from now on, and none is under way when this returns. Ends with
    /// [`Client::thaw`].
    pub(super) async fn freeze(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        inode.lock().file().frozen += 1;
        let none = |state: &mut State| state.file().flights.is_empty().then_some(());
        let deadline = self.limits.operation_deadline * 3;
        let waited = tokio::time::timeout(deadline, inode.wait_until(none)).await;
        if waited.is_err() {
            self.thaw(inode);
        }
        waited.map_err(|_| Errno::EIO)
    }

    /// Flights may begin again.
    pub(super) fn thaw(&self, inode: &Arc<Inode>) {
        inode.lock().file().frozen -= 1;
        // Whoever waits for a commit may wait for bytes that were cut off meanwhile.
        if !bug!(ASLEEP) {
            inode.changed.notify_waiters();
        }
        self.advance(inode);
    }

    /// The layout of an inode's class.
    pub(super) fn layout_of(&self, state: &State) -> Layout {
        self.classes.layout(state.attr.map_or(0, |attr| attr.class))
    }

    /// Starts what is due of everything dirty.
    pub(super) fn advance_all(&self) {
        for inode in self.meta.dirty.all() {
            self.advance(&inode);
        }
    }

    /// Writes everything back; the first failure is the error.
    pub(super) async fn commit_everything(&self) -> Result<(), Errno> {
        let dirty = self.meta.dirty.all();
        let commits = dirty.iter().map(|inode| self.commit_all(inode));
        join_all(commits).await.into_iter().collect()
    }

    /// Looks after dirty data, queued operations and pins, as often as the age of dirty data asks for it.
    pub(super) fn tick_interval(&self) -> Duration {
        (self.limits.dirty_age_max / 4).clamp(Duration::from_millis(50), Duration::from_millis(250))
    }
}

/// Takes what is due out of the dirty map.
fn begin(file: &mut FileData, due: Due, layout: Layout) -> Option<Flight> {
    let pieces = match due {
        Due::Enough if !layout.is_copies() => file.dirty.take_units(layout.stripe_bytes()),
        _ => file.dirty.take(),
    };
    if pieces.is_empty() {
        return None;
    }
    let upto = if file.dirty.is_empty() { file.written } else { file.covered() };
    if file.dirty.is_empty() {
        file.dirty_since = None;
    }
    file.last_flight += 1;
    let bytes = pieces.values().map(Bytes::len).sum();
    let flight = Flight { number: file.last_flight, pieces: Arc::new(pieces), bytes, upto };
    file.flights.push_back(flight.clone());
    Some(flight)
}

/// A flight is committed, and so are all before it. One that had to leave something behind covers nothing.
fn landed(file: &mut FileData, flight: &Flight) {
    let in_order = file.flights.iter().all(|other| other.number > flight.number);
    debug_assert!(in_order, "flights commit in order");
    if flight.number > file.tainted {
        file.committed = file.committed.max(flight.upto);
    }
    // Whatever an earlier one left behind was dirty again, or newer bytes were in its place.
    if !file.is_dirty() && !bug!(TAINT) {
        file.committed = file.written;
    }
}

/// Puts a piece back where neither the dirty map nor newer flights have anything.
fn put_under(
    file: &mut FileData,
    off: u64,
    data: &Bytes,
    newer: &[Arc<BTreeMap<u64, Bytes>>],
    now: Mono,
) {
    let end = off + data.len() as u64;
    let mut at = off;
    let mut covered: Vec<(u64, u64)> = newer
        .iter()
        .flat_map(|pieces| pieces.iter())
        .map(|(a, d)| ((*a).max(off), (a + d.len() as u64).min(end)))
        .filter(|(a, b)| a < b)
        .collect();
    covered.sort_unstable();
    for (a, b) in covered.into_iter().chain([(end, end)]) {
        if at < a {
            file.dirty.insert_under(at, &data.slice((at - off) as usize..(a - off) as usize));
        }
        at = at.max(b);
    }
    file.dirty_since.get_or_insert(now);
}

/// Bytes by their offset in the file.
type Ropes = Vec<(u64, Rope)>;

/// Whole stripes, and what is left: what goes to the k+m chunk, and what to plain copies.
fn split_stripes(runs: Vec<Run>, layout: Layout) -> (Ropes, Ropes) {
    let (mut whole, mut rest) = (Vec::new(), Vec::new());
    for run in runs {
        let mut rope: Rope = run.parts.into_iter().collect();
        if layout.is_copies() {
            whole.push((run.off, rope));
            continue;
        }
        let stripe = layout.stripe_bytes();
        let stripes = rope.split_to(run.len / stripe * stripe);
        if !stripes.is_empty() {
            whole.push((run.off, stripes.clone()));
        }
        if !rope.is_empty() {
            rest.push((run.off + stripes.len(), rope));
        }
    }
    (whole, rest)
}

/// The bytes `[off, off + len)`, which the pieces hold.
fn cut(pieces: &BTreeMap<u64, Bytes>, off: u64, len: u64) -> Vec<Bytes> {
    let end = off + len;
    let first = pieces.range(..=off).next_back().map_or(off, |(at, _)| *at);
    let parts = pieces.range(first..end).filter_map(|(at, data)| {
        let (a, b) = ((*at).max(off), (at + data.len() as u64).min(end));
        (a < b).then(|| data.slice((a - at) as usize..(b - at) as usize))
    });
    parts.collect()
}

fn chunk_extent(placed: &Placed) -> Extent {
    let range = ChunkRange { chunk: placed.chunk.id.get(), off: placed.at, commit_index: 0 };
    Extent { file_off: placed.off, len: placed.len, source: Some(Source::Chunk(range)) }
}

fn inline_extents(pieces: &BTreeMap<u64, Bytes>) -> Vec<Extent> {
    let extent = |run: Run| {
        let data = match &run.parts[..] {
            [one] => one.clone(),
            parts => {
                let mut data = BytesMut::with_capacity(run.len as usize);
                parts.iter().for_each(|part| data.extend_from_slice(part));
                data.freeze()
            }
        };
        Extent { file_off: run.off, len: run.len, source: Some(Source::Inline(data)) }
    };
    runs(pieces).into_iter().map(extent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> FileData {
        FileData::default()
    }

    fn copies() -> Layout {
        Layout::new(1, 1).unwrap()
    }

    fn write(file: &mut FileData, off: u64, data: &[u8]) {
        file.dirty.write(off, data);
        file.written += 1;
    }

    #[test]
    fn a_flight_covers_every_write_before_it() {
        let mut file = file();
        write(&mut file, 0, b"aaaa");
        write(&mut file, 4, b"bb");
        let first = begin(&mut file, Due::Asked, copies()).unwrap();
        assert_eq!((first.upto, first.bytes), (2, 6));
        write(&mut file, 0, b"c");
        let second = begin(&mut file, Due::Asked, copies()).unwrap();
        assert_eq!(second.upto, 3);
        file.flights.pop_front();
        landed(&mut file, &first);
        assert_eq!(file.committed, 2);
    }

    #[test]
    fn only_whole_stripes_leave_early() {
        let layout = Layout::new(2, 1).unwrap();
        let stripe = layout.stripe_bytes() as usize;
        let mut file = file();
        write(&mut file, 0, &vec![1; stripe + 100]);
        let flight = begin(&mut file, Due::Enough, layout).unwrap();
        assert_eq!(flight.bytes, stripe);
        assert_eq!(flight.upto, 0, "the rest of the write is still dirty");
        assert_eq!(file.dirty.bytes(), 100);
        assert!(begin(&mut file, Due::Enough, layout).is_none());
        let rest = begin(&mut file, Due::Asked, layout).unwrap();
        assert_eq!((rest.bytes, rest.upto), (100, 1));
    }

    #[test]
    fn failed_bytes_come_back_below_newer_ones() {
        let mut file = file();
        write(&mut file, 0, &[1; 100]);
        let failed = begin(&mut file, Due::Asked, copies()).unwrap();
        write(&mut file, 10, &[2; 10]);
        let newer = begin(&mut file, Due::Asked, copies()).unwrap();
        write(&mut file, 50, &[3; 10]);
        for (off, data) in failed.pieces.iter() {
            put_under(&mut file, *off, data, std::slice::from_ref(&newer.pieces), Mono(1));
        }
        assert_eq!(file.dirty.spans(0, 100), [(0, 10), (20, 50), (50, 60), (60, 100)]);
        let all: Vec<u8> = file.dirty.get(20, 80).iter().flat_map(|(_, d)| d.to_vec()).collect();
        assert_eq!(all, [vec![1; 30], vec![3; 10], vec![1; 40]].concat());
    }

    #[test]
    fn runs_split_into_stripes_and_rest() {
        let layout = Layout::new(2, 1).unwrap();
        let stripe = layout.stripe_bytes();
        let run = |off, len: u64| Run { off, parts: vec![vec![0; len as usize].into()], len };
        let (whole, rest) = split_stripes(vec![run(5, stripe * 2 + 7), run(1 << 30, 3)], layout);
        let sizes = |runs: &[(u64, Rope)]| -> Vec<(u64, u64)> {
            runs.iter().map(|(off, rope)| (*off, rope.len())).collect()
        };
        assert_eq!(sizes(&whole), [(5, stripe * 2)]);
        assert_eq!(sizes(&rest), [(5 + stripe * 2, 7), (1 << 30, 3)]);
        let (whole, rest) = split_stripes(vec![run(0, 9)], copies());
        assert_eq!((sizes(&whole), sizes(&rest)), (vec![(0, 9)], vec![]));
    }
}
