//! A directory of the local file system, reached only relative to its open descriptor: renaming the
//! directory, or mounting something over it, does not redirect a running process.

use super::super::disk::{Disk, DiskFile, DiskLock, OpenMode, Space, check_path};
use super::file::RealFile;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);

/// A directory on the local disk.
pub struct RealDisk {
    root: OwnedFd,
    path: PathBuf,
}

impl RealDisk {
    /// Opens an existing directory. One that is missing is an error (`NotFound`), never created: an
    /// unmounted disk must not look like an empty one.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Arc<RealDisk>> {
        let path = path.as_ref().to_path_buf();
        let root = rustix::fs::open(
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Arc::new(RealDisk { root, path }))
    }

    /// Creates the directory, durably, with missing parents, then opens it; one that exists is fine.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Arc<RealDisk>> {
        make_durable_dir(path.as_ref())?;
        RealDisk::open(path)
    }

    fn open_dir(&self, dir: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = if dir.is_empty() { "." } else { dir };
        Ok(rustix::fs::openat(&self.root, name, flags, Mode::empty())?)
    }
}

fn make_durable_dir(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match rustix::fs::mkdir(path, DIR_MODE) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(Errno::NOENT) => {
            make_durable_dir(parent)?;
            rustix::fs::mkdir(path, DIR_MODE)?;
        }
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::open(parent, flags, Mode::empty())?)?;
    Ok(())
}

impl Disk for RealDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        check_path(path)?;
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::Write => OFlags::RDWR,
            OpenMode::Create => OFlags::RDWR | OFlags::CREATE,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.root, path, flags, FILE_MODE)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(Errno::ISDIR.into());
        }
        Ok(Arc::new(RealFile::new(fd, mode != OpenMode::Read)))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        check_path(path)?;
        match rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        check_dir(dir)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(self.open_dir(dir)?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        check_path(dir)?;
        let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
        for end in ends {
            match rustix::fs::mkdirat(&self.root, &dir[..end], DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.open_dir(dir).map(drop)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(from)?;
        check_path(to)?;
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        check_dir(dir)?;
        let open = self.open_dir(dir)?;
        // Whoever hears of no memory may try again, which must not be done after an fsync.
        rustix::fs::fsync(open).map_err(|error| match error {
            Errno::NOMEM => Errno::IO.into(),
            error => error.into(),
        })
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn DiskLock>> {
        check_path(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.root, path, flags, FILE_MODE)?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(RealLock { _fd: fd }))
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

fn check_dir(dir: &str) -> io::Result<()> {
    if dir.is_empty() { Ok(()) } else { check_path(dir) }
}

/// A flock(2) lock: the kernel drops it with the descriptor, also when the process is killed.
struct RealLock {
    _fd: OwnedFd,
}

impl DiskLock for RealLock {}
