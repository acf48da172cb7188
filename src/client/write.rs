//! Writing: into memory, bounded, and out again in the background.

use super::Client;
use super::handles::OpenFile;
use super::inode::Inode;
use super::types::{Handle, Manner};
use crate::errno::Errno;
use crate::limits::FILE_BYTES_MAX;
use crate::seam;
use bytes::Bytes;
use std::sync::Arc;

/// What is written: borrowed bytes are copied, own ones taken over.
enum Data<'a> {
    Borrowed(&'a [u8]),
    Owned(Bytes),
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Data::Borrowed(data) => data.len(),
            Data::Owned(data) => data.len(),
        }
    }
}

impl Client {
    /// Buffers data, waiting for room; `off` is ignored by `O_APPEND` handles. Returns bytes taken: all.
    pub async fn write(&self, handle: Handle, off: u64, data: Bytes) -> Result<usize, Errno> {
        let manner = self.handles.get(handle)?.manner();
        self.write_so(handle, off, data, manner).await
    }

    /// [`Client::write`] in another manner than the handle was opened for.
    pub async fn write_so(
        &self,
        handle: Handle,
        off: u64,
        data: Bytes,
        manner: Manner,
    ) -> Result<usize, Errno> {
        let open = self.handles.get(handle)?;
        if manner.appends {
            self.know_the_end(&open.inode).await?;
        }
        self.wait_for_room(&open, data.len()).await?;
        let len = self.buffer(&open, off, Data::Owned(data), manner)?;
        if manner.synchronous {
            let committed = self.commit_all(&open.inode).await;
            // What is told here is not told again. TWICE: it is.
            if !crate::bug!(TWICE) {
                open.failure(&mut open.inode.lock())?;
            }
            committed?;
        }
        Ok(len)
    }

    /// [`Client::write_so`] if that needs no waiting.
    pub fn write_buffered(
        &self,
        handle: Handle,
        off: u64,
        data: &[u8],
        manner: Manner,
    ) -> Option<Result<usize, Errno>> {
        let open = match self.handles.get(handle) {
            Ok(open) => open,
            Err(errno) => return Some(Err(errno)),
        };
        let must_wait = manner.synchronous
            || !self.has_room(data.len())
            || (manner.appends && !knows_the_end(&open.inode));
        if must_wait { None } else { Some(self.buffer(&open, off, Data::Borrowed(data), manner)) }
    }

    /// The end of a file that is appended to must not be an old one: asked for unless this mount has written
    /// behind it, or has heard of it within the time to live.
    async fn know_the_end(&self, inode: &Arc<Inode>) -> Result<(), Errno> {
        // M46: any size that was ever heard of will do.
        if !knows_the_end(inode) && !crate::bug!(M46) {
            self.getattr_fresh(inode.id).await?;
        }
        Ok(())
    }

    fn has_room(&self, len: usize) -> bool {
        let bytes = self.meta.dirty.bytes();
        bytes == 0 || bytes + len <= self.limits.dirty_bytes_max
    }

    /// Waits until so many bytes more may be dirty. What was written through the description and could not be written
    /// back is told here: it takes the room, and would for as long as it can not be.
    async fn wait_for_room(&self, open: &OpenFile, len: usize) -> Result<(), Errno> {
        if self.has_room(len) {
            return Ok(());
        }
        crate::mark!("writer waited for room");
        let waiting = async {
            loop {
                let room = self.meta.dirty.room.notified();
                let mut room = std::pin::pin!(room);
                room.as_mut().enable();
                if self.has_room(len) {
                    return Ok(());
                }
                // PATIENT: whoever waits for room hears of no failure.
                if !crate::bug!(PATIENT) {
                    open.failure(&mut open.inode.lock())?;
                }
                self.advance_all();
                room.await;
            }
        };
        let deadline = self.limits.operation_deadline;
        tokio::time::timeout(deadline, waiting).await.unwrap_or(Err(Errno::EIO))
    }

    fn buffer(
        &self,
        open: &OpenFile,
        off: u64,
        data: Data,
        manner: Manner,
    ) -> Result<usize, Errno> {
        if !open.writable() {
            return Err(Errno::EBADF);
        }
        let len = data.len();
        if len == 0 {
            return Ok(0);
        }
        let begins = {
            let mut state = open.inode.lock();
            let off = if manner.appends { state.size() } else { off };
            if off.saturating_add(len as u64) > FILE_BYTES_MAX {
                return Err(Errno::EFBIG);
            }
            let now = seam::now();
            let file = state.file();
            let (before, was_dirty) = (file.dirty.bytes(), file.is_dirty());
            match data {
                Data::Borrowed(data) => file.dirty.write(off, data),
                Data::Owned(data) => file.dirty.insert(off, data),
            }
            file.written += 1;
            file.written_at = i64::try_from(seam::wall_ns()).unwrap_or(i64::MAX);
            file.dirty_since.get_or_insert(now);
            let after = file.dirty.bytes();
            self.meta.dirty.changed(before, after);
            if !was_dirty {
                drop(state);
                self.meta.dirty.add(&open.inode);
            }
            after >= self.limits.flush_bytes
        };
        if begins || self.meta.dirty.bytes() > self.limits.dirty_bytes_max / 2 {
            self.advance(&open.inode);
        }
        Ok(len)
    }

    /// A caller who may not keep setuid and setgid bits writes through this handle: the next commit of the
    /// inode clears them. Does not wait.
    pub fn kill_priv(&self, handle: Handle) {
        if let Ok(open) = self.handles.get(handle) {
            open.inode.lock().file().kill_priv = true;
        }
    }

    /// close(2): what was written through any descriptor of the inode is committed when this returns.
    pub async fn flush(&self, handle: Handle) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        if !open.writable() {
            return Ok(());
        }
        // Its failure is one that the description hears of below.
        let _ = self.commit_all(&open.inode).await;
        open.failure(&mut open.inode.lock())
    }

    /// fsync(2): data durable on its chunkservers, extents and size committed by Raft. `datasync` makes no
    /// difference: the commit carries both.
    pub async fn fsync(&self, handle: Handle, _datasync: bool) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        let committed = self.commit_all(&open.inode).await;
        open.failure(&mut open.inode.lock())?;
        committed
    }

    /// The last reference to an open file is gone. What could not be written back before has nobody left to
    /// be told: it is counted and logged, unless the file is gone as well.
    pub async fn release(&self, handle: Handle) {
        let Some((open, last)) = self.handles.close(handle) else { return };
        if !last {
            return;
        }
        let inode = &open.inode;
        let unlinked = inode.lock().attr.is_some_and(|attr| attr.nlink == 0);
        if unlinked {
            crate::mark!("unlinked file closed");
            self.abandon(inode).await;
        } else if self.commit_all(inode).await.is_err() {
            {
                let mut state = inode.lock();
                if state.file().opens == 0 {
                    self.meta.drop_dirty(&mut state);
                }
            }
            inode.changed.notify_waiters();
        }
        self.meta.dirty.remove(inode);
        self.meta.inline_kept.closed(inode);
        self.unpin(inode, unlinked);
    }

    /// Nobody will ever read what is dirty: the file has no name and is not open any more.
    async fn abandon(&self, inode: &Arc<Inode>) {
        if self.freeze(inode).await.is_ok() {
            {
                let mut state = inode.lock();
                let file = state.file();
                if file.opens == 0 {
                    let bytes = file.dirty_bytes();
                    file.dirty.take();
                    file.dirty_since = None;
                    file.committed = file.written;
                    self.meta.dirty.changed(bytes, 0);
                }
            }
            self.thaw(inode);
        }
    }
}

fn knows_the_end(inode: &Inode) -> bool {
    let state = inode.lock();
    let dirty = state.file.as_ref().is_some_and(|file| file.is_dirty());
    dirty || state.fresh(seam::now()).is_some()
}
