//! The model against a directory of the local file system: what the model says of POSIX is what the kernel does.
//! Left out is what it says of servers (stale numbers), what the kernel keeps from a filesystem, and what local
//! file systems do in their own ways (sizes of directories, xattrs of special files and of other namespaces).

#![cfg(not(feature = "sim"))]

use mooseng::errno::Errno;
use mooseng_proptests::{FsOp, FsOut, Ino, Kind, ModelFs, OpGen, SplitMix, Stat, Weights};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, XattrFlags};
use std::collections::BTreeMap;
use std::path::PathBuf;

const ROOT: Ino = 1;
const SETGID: u32 = 0o2000;

/// A directory, and which of its inodes the model's numbers stand for. Each is held open, so that the file system
/// does not use its number again.
struct Local {
    path: PathBuf,
    fds: BTreeMap<Ino, OwnedFd>,
    inos: BTreeMap<u64, Ino>,
    handles: BTreeMap<u64, OwnedFd>,
}

type Done<T> = rustix::io::Result<T>;

impl Local {
    fn new(seed: u64) -> Local {
        let name = format!("mooseng-local-{}-{seed}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::mkdir(&path, Mode::from_raw_mode(0o755)).expect("a directory of the test's own");
        let mut local = Local {
            path: path.clone(),
            fds: BTreeMap::new(),
            inos: BTreeMap::new(),
            handles: BTreeMap::new(),
        };
        local.know(ROOT, CWD, path.as_os_str().as_encoded_bytes()).expect("the directory");
        local
    }

    /// Holds an inode for the model's number.
    fn know(&mut self, ino: Ino, dir: impl AsFd, name: &[u8]) -> Done<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(dir, name, flags, Mode::empty())?;
        self.inos.insert(fs::fstat(&fd)?.st_ino, ino);
        self.fds.insert(ino, fd);
        Ok(())
    }

    fn fd(&self, ino: Ino) -> &OwnedFd {
        &self.fds[&ino]
    }

    /// A path that leads to the inode itself.
    fn magic(&self, ino: Ino) -> String {
        format!("/proc/self/fd/{}", self.fd(ino).as_raw_fd())
    }

    fn stat(&self, stat: &fs::Stat) -> FsOut {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            other => panic!("{other:?}"),
        };
        FsOut::Stat(Stat {
            ino: self.inos[&stat.st_ino],
            kind,
            mode: stat.st_mode & 0o7777,
            nlink: u32::try_from(stat.st_nlink).expect("few links"),
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == Kind::Directory { 0 } else { stat.st_size as u64 },
            atime: 0,
            mtime: 0,
            ctime: 0,
        })
    }

    fn run(&mut self, op: &FsOp) -> Done<FsOut> {
        let ino = match op {
            FsOp::Lookup { parent, name } => {
                let found = fs::statat(self.fd(*parent), &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
                return Ok(self.stat(&found));
            }
            FsOp::Create { .. } => self.create(op)?,
            FsOp::Getattr { ino } => *ino,
            FsOp::Link { ino, parent, name } => {
                let (from, dir) = (self.magic(*ino), self.fd(*parent));
                fs::linkat(CWD, from, dir, &name[..], AtFlags::SYMLINK_FOLLOW)?;
                *ino
            }
            FsOp::Chmod { ino, mode } => {
                fs::chmod(self.magic(*ino), Mode::from_raw_mode(mode & 0o7777))?;
                *ino
            }
            FsOp::Chown { ino, uid, gid } => {
                self.chown(*ino, *uid, *gid)?;
                *ino
            }
            FsOp::Truncate { ino, size } => {
                let file = fs::open(self.magic(*ino), OFlags::WRONLY, Mode::empty())?;
                fs::ftruncate(file, *size)?;
                *ino
            }
            FsOp::Utimens { ino, atime, mtime } => {
                let times =
                    fs::Timestamps { last_access: time(*atime), last_modification: time(*mtime) };
                fs::utimensat(CWD, self.magic(*ino), &times, AtFlags::empty())?;
                *ino
            }
            other => return self.run_other(other),
        };
        Ok(self.stat(&fs::fstat(self.fd(ino))?))
    }

    fn chown(&self, ino: Ino, uid: Option<u32>, gid: Option<u32>) -> Done<()> {
        let (uid, gid) = (uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw));
        fs::chownat(self.fd(ino), "", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// As the kernel makes it for a process of that user and group.
    fn create(&mut self, op: &FsOp) -> Done<Ino> {
        let FsOp::Create { parent, name, ino, kind, mode, uid, gid, target } = op else {
            panic!("{op:?}");
        };
        let dir = self.fd(*parent).try_clone().expect("a descriptor");
        let bits = Mode::from_raw_mode(*mode);
        match kind {
            Kind::Regular => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                drop(fs::openat(&dir, &name[..], flags, bits)?);
            }
            Kind::Directory => fs::mkdirat(&dir, &name[..], bits)?,
            Kind::Symlink => fs::symlinkat(&target[..], &dir, &name[..])?,
            Kind::Fifo => fs::mknodat(&dir, &name[..], FileType::Fifo, bits, 0)?,
            Kind::Socket => fs::mknodat(&dir, &name[..], FileType::Socket, bits, 0)?,
            other => panic!("{other:?}"),
        }
        self.know(*ino, &dir, name)?;
        let inherits = fs::fstat(&dir)?.st_mode & SETGID != 0;
        self.chown(*ino, Some(*uid), (!inherits).then_some(*gid))?;
        // Changing the owner took privileges; mkdir(2) gives none.
        let set_gid = fs::fstat(self.fd(*ino))?.st_mode & SETGID;
        if *kind == Kind::Directory {
            fs::chmod(self.magic(*ino), Mode::from_raw_mode(mode | set_gid))?;
        } else if *kind != Kind::Symlink {
            fs::chmod(self.magic(*ino), bits)?;
        }
        Ok(*ino)
    }

    fn handle(&self, handle: u64) -> Done<&OwnedFd> {
        self.handles.get(&handle).ok_or(rustix::io::Errno::BADF)
    }

    fn run_other(&mut self, op: &FsOp) -> Done<FsOut> {
        match op {
            FsOp::Unlink { parent, name } => {
                fs::unlinkat(self.fd(*parent), &name[..], AtFlags::empty())?;
            }
            FsOp::Rmdir { parent, name } => {
                fs::unlinkat(self.fd(*parent), &name[..], AtFlags::REMOVEDIR)?;
            }
            FsOp::Rename { parent, name, new_parent, new_name, flags } => {
                let (from, to) = (self.fd(*parent), self.fd(*new_parent));
                let flags = RenameFlags::from_bits_retain(*flags);
                fs::renameat_with(from, &name[..], to, &new_name[..], flags)?;
            }
            FsOp::Open { ino, handle, .. } => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let open = fs::open(self.magic(*ino), flags, Mode::empty())?;
                self.handles.insert(*handle, open);
            }
            FsOp::Close { handle } => {
                self.handles.remove(handle).ok_or(rustix::io::Errno::BADF)?;
            }
            FsOp::Write { handle, off, data } => {
                assert_eq!(rustix::io::pwrite(self.handle(*handle)?, data, *off)?, data.len());
            }
            FsOp::Fsync { handle } => fs::fsync(self.handle(*handle)?)?,
            FsOp::Setxattr { ino, name, value, flags } => {
                let flags = XattrFlags::from_bits_retain(*flags);
                fs::setxattr(self.magic(*ino), &name[..], value, flags)?;
            }
            FsOp::Removexattr { ino, name } => fs::removexattr(self.magic(*ino), &name[..])?,
            look => return self.look(look),
        }
        Ok(FsOut::Unit)
    }

    fn look(&self, op: &FsOp) -> Done<FsOut> {
        let mut buffer = vec![0; 64 << 10];
        Ok(match op {
            FsOp::Read { handle, off, len } => {
                buffer.resize(*len as usize, 0);
                let got = rustix::io::pread(self.handle(*handle)?, &mut buffer, *off)?;
                FsOut::Data(buffer[..got].to_vec())
            }
            FsOp::Readdir { ino } => FsOut::Entries(self.readdir(*ino)?),
            FsOp::Readlink { ino } => {
                let target = fs::readlinkat(self.fd(*ino), "", Vec::new())?;
                FsOut::Data(target.into_bytes())
            }
            FsOp::Getxattr { ino, name } => {
                let got = fs::getxattr(self.magic(*ino), &name[..], &mut buffer)?;
                FsOut::Data(buffer[..got].to_vec())
            }
            FsOp::Listxattr { ino } => {
                let got = fs::listxattr(self.magic(*ino), &mut buffer)?;
                let names = buffer[..got].split(|byte| *byte == 0).filter(|name| !name.is_empty());
                let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
                names.sort();
                FsOut::Names(names)
            }
            other => panic!("{other:?}"),
        })
    }

    fn readdir(&self, ino: Ino) -> Done<Vec<(Vec<u8>, Ino, Kind)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::open(self.magic(ino), flags, Mode::empty())?;
        let mut entries = Vec::new();
        for entry in fs::Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                let found = fs::statat(self.fd(ino), &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
                let FsOut::Stat(stat) = self.stat(&found) else { panic!("no attributes") };
                entries.push((name, stat.ino, stat.kind));
            }
        }
        entries.sort();
        Ok(entries)
    }
}

impl Drop for Local {
    #[expect(clippy::disallowed_methods, reason = "the test removes its own directory")]
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn time(nanos: Option<i64>) -> Timespec {
    let omit = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT };
    nanos.map_or(omit, |nanos| Timespec {
        tv_sec: nanos.div_euclid(1_000_000_000),
        tv_nsec: nanos.rem_euclid(1_000_000_000),
    })
}

/// Whether the kernel and the model speak of the same thing.
fn comparable(model: &ModelFs, op: &FsOp) -> bool {
    let kind = |ino: &Ino| model.nodes().get(ino).map(|node| node.kind);
    let plain = |ino: &Ino| matches!(kind(ino), Some(Kind::Regular | Kind::Directory));
    let ours = |name: &[u8]| name.starts_with(b"user.") && name.len() < 256;
    match op {
        FsOp::Open { ino, .. } | FsOp::Truncate { ino, .. } => kind(ino) == Some(Kind::Regular),
        // The kernel looks at the target before it looks at the name.
        FsOp::Create { kind: Kind::Symlink, target, .. } => !target.is_empty(),
        // Which of two errors a rename gives is the kernel's business: it looks both names up by itself.
        FsOp::Rename { parent, name, new_parent, new_name, .. } => {
            let known = kind(parent).is_some() && kind(new_parent).is_some();
            known && name.len().max(new_name.len()) < 256
        }
        // The kernel asks for privileges to go by a flag of its own.
        FsOp::Chown { uid: None, gid: None, .. } => false,
        FsOp::Readlink { ino } => kind(ino) == Some(Kind::Symlink),
        FsOp::Chmod { ino, .. } => kind(ino) != Some(Kind::Symlink),
        FsOp::Setxattr { ino, name, flags, .. } => plain(ino) && ours(name) && *flags < 3,
        FsOp::Getxattr { ino, name } | FsOp::Removexattr { ino, name } => plain(ino) && ours(name),
        FsOp::Listxattr { ino } => plain(ino),
        FsOp::Lookup { parent, name } => {
            let inside = *parent != ROOT && model.nodes().get(parent).is_some_and(|n| n.nlink > 0);
            inside || name != b".."
        }
        _ => true,
    }
}

fn run(seed: u64, steps: u32) {
    let mut draw = SplitMix(seed);
    let mut generator =
        OpGen { weights: Weights::swarm(&mut draw), clients: 1, ..OpGen::default() };
    let mut model = ModelFs::new(0);
    let mut local = Local::new(seed);
    for step in 0..steps {
        let op = generator.next(&model, &mut draw);
        if !comparable(&model, &op) {
            continue;
        }
        let expected = model.apply(&op).map(FsOut::timeless);
        if expected == Err(Errno::ESTALE) {
            continue;
        }
        let found = local.run(&op).map_err(|errno| Errno::new(errno.raw_os_error()));
        assert_eq!(found, expected, "seed {seed} step {step}: {op:?}");
    }
}

#[test]
fn the_model_does_what_the_local_file_system_does() {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "this test gives files to other users: run it as root");
    rustix::process::umask(Mode::empty());
    let more = std::env::var("MOOSENG_SEEDS").ok().and_then(|text| text.parse().ok());
    for seed in 0..more.unwrap_or(60) {
        run(seed, 400);
    }
}
