//! Makes a shard from others: a copy where shards are copies, else a combination of any `k`. Every block that
//! was read is checked before it is used, and every block that was written before it counts (rule A7). Works
//! through the shard in pieces, so that memory is bounded whatever the layout.

use super::handler::replica;
use super::{Shared, add};
use crate::checksum::{Block, judge};
use crate::erasure::{Codec, Combination, Layout};
use crate::limits::BLOCK_BYTES;
use crate::pb;
use crate::seam::{self, Mono};
use crate::store::{Build, ReplicaId, StoreError};
use crate::wire::{CallError, Refusal, RefusalCode, calls};
use crate::{bug, mark};
use bytes::Bytes;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of all sources together that a rebuild holds at a time.
const SOURCES_BYTES_MAX: usize = 16 << 20;

/// Why a source is not used any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Not reached in time.
    Silent,
    /// Gone, short, or with bytes that do not match their CRCs.
    Corrupt,
}

struct Source {
    id: ReplicaId,
    address: String,
    fault: Option<Fault>,
}

struct Rebuild<'a> {
    shared: &'a Shared,
    layout: Layout,
    target: ReplicaId,
    length: u64,
    deadline: Mono,
    sources: Vec<Source>,
    codec: Codec,
}

/// Carries out a master's command. A length of 0 with corrupt sources named says that they were too many.
pub(super) async fn rebuild(
    shared: &Arc<Shared>,
    request: pb::RebuildRequest,
    deadline: Mono,
) -> Result<pb::RebuildReply, Refusal> {
    let mut work = check(shared, &request, deadline)?;
    if work.is_done().await {
        mark!("chunkserver: rebuild was done already");
        return Ok(pb::RebuildReply { length: work.length, corrupt: Vec::new() });
    }
    let Ok(_permit) = shared.rebuilds.try_acquire() else {
        return Err(Refusal::new(RefusalCode::Busy, "rebuilds enough are under way"));
    };
    let built = work.run().await;
    let corrupt: Vec<pb::ReplicaId> = work
        .sources
        .iter()
        .filter(|source| source.fault == Some(Fault::Corrupt))
        .map(|source| source.id.to_pb())
        .collect();
    match built {
        Ok(length) => {
            add(&shared.counters.rebuilds, 1);
            Ok(pb::RebuildReply { length, corrupt })
        }
        Err(_) if !corrupt.is_empty() => Ok(pb::RebuildReply { length: 0, corrupt }),
        Err(refusal) => Err(refusal),
    }
}

fn check<'a>(
    shared: &'a Shared,
    request: &pb::RebuildRequest,
    deadline: Mono,
) -> Result<Rebuild<'a>, Refusal> {
    let bad = |what: &str| Refusal::new(RefusalCode::BadRequest, format!("rebuild: {what}"));
    let target = replica(request.target.as_ref())?;
    let layout = Layout::try_from(&request.layout.unwrap_or_default())
        .map_err(|error| bad(&error.to_string()))?;
    let fits = |id: ReplicaId| {
        usize::from(id.data_shards) == layout.data() && usize::from(id.shard) < layout.shards()
    };
    let length = layout.shard_len(request.sealed_len.min(crate::limits::CHUNK_BYTES_MAX as u64));
    if !fits(target) || length > target.len_max() || request.sealed_len > u64::MAX / 2 {
        return Err(bad("the target is no shard of this layout"));
    }
    let mut sources: BTreeMap<(u8, u64), Source> = BTreeMap::new();
    for source in &request.sources {
        let id = replica(source.replica.as_ref())?;
        if id.chunk != target.chunk || !fits(id) {
            return Err(bad("a source is no shard of the target's chunk"));
        }
        let source = Source { id, address: source.address.clone(), fault: None };
        sources.insert((id.shard, id.generation.0), source);
    }
    Ok(Rebuild {
        shared,
        layout,
        target,
        length,
        deadline,
        sources: sources.into_values().collect(),
        codec: Codec::new(layout),
    })
}

/// A piece of a source: its bytes, and which of its blocks are holes.
#[derive(Clone)]
struct Piece {
    data: Bytes,
    holes: Vec<bool>,
}

/// The sources in use, and how the target follows from them.
struct Chosen {
    sources: Vec<usize>,
    combination: Combination,
}

impl Rebuild<'_> {
    /// A command that is repeated finds its work done: the very replica is there, whole and good.
    async fn is_done(&self) -> bool {
        let (id, length) = (self.target, self.length);
        let Some(writer) = self.shared.writer_of(id) else { return false };
        let status = writer.store().status(id);
        if !status.is_some_and(|s| s.sealed && s.length == length && !s.corrupt) {
            return false;
        }
        writer.verify(id).await.is_ok_and(|bad| bad.is_empty())
    }

    async fn run(&mut self) -> Result<u64, Refusal> {
        let store = match self.shared.writer_of(self.target) {
            Some(writer) => writer.store().clone(),
            None => {
                let disk = self.shared.disk_with_room(self.length)?;
                self.shared.writers[disk].store().clone()
            }
        };
        let (target, length) = (self.target, self.length);
        let begun: Result<Build, StoreError> =
            seam::blocking(move || store.build(target, length)).await;
        let mut build = begun?;
        let mut chosen = self.choose()?;
        let mut at = 0;
        let mut next = self.fetch(&mut chosen, at).await?;
        while at < self.length {
            let pieces = std::mem::take(&mut next);
            let after = at + pieces.first().map_or(0, |piece| piece.data.len() as u64);
            // The next piece is fetched while this one is written.
            let combine = chosen.combination.clone();
            let writing = seam::blocking(move || write(build, &combine, &pieces));
            let (written, fetched) = tokio::join!(writing, self.fetch(&mut chosen, after));
            build = written?;
            next = fetched?;
            at = after;
        }
        Ok(seam::blocking(move || build.finish()).await?)
    }

    fn piece_bytes(&self, at: u64) -> usize {
        let share =
            (SOURCES_BYTES_MAX / self.layout.data() / BLOCK_BYTES * BLOCK_BYTES).max(BLOCK_BYTES);
        let most = self.shared.limits.rebuild_piece_bytes.min(share) as u64;
        (self.length - at).min(most) as usize
    }

    /// `k` different shards that are not known to be unusable.
    fn choose(&self) -> Result<Chosen, Refusal> {
        let mut by_shard: BTreeMap<u8, usize> = BTreeMap::new();
        for (index, source) in self.sources.iter().enumerate() {
            let shard = if self.layout.is_copies() { index as u8 } else { source.id.shard };
            if source.fault.is_none() {
                by_shard.entry(shard).or_insert(index);
            }
        }
        let k = self.layout.data();
        let sources: Vec<usize> = by_shard.values().copied().take(k).collect();
        if sources.len() < k {
            let what = format!("only {} of {k} sources are usable", sources.len());
            return Err(Refusal::new(RefusalCode::Corrupt, what));
        }
        let shards: Vec<usize> =
            sources.iter().map(|index| usize::from(self.sources[*index].id.shard)).collect();
        let combination = self
            .codec
            .combination(&shards, self.target.shard.into())
            .map_err(|error| Refusal::new(RefusalCode::Internal, error.to_string()))?;
        Ok(Chosen { sources, combination })
    }

    /// The same piece of each chosen source, verified. A source that fails is replaced by another for this and
    /// all further pieces.
    async fn fetch(&mut self, chosen: &mut Chosen, at: u64) -> Result<Vec<Piece>, Refusal> {
        let len = self.piece_bytes(at);
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut have: BTreeMap<usize, Piece> = BTreeMap::new();
        loop {
            let missing = chosen.sources.iter().filter(|index| !have.contains_key(index));
            let missing: Vec<usize> = missing.copied().collect();
            let fetched = join_all(missing.iter().map(|index| self.read(*index, at, len))).await;
            let mut whole = true;
            for (index, piece) in missing.into_iter().zip(fetched) {
                match piece {
                    Ok(piece) => drop(have.insert(index, piece)),
                    Err(fault) => {
                        self.sources[index].fault = Some(fault);
                        whole = false;
                    }
                }
            }
            if whole {
                return Ok(chosen.sources.iter().map(|index| have[index].clone()).collect());
            }
            mark!("chunkserver: source of a rebuild replaced");
            *chosen = self.choose()?;
        }
    }

    async fn read(&self, index: usize, at: u64, len: usize) -> Result<Piece, Fault> {
        let Source { id, address, .. } = &self.sources[index];
        let left = seam::now().until(self.deadline);
        let deadline =
            self.shared.limits.chunk_read_deadline.min(left).max(Duration::from_millis(1));
        let request = pb::ReadRequest { replica: Some(id.to_pb()), offset: at, len: len as u64 };
        let answer =
            self.shared.pool.call::<calls::Read>(address, &request, vec![], deadline).await;
        let (reply, data) = answer.map_err(|error| {
            tracing::warn!(%error, source = %id, address, "source of a rebuild not readable");
            match error {
                CallError::Refused(refusal)
                    if matches!(
                        refusal.code,
                        RefusalCode::NoSuchReplica | RefusalCode::Corrupt
                    ) =>
                {
                    Fault::Corrupt
                }
                _ => Fault::Silent,
            }
        })?;
        // M31: a corrupt source is copied.
        if bug!(M31) && data.len() == len {
            return Ok(Piece { data, holes: Vec::new() });
        }
        let whole = reply.offset == at && data.len() == len;
        let holes = if whole { verified(*id, at, &data, &reply.crcs) } else { None };
        let Some(holes) = holes else {
            mark!("chunkserver: corrupt source of a rebuild");
            tracing::warn!(source = %id, address, at, "source of a rebuild is corrupt");
            return Err(Fault::Corrupt);
        };
        Ok(Piece { data, holes })
    }
}

/// Which of the blocks are holes; `None` if one is neither a hole nor what its CRC says.
fn verified(id: ReplicaId, at: u64, data: &[u8], crcs: &[u32]) -> Option<Vec<bool>> {
    let first = (at / BLOCK_BYTES as u64) as u32;
    let shard = id.crc_shard();
    if crcs.len() != data.len().div_ceil(BLOCK_BYTES) {
        return None;
    }
    let hole = |((block, crc), index): ((&[u8], &u32), u32)| match judge(
        id.chunk, shard, index, block, *crc,
    ) {
        Block::Good => Some(false),
        Block::Hole => Some(true),
        Block::Bad => None,
    };
    data.chunks(BLOCK_BYTES).zip(crcs).zip(first..).map(hole).collect()
}

/// Adds what follows from the pieces. What is a hole in one of them is one in all (rule A6: holes are whole
/// stripes, committed before they are punched); a source that has not heard of it yet knows less.
fn write(
    mut build: Build,
    combination: &Combination,
    pieces: &[Piece],
) -> Result<Build, StoreError> {
    let sources: Vec<&[u8]> = pieces.iter().map(|piece| &piece.data[..]).collect();
    let mut out = vec![0; sources[0].len()];
    combination.apply(&sources, &mut out);
    let hole = |block| pieces.iter().any(|piece| piece.holes.get(block) == Some(&true));
    let holes: Vec<bool> = (0..out.len() / BLOCK_BYTES).map(hole).collect();
    crate::maybe!(holes.contains(&true), "chunkserver: rebuild kept holes");
    build.write(&out, &holes)?;
    Ok(build)
}
