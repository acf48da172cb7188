//! `mooseng`: making, looking at and changing a cluster.

mod admin;
mod class;
pub(crate) mod connect;
mod init;
pub(crate) mod out;
mod place;
mod status;
mod umount;

use crate::config::Config;
use crate::fail::{self, Fail};
use crate::{bench, dev};
use clap::{Args, Parser, Subcommand};
use connect::Masters;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "mooseng", version, about = "A POSIX filesystem over many machines")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Args, Clone)]
pub(crate) struct Common {
    /// Masters, host:port; their gRPC service is at the next port
    #[arg(long, global = true, value_delimiter = ',', value_name = "ADDR")]
    masters: Vec<String>,
    /// gRPC services to ask, instead of those of --masters
    #[arg(long, global = true, value_delimiter = ',', value_name = "ADDR")]
    grpc: Vec<String>,
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Common {
    fn load(&self) -> Result<Config, Fail> {
        Config::load(self.config.as_deref())
    }

    /// The masters to ask when the command names no path on a mount.
    fn connect(&self) -> Result<Masters, Fail> {
        Masters::new(&self.grpc, &self.load()?.masters(&self.masters))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Make the data directory of the first master of a new cluster
    Init(init::InitArgs),
    /// A whole cluster and a mount in one process, to try and develop with
    Dev(dev::DevArgs),
    /// What the cluster is made of and how it is
    Status,
    /// The masters
    #[command(subcommand)]
    Master(admin::MasterCommand),
    /// The chunkservers
    #[command(subcommand)]
    Chunkserver(admin::ChunkserverCommand),
    /// Storage classes: how many copies or which erasure code
    #[command(subcommand)]
    Class(class::ClassCommand),
    /// Files
    #[command(subcommand)]
    File(FileCommand),
    /// Measure a directory, on a mount or anywhere else
    Bench(bench::BenchArgs),
    /// Unmount, also what a killed process left behind
    Umount(umount::UmountArgs),
}

#[derive(Subcommand)]
enum FileCommand {
    /// Where the bytes of a file are
    Info {
        /// A file on a mount, or from the filesystem's root if --masters or --grpc is given
        path: PathBuf,
    },
}

/// The program `mooseng`.
pub fn main() -> ExitCode {
    fail::exit("mooseng", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<(), Fail> {
    let common = cli.common;
    match cli.command {
        Command::Init(args) => init::run(&common, &args),
        Command::Dev(args) => dev::run(&args),
        Command::Bench(args) => bench::run(common.json, &args),
        Command::Umount(args) => umount::run(&common, &args),
        Command::Status => wait(status::run(&common)),
        Command::Master(command) => wait(admin::master(&common, command)),
        Command::Chunkserver(command) => wait(admin::chunkserver(&common, command)),
        Command::Class(command) => wait(class::run(&common, command)),
        Command::File(FileCommand::Info { path }) => wait(place::file_info(&common, &path)),
    }
}

/// Runs one gRPC conversation.
fn wait<F: Future<Output = Result<(), Fail>>>(work: F) -> Result<(), Fail> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Fail::new(format!("runtime: {e}")))?.block_on(work)
}
