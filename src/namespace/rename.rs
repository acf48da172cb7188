//! Rename, with the outcomes and their order as in Linux.

use super::state::{Inode, Outcome, State, vet_name};
use crate::errno::Errno;
use crate::ids::{ROOT, SessionId};
use crate::limits::LINKS_MAX;
use crate::pb::{Attr, DentryRow, OpResult, RenameOp};

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

/// One side of a rename: a name in a directory and what it names.
struct Side {
    name: Vec<u8>,
    entry: DentryRow,
    inode: Inode,
}

/// The two directories, or the one.
struct Dirs {
    old: Inode,
    new: Option<Inode>,
}

impl Dirs {
    fn new_dir(&mut self) -> &mut Inode {
        self.new.as_mut().unwrap_or(&mut self.old)
    }
}

impl State<'_> {
    pub fn rename(&mut self, session: SessionId, op: &RenameOp) -> Outcome<OpResult> {
        if !matches!(op.flags, 0 | NOREPLACE | EXCHANGE) {
            return Err(Errno::EINVAL.into());
        }
        let exchange = op.flags == EXCHANGE;
        let old = self.live_dir(op.parent)?;
        let new = self.live_dir(op.new_parent)?;
        vet_name(&op.name)?;
        vet_name(&op.new_name)?;
        let source = self.side(&old, &op.name)?.ok_or(Errno::ENOENT)?;
        let target = self.side(&new, &op.new_name)?;
        if op.flags == NOREPLACE && target.is_some() {
            return Err(Errno::EEXIST.into());
        }
        if exchange && target.is_none() {
            return Err(Errno::ENOENT.into());
        }
        self.vet_ancestry(op, &source, target.as_ref())?;
        if let Some(target) = &target
            && target.entry.inode == source.entry.inode
        {
            crate::mark!("rename onto another name of the same inode");
            // Without the directories: nothing happened to them, and both names stay.
            return Ok(OpResult { attr: Some(source.inode.attr), ..OpResult::default() });
        }
        let across = op.parent != op.new_parent;
        vet_kinds(&source, target.as_ref(), exchange)?;
        if across {
            vet_links(&source, target.as_ref(), (&old, &new), exchange)?;
        }
        let mut dirs = Dirs { old, new: across.then_some(new) };
        let (attr, victim) = match target {
            Some(target) if exchange => self.exchange(&mut dirs, source, target)?,
            Some(target) => {
                let pin = op.pin_victim.then_some(session);
                self.replace(&mut dirs, source, target, pin)?
            }
            None => (self.move_to(&mut dirs, source, &op.new_name)?, None),
        };
        let new_parent = dirs.new.take().map(|mut dir| {
            dir.modified(self.now);
            self.save(dir)
        });
        dirs.old.modified(self.now);
        let parent = self.save(dirs.old)?;
        let new_parent = Some(new_parent.transpose()?.unwrap_or(parent));
        Ok(OpResult {
            attr: Some(attr),
            parent: Some(parent),
            new_parent,
            victim,
            ..OpResult::default()
        })
    }

    fn side(&self, dir: &Inode, name: &[u8]) -> Outcome<Option<Side>> {
        let Some(entry) = self.dentry(dir, name)? else { return Ok(None) };
        let inode = self.inode(entry.inode)?;
        Ok(Some(Side { name: name.to_vec(), entry, inode }))
    }

    /// A directory never moves below itself (EINVAL), and nothing replaces a directory that contains the
    /// source (ENOTEMPTY; exchanged: EINVAL). Walks up from both parents.
    fn vet_ancestry(&self, op: &RenameOp, source: &Side, target: Option<&Side>) -> Outcome<()> {
        if op.parent == op.new_parent {
            return Ok(());
        }
        let below_source = source.inode.is_dir() && self.is_below(op.new_parent, source)?;
        if below_source && !crate::bug!(M44) {
            return Err(Errno::EINVAL.into());
        }
        if let Some(target) = target
            && target.inode.is_dir()
            && self.is_below(op.parent, target)?
        {
            let exchange = op.flags == EXCHANGE;
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY }.into());
        }
        Ok(())
    }

    /// Whether the directory `dir` is `top` or below it. ELOOP, and no walk without end, where directories hold
    /// each other.
    fn is_below(&self, mut dir: u64, top: &Side) -> Outcome<bool> {
        let top = top.entry.inode;
        for _ in 0..=self.counters.inodes {
            if dir == top {
                return Ok(true);
            }
            if dir == ROOT.get() || dir == 0 {
                return Ok(false);
            }
            dir = self.inode(dir)?.row.parent;
        }
        Err(Errno::ELOOP.into())
    }

    /// Both names stay and change what they name.
    fn exchange(
        &mut self,
        dirs: &mut Dirs,
        mut source: Side,
        mut target: Side,
    ) -> Outcome<(Attr, Option<Attr>)> {
        let new_dir = dirs.new_dir().id();
        let old_dir = dirs.old.id();
        self.put_entry(new_dir, &target.name, &source.inode.attr, target.entry.cookie)?;
        self.put_entry(old_dir, &source.name, &target.inode.attr, source.entry.cookie)?;
        if new_dir != old_dir {
            let (forth, back) = (source.inode.is_dir(), target.inode.is_dir());
            dirs.new_dir().attr.nlink += u32::from(forth);
            dirs.new_dir().attr.nlink -= u32::from(back);
            dirs.old.attr.nlink += u32::from(back);
            dirs.old.attr.nlink -= u32::from(forth);
            if forth {
                source.inode.row.parent = new_dir.get();
            }
            if back {
                target.inode.row.parent = old_dir.get();
            }
        }
        source.inode.changed(self.now);
        target.inode.changed(self.now);
        let other = self.save(target.inode)?;
        Ok((self.save(source.inode)?, Some(other)))
    }

    /// The target's name now names the source; the target loses a name.
    fn replace(
        &mut self,
        dirs: &mut Dirs,
        mut source: Side,
        target: Side,
        pin: Option<SessionId>,
    ) -> Outcome<(Attr, Option<Attr>)> {
        self.remove_entry(&mut dirs.old, &source.name, &source.entry)?;
        let new_dir = dirs.new_dir().id();
        self.put_entry(new_dir, &target.name, &source.inode.attr, target.entry.cookie)?;
        if source.inode.is_dir() {
            // The victim is a directory too: the new parent loses one and gains one.
            dirs.old.attr.nlink -= 1;
            source.inode.row.parent = new_dir.get();
        }
        source.inode.changed(self.now);
        let victim = if target.inode.is_dir() {
            self.remove_dir(pin, target.inode)?
        } else {
            self.lose_name(pin, target.inode)?
        };
        Ok((self.save(source.inode)?, Some(victim)))
    }

    fn move_to(&mut self, dirs: &mut Dirs, mut source: Side, new_name: &[u8]) -> Outcome<Attr> {
        // M43: the old name goes in a step of its own, which may never come.
        if !crate::bug!(M43) {
            self.remove_entry(&mut dirs.old, &source.name, &source.entry)?;
        }
        let new_dir = dirs.new_dir().id();
        if source.inode.is_dir() {
            dirs.old.attr.nlink -= 1;
            dirs.new_dir().attr.nlink += 1;
            source.inode.row.parent = new_dir.get();
        }
        source.inode.changed(self.now);
        self.add_entry(dirs.new_dir(), new_name, &source.inode.attr)?;
        self.save(source.inode)
    }
}

fn vet_kinds(source: &Side, target: Option<&Side>, exchange: bool) -> Result<(), Errno> {
    let Some(target) = target else { return Ok(()) };
    if exchange {
        return Ok(());
    }
    match (source.inode.is_dir(), target.inode.is_dir()) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        (true, true) if target.inode.row.entries > 0 => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

/// A directory that gains a subdirectory gains a link.
fn vet_links(
    source: &Side,
    target: Option<&Side>,
    (old, new): (&Inode, &Inode),
    exchange: bool,
) -> Result<(), Errno> {
    let forth = source.inode.is_dir();
    let back = target.is_some_and(|t| t.inode.is_dir());
    let new_gains = forth && !back;
    let old_gains = exchange && back && !forth;
    if (new_gains && new.attr.nlink >= LINKS_MAX) || (old_gains && old.attr.nlink >= LINKS_MAX) {
        return Err(Errno::EMLINK);
    }
    Ok(())
}
