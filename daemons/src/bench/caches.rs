//! Cold caches: the mount's own, and the kernel's.

use super::Place;
use std::fs::File;
use std::path::Path;

/// What could be dropped, for the report.
pub(super) fn describe() -> &'static str {
    match std::fs::OpenOptions::new().write(true).open("/proc/sys/vm/drop_caches") {
        Ok(_) => "mount's caches and all kernel caches of this machine dropped",
        Err(_) => "mount's caches dropped; without root the kernel drops only file pages",
    }
}

/// Writes everything back, then drops what any layer on this machine holds of it.
pub(super) fn drop_all(place: &Place, files: &[&Path]) {
    rustix::fs::sync();
    // Only a MooseNG mount knows the name; everywhere else there is nothing to drop.
    let none = rustix::fs::XattrFlags::empty();
    let _ = rustix::fs::setxattr(&place.work, mooseng_fuse::DROP_CACHES, b"1", none);
    for path in files {
        if let Ok(file) = File::open(path) {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    // Dropping inodes makes the kernel forget them at the mount, which may refill nothing but is work.
    let _ = rustix::fs::setxattr(&place.work, mooseng_fuse::DROP_CACHES, b"1", none);
}
