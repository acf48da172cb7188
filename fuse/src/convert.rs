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
///
/// The kernel counts nanoseconds forward from the second, also before 1970; fuser hands on both numbers as if
/// they counted backward, which is undone here.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    const SECOND: i128 = 1_000_000_000;
    let at = match time {
        TimeOrNow::Now => return SetTime::Now,
        TimeOrNow::SpecificTime(at) => match at.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_secs() as i128 * SECOND + i128::from(after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                i128::from(before.subsec_nanos()) - before.as_secs() as i128 * SECOND
            }
        },
    };
    SetTime::At(at.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
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
        let given = |secs: i64, nanos: u32| {
            // As fuser does it.
            let at = match secs {
                0.. => UNIX_EPOCH + Duration::new(secs as u64, nanos),
                _ => UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos),
            };
            set_time(TimeOrNow::SpecificTime(at))
        };
        assert_eq!(given(1, 5), SetTime::At(1_000_000_005));
        assert_eq!(given(-1, 0), SetTime::At(-1_000_000_000));
        assert_eq!(given(-6, 999_999_999), SetTime::At(-5_000_000_001));
        assert_eq!(given(1 << 40, 0), SetTime::At(i64::MAX));
        assert_eq!(given(-(1 << 40), 0), SetTime::At(i64::MIN));
        assert_eq!(time(-1), UNIX_EPOCH - Duration::from_nanos(1));
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
