//! Keys and rows of the tables: a key that is decoded has the bytes it was decoded from, which the order of the
//! tables rests on.

use mooseng::namespace::tables;
use mooseng::tables::{Key, Table};
use prost::Message;

/// Which table, where its key ends, then key and row.
fn look<T: Table>(key: &[u8], row: &[u8]) {
    if let Some(decoded) = T::Key::decode(key) {
        let mut again = Vec::new();
        decoded.encode(&mut again);
        assert_eq!(again, key, "{}: a key has other bytes when it is encoded again", T::NAME);
    }
    drop(T::Row::decode(row));
}

macro_rules! tables {
    ($($name:ident),* $(,)?) => {
        const LOOK: &[(u8, &str, fn(&[u8], &[u8]))] =
            &[$((tables::$name::ID, tables::$name::NAME, look::<tables::$name>)),*];
    };
}

tables!(
    Counters,
    Cluster,
    Inodes,
    Dentries,
    Cookies,
    Extents,
    Cuts,
    Xattrs,
    Orphans,
    Pins,
    SessionPins,
    Sessions,
    SessionNonces,
    Tombstones,
    Replies,
    ChunkRequests,
    Chunks,
    Refs,
    OpenChunks,
    ServerChunks,
    Degraded,
    Deletable,
    Deleting,
    PendingReplicas,
    Doomed,
    Servers,
    ServerUuids,
    Masters,
    MasterIncarnations,
    Classes,
    ClassNames,
    Garbage,
    Holes,
    Punching,
);

pub(super) fn run(input: &[u8]) {
    let [which, key_len, rest @ ..] = input else { return };
    let (_, _, look) = LOOK[usize::from(*which) % LOOK.len()];
    let (key, row) = rest.split_at(usize::from(*key_len).min(rest.len()));
    look(key, row);
}

/// Every row of a state machine that has seen some operations.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let machine = super::machine::base();
    let view = machine.db().view();
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for (raw, row) in view.rows().map(|row| row.expect("tables in memory")) {
        let Some(at) = LOOK.iter().position(|(id, ..)| *id == raw[0]) else { continue };
        // One of each table is enough.
        if seeds.iter().all(|seed| usize::from(seed[0]) != at) {
            seeds.push([&[at as u8, raw.len() as u8 - 1], &raw[1..], &row[..]].concat());
        }
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_looked_at() {
        let known: Vec<(u8, &str)> = LOOK.iter().map(|(id, name, _)| (*id, *name)).collect();
        assert_eq!(known, tables::ALL);
    }
}
