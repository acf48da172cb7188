//! File systems of a given size, to be filled up.

use super::text;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own on a directory, unmounted when dropped.
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// Puts an ext4 image (a tmpfs where loop devices cannot be had) of so many bytes on `dir`.
    pub fn mount(dir: &Path, bytes: u64) -> Image {
        assert!(
            rustix::process::geteuid().is_root(),
            "tests with full disks mount file systems of their own, which needs root"
        );
        std::fs::create_dir_all(dir).unwrap();
        let (place, size) = (dir.to_string_lossy().into_owned(), format!("size={bytes}"));
        let file = format!("{place}.img");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", &file])
            .and_then(|()| run("mount", &["-o", "loop", &file, &place]));
        if let Err(ext4) = made {
            let made = run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &place]);
            made.unwrap_or_else(|tmpfs| panic!("no file system of its own: {ext4}; {tmpfs}"));
        }
        // Where tools of file systems keep what is nobody's; the daemons leave it alone.
        std::fs::create_dir_all(dir.join("lost+found")).unwrap();
        Image { dir: dir.to_owned() }
    }

    /// Fills it to the last block with a file that belongs to nobody here; again, with what came free since.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.ballast()).unwrap();
        let piece = vec![0xa5; 1 << 20];
        let mut len = piece.len();
        while len > 0 {
            match file.write_all(&piece[..len]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => len /= 2,
                Err(error) => panic!("{}: {error}", self.dir.display()),
            }
        }
        // What was only promised is written now.
        let _ = file.sync_all();
    }

    /// Takes the filling out again.
    pub fn relieve(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("lost+found").join("ballast")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let place = self.dir.to_string_lossy().into_owned();
        if let Err(error) = run("umount", &[&place]).or_else(|_| run("umount", &["-l", &place])) {
            eprintln!("{error}");
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let err = text(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {args:?}: {err}")) }
}
