//! Reads every replica now and then, slowly, so that rot is found while other copies are still good.

use super::Shared;
use crate::seam;
use crate::store::{ReplicaId, Store, StoreError};
use std::sync::Arc;
use std::time::Duration;

/// Replicas listed at a time.
const PAGE: usize = 256;

/// Runs for the life of the chunkserver: one pass after the other over one disk, at most as fast as
/// `scrub_bytes_per_second`, not more often than every `scrub_period`.
pub(super) async fn run(shared: Arc<Shared>, store: Arc<Store>) {
    loop {
        let begun = seam::now();
        let mut after: Option<ReplicaId> = None;
        loop {
            let page = store.list(after, PAGE);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            // Open replicas are checked when they are sealed or recovered.
            for status in page.iter().filter(|status| status.sealed && !status.corrupt) {
                if !store.failed() {
                    replica(&shared, &store, status.id).await;
                }
            }
        }
        let rest = (begun + shared.limits.scrub_period).since(seam::now());
        tokio::time::sleep(rest.max(Duration::from_secs(1))).await;
    }
}

/// Checks one replica, a piece at a time.
async fn replica(shared: &Shared, store: &Arc<Store>, id: ReplicaId) {
    let mut at = 0;
    loop {
        let begun = seam::now();
        let reading = store.clone();
        let checked: Result<_, StoreError> =
            seam::blocking(move || reading.verify_piece(id, at, &mut Vec::new())).await;
        let Ok(Some(next)) = checked else { return };
        let fair = (next - at) * 1_000_000 / shared.limits.scrub_bytes_per_second.max(1);
        let pause = Duration::from_micros(fair).saturating_sub(seam::now().since(begun));
        tokio::time::sleep(pause).await;
        at = next;
    }
}
