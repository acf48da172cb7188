//! Chunkservers in this process, on real directories and loopback sockets.
#![expect(clippy::disallowed_methods, reason = "the tests make and remove directories")]

mod data;
mod hanging;
mod masters;
mod rebuilding;
mod speed;

use super::{Chunkserver, ChunkserverConfig};
use crate::checksum::block_crcs;
use crate::erasure::{Codec, Layout};
use crate::ids::{ChunkId, Generation};
use crate::limits::{BLOCK_BYTES, CELL_BYTES, Limits};
use crate::pb;
use crate::seam::real::RealDisk;
use crate::seam::{Disk, OpenMode, rng};
use crate::store::ReplicaId;
use crate::wire::{Call, CallError, Identity, Pool, RefusalCode, Role, calls};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u64 = BLOCK_BYTES as u64;
const SOON: Duration = Duration::from_secs(10);

/// A directory that goes with its owner.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        let name = format!("mooseng-chunkserver-{}", rng::random_uuid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        TempDir(path)
    }

    fn disk(&self, name: &str) -> Arc<dyn Disk> {
        RealDisk::create(self.0.join(name)).expect("a directory")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A chunkserver with its directory.
struct Node {
    dir: TempDir,
    disks: usize,
    server: Chunkserver,
    address: String,
}

fn config(masters: &[String]) -> ChunkserverConfig {
    let mut limits = Limits::production();
    limits.server_heartbeat = Duration::from_millis(50);
    limits.scrub_period = Duration::from_secs(1);
    limits.scrub_bytes_per_second = 1 << 30;
    limits.report_page = 3;
    limits.append_bytes_max = 2 << 20;
    ChunkserverConfig {
        listen: "127.0.0.1:0".into(),
        masters: masters.to_vec(),
        limits: Arc::new(limits),
        ..ChunkserverConfig::default()
    }
}

async fn start(dir: &TempDir, disks: usize, masters: &[String]) -> Chunkserver {
    let disks = (0..disks).map(|disk| dir.disk(&format!("disk{disk}"))).collect();
    Chunkserver::start(config(masters), disks).await.expect("starts")
}

impl Node {
    async fn new(disks: usize) -> Node {
        Node::with_masters(disks, &[]).await
    }

    async fn with_masters(disks: usize, masters: &[String]) -> Node {
        let dir = TempDir::new();
        let server = start(&dir, disks, masters).await;
        let address = server.local_addr().to_string();
        Node { dir, disks, server, address }
    }

    /// Stops it and starts it again on the same disks, at another port.
    async fn restarted(self) -> Node {
        let Node { dir, disks, server, .. } = self;
        server.stop().await;
        let server = start(&dir, disks, &[]).await;
        let address = server.local_addr().to_string();
        Node { dir, disks, server, address }
    }

    /// Changes a byte of a replica's file behind the server's back.
    fn rot(&self, id: ReplicaId, offset: u64) {
        let (chunk, generation) = (id.chunk.0, id.generation.0);
        let name = format!("{chunk:016x}-{generation:x}-{}-{}.dat", id.shard, id.data_shards);
        let path = format!("chunks/{:02x}/{name}", chunk & 0xff);
        let file = (0..self.disks)
            .find_map(|disk| {
                self.dir.disk(&format!("disk{disk}")).open(&path, OpenMode::Write).ok()
            })
            .expect("some disk has it");
        let table = (id.len_max() / 1024).next_multiple_of(BLOCK);
        let at = 4096 + table + offset;
        let mut byte = [0];
        file.read_exact_at(at, &mut byte).expect("readable");
        file.write_at(at, &[byte[0] ^ 0x55]).expect("writable");
    }
}

fn pool() -> Arc<Pool> {
    let identity = Identity { cluster: None, role: Role::Client, node: 1, incarnation: 1 };
    Pool::new(identity, Arc::new(Limits::production()))
}

async fn call<C: Call>(
    pool: &Arc<Pool>,
    address: &str,
    request: C::Request,
    payload: Bytes,
) -> Result<(C::Reply, Bytes), RefusalCode> {
    let payload = if payload.is_empty() { vec![] } else { vec![payload] };
    match pool.call::<C>(address, &request, payload, SOON).await {
        Ok(answer) => Ok(answer),
        Err(CallError::Refused(refusal)) => Err(refusal.code),
        Err(error) => panic!("{}: {error}", C::NAME),
    }
}

fn copy_id(chunk: u64) -> ReplicaId {
    ReplicaId { chunk: ChunkId(chunk), generation: Generation(3), shard: 0, data_shards: 1 }
}

/// Bytes that differ from place to place and from chunk to chunk.
fn fill(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..len).map(|_| step()).collect()
}

async fn append(
    pool: &Arc<Pool>,
    address: &str,
    id: ReplicaId,
    offset: u64,
    data: &[u8],
    sync: bool,
) -> Result<pb::AppendReply, RefusalCode> {
    let crcs = block_crcs(id.chunk, id.crc_shard(), (offset / BLOCK) as u32, data);
    let replica = Some(id.to_pb());
    let create = offset == 0;
    let request = pb::AppendRequest { replica, offset, crcs, create, sync, ..Default::default() };
    let payload = Bytes::copy_from_slice(data);
    call::<calls::Append>(pool, address, request, payload).await.map(|(reply, _)| reply)
}

async fn read(
    pool: &Arc<Pool>,
    address: &str,
    id: ReplicaId,
    offset: u64,
    len: u64,
) -> Result<(pb::ReadReply, Bytes), RefusalCode> {
    let request = pb::ReadRequest { replica: Some(id.to_pb()), offset, len };
    call::<calls::Read>(pool, address, request, Bytes::new()).await
}

/// Reads a whole replica and checks its CRCs and bytes.
async fn check(pool: &Arc<Pool>, address: &str, id: ReplicaId, expected: &[u8]) {
    for (piece, at) in expected.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
        let (reply, data) =
            read(pool, address, id, at, piece.len() as u64).await.expect("readable");
        assert_eq!(reply.offset, at);
        assert!(data[..piece.len()] == *piece, "{id} at {at}");
        let first = (at / BLOCK) as u32;
        assert_eq!(reply.crcs, block_crcs(id.chunk, id.crc_shard(), first, &data), "{id} at {at}");
    }
}

async fn seal(
    pool: &Arc<Pool>,
    address: &str,
    id: ReplicaId,
    length: u64,
    term: u64,
) -> Result<u64, RefusalCode> {
    let request = pb::SealRequest { replica: Some(id.to_pb()), length, term };
    call::<calls::Seal>(pool, address, request, Bytes::new()).await.map(|(reply, _)| reply.length)
}

async fn stat(pool: &Arc<Pool>, address: &str, id: ReplicaId, verify: bool) -> pb::ReplicaState {
    let request = pb::StatRequest { replicas: vec![id.to_pb()], verify };
    let (reply, _) =
        call::<calls::Stat>(pool, address, request, Bytes::new()).await.expect("answered");
    reply.states[0]
}

/// The shards of a chunk's bytes, whole stripes.
fn shards_of(layout: Layout, logical: &[u8]) -> Vec<Vec<u8>> {
    let length = layout.shard_len(logical.len() as u64) as usize;
    let mut shards = vec![vec![0; length]; layout.data()];
    for piece in layout.pieces(0, logical.len() as u64) {
        let (to, from) = (piece.shard_off as usize, piece.logical_off as usize);
        shards[piece.shard][to..][..piece.len as usize]
            .copy_from_slice(&logical[from..][..piece.len as usize]);
    }
    let cells: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
    let parity = Codec::new(layout).encode(&cells);
    shards.extend(parity);
    shards
}

/// Puts a whole replica on a server and seals it.
async fn place(pool: &Arc<Pool>, node: &Node, id: ReplicaId, data: &[u8]) {
    for (piece, at) in data.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
        append(pool, &node.address, id, at, piece, false).await.expect("appended");
    }
    let length = (data.len() as u64).next_multiple_of(BLOCK);
    assert_eq!(seal(pool, &node.address, id, length, 5).await, Ok(length));
}
