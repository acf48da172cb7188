//! A leader whose disk is nearly full proposes only what frees space, or changes what is there.

use super::Shared;
use crate::errno::Errno;
use crate::pb::{self, op};

/// Why something that grows is not proposed now.
pub(super) fn vet_growth(shared: &Shared) -> Result<(), Errno> {
    if shared.raft.space_is_low() {
        crate::mark!("master: growth refused");
        return Err(Errno::ENOSPC);
    }
    Ok(())
}

/// Takes what grows out of a batch while space is low. The operation keeps its place and its sequence number,
/// so that the session's stream goes on; one that was applied before is answered from the reply table.
pub(super) fn refuse_growth(shared: &Shared, batch: &mut pb::Batch) {
    if batch.ops.iter().any(grows) && vet_growth(shared).is_err() {
        let refused = pb::RefusedOp { errno: Errno::ENOSPC.get() };
        for op in batch.ops.iter_mut().filter(|op| grows(op)) {
            op.op = Some(op::Op::Refused(refused));
        }
    }
}

fn grows(op: &pb::Op) -> bool {
    match &op.op {
        Some(op::Op::Create(_) | op::Op::Link(_) | op::Op::Setxattr(_)) => true,
        Some(op::Op::Commit(commit)) => !commit.extents.is_empty(),
        _ => false,
    }
}
