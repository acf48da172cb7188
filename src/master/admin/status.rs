//! What the cluster looks like.

use super::super::{Shared, servers};
use super::Failure;
use super::ops::point;
use crate::ids::{ChunkId, ServerId, SessionId};
use crate::namespace::tables::{Chunks, Counters, Deleting, Sessions};
use crate::pb;
use crate::placement::ServerView;
use crate::tables::{Read, Table, TableError, View};
use std::collections::{BTreeMap, BTreeSet};

/// Rows looked at between two chances for other tasks.
const ROWS_AT_ONCE: usize = 1024;

/// By the leader. Looks at every chunk: meant for people and for checks every few seconds.
pub(super) async fn whole(shared: &Shared) -> Result<pb::StatusReply, Failure> {
    let view = point(shared).await?;
    let broken = |error: TableError| Failure::broken(shared, &error);
    let mut status = local(shared, &view).map_err(broken)?;
    status.servers = server_list(shared).map_err(broken)?;
    let views = servers::views(shared).map_err(broken)?;
    let bad = shared.soft().bad.clone();
    let none = BTreeSet::new();
    each::<Chunks>(&view, ChunkId(0), |id, chunk| {
        tally(&mut status, &chunk, &views, bad.get(&id.get()).unwrap_or(&none));
        ChunkId(id.get() + 1)
    })
    .await
    .map_err(broken)?;
    each::<Sessions>(&view, SessionId(0), |id, session| {
        status.sessions += u64::from(!session.ended);
        SessionId(id.get() + 1)
    })
    .await
    .map_err(broken)?;
    each::<Deleting>(&view, ChunkId(0), |id, _| {
        status.deleting += 1;
        ChunkId(id.get() + 1)
    })
    .await
    .map_err(broken)?;
    if shared.raft.space_is_low() {
        status.warning = format!(
            "the disk of master {} is nearly full: only what frees space is accepted (ENOSPC)",
            shared.raft.node()
        );
    }
    Ok(status)
}

/// Shows every row from `from` on to `see`, which gives the key to go on at; other tasks get their turns.
async fn each<T: Table>(
    view: &View,
    mut from: T::Key,
    mut see: impl FnMut(T::Key, T::Row) -> T::Key,
) -> Result<(), TableError> {
    loop {
        let mut seen = 0;
        let mut next = None;
        for row in view.range::<T>(&from, None).take(ROWS_AT_ONCE) {
            let (key, row) = row?;
            next = Some(see(key, row));
            seen += 1;
        }
        match next {
            Some(next) if seen == ROWS_AT_ONCE => from = next,
            _ => return Ok(()),
        }
        tokio::task::yield_now().await;
    }
}

/// What one master knows when no leader answers.
pub(super) fn alone(shared: &Shared, why: &str) -> Result<pb::StatusReply, Failure> {
    let broken = |error: TableError| Failure::broken(shared, &error);
    let mut status = local(shared, &shared.raft.view()).map_err(broken)?;
    status.leader = 0;
    status.masters.iter_mut().for_each(|master| master.leader = false);
    status.servers = server_list(shared).map_err(broken)?;
    for server in &mut status.servers {
        (server.alive, server.disks, server.replicas) = (false, Vec::new(), 0);
    }
    status.warning = format!("{why}; this is what master {} knows", shared.raft.node());
    Ok(status)
}

fn local(shared: &Shared, view: &View) -> Result<pb::StatusReply, TableError> {
    let leader = shared.raft.leader().map_or(0, |(node, _)| node.get());
    let counters = view.get::<Counters>(&0)?.unwrap_or_default();
    let metrics = shared.raft.metrics();
    let masters = shared.raft.members().into_iter().map(|member| pb::MasterStatus {
        node: member.node.get(),
        address: member.address,
        voter: member.voter,
        leader: member.node.get() == leader,
    });
    Ok(pb::StatusReply {
        cluster: shared.cluster.to_string(),
        leader,
        term: shared.raft.term().get(),
        applied_index: shared.raft.applied().get(),
        masters: masters.collect(),
        inodes: counters.inodes,
        bytes: counters.bytes,
        log_fsyncs: metrics.fsyncs,
        log_operations: metrics.operations,
        ..Default::default()
    })
}

fn server_list(shared: &Shared) -> Result<Vec<pb::ServerStatus>, TableError> {
    let rows = servers::rows(shared)?;
    let soft = shared.soft();
    let server = |row: pb::ServerRow| {
        let id = ServerId(row.id);
        let beat = soft.servers.get(&id);
        let disks = beat.map(|beat| beat.disks.clone()).unwrap_or_default();
        pb::ServerStatus {
            server: row.id,
            alive: beat.is_some() && soft.alive(id, &shared.limits),
            replicas: disks.iter().map(|disk| disk.replicas).sum(),
            state: row.state,
            address: row.address,
            labels: row.labels,
            disks,
        }
    };
    Ok(rows.into_iter().map(server).collect())
}

/// Counts a chunk by how many of its shards are on servers that answer.
fn tally(
    status: &mut pb::StatusReply,
    chunk: &pb::Chunk,
    servers: &BTreeMap<ServerId, ServerView>,
    bad: &BTreeSet<(u64, u32)>,
) {
    if chunk.state() == pb::ChunkState::Deleting {
        return;
    }
    status.chunks += 1;
    let layout = chunk.layout.unwrap_or_default();
    let answers = |server: &ServerView| {
        let counts = matches!(server.state, pb::ServerState::Active | pb::ServerState::Draining);
        server.alive && counts
    };
    let good = chunk.replicas.iter().filter(|replica| {
        let server = servers.get(&ServerId(replica.server));
        server.is_some_and(answers) && !bad.contains(&(replica.r#gen, replica.shard))
    });
    let shards: BTreeSet<u32> = good.map(|replica| replica.shard).collect();
    let shards = u32::try_from(shards.len()).unwrap_or(u32::MAX);
    if shards < layout.data {
        status.unreadable += 1;
    } else if shards < layout.data + layout.parity {
        status.under_replicated += 1;
    }
}

/// Active servers of whose present boot this leader does not know all that it lacks.
pub(super) fn unreported(shared: &Shared) -> Vec<ServerId> {
    // A table that can not be read ends this master elsewhere.
    let rows = servers::rows(shared).unwrap_or_default().into_iter();
    let active = rows.filter(|row| row.state() == pb::ServerState::Active);
    let soft = shared.soft();
    let heard = |id: ServerId| {
        soft.servers.get(&id).is_some_and(|beat| soft.reports.settled(id, beat.incarnation))
    };
    active.map(|row| ServerId(row.id)).filter(|id| !heard(*id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(data: u32, parity: u32, servers: &[u64]) -> pb::Chunk {
        let replica = |(shard, server): (usize, &u64)| pb::Replica {
            r#gen: 9,
            shard: shard as u32,
            server: *server,
        };
        pb::Chunk {
            layout: Some(pb::Layout { data, parity }),
            replicas: servers.iter().enumerate().map(replica).collect(),
            state: pb::ChunkState::Sealed as i32,
            ..Default::default()
        }
    }

    #[test]
    fn chunks_count_by_the_shards_that_answer() {
        let view = |alive, state| ServerView { state, alive, labels: vec![], free_bytes: 1 };
        let servers = BTreeMap::from([
            (ServerId(1), view(true, pb::ServerState::Active)),
            (ServerId(2), view(true, pb::ServerState::Draining)),
            (ServerId(3), view(false, pb::ServerState::Active)),
            (ServerId(4), view(true, pb::ServerState::Dead)),
        ]);
        let counted = |chunk: &pb::Chunk, bad: &[(u64, u32)]| {
            let mut status = pb::StatusReply::default();
            tally(&mut status, chunk, &servers, &bad.iter().copied().collect());
            (status.chunks, status.under_replicated, status.unreadable)
        };
        assert_eq!(counted(&chunk(1, 1, &[1, 2]), &[]), (1, 0, 0));
        assert_eq!(
            counted(&chunk(1, 1, &[1, 2]), &[(9, 1)]),
            (1, 1, 0),
            "a bad one does not count"
        );
        assert_eq!(counted(&chunk(1, 1, &[1, 3]), &[]), (1, 1, 0), "nor a silent one");
        assert_eq!(counted(&chunk(1, 1, &[1]), &[]), (1, 1, 0), "nor one that was never placed");
        assert_eq!(counted(&chunk(1, 1, &[4, 3]), &[]), (1, 0, 1));
        assert_eq!(counted(&chunk(2, 1, &[1, 3, 4]), &[]), (1, 0, 1));
        let deleting = pb::Chunk { state: pb::ChunkState::Deleting as i32, ..chunk(1, 1, &[4, 4]) };
        assert_eq!(counted(&deleting, &[]), (0, 0, 0));
    }
}
