//! Names, link counts and the shape of the tree; pins and sessions.

use super::{Verdict, Violation, all, hold, same};
use crate::ids::{InodeId, ROOT, Seq, SessionId};
use crate::limits::LINKS_MAX;
use crate::namespace::FIRST_COOKIE;
use crate::namespace::state::Inode;
use crate::namespace::tables::{
    ChunkRequests, Cookies, Counters, Dentries, Inodes, OpenChunks, Pins, Replies, SessionNonces,
    SessionPins, Sessions, Tombstones,
};
use crate::pb::{EmptyRow, FileKind, SessionRow};
use crate::tables::Read;
use std::collections::{BTreeMap, BTreeSet};

pub(super) type Inodes_ = BTreeMap<InodeId, Inode>;

/// What the entries say of an inode.
#[derive(Default)]
struct Named {
    names: u32,
    entries: u64,
    subdirs: u32,
}

pub(super) fn check(read: &impl Read) -> Result<Inodes_, Violation> {
    let rows = all::<Inodes>(read)?;
    let inodes: Inodes_ = rows.into_iter().map(|(id, row)| (id, Inode::from_row(row))).collect();
    for (id, inode) in &inodes {
        hold!(inode.id() == *id, "{id}: the row names {}", inode.id());
        hold!(inode.attr.kind() != FileKind::Unspecified, "{id} is of no kind");
        hold!(inode.attr.mode & !0o7777 == 0, "{id}: mode {:o}", inode.attr.mode);
    }
    entries(read, &inodes)?;
    connected(&inodes)?;
    pins(read, &inodes)?;
    sessions(read, &inodes)?;
    Ok(inodes)
}

fn entries(read: &impl Read, inodes: &Inodes_) -> Verdict {
    let mut named: BTreeMap<InodeId, Named> = BTreeMap::new();
    let mut cookies = BTreeMap::new();
    for ((dir, name), entry) in all::<Dentries>(read)? {
        let shown = String::from_utf8_lossy(&name).into_owned();
        let parent = inodes.get(&dir);
        hold!(parent.is_some_and(Inode::is_dir), "entry {shown:?} in {dir}, which is no directory");
        let child = InodeId(entry.inode);
        let inode = inodes.get(&child).ok_or_else(|| {
            Violation(format!("{dir}/{shown:?} names {child}, which is not there"))
        })?;
        hold!(inode.attr.kind == entry.kind, "{dir}/{shown:?}: kind differs from {child}");
        let next = parent.map_or(0, |p| p.row.next_cookie);
        hold!(
            (FIRST_COOKIE..next).contains(&entry.cookie),
            "{dir}/{shown:?}: cookie {}",
            entry.cookie
        );
        hold!(!inode.is_dir() || inode.row.parent == dir.get(), "{child}: its parent is not {dir}");
        named.entry(child).or_default().names += 1;
        let of_dir = named.entry(dir).or_default();
        of_dir.entries += 1;
        of_dir.subdirs += u32::from(inode.is_dir());
        let clash = cookies.insert((dir, entry.cookie), name);
        hold!(clash.is_none(), "{dir}: cookie {} twice", entry.cookie);
    }
    let rows = all::<Cookies>(read)?;
    let stored = rows.into_iter().map(|(key, row)| (key, row.name.to_vec())).collect();
    same("cookie", &stored, &cookies)?;
    let none = Named::default();
    for (id, inode) in inodes {
        links(*id, inode, named.get(id).unwrap_or(&none))?;
    }
    Ok(())
}

fn links(id: InodeId, inode: &Inode, named: &Named) -> Verdict {
    let (attr, row) = (&inode.attr, &inode.row);
    hold!(attr.nlink <= LINKS_MAX, "{id}: {} links", attr.nlink);
    if !inode.is_dir() {
        hold!(attr.nlink == named.names, "{id}: nlink {}, names {}", attr.nlink, named.names);
        hold!(row.entries == 0 && row.parent == 0, "{id} is no directory but has entries");
        return Ok(());
    }
    hold!(row.entries == named.entries, "{id}: {} entries, has {}", row.entries, named.entries);
    let names = named.names + u32::from(id == ROOT);
    hold!(names <= 1, "directory {id} has {names} names");
    let expected = if names == 0 { 0 } else { 2 + named.subdirs };
    hold!(attr.nlink == expected, "directory {id}: nlink {}, should be {expected}", attr.nlink);
    hold!(names == 1 || named.entries == 0, "removed directory {id} has entries");
    hold!(names == 1 || row.parent == 0, "removed directory {id} has a parent");
    Ok(())
}

/// Every directory with a name is reachable: walking up ends at the root.
fn connected(inodes: &Inodes_) -> Verdict {
    for (id, inode) in inodes.iter().filter(|(_, inode)| inode.is_dir()) {
        let mut at = (*id, inode);
        let mut steps = 0;
        while at.0 != ROOT && at.1.attr.nlink > 0 {
            let parent = InodeId(at.1.row.parent);
            steps += 1;
            hold!(steps <= inodes.len(), "directory {id} is in a cycle");
            at = inodes
                .get_key_value(&parent)
                .map(|(id, inode)| (*id, inode))
                .ok_or_else(|| Violation(format!("directory {}: its parent is missing", at.0)))?;
        }
    }
    Ok(())
}

fn pins(read: &impl Read, inodes: &Inodes_) -> Verdict {
    let pins = all::<Pins>(read)?;
    let turned: BTreeMap<_, _> =
        pins.keys().map(|(inode, session)| ((*session, *inode), EmptyRow {})).collect();
    same("pin by session", &all::<SessionPins>(read)?, &turned)?;
    let mut counts: BTreeMap<InodeId, u32> = BTreeMap::new();
    let sessions = all::<Sessions>(read)?;
    for (inode, session) in pins.keys() {
        *counts.entry(*inode).or_default() += 1;
        hold!(sessions.contains_key(session), "{inode} is pinned by {session}, which is gone");
        hold!(inodes.contains_key(inode), "{inode} is pinned but gone");
    }
    for (id, inode) in inodes {
        let count = counts.get(id).copied().unwrap_or(0);
        hold!(inode.row.pins == count, "{id}: {} pins, has {count}", inode.row.pins);
    }
    Ok(())
}

fn sessions(read: &impl Read, inodes: &Inodes_) -> Verdict {
    let sessions = all::<Sessions>(read)?;
    let counters = read.get::<Counters>(&0)?.unwrap_or_default();
    let mut ranges = Vec::new();
    let mut nonces = BTreeMap::new();
    let mut ended = BTreeMap::new();
    let pinning: BTreeSet<SessionId> =
        all::<SessionPins>(read)?.into_keys().map(|(session, _)| session).collect();
    for (id, session) in &sessions {
        hold!(session.id == id.get(), "{id}: the row names another session");
        hold!(session.acked_seq <= session.last_seq, "{id}: acknowledged what was not applied");
        nonces.insert(session.client_nonce, session.id);
        ranges.extend(ranges_of(session));
        if session.ended {
            // Those that still have pins are not through yet.
            if !pinning.contains(id) {
                ended.insert(*id, EmptyRow {});
            }
            hold!(ranges_of(session).next().is_none(), "{id} ended but has inode ids");
        }
    }
    same("tombstone", &all::<Tombstones>(read)?, &ended)?;
    hold!(counters.tombstones == ended.len() as u64, "{} tombstones counted", counters.tombstones);
    let stored = all::<SessionNonces>(read)?.into_iter().map(|(k, row)| (k, row.id)).collect();
    same("session nonce", &stored, &nonces)?;
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        hold!(pair[0].1 <= pair[1].0, "inode id ranges {:?} and {:?} overlap", pair[0], pair[1]);
    }
    let next = counters.next_inode;
    hold!(ranges.last().is_none_or(|r| r.1 <= next), "an inode range lies beyond {next}");
    let highest = inodes.keys().next_back().map_or(0, |id| id.get());
    hold!(highest < next || next == 0, "inode {highest} lies beyond {next}");
    replies(read, &sessions)
}

fn ranges_of(session: &SessionRow) -> impl Iterator<Item = (u64, u64)> {
    let newest = (session.first_inode, session.end_inode);
    let older = session.older.iter().map(|r| (r.first, r.end));
    older.chain(std::iter::once(newest)).filter(|r| r.0 < r.1)
}

/// Exactly the replies between the acknowledged and the last operation are kept.
fn replies(read: &impl Read, sessions: &BTreeMap<SessionId, SessionRow>) -> Verdict {
    let stored = all::<Replies>(read)?.into_keys().map(|key| (key, ())).collect();
    let mut expected = BTreeMap::new();
    for (id, session) in sessions.iter().filter(|(_, s)| !s.ended) {
        let window = session.acked_seq + 1..=session.last_seq;
        expected.extend(window.map(|seq| ((*id, Seq(seq)), ())));
    }
    same("reply", &stored, &expected)?;
    let of_chunks = all::<ChunkRequests>(read)?.into_keys().map(|key| key.0);
    for session in of_chunks.chain(all::<OpenChunks>(read)?.into_keys().map(|key| key.0)) {
        let live = sessions.get(&session).is_some_and(|s| !s.ended);
        hold!(live, "{session} is not live but has chunks or requests");
    }
    Ok(())
}
