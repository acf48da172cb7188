//! Names: create, link, unlink, rmdir. Permissions and sticky bits are the kernel's business
//! (`default_permissions`); what is refused here is what no caller may do.

use super::FIRST_COOKIE;
use super::files::Content;
use super::state::{Inode, Outcome, State, vet_name};
use super::tables::{Cookies, Dentries};
use crate::errno::Errno;
use crate::ids::{InodeId, SessionId};
use crate::limits::{LINKS_MAX, TARGET_BYTES_MAX};
use crate::pb::{self, Attr, CreateOp, DentryRow, FileKind, InodeRow, OpResult, SessionRow};

pub(super) const SETUID: u32 = 0o4000;
pub(super) const SETGID: u32 = 0o2000;

impl State<'_> {
    // ---- entries: the pair of tables behind a directory ----

    /// Adds a name that the directory lacks; the caller saves the directory.
    pub fn add_entry(&mut self, dir: &mut Inode, name: &[u8], to: &Attr) -> Outcome<()> {
        let cookie = dir.row.next_cookie;
        dir.row.next_cookie += 1;
        dir.row.entries += 1;
        let name_row = pb::CookieRow { name: name.to_vec().into() };
        self.db.put::<Cookies>(&(dir.id(), cookie), &name_row)?;
        self.put_entry(dir.id(), name, to, cookie)
    }

    /// Points a name at an inode; a name that stays keeps its cookie, so that a reader of the directory
    /// meets it exactly once.
    pub fn put_entry(&mut self, dir: InodeId, name: &[u8], to: &Attr, cookie: u64) -> Outcome<()> {
        let row = DentryRow { inode: to.inode, kind: to.kind, cookie };
        Ok(self.db.put::<Dentries>(&(dir, name.to_vec()), &row)?)
    }

    pub fn remove_entry(&mut self, dir: &mut Inode, name: &[u8], entry: &DentryRow) -> Outcome<()> {
        self.db.delete::<Dentries>(&(dir.id(), name.to_vec()))?;
        self.db.delete::<Cookies>(&(dir.id(), entry.cookie))?;
        dir.row.entries -= 1;
        Ok(())
    }

    // ---- operations ----

    /// Every kind of inode. EEXIST carries the attributes of what has the name, so that an open without
    /// O_EXCL can go on with it.
    pub fn create(&mut self, session: &SessionRow, op: &CreateOp) -> Outcome<OpResult> {
        let mut dir = self.live_dir(op.parent)?;
        vet_name(&op.name)?;
        if let Some(entry) = self.dentry(&dir, &op.name)? {
            let attr = Some(self.inode(entry.inode)?.attr);
            let errno = Errno::EEXIST.get();
            return Ok(OpResult { errno, attr, parent: Some(dir.attr), ..OpResult::default() });
        }
        self.vet_new_inode(session, op.inode)?;
        let mut inode = self.new_inode(&dir, op)?;
        let content = Content { extents: &op.extents, epochs: &op.epochs, size: op.size };
        let chunks = self.vet_content(SessionId(session.id), &inode, &content)?;
        if inode.is_dir() {
            dir.attr.nlink += 1;
        }
        dir.modified(self.now);
        self.add_entry(&mut dir, &op.name, &inode.attr)?;
        self.put_content(&mut inode, &content, chunks)?;
        if op.pin {
            self.pin(SessionId(session.id), &mut inode)?;
        }
        self.counters.inodes += 1;
        let attr = Some(self.save(inode)?);
        let parent = Some(self.save(dir)?);
        Ok(OpResult { attr, parent, ..OpResult::default() })
    }

    /// The inode to be; vets what belongs to its kind.
    fn new_inode(&self, dir: &Inode, op: &CreateOp) -> Outcome<Inode> {
        let kind = op.kind();
        let is_dir = kind == FileKind::Directory;
        if is_dir && dir.attr.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        let regular = kind == FileKind::Regular;
        if kind == FileKind::Unspecified || (!regular && (!op.extents.is_empty() || op.size > 0)) {
            return Err(Errno::EINVAL.into());
        }
        let target = vet_target(op)?;
        self.vet_class(op.class)?;
        let mut attr = Attr {
            inode: op.inode,
            kind: op.kind,
            mode: op.mode & 0o7777,
            nlink: if is_dir { 2 } else { 1 },
            uid: op.uid,
            gid: op.gid,
            size: target.len() as u64,
            atime_ns: self.now,
            mtime_ns: self.now,
            ctime_ns: self.now,
            change: 1,
            class: if op.class == 0 { dir.attr.class } else { op.class },
            ..Attr::default()
        };
        if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
            attr.rdev = op.rdev;
        }
        if dir.attr.mode & SETGID != 0 {
            attr.gid = dir.attr.gid;
            attr.mode |= if is_dir { SETGID } else { 0 };
        }
        let row = InodeRow {
            parent: if is_dir { op.parent } else { 0 },
            target,
            next_cookie: if is_dir { FIRST_COOKIE } else { 0 },
            ..InodeRow::default()
        };
        Ok(Inode { attr, row })
    }

    /// A further name for something that is not a directory.
    pub fn link(&mut self, op: &pb::LinkOp) -> Outcome<OpResult> {
        let mut inode = self.inode(op.inode)?;
        let mut dir = self.live_dir(op.parent)?;
        vet_name(&op.name)?;
        if self.dentry(&dir, &op.name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        if inode.is_dir() {
            return Err(Errno::EPERM.into());
        }
        if inode.attr.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        if inode.attr.nlink >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        inode.attr.nlink += 1;
        inode.changed(self.now);
        dir.modified(self.now);
        self.add_entry(&mut dir, &op.name, &inode.attr)?;
        let attr = Some(self.save(inode)?);
        let parent = Some(self.save(dir)?);
        Ok(OpResult { attr, parent, ..OpResult::default() })
    }

    pub fn unlink(&mut self, session: SessionId, op: &pb::UnlinkOp) -> Outcome<OpResult> {
        let mut dir = self.live_dir(op.parent)?;
        vet_name(&op.name)?;
        let entry = self.dentry(&dir, &op.name)?.ok_or(Errno::ENOENT)?;
        if entry.kind() == FileKind::Directory {
            return Err(Errno::EISDIR.into());
        }
        let inode = self.inode(entry.inode)?;
        self.remove_entry(&mut dir, &op.name, &entry)?;
        dir.modified(self.now);
        let victim = self.lose_name(op.pin.then_some(session), inode)?;
        let parent = Some(self.save(dir)?);
        Ok(OpResult { attr: Some(victim), parent, victim: Some(victim), ..OpResult::default() })
    }

    /// One name less for an inode that is no directory. `pin`: this session has it open (rule D6: the pin
    /// comes with the command that takes the name).
    pub fn lose_name(&mut self, pin: Option<SessionId>, mut inode: Inode) -> Outcome<Attr> {
        inode.attr.nlink -= 1;
        inode.changed(self.now);
        if let Some(session) = pin {
            self.pin(session, &mut inode)?;
        }
        self.save_or_free(inode)
    }

    pub fn rmdir(&mut self, op: &pb::RmdirOp) -> Outcome<OpResult> {
        let mut dir = self.live_dir(op.parent)?;
        vet_name(&op.name)?;
        let entry = self.dentry(&dir, &op.name)?.ok_or(Errno::ENOENT)?;
        if entry.kind() != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        let victim = self.inode(entry.inode)?;
        if victim.row.entries > 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        self.remove_entry(&mut dir, &op.name, &entry)?;
        dir.attr.nlink -= 1;
        dir.modified(self.now);
        let victim = self.remove_dir(None, victim)?;
        let parent = Some(self.save(dir)?);
        Ok(OpResult { attr: Some(victim), parent, victim: Some(victim), ..OpResult::default() })
    }

    /// An empty directory that lost its name; who has it open still sees it, empty and unlinked.
    pub fn remove_dir(&mut self, pin: Option<SessionId>, mut dir: Inode) -> Outcome<Attr> {
        dir.attr.nlink = 0;
        dir.row.parent = 0;
        dir.changed(self.now);
        if let Some(session) = pin {
            self.pin(session, &mut dir)?;
        }
        self.save_or_free(dir)
    }
}

fn vet_target(op: &CreateOp) -> Result<bytes::Bytes, Errno> {
    if op.kind() != FileKind::Symlink {
        return if op.target.is_empty() { Ok(bytes::Bytes::new()) } else { Err(Errno::EINVAL) };
    }
    if op.target.is_empty() {
        return Err(Errno::ENOENT);
    }
    if op.target.len() > TARGET_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok(op.target.clone())
}
