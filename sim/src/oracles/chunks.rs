//! O6: once everything has converged, the bytes of every chunk are where the masters say, read from the disks
//! themselves by what DISK_FORMAT.md says.
//!
//! - Enough shards: every shard of the layout is on the disk of an active server, at least up to the committed
//!   length, and every block up to there matches its CRC; shards of sealed chunks end there and are marked.
//! - Copies are equal up to the committed length; parity is what encoding the data shards again gives.
//! - What files refer to lies within committed lengths.
//! - No copy that a repair began is left over.
//! - What is committed as a hole may be one, or not yet; nothing else may. Garbage is bounded: what is worth
//!   punching is punched, and every server has heard of it. What was given up is gone (`garbage`).
//!
//! A scrub may need its period to find rot, so bad shards must be put right within a minute; fewer good shards
//! than needed to read are a violation at once.
//!
//! Not checked: whether the bytes are those that were written (O2); the erasure code itself, whose encoder is
//! used here too.

use crate::cluster::full::Cluster;
use crate::cluster::is_chunkserver;
use crate::disk::SimDisk;
use crate::failure::{stuck, violation};
use crate::oracles::garbage::{self, Disks};
use crate::stats;
use crate::world::{Role, World};
use mooseng::checksum::block_crc;
use mooseng::codec;
use mooseng::erasure::{Codec, Layout};
use mooseng::ids::{ChunkId, InodeId, ServerId};
use mooseng::namespace::tables::{
    Chunks, Extents, Garbage, Holes, PendingReplicas, Punching, Servers,
};
use mooseng::pb::{self, ChunkState, Hole, ServerState, extent::Source};
use mooseng::raft::RaftNode;
use mooseng::tables::Read;
use prost::Message;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

const BLOCK: usize = 4096;
const CELL: usize = 64 << 10;
const CHUNK_MAX: usize = 64 << 20;
const HEADER: usize = 4096;
/// Rounds of a second in which bad shards must be put right.
const ROUNDS: usize = 60;

/// Garbage in one chunk that may stay, whatever limits the run has.
const GARBAGE_MAX: u64 = 1 << 20;

/// Why a chunk is not as it must be.
enum Broken {
    /// It can not be read any more, or it lies: never.
    Lost(String),
    /// It is short of shards: not for long.
    Weak(String),
}

/// Checks until all chunks are whole.
pub async fn check(world: &World, cluster: &Cluster) {
    let mut why = String::new();
    for _ in 0..ROUNDS {
        if let Some(leader) = cluster.leader(world) {
            match look(world, &leader) {
                Ok(()) => return,
                Err(Broken::Lost(why)) => violation("O6", why),
                Err(Broken::Weak(weak)) => why = weak,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stuck("O6", format!("not whole {ROUNDS} s after converging: {why}"));
}

/// What is wrong with chunks now, for the message of another oracle.
pub fn diagnosis(world: &World, cluster: &Cluster) -> String {
    match cluster.leader(world).map(|leader| look(world, &leader)) {
        None => "no leader".to_owned(),
        Some(Ok(())) => "all chunks are whole".to_owned(),
        Some(Err(Broken::Lost(why) | Broken::Weak(why))) => why,
    }
}

fn look(world: &World, leader: &RaftNode) -> Result<(), Broken> {
    let view = leader.view();
    let servers = disks(world, &view, |_| true);
    let able = disks(world, &view, |name| !world.has_failing_disk(name));
    let mut lengths = BTreeMap::new();
    let (mut chunks, mut striped) = (0, 0);
    for row in view.range::<Chunks>(&ChunkId(0), None) {
        let (id, chunk) = row.expect("tables");
        lengths.insert(id.0, chunk.committed_len);
        if chunk.state() != ChunkState::Deleting && chunk.committed_len > 0 {
            let holes = view.get::<Holes>(&id).expect("tables").unwrap_or_default();
            one(&chunk, &holes.holes, &servers)?;
            chunks += 1;
            striped += u64::from(chunk.layout.is_some_and(|layout| layout.data > 1));
        }
    }
    wasted(&view)?;
    garbage::look(&view, &able).map_err(Broken::Weak)?;
    for row in view.range::<Extents>(&(InodeId(0), 0), None) {
        let ((inode, at), extent) = row.expect("tables");
        let Some(Source::Chunk(range)) = &extent.source else { continue };
        let end = range.off + extent.len;
        if lengths.get(&range.chunk).is_none_or(|committed| end > *committed) {
            let what = format!("{inode} at {at} refers to chunk {} up to {end}", range.chunk);
            return Err(Broken::Lost(what));
        }
    }
    let unfinished = view.range::<PendingReplicas>(&Default::default(), None).count();
    if unfinished > 0 {
        return Err(Broken::Weak(format!("{unfinished} copies that repairs began are left over")));
    }
    stats::add("O6 chunks checked", chunks);
    stats::add("O6 chunks of k+m checked", striped);
    Ok(())
}

/// Garbage that should have been given back by now.
fn wasted(view: &impl Read) -> Result<(), Broken> {
    if let Some(row) = view.range::<Punching>(&ChunkId(0), None).next() {
        let (id, _) = row.expect("tables");
        return Err(Broken::Weak(format!("a server of chunk {id} has not heard of its holes")));
    }
    for row in view.range::<Garbage>(&ChunkId(0), None) {
        let (id, row) = row.expect("tables");
        let chunk = view.get::<Chunks>(&id).expect("tables").unwrap_or_default();
        if chunk.state() == ChunkState::Sealed && row.bytes >= GARBAGE_MAX {
            return Err(Broken::Weak(format!("{} bytes of garbage in chunk {id}", row.bytes)));
        }
    }
    Ok(())
}

/// The disks of those active servers that are `wanted` by name.
fn disks(world: &World, view: &impl Read, wanted: impl Fn(&str) -> bool) -> Disks {
    let machines = world.names(Role::Chunkserver);
    let rows = view.range::<Servers>(&ServerId(0), None).map(|row| row.expect("tables").1);
    let active = rows.filter(|row| row.state() == ServerState::Active);
    let of = |row: pb::ServerRow| {
        let name = machines.iter().find(|name| {
            let number = name.trim_start_matches('s').parse().expect("s1, s2, ...");
            is_chunkserver(&row.address, number)
        })?;
        wanted(name).then(|| (row.id, world.disks(name)[0].clone()))
    };
    active.filter_map(of).collect()
}

/// The length at rest of each shard.
fn shard_len(k: usize, logical: usize) -> usize {
    match k {
        1 => logical.next_multiple_of(BLOCK),
        k => logical.div_ceil(k * CELL) * CELL,
    }
}

/// Where in each shard its holes are.
fn in_shard(k: usize, hole: &Hole) -> Range<usize> {
    let stripe = if k == 1 { 1 } else { k * CELL };
    let cell = if k == 1 { 1 } else { CELL };
    hole.from as usize / stripe * cell..hole.end as usize / stripe * cell
}

fn one(chunk: &pb::Chunk, holes: &[Hole], disks: &Disks) -> Result<(), Broken> {
    let layout = chunk.layout.unwrap_or_default();
    let (k, m) = (layout.data as usize, layout.parity as usize);
    let len = shard_len(k, chunk.committed_len as usize);
    let holes: Vec<Range<usize>> = holes.iter().map(|hole| in_shard(k, hole)).collect();
    let mut shards: Vec<Option<Vec<u8>>> = vec![None; k + m];
    let mut bad = Vec::new();
    for replica in &chunk.replicas {
        let at = replica.shard as usize;
        let found = disks.get(&replica.server).ok_or("its server is not active".to_owned());
        // A write that marks a replica as sealed may be one of those that went elsewhere.
        let astray = found.as_ref().is_ok_and(|disk| disk.counters().misdirected > 0);
        match found.and_then(|disk| shard(disk, chunk, replica, (len, &holes))) {
            Ok(found) => {
                shards[at] = Some(found.bytes);
                // A sealed one ends where it was committed, once its server has heard of it.
                let told = found.sealed && found.surplus == 0;
                if !told && !astray && chunk.state() == ChunkState::Sealed {
                    let (server, surplus) = (replica.server, found.surplus);
                    let sealed = if found.sealed { "sealed" } else { "not sealed" };
                    bad.push(format!(
                        "shard {at} on server {server}: {sealed}, {surplus} bytes more"
                    ));
                }
            }
            Err(why) => bad.push(format!("shard {at} on server {}: {why}", replica.server)),
        }
    }
    let good = shards.iter().flatten().count();
    let what = format!("chunk {} ({k}+{m}, {len} bytes a shard): {}", chunk.id, bad.join("; "));
    if good < k {
        return Err(Broken::Lost(format!("{good} good shards of {what}")));
    }
    agree(chunk, &shards, k, m)?;
    if good < k + m || !bad.is_empty() {
        return Err(Broken::Weak(format!("{good} good shards of {what}")));
    }
    Ok(())
}

/// A shard as a disk has it.
struct Found {
    /// Up to the committed length; zeros for holes.
    bytes: Vec<u8>,
    /// So many more are there.
    surplus: usize,
    /// Marked as sealed.
    sealed: bool,
}

/// Whether a copy of the header says that the replica is sealed.
fn is_sealed(file: &[u8]) -> bool {
    let copies = [0, HEADER / 2].map(|at| file.get(at..).unwrap_or_default());
    copies.iter().any(|copy| {
        let body = codec::decode_record(codec::kind::REPLICA_HEADER, copy).map(|(body, _)| body);
        let header = body.ok().and_then(|body| pb::ReplicaHeader::decode(body).ok());
        header.is_some_and(|header| header.sealed)
    })
}

/// The shard from the disk, if every block is what its CRC says.
fn shard(
    disk: &SimDisk,
    chunk: &pb::Chunk,
    replica: &pb::Replica,
    (len, holes): (usize, &[Range<usize>]),
) -> Result<Found, String> {
    let k = chunk.layout.unwrap_or_default().data as usize;
    let file = disk.written(&garbage::path(chunk, replica)).ok_or("no such file")?;
    let table = (shard_len(k, CHUNK_MAX) / BLOCK * 4).next_multiple_of(BLOCK);
    let data = file.get(HEADER + table..HEADER + table + len);
    let data = data.ok_or_else(|| format!("the file has {} bytes", file.len()))?;
    let seed = if k == 1 { 0 } else { replica.shard as u8 };
    let mut bytes = data.to_vec();
    for (index, block) in data.chunks(BLOCK).enumerate() {
        if holes.iter().any(|hole| hole.contains(&(index * BLOCK))) {
            bytes[index * BLOCK..][..block.len()].fill(0);
            continue;
        }
        let at = HEADER + index * 4;
        let crc = u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
        if block_crc(ChunkId(chunk.id), seed, index as u32, block) != crc {
            return Err(format!("block {index} does not match its CRC"));
        }
    }
    let surplus = file.len() - HEADER - table - len;
    Ok(Found { bytes, surplus, sealed: is_sealed(&file) })
}

fn agree(chunk: &pb::Chunk, shards: &[Option<Vec<u8>>], k: usize, m: usize) -> Result<(), Broken> {
    let lies = |why: &str| Err(Broken::Lost(format!("chunk {}: {why}", chunk.id)));
    if k == 1 {
        let upto = chunk.committed_len as usize;
        let mut copies = shards.iter().flatten().map(|bytes| &bytes[..upto]);
        let first = copies.next().expect("one is good");
        return if copies.all(|copy| copy == first) { Ok(()) } else { lies("copies differ") };
    }
    let Some(data) = shards[..k].iter().map(Option::as_deref).collect::<Option<Vec<&[u8]>>>()
    else {
        return Ok(());
    };
    let layout = Layout::new(k as u32, m as u32).expect("a layout of the cluster");
    let parity = Codec::new(layout).encode(&data);
    let right = shards[k..].iter().zip(&parity).all(|(s, p)| s.as_ref().is_none_or(|s| s == p));
    if right { Ok(()) } else { lies("its parity is not that of its data") }
}
