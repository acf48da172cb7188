//! `mooseng-master`.

use crate::config::{self, Config};
use crate::fail::{self, Fail};
use crate::nodes::{self, MasterPlan, RunningMaster};
use crate::signals::Stop;
use crate::{files, logging, metrics};
use clap::Parser;
use mooseng::master::{Master, MasterConfig};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::mpsc;

#[derive(Parser)]
#[command(name = "mooseng-master", version, about = "Keeps the namespace of a MooseNG cluster")]
struct Cli {
    /// Data directory: made by `mooseng init`, or empty with --join
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address for clients, chunkservers and other masters [default: 127.0.0.1:9420]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address that others reach this master at; the listen address by default
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
    /// Address of the gRPC service; the port after --listen by default
    #[arg(long, value_name = "ADDR")]
    grpc_listen: Option<String>,
    /// Masters to join, for a new one with an empty data directory
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    join: Vec<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The program `mooseng-master`.
pub fn main() -> ExitCode {
    fail::exit("mooseng-master", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<(), Fail> {
    let config = Config::load(cli.config.as_deref())?;
    let limits = nodes::limits(&config)?;
    logging::start(&config.log)?;
    files::raise_limit(limits.connections_max);
    let listen = cli.listen.or(config.node.listen.clone());
    let listen = listen.unwrap_or_else(|| config::MASTER_LISTEN.to_owned());
    let grpc = match cli.grpc_listen.or(config.node.grpc.clone()) {
        Some(address) => address,
        None => config::grpc_of(&listen)?,
    };
    let Some(dir) = cli.data.or(config.node.data_dir.clone()) else {
        return Err(Fail::usage("which directory? --data DIR, or data_dir in [node]"));
    };
    let (fatal, failed) = mpsc::channel(1);
    let plan = MasterPlan {
        dir,
        grpc,
        config: MasterConfig {
            listen,
            advertise: cli.advertise.or(config.node.advertise.clone()),
            cluster: config.cluster_id()?,
            join: cli.join,
            limits,
            fatal: Arc::new(move |reason| {
                let _ = fatal.try_send(reason.to_owned());
            }),
            observe: None,
        },
    };
    // Raft, log and apply share one thread: hand-offs between threads cost more than the work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Fail::new(format!("runtime: {e}")))?;
    runtime.block_on(serve(plan, config.node.metrics.as_deref(), failed))
}

async fn serve(
    plan: MasterPlan,
    metrics: Option<&str>,
    mut failed: mpsc::Receiver<String>,
) -> Result<(), Fail> {
    let mut stop = Stop::catch()?;
    let dir = plan.dir.clone();
    let running = tokio::select! {
        biased;
        signal = stop.wait() => return Err(Fail::new(format!("{signal} before the start was over"))),
        running = RunningMaster::start(plan) => running?,
    };
    nodes::say_no_authentication();
    let master = running.master();
    tracing::info!(node = %master.node(), cluster = %master.cluster(), address = master.address(), dir = %dir.display(), "master");
    tokio::select! {
        biased;
        signal = stop.wait() => tracing::info!(signal, "stopping"),
        // What the log or the tables refused must not be followed by anything else.
        failed = metrics::serve(metrics, || counters(master)) => return failed,
        reason = failed.recv() => return Err(Fail::new(reason.unwrap_or_default())),
    }
    running.stop().await;
    Ok(())
}

fn counters(master: &Master) -> Vec<(&'static str, u64)> {
    let now = master.raft().metrics();
    vec![
        ("master_log_fsyncs", now.fsyncs),
        ("master_log_entries", now.entries),
        ("master_log_bytes", now.log_bytes),
        ("master_operations", now.operations),
        ("master_applied_index", master.raft().applied().get()),
        ("master_leads", u64::from(master.raft().is_leader_ready())),
    ]
}
