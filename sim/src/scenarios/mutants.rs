//! The planted bugs, each with the scenarios that should catch it.

use crate::harness::Mutant;

/// Why a bug that its scenario may well catch is not claimed.
const UNPROVEN: &str =
    "a clean build that passes there; what was seen was a false alarm, or was not hunted again";

/// All that have a site.
pub const ALL: &[Mutant] = &[
    Mutant::caught("NOSYNC", "acknowledged before fsync", "journal", 20),
    Mutant::caught("M01", "append acknowledged before log fsync", "raft_chaos", 20),
    Mutant::caught("M01", "append acknowledged before log fsync", "wal_model", 20),
    Mutant::caught("M02", "vote granted before vote fsync", "raft_chaos", 20),
    Mutant::caught("M02", "vote granted before vote fsync", "wal_model", 20),
    Mutant::caught("M03", "the vote waits for the entries after it", "raft_chaos", 20),
    Mutant::caught("M05", "an unanswered append counts as a copy", "raft_chaos", 20),
    Mutant::caught("M08", "whatever is in the log is applied after a restart", "raft_chaos", 20),
    Mutant::caught("M09", "torn log tail accepted", "wal_model", 20),
    Mutant::caught("M10", "mid-log corruption taken for a torn tail", "wal_model", 20),
    Mutant::caught("M11", "log segment without directory fsync", "wal_model", 20),
    Mutant::caught("M12", "checkpoint published before its fsync", "tables_model", 6),
    Mutant::caught("M13", "snapshot taken for one entry more than it holds", "raft_chaos", 20),
    Mutant::missed(
        "M14",
        "stale membership after a snapshot",
        "damage_chaos",
        "a vote that must be counted by a membership which only a snapshot told of",
    ),
    Mutant::caught("M15", "log purged beyond the durable checkpoint", "raft_chaos", 20),
    Mutant::caught("M16", "a deposed leader serves a local read", "namespace_chaos", 20),
    Mutant::missed(
        "M18",
        "reads served before the log is applied again",
        "namespace_chaos",
        UNPROVEN,
    ),
    Mutant::caught("M19", "the clock inside apply", "raft_chaos", 20),
    Mutant::caught("M19", "the clock inside apply", "namespace_model", 20),
    Mutant::missed(
        "M20",
        "a wiped node rejoins under its old id",
        "damage_chaos",
        "a master that loses its log and keeps the rest of its directory",
    ),
    Mutant::caught("M21", "chunk acknowledged before fsync", "cluster_chaos", 10),
    Mutant::caught("M22", "failed fsync taken for done", "store_model", 20),
    Mutant::missed("M23", "read skips the CRC", "damage_chaos", UNPROVEN),
    Mutant::caught("M24", "CRC does not cover chunk and offset", "store_model", 20),
    Mutant::caught("M25", "sealed at another length than committed", "store_model", 20),
    Mutant::caught("M26", "an expired session still commits", "namespace_model", 20),
    Mutant::caught("M27", "parity from a stale buffer", "erasure_model", 20),
    Mutant::missed("M28", "shards taken for one another", "erasure_chaos", UNPROVEN),
    Mutant::caught("M29", "a referenced chunk is deleted", "namespace_model", 20),
    Mutant::caught("M30", "repair counts dead copies", "placement_model", 20),
    Mutant::missed(
        "M31",
        "repair copies from a corrupt source",
        "damage_chaos",
        "rot in the copy that a rebuild happens to read, before a scrub finds it",
    ),
    Mutant::missed("M32", "scrub finds rot and does not repair", "damage_chaos", UNPROVEN),
    Mutant::caught("M33", "punched hole off by one block", "store_model", 20),
    Mutant::caught("M33", "punched hole off by one block", "cluster_chaos", 20),
    Mutant::caught("M34", "a full disk leaves half an append", "store_model", 20),
    Mutant::caught("M35", "two shards in one failure domain", "placement_model", 20),
    Mutant::caught("M36", "dirty data dropped on an error", "error_reporting", 8),
    Mutant::caught("M37", "fsync succeeds after a failed flush", "error_reporting", 8),
    Mutant::caught("M38", "fsync waits for data, not for extents", "cluster_chaos", 20),
    Mutant::caught("M39", "retry applied twice", "raft_chaos", 20),
    Mutant::caught("M39", "retry applied twice", "namespace_model", 20),
    Mutant::caught("M39", "retry applied twice", "namespace_chaos", 20),
    Mutant::caught("M40", "replies missing from the snapshot", "raft_chaos", 20),
    Mutant::caught("M43", "rename in two steps, the second never comes", "namespace_model", 20),
    Mutant::caught("M43", "rename in two steps, the second never comes", "namespace_chaos", 20),
    Mutant::caught("M44", "rename into its own subtree", "namespace_model", 20),
    Mutant::missed(
        "M44",
        "rename into its own subtree",
        "namespace_chaos",
        "walks of the tree that end where it has a cycle: some runs go round for ever",
    ),
    Mutant::caught("M45", "readdir cookie repeats", "namespace_model", 20),
    Mutant::caught("M45", "readdir cookie repeats", "namespace_chaos", 20),
    Mutant::missed(
        "M46",
        "O_APPEND at a cached size",
        "cluster_chaos",
        "two mounts that append to one file in turns",
    ),
    Mutant::caught("M47", "unlinked open file collected early", "namespace_model", 20),
    Mutant::caught("M47", "unlinked open file collected early", "namespace_chaos", 20),
];

/// Those without, and why.
pub const ABSENT: &[(&str, &str)] = &[
    (
        "M04",
        "the log is written inline and told to be flushed after its fsync: M01 is the same mistake",
    ),
    ("M06", "quorums are counted inside openraft"),
    ("M07", "commits are counted inside openraft"),
    ("M17", "reads are confirmed by a quorum, no lease of a leader is relied on"),
    ("M41", "no leases are recalled yet"),
    ("M42", "clients hold no leases yet"),
    ("M48", "there are no quotas yet"),
    ("M49", "there are no snapshots of directories yet"),
    ("M50", "there are no snapshots of directories yet"),
    ("M51", "there are no asynchronous regions yet"),
    ("M52", "there are no asynchronous regions yet"),
    (
        "M53",
        "every change is one command in the log: a handler that is dropped leaves nothing half done",
    ),
    ("M54", "there is one version so far"),
];
