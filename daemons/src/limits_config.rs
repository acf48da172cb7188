//! `[limits]`: which bounds a configuration may change.

use crate::fail::Fail;
use mooseng::limits::{CELL_BYTES, CHUNK_BYTES_MAX, Limits, REQUEST_PAYLOAD_BYTES_MAX};
use serde::Deserialize;
use std::time::Duration;

macro_rules! limits {
    (times { $($time:ident => $time_field:ident),* $(,)? } numbers { $($number:ident),* $(,)? }) => {
        /// Bounds that a configuration changes; absent ones keep their production value. Times are in
        /// milliseconds, sizes in bytes, as the names say.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[allow(missing_docs)]
        pub struct LimitsConfig {
            $(pub $time: Option<u64>,)*
            $(pub $number: Option<u64>,)*
        }

        impl LimitsConfig {
            fn copy_into(&self, limits: &mut Limits) -> Result<(), Fail> {
                $(if let Some(ms) = self.$time {
                    limits.$time_field = Duration::from_millis(ms);
                })*
                $(if let Some(value) = self.$number {
                    limits.$number = value.try_into().map_err(|_| {
                        Fail::usage(format!(concat!("[limits] ", stringify!($number), " = {} is too large"), value))
                    })?;
                })*
                Ok(())
            }
        }
    };
}

limits! {
    times {
        heartbeat_ms => heartbeat,
        election_min_ms => election_min,
        election_max_ms => election_max,
        append_deadline_ms => append_deadline,
        clock_off_ms_max => clock_off_max,
        session_ttl_ms => session_ttl,
        keepalive_ms => keepalive,
        operation_deadline_ms => operation_deadline,
        server_heartbeat_ms => server_heartbeat,
        server_suspect_ms => server_suspect,
        server_dead_ms => server_dead,
        chunk_write_deadline_ms => chunk_write_deadline,
        chunk_read_deadline_ms => chunk_read_deadline,
        attr_ttl_ms => attr_ttl,
        dirty_age_ms_max => dirty_age_max,
    }
    numbers {
        wal_segment_bytes,
        overlay_bytes_checkpoint,
        overlay_bytes_max,
        redb_cache_bytes,
        table_slack_bytes,
        log_entries_kept,
        chunk_bytes,
        repairs_at_once,
        append_bytes_max,
        dirty_bytes_max,
        flush_bytes,
        readahead_bytes,
        data_cache_bytes,
        inodes_cached_max,
        connections_max,
    }
}

impl LimitsConfig {
    /// Changes `limits` as configured; refuses combinations that cannot work.
    pub fn apply(&self, limits: &mut Limits) -> Result<(), Fail> {
        self.copy_into(limits)?;
        let l = &*limits;
        let rules = [
            (l.heartbeat * 3 <= l.election_min, "heartbeat_ms * 3 <= election_min_ms"),
            (l.election_min < l.election_max, "election_min_ms < election_max_ms"),
            (l.keepalive * 4 <= l.session_ttl, "keepalive_ms * 4 <= session_ttl_ms"),
            (
                l.server_heartbeat * 3 <= l.server_suspect,
                "server_heartbeat_ms * 3 <= server_suspect_ms",
            ),
            (l.server_suspect < l.server_dead, "server_suspect_ms < server_dead_ms"),
            (
                l.chunk_bytes <= CHUNK_BYTES_MAX
                    && l.chunk_bytes > 0
                    && l.chunk_bytes.is_multiple_of(CELL_BYTES),
                "chunk_bytes is a multiple of 65536, at most 67108864",
            ),
            (
                l.append_bytes_max > 0
                    && l.append_bytes_max <= l.chunk_bytes.min(REQUEST_PAYLOAD_BYTES_MAX)
                    && l.append_bytes_max.is_multiple_of(4096),
                "append_bytes_max is a multiple of 4096, at most chunk_bytes and 4194304",
            ),
            (
                l.overlay_bytes_checkpoint < l.overlay_bytes_max,
                "overlay_bytes_checkpoint < overlay_bytes_max",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Fail::usage(format!("[limits] must keep: {rule}"))),
            None => Ok(()),
        }
    }

    /// The production set with the configured changes.
    pub fn limits(&self) -> Result<Limits, Fail> {
        let mut limits = Limits::production();
        self.apply(&mut limits)?;
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_production_and_impossible_sets_are_refused() {
        assert_eq!(
            LimitsConfig::default().limits().unwrap().server_dead,
            Limits::production().server_dead
        );
        let bad = LimitsConfig { server_dead_ms: Some(10), ..LimitsConfig::default() };
        let line = bad.limits().unwrap_err().to_string();
        assert!(line.contains("server_suspect_ms < server_dead_ms"), "{line}");
        let good = LimitsConfig { server_dead_ms: Some(5000), ..LimitsConfig::default() };
        assert_eq!(good.limits().unwrap().server_dead, Duration::from_secs(5));
    }
}
