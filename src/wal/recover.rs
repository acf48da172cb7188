//! Reads a log directory without changing it: which segments count, where the log ends, and whether what is
//! bad there is a torn tail or corruption (rule C1).
//!
//! **Invariant:** this module never writes, so [`super::inspect`] can look at any disk image at any time.

use super::record::{self, Head, Header, Kind, Parsed, SECTOR_BYTES};
use super::{LogId, Vote, WalError, vote_file};
use crate::bug;
use crate::seam::{Disk, OpenMode};
use std::collections::{BTreeMap, VecDeque};

/// The directory of the log.
pub const DIR: &str = "wal";

/// Path of the segment file in this slot. A slot is a file; the generation of its use stands in its records.
pub fn slot_path(slot: u64) -> String {
    format!("{DIR}/{slot:020}.log")
}

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub struct Located {
    pub id: LogId,
    pub generation: u64,
    /// Of the payload in the segment.
    pub offset: u64,
    pub len: usize,
}

/// A segment that counts.
#[derive(Clone, Debug)]
pub struct LiveSegment {
    pub slot: u64,
    /// Highest log index written in it; 0 if none.
    pub last_index: u64,
}

/// What a log directory says.
#[derive(Debug, Default)]
pub struct Recovered {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub installing: Option<LogId>,
    pub entries: VecDeque<Located>,
    /// By generation; empty in a directory that holds no log yet.
    pub live: BTreeMap<u64, LiveSegment>,
    /// Slots that exist and do not count.
    pub free_slots: Vec<u64>,
    /// Sequence of the last record that counts.
    pub last_sequence: u64,
    /// Highest generation and sequence found anywhere, also in what does not count: new ones are higher.
    pub generation_seen: u64,
    pub sequence_seen: u64,
    /// Something lies beyond the end of the log that was never durable.
    pub torn: bool,
    /// In the last segment, where records begin that no watermark vouches for.
    pub unvouched_from: u64,
    /// These records, to be written again.
    pub unvouched: Vec<u8>,
    /// In the last segment, where the records that count end.
    pub end: u64,
    pub vote_file: vote_file::Slots,
}

#[derive(Default)]
struct Seen {
    generation: u64,
    sequence: u64,
    durable: u64,
}

impl Seen {
    fn note(&mut self, header: &Header) {
        self.generation = self.generation.max(header.generation);
        self.sequence = self.sequence.max(header.sequence);
        self.durable = self.durable.max(header.durable);
    }
}

/// A record of a segment, without the payload of entries.
struct Item {
    header: Header,
    at: u64,
    end: u64,
    body_at: u64,
    body_len: usize,
    /// First bytes of the body: all of it, except for entries.
    body: Vec<u8>,
}

/// A segment whose head verified.
struct Scanned {
    slot: u64,
    head: Head,
    items: Vec<Item>,
    file_bytes: u64,
}

impl Scanned {
    fn generation(&self) -> u64 {
        self.items[0].header.generation
    }

    fn first_generation(&self) -> u64 {
        let purges = self.items.iter().filter(|item| item.header.kind == Kind::Purge);
        purges
            .filter_map(|item| decode_purge(item).map(|(_, first)| first))
            .fold(self.head.first_generation, u64::max)
    }

    fn end(&self) -> u64 {
        self.items.last().map_or(0, |item| item.end)
    }
}

/// Reads everything and decides. An error means that this node must not take part under its id any more.
pub fn recover(disk: &dyn Disk) -> Result<Recovered, WalError> {
    let mut seen = Seen::default();
    let mut by_generation = BTreeMap::new();
    let mut headless = Vec::new();
    let mut newest = (0, Vec::new());
    for slot in slots(disk)? {
        let path = slot_path(slot);
        let bytes = read_all(disk, &path)?;
        match scan(slot, &bytes, &mut seen) {
            Some(scanned) => {
                let generation = scanned.generation();
                if generation >= newest.0 {
                    newest = (generation, bytes);
                }
                by_generation.insert(generation, scanned);
            }
            None => headless.push(slot),
        }
    }
    let vote_file = vote_file::read(disk)?;
    let Some(chain) = chain(disk, &mut by_generation)? else {
        return empty(disk, headless, &seen, vote_file);
    };
    if let Some(cut) = chain.iter().find(|segment| segment.file_bytes < segment.head.file_bytes) {
        let why = format!("the file ends here, and had {} bytes", cut.head.file_bytes);
        return Err(corrupt(disk, &slot_path(cut.slot), cut.file_bytes, &why));
    }
    let last = chain.last().expect("a chain has a segment");
    let tail = last.items.last().expect("a segment has its head");
    if vote_file.segment > last.generation() {
        let why = "a later segment was durable, and is gone";
        return Err(corrupt(disk, &slot_path(last.slot), last.end(), why));
    }
    let mut out = Recovered { vote_file, ..Recovered::default() };
    out.last_sequence = tail.header.sequence;
    out.end = last.end();
    if seen.durable > out.last_sequence && !bug!(M10) {
        return Err(corrupt(
            disk,
            &slot_path(last.slot),
            last.end(),
            "records behind it were durable",
        ));
    }
    out.unvouched_from = last
        .items
        .iter()
        .find(|item| item.header.sequence > seen.durable)
        .map_or(last.end(), |item| item.at);
    // The last of a chain is the newest segment.
    out.unvouched = newest.1[out.unvouched_from as usize..out.end as usize].to_vec();
    out.torn = seen.sequence > out.last_sequence;
    out.generation_seen = seen.generation;
    out.sequence_seen = seen.sequence;
    out.free_slots = headless;
    out.free_slots.extend(by_generation.values().map(|scanned| scanned.slot));
    out.free_slots.sort_unstable();
    replay(disk, &chain, &mut out)?;
    out.vote = out.vote.max(out.vote_file.vote);
    Ok(out)
}

fn empty(
    disk: &dyn Disk,
    free_slots: Vec<u64>,
    seen: &Seen,
    vote_file: vote_file::Slots,
) -> Result<Recovered, WalError> {
    if seen.durable > 0 || vote_file.vote.is_some() || vote_file.segment > 0 {
        return Err(corrupt(
            disk,
            &slot_path(0),
            0,
            "the log existed, but no segment has a readable head",
        ));
    }
    let (generation_seen, sequence_seen) = (seen.generation, seen.sequence);
    Ok(Recovered { free_slots, generation_seen, sequence_seen, vote_file, ..Recovered::default() })
}

fn corrupt(disk: &dyn Disk, path: &str, at: u64, why: &str) -> WalError {
    WalError::Corrupt {
        file: format!("{}/{path}", disk.describe()),
        detail: format!("damaged at byte {at}: {why}"),
    }
}

fn slots(disk: &dyn Disk) -> Result<Vec<u64>, WalError> {
    if !disk.exists(DIR).map_err(|e| WalError::io(disk, DIR, "stat", &e))? {
        return Ok(Vec::new());
    }
    let names = disk.list(DIR).map_err(|e| WalError::io(disk, DIR, "list", &e))?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect())
}

fn read_all(disk: &dyn Disk, path: &str) -> Result<Vec<u8>, WalError> {
    let read = || {
        let file = disk.open(path, OpenMode::Read)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
        let got = file.read_at(0, &mut bytes)?;
        bytes.truncate(got);
        Ok(bytes)
    };
    read().map_err(|e| WalError::io(disk, path, "read", &e))
}

/// Reads the segment's records as far as they follow one another, then looks for records beyond.
fn scan(slot: u64, bytes: &[u8], seen: &mut Seen) -> Option<Scanned> {
    let parsed = record::parse(bytes, 0);
    let head = parsed
        .filter(|parsed| parsed.header.kind == Kind::Head)
        .and_then(|parsed| Head::decode(body(bytes, &parsed)));
    let (Some(first), Some(head)) = (parsed, head) else {
        look_beyond(bytes, 0, seen);
        return None;
    };
    let mut items = vec![item(bytes, 0, &first)];
    let mut at = first.end();
    while let Some((next_at, next)) = following(bytes, at, &items[items.len() - 1].header) {
        items.push(item(bytes, next_at, &next));
        at = next.end();
    }
    items.iter().for_each(|item| seen.note(&item.header));
    look_beyond(bytes, at, seen);
    Some(Scanned { slot, head, items, file_bytes: bytes.len() as u64 })
}

/// The record after `last`: directly behind it, or at the next sector if a sync came between.
fn following(bytes: &[u8], at: usize, last: &Header) -> Option<(usize, Parsed)> {
    let fits = |parsed: &Parsed| {
        parsed.header.generation == last.generation && parsed.header.sequence == last.sequence + 1
    };
    let found = [at, record::round_up(at, SECTOR_BYTES)]
        .into_iter()
        .find_map(|at| record::parse(bytes, at).filter(fits).map(|parsed| (at, parsed)));
    if found.is_none() && bug!(M09) {
        let torn = bytes.get(at..).and_then(|bytes| record::parse_piece(bytes, at, false));
        return torn.filter(fits).map(|parsed| (at, parsed));
    }
    found
}

fn look_beyond(bytes: &[u8], from: usize, seen: &mut Seen) {
    let mut at = record::round_up(from, record::ALIGN);
    while at + record::HEADER_BYTES <= bytes.len() {
        match record::parse(bytes, at) {
            Some(parsed) => {
                seen.note(&parsed.header);
                at = parsed.end();
            }
            None => at += record::ALIGN,
        }
    }
}

fn body<'a>(bytes: &'a [u8], parsed: &Parsed) -> &'a [u8] {
    &bytes[parsed.body_at..parsed.body_at + parsed.body_len]
}

fn item(bytes: &[u8], at: usize, parsed: &Parsed) -> Item {
    let kept = match parsed.header.kind {
        Kind::Entry => parsed.body_len.min(record::ENTRY_PREFIX_BYTES),
        _ => parsed.body_len,
    };
    Item {
        header: parsed.header,
        at: at as u64,
        end: parsed.end() as u64,
        body_at: parsed.body_at as u64,
        body_len: parsed.body_len,
        body: body(bytes, parsed)[..kept].to_vec(),
    }
}

/// Takes the segments that count out of `segments`, oldest first: from the newest back along the links.
fn chain(
    disk: &dyn Disk,
    segments: &mut BTreeMap<u64, Scanned>,
) -> Result<Option<Vec<Scanned>>, WalError> {
    let Some((_, last)) = segments.pop_last() else { return Ok(None) };
    let mut first_generation = last.first_generation();
    let mut chain = vec![last];
    loop {
        let next = chain.last().expect("never empty");
        if next.generation() <= first_generation {
            break;
        }
        let (generation, sequence) = (next.head.previous_generation, next.head.previous_sequence);
        let missing = format!("the segment before it (generation {generation}) is missing");
        let Some(mut segment) = segments.remove(&generation) else {
            return Err(corrupt(disk, &slot_path(next.slot), 0, &missing));
        };
        if segment.items.last().is_none_or(|item| item.header.sequence < sequence) && !bug!(M10) {
            let why = "a later segment says that it goes on";
            return Err(corrupt(disk, &slot_path(segment.slot), segment.end(), why));
        }
        segment.items.retain(|item| item.header.sequence <= sequence);
        first_generation = first_generation.max(segment.first_generation());
        chain.push(segment);
    }
    chain.reverse();
    Ok(Some(chain))
}

/// A purge record: the last entry that is gone, and the oldest segment that is still needed.
pub fn encode_purge(id: &LogId, first_generation: u64) -> Vec<u8> {
    let mut out = record::encode_id(id).to_vec();
    out.extend_from_slice(&first_generation.to_le_bytes());
    out
}

fn decode_purge(item: &Item) -> Option<(LogId, u64)> {
    let id = record::decode_id(item.header.index, &item.body)?;
    let first = item.body.get(record::ENTRY_PREFIX_BYTES..)?;
    Some((id, u64::from_le_bytes(first.try_into().ok()?)))
}

fn replay(disk: &dyn Disk, chain: &[Scanned], out: &mut Recovered) -> Result<(), WalError> {
    let purges = chain.iter().flat_map(|segment| &segment.items).filter_map(|item| {
        (item.header.kind == Kind::Purge).then(|| decode_purge(item).map(|(id, _)| id)).flatten()
    });
    out.purged = purges.chain(chain.iter().filter_map(|segment| segment.head.purged)).max();
    for segment in chain {
        let mut last_index = 0;
        for item in &segment.items {
            if !replay_item(segment, item, out) && !bug!(M10) {
                let why = "the record verifies, but does not follow from those before it";
                return Err(corrupt(disk, &slot_path(segment.slot), item.at, why));
            }
            if item.header.kind == Kind::Entry {
                last_index = last_index.max(item.header.index);
            }
        }
        let live = LiveSegment { slot: segment.slot, last_index };
        out.live.insert(segment.generation(), live);
    }
    Ok(())
}

fn replay_item(segment: &Scanned, item: &Item, out: &mut Recovered) -> bool {
    let index = item.header.index;
    let base = out.purged.map_or(0, |id| id.index.0) + 1;
    match item.header.kind {
        Kind::Head => {
            out.vote = out.vote.max(segment.head.vote);
            out.committed = out.committed.max(segment.head.committed);
        }
        Kind::Entry if index < base => {}
        Kind::Entry => {
            let Some(id) = record::decode_id(index, &item.body) else { return false };
            if index != base + out.entries.len() as u64 {
                return false;
            }
            let prefix = record::ENTRY_PREFIX_BYTES;
            out.entries.push_back(Located {
                id,
                generation: item.header.generation,
                offset: item.body_at + prefix as u64,
                len: item.body_len - prefix,
            });
        }
        Kind::Vote => {
            let Some(vote) = record::decode_vote(&item.body) else { return false };
            out.vote = out.vote.max(Some(vote));
        }
        Kind::Truncate => out.entries.truncate(index.saturating_sub(base) as usize),
        Kind::Committed => out.committed = out.committed.max(record::decode_id(index, &item.body)),
        Kind::Install => out.installing = record::decode_id(index, &item.body),
        Kind::Purge | Kind::Mark => {}
    }
    true
}
