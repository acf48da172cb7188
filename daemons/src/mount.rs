//! `mooseng-mount`: a cluster as a directory.

use crate::config::Config;
use crate::fail::{self, Fail};
use crate::signals::Stop;
use crate::{files, logging};
use clap::Parser;
use mooseng::client::{Client, ClientConfig};
use mooseng_fuse::{MountConfig, Mounted};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What the background process says when the mount is up.
const READY: &str = "mounted";
/// How long open files may keep an unmounting process.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(name = "mooseng-mount", version, about = "Mounts a MooseNG cluster")]
struct Cli {
    /// Masters, host:port, separated by commas; those of the configuration if only DIR is given
    #[arg(value_name = "[MASTERS] DIR", num_args = 1..=2, required = true)]
    places: Vec<String>,
    /// Mount options, separated by commas: ro, allow_other, noallow_other, noexec, suid, dev, noatime, ...
    #[arg(short = 'o', value_delimiter = ',', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground
    #[arg(long, short)]
    foreground: bool,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kernel threads; one per processor by default
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// This is the process in the background: say on standard output when the mount is up
    #[arg(long, hide = true)]
    background_child: bool,
}

/// The program `mooseng-mount`.
pub fn main() -> ExitCode {
    fail::exit("mooseng-mount", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<(), Fail> {
    let config = Config::load(cli.config.as_deref())?;
    let (masters, dir) = match cli.places.as_slice() {
        [dir] => (config.masters(&[]), dir),
        [masters, dir, ..] => (config.masters(std::slice::from_ref(masters)), dir),
        [] => return Err(Fail::usage("which directory?")),
    };
    if masters.is_empty() {
        return Err(Fail::usage(
            "which masters? mooseng-mount MASTERS DIR, or masters in [cluster]",
        ));
    }
    mooseng_fuse::check_options(&cli.options).map_err(Fail::usage)?;
    let dir = mooseng_fuse::check_mount_point(dir.as_ref()).map_err(Fail::new)?;
    if !cli.foreground && !cli.background_child {
        return start_in_background();
    }
    logging::start(&config.log)?;
    files::raise_limit(0);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Fail::new(format!("runtime: {e}")))?;
    let plan = Plan {
        masters,
        mount: dir,
        options: cli.options.clone(),
        threads: cli.threads,
        background: cli.background_child,
    };
    let outcome = runtime.block_on(serve(&config, plan));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

struct Plan {
    masters: Vec<String>,
    mount: PathBuf,
    options: Vec<String>,
    threads: usize,
    background: bool,
}

async fn serve(config: &Config, plan: Plan) -> Result<(), Fail> {
    let mut stop = Stop::catch()?;
    let limits = Arc::new(config.limits.limits()?);
    let client = Client::connect(ClientConfig {
        masters: plan.masters.clone(),
        cluster: config.cluster_id()?,
        host: host_name(),
        limits: limits.clone(),
    });
    let client = tokio::select! {
        biased;
        signal = stop.wait() => return Err(Fail::new(format!("{signal} before the mount was up"))),
        client = client => client.map_err(Fail::new)?,
    };
    let mount = MountConfig {
        dir: plan.mount,
        masters: plan.masters,
        ttl: limits.attr_ttl,
        allow_other: None,
        options: plan.options,
        threads: plan.threads,
    };
    let mut mounted =
        mooseng_fuse::mount(client.clone(), &mount, tokio::runtime::Handle::current())
            .map_err(Fail::new)?;
    tracing::warn!(
        "no authentication yet: whoever reaches the masters can read and change everything"
    );
    tracing::info!(dir = %mounted.dir().display(), cluster = %client.cluster(), "mounted");
    if plan.background {
        detach_from_terminal()?;
    }
    end(&mut mounted, &mut stop).await;
    client.shutdown().await.map_err(|e| Fail::new(format!("what was not yet written: {e}")))
}

/// Waits for a signal or for umount(8).
async fn end(mounted: &mut Mounted, stop: &mut Stop) {
    let signal = tokio::select! {
        biased;
        signal = stop.wait() => signal,
        outcome = mounted.ended() => {
            match outcome {
                Ok(()) => tracing::info!("unmounted"),
                Err(error) => tracing::error!(%error, "the kernel's connection failed"),
            }
            return;
        }
    };
    tracing::info!(signal, "unmounting");
    if let Err(error) = mounted.unmount(PATIENCE).await {
        tracing::warn!(%error, "leaving anyway");
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{name}:{}", std::process::id())
}

/// Starts this program again in the background and waits until its mount is up or it gave up.
fn start_in_background() -> Result<(), Fail> {
    let failed = |e: std::io::Error| Fail::new(format!("cannot start in the background: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--background-child")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).map_err(failed)?;
    }
    if line.trim() == READY {
        return Ok(());
    }
    // It has said why on the standard error that it shares with us.
    let status = child.wait().map_err(failed)?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Tells the waiting parent, and lets go of everything that it or the terminal holds.
fn detach_from_terminal() -> Result<(), Fail> {
    let failed = |e: std::io::Error| Fail::new(format!("background: {e}"));
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).map_err(failed)?;
    let null =
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
    let _ = rustix::process::setsid();
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed(e.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|e| failed(e.into()))?;
    std::env::set_current_dir("/").map_err(failed)
}
