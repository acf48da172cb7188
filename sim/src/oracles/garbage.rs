//! O6, the part about what was given up: once everything has converged, nothing of it is left over.
//!
//! - Files without name and pin are purged, and so is what was cut off; ended sessions hold no pins; chunks that nothing
//!   refers to and replicas that left their chunk are deleted.
//! - On the disk of every active server are replicas of chunks that the masters know, and no other file among them.
//!
//! What has to be deleted on a server that is away waits for it. Not checked: that the replicas which the masters know are
//! there (`chunks` does), disks of servers that are dead, and those that are out of use since a write or an fsync of theirs
//! failed: nothing is deleted there before the next start.

use crate::disk::SimDisk;
use crate::stats;
use mooseng::ids::{ChunkId, Generation, InodeId, ServerId, SessionId};
use mooseng::namespace::tables::{
    Chunks, Deletable, Deleting, Doomed, Orphans, SessionPins, Sessions,
};
use mooseng::pb;
use mooseng::tables::Read;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The disk of each active server, by the server's number.
pub type Disks = BTreeMap<u64, Arc<SimDisk>>;

/// The file of a replica, relative to its disk (DISK_FORMAT.md).
pub fn path(chunk: &pb::Chunk, replica: &pb::Replica) -> String {
    let k = chunk.layout.unwrap_or_default().data;
    let (id, generation, shard) = (chunk.id, replica.r#gen, replica.shard);
    format!("chunks/{:02x}/{id:016x}-{generation:x}-{shard}-{k}.dat", id & 0xff)
}

/// What is left over now.
pub fn look(view: &impl Read, disks: &Disks) -> Result<(), String> {
    files(view)?;
    replicas(view, disks)?;
    strays(view, disks)
}

/// Rows of files that nobody can reach any more.
fn files(view: &impl Read) -> Result<(), String> {
    if let Some(row) = view.range::<Orphans>(&InodeId(0), None).next() {
        return Err(format!("inode {} is not purged", row.expect("tables").0));
    }
    for row in view.range::<SessionPins>(&(SessionId(0), InodeId(0)), None) {
        let ((session, inode), _) = row.expect("tables");
        if view.get::<Sessions>(&session).expect("tables").is_none_or(|row| row.ended) {
            return Err(format!("{session} has ended and holds inode {inode}"));
        }
    }
    Ok(())
}

/// Rows of chunks and replicas that have to go, and whose servers are there.
fn replicas(view: &impl Read, disks: &Disks) -> Result<(), String> {
    if let Some(row) = view.range::<Deletable>(&ChunkId(0), None).next() {
        let id = row.expect("tables").0;
        return Err(format!("nothing refers to chunk {id}, and nobody deletes it"));
    }
    for row in view.range::<Deleting>(&ChunkId(0), None) {
        let (id, _) = row.expect("tables");
        let chunk = view.get::<Chunks>(&id).expect("tables").unwrap_or_default();
        if let Some(replica) = chunk.replicas.iter().find(|r| disks.contains_key(&r.server)) {
            return Err(format!("chunk {id} is not deleted on server {}", replica.server));
        }
    }
    let first = (ServerId(0), ChunkId(0), Generation(0));
    for row in view.range::<Doomed>(&first, None) {
        let ((server, id, generation), _) = row.expect("tables");
        if disks.contains_key(&server.get()) {
            let generation = generation.get();
            return Err(format!("replica {generation:x} of chunk {id} is not deleted on {server}"));
        }
    }
    Ok(())
}

/// Files of replicas that no master knows: they take space for ever.
fn strays(view: &impl Read, disks: &Disks) -> Result<(), String> {
    let mut known: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for row in view.range::<Chunks>(&ChunkId(0), None) {
        let (_, chunk) = row.expect("tables");
        for replica in &chunk.replicas {
            known.entry(replica.server).or_default().insert(path(&chunk, replica));
        }
    }
    for (server, disk) in disks {
        let known = known.entry(*server).or_default();
        let there = disk.paths().into_iter().filter(|path| path.starts_with("chunks/"));
        let (there, strays): (Vec<_>, Vec<_>) = there.partition(|path| known.contains(path));
        if !strays.is_empty() {
            return Err(format!("no master knows of {strays:?} on server {server}"));
        }
        stats::add("O6 files of replicas known", there.len() as u64);
    }
    Ok(())
}
