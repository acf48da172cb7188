//! Paths on mounts, and `mooseng file`.
//!
//! A mount tells its masters by an extended attribute of its root, so commands on paths need no flags.

use super::connect::{Client, Masters};
use super::{Common, out};
use crate::cli::out::say;
use crate::fail::Fail;
use bytes::Bytes;
use mooseng::pb;
use mooseng_fuse::mountinfo;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path of a cluster.
pub(super) struct Target {
    pub(super) masters: Masters,
    /// From the filesystem's root, without a leading slash.
    pub(super) path: Bytes,
}

/// Finds cluster and path behind `path`, which is on a mount or, with --masters or --grpc, in that cluster.
pub(super) fn resolve(common: &Common, path: &Path) -> Result<Target, Fail> {
    if !common.masters.is_empty() || !common.grpc.is_empty() {
        let rest = path.strip_prefix("/").unwrap_or(path);
        return Ok(Target { masters: common.connect()?, path: raw(rest) });
    }
    let failed = |e: std::io::Error| Fail::new(format!("{}: {e}", path.display()));
    let real = std::fs::canonicalize(path).map_err(failed)?;
    let mount = mountinfo::containing(&real).map_err(failed)?;
    let Some(mount) = mount.filter(|mount| mount.kind == "fuse.mooseng") else {
        return Err(Fail::new(format!("{}: not on a MooseNG mount", path.display())));
    };
    let masters = masters_of(&mount.point)?;
    let rest = real.strip_prefix(&mount.point).unwrap_or(&real);
    Ok(Target { masters: Masters::new(&[], &masters)?, path: raw(rest) })
}

fn raw(path: &Path) -> Bytes {
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

/// What the mount at `point` says its masters are.
fn masters_of(point: &Path) -> Result<Vec<String>, Fail> {
    let about = read_xattr(point, mooseng_fuse::MOUNT)?;
    let about: Value = serde_json::from_slice(&about)
        .map_err(|e| Fail::new(format!("{}: {}: {e}", point.display(), mooseng_fuse::MOUNT)))?;
    let list = about["masters"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
}

fn read_xattr(path: &Path, name: &str) -> Result<Vec<u8>, Fail> {
    let mut value = Vec::with_capacity(64 << 10);
    rustix::fs::getxattr(path, name, rustix::buffer::spare_capacity(&mut value))
        .map_err(|e| Fail::new(format!("{}: {name}: {e}", path.display())))?;
    Ok(value)
}

pub(super) async fn fetch(target: &Target) -> Result<pb::FileInfoReply, Fail> {
    let ask = |mut client: Client| {
        let request = pb::FileInfoRequest { path: target.path.clone() };
        async move { client.file_info(request).await }
    };
    target.masters.call(ask).await
}

pub(super) async fn file_info(common: &Common, path: &Path) -> Result<(), Fail> {
    let info = fetch(&resolve(common, path)?).await?;
    if common.json {
        out::json(&as_json(&info));
        return Ok(());
    }
    let attr = info.attr.unwrap_or_default();
    say!(
        "{}: inode {}  {}  mode {:o}  links {}  class {}",
        path.display(),
        attr.inode,
        out::size(attr.size),
        attr.mode,
        attr.nlink,
        attr.class
    );
    if !info.extents.is_empty() {
        say!("");
        let header = ["OFFSET", "LENGTH", "CHUNK", "AT", "LAYOUT", "STATE", "SERVERS"];
        out::table(&header, info.extents.iter().map(|extent| extent_row(&info, extent)));
    }
    Ok(())
}

fn extent_row(info: &pb::FileInfoReply, extent: &pb::Extent) -> Vec<String> {
    let mut row = vec![extent.file_off.to_string(), extent.len.to_string()];
    let Some(pb::extent::Source::Chunk(range)) = &extent.source else {
        row.push("inline".to_owned());
        return row;
    };
    row.push(format!("c{}", range.chunk));
    row.push(range.off.to_string());
    let found = info.chunks.iter().find(|c| c.chunk.as_ref().is_some_and(|c| c.id == range.chunk));
    if let Some(pb::ChunkInfo { chunk: Some(chunk), servers }) = found {
        let layout = chunk.layout.unwrap_or_default();
        row.push(format!("{}+{}", layout.data, layout.parity));
        row.push(chunk_state(chunk).to_owned());
        let homes = chunk.replicas.iter().map(|replica| {
            let alive = servers.iter().any(|s| s.server == replica.server && s.alive);
            format!("s{}{}", replica.server, if alive { "" } else { "?" })
        });
        row.push(homes.collect::<Vec<_>>().join(" "));
    }
    row
}

fn chunk_state(chunk: &pb::Chunk) -> &'static str {
    match chunk.state() {
        pb::ChunkState::Open => "open",
        pb::ChunkState::Sealed => "sealed",
        pb::ChunkState::Deleting => "deleting",
        pb::ChunkState::Unspecified => "unknown",
    }
}

fn as_json(info: &pb::FileInfoReply) -> Value {
    let attr = info.attr.unwrap_or_default();
    let extent = |extent: &pb::Extent| {
        let mut value = json!({ "file_off": extent.file_off, "len": extent.len });
        match &extent.source {
            Some(pb::extent::Source::Chunk(range)) => {
                value["chunk"] = range.chunk.into();
                value["chunk_off"] = range.off.into();
                value["commit_index"] = range.commit_index.into();
            }
            Some(pb::extent::Source::Inline(_)) | None => value["inline"] = true.into(),
        }
        value
    };
    json!({
        "inode": attr.inode,
        "kind": attr.kind().as_str_name(),
        "mode": attr.mode,
        "nlink": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "size": attr.size,
        "allocated": attr.allocated,
        "class": attr.class,
        "change": attr.change,
        "extents": info.extents.iter().map(extent).collect::<Value>(),
        "chunks": info.chunks.iter().map(chunk_json).collect::<Value>(),
    })
}

fn chunk_json(info: &pb::ChunkInfo) -> Value {
    let chunk = info.chunk.clone().unwrap_or_default();
    let layout = chunk.layout.unwrap_or_default();
    let replica = |replica: &pb::Replica| {
        let server = info.servers.iter().find(|server| server.server == replica.server);
        json!({
            "server": replica.server,
            "address": server.map(|server| server.address.clone()),
            "alive": server.is_some_and(|server| server.alive),
            "shard": replica.shard,
            "gen": replica.r#gen,
        })
    };
    json!({
        "id": chunk.id,
        "data": layout.data,
        "parity": layout.parity,
        "state": chunk_state(&chunk),
        "committed_len": chunk.committed_len,
        "epoch": chunk.epoch,
        "replicas": chunk.replicas.iter().map(replica).collect::<Value>(),
    })
}
