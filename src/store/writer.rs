//! The queue in front of a disk. Whatever waits when the disk is free is one batch: written in order, then
//! made durable with one sync per replica in it, then answered.

use super::{Append, Blocks, ReplicaId, Store, StoreError};
use crate::pb::Hole;
use crate::seam;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

type Answer = Result<u64, StoreError>;

/// How long an append that arrived before its predecessor waits for it.
const REORDER_WAIT: Duration = Duration::from_millis(100);

/// What an append carries at most, bytes, to be carried out on the thread that brought it: beyond, the work outweighs
/// the hand-off.
const HERE_MAX: usize = 64 << 10;

enum Job {
    Append(Admitted, bool),
    Sync(ReplicaId, u64),
    Seal(ReplicaId, u64),
    Punch(ReplicaId, Vec<Hole>),
    Delete(ReplicaId),
    Review(ReplicaId),
}

/// An append whose bytes count as this disk's, from here until it has been carried out and answered, also if nobody
/// waits for that any more.
#[derive(Clone)]
pub struct Admitted {
    append: Append,
    _room: Arc<OwnedSemaphorePermit>,
}

struct Pending {
    job: Job,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Pending>,
    running: bool,
    closed: bool,
}

/// All that changes replicas of one disk goes through here. What was handed in is carried out even if nobody
/// waits for the answer any more.
pub struct Writer {
    store: Arc<Store>,
    queue: Mutex<Queue>,
    /// Counts batches, so that who waits for another's append hears of it.
    batches: watch::Sender<u64>,
    /// For reads that block.
    reads: Arc<Semaphore>,
    /// Bytes of appends that may still be admitted.
    room: Arc<Semaphore>,
}

/// Reads and checks of one disk that may block at once. A disk that hangs keeps so many of the process's threads for
/// blocking work, and leaves the others to the other disks.
const READS_AT_ONCE: usize = 32;

impl Writer {
    /// The queue of `store`.
    pub fn new(store: Arc<Store>) -> Arc<Writer> {
        let (batches, _) = watch::channel(0);
        let reads = Arc::new(Semaphore::new(READS_AT_ONCE));
        let room = Arc::new(Semaphore::new(store.limits().store_queue_bytes_max));
        Arc::new(Writer { store, queue: Mutex::default(), batches, reads, room })
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// [`Store::read`], with a bounded number of others.
    pub async fn read(&self, id: ReplicaId, offset: u64, len: u64) -> Result<Blocks, StoreError> {
        self.in_turn(move |store| store.read(id, offset, len)).await
    }

    /// Takes the bytes in, unless the disk has too many already. Whoever kept memory for them need not any more: a
    /// disk that hangs keeps so many bytes, and no more.
    pub fn admit(&self, append: Append) -> Result<Admitted, StoreError> {
        let bytes = u32::try_from(append.bytes()).unwrap_or(u32::MAX);
        match self.room.clone().try_acquire_many_owned(bytes) {
            Ok(room) => Ok(Admitted { append, _room: Arc::new(room) }),
            Err(_) => Err(self.full()),
        }
    }

    fn full(&self) -> StoreError {
        crate::mark!("store: queue full");
        StoreError::Busy(self.store.describe())
    }

    /// [`Store::verify`], a read like any other.
    pub async fn verify(&self, id: ReplicaId) -> Result<Vec<u32>, StoreError> {
        self.in_turn(move |store| store.verify(id)).await
    }

    /// Work that may block, off the runtime's threads, when it is its turn.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> T {
        let turn = self.reads.clone().acquire_owned().await;
        let store = self.store.clone();
        // The turn ends with the work, also when nobody waits for that any more.
        seam::blocking(move || {
            let _turn = turn;
            work(&store)
        })
        .await
    }

    /// [`Store::append`], durable when answered if `sync`; the replica's length. An append that overtook the
    /// one before it waits a moment for that.
    pub async fn append(self: &Arc<Writer>, admitted: Admitted, sync: bool) -> Answer {
        let deadline = seam::now() + REORDER_WAIT;
        let mut batches = self.batches.subscribe();
        let append = &admitted.append;
        loop {
            let answer = self.submit(Job::Append(admitted.clone(), sync)).await;
            let early = match &answer {
                Err(StoreError::WrongOffset { offset, length, sealed, .. }) => {
                    !sealed && offset > length
                }
                Err(StoreError::NoSuchReplica(_)) => append.offset() > 0,
                _ => false,
            };
            let left = seam::now().until(deadline);
            if !early || left.is_zero() {
                return answer;
            }
            crate::mark!("store: append waits for its predecessor");
            // Each batch may have brought it; the last answer stands if none does in time.
            if tokio::time::timeout(left, batches.changed()).await.is_err() {
                return answer;
            }
        }
    }

    /// Makes the replica durable, `up_to` at least; its durable length (rule A1).
    pub async fn sync(self: &Arc<Writer>, id: ReplicaId, up_to: u64) -> Answer {
        self.submit(Job::Sync(id, up_to)).await
    }

    /// [`Store::seal`].
    pub async fn seal(self: &Arc<Writer>, id: ReplicaId, length: u64) -> Answer {
        self.submit(Job::Seal(id, length)).await
    }

    /// [`Store::punch`].
    pub async fn punch(
        self: &Arc<Writer>,
        id: ReplicaId,
        holes: Vec<Hole>,
    ) -> Result<(), StoreError> {
        self.submit(Job::Punch(id, holes)).await.map(drop)
    }

    /// [`Store::delete`].
    pub async fn delete(self: &Arc<Writer>, id: ReplicaId) -> Result<(), StoreError> {
        self.submit(Job::Delete(id)).await.map(drop)
    }

    /// [`Store::review`].
    pub async fn review(self: &Arc<Writer>, id: ReplicaId) -> Answer {
        self.submit(Job::Review(id)).await
    }

    /// Requests that wait.
    pub fn pending(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Refuses new work, waits for what is under way, makes everything durable.
    pub async fn close(self: &Arc<Writer>) {
        let mut batches = self.batches.subscribe();
        self.lock().closed = true;
        while self.lock().running {
            if batches.changed().await.is_err() {
                break;
            }
        }
        let store = self.store.clone();
        if let Err(error) = seam::blocking(move || store.close()).await {
            tracing::warn!("{}: not closed cleanly: {error}", self.store.describe());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn submit(self: &Arc<Writer>, job: Job) -> Answer {
        let limits = self.store.limits();
        let (answer, answered) = oneshot::channel();
        let idle = {
            let mut queue = self.lock();
            if queue.closed {
                return Err(StoreError::Closed);
            }
            let full = queue.waiting.len() >= limits.store_queue_max;
            if full || crate::fault!("store: queue full") {
                return Err(self.full());
            }
            queue.waiting.push_back(Pending { job, answer });
            !std::mem::replace(&mut queue.running, true)
        };
        // CARRY: whoever comes first works for all, and nobody does when that one is dropped.
        if idle && crate::bug!(CARRY) {
            self.clone().drain().await;
        } else if idle {
            seam::spawn_eager(self.clone().drain());
        }
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Carries out what waits until nothing does. A small synced append that finds the disk idle is carried out on
    /// the thread that brought it, and its answer leaves from there.
    async fn drain(self: Arc<Writer>) {
        let mut first = true;
        while let Some(batch) = self.take() {
            let store = self.store.clone();
            let here = std::mem::take(&mut first) && is_quick(&batch);
            let (jobs, answers): (Vec<Job>, Vec<_>) =
                batch.into_iter().map(|pending| (pending.job, pending.answer)).unzip();
            let work = move || run(&store, jobs);
            let results = match here {
                true => seam::blocking_here(work).await,
                false => seam::blocking(work).await,
            };
            for (answer, result) in answers.into_iter().zip(results) {
                let _ = answer.send(result);
            }
            self.batches.send_modify(|batches| *batches += 1);
        }
        self.batches.send_modify(|batches| *batches += 1);
    }

    fn take(&self) -> Option<VecDeque<Pending>> {
        let mut queue = self.lock();
        let rest = match queue.waiting.len() > 1 && crate::fault!("store: batch cut short") {
            true => queue.waiting.split_off(1),
            false => VecDeque::new(),
        };
        let batch = std::mem::replace(&mut queue.waiting, rest);
        queue.running = !batch.is_empty();
        queue.running.then_some(batch)
    }
}

/// Whether it is one small synced append. Everything else takes longer or is waited for by nobody, and whoever
/// reads requests should not do many of them one after another.
fn is_quick(batch: &VecDeque<Pending>) -> bool {
    let small = |job: &Job| matches!(job, Job::Append(job, true) if job.append.bytes() <= HERE_MAX);
    batch.len() == 1 && batch.iter().all(|pending| small(&pending.job))
}

/// One batch. Results are in the order of the jobs.
fn run(store: &Store, jobs: Vec<Job>) -> Vec<Answer> {
    let mut to_sync = BTreeSet::new();
    let mut to_delete = Vec::new();
    let mut results: Vec<Answer> = Vec::with_capacity(jobs.len());
    for job in &jobs {
        results.push(match job {
            Job::Append(Admitted { append, .. }, sync) => {
                let appended = store.append(append);
                if *sync && appended.is_ok() {
                    to_sync.insert(append.id());
                }
                appended
            }
            Job::Sync(id, _) => {
                to_sync.insert(*id);
                Ok(0)
            }
            Job::Seal(id, length) => store.seal(*id, *length),
            Job::Punch(id, holes) => store.punch(*id, holes).map(|()| 0),
            Job::Review(id) => store.review(*id),
            // One that is refused does not hold back the others.
            Job::Delete(id) => store.not_being_built(*id).map(|()| {
                to_delete.push(*id);
                0
            }),
        });
    }
    let synced = sync_all(store, to_sync);
    let deleted = if to_delete.is_empty() { Ok(()) } else { store.delete(&to_delete) };
    for (job, result) in jobs.iter().zip(&mut results) {
        let new = match (job, &*result) {
            (Job::Append(job, true), Ok(_)) => synced[&job.append.id()].clone(),
            (Job::Sync(id, up_to), _) => synced[id].clone().and_then(|length| {
                let short = StoreError::NotDurable { id: *id, length, wanted: *up_to };
                if length < *up_to { Err(short) } else { Ok(length) }
            }),
            (Job::Delete(_), Ok(_)) => deleted.clone().map(|()| 0),
            (_, result) => result.clone(),
        };
        *result = new;
    }
    results
}

fn sync_all(store: &Store, ids: BTreeSet<ReplicaId>) -> BTreeMap<ReplicaId, Answer> {
    let ids: Vec<ReplicaId> = ids.into_iter().collect();
    let synced = store.sync(&ids);
    ids.into_iter().zip(synced).collect()
}
