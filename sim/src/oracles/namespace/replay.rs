//! The committed log replayed through the model filesystem, which shares no code with the state machine.

use super::compare::{Expect, Expected, agree};
use crate::oracles::linear::Model;
use crate::stats;
use mooseng::errno::Errno;
use mooseng::pb::op::Op;
use mooseng::pb::query::Query;
use mooseng::pb::query_result::Result as Found;
use mooseng::pb::{self, FileKind};
use mooseng_proptests::{FsOp, FsOut, ModelFs, Stat};
use std::collections::BTreeMap;
use std::ops::Range;

/// Something that happens to the namespace, or a look at it.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// The cluster begins.
    Init,
    /// The time of the command whose effects follow.
    Time(u64),
    /// A session begins, with these inode numbers.
    Begin(u64, Range<u64>),
    /// A session ends, and drops so many of its pins: the first by inode.
    End(u64, u64),
    /// An operation of a session.
    Change(u64, Op),
    /// A query.
    Look(Query),
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// To an operation.
    Change(pb::OpResult),
    /// To a query.
    Look(pb::QueryResult),
}

/// The model, and what the model does not know of sessions.
#[derive(Default)]
pub struct Replay {
    fs: ModelFs,
    granted: BTreeMap<u64, Vec<Range<u64>>>,
    highest_granted: u64,
    held: BTreeMap<(u64, u64), u64>,
    /// The last change counter seen of each inode, and its attributes then.
    counters: BTreeMap<u64, (u64, Stat)>,
    /// Cookies of directory entries; a name that stays keeps its own.
    cookies: BTreeMap<(u64, Vec<u8>), u64>,
}

impl Model for Replay {
    type Op = Act;
    type Out = Told;

    fn step(&mut self, act: &Act, seen: &[&Told]) -> Result<(), String> {
        match act {
            Act::Init => self.fs = ModelFs::new(self.fs.now),
            Act::Time(ns) => self.fs.now = self.fs.now.max(i64::try_from(*ns).unwrap_or(i64::MAX)),
            Act::Begin(session, range) => return self.grant(*session, range.clone()),
            Act::End(session, dropped) => return self.end(*session, *dropped),
            Act::Change(session, op) => return self.change(*session, op, seen),
            Act::Look(query) => {
                for told in seen {
                    let Told::Look(result) = told else {
                        return Err("not a query's answer".into());
                    };
                    self.look(query, result)?;
                }
            }
        }
        Ok(())
    }
}

impl Replay {
    fn grant(&mut self, session: u64, range: Range<u64>) -> Result<(), String> {
        if range.start <= self.highest_granted {
            return Err(format!("inodes {range:?} given a second time"));
        }
        self.highest_granted = range.end - 1;
        self.granted.entry(session).or_default().push(range);
        Ok(())
    }

    fn entry(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.fs.nodes().get(&dir)?.entries.get(name).copied()
    }

    fn expect(&mut self, ino: u64) -> Option<Expect> {
        Some(match self.fs.apply(&FsOp::Getattr { ino }) {
            Ok(FsOut::Stat(stat)) => Expect::Is(stat),
            _ => Expect::Gone(ino),
        })
    }

    // ---- changes ----

    fn change(&mut self, session: u64, op: &Op, seen: &[&Told]) -> Result<(), String> {
        let seen = seen.iter().map(|told| match told {
            Told::Change(result) => Ok(*result),
            Told::Look(_) => Err("not an operation's answer".to_owned()),
        });
        let seen = seen.collect::<Result<Vec<pb::OpResult>, String>>()?;
        let touched = touched(op);
        let was: Vec<bool> = touched.iter().map(|(dir, n)| self.entry(*dir, n).is_some()).collect();
        let expected = match op {
            Op::AllocInodes(_) => return self.alloc(session, &seen),
            // Chunks are no part of the namespace.
            Op::SealOwn(_) => return Ok(()),
            // Whether bytes may be referred to is the business of O2 and O3.
            Op::Commit(_) if seen.iter().any(|result| refuses_bytes(result.errno)) => return Ok(()),
            op => self.run(session, op),
        };
        for ((dir, name), was) in touched.into_iter().zip(was) {
            if !(was && self.entry(dir, &name).is_some()) {
                self.cookies.remove(&(dir, name));
            }
        }
        seen.iter().try_for_each(|result| {
            agree(&expected, result)?;
            let attrs = [result.attr, result.parent, result.new_parent, result.victim];
            attrs.iter().flatten().try_for_each(|attr| self.counts(attr))
        })
    }

    /// Runs the operation; what must be answered.
    fn run(&mut self, session: u64, op: &Op) -> Expected {
        match self.try_run(session, op) {
            Ok(expected) => expected,
            Err(errno) => Expected { errno: errno.get(), ..Expected::default() },
        }
    }

    fn try_run(&mut self, session: u64, op: &Op) -> Result<Expected, Errno> {
        match op {
            Op::Create(op) => self.create(session, op),
            Op::Link(op) => {
                let (ino, parent) = (op.inode, op.parent);
                self.fs.apply(&FsOp::Link { ino, parent, name: op.name.to_vec() })?;
                Ok(self.attrs(Some(ino), Some(parent)))
            }
            Op::Unlink(op) => {
                let unlink = FsOp::Unlink { parent: op.parent, name: op.name.to_vec() };
                let victim = self.entry(op.parent, &op.name);
                self.hold_over(op.pin.then_some(session), victim, &unlink)?;
                let victim = self.attrs(victim, Some(op.parent));
                Ok(Expected { victim: victim.attr, ..victim })
            }
            Op::Rmdir(op) => {
                let victim = self.entry(op.parent, &op.name);
                self.fs.apply(&FsOp::Rmdir { parent: op.parent, name: op.name.to_vec() })?;
                let victim = self.attrs(victim, Some(op.parent));
                Ok(Expected { victim: victim.attr, ..victim })
            }
            Op::Rename(op) => self.rename(session, op),
            Op::Setattr(op) => self.setattr(op),
            Op::Commit(op) => self.commit(op),
            Op::Setxattr(op) => {
                let (ino, name, value) = (op.inode, op.name.to_vec(), op.value.to_vec());
                self.fs.apply(&FsOp::Setxattr { ino, name, value, flags: op.flags })?;
                Ok(self.attrs(Some(ino), None))
            }
            Op::Removexattr(op) => {
                self.fs.apply(&FsOp::Removexattr { ino: op.inode, name: op.name.to_vec() })?;
                Ok(self.attrs(Some(op.inode), None))
            }
            Op::Pin(op) => {
                self.hold(session, op.inode)?;
                Ok(self.attrs(Some(op.inode), None))
            }
            Op::Unpin(op) => {
                let held = self.let_go(session, op.inode);
                Ok(self.attrs(held.then_some(op.inode), None))
            }
            Op::Refused(op) => Err(Errno::new(op.errno)),
            Op::AllocInodes(_) | Op::SealOwn(_) => Err(Errno::EINVAL),
        }
    }

    fn attrs(&mut self, ino: Option<u64>, parent: Option<u64>) -> Expected {
        let attr = ino.and_then(|ino| self.expect(ino));
        let parent = parent.and_then(|ino| self.expect(ino));
        Expected { attr, parent, ..Expected::default() }
    }

    fn create(&mut self, session: u64, op: &pb::CreateOp) -> Result<Expected, Errno> {
        let ranges = self.granted.get(&session);
        let granted = ranges.is_some_and(|all| all.iter().any(|range| range.contains(&op.inode)));
        let create = FsOp::Create {
            parent: op.parent,
            name: op.name.to_vec(),
            ino: op.inode,
            kind: op.kind(),
            mode: op.mode,
            uid: op.uid,
            gid: op.gid,
            target: op.target.to_vec(),
        };
        let usable = granted && !self.fs.nodes().contains_key(&op.inode);
        let done = match usable {
            true => self.fs.apply(&create),
            // Refused, but names are looked at first.
            false => self.fs.clone().apply(&create).and(Err(Errno::EINVAL)),
        };
        if done == Err(Errno::EEXIST) {
            let there = self.attrs(self.entry(op.parent, &op.name), Some(op.parent));
            return Ok(Expected { errno: Errno::EEXIST.get(), ..there });
        }
        done?;
        let size = end_of(&op.extents).max(op.size);
        if size > 0 {
            self.fs.apply(&FsOp::Truncate { ino: op.inode, size })?;
        }
        if op.pin {
            self.hold(session, op.inode)?;
        }
        Ok(self.attrs(Some(op.inode), Some(op.parent)))
    }

    fn rename(&mut self, session: u64, op: &pb::RenameOp) -> Result<Expected, Errno> {
        let source = self.entry(op.parent, &op.name);
        let target = self.entry(op.new_parent, &op.new_name);
        let (exchange, same) = (op.flags == 2, source == target);
        let rename = FsOp::Rename {
            parent: op.parent,
            name: op.name.to_vec(),
            new_parent: op.new_parent,
            new_name: op.new_name.to_vec(),
            flags: op.flags,
        };
        let pin = (op.pin_victim && !exchange && !same).then_some(session);
        self.hold_over(pin, target, &rename)?;
        if same {
            // Nothing happened to the directories.
            return Ok(self.attrs(source, None));
        }
        let expected = self.attrs(source, Some(op.parent));
        let victim = target.and_then(|ino| self.expect(ino));
        Ok(Expected { new_parent: self.expect(op.new_parent), victim, ..expected })
    }

    fn setattr(&mut self, op: &pb::SetattrOp) -> Result<Expected, Errno> {
        let (ino, now) = (op.inode, self.fs.now);
        if let Some(size) = op.size {
            self.fs.apply(&FsOp::Truncate { ino, size })?;
        }
        if op.uid.is_some() || op.gid.is_some() {
            self.fs.apply(&FsOp::Chown { ino, uid: op.uid, gid: op.gid })?;
        }
        if let Some(mode) = op.mode {
            self.fs.apply(&FsOp::Chmod { ino, mode })?;
        }
        let atime = if op.atime_now { Some(now) } else { op.atime_ns };
        let mtime = if op.mtime_now { Some(now) } else { op.mtime_ns };
        self.fs.apply(&FsOp::Utimens { ino, atime, mtime })?;
        if op.kill_priv {
            self.kill_privileges(ino)?;
        }
        Ok(self.attrs(Some(ino), None))
    }

    /// What a change of owner to the same one takes away; nothing from directories.
    fn kill_privileges(&mut self, ino: u64) -> Result<(), Errno> {
        let node = self.fs.nodes().get(&ino).ok_or(Errno::ESTALE)?;
        let (uid, gid) = (Some(node.uid), Some(node.gid));
        self.fs.apply(&FsOp::Chown { ino, uid, gid }).map(drop)
    }

    fn commit(&mut self, op: &pb::CommitOp) -> Result<Expected, Errno> {
        let node = self.fs.nodes().get(&op.inode).ok_or(Errno::ESTALE)?;
        stats::count("O1 commits checked");
        let size = end_of(&op.extents).max(op.size_at_least).max(node.data.len() as u64);
        let mtime = op.mtime_ns.or(Some(self.fs.now));
        self.fs.apply(&FsOp::Truncate { ino: op.inode, size })?;
        self.fs.apply(&FsOp::Utimens { ino: op.inode, atime: None, mtime })?;
        if op.kill_priv {
            self.kill_privileges(op.inode)?;
        }
        Ok(self.attrs(Some(op.inode), None))
    }

    fn alloc(&mut self, session: u64, seen: &[pb::OpResult]) -> Result<(), String> {
        let Some(first) = seen.first() else { return Err("nobody knows which inodes".to_owned()) };
        if first.errno != 0 || first.inode_count == 0 || seen.iter().any(|told| told != first) {
            return Err(format!("inodes were given as {seen:?}"));
        }
        let range = first.first_inode..first.first_inode + u64::from(first.inode_count);
        self.grant(session, range)
    }

    // ---- open files ----

    fn hold(&mut self, session: u64, ino: u64) -> Result<bool, Errno> {
        if !self.fs.nodes().contains_key(&ino) {
            return Err(Errno::ESTALE);
        }
        if self.held.contains_key(&(ino, session)) {
            return Ok(false);
        }
        let handle = self.fs.hold(session as usize, ino)?;
        self.held.insert((ino, session), handle);
        Ok(true)
    }

    fn end(&mut self, session: u64, dropped: u64) -> Result<(), String> {
        self.granted.remove(&session);
        let held = self.held.keys().filter(|(_, holder)| *holder == session);
        let held: Vec<u64> = held.map(|(ino, _)| *ino).collect();
        let most = usize::try_from(dropped).unwrap_or(usize::MAX);
        if most == 0 && !held.is_empty() || most > held.len() {
            return Err(format!(
                "{session} drops {dropped} pins at its end, it has {}",
                held.len()
            ));
        }
        for ino in held.into_iter().take(most) {
            self.let_go(session, ino);
        }
        Ok(())
    }

    fn let_go(&mut self, session: u64, ino: u64) -> bool {
        let handle = self.held.remove(&(ino, session));
        handle.is_some_and(|handle| self.fs.apply(&FsOp::Close { handle }).is_ok())
    }

    /// Runs an operation that takes the victim's name but keeps the inode for the session.
    fn hold_over(&mut self, pin: Option<u64>, victim: Option<u64>, op: &FsOp) -> Result<(), Errno> {
        let Some((session, victim)) = pin.zip(victim) else { return self.fs.apply(op).map(drop) };
        let newly = self.hold(session, victim)?;
        let done = self.fs.apply(op).map(drop);
        if done.is_err() && newly {
            self.let_go(session, victim);
        }
        done
    }

    // ---- looks ----

    fn look(&mut self, query: &Query, result: &pb::QueryResult) -> Result<(), String> {
        let expected = match query {
            Query::Lookup(q) => {
                self.fs.apply(&FsOp::Lookup { parent: q.parent, name: q.name.to_vec() })
            }
            Query::Getattr(q) => self.fs.apply(&FsOp::Getattr { ino: q.inode }),
            Query::Readdir(q) => self.fs.apply(&FsOp::Readdir { ino: q.inode }),
            Query::Readlink(q) => self.fs.apply(&FsOp::Readlink { ino: q.inode }),
            Query::Getxattr(q) => {
                self.fs.apply(&FsOp::Getxattr { ino: q.inode, name: q.name.to_vec() })
            }
            Query::Listxattr(q) => self.fs.apply(&FsOp::Listxattr { ino: q.inode }),
            Query::Extents(q) => self.regular(q.inode),
            Query::Statfs(_) | Query::Chunks(_) | Query::Classes(_) => return Ok(()),
        };
        if result.errno != Errno::code(&expected) {
            return Err(format!("answered errno {}, must be {expected:?}", result.errno));
        }
        self.beside(query, result)?;
        match (expected, &result.result) {
            (Err(_), _) => Ok(()),
            (Ok(FsOut::Stat(stat)), Some(Found::Attr(attr))) => self.same(&stat, attr),
            (Ok(FsOut::Stat(stat)), Some(Found::Extents(found))) => {
                self.same(&stat, found.attr.as_ref().ok_or("no attributes")?)
            }
            (Ok(FsOut::Data(data)), Some(Found::Data(found))) if data == *found => Ok(()),
            (Ok(FsOut::Data(data)), None) if data.is_empty() => Ok(()),
            (Ok(FsOut::Names(names)), Some(Found::Names(found))) if names == found.names => Ok(()),
            (Ok(FsOut::Names(names)), None) if names.is_empty() => Ok(()),
            (Ok(FsOut::Entries(entries)), Some(Found::Readdir(page))) => match query {
                Query::Readdir(q) => self.page(q, &entries, page),
                _ => Err("a page of a directory for another question".to_owned()),
            },
            (expected, found) => Err(format!("answered {found:?}, must be {expected:?}")),
        }
    }

    /// What extents are asked of is a regular file.
    fn regular(&mut self, ino: u64) -> Result<FsOut, Errno> {
        match self.fs.apply(&FsOp::Getattr { ino })? {
            FsOut::Stat(stat) if stat.kind == FileKind::Directory => Err(Errno::EISDIR),
            FsOut::Stat(stat) if stat.kind != FileKind::Regular => Err(Errno::EINVAL),
            stat => Ok(stat),
        }
    }

    /// The directory's own attributes, which come with names.
    fn beside(&mut self, query: &Query, result: &pb::QueryResult) -> Result<(), String> {
        let dir = match query {
            Query::Lookup(q) => q.parent,
            Query::Readdir(q) => q.inode,
            _ => return Ok(()),
        };
        match (self.expect(dir), &result.dir) {
            (Some(Expect::Is(stat)), Some(attr)) => self.same(&stat, attr),
            (_, Some(attr)) => Err(format!("a directory that is gone has {attr:?}")),
            (_, None) if result.errno == 0 => Err("names without their directory".to_owned()),
            (_, None) => Ok(()),
        }
    }

    fn same(&mut self, stat: &Stat, attr: &pb::Attr) -> Result<(), String> {
        if Stat::of(attr.inode, attr) != *stat {
            return Err(format!("answered {attr:?}, must be {stat:?}"));
        }
        self.counts(attr)
    }

    /// The change counter never falls, and rises with every change of what stat shows.
    fn counts(&mut self, attr: &pb::Attr) -> Result<(), String> {
        let now = (attr.change, Stat::of(attr.inode, attr));
        let Some(before) = self.counters.insert(attr.inode, now) else { return Ok(()) };
        let rises = now.0 > before.0 || (now.0 == before.0 && now.1 == before.1);
        match rises {
            true => Ok(()),
            false => Err(format!("change counter {} with {:?}, then {now:?}", before.0, before.1)),
        }
    }

    /// A page holds just the names behind its cookie, in the order of cookies, without gaps.
    fn page(
        &mut self,
        q: &pb::ReaddirQuery,
        entries: &[(Vec<u8>, u64, FileKind)],
        page: &pb::ReaddirResult,
    ) -> Result<(), String> {
        let mut last = q.cookie;
        for found in &page.entries {
            let name = found.name.to_vec();
            if found.cookie <= last {
                return Err(format!("cookie {} after {last}", found.cookie));
            }
            last = found.cookie;
            if !entries.contains(&(name.clone(), found.inode, found.kind())) {
                return Err(format!("lists {found:?}, the directory has {entries:?}"));
            }
            let known = *self.cookies.entry((q.inode, name)).or_insert(found.cookie);
            if known != found.cookie {
                return Err(format!("{found:?} had cookie {known} before"));
            }
            if let (Some(attr), Some(Expect::Is(stat))) = (&found.attr, self.expect(found.inode)) {
                self.same(&stat, attr)?;
            }
        }
        let upto = if page.end { u64::MAX } else { last };
        let skipped = entries.iter().find(|(name, ..)| {
            let listed = page.entries.iter().any(|found| found.name == *name);
            let cookie = self.cookies.get(&(q.inode, name.clone())).copied();
            let due = cookie.map(|cookie| cookie > q.cookie && cookie <= upto);
            !listed && due.unwrap_or(page.end && q.cookie == 0)
        });
        skipped.map_or(Ok(()), |name| Err(format!("{name:?} is missing behind {}", q.cookie)))
    }
}

fn refuses_bytes(errno: i32) -> bool {
    [Errno::ECANCELED, Errno::EFBIG].iter().any(|refusal| refusal.get() == errno)
}

fn end_of(extents: &[pb::Extent]) -> u64 {
    extents.iter().map(|extent| extent.file_off + extent.len).max().unwrap_or(0)
}

/// Names that an operation may give or take.
fn touched(op: &Op) -> Vec<(u64, Vec<u8>)> {
    match op {
        Op::Create(op) => vec![(op.parent, op.name.to_vec())],
        Op::Link(op) => vec![(op.parent, op.name.to_vec())],
        Op::Unlink(op) => vec![(op.parent, op.name.to_vec())],
        Op::Rmdir(op) => vec![(op.parent, op.name.to_vec())],
        Op::Rename(op) => {
            vec![(op.parent, op.name.to_vec()), (op.new_parent, op.new_name.to_vec())]
        }
        _ => vec![],
    }
}
