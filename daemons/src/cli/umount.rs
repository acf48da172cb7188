//! `mooseng umount`.

use super::{Common, out};
use crate::fail::Fail;
use clap::Args;
use mooseng_fuse::mountinfo;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct UmountArgs {
    /// The mount point
    dir: PathBuf,
    /// Detach it now even if files are open; they stay usable until closed
    #[arg(long, short)]
    lazy: bool,
}

pub(super) fn run(common: &Common, args: &UmountArgs) -> Result<(), Fail> {
    let failed = |e: &dyn std::fmt::Display| Fail::new(format!("{}: {e}", args.dir.display()));
    let (dir, dead) = real_point(&args.dir).map_err(|e| failed(&e))?;
    let Some(entry) = mountinfo::at(&dir).map_err(|e| failed(&e))? else {
        return Err(failed(&"nothing is mounted there"));
    };
    if entry.kind != "fuse.mooseng" {
        return Err(failed(&format!("{} is mounted there, not MooseNG", entry.kind)));
    }
    mooseng_fuse::unmount(&dir, args.lazy || dead).map_err(|e| match e.raw_os_error() {
        Some(16) => failed(
            &"busy: files are open, or it is somebody's working directory (--lazy detaches it)",
        ),
        _ => failed(&e),
    })?;
    if common.json {
        out::json(&serde_json::json!({ "unmounted": dir }));
    }
    Ok(())
}

/// The mount point without symbolic links, and whether its process is gone.
fn real_point(dir: &Path) -> std::io::Result<(PathBuf, bool)> {
    match std::fs::canonicalize(dir) {
        Ok(real) => {
            let dead = std::fs::metadata(&real)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::NotConnected);
            Ok((real, dead))
        }
        // Nothing behind a dead mount can be looked at, its own name included.
        Err(e) if e.kind() == std::io::ErrorKind::NotConnected => {
            let absolute = std::path::absolute(dir)?;
            let parent = absolute.parent().unwrap_or(Path::new("/"));
            let name = absolute.file_name().unwrap_or_default();
            Ok((std::fs::canonicalize(parent)?.join(name), true))
        }
        Err(e) => Err(e),
    }
}
