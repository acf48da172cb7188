//! Operations that make sense, mostly. Targets are picked by index modulo what the model has, names and sizes
//! from tiny alphabets, so that calls collide all the time and every shrunk program is valid.

use crate::draw::Draw;
use crate::model::ModelFs;
use crate::ops::{FsOp, Ino, Kind};

/// How often each kind of operation comes, relative to each other; 0 switches one off (swarm testing).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Weights {
    pub create: u32,
    pub mkdir: u32,
    pub special: u32,
    pub link: u32,
    pub unlink: u32,
    pub rmdir: u32,
    pub rename: u32,
    pub attributes: u32,
    pub truncate: u32,
    pub open: u32,
    pub close: u32,
    pub read: u32,
    pub write: u32,
    pub fsync: u32,
    pub look: u32,
    pub xattr: u32,
}

impl Default for Weights {
    fn default() -> Weights {
        Weights {
            create: 12,
            mkdir: 6,
            special: 3,
            link: 4,
            unlink: 7,
            rmdir: 3,
            rename: 12,
            attributes: 4,
            truncate: 6,
            open: 10,
            close: 6,
            read: 10,
            write: 20,
            fsync: 3,
            look: 8,
            xattr: 5,
        }
    }
}

impl Weights {
    /// Each kind switched off with probability one in four; never all.
    pub fn swarm(draw: &mut impl Draw) -> Weights {
        let mut weights = Weights::default();
        for weight in weights.all_mut() {
            if draw.chance(1, 4) {
                *weight = 0;
            }
        }
        weights.create = weights.create.max(1);
        weights
    }

    fn all_mut(&mut self) -> [&mut u32; 16] {
        [
            &mut self.create,
            &mut self.mkdir,
            &mut self.special,
            &mut self.link,
            &mut self.unlink,
            &mut self.rmdir,
            &mut self.rename,
            &mut self.attributes,
            &mut self.truncate,
            &mut self.open,
            &mut self.close,
            &mut self.read,
            &mut self.write,
            &mut self.fsync,
            &mut self.look,
            &mut self.xattr,
        ]
    }
}

/// Draws operations.
#[derive(Clone, Debug)]
pub struct OpGen {
    /// What comes how often.
    pub weights: Weights,
    /// Names in use: `names` different ones.
    pub names: u64,
    /// Clients that open files.
    pub clients: u64,
    /// Files stay below this many bytes.
    pub file_bytes_max: u64,
    /// One write is at most this long.
    pub write_bytes_max: u64,
    /// Counts writes; seeds the bytes of the next one.
    pub stamp: u32,
}

impl Default for OpGen {
    fn default() -> OpGen {
        OpGen {
            weights: Weights::default(),
            names: 5,
            clients: 2,
            file_bytes_max: 20_000,
            write_bytes_max: 3000,
            stamp: 0,
        }
    }
}

impl OpGen {
    /// The next operation; it may well fail. The model is not changed: apply the operation to it.
    pub fn next(&mut self, model: &ModelFs, draw: &mut impl Draw) -> FsOp {
        let mut weights = self.weights.clone();
        let all = weights.all_mut().map(|w| u64::from(*w));
        let mut at = draw.below(all.iter().sum());
        let kind = all.iter().position(|w| {
            let hit = at < *w;
            at = at.wrapping_sub(if hit { 0 } else { *w });
            hit
        });
        match kind.unwrap_or(0) {
            0 => self.create(model, draw, Kind::Regular),
            1 => self.create(model, draw, Kind::Directory),
            2 => {
                let kinds = [Kind::Symlink, Kind::Symlink, Kind::Fifo, Kind::Socket];
                let kind = draw.pick(&kinds).copied().unwrap_or(Kind::Symlink);
                self.create(model, draw, kind)
            }
            3 => FsOp::Link {
                ino: any(model, draw),
                parent: dir(model, draw),
                name: self.name(draw),
            },
            4 => {
                let oldest = draw.chance(1, 4).then(|| name_of_oldest(model)).flatten();
                let (parent, name) = oldest.unwrap_or_else(|| self.entry(model, draw));
                FsOp::Unlink { parent, name }
            }
            5 => {
                let (parent, name) = self.entry(model, draw);
                FsOp::Rmdir { parent, name }
            }
            6 => self.rename(model, draw),
            7 => attributes(model, draw),
            8 => FsOp::Truncate { ino: file(model, draw), size: self.size(draw) },
            9 => {
                let client = usize::try_from(draw.below(self.clients)).unwrap_or(0);
                FsOp::Open { client, ino: file(model, draw), handle: model.fresh_handle() }
            }
            10 => FsOp::Close { handle: handle(model, draw) },
            11 => {
                let len = draw.below(self.write_bytes_max * 2);
                FsOp::Read {
                    handle: handle(model, draw),
                    off: draw.below(self.file_bytes_max),
                    len,
                }
            }
            12 => self.write(model, draw),
            13 => FsOp::Fsync { handle: handle(model, draw) },
            14 => self.look(model, draw),
            _ => xattr(model, draw),
        }
    }

    fn name(&self, draw: &mut impl Draw) -> Vec<u8> {
        match draw.below(60) {
            0 => vec![b'n'; 255],
            1 => vec![b'n'; 256],
            _ => format!("n{}", draw.below(self.names)).into_bytes(),
        }
    }

    /// Mostly a name that exists, in some directory.
    fn entry(&self, model: &ModelFs, draw: &mut impl Draw) -> (Ino, Vec<u8>) {
        let parent = dir(model, draw);
        let names: Vec<_> =
            model.nodes().get(&parent).map(|n| n.entries.keys().collect()).unwrap_or_default();
        match draw.pick(&names) {
            Some(name) if !draw.chance(1, 6) => (parent, name.to_vec()),
            _ => (parent, self.name(draw)),
        }
    }

    fn create(&mut self, model: &ModelFs, draw: &mut impl Draw, kind: Kind) -> FsOp {
        let modes = [0o644, 0o755, 0o600, 0o2775, 0o4755, 0o1777];
        let mode = draw.pick(&modes).copied().unwrap_or(0o644);
        let mode = if kind == Kind::Symlink { 0o777 } else { mode };
        let target = match kind {
            Kind::Symlink if draw.chance(1, 20) => Vec::new(),
            Kind::Symlink => vec![b't'; usize::try_from(draw.below(20)).unwrap_or(0) + 1],
            _ => Vec::new(),
        };
        FsOp::Create {
            parent: dir(model, draw),
            name: self.name(draw),
            ino: model.fresh_ino(),
            kind,
            mode,
            uid: u32::try_from(draw.below(3)).unwrap_or(0),
            gid: u32::try_from(draw.below(3)).unwrap_or(0),
            target,
        }
    }

    fn rename(&mut self, model: &ModelFs, draw: &mut impl Draw) -> FsOp {
        let (parent, name) = self.entry(model, draw);
        let (new_parent, new_name) = if draw.chance(1, 2) {
            self.entry(model, draw)
        } else {
            (dir(model, draw), self.name(draw))
        };
        let flags = draw.pick(&[0, 0, 0, 1, 2, 2, 3]).copied().unwrap_or(0);
        FsOp::Rename { parent, name, new_parent, new_name, flags }
    }

    fn size(&self, draw: &mut impl Draw) -> u64 {
        match draw.below(10) {
            0 => 0,
            1 => (1 << 60) + 1,
            2 => draw.below(self.file_bytes_max / 4096 + 1) * 4096,
            _ => draw.below(self.file_bytes_max),
        }
    }

    /// Every write carries its own bytes, so that a read tells which write it saw.
    fn write(&mut self, model: &ModelFs, draw: &mut impl Draw) -> FsOp {
        self.stamp = self.stamp.wrapping_add(1);
        let len = match draw.below(4) {
            0 => draw.below(100),
            _ => draw.below(self.write_bytes_max),
        };
        let handle = handle(model, draw);
        let room = self.file_bytes_max.saturating_sub(len);
        let size = model.handles().get(&handle).and_then(|(_, ino)| model.nodes().get(ino));
        let off = match draw.below(3) {
            0 => size.map_or(0, |node| node.data.len() as u64).min(room),
            1 => draw.below(room / 4096 + 1) * 4096,
            _ => draw.below(room),
        };
        let stamp = self.stamp;
        let byte = |i: u64| (u64::from(stamp).wrapping_mul(0x9e37_79b1) >> (i % 4 * 8)) as u8 | 1;
        FsOp::Write { handle, off, data: (off..off + len).map(byte).collect() }
    }

    fn look(&self, model: &ModelFs, draw: &mut impl Draw) -> FsOp {
        match draw.below(5) {
            0 => FsOp::Getattr { ino: any(model, draw) },
            1 => FsOp::Readdir { ino: dir(model, draw) },
            2 => FsOp::Readlink { ino: any(model, draw) },
            3 => FsOp::Lookup { parent: dir(model, draw), name: b"..".to_vec() },
            _ => {
                let (parent, name) = self.entry(model, draw);
                FsOp::Lookup { parent, name }
            }
        }
    }
}

/// Any inode, sometimes one that is gone or of the wrong kind.
fn any(model: &ModelFs, draw: &mut impl Draw) -> Ino {
    if draw.chance(1, 12) {
        return draw.below(model.fresh_ino() + 1);
    }
    let all: Vec<_> = model.nodes().keys().copied().collect();
    draw.pick(&all).copied().unwrap_or(1)
}

fn of_kind(model: &ModelFs, draw: &mut impl Draw, kind: Kind) -> Ino {
    if draw.chance(1, 25) {
        return any(model, draw);
    }
    let nodes = model.nodes().iter().filter(|(_, node)| node.kind == kind);
    let all: Vec<_> = nodes.map(|(ino, _)| *ino).collect();
    draw.pick(&all).copied().unwrap_or(1)
}

fn dir(model: &ModelFs, draw: &mut impl Draw) -> Ino {
    of_kind(model, draw, Kind::Directory)
}

fn oldest(model: &ModelFs) -> Option<Ino> {
    model.nodes().iter().find(|(_, node)| node.kind == Kind::Regular).map(|(ino, _)| *ino)
}

fn name_of_oldest(model: &ModelFs) -> Option<(Ino, Vec<u8>)> {
    let oldest = oldest(model)?;
    let named = |node: &crate::Node| {
        node.entries.iter().find(|(_, ino)| **ino == oldest).map(|(name, _)| name.clone())
    };
    model.nodes().iter().find_map(|(dir, node)| Some((*dir, named(node)?)))
}

/// Half of the time the oldest file that is left: something has to grow.
fn file(model: &ModelFs, draw: &mut impl Draw) -> Ino {
    if let Some(ino) = oldest(model)
        && draw.chance(1, 2)
    {
        return ino;
    }
    of_kind(model, draw, Kind::Regular)
}

fn handle(model: &ModelFs, draw: &mut impl Draw) -> u64 {
    let mut all: Vec<_> = model.handles().keys().copied().collect();
    if draw.chance(1, 2) {
        all.truncate(1);
    }
    draw.pick(&all).copied().unwrap_or(0)
}

fn attributes(model: &ModelFs, draw: &mut impl Draw) -> FsOp {
    let ino = any(model, draw);
    let owner =
        |draw: &mut dyn FnMut() -> u64| draw().is_multiple_of(2).then(|| (draw() % 3) as u32);
    match draw.below(3) {
        0 => FsOp::Chmod { ino, mode: u32::try_from(draw.below(0o10000)).unwrap_or(0) },
        1 => {
            let mut more = || draw.draw();
            FsOp::Chown { ino, uid: owner(&mut more), gid: owner(&mut more) }
        }
        _ => {
            let mut time = || draw.chance(2, 3).then(|| draw.below(1 << 40) as i64 - (1 << 20));
            FsOp::Utimens { ino, atime: time(), mtime: time() }
        }
    }
}

fn xattr(model: &ModelFs, draw: &mut impl Draw) -> FsOp {
    let ino = any(model, draw);
    let names: [&[u8]; 6] =
        [b"user.a", b"user.b", b"user.a", b"security.capability", b"", &[b'x'; 256]];
    let name = draw.pick(&names).map_or_else(Vec::new, |name| name.to_vec());
    match draw.below(6) {
        0 => FsOp::Listxattr { ino },
        1 => FsOp::Removexattr { ino, name },
        2 => FsOp::Getxattr { ino, name },
        _ => {
            let len = if draw.chance(1, 20) { 65537 } else { draw.below(40) };
            let value = vec![draw.draw() as u8; usize::try_from(len).unwrap_or(0)];
            let flags = draw.pick(&[0, 0, 0, 1, 2, 3]).copied().unwrap_or(0);
            FsOp::Setxattr { ino, name, value, flags }
        }
    }
}
