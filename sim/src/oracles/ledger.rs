//! O2 and O3: what was written is what is read, and what was synced is never lost.
//!
//! Every block that a client writes names its write: file, sequence number, block index, and a fill that
//! follows from them. Whatever is read must be a block that was written at just that place (O2), whole, and no
//! file is longer than what was written to it. When fsync or close answers, the latest write of each block becomes
//! its floor; whatever is read by an open that begins afterwards, on any machine and after any disaster, is at
//! its floor or newer, and a file that ends before a floor has lost it (O3). A writer sees its own latest writes.
//! What was written and not synced may be lost or may surface late, also after its writer died, but never as
//! anything else. A name whose creation was answered exists until somebody asks for its removal; one whose removal
//! was answered is gone.
//!
//! What one mount has read of another's file is committed, and becomes a floor too; a mount that reads through
//! one descriptor never goes back. So does a name that was found although its creator had no answer. Caches may hide
//! for their time to live that a name came or went and that a file grew; a lookup that begins later agrees.
//!
//! Not checked: order between blocks of un-synced writes. What a writer reads of its own un-synced writes makes
//! no floor: it may be lost with its writer. Descriptors that were open before see what they knew when they were
//! opened or newer, not what was synced since (close-to-open). Times and other attributes than the size; names
//! written by two clients at once.

use crate::failure::violation;
use crate::trace;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    /// When it got one.
    floor_ns: u64,
    /// The latest write.
    latest: u64,
}

struct File {
    number: u64,
    exists: Exists,
    /// Since when.
    since_ns: u64,
    /// Its removal was asked for.
    removing: bool,
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

/// What somebody has read of a file.
pub struct Look<'a> {
    /// From this block on ...
    pub first: usize,
    /// ... so many blocks were asked for ...
    pub asked: usize,
    /// ... and this came, less if the file ends.
    pub bytes: &'a [u8],
    /// The floors when the file was opened.
    pub floors: &'a Floors,
    /// By the process that wrote it, which must see its latest write.
    pub own: bool,
}

/// The writes of which the blocks of a [`Look`] were; 0 is a hole.
pub struct Seen {
    first: usize,
    writes: Vec<u64>,
}

impl Seen {
    /// Whether the last block is one that nobody has written.
    pub fn ends_in_hole(&self) -> bool {
        self.writes.last() == Some(&0)
    }
}

impl Block {
    /// Readers must see this write or a newer one from now on.
    fn raise(&mut self, write: u64) {
        if self.floor == 0 && write > 0 {
            self.floor_ns = trace::now_ns();
        }
        self.floor = self.floor.max(write);
    }
}

impl Floors {
    /// Who has seen this goes never back behind it.
    pub fn raise(&mut self, seen: &Seen) {
        let end = seen.first + seen.writes.len();
        self.0.resize(self.0.len().max(end), 0);
        for (floor, write) in self.0[seen.first..end].iter_mut().zip(&seen.writes) {
            *floor = (*floor).max(*write);
        }
    }
}

impl Ledger {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every name that was ever asked for.
    pub fn names(&self) -> Vec<String> {
        self.files().keys().cloned().collect()
    }

    /// The names that were asked for last, so many at most, the newest first.
    pub fn newest(&self, most: usize) -> Vec<String> {
        let files = self.files();
        let mut names: Vec<(u64, &String)> = files.iter().map(|(n, f)| (f.number, n)).collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.into_iter().take(most).map(|(_, name)| name.clone()).collect()
    }

    /// A name that nobody used before is about to be created.
    pub fn creating(&self, name: &str) {
        let mut files = self.files();
        let number = files.len() as u64 + 1;
        let (exists, removing, blocks) = (Exists::Maybe, false, Vec::new());
        let since_ns = trace::now_ns();
        let file = File { number, exists, since_ns, removing, seq: 0, uncertain: 0, blocks };
        assert!(files.insert(name.to_owned(), file).is_none(), "{name} is used twice");
    }

    /// The creation was answered.
    pub fn created(&self, name: &str) {
        self.with(name, |file| file.becomes(Exists::Yes));
    }

    /// The name is about to be removed.
    pub fn removing(&self, name: &str) {
        self.with(name, |file| {
            file.becomes(Exists::Maybe);
            file.removing = true;
        });
    }

    /// The name was found: it exists, unless its removal has been asked for.
    pub fn found(&self, name: &str) {
        self.with(name, |file| {
            if file.exists == Exists::Maybe && !file.removing {
                file.becomes(Exists::Yes);
            }
        });
    }

    /// The removal was answered.
    pub fn removed(&self, name: &str) {
        self.with(name, |file| file.becomes(Exists::No));
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

    /// An fsync or a close that began at `position` was answered with success.
    pub fn synced(&self, name: &str, position: u64) {
        self.with(name, |file| {
            for block in &mut file.blocks {
                if block.latest <= position && block.latest > file.uncertain {
                    block.raise(block.latest);
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

    /// Checks that what was read is at or above its floors. What is seen of another's file is a floor from now on.
    pub fn check(&self, who: &str, name: &str, look: &Look<'_>) -> Seen {
        let checked = self.with(name, |file| {
            let writes = file.check(look)?;
            if !look.own {
                file.observed(look.first, &writes);
            }
            Ok(writes)
        });
        match checked {
            Ok(writes) => Seen { first: look.first, writes },
            Err((oracle, why)) => {
                let why: String = why;
                violation(oracle, format!("{who} reads {name}: {why}"))
            }
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

    /// Checks what a lookup that began at `began_ns` found, the file's size in bytes or no such name, where caches may
    /// be as old as `ttl`.
    pub fn check_lookup(
        &self,
        who: &str,
        name: &str,
        began_ns: u64,
        found: Option<u64>,
        ttl: Duration,
    ) {
        // Clocks of machines run at speeds of their own.
        let hidden = ttl * 101 / 100 + Duration::from_millis(20);
        let Some(by) = began_ns.checked_sub(hidden.as_nanos() as u64) else { return };
        let wrong = self.with(name, |file| file.check_lookup(by, found));
        if let Some(why) = wrong {
            violation("O3", format!("{who} looks up {name}: {why}"));
        }
    }

    /// Whether the name's removal was asked for.
    pub fn may_be_gone(&self, name: &str) -> bool {
        self.with(name, |file| file.removing)
    }
}

impl File {
    fn becomes(&mut self, exists: Exists) {
        if self.exists != exists {
            (self.exists, self.since_ns) = (exists, trace::now_ns());
        }
    }

    /// What is wrong with what a lookup found that knows everything that was so at `by_ns`.
    fn check_lookup(&self, by_ns: u64, found: Option<u64>) -> Option<String> {
        let settled = self.since_ns <= by_ns;
        match (self.exists, found) {
            (Exists::Yes, None) if settled => Some("it exists and is not found".to_owned()),
            (Exists::No, Some(_)) if settled => Some("it is gone and is found".to_owned()),
            (_, Some(size)) => {
                let old = |block: &Block| block.floor > 0 && block.floor_ns <= by_ns;
                let least =
                    self.blocks.iter().rposition(old).map_or(0, |at| (at + 1) * BLOCK) as u64;
                (size < least).then(|| format!("{size} bytes, of which {least} were synced"))
            }
            _ => None,
        }
    }

    /// The write of each block that was read.
    fn check(&self, look: &Look<'_>) -> Result<Vec<u64>, (&'static str, String)> {
        let blocks = look.bytes.chunks(BLOCK);
        let end = look.first + blocks.len();
        let longest = self.blocks.len().min(look.first + look.asked).max(look.first);
        if end > longest {
            return Err(("O2", format!("{end} blocks, of which {longest} can be there")));
        }
        let mut writes = Vec::with_capacity(blocks.len());
        for (at, block) in (look.first..).zip(blocks) {
            let latest = self.blocks[at].latest;
            let seq = self.seq_of(block, at).ok_or_else(|| {
                let begin = &block[..block.len().min(40)];
                ("O2", format!("block {at} is no write of this place: {begin:02x?}"))
            })?;
            let must = self.must(at, look);
            if seq < must || seq > latest {
                return Err(("O3", format!("block {at} is of write {seq}, must be of {must}")));
            }
            writes.push(seq);
        }
        match (end..longest).find(|at| self.must(*at, look) > 0) {
            Some(at) => {
                let must = self.must(at, look);
                Err(("O3", format!("ends with {end} blocks, block {at} must be of {must}")))
            }
            None => Ok(writes),
        }
    }

    /// The oldest write that may be at this block.
    fn must(&self, at: usize, look: &Look<'_>) -> u64 {
        let latest = self.blocks[at].latest;
        match look.own && latest > self.uncertain {
            true => latest,
            false => look.floors.0.get(at).copied().unwrap_or(0),
        }
    }

    /// Another mount has read these writes from `first` on: they are committed.
    fn observed(&mut self, first: usize, writes: &[u64]) {
        for (block, write) in self.blocks.iter_mut().skip(first).zip(writes) {
            block.raise(*write);
        }
    }

    /// Which write a block is of; 0 for a hole, `None` for anything else.
    fn seq_of(&self, block: &[u8], at: usize) -> Option<u64> {
        if block.len() < BLOCK {
            return None;
        }
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
        let look = Look { first: 0, asked: 4, bytes, floors: &ledger.floors("f"), own };
        ledger.with("f", |file| file.check(&look)).map(drop).map_err(|(oracle, _)| oracle)
    }

    #[test]
    fn ends_that_are_too_early_or_too_late_are_seen() {
        let ledger = Ledger::default();
        ledger.creating("f");
        let first = ledger.write("f", 0, 2);
        assert_eq!(outcome(&ledger, &[], false), Ok(()), "not synced yet");
        assert_eq!(outcome(&ledger, &first[..BLOCK], true), Err("O3"), "one's own end");
        ledger.synced("f", ledger.position("f"));
        assert_eq!(outcome(&ledger, &[], false), Err("O3"), "all is lost");
        assert_eq!(outcome(&ledger, &first[..BLOCK], false), Err("O3"), "its end is lost");
        assert_eq!(outcome(&ledger, &first[..BLOCK + 9], false), Err("O2"), "half a block");
        let longer = [&first[..], &[0; BLOCK]].concat();
        assert_eq!(outcome(&ledger, &longer, false), Err("O2"), "nobody wrote so far");
    }

    #[test]
    fn what_another_mount_has_seen_is_a_floor() {
        let ledger = Ledger::default();
        ledger.creating("f");
        let first = ledger.write("f", 0, 2);
        let floors = &ledger.floors("f");
        let look = |own| Look { first: 0, asked: 4, bytes: &first, floors, own };
        ledger.check("c1", "f", &look(true));
        ledger.died("f");
        assert_eq!(outcome(&ledger, &[], false), Ok(()), "only its writer saw it");
        ledger.check("c2", "f", &look(false));
        assert_eq!(outcome(&ledger, &[], false), Err("O3"), "another has seen it");
    }

    #[test]
    fn lookups_agree_when_caches_are_old_enough() {
        let ledger = Ledger::default();
        ledger.creating("f");
        let wrong =
            |by_ns, found| ledger.with("f", |file| file.check_lookup(by_ns, found)).is_some();
        assert!(!wrong(9, None) && !wrong(9, Some(0)), "nobody knows");
        ledger.created("f");
        ledger.write("f", 0, 2);
        assert!(wrong(9, None) && !wrong(9, Some(0)), "not synced");
        ledger.synced("f", ledger.position("f"));
        assert!(wrong(9, Some(2 * BLOCK as u64 - 1)) && !wrong(9, Some(2 * BLOCK as u64)));
        ledger.with("f", |file| {
            file.since_ns = 10;
            file.blocks[1].floor_ns = 10;
        });
        assert!(!wrong(9, None) && !wrong(9, Some(BLOCK as u64)), "caches may hide it");
        assert!(wrong(10, None) && wrong(10, Some(BLOCK as u64)), "no cache is so old");
        ledger.removing("f");
        assert!(!wrong(10, None));
        ledger.removed("f");
        assert!(wrong(10, Some(2 * BLOCK as u64)) && !wrong(10, None));
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
