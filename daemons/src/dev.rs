//! `mooseng dev`: a whole cluster and a mount in one process, for trying and developing.
//!
//! Every node has a thread and a runtime of its own, and talks to the others by TCP on loopback, exactly as
//! separate daemons do. Data and ports are kept, so that the next start continues.

use crate::cli::connect::{Client, Masters};
use crate::fail::Fail;
use crate::nodes::{self, MasterPlan, RunningMaster};
use crate::signals::Stop;
use crate::{config, files, logging};
use clap::Args;
use mooseng::chunkserver::{Chunkserver, ChunkserverConfig};
use mooseng::client::ClientConfig;
use mooseng::erasure::Layout;
use mooseng::ids::Uuid;
use mooseng::limits::Limits;
use mooseng::master::MasterConfig;
use mooseng::pb;
use mooseng::seam;
use mooseng_fuse::{MountConfig, Mounted};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What the data directory remembers about the cluster in it.
const FILE: &str = "dev.json";
/// How long the start may take, and how long open files may keep the end.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Where to mount; made if it is missing
    #[arg(long, value_name = "DIR")]
    mount: PathBuf,
    /// Where the data is kept [default: mooseng/dev in the user's local share directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Number of masters [default: 1]
    #[arg(long, value_name = "N")]
    masters: Option<u16>,
    /// Number of chunkservers [default: 3]
    #[arg(long, value_name = "N")]
    chunkservers: Option<u16>,
    /// Copies of every file [default: 2]
    #[arg(long, value_name = "N")]
    copies: Option<u16>,
    /// First of the ports on 127.0.0.1 that the nodes take [default: 9420]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Run this when everything is up, then stop and end as it did; signals to stop are passed on to it
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A cluster as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    cluster: String,
    masters: u16,
    chunkservers: u16,
    copies: u16,
    port: u16,
    /// All masters have been added to the group.
    ready: bool,
}

impl Plan {
    fn master(&self, index: u16) -> String {
        format!("127.0.0.1:{}", self.port + 2 * index)
    }

    fn chunkserver(&self, index: u16) -> String {
        format!("127.0.0.1:{}", self.port + 2 * self.masters + index)
    }

    fn addresses(&self) -> Vec<String> {
        (0..self.masters).map(|index| self.master(index)).collect()
    }
}

/// Runs until it is told to stop.
pub(crate) fn run(args: &DevArgs) -> Result<(), Fail> {
    logging::start(&config::Log { level: Some("warn".into()), ..config::Log::default() })?;
    files::raise_limit(0);
    std::fs::create_dir_all(&args.mount)
        .or_else(|e| if e.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
        .or_else(|e| if e.raw_os_error() == Some(107) { Ok(()) } else { Err(e) })
        .map_err(|e| Fail::new(format!("{}: {e}", args.mount.display())))?;
    let mount = mooseng_fuse::check_mount_point(&args.mount).map_err(Fail::new)?;
    let data = args.data.clone().map_or_else(default_data, Ok)?;
    let plan = load_or_make(args, &data)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|e| Fail::new(format!("runtime: {e}")))?;
    let outcome = runtime.block_on(serve(args, plan, &data, mount));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome? {
        // One that a signal ended is told of as a shell does.
        Some(status) if !status.success() => {
            std::process::exit(status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1))
        }
        _ => Ok(()),
    }
}

fn default_data() -> Result<PathBuf, Fail> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let share = given("XDG_DATA_HOME").or_else(|| Some(given("HOME")?.join(".local/share")));
    let share = share.ok_or_else(|| Fail::usage("where to keep the data? --data DIR"))?;
    Ok(share.join("mooseng/dev"))
}

fn load_or_make(args: &DevArgs, data: &Path) -> Result<Plan, Fail> {
    let file = data.join(FILE);
    let failed = |e: &dyn std::fmt::Display| Fail::new(format!("{}: {e}", file.display()));
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return make(args, data),
        Err(e) => return Err(failed(&e)),
    };
    let mut plan: Plan = serde_json::from_str(&text).map_err(|e| failed(&e))?;
    let kept = [
        ("--masters", args.masters, plan.masters),
        ("--copies", args.copies, plan.copies),
        ("--chunkservers", args.chunkservers, plan.chunkservers),
    ];
    for (flag, wanted, has) in kept {
        if wanted.is_some_and(|wanted| wanted != has) {
            let dir = data.display();
            let line = format!(
                "{dir} holds a cluster made with {flag} {has}: leave it out, or choose another --data"
            );
            return Err(Fail::usage(line));
        }
    }
    if let Some(port) = args.port.filter(|port| *port != plan.port) {
        if plan.masters > 1 {
            return Err(Fail::usage(format!(
                "several masters keep their ports: leave out --port {port}"
            )));
        }
        plan.port = port;
    }
    Ok(plan)
}

fn make(args: &DevArgs, data: &Path) -> Result<Plan, Fail> {
    let cluster = seam::rng::random_uuid();
    let plan = Plan {
        cluster: cluster.to_string(),
        masters: args.masters.unwrap_or(1),
        chunkservers: args.chunkservers.unwrap_or(3),
        copies: args.copies.unwrap_or(2),
        port: args.port.unwrap_or(9420),
        ready: false,
    };
    if plan.masters == 0 || plan.chunkservers == 0 || plan.copies == 0 {
        return Err(Fail::usage("at least one master, one chunkserver and one copy"));
    }
    if plan.copies > plan.chunkservers {
        let line =
            format!("{} copies need as many chunkservers, not {}", plan.copies, plan.chunkservers);
        return Err(Fail::usage(line));
    }
    if u32::from(plan.port) + 2 * u32::from(plan.masters) + u32::from(plan.chunkservers) > 65_535 {
        return Err(Fail::usage(format!("no room for the ports from {} on", plan.port)));
    }
    for index in 0..plan.chunkservers {
        let dir = chunkserver_dir(data, index);
        std::fs::create_dir_all(&dir).map_err(|e| Fail::new(format!("{}: {e}", dir.display())))?;
    }
    let layout = Layout::copies(u32::from(plan.copies)).map_err(Fail::usage)?;
    nodes::format_master(&master_dir(data, 0), cluster, layout, &Limits::production())?;
    save(&plan, data)?;
    Ok(plan)
}

fn save(plan: &Plan, data: &Path) -> Result<(), Fail> {
    let file = data.join(FILE);
    let text = serde_json::to_string_pretty(plan).unwrap_or_default();
    std::fs::write(&file, text).map_err(|e| Fail::new(format!("{}: {e}", file.display())))
}

fn master_dir(data: &Path, index: u16) -> PathBuf {
    data.join(format!("master-{}", index + 1))
}

fn chunkserver_dir(data: &Path, index: u16) -> PathBuf {
    data.join(format!("chunkserver-{}", index + 1))
}

async fn serve(
    args: &DevArgs,
    plan: Plan,
    data: &Path,
    mount: PathBuf,
) -> Result<Option<ExitStatus>, Fail> {
    let mut stop = Stop::catch()?;
    let (fatal, mut failed) = mpsc::channel(1);
    let mut nodes = Vec::new();
    let work = async {
        start_nodes(&plan, data, &fatal, &mut nodes).await?;
        settle(&plan, data).await?;
        let mut mounted = mount_it(&plan, mount).await?;
        say(&plan, data, mounted.0.dir());
        let outcome = use_it(args, &mut mounted, &mut stop, &mut failed).await;
        if let Err(error) = mounted.0.unmount(PATIENCE).await {
            tracing::warn!(%error, "leaving anyway");
        }
        if let Err(error) = mounted.1.shutdown().await {
            tracing::error!(%error, "not everything was written");
        }
        outcome
    };
    let outcome = work.await;
    // Chunkservers end first, so that they can still take their leave.
    while let Some(node) = nodes.pop() {
        node.stop().await;
    }
    outcome
}

/// Until a signal, the end of the command, an umount(8) or a master that gives up.
async fn use_it(
    args: &DevArgs,
    mounted: &mut (Mounted, Arc<mooseng::client::Client>),
    stop: &mut Stop,
    failed: &mut mpsc::Receiver<String>,
) -> Result<Option<ExitStatus>, Fail> {
    let dir = mounted.0.dir().to_owned();
    let told = async {
        if args.command.is_empty() {
            stop.wait().await;
            return Ok(None);
        }
        command(&args.command, &dir, stop).await.map(Some)
    };
    tokio::select! {
        biased;
        reason = failed.recv() => Err(Fail::new(reason.unwrap_or_default())),
        status = told => status,
        ended = mounted.0.ended() => ended.map(|()| None).map_err(|e| Fail::new(format!("the mount: {e}"))),
    }
}

/// Runs a command to its end. A signal to stop is passed on to it.
async fn command(words: &[String], mount: &Path, stop: &mut Stop) -> Result<ExitStatus, Fail> {
    let failed = |e: &dyn std::fmt::Display| Fail::new(format!("{}: {e}", words[0]));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("MOOSENG_MOUNT", mount);
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    let pid = Pid::from_child(&child);
    let mut run = tokio::task::spawn_blocking(move || child.wait());
    let ended = tokio::select! {
        ended = &mut run => ended,
        _ = stop.wait() => {
            let _ = kill_process(pid, Signal::TERM);
            let late = |_| Fail::new(format!("{} does not end when told to", words[0]));
            tokio::time::timeout(PATIENCE, run).await.map_err(late)?
        }
    };
    ended.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
}

async fn start_nodes(
    plan: &Plan,
    data: &Path,
    fatal: &mpsc::Sender<String>,
    nodes: &mut Vec<Node>,
) -> Result<(), Fail> {
    let limits = Arc::new(Limits::production());
    let cluster = Uuid::parse(&plan.cluster);
    for index in 0..plan.masters {
        let fatal = fatal.clone();
        let master = MasterPlan {
            dir: master_dir(data, index),
            grpc: config::grpc_of(&plan.master(index))?,
            config: MasterConfig {
                listen: plan.master(index),
                advertise: None,
                cluster,
                join: if index == 0 { Vec::new() } else { plan.addresses() },
                limits: limits.clone(),
                fatal: Arc::new(move |reason| {
                    let _ = fatal.try_send(reason.to_owned());
                }),
                observe: None,
            },
        };
        let start = || RunningMaster::start(master);
        nodes.push(Node::launch(format!("master-{}", index + 1), start).await?);
        if index > 0 && !plan.ready {
            add_master(plan, index).await?;
        }
    }
    for index in 0..plan.chunkservers {
        let server = ChunkserverConfig {
            listen: plan.chunkserver(index),
            masters: plan.addresses(),
            limits: limits.clone(),
            cluster,
            ..ChunkserverConfig::default()
        };
        let dirs = [chunkserver_dir(data, index)];
        let start = move || async move { nodes::start_chunkserver(server, &dirs).await };
        nodes.push(Node::launch(format!("chunkserver-{}", index + 1), start).await?);
    }
    Ok(())
}

async fn add_master(plan: &Plan, index: u16) -> Result<(), Fail> {
    let ask = |mut client: Client| {
        let request = pb::AddMasterRequest { address: plan.master(index) };
        async move { client.add_master(request).await }
    };
    Masters::new(&[], &plan.addresses())?.call(ask).await.map(drop)
}

/// Waits until all chunkservers are there.
async fn settle(plan: &Plan, data: &Path) -> Result<(), Fail> {
    let masters = Masters::new(&[], &plan.addresses())?;
    let deadline = seam::now() + PATIENCE;
    loop {
        let ask = |mut client: Client| async move { client.status(pb::StatusRequest {}).await };
        let status = masters.call(ask).await?;
        let alive = status.servers.iter().filter(|server| server.alive).count();
        if alive >= usize::from(plan.chunkservers) {
            break;
        }
        if seam::now() > deadline {
            return Err(Fail::new(format!(
                "only {alive} of {} chunkservers came up",
                plan.chunkservers
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    save(&Plan { ready: true, ..plan.clone() }, data)
}

async fn mount_it(
    plan: &Plan,
    dir: PathBuf,
) -> Result<(Mounted, Arc<mooseng::client::Client>), Fail> {
    let limits = Arc::new(Limits::production());
    let masters = plan.addresses();
    let client = mooseng::client::Client::connect(ClientConfig {
        masters: masters.clone(),
        cluster: Uuid::parse(&plan.cluster),
        host: "dev".into(),
        limits: limits.clone(),
    });
    let client = client.await.map_err(Fail::new)?;
    let mount = MountConfig {
        dir,
        masters,
        ttl: limits.attr_ttl,
        allow_other: None,
        options: Vec::new(),
        threads: 0,
    };
    let mounted = mooseng_fuse::mount(client.clone(), &mount, tokio::runtime::Handle::current());
    Ok((mounted.map_err(Fail::new)?, client))
}

fn say(plan: &Plan, data: &Path, mount: &Path) {
    let plural = |n: u16, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    println!(
        "MooseNG: {}, {}, {}",
        plural(plan.masters, "master", "masters"),
        plural(plan.chunkservers, "chunkserver", "chunkservers"),
        plural(plan.copies, "copy of everything", "copies of everything")
    );
    println!("  mounted on  {}", mount.display());
    println!("  data in     {} (kept)", data.display());
    println!("  masters     {} (gRPC one port further)", plan.addresses().join(" "));
    let servers = (0..plan.chunkservers).map(|index| plan.chunkserver(index));
    println!("  chunks      {}", servers.collect::<Vec<_>>().join(" "));
    println!("  look at it  mooseng --masters {} status", plan.master(0));
    println!("  stop it     Ctrl-C, or kill {}", std::process::id());
    println!("  beware      no authentication yet: it listens on 127.0.0.1 only");
}

/// What can be ended.
trait Ends {
    async fn end(self);
}

impl Ends for RunningMaster {
    async fn end(self) {
        self.stop().await;
    }
}

impl Ends for Chunkserver {
    async fn end(self) {
        self.stop().await;
    }
}

/// A node on a thread of its own.
struct Node {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Node {
    /// Starts the thread and waits until the node is up.
    async fn launch<N, F, S>(name: String, start: S) -> Result<Node, Fail>
    where
        N: Ends,
        F: Future<Output = Result<N, Fail>>,
        S: FnOnce() -> F + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (up, is_up) = oneshot::channel();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(e) => return drop(up.send(Err(Fail::new(format!("runtime: {e}"))))),
            };
            runtime.block_on(async move {
                match start().await {
                    Ok(node) => {
                        let _ = up.send(Ok(()));
                        let _ = stopped.await;
                        node.end().await;
                    }
                    Err(fail) => drop(up.send(Err(fail))),
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
            let _ = end.send(());
        };
        let gone = |name: &str| Fail::new(format!("{name} ended while starting"));
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(body)
            .map_err(|e| Fail::new(format!("{name}: {e}")))?;
        is_up.await.map_err(|_| gone(&name))??;
        Ok(Node { stop, ended })
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(PATIENCE, self.ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_each_other() {
        let plan = Plan {
            cluster: String::new(),
            masters: 3,
            chunkservers: 2,
            copies: 2,
            port: 100,
            ready: false,
        };
        assert_eq!(plan.addresses(), ["127.0.0.1:100", "127.0.0.1:102", "127.0.0.1:104"]);
        assert_eq!(plan.chunkserver(1), "127.0.0.1:107");
    }
}
