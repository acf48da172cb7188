//! The disk conformance suite over both worlds: a temporary directory, or the simulated disk.

#[cfg(not(feature = "sim"))]
#[expect(clippy::disallowed_methods, reason = "the tests make and remove directories")]
mod real {
    use mooseng::seam::real::RealDisk;
    use mooseng::seam::{Disk, OpenMode};
    use std::io::ErrorKind;
    use std::path::PathBuf;
    use std::sync::Arc;

    struct TempDir(PathBuf);

    impl TempDir {
        fn new(name: &str) -> TempDir {
            let path = std::env::temp_dir().join(format!("mooseng-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            TempDir(path)
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_real_disk_conforms() {
        let dir = TempDir::new("conformance");
        let disk: Arc<dyn Disk> = RealDisk::create(dir.0.join("deep/er")).expect("create");
        mooseng_proptests::disk_conformance::conformance(&disk);
    }

    #[test]
    fn a_missing_directory_is_not_created_by_open() {
        let dir = TempDir::new("missing");
        let error = RealDisk::open(&dir.0).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!dir.0.exists());
    }

    #[test]
    fn symbolic_links_are_not_followed_out_of_the_disk() {
        let dir = TempDir::new("links");
        let disk = RealDisk::create(&dir.0).expect("create");
        std::os::unix::fs::symlink("/etc/passwd", dir.0.join("link")).expect("symlink");
        assert!(disk.open("link", OpenMode::Read).is_err());
        assert!(disk.lock("link").is_err());
    }

    #[test]
    fn pages_just_written_are_resident_or_the_kernel_cannot_tell() {
        let dir = TempDir::new("resident");
        let disk = RealDisk::create(&dir.0).expect("create");
        let file = disk.open("f", OpenMode::CreateNew).expect("create");
        file.write_at(0, &[5; 9000]).expect("write");
        if let Some(bytes) = file.read_resident(8000, 4096) {
            assert_eq!(bytes.as_ref(), [5; 1000], "short only at the end of the file");
        }
    }
}

#[test]
fn the_disk_in_memory_conforms() {
    use mooseng::seam::Disk;
    let disk: std::sync::Arc<dyn Disk> = std::sync::Arc::new(mooseng_proptests::MemDisk::default());
    mooseng_proptests::disk_conformance::conformance(&disk);
}

#[cfg(feature = "sim")]
#[test]
fn the_simulated_disk_conforms() {
    use mooseng::seam::Disk;
    for seed in 1..=10 {
        let sim = mooseng_sim::disk::SimDisk::new("conformance", 64 << 20, seed);
        let disk: std::sync::Arc<dyn Disk> = sim.handle(1);
        mooseng_proptests::disk_conformance::conformance(&disk);
    }
}
