//! Many small files.

use super::{Metric, Place, Sizes, at, caches, metric, noise, timed};
use crate::fail::Fail;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const BYTES: usize = 4096;

/// Names of the steps with 1 and with 8 threads.
struct Names {
    threads: usize,
    create: &'static str,
    stat: &'static str,
    read: &'static str,
    rename: &'static str,
    unlink: &'static str,
    mkdir: &'static str,
}

const NAMES: [Names; 2] = [
    Names {
        threads: 1,
        create: "create + 4 KiB + close, 1 thread",
        stat: "stat, cold, 1 thread",
        read: "read small files, cold, 1 thread",
        rename: "rename, 1 thread",
        unlink: "unlink, 1 thread",
        mkdir: "mkdir, 1 thread",
    },
    Names {
        threads: 8,
        create: "create + 4 KiB + close, 8 threads",
        stat: "stat, cold, 8 threads",
        read: "read small files, cold, 8 threads",
        rename: "rename, 8 threads",
        unlink: "unlink, 8 threads",
        mkdir: "mkdir, 8 threads",
    },
];

pub(super) fn run(
    place: &Place,
    sizes: Sizes,
    add: &mut dyn FnMut(Metric, f64),
) -> Result<(), Fail> {
    NAMES.iter().try_for_each(|names| steps(place, sizes, names, add))
}

/// Each thread has a directory of its own.
struct Tree {
    root: PathBuf,
    each: usize,
}

impl Tree {
    fn dir(&self, thread: usize) -> PathBuf {
        self.root.join(format!("t{thread}"))
    }

    fn all(
        &self,
        thread: usize,
        mut step: impl FnMut(&Path, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let dir = self.dir(thread);
        (0..self.each).try_for_each(|number| step(&dir, number).map_err(at(&dir)))
    }
}

fn steps(
    place: &Place,
    sizes: Sizes,
    names: &Names,
    add: &mut dyn FnMut(Metric, f64),
) -> Result<(), Fail> {
    let threads = names.threads;
    let tree = Tree {
        root: place.work.join(format!("small{threads}")),
        each: sizes.files.div_ceil(threads),
    };
    let failed = |e: io::Error| Fail::new(format!("{}: {e}", tree.root.display()));
    (0..threads).try_for_each(|thread| fs::create_dir_all(tree.dir(thread))).map_err(failed)?;
    let data = noise(3, BYTES);
    let mut measure = |name, step: &(dyn Fn(&Path, usize) -> io::Result<()> + Sync)| {
        let seconds = timed(threads, |thread| tree.all(thread, step))?;
        add(metric(name, "1/s"), (tree.each * threads) as f64 / seconds);
        Ok(())
    };
    measure(names.create, &|dir, n| File::create(dir.join(format!("f{n}")))?.write_all(&data))?;
    caches::drop_all(place, &[]);
    measure(names.stat, &|dir, n| fs::symlink_metadata(dir.join(format!("f{n}"))).map(drop))?;
    caches::drop_all(place, &[]);
    measure(names.read, &|dir, n| match fs::read(dir.join(format!("f{n}")))?.len() {
        BYTES => Ok(()),
        other => Err(io::Error::other(format!("f{n}: {other} bytes instead of {BYTES}"))),
    })?;
    measure(names.rename, &|dir, n| {
        fs::rename(dir.join(format!("f{n}")), dir.join(format!("g{n}")))
    })?;
    measure(names.unlink, &|dir, n| fs::remove_file(dir.join(format!("g{n}"))))?;
    measure(names.mkdir, &|dir, n| fs::create_dir(dir.join(format!("d{n}"))))?;
    fs::remove_dir_all(&tree.root).map_err(failed)
}
