//! An open file of the local file system.

use super::super::disk::{DIRECT_ALIGN, DiskFile};
use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// Most buffers that one pwritev takes (Linux's UIO_MAXIOV).
const VECTORS_MAX: usize = 1024;

pub(super) struct RealFile {
    fd: OwnedFd,
    writable: bool,
    /// The same file for writes past the page cache, opened at the first of them; `None` if that cannot be.
    direct: OnceLock<Option<OwnedFd>>,
}

impl RealFile {
    pub(super) fn new(fd: OwnedFd, writable: bool) -> RealFile {
        RealFile { fd, writable, direct: OnceLock::new() }
    }

    fn direct(&self) -> Option<&OwnedFd> {
        let open = || {
            if !self.writable {
                return None;
            }
            let again = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
            rustix::fs::open(again, flags, Mode::empty()).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }

    /// For file systems without hole punching: the same bytes, without the space.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = [0; 16 << 10];
        let end = offset.saturating_add(len).min(self.len()?);
        let mut at = offset;
        while at < end {
            let step = (end - at).min(zeros.len() as u64);
            self.write_at(at, &zeros[..step as usize])?;
            at += step;
        }
        Ok(())
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn wrote_nothing() -> io::Error {
    io::ErrorKind::WriteZero.into()
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(&self.fd)?.st_size).unwrap_or(0))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match retry(|| rustix::io::pread(&self.fd, &mut buf[done..], offset + done as u64))? {
                0 => break,
                got => done += got,
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match retry(|| rustix::io::pwrite(&self.fd, &buf[done..], offset + done as u64))? {
                0 => return Err(wrote_nothing()),
                put => done += put,
            }
        }
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let mut at = offset;
        for group in bufs.chunks(VECTORS_MAX) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|buf| IoSlice::new(buf)).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0); // skips empty buffers at the front
            while !rest.is_empty() {
                match retry(|| rustix::io::pwritev(&self.fd, rest, at))? {
                    0 => return Err(wrote_nothing()),
                    put => {
                        at += put as u64;
                        IoSlice::advance_slices(&mut rest, put);
                    }
                }
            }
        }
        Ok(())
    }

    fn write_direct_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let aligned = |at: usize| at.is_multiple_of(DIRECT_ALIGN);
        let mut done = 0;
        while done < buf.len() {
            let (rest, at) = (&buf[done..], offset + done as u64);
            let fits = aligned(rest.as_ptr().addr()) && aligned(rest.len()) && aligned(at as usize);
            let Some(direct) = self.direct().filter(|_| fits) else {
                return self.write_at(at, rest);
            };
            match retry(|| rustix::io::pwrite(direct, rest, at)) {
                Ok(0) => return Err(wrote_nothing()),
                Ok(put) => done += put,
                // A file system that opens so but does not write so.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return self.write_at(at, rest);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not repeated when interrupted: after any failure nobody knows which pages are still dirty.
        Ok(rustix::fs::fdatasync(&self.fd)?)
    }

    fn writeback_hint(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
        // SAFETY: a plain system call on a descriptor that `self` keeps open; it touches no memory of ours.
        // A hint: its result is of no interest.
        unsafe {
            libc::sync_file_range(self.fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    fn forget_cached(&self) {
        // A hint: its result is of no interest.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        retry(|| rustix::fs::ftruncate(&self.fd, len))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, 0, len) {
            // A file system that cannot reserve tells a writer later instead.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.fd, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.write_zeros(offset, len),
            Err(error) => Err(error.into()),
        }
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let within = self.len()?.saturating_sub(offset);
        let len = usize::try_from(within).unwrap_or(usize::MAX).min(len);
        if len == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: mapped bytes must not change or be cut off while the mapping lives. `DiskFile::map` demands
        // that of its callers: they map replica data only, which is never rewritten, and a file is removed,
        // never truncated, while readers may hold it.
        let mapping: Mmap = unsafe { MmapOptions::new().offset(offset).len(len).map(&self.fd)? };
        match mapping.advise(Advice::PopulateRead) {
            Ok(()) => {}
            // Linux before 5.14 does not know it; pages then fault in one by one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            // An unreadable page: EFAULT here instead of a signal later.
            Err(_) => return Err(io::Error::from_raw_os_error(libc::EIO)),
        }
        Ok(Bytes::from_owner(mapping))
    }

    fn read_resident(&self, offset: u64, len: usize) -> Option<Bytes> {
        let mut buf = vec![0; len];
        let mut into = [IoSliceMut::new(&mut buf)];
        let got = rustix::io::preadv2(&self.fd, &mut into, offset, ReadWriteFlags::NOWAIT).ok()?;
        if got < len && offset + got as u64 != self.len().ok()? {
            return None;
        }
        buf.truncate(got);
        Some(Bytes::from(buf))
    }
}
