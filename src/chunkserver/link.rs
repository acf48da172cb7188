//! The chunkserver's side of its relation to the masters: finds the leader, registers, sends heartbeats, and
//! full reports when the leader wants one and now and then.

use super::{ChunkserverConfig, Known, Shared, handler};
use crate::errno::Errno;
use crate::ids::{ServerId, Term, Uuid};
use crate::pb;
use crate::seam::{self, Mono};
use crate::store::{DiskError, ReplicaId};
use crate::wire::{Call, CallError, RefusalCode, Server, calls};
use crate::{bug, fault, mark};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Bad replicas named in one heartbeat; the rest goes with the next.
const BAD_MAX: usize = 1024;
/// A full report is sent at least so often, whatever the scrub's period.
const REPORT_PERIOD_MAX: Duration = Duration::from_secs(600);
/// Pause after a registration that was refused for good reason.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Link {
    shared: Arc<Shared>,
    server: Arc<Server>,
    masters: Vec<String>,
    /// Who is asked: a configured master, or the one that another named as leader.
    leader: String,
    /// Whether the last thing asked of that one found no answer in time.
    silent: bool,
    next: usize,
    advertise: String,
    labels: Vec<String>,
    registered: bool,
    report: Option<Report>,
    reports: u64,
    /// Masters that said, one after another, that they belong to another cluster.
    strangers: BTreeMap<String, String>,
    refused: watch::Sender<Option<String>>,
    /// When the last one began.
    reported: Mono,
}

/// A full report under way.
struct Report {
    number: u64,
    /// The term whose leader is told; 0 for whoever leads.
    term: u64,
    disk: usize,
    after: Option<ReplicaId>,
    first: bool,
}

impl Link {
    pub fn new(
        shared: Arc<Shared>,
        config: &ChunkserverConfig,
        server: Arc<Server>,
        refused: watch::Sender<Option<String>>,
    ) -> Link {
        let advertise = match config.advertise.as_str() {
            "" => server.local_addr().to_string(),
            given => given.to_owned(),
        };
        Link {
            shared,
            server,
            masters: config.masters.clone(),
            leader: config.masters.first().cloned().unwrap_or_default(),
            silent: false,
            next: 0,
            advertise,
            labels: config.labels.clone(),
            registered: false,
            report: None,
            reports: 0,
            strangers: BTreeMap::new(),
            refused,
            reported: seam::now(),
        }
    }

    pub async fn run(mut self) {
        if self.masters.is_empty() {
            tracing::warn!("no masters are configured: serving without registration");
            return;
        }
        let heartbeat = self.shared.limits.server_heartbeat;
        loop {
            let begun = seam::now();
            if !self.registered {
                self.register().await;
            } else if self.heartbeat().await {
                // What the leader told this server, or was told, may be lost: it is compared now and then.
                let due =
                    self.report.is_none() && begun.since(self.reported) > self.report_period();
                if due || fault!("chunkserver: report begun anew") {
                    self.begin_report(0);
                }
                self.send_report(begun + heartbeat).await;
            }
            let rest = seam::now().until(begun + heartbeat);
            tokio::time::sleep(rest.max(Duration::from_millis(1))).await;
        }
    }

    /// Within which a registration, or a page of a report, is answered.
    fn deadline(&self) -> Duration {
        self.shared.limits.server_heartbeat * 2
    }

    /// Within which a heartbeat is answered: whoever waits no longer sends the next one when it is due, so that
    /// many in a row may be lost before this server counts as dead.
    fn heartbeat_deadline(&self) -> Duration {
        // FICKLE: with patience for two, and none for whoever is silent once.
        if bug!(FICKLE) { self.deadline() } else { self.shared.limits.server_heartbeat }
    }

    /// Asks who is believed to lead, and follows where that one points.
    async fn ask<C: Call>(&mut self, request: &C::Request, deadline: Duration) -> Option<C::Reply> {
        // A hint is followed at once; whoever is clueless, or silent twice, is left for the next heartbeat.
        for _ in 0..2 {
            let leader = self.leader.clone();
            let answer = self.shared.pool.call::<C>(&leader, request, vec![], deadline).await;
            let error = match answer {
                Ok((reply, _)) => {
                    self.silent = false;
                    self.strangers.clear();
                    return Some(reply);
                }
                Err(error) => error,
            };
            self.note_stranger(&leader, &error);
            if let CallError::Refused(refusal) = &error
                && refusal.code == RefusalCode::NotLeader
                && !refusal.message.is_empty()
                && refusal.message != leader
            {
                mark!("chunkserver: followed a hint to the leader");
                self.silent = false;
                self.leader.clone_from(&refusal.message);
                continue;
            }
            tracing::debug!(master = leader, %error, "{} not answered", C::NAME);
            // One message may be lost: it is asked once more, as nobody else can answer if it does lead.
            if matches!(error, CallError::Deadline) && !self.silent && !bug!(FICKLE) {
                mark!("chunkserver: a silent master is asked again");
                self.silent = true;
                return None;
            }
            break;
        }
        self.silent = false;
        self.next = (self.next + 1) % self.masters.len();
        self.leader.clone_from(&self.masters[self.next]);
        None
    }

    /// When every configured master belongs to another cluster, there is nobody to wait for.
    fn note_stranger(&mut self, master: &str, error: &CallError) {
        if error.wrong_cluster() {
            self.strangers.insert(master.to_owned(), error.to_string());
        }
        if self.masters.iter().all(|master| self.strangers.contains_key(master)) {
            mark!("chunkserver: all masters are another cluster's");
            self.refuse(format!("{error}; correct the masters or the data directories"));
        }
    }

    fn refuse(&self, why: String) {
        tracing::error!("not registered: {why}");
        self.refused.send_replace(Some(why));
    }

    async fn register(&mut self) {
        let known = self.shared.known();
        let request = pb::RegisterRequest {
            uuid: self.shared.uuid.0.to_vec().into(),
            server: known.server.map_or(0, |server| server.0),
            address: self.advertise.clone(),
            labels: self.labels.clone(),
            incarnation: self.shared.incarnation.0,
            disks: self.shared.disks(),
        };
        let Some(reply) = self.ask::<calls::Register>(&request, self.deadline()).await else {
            return;
        };
        if let Err(error) = self.accept(known, &reply).await {
            self.refuse(format!("refused by master {}: {error}", self.leader));
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }

    async fn accept(&mut self, known: Known, reply: &pb::RegisterReply) -> Result<(), String> {
        if reply.errno != 0 {
            return Err(reply.error.clone());
        }
        let (server, cluster) = (ServerId(reply.server), Uuid::from_bytes(&reply.cluster));
        let cluster = cluster.filter(|_| server.0 != 0).ok_or("the answer names no server")?;
        if known.cluster.is_some_and(|ours| ours != cluster) {
            return Err(format!("it belongs to cluster {cluster}"));
        }
        if known.server.is_some_and(|ours| ours != server) {
            return Err(format!("it calls this server {server}"));
        }
        if known.server.is_none() || known.cluster.is_none() {
            // The disks are bound before anything else is said under the new name.
            let stores: Vec<_> = self.shared.writers.iter().map(|w| w.store().clone()).collect();
            let bind = move || stores.iter().try_for_each(|store| store.bind(cluster, server));
            let bound: Result<(), DiskError> = seam::blocking(bind).await;
            bound.map_err(|error| error.to_string())?;
        }
        let known = Known { cluster: Some(cluster), server: Some(server) };
        self.shared.set_known(known);
        let identity = known.identity(self.shared.incarnation);
        if self.shared.pool.identity() != identity {
            self.shared.pool.set_identity(identity);
            self.server.set_identity(identity);
        }
        tracing::info!(%server, %cluster, master = self.leader, "registered");
        self.registered = true;
        self.begin_report(0);
        Ok(())
    }

    fn report_period(&self) -> Duration {
        self.shared.limits.scrub_period.min(REPORT_PERIOD_MAX)
    }

    fn begin_report(&mut self, term: u64) {
        self.reported = seam::now();
        self.reports += 1;
        let number = self.reports;
        self.report = Some(Report { number, term, disk: 0, after: None, first: true });
    }

    /// Whether the leader heard it.
    async fn heartbeat(&mut self) -> bool {
        let mut bad: Vec<ReplicaId> = Vec::new();
        for writer in &self.shared.writers {
            let mut found = writer.store().take_bad();
            let room = BAD_MAX.saturating_sub(bad.len()).min(found.len());
            writer.store().restore_bad(found.split_off(room));
            bad.extend(found);
        }
        // M32: the rot that was found is told to nobody.
        if bug!(M32) {
            bad.clear();
        }
        let known = self.shared.known();
        let request = pb::HeartbeatRequest {
            server: known.server.map_or(0, |server| server.0),
            incarnation: self.shared.incarnation.0,
            disks: self.shared.disks(),
            pending_writes: self.shared.pending(),
            bad: bad.iter().map(|id| id.to_pb()).collect(),
        };
        let reply = self.ask::<calls::Heartbeat>(&request, self.heartbeat_deadline()).await;
        match &reply {
            Some(reply) if reply.errno == 0 => {
                self.shared.terms.obey(Term(reply.term));
                // It asks until it has heard a whole one; the one under way goes on, if it is for this leader.
                let under_way = self.report.as_ref().is_some_and(|r| r.term == reply.term);
                if reply.send_report && !under_way {
                    mark!("chunkserver: leader wants a full report");
                    self.begin_report(reply.term);
                }
                return true;
            }
            Some(reply) => {
                tracing::info!("master asks to register again: {}", Errno::new(reply.errno));
                mark!("chunkserver: registers again");
                self.registered = false;
            }
            None => {}
        }
        self.restore(&bad);
        false
    }

    fn restore(&self, bad: &[ReplicaId]) {
        for writer in &self.shared.writers {
            let store = writer.store();
            store.restore_bad(bad.iter().copied().filter(|id| store.status(*id).is_some()));
        }
    }

    /// Sends pages of the report that is under way until it is done or the next heartbeat is due.
    async fn send_report(&mut self, due: Mono) {
        while let Some(report) = self.report.take() {
            let mut page = self.page(&report);
            let answer = self.ask::<calls::Report>(&page.request, self.deadline()).await;
            let Some(reply) = answer else {
                // The same page again; another leader asks for a report of its own.
                self.report = Some(report);
                return;
            };
            if reply.errno != 0 {
                return;
            }
            if !page.request.last {
                page.rest.first = false;
                self.report = Some(page.rest);
            }
            if seam::now() >= due {
                return;
            }
        }
    }

    fn page(&self, report: &Report) -> Page {
        let most = self.shared.limits.report_page;
        let (mut disk, mut after) = (report.disk, report.after);
        let mut replicas = Vec::new();
        while let Some(writer) = self.shared.writers.get(disk) {
            let room = most - replicas.len();
            if room == 0 {
                break;
            }
            let listed = writer.store().list(after, room);
            match listed.last() {
                Some(last) if listed.len() == room => after = Some(last.id),
                _ => (disk, after) = (disk + 1, None),
            }
            replicas.extend(listed.into_iter().map(handler::state));
        }
        if bug!(M32) {
            replicas.iter_mut().for_each(|state| state.corrupt = false);
        }
        let request = pb::ReportRequest {
            server: self.shared.known().server.map_or(0, |server| server.0),
            incarnation: self.shared.incarnation.0,
            report: report.number,
            replicas,
            last: disk >= self.shared.writers.len(),
            first: report.first,
        };
        let Report { number, term, first, .. } = *report;
        Page { request, rest: Report { number, term, disk, after, first } }
    }
}

struct Page {
    request: pb::ReportRequest,
    rest: Report,
}
