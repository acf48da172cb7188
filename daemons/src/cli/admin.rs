//! `mooseng master` and `mooseng chunkserver`.

use super::connect::Client;
use super::{Common, out, status};
use crate::cli::out::say;
use crate::fail::Fail;
use clap::Subcommand;
use mooseng::pb;
use serde_json::json;

#[derive(Subcommand)]
pub(super) enum MasterCommand {
    /// Make a running master (started with --join) a voting member
    Add {
        /// Its address, host:port
        address: String,
    },
    /// Take a master out of the group
    Remove {
        /// Its number, as `master list` shows it
        node: String,
    },
    /// The members of the group
    List,
}

#[derive(Subcommand)]
pub(super) enum ChunkserverCommand {
    /// The servers, their disks and what they hold
    List,
    /// Move everything off a server
    Drain {
        /// Its number, as `chunkserver list` shows it
        server: String,
    },
}

pub(super) async fn master(common: &Common, command: MasterCommand) -> Result<(), Fail> {
    match command {
        MasterCommand::Add { address } => {
            let request = pb::AddMasterRequest { address: address.clone() };
            let ask = |mut client: Client| {
                let request = request.clone();
                async move { client.add_master(request).await }
            };
            let node = common.connect()?.call(ask).await?.id;
            done(common, "node", node, format!("m{node} at {address} is a voter"));
        }
        MasterCommand::Remove { node } => {
            let node = number(&node, 'm')?;
            let ask = |mut client: Client| async move {
                client.remove_master(pb::RemoveMasterRequest { node }).await
            };
            common.connect()?.call(ask).await?;
            done(common, "node", node, format!("m{node} is out of the group: stop it"));
        }
        MasterCommand::List => {
            let status = status::fetch(common).await?;
            match common.json {
                true => out::json(&status::masters_json(&status)),
                false => status::masters_table(&status),
            }
        }
    }
    Ok(())
}

pub(super) async fn chunkserver(common: &Common, command: ChunkserverCommand) -> Result<(), Fail> {
    match command {
        ChunkserverCommand::List => {
            let status = status::fetch(common).await?;
            match common.json {
                true => out::json(&status::servers_json(&status)),
                false => status::servers_table(&status),
            }
        }
        ChunkserverCommand::Drain { server } => {
            let server = number(&server, 's')?;
            let ask = |mut client: Client| async move {
                client.drain_server(pb::DrainServerRequest { server }).await
            };
            common.connect()?.call(ask).await?;
            let text = format!("s{server} is draining: stop it when it holds no replicas");
            done(common, "server", server, text);
        }
    }
    Ok(())
}

fn done(common: &Common, key: &str, id: u64, text: String) {
    match common.json {
        true => out::json(&json!({ key: id })),
        false => say!("{text}"),
    }
}

/// `m3` and `3` are the same master.
fn number(text: &str, prefix: char) -> Result<u64, Fail> {
    let digits = text.strip_prefix(prefix).unwrap_or(text);
    digits.parse().map_err(|_| Fail::usage(format!("`{text}` is not a number like {prefix}1")))
}
