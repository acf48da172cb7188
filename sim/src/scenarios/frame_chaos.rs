//! [`super::cluster_chaos`] in which every process runs and every link is whole, but single requests and replies
//! are lost, doubled and late, connections break, handlers are dropped and wall clocks jump, all of it often.
//!
//! Checked: what `cluster_chaos` checks, and that nobody is given up: every machine speaks all the time, so no
//! session expires and no chunkserver is declared dead. Not checked: anything that is away (`cluster_chaos`).

use super::cluster_chaos;
use crate::failure::violation;
use crate::harness::Scenario;
use crate::oracles::Applies;
use crate::rng::{Ratio, Rng};
use crate::stats;
use crate::world::{FaultKind, Frames, NetOptions, Options};
use mooseng::pb::{ServerState, proposal::Kind};
use mooseng::raft::{Applied, Taken};
use std::sync::Arc;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "frame_chaos",
    about: "a whole cluster stores files while frames, connections, handlers and wall clocks fail",
    seeds: 24,
    limit: Duration::from_secs(600),
    must_count: &[
        stats::OPERATIONS,
        stats::FSYNCS,
        "blocks checked",
        "O6 chunks checked",
        "O13 commits checked",
        "O13 chunk syncs checked",
        "fault: request lost",
        "fault: reply lost",
        "fault: frame doubled",
        "fault: frame delayed",
        "fault: connection cut",
        "fault: handler dropped",
        "fault: clock step",
    ],
    run: |seed| Box::pin(run(seed)),
};

async fn run(seed: u64) {
    let drawn = cluster_chaos::options(seed);
    let mut rng = Rng::new(seed).fork("frame options");
    let net = often(&mut rng, &drawn.net);
    let mut faults = drawn.faults.clone();
    faults.kinds = Vec::from_iter(rng.chance(2, 3).then_some(FaultKind::ClockStep));
    faults.pause_ms = rng.range(50, 300);
    cluster_chaos::work_with(Options { net, faults, ..drawn }, |world, cluster| {
        cluster.appliers.add(Arc::new(AllSpeak(world.frames.clone())));
    })
    .await;
}

/// Each kind is off in a third of the runs, so that the others get deep.
pub(super) fn often(rng: &mut Rng, usual: &NetOptions) -> NetOptions {
    let mut ratio = |most: u64| match rng.chance(2, 3) {
        true => Ratio::one_in(rng.range(most, most * 10) as u32),
        false => Ratio::NEVER,
    };
    let (lose, duplicate, delay) = (ratio(12), ratio(5), ratio(5));
    let (cut, cancel) = (ratio(20), ratio(10));
    NetOptions { lose, duplicate, delay, cut, cancel, ..usual.clone() }
}

/// While single frames fail, everybody is heard.
pub(super) struct AllSpeak(pub Arc<Frames>);

impl Applies for AllSpeak {
    fn applied(&self, node: &str, applied: &Applied<'_>) {
        let Taken::Command(command, _) = applied.what else { return };
        if self.0.is_quiet() {
            return;
        }
        for proposal in &command.proposals {
            match &proposal.kind {
                Some(Kind::EndSession(end)) if end.expired => {
                    let session = end.session;
                    violation("O7", format!("{node}: session {session} speaks and is expired"));
                }
                Some(Kind::ServerState(row)) if row.state() == ServerState::Dead => {
                    let server = row.server;
                    violation("O7", format!("{node}: server {server} speaks and is called dead"));
                }
                _ => {}
            }
        }
    }
}
