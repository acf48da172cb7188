//! One large file: sequential and random.

use super::{Metric, Place, Random, Sizes, at, caches, metric, noise, timed};
use crate::fail::Fail;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = 4096;
const PIECE: usize = 1 << 20;
const READERS: usize = 16;

pub(super) fn run(
    place: &Place,
    sizes: Sizes,
    add: &mut dyn FnMut(Metric, f64),
) -> Result<(), Fail> {
    let path = place.work.join("large");
    let megabytes = sizes.file_bytes as f64 / 1e6;
    let seconds = timed(1, |_| write(&path, sizes.file_bytes).map_err(at(&path)))?;
    add(metric("sequential write + one fsync", "MB/s"), megabytes / seconds);

    for (name, cold) in [("sequential read, cold", true), ("sequential read, warm", false)] {
        if cold {
            caches::drop_all(place, &[&path]);
        }
        let seconds = timed(1, |_| read(&path, sizes.file_bytes).map_err(at(&path)))?;
        add(metric(name, "MB/s"), megabytes / seconds);
    }

    let threads = [
        (1, "random 4 KiB read, cold, 1 thread"),
        (READERS, "random 4 KiB read, cold, 16 threads"),
    ];
    for (threads, name) in threads {
        caches::drop_all(place, &[&path]);
        let each = sizes.accesses.div_ceil(threads);
        let seconds = timed(threads, |thread| {
            random_read(&path, sizes.file_bytes, thread, each).map_err(at(&path))
        })?;
        add(metric(name, "IOPS"), (each * threads) as f64 / seconds);
    }

    for (name, sync) in
        [("random 4 KiB overwrite, no fsync", false), ("random 4 KiB overwrite, fsync each", true)]
    {
        let seconds = timed(1, |_| {
            overwrite(&path, sizes.file_bytes, sizes.accesses, sync).map_err(at(&path))
        })?;
        add(metric(name, "IOPS"), sizes.accesses as f64 / seconds);
    }
    std::fs::remove_file(&path).map_err(|e| Fail::new(format!("{}: {e}", path.display())))
}

fn write(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece = noise(bytes, PIECE);
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE as u64);
        file.write_all(&piece[..now as usize])?;
        left -= now;
    }
    file.sync_all()
}

fn read(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE];
    let mut seen = 0;
    loop {
        match file.read(&mut piece)? {
            0 if seen == bytes => return Ok(()),
            0 => return Err(io::Error::other(format!("{seen} bytes instead of {bytes}"))),
            n => seen += n as u64,
        }
    }
}

fn offsets(bytes: u64, seed: u64) -> impl Iterator<Item = u64> {
    let blocks = (bytes / BLOCK as u64).max(1);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    std::iter::repeat_with(move || random.next() % blocks * BLOCK as u64)
}

fn random_read(path: &Path, bytes: u64, thread: usize, count: usize) -> io::Result<()> {
    let file = File::open(path)?;
    // Read-ahead would only fetch what nobody wants.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
    let mut block = vec![0; BLOCK];
    for offset in offsets(bytes, thread as u64 + 1).take(count) {
        file.read_exact_at(&mut block, offset)?;
    }
    Ok(())
}

fn overwrite(path: &Path, bytes: u64, count: usize, sync: bool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let block = noise(7, BLOCK);
    for offset in offsets(bytes, 99).take(count) {
        file.write_all_at(&block, offset)?;
        if sync {
            file.sync_data()?;
        }
    }
    // Without an fsync each, what was buffered is not part of the measurement.
    Ok(())
}
