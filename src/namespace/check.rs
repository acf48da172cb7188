//! Every invariant of the state machine, recomputed from the rows. Reads everything: for tests, simulations
//! and tools.

mod chunks;
mod files;
mod tree;

use crate::tables::{Read, Table, TableError};
use std::collections::BTreeMap;

/// What does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

impl From<TableError> for Violation {
    fn from(error: TableError) -> Violation {
        Violation(error.to_string())
    }
}

type Verdict = Result<(), Violation>;

/// A violation unless the condition holds.
macro_rules! hold {
    ($cond:expr, $($message:tt)*) => {
        if !$cond {
            return Err($crate::namespace::Violation(format!($($message)*)));
        }
    };
}
use hold;

/// Checks, over all rows:
/// - names: every entry names an inode of its kind and has its cookie, every name has one cookie row; link
///   counts, entry counts and parents agree with the entries; every directory is reachable from the root;
/// - files: extents do not overlap, lie within the size or a cut; their counts and bytes are those of the
///   inode; symlinks, xattrs, cuts, orphans likewise;
/// - chunks: every extent in a chunk lies within the committed length, the reverse index is exactly the
///   extents, the indexes by server and session and the lists of degraded, deletable and deleting chunks are
///   what the chunks say; replicas of a chunk are on different servers and of different shards;
/// - sessions: pins agree both ways and with the inodes; replies lie within the window; ranges of inode ids
///   do not overlap; ended sessions hold nothing;
/// - totals.
pub fn check(read: &impl Read) -> Result<(), Violation> {
    let inodes = tree::check(read)?;
    files::check(read, &inodes)?;
    chunks::check(read)?;
    Ok(())
}

/// A whole table.
fn all<T: Table>(read: &impl Read) -> Result<BTreeMap<T::Key, T::Row>, Violation>
where
    T::Key: Ord,
{
    let first = first_key::<T>()?;
    Ok(read.range::<T>(&first, None).collect::<Result<_, _>>()?)
}

/// The smallest key of a table: as many zero bytes as it takes.
fn first_key<T: Table>() -> Result<T::Key, Violation> {
    use crate::tables::Key;
    (0..=40)
        .find_map(|len| T::Key::decode(&vec![0; len]))
        .ok_or_else(|| Violation(format!("table {} has no smallest key", T::NAME)))
}

fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    stored: &BTreeMap<K, V>,
    computed: &BTreeMap<K, V>,
) -> Verdict {
    for (key, value) in computed {
        hold!(
            stored.get(key) == Some(value),
            "{what} {key:?}: is {:?}, should be {value:?}",
            stored.get(key)
        );
    }
    for (key, value) in stored {
        hold!(computed.contains_key(key), "{what} {key:?}: {value:?} should not be there");
    }
    Ok(())
}
