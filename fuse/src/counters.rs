//! Requests counted by kind: CI checks counts, never times.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! requests {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// What the kernel asked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Request { $($variant),* }

        const NAMES: [&str; requests!(@count $($variant)*)] = [$($name),*];
    };
    (@count $($variant:ident)*) => { <[()]>::len(&[$(requests!(@unit $variant)),*]) };
    (@unit $variant:ident) => { () };
}

requests! {
    Lookup "lookup", Forget "forget", Getattr "getattr", Setattr "setattr", Readlink "readlink",
    Mknod "mknod", Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir", Symlink "symlink", Rename "rename",
    Link "link", Open "open", Read "read", Write "write", Flush "flush", Release "release", Fsync "fsync",
    Opendir "opendir", Readdir "readdir", Readdirplus "readdirplus", Releasedir "releasedir",
    Fsyncdir "fsyncdir", Statfs "statfs", Setxattr "setxattr", Getxattr "getxattr",
    Listxattr "listxattr", Removexattr "removexattr", Create "create", Lseek "lseek", Other "other",
    Inline "answered_inline",
}

/// One counter per kind of request, and how many were answered without waiting.
pub(crate) struct Counters([AtomicU64; NAMES.len()]);

impl Default for Counters {
    fn default() -> Counters {
        Counters(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    pub(crate) fn count(&self, request: Request) {
        self.0[request as usize].fetch_add(1, Relaxed);
    }

    /// (name, count), those that happened.
    pub(crate) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Relaxed));
        NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_carry_their_names() {
        let counters = Counters::default();
        counters.count(Request::Lookup);
        counters.count(Request::Inline);
        counters.count(Request::Inline);
        assert_eq!(counters.snapshot(), [("lookup", 1), ("answered_inline", 2)]);
    }
}
