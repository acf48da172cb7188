//! O2 and O3: what was written is what is read, and what was synced is never lost.
//!
//! Every block that a client writes names its write: file, sequence number, block index, and a fill that
//! follows from them. Whatever is read must be a block that was written at just that place (O2). When fsync
//! answers, the latest write of each block becomes its floor; whatever is read afterwards, on any machine and
//! after any disaster, is at its floor or newer (O3). What was written and not synced may be lost or may
//! surface late, also after its writer died, but never as anything else. A name whose creation was answered
//! exists until somebody asks for its removal; one whose removal was answered is gone.
//!
//! Not checked: order between blocks of un-synced writes; times and other attributes; names written by two
//! clients at once.

use crate::failure::violation;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of one block. Below the inline limit, so that small files rest in the metadata.
pub const BLOCK: usize = 256;
const MAGIC: u64 = 0x6d6f_6f73_652d_6f32;

/// Whether a name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exists {
    /// It was answered that it does.
    Yes,
    /// It was answered that it does not.
    No,
    /// An operation on it has no answer.
    Maybe,
}

#[derive(Clone, Default)]
struct Block {
    /// The write that every reader must see, or a newer one.
    floor: u64,
    /// The latest write.
    latest: u64,
}

struct File {
    number: u64,
    exists: Exists,
    seq: u64,
    /// Writes up to here may be lost: their fsync failed or their writer died.
    uncertain: u64,
    blocks: Vec<Block>,
}

/// What the clients were promised.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<String, File>>>);

/// The floors of a file at one moment.
pub struct Floors(Vec<u64>);

impl Ledger {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every name that was ever asked for.
    pub fn names(&self) -> Vec<String> {
        self.files().keys().cloned().collect()
    }

    /// A name that nobody used before is about to be created.
    pub fn creating(&self, name: &str) {
        let mut files = self.files();
        let number = files.len() as u64 + 1;
        let file = File { number, exists: Exists::Maybe, seq: 0, uncertain: 0, blocks: Vec::new() };
        assert!(files.insert(name.to_owned(), file).is_none(), "{name} is used twice");
    }

    /// The creation was answered.
    pub fn created(&self, name: &str) {
        self.with(name, |file| file.exists = Exists::Yes);
    }

    /// The name is about to be removed.
    pub fn removing(&self, name: &str) {
        self.with(name, |file| file.exists = Exists::Maybe);
    }

    /// The removal was answered.
    pub fn removed(&self, name: &str) {
        self.with(name, |file| file.exists = Exists::No);
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut File) -> T) -> T {
        work(self.files().get_mut(name).expect("a file of the ledger"))
    }

    /// The bytes of a new write of `count` blocks from block `first`.
    pub fn write(&self, name: &str, first: usize, count: usize) -> Vec<u8> {
        self.with(name, |file| {
            file.seq += 1;
            let end = file.blocks.len().max(first + count);
            file.blocks.resize(end, Block::default());
            let mut bytes = Vec::with_capacity(count * BLOCK);
            for index in first..first + count {
                file.blocks[index].latest = file.seq;
                stamp(file.number, file.seq, index as u64, &mut bytes);
            }
            bytes
        })
    }

    /// The sequence number of the last write; passed to [`Ledger::synced`] after an fsync that began now.
    pub fn position(&self, name: &str) -> u64 {
        self.with(name, |file| file.seq)
    }

    /// An fsync that began at `position` was answered with success.
    pub fn synced(&self, name: &str, position: u64) {
        self.with(name, |file| {
            for block in &mut file.blocks {
                if block.latest <= position && block.latest > file.uncertain {
                    block.floor = block.latest;
                }
            }
        });
    }

    /// Writes that were not synced may be lost from now on.
    pub fn failed(&self, name: &str) {
        self.with(name, |file| file.uncertain = file.seq);
    }

    /// A client died: everything un-synced in files whose names begin so is uncertain.
    pub fn died(&self, prefix: &str) {
        for (_, file) in self.files().iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
            file.uncertain = file.seq;
        }
    }

    /// What any reader from now on must see at least.
    pub fn floors(&self, name: &str) -> Floors {
        Floors(self.with(name, |file| file.blocks.iter().map(|block| block.floor).collect()))
    }

    /// Checks that `bytes`, read at block `first`, are at or above `floors`. `own`: by the process that wrote
    /// them, which must see its latest write.
    pub fn check(
        &self,
        who: &str,
        name: &str,
        first: usize,
        bytes: &[u8],
        floors: &Floors,
        own: bool,
    ) {
        let broken = self.with(name, |file| file.check(first, bytes, floors, own).err());
        if let Some((oracle, why)) = broken {
            violation(oracle, format!("{who} reads {name}: {why}"));
        }
    }

    /// What is known of the name now.
    pub fn existence(&self, name: &str) -> Exists {
        self.with(name, |file| file.exists)
    }

    /// Checks whether the name may be there, or not be there, for a reader without caches that looked after
    /// `before` was known. What became known while it looked proves nothing.
    pub fn check_name(&self, who: &str, name: &str, before: Exists, found: bool) {
        let exists = self.existence(name);
        if exists != before {
            return;
        }
        let wrong = match exists {
            Exists::Yes => !found,
            Exists::No => found,
            Exists::Maybe => false,
        };
        if wrong {
            violation("O3", format!("{who}: {name} should exist: {exists:?}, found: {found}"));
        }
    }

    /// Whether the name's creation was answered and its removal not asked for.
    pub fn exists(&self, name: &str) -> bool {
        self.with(name, |file| file.exists == Exists::Yes)
    }
}

impl File {
    fn check(
        &self,
        first: usize,
        bytes: &[u8],
        floors: &Floors,
        own: bool,
    ) -> Result<(), (&'static str, String)> {
        for (at, floor) in floors.0.iter().enumerate().skip(first) {
            let begin = (at - first) * BLOCK;
            let must = match own && self.blocks[at].latest > self.uncertain {
                true => self.blocks[at].latest,
                false => *floor,
            };
            let Some(block) = bytes.get(begin..begin + BLOCK) else {
                if must > 0 && bytes.len() > begin {
                    return Err(("O3", format!("ends within block {at}, written by {must}")));
                }
                continue;
            };
            let seq = self.seq_of(block, at).ok_or_else(|| {
                ("O2", format!("block {at} is no write of this place: {:02x?}", &block[..40]))
            })?;
            if seq < must || seq > self.blocks[at].latest {
                return Err(("O3", format!("block {at} is of write {seq}, must be of {must}")));
            }
        }
        Ok(())
    }

    /// Which write a block is of; 0 for a hole, `None` for anything else.
    fn seq_of(&self, block: &[u8], at: usize) -> Option<u64> {
        if block.iter().all(|byte| *byte == 0) {
            return Some(0);
        }
        let word = |i: usize| u64::from_le_bytes(block[i * 8..i * 8 + 8].try_into().expect("8"));
        let mut expected = Vec::with_capacity(BLOCK);
        stamp(self.number, word(2), at as u64, &mut expected);
        (word(0) == MAGIC && expected == block).then(|| word(2))
    }
}

/// Appends the block that write `seq` of file `number` puts at `index`.
fn stamp(number: u64, seq: u64, index: u64, out: &mut Vec<u8>) {
    let end = out.len() + BLOCK;
    for word in [MAGIC, number, seq, index] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let mut state = number.rotate_left(40) ^ seq.rotate_left(20) ^ index;
    while out.len() < end {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ledger: &Ledger, bytes: &[u8], own: bool) -> Result<(), &'static str> {
        let floors = ledger.floors("f");
        ledger.with("f", |file| file.check(0, bytes, &floors, own)).map_err(|(oracle, _)| oracle)
    }

    #[test]
    fn lost_stale_and_foreign_blocks_are_told_apart() {
        let ledger = Ledger::default();
        ledger.creating("f");
        ledger.created("f");
        let first = ledger.write("f", 0, 2);
        ledger.synced("f", ledger.position("f"));
        let second = ledger.write("f", 0, 1);
        let newer = [&second[..], &first[BLOCK..]].concat();
        assert_eq!(outcome(&ledger, &newer, true), Ok(()));
        assert_eq!(
            outcome(&ledger, &first, false),
            Ok(()),
            "not synced yet: others may see the old"
        );
        assert_eq!(outcome(&ledger, &first, true), Err("O3"), "the writer must see its own");
        ledger.failed("f");
        assert_eq!(outcome(&ledger, &first, true), Ok(()), "a failed write may be lost");
        assert_eq!(
            outcome(&ledger, &vec![0; 2 * BLOCK], false),
            Err("O3"),
            "a hole where data was"
        );
        let swapped = [&first[BLOCK..], &second[..]].concat();
        assert_eq!(outcome(&ledger, &swapped, false), Err("O2"), "blocks at wrong places");
        let mut torn = first.clone();
        torn[100] ^= 1;
        assert_eq!(outcome(&ledger, &torn, false), Err("O2"));
    }
}
