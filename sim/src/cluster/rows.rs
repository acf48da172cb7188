//! What the leader's tables say of chunkservers and chunks.

use super::full::Cluster;
use super::is_chunkserver;
use crate::failure::violation;
use crate::oracles::liveness::{CONVERGED, within};
use crate::trace;
use crate::world::World;
use mooseng::ids::{ChunkId, ServerId};
use mooseng::namespace::tables::{Chunks, Servers};
use mooseng::pb::{Chunk, ServerState};
use mooseng::tables::Read;
use std::collections::BTreeMap;

impl Cluster {
    /// The tables of the master that leads.
    pub fn leader_view(&self, world: &World) -> Result<impl Read + use<>, String> {
        Ok(self.leader(world).ok_or("no leader")?.view())
    }

    /// The same where there must be one.
    pub fn calm_view(&self, world: &World) -> impl Read + use<> {
        self.leader_view(world).unwrap_or_else(|why| violation("O7", why))
    }

    /// Waits until this server is declared dead, and no chunk counts on it any more.
    pub async fn repaired(&self, world: &World, server: ServerId) {
        within("ms until repaired", 2 * CONVERGED, trace::now_ns(), || {
            let view = self.leader_view(world)?;
            let row = view.get::<Servers>(&server).expect("tables").unwrap_or_default();
            let mut chunks = view.range::<Chunks>(&ChunkId(0), None).flatten();
            let left = chunks.any(|(_, chunk)| homes(&chunk).any(|home| home == server));
            match row.state() == ServerState::Dead && !left {
                true => Ok(()),
                false => Err(format!("{server} is {:?}, chunks count on it: {left}", row.state())),
            }
        })
        .await;
    }
}

/// The servers of a chunk.
pub fn homes(chunk: &Chunk) -> impl Iterator<Item = ServerId> {
    chunk.replicas.iter().map(|replica| ServerId(replica.server))
}

/// The chunks with data, and the servers of each.
pub fn chunks_with_data(view: &impl Read) -> BTreeMap<ChunkId, Vec<ServerId>> {
    let chunks = view.range::<Chunks>(&ChunkId(0), None).flatten();
    let used = chunks.filter(|(_, chunk)| chunk.committed_len > 0);
    used.map(|(id, chunk)| (id, homes(&chunk).collect())).collect()
}

/// The name of the machine that is this server.
pub fn machine(world: &World, view: &impl Read, server: ServerId) -> String {
    let row = view.get::<Servers>(&server).expect("tables").expect("its row");
    let number =
        (1..=world.options.chunkservers).find(|number| is_chunkserver(&row.address, *number));
    format!("s{}", number.expect("one of the servers"))
}
