//! `mooseng-chunkserver`.

use crate::config::{self, Config};
use crate::fail::{self, Fail};
use crate::signals::Stop;
use crate::{files, logging, metrics, nodes};
use clap::Parser;
use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::ids::Uuid;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "mooseng-chunkserver", version, about = "Keeps the bytes of a MooseNG cluster")]
struct Cli {
    /// Data directories, one per disk; each exists and is empty or this server's own
    #[arg(long, value_delimiter = ',', value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Address for clients, masters and other chunkservers [default: 127.0.0.1:9422]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address that others reach it at; the listen address by default
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
    /// Masters, host:port
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    masters: Vec<String>,
    /// Where it stands, e.g. rack=r1; copies are kept apart by labels
    #[arg(long, value_delimiter = ',', value_name = "LABEL")]
    labels: Vec<String>,
    /// A registered disk that is lost for good (its id, as the refusal to start names it)
    #[arg(long, value_name = "DISK")]
    forget_disk: Vec<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The program `mooseng-chunkserver`.
pub fn main() -> ExitCode {
    fail::exit("mooseng-chunkserver", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<(), Fail> {
    let config = Config::load(cli.config.as_deref())?;
    let limits = nodes::limits(&config)?;
    logging::start(&config.log)?;
    let masters = config.masters(&cli.masters);
    if masters.is_empty() {
        return Err(Fail::usage("which masters? --masters ADDR,..., or masters in [cluster]"));
    }
    let dirs = if cli.data.is_empty() { config.node.data_dirs.clone() } else { cli.data };
    if dirs.is_empty() {
        return Err(Fail::usage("which directories? --data DIR,..., or data_dirs in [node]"));
    }
    files::raise_limit(files::of_chunkserver(&limits, dirs.len()));
    let listen = cli.listen.or(config.node.listen.clone());
    let plan = ChunkserverConfig {
        listen: listen.unwrap_or_else(|| config::CHUNKSERVER_LISTEN.to_owned()),
        advertise: cli.advertise.or(config.node.advertise.clone()).unwrap_or_default(),
        masters,
        labels: if cli.labels.is_empty() { config.node.labels.clone() } else { cli.labels },
        limits,
        cluster: config.cluster_id()?,
        forget_disks: cli.forget_disk.iter().map(|id| disk_id(id)).collect::<Result<_, _>>()?,
    };
    // Half of the cores: the disks' threads need some too, and what one worker passes to another costs more
    // than it saves.
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Fail::new(format!("runtime: {e}")))?;
    let outcome = runtime.block_on(serve(plan, &dirs, &config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    outcome
}

fn disk_id(text: &str) -> Result<Uuid, Fail> {
    let bad = || Fail::usage(format!("--forget-disk `{text}` is not 32 hexadecimal digits"));
    Uuid::parse(text).ok_or_else(bad)
}

async fn serve(plan: ChunkserverConfig, dirs: &[PathBuf], config: &Config) -> Result<(), Fail> {
    let mut stop = Stop::catch()?;
    let server = tokio::select! {
        biased;
        signal = stop.wait() => return Err(Fail::new(format!("{signal} before the start was over"))),
        server = nodes::start_chunkserver(plan, dirs) => server?,
    };
    nodes::say_no_authentication();
    tracing::info!(address = %server.local_addr(), disks = dirs.len(), "chunkserver");
    let signal = tokio::select! {
        biased;
        signal = stop.wait() => signal,
        failed = metrics::serve(config.node.metrics.as_deref(), || counters(&server)) => return failed,
        why = server.refused() => {
            server.stop().await;
            return Err(Fail::new(why));
        }
    };
    tracing::info!(signal, "stopping");
    server.stop().await;
    Ok(())
}

fn counters(server: &Chunkserver) -> Vec<(&'static str, u64)> {
    let now = server.metrics();
    vec![
        ("chunkserver_appends", now.appends),
        ("chunkserver_appended_bytes", now.appended_bytes),
        ("chunkserver_reads", now.reads),
        ("chunkserver_read_bytes", now.read_bytes),
        ("chunkserver_resident_reads", now.resident_reads),
        ("chunkserver_rebuilds", now.rebuilds),
        ("chunkserver_syncs", now.syncs),
        ("chunkserver_pending", now.pending),
    ]
}
