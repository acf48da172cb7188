//! Extended attributes that the mount itself answers; they are not stored and not listed.

/// Read: JSON that says which cluster, masters and mount point this is.
pub const MOUNT: &str = "mooseng.mount";
/// Read: JSON with the counters of this mount.
pub const STATS: &str = "mooseng.stats";
/// Write anything: the mount's process drops its clean caches (the kernel's are the kernel's).
pub const DROP_CACHES: &str = "mooseng.drop_caches";

/// Names that the cluster is never asked for.
pub(crate) enum Name {
    Mount,
    Stats,
    DropCaches,
    /// `mooseng.` and something unknown.
    Unknown,
    /// POSIX ACLs, which are not supported.
    Acl,
}

/// `None` for a name that belongs to the file.
pub(crate) fn parse(name: &[u8]) -> Option<Name> {
    match name {
        _ if name == MOUNT.as_bytes() => Some(Name::Mount),
        _ if name == STATS.as_bytes() => Some(Name::Stats),
        _ if name == DROP_CACHES.as_bytes() => Some(Name::DropCaches),
        _ if name.starts_with(b"mooseng.") => Some(Name::Unknown),
        _ if name.starts_with(b"system.posix_acl_") => Some(Name::Acl),
        _ => None,
    }
}
