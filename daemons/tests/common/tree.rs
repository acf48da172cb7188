//! Trees of files: making, copying with stalls measured, hashing.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// SHA-256 of every file below a directory, by relative path; symbolic links by their targets.
pub type Hashes = BTreeMap<PathBuf, [u8; 32]>;

/// Makes about `files` files in a few levels of directories: mostly small, some large, links, odd names.
pub fn make(root: &Path, files: usize) {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    for number in 0..files {
        let dir = root.join(format!("d{}", number % 7)).join(format!("e{}", number % 3));
        std::fs::create_dir_all(&dir).unwrap();
        let len = match number % 40 {
            0 => 0,
            1 => 3 << 20,
            2..=5 => 200_000 + number * 17,
            6..=20 => 4096 + number * 31,
            _ => 1 + number * 13 % 4096,
        };
        let mut data = vec![0; len];
        for chunk in data.chunks_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            chunk.copy_from_slice(&seed.to_le_bytes()[..chunk.len()]);
        }
        let path = dir.join(format!("file {number} \u{e9}.bin"));
        std::fs::write(&path, data).unwrap();
        if number % 50 == 0 {
            let target = path.file_name().unwrap();
            std::os::unix::fs::symlink(target, dir.join(format!("link{number}"))).unwrap();
        }
    }
}

/// Hashes everything below `root`.
pub fn hash(root: &Path) -> Hashes {
    let mut out = Hashes::new();
    walk(root, Path::new(""), &mut |relative, kind| {
        let path = root.join(relative);
        let hash = if kind.is_symlink() {
            Sha256::digest(std::fs::read_link(&path)?.as_os_str().as_encoded_bytes())
        } else {
            let mut file = File::open(&path)?;
            let mut hasher = Sha256::new();
            let mut piece = vec![0; 1 << 17];
            loop {
                match file.read(&mut piece)? {
                    0 => break hasher.finalize(),
                    n => hasher.update(&piece[..n]),
                }
            }
        };
        out.insert(relative.to_owned(), hash.into());
        Ok(())
    })
    .unwrap_or_else(|e| panic!("hashing {}: {e}", root.display()));
    out
}

/// Says which files differ instead of printing all hashes.
pub fn assert_same(what: &str, want: &Hashes, have: &Hashes) {
    let wrong = |path: &&PathBuf| want.get(*path) != have.get(*path);
    let paths: Vec<&PathBuf> = want.keys().chain(have.keys()).filter(wrong).take(5).collect();
    assert!(paths.is_empty(), "{what}: these differ or are missing: {paths:?}");
    assert!(!want.is_empty());
}

/// What a copy met.
#[derive(Debug, Default)]
pub struct Copied {
    pub files: usize,
    pub bytes: u64,
    /// Longest single system call, and on what.
    pub longest: Duration,
    pub longest_at: String,
}

/// Copies the tree; any error is the test's failure. `between` is called before each file with how many are
/// done. `sync` makes each file durable before the next.
pub fn copy(
    from: &Path,
    to: &Path,
    sync: bool,
    between: &mut dyn FnMut(usize),
) -> io::Result<Copied> {
    let mut out = Copied::default();
    std::fs::create_dir_all(to)?;
    let mut piece = vec![0; 1 << 17];
    walk(from, Path::new(""), &mut |relative, kind| {
        between(out.files);
        let (source, target) = (from.join(relative), to.join(relative));
        let mut clock = Clock { out: &mut out, path: &target };
        if let Some(parent) = target.parent() {
            clock.time("mkdir", || std::fs::create_dir_all(parent))?;
        }
        if kind.is_symlink() {
            let link = std::fs::read_link(&source)?;
            clock.time("symlink", || std::os::unix::fs::symlink(link, &target))?;
        } else {
            let mut input = File::open(&source)?;
            let mut output = clock.time("create", || File::create(&target))?;
            loop {
                let n = input.read(&mut piece)?;
                if n == 0 {
                    break;
                }
                clock.time("write", || output.write_all(&piece[..n]))?;
                clock.out.bytes += n as u64;
            }
            if sync {
                clock.time("fsync", || output.sync_all())?;
            }
            clock.time("close", || nix::unistd::close(output).map_err(io::Error::from))?;
        }
        out.files += 1;
        Ok(())
    })?;
    Ok(out)
}

struct Clock<'a> {
    out: &'a mut Copied,
    path: &'a Path,
}

impl Clock<'_> {
    fn time<T>(&mut self, call: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begin = Instant::now();
        let outcome = work();
        let took = begin.elapsed();
        if took > self.out.longest {
            self.out.longest = took;
            self.out.longest_at = format!("{call} {}", self.path.display());
        }
        outcome
            .map_err(|e| io::Error::new(e.kind(), format!("{call} {}: {e}", self.path.display())))
    }
}

fn walk(
    root: &Path,
    relative: &Path,
    visit: &mut dyn FnMut(&Path, std::fs::FileType) -> io::Result<()>,
) -> io::Result<()> {
    let mut entries = std::fs::read_dir(root.join(relative))?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = relative.join(entry.file_name());
        let kind = entry.file_type()?;
        match kind.is_dir() {
            true => walk(root, &path, visit)?,
            false => visit(&path, kind)?,
        }
    }
    Ok(())
}
