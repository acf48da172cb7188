//! Every bound and default, its unit in its name. Raw values are chosen, derived ones computed; const asserts
//! state how they relate. `production()` is what daemons run with; `tiny()` reaches rare states (full
//! segments, checkpoints, sealed chunks, trimmed replies) within a short simulation.

use std::time::Duration;

/// Bytes that one CRC covers; appends start on this boundary. Part of the disk format.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of one cell of a stripe in a k+m chunk. Part of the disk format.
pub const CELL_BYTES: usize = 64 << 10;
/// Most logical bytes in a chunk of any layout. Part of the disk format (it sizes the CRC table).
pub const CHUNK_BYTES_MAX: usize = 64 << 20;
/// Most data shards, and most shards in all (GF(2^8) allows 255).
pub const DATA_SHARDS_MAX: usize = 32;
/// Most shards of a chunk, data and parity.
pub const SHARDS_MAX: usize = 48;
/// Longest file name, bytes (POSIX NAME_MAX on Linux).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, bytes (PATH_MAX).
pub const TARGET_BYTES_MAX: usize = 4095;
/// Most names of one inode.
pub const LINKS_MAX: u32 = 65_000;
/// Longest xattr name and value, bytes (Linux XATTR_NAME_MAX, XATTR_SIZE_MAX).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest xattr value, bytes.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Largest file: what off_t and our u64 arithmetic hold with room to spare, bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 60;
/// Longest header message and longest payload of a frame, bytes. A frame that claims more is refused unread.
pub const FRAME_BODY_BYTES_MAX: usize = 8 << 20;
/// Longest payload of a frame, bytes.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Longest header message of a request, bytes: servers hold what strangers send, so it is less than a reply's.
pub const REQUEST_BODY_BYTES_MAX: usize = 1 << 20;
/// Longest payload of a request, bytes.
pub const REQUEST_PAYLOAD_BYTES_MAX: usize = 4 << 20;

const _: () = assert!(CELL_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(CHUNK_BYTES_MAX.is_multiple_of(CELL_BYTES));
const _: () = assert!(REQUEST_BODY_BYTES_MAX <= FRAME_BODY_BYTES_MAX);
const _: () = assert!(REQUEST_PAYLOAD_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(DATA_SHARDS_MAX < SHARDS_MAX && SHARDS_MAX < 256);

/// Bounds that a run may choose. Durations are std's; sizes are bytes unless the name says otherwise.
#[derive(Clone, Debug)]
pub struct Limits {
    // Raft and sessions
    /// Leader heartbeat interval.
    pub heartbeat: Duration,
    /// Election timeout, lower end.
    pub election_min: Duration,
    /// Election timeout, upper end.
    pub election_max: Duration,
    /// Deadline of one append or vote call between masters.
    pub append_deadline: Duration,
    /// A master's wall clock further than this from the masters' median is wrong: it should not lead (rule B3).
    pub clock_off_max: Duration,
    /// Most bytes of proposals packed into one log entry.
    pub entry_bytes_max: usize,
    /// Most proposals waiting for the proposer; more are refused with EAGAIN on the wire, retried by clients.
    pub proposals_waiting_max: usize,
    /// Bytes of recent log entries a master keeps decoded in memory.
    pub log_cache_bytes: usize,
    /// Size of a write-ahead log segment.
    pub wal_segment_bytes: u64,
    /// Overlay size at which a checkpoint begins.
    pub overlay_bytes_checkpoint: usize,
    /// Overlay size at which proposals wait for the checkpoint.
    pub overlay_bytes_max: usize,
    /// redb's page cache.
    pub redb_cache_bytes: usize,
    /// The table file is written anew when it takes four times its rows and this much more.
    pub table_slack_bytes: u64,
    /// Log entries kept behind the checkpoint for slow followers.
    pub log_entries_kept: u64,
    /// Rows of a snapshot in one call between masters, bytes (one row at least).
    pub snapshot_piece_bytes: usize,
    /// A session without keepalive for this long is expired by a committed command.
    pub session_ttl: Duration,
    /// How often a client sends a keepalive.
    pub keepalive: Duration,
    /// Longest time a client retries one operation before EIO.
    pub operation_deadline: Duration,
    /// First and longest pause between a client's retries.
    pub retry_pause: Duration,
    /// Longest pause between retries.
    pub retry_pause_max: Duration,
    /// Operations in one client batch.
    pub batch_ops_max: usize,
    /// Replies remembered per session.
    pub replies_kept: usize,
    /// Inode ids handed to a session at a time.
    pub inode_range: u32,
    // Files
    /// Largest piece of a file that is kept in the metadata instead of a chunk.
    pub inline_bytes_max: usize,
    /// Most inline bytes of one inode.
    pub inline_total_bytes_max: usize,
    /// Most extents of one inode.
    pub extents_max: u64,
    /// Extents freed by one purge command.
    pub purge_extents: u32,
    // Chunks
    /// Logical size at which a writer seals its chunk and opens another; at most CHUNK_BYTES_MAX.
    pub chunk_bytes: usize,
    /// Chunkserver heartbeat interval.
    pub server_heartbeat: Duration,
    /// Silence after which a chunkserver gets no new chunks.
    pub server_suspect: Duration,
    /// Silence after which a chunkserver is declared dead and repair begins.
    pub server_dead: Duration,
    /// Deadline of one append or sync call.
    pub chunk_write_deadline: Duration,
    /// Deadline of one read call before another replica is asked.
    pub chunk_read_deadline: Duration,
    /// Garbage in a chunk at which its dead ranges are punched; less is when a chunkserver runs full.
    pub punch_garbage_bytes: u64,
    /// Repairs under way at once in the cluster.
    pub repairs_at_once: usize,
    /// Most bytes of one append call.
    pub append_bytes_max: usize,
    /// Requests that may wait for one chunk disk; more are refused as busy.
    pub store_queue_max: usize,
    /// Bytes of appends that one chunk disk may have, waiting and under way; more are refused as busy.
    pub store_queue_bytes_max: usize,
    /// Kept free on a chunk disk (at most a twentieth of it), so that deletes work when it is full.
    pub disk_reserve_bytes: u64,
    /// Most bytes that a replica's file is made longer than what short appends need.
    pub prewrite_bytes: u64,
    /// Replica files that one chunk disk keeps open.
    pub open_replicas_max: usize,
    /// Synced bytes of a replica by which its recorded length may lag: what a restart checks again.
    pub recorded_lag_bytes: u64,
    /// How fast a chunkserver reads its replicas to check them, bytes per second and disk.
    pub scrub_bytes_per_second: u64,
    /// Shortest time from the beginning of one such check of a disk to the next.
    pub scrub_period: Duration,
    /// Replicas in one page of a chunkserver's report.
    pub report_page: usize,
    /// Bytes of each source that a rebuild handles at a time.
    pub rebuild_piece_bytes: usize,
    /// Rebuilds under way at once on one chunkserver.
    pub rebuilds_at_once: usize,
    // Client
    /// Kernel and client cache lifetime of attributes and entries, until leases come.
    pub attr_ttl: Duration,
    /// Dirty bytes of one mount; writers wait above it.
    pub dirty_bytes_max: usize,
    /// Dirty bytes of one inode at which a flush begins.
    pub flush_bytes: usize,
    /// Oldest age of dirty data before it is flushed.
    pub dirty_age_max: Duration,
    /// Client read-ahead.
    pub readahead_bytes: usize,
    /// Bytes of file data a client keeps in its cache.
    pub data_cache_bytes: usize,
    /// Chunks whose homes a client remembers.
    pub chunks_known_max: usize,
    /// Bytes of results after which the masters answer no more of the queries in one call.
    pub query_reply_bytes: usize,
    /// Inodes a client keeps attributes of.
    pub inodes_cached_max: usize,
    // Wire
    /// Requests under way on one connection.
    pub requests_in_flight_max: usize,
    /// Connections one server accepts.
    pub connections_max: usize,
    /// Bytes of long requests that a server holds at a time, from their beginning to their answer, or until a disk's
    /// queue answers for them; further ones wait in their sockets.
    pub receive_bytes_max: usize,
    /// Deadline of connect and handshake.
    pub connect_deadline: Duration,
    /// A connection with calls waiting and nothing received for this long is pinged.
    pub ping_after: Duration,
    /// A pinged peer that stays silent for this long is given up.
    pub silence_max: Duration,
    /// A server closes a connection that was silent for this long.
    pub connection_idle_max: Duration,
    /// A server closes a connection that takes none of the waiting bytes for this long.
    pub write_stall_max: Duration,
    /// A handler is dropped this long after its caller's deadline.
    pub handler_grace: Duration,
    /// A stopping server gives handlers this long to finish.
    pub drain_max: Duration,
}

impl Limits {
    /// What daemons run with.
    pub const fn production() -> Limits {
        Limits {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            append_deadline: Duration::from_secs(2),
            clock_off_max: Duration::from_secs(5),
            entry_bytes_max: 1 << 20,
            proposals_waiting_max: 16 << 10,
            log_cache_bytes: 16 << 20,
            wal_segment_bytes: 32 << 20,
            overlay_bytes_checkpoint: 16 << 20,
            overlay_bytes_max: 256 << 20,
            redb_cache_bytes: 32 << 20,
            table_slack_bytes: 64 << 20,
            log_entries_kept: 1000,
            snapshot_piece_bytes: 256 << 10,
            session_ttl: Duration::from_secs(60),
            keepalive: Duration::from_secs(5),
            operation_deadline: Duration::from_secs(120),
            retry_pause: Duration::from_millis(20),
            retry_pause_max: Duration::from_millis(500),
            batch_ops_max: 256,
            replies_kept: 1024,
            inode_range: 4096,
            inline_bytes_max: 4096,
            inline_total_bytes_max: 16 << 10,
            extents_max: 4 << 20,
            purge_extents: 1024,
            chunk_bytes: CHUNK_BYTES_MAX,
            server_heartbeat: Duration::from_millis(500),
            server_suspect: Duration::from_secs(3),
            server_dead: Duration::from_secs(60),
            chunk_write_deadline: Duration::from_millis(2500),
            chunk_read_deadline: Duration::from_millis(1500),
            punch_garbage_bytes: 1 << 20,
            repairs_at_once: 4,
            append_bytes_max: 4 << 20,
            store_queue_max: 1024,
            store_queue_bytes_max: 64 << 20,
            disk_reserve_bytes: 64 << 20,
            prewrite_bytes: 1 << 20,
            open_replicas_max: 512,
            recorded_lag_bytes: 4 << 20,
            scrub_bytes_per_second: 8 << 20,
            scrub_period: Duration::from_secs(6 * 3600),
            report_page: 4096,
            rebuild_piece_bytes: 1 << 20,
            rebuilds_at_once: 4,
            attr_ttl: Duration::from_secs(1),
            dirty_bytes_max: 64 << 20,
            flush_bytes: 1 << 20,
            dirty_age_max: Duration::from_secs(3),
            readahead_bytes: 4 << 20,
            data_cache_bytes: 128 << 20,
            chunks_known_max: 16 << 10,
            query_reply_bytes: 4 << 20,
            inodes_cached_max: 1 << 17,
            requests_in_flight_max: 1024,
            connections_max: 4096,
            receive_bytes_max: 8 << 20,
            connect_deadline: Duration::from_millis(1000),
            ping_after: Duration::from_millis(500),
            silence_max: Duration::from_secs(2),
            connection_idle_max: Duration::from_secs(30),
            write_stall_max: Duration::from_secs(10),
            handler_grace: Duration::from_secs(10),
            drain_max: Duration::from_millis(500),
        }
    }

    /// Small enough that a few seconds of simulation fill segments, chunks, tables and windows.
    pub const fn tiny() -> Limits {
        Limits {
            entry_bytes_max: 64 << 10,
            proposals_waiting_max: 64,
            log_cache_bytes: 4 << 10,
            wal_segment_bytes: 64 << 10,
            overlay_bytes_checkpoint: 16 << 10,
            overlay_bytes_max: 256 << 10,
            redb_cache_bytes: 64 << 10,
            table_slack_bytes: 256 << 10,
            log_entries_kept: 8,
            snapshot_piece_bytes: 1 << 10,
            session_ttl: Duration::from_secs(8),
            keepalive: Duration::from_millis(800),
            operation_deadline: Duration::from_secs(120),
            batch_ops_max: 8,
            replies_kept: 32,
            inode_range: 8,
            inline_bytes_max: 512,
            inline_total_bytes_max: 2048,
            extents_max: 4096,
            purge_extents: 2,
            chunk_bytes: 256 << 10,
            server_dead: Duration::from_secs(6),
            punch_garbage_bytes: 16 << 10,
            append_bytes_max: 64 << 10,
            store_queue_max: 64,
            store_queue_bytes_max: 1 << 20,
            disk_reserve_bytes: 64 << 10,
            prewrite_bytes: 32 << 10,
            open_replicas_max: 4,
            recorded_lag_bytes: 32 << 10,
            scrub_bytes_per_second: 256 << 10,
            scrub_period: Duration::from_secs(5),
            report_page: 4,
            rebuild_piece_bytes: 64 << 10,
            rebuilds_at_once: 2,
            dirty_bytes_max: 512 << 10,
            flush_bytes: 32 << 10,
            dirty_age_max: Duration::from_millis(700),
            readahead_bytes: 64 << 10,
            data_cache_bytes: 256 << 10,
            chunks_known_max: 4,
            query_reply_bytes: 2 << 10,
            inodes_cached_max: 16,
            requests_in_flight_max: 64,
            connections_max: 64,
            ..Limits::production()
        }
    }
}

const _: () = {
    let sets = [Limits::production(), Limits::tiny()];
    let mut i = 0;
    while i < sets.len() {
        let l = &sets[i];
        assert!(l.heartbeat.as_millis() * 3 <= l.election_min.as_millis());
        assert!(l.election_min.as_millis() < l.election_max.as_millis());
        assert!(l.keepalive.as_millis() * 4 <= l.session_ttl.as_millis());
        assert!(l.server_heartbeat.as_millis() * 3 <= l.server_suspect.as_millis());
        assert!(l.server_suspect.as_millis() < l.server_dead.as_millis());
        assert!(l.chunk_bytes <= CHUNK_BYTES_MAX && l.chunk_bytes.is_multiple_of(CELL_BYTES));
        assert!(
            l.inline_bytes_max <= BLOCK_BYTES && l.inline_bytes_max <= l.inline_total_bytes_max
        );
        assert!(
            l.append_bytes_max <= REQUEST_PAYLOAD_BYTES_MAX && l.append_bytes_max <= l.chunk_bytes
        );
        assert!(l.receive_bytes_max >= REQUEST_BODY_BYTES_MAX + REQUEST_PAYLOAD_BYTES_MAX);
        // A piece of replicated entries ends with one that a last, long proposal made longer.
        assert!(l.entry_bytes_max * 2 + REQUEST_BODY_BYTES_MAX <= REQUEST_PAYLOAD_BYTES_MAX);
        assert!(l.append_bytes_max.is_multiple_of(BLOCK_BYTES));
        assert!(l.append_bytes_max <= l.store_queue_bytes_max);
        assert!(l.rebuild_piece_bytes.is_multiple_of(BLOCK_BYTES));
        assert!(l.rebuild_piece_bytes <= FRAME_PAYLOAD_BYTES_MAX);
        assert!(l.report_page > 0 && l.open_replicas_max > 0 && l.rebuilds_at_once > 0);
        assert!(l.entry_bytes_max as u64 * 2 <= l.wal_segment_bytes * 2);
        assert!(l.overlay_bytes_checkpoint < l.overlay_bytes_max);
        assert!(l.batch_ops_max <= l.replies_kept);
        assert!(l.ping_after.as_millis() * 2 <= l.silence_max.as_millis());
        assert!(l.ping_after.as_millis() * 20 <= l.connection_idle_max.as_millis());
        i += 1;
    }
};
