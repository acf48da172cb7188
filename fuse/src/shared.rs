//! What kernel threads and tasks share: the client, what the kernel was told, and how to answer.

use crate::convert::{errno, file_attr, open_flags};
use crate::counters::Counters;
use crate::kernel_view::KernelView;
use fuser::{FileHandle, Generation, INodeNo, Notifier};
use fuser::{ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr};
use mooseng::client::{Client, Handle};
use mooseng::errno::Errno;
use mooseng::ids::InodeId;
use mooseng::pb::Attr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Ids are never used twice, so one generation is enough.
const GENERATION: Generation = Generation(0);

pub(crate) struct Shared {
    pub(crate) client: Arc<Client>,
    /// How long the kernel may use attributes and entries without asking.
    pub(crate) ttl: Duration,
    pub(crate) view: KernelView,
    pub(crate) counters: Counters,
    /// Set once the session is up; an open before that has nothing to invalidate.
    pub(crate) notifier: OnceLock<Notifier>,
    /// What the kernel granted at INIT.
    pub(crate) granted: OnceLock<Granted>,
    /// JSON for [`crate::MOUNT`].
    pub(crate) about: String,
}

/// What INIT settled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Granted {
    pub(crate) flags: Vec<&'static str>,
    pub(crate) max_write: u32,
    pub(crate) max_background: u16,
    pub(crate) protocol: String,
}

impl Shared {
    /// JSON for [`crate::STATS`].
    pub(crate) fn stats(&self) -> String {
        let granted = self.granted.get().cloned().unwrap_or_default();
        let requests: serde_json::Map<String, serde_json::Value> = self
            .counters
            .snapshot()
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count.into()))
            .collect();
        serde_json::json!({
            "requests": requests,
            "client": self.client.stats(),
            "init": {
                "flags": granted.flags,
                "max_write": granted.max_write,
                "max_background": granted.max_background,
                "protocol": granted.protocol,
            },
        })
        .to_string()
    }

    /// For how long the kernel may use what it is told of an inode, and with `parent` of its name there.
    pub(crate) fn ttl_of(&self, parent: Option<InodeId>, ino: u64) -> Duration {
        self.ttl.min(self.client.usable_for(parent, InodeId(ino)))
    }

    pub(crate) fn entry(&self, reply: ReplyEntry, parent: InodeId, outcome: Result<Attr, Errno>) {
        match outcome {
            Ok(attr) => {
                self.view.told(attr.inode, attr.change);
                let ttl = self.ttl_of(Some(parent), attr.inode);
                reply.entry(&ttl, &file_attr(&attr), GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    pub(crate) fn attr(&self, reply: ReplyAttr, outcome: Result<Attr, Errno>) {
        match outcome {
            Ok(attr) => {
                self.view.told(attr.inode, attr.change);
                let ttl = self.ttl_of(None, attr.inode);
                reply.attr(&ttl, &file_attr(&attr));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// The client has just asked for the file's attributes. If the kernel's are older it is made to ask
    /// again; that touches no page and takes no lock of the inode, so it cannot wait for this very open.
    pub(crate) fn opened(
        &self,
        ino: InodeId,
        flags: i32,
        reply: ReplyOpen,
        outcome: Result<Handle, Errno>,
    ) {
        let handle = match outcome {
            Ok(handle) => handle,
            Err(error) => return reply.error(errno(error)),
        };
        let change = self.client.getattr_cached(ino).map(|attr| attr.change);
        let at = self.view.open(ino.get(), change);
        if at.stale_attrs
            && let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino.get()), -1, 0)
        {
            tracing::debug!(%ino, %error, "the kernel did not take an invalidation");
        }
        reply.opened(FileHandle(handle.0), open_flags(flags, at.keep_pages));
    }

    pub(crate) fn created(
        &self,
        parent: InodeId,
        flags: i32,
        reply: ReplyCreate,
        outcome: Result<(Attr, Handle), Errno>,
    ) {
        match outcome {
            Ok((attr, handle)) => {
                self.view.told(attr.inode, attr.change);
                let (handle, flags) = (FileHandle(handle.0), open_flags(flags, false));
                let ttl = self.ttl_of(Some(parent), attr.inode);
                reply.created(&ttl, &file_attr(&attr), GENERATION, handle, flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }
}

pub(crate) fn empty(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// One reply is one slice for fuser, so several pieces are joined.
pub(crate) fn pieces(reply: ReplyData, pieces: &[bytes::Bytes]) {
    match pieces {
        [] => reply.data(&[]),
        [one] => reply.data(one),
        several => reply.data(&several.concat()),
    }
}

/// The kernel asks for the size with `size` 0.
pub(crate) fn xattr(reply: ReplyXattr, size: u32, outcome: Result<&[u8], Errno>) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(value),
        Ok(_) => reply.error(errno(Errno::ERANGE)),
        Err(error) => reply.error(errno(error)),
    }
}
