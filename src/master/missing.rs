//! Looks for replicas that their servers did not name in a full report: a bounded number of rows a round, as a
//! server may hold millions and the master has one thread. A server is asked for what it did not name before that
//! counts as gone: it may have come after the page on which it would stand.

use super::Shared;
use super::repair;
use super::soft::{Named, Whole};
use crate::ids::{ChunkId, ServerId};
use crate::namespace::tables::{Chunks, ServerChunks};
use crate::pb;
use crate::seam;
use crate::tables::{Read, TableError};
use crate::wire::calls;
use std::sync::Arc;
use std::time::Duration;

/// Rows compared in one round: some ten milliseconds.
const ROWS: usize = 1024;
/// Within which a server says which of them it has.
const DEADLINE: Duration = Duration::from_secs(5);

/// Compares a part of one report with what the chunks say.
pub(super) fn round(shared: &Arc<Shared>) -> Result<(), TableError> {
    let Some((server, whole)) = shared.soft().reports.next_compared() else { return Ok(()) };
    let view = shared.raft.view();
    let (from, end) = ((server, whole.next), (ServerId(server.get() + 1), ChunkId(0)));
    let (mut rows, mut next, mut lacking) = (0, whole.next, Vec::new());
    for row in view.range::<ServerChunks>(&from, Some(&end)).take(ROWS) {
        let ((_, id), _) = row?;
        (rows, next) = (rows + 1, ChunkId(id.get() + 1));
        if let Some(chunk) = view.get::<Chunks>(&id)? {
            lacking.extend(lacks(&chunk, server, &whole.named));
        }
    }
    let named = whole.named.clone();
    let then = (rows == ROWS).then(|| Whole { next, ..whole.clone() });
    if lacking.is_empty() {
        shared.soft().reports.compared(server, then, &named);
        return Ok(());
    }
    let asking = Whole { asking: true, ..whole.clone() };
    shared.soft().reports.compared(server, Some(asking), &named);
    let shared = shared.clone();
    seam::spawn(async move {
        let then = match ask(&shared, server, lacking).await {
            true => then,
            // The same again.
            false => Some(whole),
        };
        shared.soft().reports.compared(server, then, &named);
    });
    Ok(())
}

/// Replicas that a sealed chunk has on this server and that it did not name.
fn lacks(chunk: &pb::Chunk, server: ServerId, named: &Named) -> Vec<pb::ReplicaId> {
    if chunk.state() != pb::ChunkState::Sealed || repair::shard_len(chunk, 0) == 0 {
        return Vec::new();
    }
    let here = chunk.replicas.iter().filter(|r| r.server == server.get());
    let missing = here.filter(|r| !named.contains(&(chunk.id, r.r#gen, r.shard)));
    missing.map(|replica| repair::replica_id(chunk, replica)).collect()
}

/// Whether the server said which of these it has; those that it has not are bad.
async fn ask(shared: &Arc<Shared>, server: ServerId, replicas: Vec<pb::ReplicaId>) -> bool {
    let Some(address) = repair::address(shared, server) else { return true };
    let request = pb::StatRequest { replicas, verify: false };
    let reply = shared.pool.call::<calls::Stat>(&address, &request, vec![], DEADLINE).await;
    let Ok((reply, _)) = reply else { return false };
    for state in reply.states.iter().filter(|state| !state.present) {
        if let Some(id) = &state.replica {
            crate::mark!("replica missing from a full report");
            repair::found_bad(shared, id);
        }
    }
    true
}
