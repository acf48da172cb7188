//! Types of the client to types of fuser and back.

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, TimeOrNow};
use mooseng::client::SetTime;
use mooseng::errno::Errno;
use mooseng::pb::{Attr, FileKind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What stat(2) shows as the best size of one I/O: the largest kernel request.
const BLKSIZE: u32 = 1 << 20;

pub(crate) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.get())
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular | FileKind::Unspecified => FileType::RegularFile,
    }
}

/// The kind that mknod(2)'s mode asks for.
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        atime: time(attr.atime_ns),
        mtime: time(attr.mtime_ns),
        ctime: time(attr.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLKSIZE,
        flags: 0,
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// Times beyond what 64 bits of nanoseconds hold (the years 1677 to 2262) become the nearest that fits.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(match at.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => {
                i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, i64::saturating_neg)
            }
        }),
    }
}

/// How the kernel shall treat an open file. Write-only descriptors and O_APPEND bypass the page cache:
/// nothing reads the pages, and the place where appended bytes land is the cluster's to say, not that of a
/// cached size. Read-only descriptors have nothing to flush at close.
pub(crate) fn open_flags(flags: i32, keep_cache: bool) -> FopenFlags {
    let write_only = flags & libc::O_ACCMODE == libc::O_WRONLY;
    let append = flags & libc::O_APPEND != 0;
    let mut out = FopenFlags::empty();
    if write_only || append || flags & libc::O_DIRECT != 0 {
        out |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        out |= FopenFlags::FOPEN_NOFLUSH;
    }
    if keep_cache {
        out |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_both_ways_around_1970() {
        for ns in [0, 1, -1, 1_500_000_001, -1_500_000_001, i64::MAX, -i64::MAX] {
            assert_eq!(set_time(TimeOrNow::SpecificTime(time(ns))), SetTime::At(ns));
        }
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(set_time(TimeOrNow::SpecificTime(far)), SetTime::At(i64::MAX));
    }

    #[test]
    fn writers_bypass_the_page_cache_and_readers_do_not() {
        let direct = |flags| open_flags(flags, false).contains(FopenFlags::FOPEN_DIRECT_IO);
        assert!(direct(libc::O_WRONLY) && direct(libc::O_RDWR | libc::O_APPEND));
        assert!(!direct(libc::O_RDONLY) && !direct(libc::O_RDWR));
        assert!(open_flags(libc::O_RDONLY, false).contains(FopenFlags::FOPEN_NOFLUSH));
        assert!(!open_flags(libc::O_RDWR, true).contains(FopenFlags::FOPEN_NOFLUSH));
    }

    #[test]
    fn every_mknod_mode_has_its_kind() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFDIR), None);
    }
}
