//! Bytes of chunks: from the cache, or from whichever replica answers and verifies.
//!
//! Every block is checked against its CRC, which covers chunk, shard and block number, before anything else
//! sees it. A replica that fails, lies or is too short is passed over for another; one that is corrupt is
//! reported, so that it is repaired. Of a k+m chunk the data shards are read directly, and a lost one is
//! computed from any k others.

use super::blocks::BlockCache;
use super::chunk::{Home, homes, named};
use super::masters::{Masters, jitter};
use super::query::Queries;
use crate::checksum::{block_crc, hole_crc};
use crate::erasure::{Codec, Layout};
use crate::errno::Errno;
use crate::ids::{ChunkId, ServerId};
use crate::limits::{BLOCK_BYTES, Limits};
use crate::pb::{self, query::Query, query_result::Result as Found};
use crate::seam::{self, Mono};
use crate::wire::{CallError, RefusalCode, calls};
use bytes::Bytes;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes asked of one replica at a time.
const READ_BYTES: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Why a chunk's bytes cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The chunk is gone: the extents are out of date (rule A5).
    Stale,
    /// Too many shards are lost or damaged, or did not answer before the deadline.
    Failed,
}

/// How one replica failed to give bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// A block is a hole: whoever asks for it is out of date (rule A6).
    Hole,
    Gone,
    Corrupt,
    Silent,
}

/// A chunk's layout and homes.
#[derive(Debug)]
struct Info {
    layout: Layout,
    homes: Vec<Home>,
    dead: Vec<ServerId>,
}

impl Info {
    /// From the masters' word; `None` if it makes no sense.
    fn read(info: &pb::ChunkInfo) -> Option<(ChunkId, Arc<Info>)> {
        let chunk = info.chunk.as_ref()?;
        let layout = Layout::try_from(chunk.layout.as_ref()?).ok()?;
        let dead = info.servers.iter().filter(|server| !server.alive);
        let dead = dead.map(|server| ServerId(server.server)).collect();
        Some((ChunkId(chunk.id), Arc::new(Info { layout, homes: homes(info), dead })))
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Read calls answered.
    pub reads: AtomicU64,
    /// Bytes they brought.
    pub bytes: AtomicU64,
    /// Replies that did not verify.
    pub corrupt: AtomicU64,
    /// Bytes computed from parity.
    pub degraded: AtomicU64,
}

#[derive(Debug)]
struct UnderWay {
    end: u64,
    done: Arc<Notify>,
}

/// Reads chunks.
pub struct Fetcher {
    masters: Arc<Masters>,
    queries: Arc<Queries>,
    limits: Arc<Limits>,
    blocks: Mutex<BlockCache>,
    chunks: Mutex<BTreeMap<ChunkId, Arc<Info>>>,
    under_way: Mutex<BTreeMap<(ChunkId, u64), UnderWay>>,
    /// Servers that did not answer, asked last until then.
    slow: Mutex<BTreeMap<ServerId, Mono>>,
    /// Counters.
    pub counts: Counts,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fetcher {
    /// An empty cache.
    pub fn new(masters: Arc<Masters>, queries: Arc<Queries>) -> Arc<Fetcher> {
        let limits = masters.limits.clone();
        Arc::new(Fetcher {
            blocks: Mutex::new(BlockCache::new(limits.data_cache_bytes)),
            masters,
            queries,
            limits,
            chunks: Mutex::default(),
            under_way: Mutex::default(),
            slow: Mutex::default(),
            counts: Counts::default(),
        })
    }

    /// The masters said where these chunks are.
    pub fn learn(&self, infos: &[pb::ChunkInfo]) {
        let mut chunks = locked(&self.chunks);
        for (chunk, info) in infos.iter().filter_map(Info::read) {
            // Begun anew when it is full, never at the cost of what was just heard.
            let full = chunks.len() >= self.limits.chunks_known_max;
            if full && !chunks.contains_key(&chunk) && !crate::bug!(OLDEST) {
                crate::mark!("homes of chunks forgotten");
                chunks.clear();
            }
            chunks.insert(chunk, info);
            // OLDEST: the chunk that was made first goes, whoever asks for it.
            if crate::bug!(OLDEST) && chunks.len() > self.limits.chunks_known_max {
                chunks.pop_first();
            }
        }
    }

    /// Forgets all cached bytes.
    pub fn drop_cache(&self) {
        *locked(&self.blocks) = BlockCache::new(self.limits.data_cache_bytes);
    }

    /// Bytes from the cache, if all are there.
    pub fn cached(&self, chunk: ChunkId, off: u64, len: u64) -> Option<Vec<Bytes>> {
        locked(&self.blocks).get(chunk, off, len)
    }

    /// The bytes `[off, off + len)` of a chunk.
    pub async fn get(&self, chunk: ChunkId, off: u64, len: u64) -> Result<Vec<Bytes>, ReadError> {
        if let Some(found) = self.cached(chunk, off, len) {
            return Ok(found);
        }
        let mut ranges = Vec::new();
        let mut at = off;
        while at < off + len {
            let upto = (at / READ_BYTES * READ_BYTES + READ_BYTES).min(off + len);
            ranges.push((at, upto));
            at = upto;
        }
        let parts = join_all(ranges.into_iter().map(|(from, to)| self.part(chunk, from, to)));
        let mut found = Vec::new();
        for part in parts.await {
            found.extend(part?);
        }
        Ok(found)
    }

    /// A range of at most [`READ_BYTES`], within which reads of others are waited for.
    async fn part(&self, chunk: ChunkId, from: u64, to: u64) -> Result<Vec<Bytes>, ReadError> {
        let until = seam::now() + self.limits.operation_deadline;
        let (low, high) = (from / BLOCK * BLOCK, to.next_multiple_of(BLOCK));
        loop {
            if let Some(found) = self.cached(chunk, from, to - from) {
                return Ok(found);
            }
            let Some(other) = self.claim(chunk, low, high) else { break };
            crate::mark!("read waited for another's");
            // The other reader ends by its own deadline; one that was dropped tells nobody.
            let wait = self.limits.chunk_read_deadline.min(seam::now().until(until));
            let _ = tokio::time::timeout(wait, other).await;
            if seam::now() >= until {
                return Err(ReadError::Failed);
            }
        }
        let claim = Claim { fetcher: self, key: (chunk, low) };
        let pieces = self.fetch(chunk, low, high, until).await?;
        {
            let mut blocks = locked(&self.blocks);
            if !crate::fault!("client: bytes not kept") {
                pieces.iter().for_each(|(at, data)| blocks.insert(chunk, *at, data));
            }
        }
        drop(claim);
        Ok(pieces.iter().filter_map(|(at, data)| slice(*at, data, from, to)).collect())
    }

    /// Claims a range; if somebody has claimed part of it, something to wait for instead.
    fn claim(
        &self,
        chunk: ChunkId,
        low: u64,
        high: u64,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let mut under_way = locked(&self.under_way);
        let before = under_way.range(..(chunk, high)).next_back();
        if let Some((key, other)) = before
            && key.0 == chunk
            && other.end > low
        {
            return Some(other.done.clone().notified_owned());
        }
        let done = Arc::new(Notify::new());
        under_way.insert((chunk, low), UnderWay { end: high, done });
        None
    }

    // ---- from servers ----

    /// Whole blocks `[low, high)`, verified, tried until `until`.
    async fn fetch(
        &self,
        chunk: ChunkId,
        low: u64,
        high: u64,
        until: Mono,
    ) -> Result<Vec<(u64, Bytes)>, ReadError> {
        let mut pause = self.limits.retry_pause;
        let mut fresh = false;
        loop {
            let info = self.info(chunk, fresh, until).await?;
            let outcome = if info.layout.is_copies() {
                let copy = self.copy(chunk, &info, low, high - low).await;
                copy.map(|data| vec![(low, data)])
            } else {
                self.striped(chunk, &info, low, high).await
            };
            let bad = match outcome {
                Ok(pieces) => return Ok(pieces),
                Err(bad) => bad,
            };
            if bad == Bad::Hole {
                crate::mark!("hole read");
                return Err(ReadError::Stale);
            }
            // With fresh knowledge of its homes, damage everywhere is damage; silence may pass.
            if fresh && bad == Bad::Corrupt {
                crate::mark!("damage beyond redundancy");
                return Err(ReadError::Failed);
            }
            // CURT: who is told that a replica is not there any more asks nobody else (rule A5).
            if bad == Bad::Gone && crate::bug!(CURT) {
                return Err(ReadError::Failed);
            }
            if fresh && bad == Bad::Gone {
                return Err(ReadError::Stale);
            }
            if seam::now() >= until {
                return Err(ReadError::Failed);
            }
            if fresh {
                tokio::time::sleep(jitter(pause)).await;
                pause = (pause * 2).min(self.limits.retry_pause_max);
            }
            fresh = true;
        }
    }

    async fn info(&self, chunk: ChunkId, fresh: bool, until: Mono) -> Result<Arc<Info>, ReadError> {
        let known = locked(&self.chunks).get(&chunk).cloned();
        if let Some(info) = known
            && !fresh
            && !crate::fault!("client: homes of a chunk forgotten")
        {
            return Ok(info);
        }
        crate::mark!("homes of a chunk asked for again");
        let query = Query::Chunks(pb::ChunksQuery { chunks: vec![chunk.get()] });
        let left = seam::now().until(until);
        let answer = tokio::time::timeout(left, self.queries.ask(query)).await;
        match answer {
            Ok(Ok(answer)) => {
                let Some(Found::Chunks(found)) = &answer.result.result else {
                    return Err(ReadError::Stale);
                };
                locked(&self.chunks).remove(&chunk);
                self.learn(&found.chunks);
                if crate::bug!(OLDEST) {
                    return locked(&self.chunks).get(&chunk).cloned().ok_or(ReadError::Stale);
                }
                let mut read = found.chunks.iter().filter_map(Info::read);
                let this = read.find(|(found, _)| *found == chunk);
                this.map(|(_, info)| info).ok_or(ReadError::Stale)
            }
            Ok(Err(_)) | Err(_) => Err(ReadError::Failed),
        }
    }

    /// Blocks of a chunk of copies, from the first replica that gives them.
    async fn copy(&self, chunk: ChunkId, info: &Info, off: u64, len: u64) -> Result<Bytes, Bad> {
        let mut worst = Bad::Gone;
        for home in self.order(chunk, info) {
            match self.read(chunk, info.layout, home, off, len).await {
                Ok(data) => return Ok(data),
                Err(bad) => worst = worse(worst, bad),
            }
        }
        Err(if info.homes.is_empty() { Bad::Silent } else { worst })
    }

    /// Replicas in the order in which to ask them: those that answer first, and of these one that depends on
    /// the chunk, so that the load is spread.
    fn order<'a>(&self, chunk: ChunkId, info: &'a Info) -> Vec<&'a Home> {
        let now = seam::now();
        let mut slow = locked(&self.slow);
        slow.retain(|_, until| now < *until);
        let count = info.homes.len().max(1);
        let mut order: Vec<(bool, usize, &Home)> = info
            .homes
            .iter()
            .enumerate()
            .map(|(i, home)| {
                let last = slow.contains_key(&home.server) || info.dead.contains(&home.server);
                (last, (i + count - chunk.get() as usize % count) % count, home)
            })
            .collect();
        order.sort_by_key(|(last, turn, _)| (*last, *turn));
        if crate::fault!("client: copies asked in another order") {
            order.reverse();
        }
        order.into_iter().map(|(_, _, home)| home).collect()
    }

    /// Verified blocks of one replica.
    async fn read(
        &self,
        chunk: ChunkId,
        layout: Layout,
        home: &Home,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Bad> {
        let request = pb::ReadRequest { replica: Some(home.replica), offset, len };
        let deadline = self.limits.chunk_read_deadline;
        let pool = &self.masters.pool;
        let answer = pool.call::<calls::Read>(&home.address, &request, Vec::new(), deadline).await;
        let (reply, payload) = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(self.failed(chunk, home, &error)),
        };
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let shard = layout.crc_shard(home.replica.shard as usize);
        if reply.offset != offset || (payload.len() as u64) < len {
            tracing::warn!(%chunk, server = %home.server, length = reply.length, "a replica is short");
            self.report(chunk, home);
            return Err(Bad::Corrupt);
        }
        let data = payload.slice(..len as usize);
        if !verifies(chunk, shard, offset, &data, &reply.crcs) {
            if has_hole(chunk, shard, offset, &data, &reply.crcs) {
                return Err(Bad::Hole);
            }
            crate::mark!("reply of a chunkserver did not verify");
            tracing::warn!(%chunk, server = %home.server, offset, "a replica is corrupt");
            self.report(chunk, home);
            return Err(Bad::Corrupt);
        }
        Ok(data)
    }

    fn failed(&self, chunk: ChunkId, home: &Home, error: &CallError) -> Bad {
        tracing::debug!(%chunk, server = %home.server, %error, "a replica could not be read");
        let code = match error {
            CallError::Refused(refusal) => Some(refusal.code),
            _ => None,
        };
        match code {
            Some(RefusalCode::NoSuchReplica) => Bad::Gone,
            Some(RefusalCode::Corrupt) => {
                self.report(chunk, home);
                Bad::Corrupt
            }
            Some(RefusalCode::Busy) => Bad::Silent,
            _ => {
                crate::mark!("replica did not answer a read");
                let until = seam::now() + self.limits.server_suspect;
                locked(&self.slow).insert(home.server, until);
                Bad::Silent
            }
        }
    }

    /// Tells the masters of a damaged replica, so that it is verified and repaired.
    fn report(&self, chunk: ChunkId, home: &Home) {
        self.counts.corrupt.fetch_add(1, Ordering::Relaxed);
        let request = pb::ReportChunkRequest {
            session: 0,
            chunk: chunk.get(),
            bad: vec![named(home)],
            writing: false,
        };
        let masters = self.masters.clone();
        let until = seam::now() + Duration::from_secs(10);
        seam::spawn(async move {
            if let Err(error) = masters.call::<calls::ReportChunk>(&request, until).await {
                tracing::debug!(%error, "the masters did not hear of a corrupt replica");
            }
        });
    }

    // ---- k+m ----

    /// Blocks of a chunk of k+m shards: of each data shard the range that is needed, all at once.
    async fn striped(
        &self,
        chunk: ChunkId,
        info: &Info,
        low: u64,
        high: u64,
    ) -> Result<Vec<(u64, Bytes)>, Bad> {
        let mut wanted: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for piece in info.layout.pieces(low, high - low) {
            let range = wanted.entry(piece.shard).or_insert((piece.shard_off, 0));
            range.1 = piece.shard_off + piece.len;
        }
        let reads = wanted.iter().map(|(shard, (from, to))| async move {
            (*shard, self.shard(chunk, info, *shard, *from, to - from).await)
        });
        let mut shards = BTreeMap::new();
        for (shard, data) in join_all(reads).await {
            shards.insert(shard, data?);
        }
        let cut = |piece: crate::erasure::Piece| {
            let from = (piece.shard_off - wanted[&piece.shard].0) as usize;
            (piece.logical_off, shards[&piece.shard].slice(from..from + piece.len as usize))
        };
        Ok(info.layout.pieces(low, high - low).map(cut).collect())
    }

    /// A range of one data shard, read, or computed from k others.
    async fn shard(
        &self,
        chunk: ChunkId,
        info: &Info,
        shard: usize,
        off: u64,
        len: u64,
    ) -> Result<Bytes, Bad> {
        let mut worst = Bad::Gone;
        // Its own server, while it was not asked.
        let mut own = info.homes.iter().find(|home| home.replica.shard as usize == shard);
        if let Some(home) = own {
            let slow = locked(&self.slow).contains_key(&home.server);
            if !slow && !info.dead.contains(&home.server) {
                own = None;
                match self.read(chunk, info.layout, home, off, len).await {
                    Ok(data) => return Ok(data),
                    Err(bad) => worst = worse(worst, bad),
                }
            }
        }
        crate::mark!("degraded read");
        let k = info.layout.data();
        let mut sources: Vec<(usize, Bytes)> = Vec::new();
        let mut others = self.order(chunk, info).into_iter();
        while sources.len() < k {
            let next: Vec<&Home> = others
                .by_ref()
                .filter(|home| home.replica.shard as usize != shard)
                .take(k - sources.len())
                .collect();
            if next.is_empty() {
                return self.last_resort(chunk, info, own, worst, off, len).await;
            }
            let reads = next.iter().map(|home| async move {
                let data = self.read(chunk, info.layout, home, off, len).await;
                (home.replica.shard as usize, data)
            });
            for (other, data) in join_all(reads).await {
                match data {
                    Ok(data) => sources.push((other, data)),
                    Err(bad) => worst = worse(worst, bad),
                }
            }
        }
        self.counts.degraded.fetch_add(len, Ordering::Relaxed);
        rebuild(info.layout, &sources, shard, len as usize).ok_or(Bad::Corrupt)
    }

    /// Fewer than k others gave theirs: the shard's own server, if it was passed over because it seemed slow or away.
    async fn last_resort(
        &self,
        chunk: ChunkId,
        info: &Info,
        own: Option<&Home>,
        worst: Bad,
        off: u64,
        len: u64,
    ) -> Result<Bytes, Bad> {
        match own {
            // PROUD: where a shard is damaged, nobody else is asked.
            Some(home) if worst != Bad::Corrupt || !crate::bug!(PROUD) => {
                let data = self.read(chunk, info.layout, home, off, len).await;
                data.map_err(|bad| worse(worst, bad))
            }
            _ => Err(worst),
        }
    }
}

/// Ends a claim also when the reader is dropped, and tells who waits.
struct Claim<'a> {
    fetcher: &'a Fetcher,
    key: (ChunkId, u64),
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(under_way) = locked(&self.fetcher.under_way).remove(&self.key) {
            under_way.done.notify_waiters();
        }
    }
}

/// Which of two failures says more: a hole is certain, silence may pass, damage stays, and only if everybody
/// says that the replica is gone is it gone.
fn worse(a: Bad, b: Bad) -> Bad {
    match (a, b) {
        (Bad::Hole, _) | (_, Bad::Hole) => Bad::Hole,
        (Bad::Silent, _) | (_, Bad::Silent) => Bad::Silent,
        (Bad::Corrupt, _) | (_, Bad::Corrupt) => Bad::Corrupt,
        _ => Bad::Gone,
    }
}

fn verifies(chunk: ChunkId, shard: u8, offset: u64, data: &[u8], crcs: &[u32]) -> bool {
    // M23: what arrives is believed.
    if crate::bug!(M23) {
        return true;
    }
    let first = (offset / BLOCK) as u32;
    let blocks = data.len().div_ceil(BLOCK_BYTES);
    crcs.len() >= blocks
        && (first..)
            .zip(data.chunks(BLOCK_BYTES).zip(crcs))
            .all(|(block, (data, crc))| block_crc(chunk, shard, block, data) == *crc)
}

/// Whether one of the blocks was punched out of the replica.
fn has_hole(chunk: ChunkId, shard: u8, offset: u64, data: &[u8], crcs: &[u32]) -> bool {
    let first = (offset / BLOCK) as u32;
    let asked = crcs.iter().take(data.len().div_ceil(BLOCK_BYTES));
    (first..).zip(asked).any(|(block, crc)| hole_crc(chunk, shard, block) == *crc)
}

fn rebuild(layout: Layout, sources: &[(usize, Bytes)], target: usize, len: usize) -> Option<Bytes> {
    let (mut shards, data): (Vec<usize>, Vec<&[u8]>) =
        sources.iter().map(|(shard, data)| (*shard, &data[..])).unzip();
    // M28: shards are taken for one another.
    if crate::bug!(M28) {
        shards.rotate_left(1);
    }
    let combination = Codec::new(layout).combination(&shards, target).ok()?;
    let mut out = vec![0; len];
    combination.apply(&data, &mut out);
    Some(out.into())
}

/// What `data`, which begins at `at`, holds of `[from, to)`.
fn slice(at: u64, data: &Bytes, from: u64, to: u64) -> Option<Bytes> {
    let (a, b) = (at.max(from), (at + data.len() as u64).min(to));
    (a < b).then(|| data.slice((a - at) as usize..(b - at) as usize))
}

impl From<ReadError> for Errno {
    fn from(_: ReadError) -> Errno {
        Errno::EIO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_verify_only_where_they_belong() {
        let chunk = ChunkId(5);
        let data = vec![7u8; 2 * BLOCK_BYTES + 100];
        let crcs: Vec<u32> = (3..)
            .zip(data.chunks(BLOCK_BYTES))
            .map(|(block, data)| block_crc(chunk, 0, block, data))
            .collect();
        assert!(verifies(chunk, 0, 3 * BLOCK, &data, &crcs));
        assert!(!verifies(chunk, 0, 4 * BLOCK, &data, &crcs), "misdirected");
        assert!(!verifies(chunk, 1, 3 * BLOCK, &data, &crcs), "another shard");
        assert!(!verifies(ChunkId(6), 0, 3 * BLOCK, &data, &crcs), "another chunk");
        assert!(!verifies(chunk, 0, 3 * BLOCK, &data, &crcs[..2]), "a CRC is missing");
        let mut flipped = data.clone();
        flipped[BLOCK_BYTES + 1] ^= 1;
        assert!(!verifies(chunk, 0, 3 * BLOCK, &flipped, &crcs));
        let mut punched = crcs.clone();
        punched[1] = hole_crc(chunk, 0, 4);
        assert!(!verifies(chunk, 0, 3 * BLOCK, &data, &punched));
        assert!(has_hole(chunk, 0, 3 * BLOCK, &data, &punched));
        assert!(!has_hole(chunk, 0, 3 * BLOCK, &data[..BLOCK_BYTES], &punched), "not asked for");
        assert!(!has_hole(chunk, 0, 3 * BLOCK, &data, &crcs));
    }

    #[test]
    fn a_lost_shard_is_computed_from_any_k() {
        let layout = Layout::new(3, 2).unwrap();
        let cells: Vec<Vec<u8>> = (0..3u8).map(|i| vec![i * 31 + 1; 5000]).collect();
        let slices: Vec<&[u8]> = cells.iter().map(Vec::as_slice).collect();
        let parity = Codec::new(layout).encode(&slices);
        let all: Vec<Bytes> = cells.into_iter().chain(parity).map(Bytes::from).collect();
        let sources = [(4, all[4].clone()), (0, all[0].clone()), (3, all[3].clone())];
        assert_eq!(rebuild(layout, &sources, 1, 5000).unwrap(), all[1]);
        assert_eq!(rebuild(layout, &sources, 2, 5000).unwrap(), all[2]);
        assert!(rebuild(layout, &sources[..2], 1, 5000).is_none());
    }

    #[test]
    fn failures_are_weighed() {
        assert_eq!(worse(Bad::Gone, Bad::Gone), Bad::Gone);
        assert_eq!(worse(Bad::Corrupt, Bad::Gone), Bad::Corrupt);
        assert_eq!(worse(Bad::Corrupt, Bad::Silent), Bad::Silent);
        assert_eq!(worse(Bad::Silent, Bad::Hole), Bad::Hole);
    }
}
