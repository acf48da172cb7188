//! Ways to damage a file.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What happens to a file.
#[derive(Clone, Debug)]
pub enum Damage {
    /// One bit of each of these bytes is flipped.
    Flip(Vec<u64>),
    /// It ends here.
    Cut(u64),
    /// Its name is removed.
    Gone,
}

impl Damage {
    pub fn flip(at: usize) -> Damage {
        Damage::Flip(vec![at as u64])
    }

    pub fn cut(at: usize) -> Damage {
        Damage::Cut(at as u64)
    }

    /// Does it. A directory can only be removed.
    pub fn apply(&self, path: &Path) {
        let open = || OpenOptions::new().read(true).write(true).open(path).unwrap();
        match self {
            Damage::Flip(places) => {
                for at in places {
                    let (file, mut byte) = (open(), [0]);
                    file.read_exact_at(&mut byte, *at).unwrap();
                    file.write_all_at(&[byte[0] ^ 1], *at).unwrap();
                }
            }
            Damage::Cut(len) => {
                let file = open();
                assert!(
                    file.metadata().unwrap().len() > *len,
                    "{}: nothing to cut",
                    path.display()
                );
                file.set_len(*len).unwrap();
            }
            Damage::Gone if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
            Damage::Gone => std::fs::remove_file(path).unwrap(),
        }
    }
}

/// Copies a directory of files and directories.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
