//! `/proc/self/mountinfo`: what is mounted where, without touching the mounts (a dead one would not answer).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor` of the superblock, the name of its `/sys/class/bdi` entry.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system, e.g. `fuse.mooseng`.
    pub kind: String,
    /// What it calls its source.
    pub source: String,
}

/// All mounts this process sees; a later one covers an earlier one at the same point.
pub fn read() -> std::io::Result<Vec<MountEntry>> {
    let raw = std::fs::read("/proc/self/mountinfo")?;
    Ok(raw.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// What is mounted exactly at `point`, the topmost.
pub fn at(point: &Path) -> std::io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rev().find(|entry| entry.point == point))
}

/// The mount that `path` (absolute, without symbolic links) is on.
pub fn containing(path: &Path) -> std::io::Result<Option<MountEntry>> {
    let inside = |entry: &MountEntry| path.starts_with(&entry.point);
    let depth = |entry: &MountEntry| entry.point.components().count();
    Ok(read()?.into_iter().filter(inside).max_by_key(depth))
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: Option<&&[u8]>| field.map(|raw| String::from_utf8_lossy(raw).into_owned());
    Some(MountEntry {
        device: text(fields.get(2))?,
        point: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        kind: text(fields.get(dash + 1))?,
        source: text(fields.get(dash + 2))?,
    })
}

/// The kernel writes blanks, newlines and backslashes as `\ooo`.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) if byte == b'\\' => {
                out.push(digits.iter().fold(0u8, |sum, d| (sum << 3) | (d - b'0')));
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_blank_in_its_path() {
        let line = b"36 35 0:52 / /mnt/a\\040b rw,noatime shared:1 - fuse.mooseng moose rw,fd=3";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.device, "0:52");
        assert_eq!(entry.point, Path::new("/mnt/a b"));
        assert_eq!((entry.kind.as_str(), entry.source.as_str()), ("fuse.mooseng", "moose"));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"36 35 0:52 / /mnt"), None);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(containing(Path::new("/no/such")).unwrap().unwrap().point, Path::new("/"));
    }
}
