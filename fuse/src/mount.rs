//! Mounting, and what must be right before and after.

use crate::counters::Counters;
use crate::filesystem::MooseFilesystem;
use crate::kernel_view::KernelView;
use crate::mountinfo::{self, MountEntry};
use crate::shared::Shared;
use fuser::{Config, MountOption, Session, SessionACL};
use mooseng::client::Client;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// Read-ahead of the kernel, KiB; fuser leaves it at 128.
const READ_AHEAD_KB: u32 = 1024;
/// Subtype of our mounts: `fuse.mooseng`.
const SUBTYPE: &str = "mooseng";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Where.
    pub dir: PathBuf,
    /// Addresses of masters, for whoever asks the mount by [`crate::MOUNT`].
    pub masters: Vec<String>,
    /// Lifetime of attributes and entries in the kernel.
    pub ttl: Duration,
    /// Whether other users may enter: by default only if root mounts.
    pub allow_other: Option<bool>,
    /// `ro`, `noexec`, `suid`, ... as for mount(8).
    pub options: Vec<String>,
    /// Kernel threads; 0 means one per processor.
    pub threads: usize,
}

/// Why there is no mount: one line each, saying what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing there.
    #[error("{}: no such directory", .0.display())]
    Missing(PathBuf),
    /// Something else there.
    #[error("{}: not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// The process behind an earlier mount is gone.
    #[error("{dir}: a mount left over from a killed process (Transport endpoint is not connected); run `mooseng umount {dir}`", dir = .0.display())]
    LeftOver(PathBuf),
    /// A live mount is there.
    #[error("{}: busy: {} is mounted there", .0.display(), .1)]
    Busy(PathBuf, String),
    /// The kernel's side is missing.
    #[error("cannot use /dev/fuse: {0}; load the fuse module, or give the container the device")]
    NoDevice(io::Error),
    /// Not root, no helper.
    #[error("mounting needs root, or fusermount3 in the path")]
    NoRights,
    /// An `-o` nobody knows.
    #[error("unknown mount option `{0}`")]
    UnknownOption(String),
    /// Whatever else the system said.
    #[error("{}: mount failed: {}", .0.display(), .1)]
    Failed(PathBuf, String),
}

/// A live mount. Dropping it unmounts without waiting.
pub struct Mounted {
    dir: PathBuf,
    ended: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Mounted {
    /// Where it is, without symbolic links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until somebody unmounts it. Cancel safe; only the first completed call gives an error.
    pub async fn ended(&mut self) -> io::Result<()> {
        let Some(receiver) = &mut self.ended else { return Ok(()) };
        let outcome = receiver.await.unwrap_or(Ok(()));
        self.ended = None;
        outcome
    }

    /// Unmounts; if files are open the mount disappears now and ends when they are closed, for which this
    /// waits at most `patience`.
    pub async fn unmount(&mut self, patience: Duration) -> io::Result<()> {
        if self.ended.is_none() {
            return Ok(());
        }
        let dir = self.dir.clone();
        let detached = tokio::task::spawn_blocking(move || {
            unmount(&dir, false).or_else(|_| unmount(&dir, true))
        });
        detached.await.unwrap_or(Ok(()))?;
        match tokio::time::timeout(patience, self.ended()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{}: files are still open", self.dir.display()),
            )),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.ended.is_some() {
            let _ = unmount(&self.dir, true);
        }
    }
}

/// Says early, without a cluster, why `dir` cannot be mounted on. Returns it without symbolic links.
pub fn check_mount_point(dir: &Path) -> Result<PathBuf, MountError> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let real = match std::fs::canonicalize(dir) {
        Ok(real) => real,
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            return Err(MountError::LeftOver(absolute));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing(absolute));
        }
        Err(e) => return Err(MountError::Failed(absolute, e.to_string())),
    };
    let failed = |e: io::Error| MountError::Failed(real.clone(), e.to_string());
    // A mount is asked about only through the mount table: a dead or slow one must not hold us up.
    if let Some(MountEntry { kind, .. }) = mountinfo::at(&real).map_err(failed)? {
        return Err(match std::fs::metadata(&real) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => MountError::LeftOver(real),
            _ => MountError::Busy(real, kind),
        });
    }
    let metadata = std::fs::metadata(&real).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(real));
    }
    check_rights()?;
    Ok(real)
}

fn check_rights() -> Result<(), MountError> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(MountError::NoDevice)?;
    let root = rustix::process::geteuid().is_root();
    let helper = || Command::new("fusermount3").arg("-V").output().is_ok();
    if root || helper() { Ok(()) } else { Err(MountError::NoRights) }
}

/// Says early whether an `-o` is unknown.
pub fn check_options(options: &[String]) -> Result<(), MountError> {
    let known = |name: &str| {
        matches!(name, "allow_other" | "noallow_other") || mount_option(name).is_some()
    };
    match options.iter().find(|name| !known(name)) {
        Some(name) => Err(MountError::UnknownOption(name.clone())),
        None => Ok(()),
    }
}

/// Mounts `client` and serves it on its own threads; what must wait runs on `runtime`.
pub fn mount(
    client: Arc<Client>,
    config: &MountConfig,
    runtime: tokio::runtime::Handle,
) -> Result<Mounted, MountError> {
    let dir = check_mount_point(&config.dir)?;
    let failed = |e: io::Error| MountError::Failed(dir.clone(), e.to_string());
    let shared = Arc::new(Shared {
        about: about(&client, config, &dir),
        client,
        ttl: config.ttl,
        view: KernelView::default(),
        counters: Counters::default(),
        notifier: OnceLock::new(),
        granted: OnceLock::new(),
    });
    let filesystem = MooseFilesystem::new(shared.clone(), runtime);
    let session = Session::new(filesystem, &dir, &session_config(config)?).map_err(failed)?;
    let _ = shared.notifier.set(session.notifier());
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || end.send(session.run()))
        .map_err(failed)?;
    raise_read_ahead(&dir);
    Ok(Mounted { dir, ended: Some(ended) })
}

fn about(client: &Client, config: &MountConfig, dir: &Path) -> String {
    serde_json::json!({
        "cluster": client.cluster().to_string(),
        "masters": config.masters,
        "mount": dir.to_string_lossy(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    })
    .to_string()
}

fn session_config(config: &MountConfig) -> Result<Config, MountError> {
    let mut out = Config::default();
    out.mount_options = vec![
        MountOption::FSName("mooseng".into()),
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
        MountOption::DefaultPermissions,
    ];
    let mut other = config.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root());
    for option in &config.options {
        match option.as_str() {
            "allow_other" => other = true,
            "noallow_other" => other = false,
            name => out.mount_options.push(
                mount_option(name).ok_or_else(|| MountError::UnknownOption(name.to_owned()))?,
            ),
        }
    }
    out.acl = if other { SessionACL::All } else { SessionACL::Owner };
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    out.n_threads = Some(if config.threads == 0 { processors() } else { config.threads });
    out.clone_fd = true;
    Ok(out)
}

fn mount_option(name: &str) -> Option<MountOption> {
    Some(match name {
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "sync" => MountOption::Sync,
        "dirsync" => MountOption::DirSync,
        _ => return None,
    })
}

/// Large kernel reads: 1024 instead of 8192 requests a GiB. Needs root; without it reads are only slower.
fn raise_read_ahead(dir: &Path) {
    let Ok(Some(entry)) = mountinfo::at(dir) else { return };
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device);
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KB.to_string()) {
        tracing::info!(%error, path, "kernel read-ahead stays as it is");
    }
}

/// Unmounts `dir`; `lazy` detaches it now even if files are open or its process is gone.
pub fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match rustix::mount::unmount(dir, flags) {
        Err(rustix::io::Errno::PERM) => unmount_by_helper(dir, lazy),
        outcome => outcome.map_err(io::Error::from),
    }
}

fn unmount_by_helper(dir: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_mount_points_are_named() {
        let missing = check_mount_point(Path::new("/no/such/place")).unwrap_err();
        assert_eq!(missing.to_string(), "/no/such/place: no such directory");
        let busy = check_mount_point(Path::new("/proc")).unwrap_err();
        assert_eq!(busy.to_string(), "/proc: busy: proc is mounted there");
        let file = check_mount_point(Path::new("/bin/sh")).unwrap_err();
        assert!(matches!(file, MountError::NotDirectory(_)), "{file}");
    }

    #[test]
    fn unknown_options_are_refused() {
        let config = MountConfig {
            dir: PathBuf::new(),
            masters: vec![],
            ttl: Duration::ZERO,
            allow_other: None,
            options: vec!["ro".into(), "fast".into()],
            threads: 0,
        };
        let error = session_config(&config).unwrap_err();
        assert_eq!(error.to_string(), "unknown mount option `fast`");
    }
}
