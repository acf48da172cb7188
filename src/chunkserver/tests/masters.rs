//! The chunkserver and its masters, played here.

use super::*;
use crate::errno::Errno;
use crate::ids::{ServerId, Uuid};
use crate::wire::{Handler, Incoming, Outgoing, Peer, Refusal, Server};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

/// What a master heard.
#[derive(Default)]
struct Heard {
    registrations: Vec<pb::RegisterRequest>,
    heartbeats: usize,
    bad: BTreeSet<u64>,
    reports: Vec<pb::ReportRequest>,
}

/// How a master answers.
#[derive(Default)]
struct Script {
    leader: Option<String>,
    refuse: Option<&'static str>,
    stale_once: bool,
    want_report: bool,
}

#[derive(Default)]
struct Master {
    heard: Mutex<Heard>,
    script: Mutex<Script>,
}

impl Master {
    fn heard<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn script<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, request: &Incoming) -> Result<Outgoing, Refusal> {
        if let Some(leader) = self.script(|script| script.leader.clone()) {
            return Err(Refusal::new(RefusalCode::NotLeader, leader));
        }
        match request.method {
            calls::Register::METHOD => {
                let question = request.decode::<calls::Register>()?;
                self.heard(|heard| heard.registrations.push(question));
                let refused = self.script(|script| script.refuse);
                Ok(Outgoing::new::<calls::Register>(&pb::RegisterReply {
                    errno: refused.map_or(0, |_| Errno::EPERM.get()),
                    error: refused.unwrap_or_default().to_owned(),
                    server: 4,
                    cluster: vec![7; 16].into(),
                    heartbeat_ms: 50,
                }))
            }
            calls::Heartbeat::METHOD => {
                let question = request.decode::<calls::Heartbeat>()?;
                self.heard(|heard| {
                    heard.heartbeats += 1;
                    heard.bad.extend(question.bad.iter().map(|id| id.chunk));
                });
                let stale = self.script(|script| std::mem::take(&mut script.stale_once));
                let errno = if stale { Errno::ESTALE.get() } else { 0 };
                let send_report = self.script(|script| std::mem::take(&mut script.want_report));
                let reply = pb::HeartbeatReply { errno, term: 3, send_report };
                Ok(Outgoing::new::<calls::Heartbeat>(&reply))
            }
            calls::Report::METHOD => {
                let question = request.decode::<calls::Report>()?;
                self.heard(|heard| heard.reports.push(question));
                Ok(Outgoing::new::<calls::Report>(&pb::ReportReply { errno: 0 }))
            }
            method => Err(Refusal::not_served(method)),
        }
    }
}

impl Handler for Master {
    fn handle(
        self: Arc<Self>,
        _peer: Arc<Peer>,
        request: Incoming,
    ) -> Pin<Box<dyn Future<Output = Result<Outgoing, Refusal>> + Send>> {
        Box::pin(async move { self.answer(&request) })
    }
}

async fn master() -> (Arc<Master>, Server, String) {
    let master = Arc::new(Master::default());
    let identity =
        Identity { cluster: Some(Uuid([7; 16])), role: Role::Master, node: 1, incarnation: 1 };
    let limits = Arc::new(Limits::production());
    let server = Server::start("127.0.0.1:0", identity, limits, master.clone()).await;
    let server = server.expect("listens");
    let address = server.local_addr().to_string();
    (master, server, address)
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_the_leader_registers_and_reports() {
    let (follower, follower_server, follower_at) = master().await;
    let (leader, leader_server, leader_at) = master().await;
    follower.script(|script| script.leader = Some(leader_at.clone()));
    let node = Node::with_masters(2, &["127.0.0.1:1".into(), follower_at.clone()]).await;
    eventually("registered", || node.server.server_id() == Some(ServerId(4))).await;
    let pool = pool();
    for chunk in 1..=10 {
        append(&pool, &node.address, copy_id(chunk), 0, b"x", true).await.expect("appended");
    }
    place(&pool, &node, copy_id(11), &fill(1, 100_000)).await;
    eventually("a heartbeat", || leader.heard(|heard| heard.heartbeats) > 0).await;
    leader.heard(|heard| heard.reports.clear());
    leader.script(|script| script.want_report = true);
    eventually("a report", || {
        leader.heard(|heard| heard.reports.last().is_some_and(|page| page.last))
    })
    .await;
    leader.heard(|heard| {
        let pages = &heard.reports;
        assert!(pages.len() >= 4 && pages[0].first && pages[1..].iter().all(|page| !page.first));
        assert!(pages.iter().all(|page| page.report == pages[0].report && page.server == 4));
        assert!(pages[..pages.len() - 1].iter().all(|page| !page.last));
        let mut chunks: Vec<u64> = pages
            .iter()
            .flat_map(|page| &page.replicas)
            .filter_map(|state| state.replica.map(|id| id.chunk))
            .collect();
        chunks.sort_unstable();
        assert_eq!(chunks, (1..=11).collect::<Vec<_>>());
        let first = &heard.registrations[0];
        assert_eq!((first.server, first.disks.len()), (0, 2));
        assert_eq!(first.address, node.address);
    });
    node.rot(copy_id(11), 50_000);
    eventually("rot found by the scrub and told", || leader.heard(|heard| heard.bad.contains(&11)))
        .await;
    leader.script(|script| script.stale_once = true);
    eventually("registered again", || leader.heard(|heard| heard.registrations.len()) > 1).await;
    leader.heard(|heard| {
        let (first, again) = (&heard.registrations[0], &heard.registrations[1]);
        assert_eq!((again.server, &again.uuid), (4, &first.uuid));
        assert_eq!(again.incarnation, first.incarnation);
    });
    let Node { dir, server, .. } = node;
    server.stop().await;
    let server = start(&dir, 2, &[leader_at]).await;
    assert_eq!(server.server_id(), Some(ServerId(4)), "known from its disks");
    eventually("a third registration", || leader.heard(|heard| heard.registrations.len()) > 2)
        .await;
    leader.heard(|heard| {
        assert_ne!(heard.registrations[2].incarnation, heard.registrations[0].incarnation)
    });
    server.stop().await;
    follower_server.stop().await;
    leader_server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_registration_changes_nothing() {
    let (master, master_server, address) = master().await;
    master.script(|script| script.refuse = Some("removed from the cluster"));
    let node = Node::with_masters(1, &[address]).await;
    eventually("asked", || master.heard(|heard| !heard.registrations.is_empty())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.server.server_id(), None);
    append(&pool(), &node.address, copy_id(1), 0, b"x", true)
        .await
        .expect("it serves all the same");
    node.server.stop().await;
    master_server.stop().await;
}
