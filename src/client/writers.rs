//! Packing: bytes of many files go one after another into the open chunks of their class.
//!
//! Each class and layout has a queue and a few lanes; a lane has an open chunk and one append under way, so
//! appends of one chunk stay in order while lanes overlap. When a server of a chunk fails, the chunk is given
//! up: what was not acknowledged goes back into the queue and into a chunk elsewhere; what was acknowledged
//! but is not committed is sent again by whoever placed it, who keeps the bytes until the commit (rule A3).

use super::chunk::{OpenChunk, named};
use super::masters::{MasterError, Masters, jitter};
use super::plan::{Packer, Rope, stripes};
use super::session::{Current, Session};
use crate::erasure::{Codec, Layout};
use crate::errno::Errno;
use crate::ids::ServerId;
use crate::limits::Limits;
use crate::pb;
use crate::seam::{self, Mono};
use crate::wire::calls;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Chunks that one class and layout write at once.
const LANES: usize = 2;

/// Where bytes went.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Which bytes: the caller's offset.
    pub off: u64,
    /// How many.
    pub len: u64,
    /// The chunk.
    pub chunk: Arc<OpenChunk>,
    /// Where in it, logical.
    pub at: u64,
}

/// What was asked to be placed; ends when all of it is acknowledged.
struct Job {
    /// The session that it belongs to, as [`Current::generation`].
    session: u64,
    sync: bool,
    since: Mono,
    state: Mutex<JobState>,
}

struct JobState {
    /// Bytes that no append holds yet.
    untaken: u64,
    /// Bytes that are not acknowledged yet.
    left: u64,
    placed: Vec<Placed>,
    done: Option<oneshot::Sender<Result<Vec<Placed>, Errno>>>,
}

impl Job {
    fn state(&self) -> MutexGuard<'_, JobState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, errno: Errno) {
        let (done, placed) = {
            let mut state = self.state();
            (state.done.take(), std::mem::take(&mut state.placed))
        };
        placed.iter().for_each(|placed| placed.chunk.end_use());
        if let Some(done) = done {
            let _ = done.send(Err(errno));
        }
    }

    fn is_over(&self) -> bool {
        self.state().done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// A run of a job that waits.
struct Segment {
    job: Arc<Job>,
    off: u64,
    rope: Rope,
}

/// A segment's part that an append holds.
struct Taken {
    job: Arc<Job>,
    off: u64,
    rope: Rope,
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    class: u32,
    layout: Layout,
}

#[derive(Default)]
struct Lane {
    busy: bool,
    chunk: Option<Arc<OpenChunk>>,
}

#[derive(Default)]
struct Group {
    waiting: VecDeque<Segment>,
    lanes: Vec<Lane>,
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Append calls answered.
    pub appends: AtomicU64,
    /// Sync calls answered.
    pub syncs: AtomicU64,
    /// Chunks given up.
    pub chunks_lost: AtomicU64,
    /// Bytes placed.
    pub bytes: AtomicU64,
}

/// All open chunks.
pub struct Writers {
    masters: Arc<Masters>,
    session: Arc<Session>,
    limits: Arc<Limits>,
    groups: Mutex<BTreeMap<Key, Group>>,
    avoid: Mutex<BTreeMap<ServerId, Mono>>,
    requests: AtomicU64,
    /// Counters.
    pub counts: Counts,
}

impl Writers {
    /// Nothing open yet.
    pub fn new(masters: Arc<Masters>, session: Arc<Session>) -> Arc<Writers> {
        Arc::new(Writers {
            limits: masters.limits.clone(),
            masters,
            session,
            groups: Mutex::default(),
            avoid: Mutex::default(),
            requests: AtomicU64::new(0),
            counts: Counts::default(),
        })
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<Key, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the runs (offset, bytes) to chunks of this layout; for k+m with k > 1 whole stripes only. All
    /// servers have them when this returns, durably where the last append carried `sync`. The placements
    /// count as used until the caller says [`OpenChunk::end_use`] for each.
    pub async fn place(
        self: &Arc<Writers>,
        class: u32,
        layout: Layout,
        runs: Vec<(u64, Rope)>,
        sync: bool,
    ) -> Result<Vec<Placed>, Errno> {
        let total: u64 = runs.iter().map(|(_, rope)| rope.len()).sum();
        if total == 0 {
            return Ok(Vec::new());
        }
        let (done, outcome) = oneshot::channel();
        let state = JobState { untaken: total, left: total, placed: Vec::new(), done: Some(done) };
        let (session, since) = (self.session.writing(), seam::now());
        let job = Arc::new(Job { session, sync, since, state: Mutex::new(state) });
        let key = Key { class, layout };
        self.queue(
            key,
            runs.into_iter().map(|(off, rope)| Segment { job: job.clone(), off, rope }),
        );
        outcome.await.unwrap_or(Err(Errno::EIO))
    }

    fn queue(self: &Arc<Writers>, key: Key, segments: impl Iterator<Item = Segment>) {
        let idle = {
            let mut groups = self.groups();
            let group = groups.entry(key).or_default();
            group.lanes.resize_with(LANES, Lane::default);
            group.waiting.extend(segments);
            group.hire(&self.limits)
        };
        for lane in idle {
            seam::spawn_eager(self.clone().work(key, lane));
        }
    }

    /// A lane's work until nothing waits.
    async fn work(self: Arc<Writers>, key: Key, lane: usize) {
        let codec = Codec::new(key.layout);
        let (mut pause, mut failures) = (self.limits.retry_pause, 0);
        let mut no_room = None;
        loop {
            if self.rest(key, lane) {
                return;
            }
            let chunk = match self.chunk(key, lane).await {
                Ok(chunk) => chunk,
                Err(error) => {
                    let full = error == OpenError::Errno(Errno::ENOSPC);
                    no_room = full.then(|| no_room.unwrap_or_else(seam::now));
                    self.give_up_waiting(key, &error, no_room);
                    tokio::time::sleep(jitter(pause)).await;
                    pause = (pause * 2).min(self.limits.retry_pause_max);
                    continue;
                }
            };
            no_room = None;
            if self.append(key, &codec, &chunk).await {
                (pause, failures) = (self.limits.retry_pause, 0);
                continue;
            }
            // Another chunk is tried at once; each costs the masters two commands, so there is a pause from then on.
            failures += 1;
            if failures > 1 && !crate::bug!(FRANTIC) {
                crate::mark!("one chunk after another failed under a writer");
                self.give_up_waiting(key, &OpenError::Errno(Errno::EIO), None);
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(self.limits.retry_pause_max);
            }
        }
    }

    /// Ends the lane's work if nothing waits.
    fn rest(&self, key: Key, lane: usize) -> bool {
        let mut groups = self.groups();
        let group = groups.entry(key).or_default();
        group.waiting.retain(|segment| !segment.job.is_over());
        let rest = group.waiting.is_empty();
        group.lanes[lane].busy = !rest;
        rest
    }

    /// One append of what waits; `false` if the chunk failed under it.
    async fn append(self: &Arc<Self>, key: Key, codec: &Codec, chunk: &Arc<OpenChunk>) -> bool {
        let (taken, shards, len, sync) = self.take(key, codec, chunk);
        if taken.is_empty() {
            return true;
        }
        let deadline = self.limits.chunk_write_deadline;
        let appended = chunk.append(&self.masters.pool, deadline, &shards, len, sync).await;
        match appended {
            Ok(()) => {
                self.counts.appends.fetch_add(chunk.homes().len() as u64, Ordering::Relaxed);
                self.counts.bytes.fetch_add(len, Ordering::Relaxed);
                taken.into_iter().for_each(|part| acknowledged(part, chunk));
                true
            }
            Err(failed) => {
                self.lost(chunk, &failed.bad);
                // MOODY: a chunk that fails is the writer's error, though another one would do.
                if crate::bug!(MOODY) {
                    taken.iter().for_each(|part| part.job.fail(Errno::EIO));
                } else {
                    self.put_back(key, taken);
                }
                false
            }
        }
    }

    /// What one append can hold of what waits, laid out.
    fn take(
        &self,
        key: Key,
        codec: &Codec,
        chunk: &OpenChunk,
    ) -> (Vec<Taken>, Vec<super::plan::ShardPayload>, u64, bool) {
        let stripe = key.layout.stripe_bytes();
        let most = (self.limits.append_bytes_max as u64 / stripe * stripe).max(stripe);
        let limit = most.min(chunk.room() / stripe * stripe);
        let start = chunk.len();
        let mut groups = self.groups();
        let waiting = &mut groups.entry(key).or_default().waiting;
        let mut taken: Vec<Taken> = Vec::new();
        let (shards, len);
        if key.layout.is_copies() {
            let mut packer = Packer::new(start, limit);
            while let Some(segment) = waiting.front_mut() {
                let mut rest = segment.rope.clone();
                let Some((at, part)) = packer.pack(&mut rest) else { break };
                take_front(waiting, part, at, &mut taken);
            }
            drop(groups);
            len = packer.len();
            shards = vec![packer.finish(chunk.id)];
        } else {
            let mut all = Rope::default();
            while let Some(segment) = waiting.front() {
                let part = segment.rope.len().min(limit - all.len());
                if part == 0 {
                    break;
                }
                all.append(segment.rope.clone().split_to(part));
                let at = start + all.len() - part;
                take_front(waiting, part, at, &mut taken);
            }
            drop(groups);
            len = all.len();
            shards = stripes(codec, chunk.id, start / stripe, all);
        }
        let sync = taken.iter().any(|part| part.job.sync && part.job.state().untaken == 0);
        (taken, shards, len, sync)
    }

    fn put_back(self: &Arc<Writers>, key: Key, taken: Vec<Taken>) {
        let mut groups = self.groups();
        let waiting = &mut groups.entry(key).or_default().waiting;
        for part in taken.into_iter().rev() {
            part.job.state().untaken += part.rope.len();
            waiting.push_front(Segment { job: part.job, off: part.off, rope: part.rope });
        }
    }

    /// No chunk could be opened, or none that can be written: those who have waited long enough are told why. That there
    /// is no room, said again and again since `no_room`, is believed after a while only: a leader that has just begun
    /// knows of no room on servers that it has not heard yet, and whoever waited for that leader has waited long.
    fn give_up_waiting(&self, key: Key, error: &OpenError, no_room: Option<Mono>) {
        let now = seam::now();
        let deadline = self.limits.operation_deadline;
        let patience = |job: &Job| match error {
            // What was written in a session is lost with it. The next one may have begun before the answer came.
            // BYGONE: all that waits counts as written in it.
            OpenError::Expired(over) if job.session <= *over || crate::bug!(BYGONE) => {
                Duration::ZERO
            }
            OpenError::Closed => Duration::ZERO,
            OpenError::Errno(Errno::ENOSPC) if key.layout.is_copies() => {
                self.limits.server_suspect * 2
            }
            _ => deadline,
        };
        // What the masters say beside that is for this client, and no answer to who writes.
        let full = *error == OpenError::Errno(Errno::ENOSPC);
        let errno = if full { Errno::ENOSPC } else { Errno::EIO };
        let mut groups = self.groups();
        let waiting = &mut groups.entry(key).or_default().waiting;
        waiting.retain(|segment| {
            let since = segment.job.since;
            let said = no_room.map_or(since, |said| since.max(said));
            let keep = now.since(since) < deadline && now.since(said) < patience(&segment.job);
            if !keep {
                segment.job.fail(errno);
            }
            keep
        });
    }

    // ---- chunks ----

    /// The lane's chunk, a new one if it has none that takes more.
    async fn chunk(self: &Arc<Self>, key: Key, lane: usize) -> Result<Arc<OpenChunk>, OpenError> {
        let current = self.session.current();
        let known = self.groups().entry(key).or_default().lanes[lane].chunk.clone();
        if let Some(chunk) = known
            && chunk.generation == current.generation
            && chunk.room() >= key.layout.stripe_bytes()
        {
            return Ok(chunk);
        }
        let chunk = self.open(key, current).await?;
        if let Some(lane) = self.groups().entry(key).or_default().lanes.get_mut(lane) {
            lane.chunk = Some(chunk.clone());
        }
        Ok(chunk)
    }

    async fn open(&self, key: Key, current: Current) -> Result<Arc<OpenChunk>, OpenError> {
        if self.session.is_over(current.generation) {
            return Err(OpenError::Expired(current.generation));
        }
        let request = pb::OpenChunkRequest {
            session: current.id.get(),
            request: self.requests.fetch_add(1, Ordering::Relaxed) + 1,
            layout: Some(key.layout.into()),
            class: key.class,
            avoid: self.avoided(),
        };
        let until = seam::now() + self.limits.operation_deadline;
        let reply = match self.masters.call::<calls::OpenChunk>(&request, until).await {
            Ok(reply) => reply,
            Err(MasterError::Closed) => return Err(OpenError::Closed),
            Err(error) => {
                tracing::warn!(%error, "no new chunk");
                return Err(OpenError::Errno(Errno::EIO));
            }
        };
        if reply.errno == Errno::ESTALE.get() {
            self.session.expire(current.generation);
            return Err(OpenError::Expired(current.generation));
        }
        Errno::check(reply.errno).map_err(OpenError::Errno)?;
        let info = reply.chunk.as_ref();
        let opened = info.and_then(|info| OpenChunk::new(info, current.generation, &self.limits));
        opened.map(Arc::new).ok_or(OpenError::Errno(Errno::EIO))
    }

    fn avoided(&self) -> Vec<u64> {
        let now = seam::now();
        let mut avoid = self.avoid.lock().unwrap_or_else(PoisonError::into_inner);
        avoid.retain(|_, until| now < *until);
        avoid.keys().map(|server| server.get()).collect()
    }

    /// Servers of a chunk failed: nothing more goes into it, and the masters are asked to seal it, so that
    /// repair can begin. Servers that failed get no new chunks of this client for a while.
    pub fn lost(self: &Arc<Writers>, chunk: &Arc<OpenChunk>, bad: &[(ServerId, String)]) {
        let first = chunk.fail();
        for (server, why) in bad {
            tracing::warn!(chunk = %chunk.id, %server, %why, "a chunkserver failed under a write");
            let until = seam::now() + self.limits.server_suspect * 3;
            self.avoid.lock().unwrap_or_else(PoisonError::into_inner).insert(*server, until);
        }
        if !first {
            return;
        }
        crate::mark!("chunk given up by its writer");
        self.counts.chunks_lost.fetch_add(1, Ordering::Relaxed);
        let is_bad = |server| bad.iter().any(|(other, _)| *other == server);
        let request = pb::ReportChunkRequest {
            session: self.session.current().id.get(),
            chunk: chunk.id.get(),
            bad: chunk.homes().iter().filter(|home| is_bad(home.server)).map(named).collect(),
            writing: true,
        };
        let masters = self.masters.clone();
        let until = seam::now() + self.limits.operation_deadline;
        seam::spawn(async move {
            if let Err(error) = masters.call::<calls::ReportChunk>(&request, until).await {
                tracing::debug!(%error, "the masters did not hear of a failed chunk");
            }
        });
    }

    /// Makes placed bytes durable on every server of their chunk. `false` if the chunk was lost: the bytes
    /// are to be placed elsewhere.
    pub async fn sync(self: &Arc<Writers>, chunk: &Arc<OpenChunk>, up_to: u64) -> bool {
        let deadline = self.limits.chunk_write_deadline;
        match chunk.sync(&self.masters.pool, deadline, up_to).await {
            Ok(()) => {
                self.counts.syncs.fetch_add(chunk.homes().len() as u64, Ordering::Relaxed);
                true
            }
            Err(failed) => {
                self.lost(chunk, &failed.bad);
                false
            }
        }
    }

    /// Placed bytes are committed, or will not be: a full chunk without others is sealed.
    pub fn release(&self, placed: &Placed) {
        placed.chunk.end_use();
        if placed.chunk.may_seal() && !self.session.is_over(placed.chunk.generation) {
            crate::mark!("full chunk sealed by its writer");
            let op = pb::SealOwnOp { chunk: placed.chunk.id.get() };
            self.session.submit_lazy(pb::op::Op::SealOwn(op));
        }
    }
}

/// Why there is no new chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OpenError {
    Errno(Errno),
    /// This session is over.
    Expired(u64),
    Closed,
}

impl Group {
    /// Idle lanes that there is work for: one, and another when more waits than one append holds.
    fn hire(&mut self, limits: &Limits) -> Vec<usize> {
        let bytes: u64 = self.waiting.iter().map(|segment| segment.rope.len()).sum();
        let busy = self.lanes.iter().filter(|lane| lane.busy).count();
        let wanted = if bytes > limits.append_bytes_max as u64 { LANES } else { 1 };
        let mut hired = Vec::new();
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            if !lane.busy && busy + hired.len() < wanted {
                lane.busy = true;
                hired.push(i);
            }
        }
        hired
    }
}

/// Takes `len` bytes off the first segment, which are to go to `at`.
fn take_front(waiting: &mut VecDeque<Segment>, len: u64, at: u64, taken: &mut Vec<Taken>) {
    let segment = waiting.front_mut().expect("the caller looked at it");
    let rope = segment.rope.split_to(len);
    segment.job.state().untaken -= len;
    taken.push(Taken { job: segment.job.clone(), off: segment.off, rope, at });
    segment.off += len;
    if segment.rope.is_empty() {
        waiting.pop_front();
    }
}

fn acknowledged(part: Taken, chunk: &Arc<OpenChunk>) {
    let len = part.rope.len();
    let mut state = part.job.state();
    if state.done.is_none() {
        return;
    }
    chunk.begin_use();
    state.placed.push(Placed { off: part.off, len, chunk: chunk.clone(), at: part.at });
    state.left -= len;
    if state.left == 0 {
        let placed = std::mem::take(&mut state.placed);
        if let Some(done) = state.done.take()
            && let Err(Ok(placed)) = done.send(Ok(placed))
        {
            placed.iter().for_each(|placed| placed.chunk.end_use());
        }
    }
}
