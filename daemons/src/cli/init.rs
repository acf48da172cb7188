//! `mooseng init`.

use super::{Common, out};
use crate::cli::out::say;
use crate::fail::Fail;
use clap::Args;
use mooseng::erasure::Layout;
use mooseng::ids::Uuid;
use mooseng::seam;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct InitArgs {
    /// The directory, empty or not there yet
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Id of the new cluster, 32 hexadecimal digits; random by default
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// How files are stored unless a class says otherwise: k+m, 1+1 is two copies
    #[arg(long, value_name = "K+M", default_value = "1+1")]
    layout: String,
}

pub(super) fn run(common: &Common, args: &InitArgs) -> Result<(), Fail> {
    let config = common.load()?;
    let Some(dir) = args.data.clone().or(config.node.data_dir.clone()) else {
        return Err(Fail::usage("which directory? --data DIR, or data_dir in [node]"));
    };
    let wanted = match &args.cluster {
        Some(text) => Some(Uuid::parse(text).ok_or_else(|| {
            Fail::usage(format!("--cluster `{text}` is not 32 hexadecimal digits"))
        })?),
        None => config.cluster_id()?,
    };
    let cluster = wanted.unwrap_or_else(seam::rng::random_uuid);
    let layout = super::class::parse(&args.layout)?;
    let layout = Layout::new(layout.data, layout.parity).map_err(Fail::usage)?;
    crate::nodes::format_master(&dir, cluster, layout, &config.limits.limits()?)?;
    if common.json {
        out::json(&serde_json::json!({ "cluster": cluster.to_string(), "data": dir }));
    } else {
        say!("cluster {cluster}");
        say!("start its first master: mooseng-master --data {}", dir.display());
    }
    Ok(())
}
