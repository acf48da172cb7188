//! What a disk would come back with.

use super::format::{CHUNKS, ReplicaId};
use super::open::{ExamineError, examine};
use crate::seam::Disk;
use std::io;

/// Every replica on `disk` with the length that recovery would give it, without changing anything. On an
/// image of what is durable this is what a loss of power leaves: the measure of every promise that was given.
pub fn inspect(disk: &dyn Disk) -> io::Result<Vec<(ReplicaId, u64)>> {
    let mut all = Vec::new();
    if !disk.exists(CHUNKS)? {
        return Ok(all);
    }
    for dir in disk.list(CHUNKS)? {
        for file in disk.list(&format!("{CHUNKS}/{dir}"))? {
            let Some(id) = ReplicaId::from_file_name(&dir, &file) else { continue };
            match examine(disk, id) {
                Ok(found) => all.push((id, found.length)),
                Err(ExamineError::Io(error)) => return Err(error),
                Err(ExamineError::Version(_)) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
    all.sort();
    Ok(all)
}

/// The length that recovery would give one replica; `None` if it would not be there.
pub fn inspect_replica(disk: &dyn Disk, id: ReplicaId) -> io::Result<Option<u64>> {
    if !disk.exists(&id.path())? {
        return Ok(None);
    }
    match examine(disk, id) {
        Ok(found) => Ok(Some(found.length)),
        Err(ExamineError::Io(error)) => Err(error),
        Err(ExamineError::Version(_)) => Err(io::ErrorKind::InvalidData.into()),
    }
}
