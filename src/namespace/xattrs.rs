//! Extended attributes.

use super::XATTRS_MAX;
use super::state::{Outcome, State};
use super::tables::Xattrs;
use crate::errno::Errno;
use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::pb::{OpResult, RemovexattrOp, SetxattrOp, XattrRow};
use crate::tables::Read;

const CREATE: u32 = 1;
const REPLACE: u32 = 2;

/// Names as Linux takes them: 1 to 255 bytes, no NUL (ERANGE).
pub(super) fn vet_xattr_name(name: &[u8]) -> Result<(), Errno> {
    let good = (1..=XATTR_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&0);
    if good { Ok(()) } else { Err(Errno::ERANGE) }
}

impl State<'_> {
    pub fn setxattr(&mut self, op: &SetxattrOp) -> Outcome<OpResult> {
        if !matches!(op.flags, 0 | CREATE | REPLACE) {
            return Err(Errno::EINVAL.into());
        }
        vet_xattr_name(&op.name)?;
        if op.value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Errno::E2BIG.into());
        }
        let mut inode = self.inode(op.inode)?;
        let key = (inode.id(), op.name.to_vec());
        let exists = self.db.get::<Xattrs>(&key)?.is_some();
        match (op.flags, exists) {
            (CREATE, true) => return Err(Errno::EEXIST.into()),
            (REPLACE, false) => return Err(Errno::ENODATA.into()),
            (_, false) if inode.row.xattrs >= XATTRS_MAX => return Err(Errno::ENOSPC.into()),
            _ => {}
        }
        self.db.put::<Xattrs>(&key, &XattrRow { value: op.value.clone() })?;
        inode.row.xattrs += u32::from(!exists);
        inode.changed(self.now);
        let attr = Some(self.save(inode)?);
        Ok(OpResult { attr, ..OpResult::default() })
    }

    pub fn removexattr(&mut self, op: &RemovexattrOp) -> Outcome<OpResult> {
        vet_xattr_name(&op.name)?;
        let mut inode = self.inode(op.inode)?;
        let key = (inode.id(), op.name.to_vec());
        self.db.get::<Xattrs>(&key)?.ok_or(Errno::ENODATA)?;
        self.db.delete::<Xattrs>(&key)?;
        inode.row.xattrs -= 1;
        inode.changed(self.now);
        let attr = Some(self.save(inode)?);
        Ok(OpResult { attr, ..OpResult::default() })
    }
}
