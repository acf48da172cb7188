//! How many files this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What libraries, logs and the runtime take beside replicas and connections.
const SPARE: usize = 64;

/// Raises the soft limit of open files to the hard one, and warns if `wanted` of them are not to be had. The soft one is
/// low for the sake of programs that use select(2), and this is none.
pub(crate) fn raise_limit(wanted: usize) {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            now.current
        }
    };
    let wanted = (wanted + SPARE) as u64;
    if let Some(allowed) = allowed.filter(|allowed| *allowed < wanted) {
        tracing::warn!(
            "at most {allowed} open files, and up to {wanted} may be needed: when they run out, requests wait; raise the \
             limit (LimitNOFILE= of a systemd unit, ulimit -Hn in a shell)"
        );
    }
}

/// Files that a chunkserver with so many disks may have open: each replica's twice (one for writes past the page cache).
pub(crate) fn of_chunkserver(limits: &mooseng::limits::Limits, disks: usize) -> usize {
    disks * 2 * limits.open_replicas_max + limits.connections_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit(usize::MAX >> 1);
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
    }

    #[test]
    fn each_disk_of_a_chunkserver_needs_its_share() {
        let limits = mooseng::limits::Limits::production();
        let one = of_chunkserver(&limits, 1);
        assert_eq!(of_chunkserver(&limits, 3) - one, 4 * limits.open_replicas_max);
        assert!(one > limits.connections_max);
    }
}
