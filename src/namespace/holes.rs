//! Holes: ranges of sealed chunks to which nothing refers, whose space servers give back (rule A6).
//!
//! The map of holes is committed before any server frees a byte, so whoever meets a freed block knows that it
//! is out of date and asks again. A sealed chunk may still be given references by its writer's late commits.
//! Each of them raises the map's version: a map that was computed before it is refused. One that comes after
//! the hole is refused itself; its writer, who keeps every byte until it is committed, writes it elsewhere.

use super::HOLES_MAX;
use super::state::{Outcome, State};
use super::tables::{Chunks, Garbage, Holes, Punching, Refs};
use crate::erasure::Layout;
use crate::errno::Errno;
use crate::ids::{ChunkId, InodeId};
use crate::pb::{self, ChunkState, EmptyRow, Hole};
use crate::tables::{Read, TableError};

/// What holes of this chunk are made of, bytes: blocks where shards are copies, else whole stripes, so that no
/// parity covers bytes that are gone.
pub fn hole_unit(chunk: &pb::Chunk) -> u64 {
    let layout = chunk.layout.and_then(|layout| Layout::try_from(layout).ok());
    layout.map_or(u64::MAX, Layout::stripe_bytes)
}

/// All ranges of a sealed chunk to which nothing refers, whole units each, in order: what can be punched.
pub fn dead_ranges(read: &impl Read, chunk: &pb::Chunk) -> Result<Vec<Hole>, TableError> {
    let unit = hole_unit(chunk);
    let (from, to) = (first_ref(ChunkId(chunk.id), 0), first_ref(ChunkId(chunk.id + 1), 0));
    let mut dead = Vec::new();
    let mut alive_to = 0;
    for row in read.range::<Refs>(&from, Some(&to)) {
        let ((_, off, _, _), row) = row?;
        push_hole(&mut dead, alive_to, off / unit * unit);
        alive_to = alive_to.max((off + row.len).next_multiple_of(unit));
    }
    push_hole(&mut dead, alive_to, chunk.committed_len.next_multiple_of(unit));
    Ok(dead)
}

fn push_hole(holes: &mut Vec<Hole>, from: u64, end: u64) {
    if from < end {
        holes.push(Hole { from, end });
    }
}

fn first_ref(chunk: ChunkId, off: u64) -> (ChunkId, u64, InodeId, u64) {
    (chunk, off, InodeId(0), 0)
}

/// The hole of a sorted map that ends behind `at`.
fn next_hole(holes: &[Hole], at: u64) -> Option<&Hole> {
    holes.get(holes.partition_point(|hole| hole.end <= at))
}

impl State<'_> {
    /// These bytes of the chunk lost a reference.
    pub fn add_garbage(&mut self, id: ChunkId, bytes: u64) -> Outcome<()> {
        let before = self.db.get::<Garbage>(&id)?.unwrap_or_default().bytes;
        Ok(self.db.put::<Garbage>(&id, &pb::GarbageRow { bytes: before + bytes })?)
    }

    fn holes(&self, id: ChunkId) -> Outcome<pb::HolesRow> {
        Ok(self.db.get::<Holes>(&id)?.unwrap_or_default())
    }

    /// Whether a range of the chunk overlaps a hole.
    pub fn meets_hole(&self, id: ChunkId, (from, end): (u64, u64)) -> Outcome<bool> {
        let row = self.holes(id)?;
        Ok(next_hole(&row.holes, from).is_some_and(|hole| hole.from < end))
    }

    /// A sealed chunk was given a reference: what was found dead in it before may be alive.
    pub fn referred_late(&mut self, id: ChunkId) -> Outcome<()> {
        crate::mark!("reference to a sealed chunk");
        let mut row = self.holes(id)?;
        row.version += 1;
        Ok(self.db.put::<Holes>(&id, &row)?)
    }

    /// A replica joined the set that may lack holes.
    pub fn punch_newcomer(&mut self, id: ChunkId) -> Outcome<()> {
        if !self.holes(id)?.holes.is_empty() {
            self.db.put::<Punching>(&id, &EmptyRow {})?;
        }
        Ok(())
    }

    /// The chunk is being deleted.
    pub fn forget_holes(&mut self, id: ChunkId) -> Outcome<()> {
        self.db.delete::<Garbage>(&id)?;
        self.db.delete::<Holes>(&id)?;
        Ok(self.db.delete::<Punching>(&id)?)
    }

    /// Makes `holes` the map of a sealed chunk; the map's version. ESTALE: it changed since the caller looked.
    /// EINVAL: not a map, or not all that were holes before. EBUSY: something refers to a hole.
    pub fn punch_chunk(&mut self, cmd: &pb::PunchChunkCmd) -> Outcome<u64> {
        let id = ChunkId(cmd.chunk);
        let chunk = self.chunk(cmd.chunk)?;
        if chunk.state() != ChunkState::Sealed {
            return Err(Errno::EBUSY.into());
        }
        let mut row = self.holes(id)?;
        if row.version != cmd.version {
            crate::mark!("holes refused by version");
            return Err(Errno::ESTALE.into());
        }
        vet_map(&chunk, &row.holes, &cmd.holes)?;
        let known = |hole: &Hole| next_hole(&row.holes, hole.from) == Some(hole);
        for hole in cmd.holes.iter().filter(|hole| !known(hole)) {
            if self.refers_into(id, hole)? && !crate::bug!(M29) {
                return Err(Errno::EBUSY.into());
            }
        }
        let left = self.db.get::<Garbage>(&id)?.unwrap_or_default().bytes;
        match left.saturating_sub(cmd.garbage) {
            0 => self.db.delete::<Garbage>(&id)?,
            bytes => self.db.put::<Garbage>(&id, &pb::GarbageRow { bytes })?,
        }
        if row.holes != cmd.holes {
            crate::mark!("holes punched");
            row.holes.clone_from(&cmd.holes);
            row.version += 1;
            self.db.put::<Holes>(&id, &row)?;
            self.db.put::<Punching>(&id, &EmptyRow {})?;
        }
        Ok(row.version)
    }

    /// Whether an extent begins in the hole or right before it and reaches into it. What a longer one further
    /// before covers is not seen here but where the map was computed; the version vouches for that.
    fn refers_into(&self, id: ChunkId, hole: &Hole) -> Outcome<bool> {
        let (from, to) = (first_ref(id, hole.from), first_ref(id, hole.end));
        if self.db.range::<Refs>(&from, Some(&to)).next().transpose()?.is_some() {
            return Ok(true);
        }
        let before = self.db.last_before::<Refs>(&from)?;
        Ok(before.is_some_and(|((chunk, off, ..), row)| chunk == id && off + row.len > hole.from))
    }

    /// Every replica of the set at that epoch has the holes of that version.
    pub fn punched(&mut self, cmd: &pb::PunchedCmd) -> Outcome<u64> {
        let id = ChunkId(cmd.chunk);
        let chunk = self.db.get::<Chunks>(&id)?.ok_or(Errno::ENOENT)?;
        let row = self.holes(id)?;
        if chunk.epoch != cmd.epoch || row.version != cmd.version {
            return Err(Errno::ESTALE.into());
        }
        self.db.delete::<Punching>(&id)?;
        Ok(row.version)
    }
}

/// Sorted, apart, whole units within the chunk; and what was a hole stays one.
fn vet_map(chunk: &pb::Chunk, old: &[Hole], new: &[Hole]) -> Outcome<()> {
    let unit = hole_unit(chunk);
    let end = chunk.committed_len.next_multiple_of(unit);
    let whole = |hole: &Hole| {
        hole.from < hole.end
            && hole.end <= end
            && hole.from.is_multiple_of(unit)
            && hole.end.is_multiple_of(unit)
    };
    let apart = new.windows(2).all(|pair| pair[0].end < pair[1].from);
    let kept = |was: &Hole| {
        next_hole(new, was.from).is_some_and(|now| now.from <= was.from && was.end <= now.end)
    };
    let good = new.len() <= HOLES_MAX && new.iter().all(whole) && apart && old.iter().all(kept);
    if good { Ok(()) } else { Err(Errno::EINVAL.into()) }
}
