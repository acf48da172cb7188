//! `mooseng status`.

use super::{Common, out};
use crate::cli::out::say;
use crate::fail::Fail;
use mooseng::pb;
use serde_json::{Value, json};

pub(super) async fn run(common: &Common) -> Result<(), Fail> {
    let status = fetch(common).await?;
    if common.json {
        out::json(&as_json(&status));
        return Ok(());
    }
    say!(
        "cluster {}  leader m{}  term {}  applied #{}",
        status.cluster,
        status.leader,
        status.term,
        status.applied_index
    );
    say!(
        "{} inodes  {}  {} chunks  {} under-replicated  {} unreadable  {} being deleted  {} sessions",
        status.inodes,
        out::size(status.bytes),
        status.chunks,
        status.under_replicated,
        status.unreadable,
        status.deleting,
        status.sessions
    );
    say!("");
    masters_table(&status);
    say!("");
    servers_table(&status);
    Ok(())
}

/// Asks any master.
pub(super) async fn fetch(common: &Common) -> Result<pb::StatusReply, Fail> {
    let ask = |mut client: super::connect::Client| async move {
        client.status(pb::StatusRequest {}).await
    };
    common.connect()?.call(ask).await
}

pub(super) fn masters_table(status: &pb::StatusReply) {
    let rows = status.masters.iter().map(|master| {
        let role = match (master.leader, master.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        vec![format!("m{}", master.node), master.address.clone(), role.to_owned()]
    });
    out::table(&["MASTER", "ADDRESS", "ROLE"], rows);
}

pub(super) fn servers_table(status: &pb::StatusReply) {
    let rows = status.servers.iter().map(|server| {
        let free = server.disks.iter().map(|disk| disk.free_bytes).sum();
        let total = server.disks.iter().map(|disk| disk.total_bytes).sum();
        let failed = server.disks.iter().filter(|disk| disk.failed).count();
        let disks = match failed {
            0 => server.disks.len().to_string(),
            n => format!("{} ({n} failed)", server.disks.len()),
        };
        vec![
            format!("s{}", server.server),
            server.address.clone(),
            state(server).to_owned(),
            if server.alive { "yes" } else { "no" }.to_owned(),
            disks,
            format!("{} of {}", out::size(free), out::size(total)),
            server.replicas.to_string(),
            server.labels.join(","),
        ]
    });
    let header = ["SERVER", "ADDRESS", "STATE", "ALIVE", "DISKS", "FREE", "REPLICAS", "LABELS"];
    out::table(&header, rows);
}

fn state(server: &pb::ServerStatus) -> &'static str {
    match server.state() {
        pb::ServerState::Active => "active",
        pb::ServerState::Draining => "draining",
        pb::ServerState::Dead => "dead",
        pb::ServerState::Removed => "removed",
        pb::ServerState::Unspecified => "unknown",
    }
}

pub(super) fn masters_json(status: &pb::StatusReply) -> Value {
    let master = |m: &pb::MasterStatus| json!({ "node": m.node, "address": m.address, "voter": m.voter, "leader": m.leader });
    status.masters.iter().map(master).collect()
}

pub(super) fn servers_json(status: &pb::StatusReply) -> Value {
    let disk = |d: &pb::DiskStatus| {
        json!({
            "disk": out::hex(&d.disk),
            "total_bytes": d.total_bytes,
            "free_bytes": d.free_bytes,
            "failed": d.failed,
            "replicas": d.replicas,
        })
    };
    let server = |s: &pb::ServerStatus| {
        json!({
            "server": s.server,
            "address": s.address,
            "state": state(s),
            "alive": s.alive,
            "disks": s.disks.iter().map(disk).collect::<Value>(),
            "replicas": s.replicas,
            "labels": s.labels,
        })
    };
    status.servers.iter().map(server).collect()
}

fn as_json(status: &pb::StatusReply) -> Value {
    json!({
        "cluster": status.cluster,
        "leader": status.leader,
        "term": status.term,
        "applied_index": status.applied_index,
        "masters": masters_json(status),
        "servers": servers_json(status),
        "chunks": status.chunks,
        "under_replicated": status.under_replicated,
        "unreadable": status.unreadable,
        "deleting": status.deleting,
        "inodes": status.inodes,
        "bytes": status.bytes,
        "sessions": status.sessions,
        "log_fsyncs": status.log_fsyncs,
        "log_operations": status.log_operations,
    })
}
