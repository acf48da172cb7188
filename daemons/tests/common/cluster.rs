//! A cluster of separate daemons.

use super::image::Image;
use super::{Daemon, TempDir, free_ports, json, need_fuse, ok, pause, program, until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What to start.
#[derive(Clone)]
pub struct Options {
    pub masters: usize,
    pub chunkservers: usize,
    /// Environment of every daemon, e.g. limits.
    pub env: Vec<(String, String)>,
    /// Size of a file system of its own for each master's data.
    pub master_disk: Option<u64>,
    /// The same for each chunkserver's.
    pub chunkserver_disk: Option<u64>,
}

impl Options {
    pub fn new(masters: usize, chunkservers: usize) -> Options {
        let env = Vec::new();
        Options { masters, chunkservers, env, master_disk: None, chunkserver_disk: None }
    }

    /// Changes a limit of all daemons.
    pub fn limit(mut self, name: &str, value: u64) -> Options {
        self.env.push((format!("MOOSENG_LIMITS__{}", name.to_uppercase()), value.to_string()));
        self
    }
}

/// Its daemons die with it. Mounts must be dropped before (declare them after).
pub struct Cluster {
    pub options: Options,
    pub masters: Vec<Option<Daemon>>,
    pub chunkservers: Vec<Option<Daemon>>,
    first_port: u16,
    /// Of the masters, then of the chunkservers, where they have some.
    pub images: Vec<Image>,
    pub temp: TempDir,
}

impl Cluster {
    /// Starts everything and waits until it serves.
    pub fn start(name: &str, options: Options) -> Cluster {
        let temp = TempDir::new(name);
        // Two for each master, one for each chunkserver, and one more for the counters of each.
        let ports = options.masters * 3 + options.chunkservers * 2;
        let mut cluster = Cluster {
            masters: Vec::new(),
            chunkservers: Vec::new(),
            first_port: free_ports(ports as u16),
            images: Vec::new(),
            temp,
            options,
        };
        cluster.mount_images();
        let mut init = cluster.command("mooseng");
        init.arg("init").arg("--data").arg(cluster.master_dir(0));
        assert!(init.stdin(Stdio::null()).status().unwrap().success(), "{init:?}");
        for index in 0..cluster.options.masters {
            cluster.masters.push(None);
            cluster.start_master(index);
            if index > 0 {
                cluster.add_master(index);
            }
        }
        for index in 0..cluster.options.chunkservers {
            cluster.chunkservers.push(None);
            std::fs::create_dir_all(cluster.chunkserver_dir(index)).unwrap();
            cluster.start_chunkserver(index);
        }
        cluster.wait_whole();
        cluster
    }

    fn mount_images(&mut self) {
        let masters = (0..self.options.masters).map(|index| self.master_dir(index));
        let servers = (0..self.options.chunkservers).map(|index| self.chunkserver_dir(index));
        let masters = masters.filter_map(|dir| Some((dir, self.options.master_disk?)));
        let servers = servers.filter_map(|dir| Some((dir, self.options.chunkserver_disk?)));
        let all: Vec<_> = masters.chain(servers).collect();
        self.images = all.iter().map(|(dir, bytes)| Image::mount(dir, *bytes)).collect();
    }

    /// Makes a running master a voter, once it is up.
    fn add_master(&self, index: usize) {
        self.add(&self.master_address(index));
    }

    /// Makes the running master at this address a voter, once it is up.
    pub fn add(&self, address: &str) {
        until("the new master is added", 30, || {
            let masters = self.masters_flag();
            let args = ["--masters", &masters, "master", "add", address];
            let output = super::run("mooseng", &args);
            output.status.success().then_some(())
        });
    }

    pub fn master_address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.first_port + 2 * index as u16)
    }

    pub fn chunkserver_address(&self, index: usize) -> String {
        let base = self.first_port + 2 * self.options.masters as u16;
        format!("127.0.0.1:{}", base + index as u16)
    }

    /// Where a master answers with its counters.
    pub fn master_metrics(&self, index: usize) -> String {
        let (masters, servers) = (self.options.masters, self.options.chunkservers);
        format!("127.0.0.1:{}", self.first_port + (masters * 2 + servers + index) as u16)
    }

    /// Where a chunkserver answers with its counters.
    pub fn chunkserver_metrics(&self, index: usize) -> String {
        let (masters, servers) = (self.options.masters, self.options.chunkservers);
        format!("127.0.0.1:{}", self.first_port + (masters * 3 + servers + index) as u16)
    }

    /// Where a master's gRPC service is.
    pub fn master_grpc(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.first_port + 2 * index as u16 + 1)
    }

    pub fn master_dir(&self, index: usize) -> PathBuf {
        self.temp.path().join(format!("master{index}"))
    }

    pub fn chunkserver_dir(&self, index: usize) -> PathBuf {
        self.temp.path().join(format!("chunkserver{index}"))
    }

    /// All masters, as the programs take them.
    pub fn masters_flag(&self) -> String {
        let all = (0..self.options.masters).map(|index| self.master_address(index));
        all.collect::<Vec<_>>().join(",")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command.envs(self.options.env.iter().map(|(k, v)| (k, v)));
        command
    }

    pub fn start_master(&mut self, index: usize) {
        let mut command = self.command("mooseng-master");
        command.arg("--data").arg(self.master_dir(index));
        command.arg("--listen").arg(self.master_address(index));
        command.env("MOOSENG_NODE__METRICS", self.master_metrics(index));
        if index > 0 {
            command.arg("--join").arg(self.masters_flag());
        }
        let name = format!("master{index}");
        let log = self.temp.path().join(format!("{name}.log"));
        self.masters[index] = Some(Daemon::start(&name, &mut command, &log));
    }

    /// Another master, in this directory of the cluster's, is admitted and made a voter.
    pub fn join_master(&self, dir: &str) {
        let address = format!("127.0.0.1:{}", free_ports(2));
        let mut command = self.command("mooseng-master");
        command.arg("--data").arg(self.temp.path().join(dir)).args(["--listen", &address]);
        command.arg("--join").arg(self.masters_flag());
        let log = self.temp.path().join(format!("{dir}.log"));
        let daemon = Daemon::start(dir, &mut command, &log);
        self.add(&address);
        let masters = self.masters_flag();
        let listed = json("mooseng", &["--masters", &masters, "--json", "master", "list"]);
        let found = |master: &Value| master["address"] == address.as_str();
        let node = listed.as_array().unwrap().iter().find(|m| found(m)).expect("listed")["node"]
            .as_u64()
            .expect("a number");
        ok("mooseng", &["--masters", &masters, "master", "remove", &node.to_string()]);
        daemon.stop();
    }

    pub fn start_chunkserver(&mut self, index: usize) {
        let mut command = self.command("mooseng-chunkserver");
        command.arg("--data").arg(self.chunkserver_dir(index));
        command.arg("--listen").arg(self.chunkserver_address(index));
        command.env("MOOSENG_NODE__METRICS", self.chunkserver_metrics(index));
        command.arg("--masters").arg(self.masters_flag());
        let name = format!("chunkserver{index}");
        let log = self.temp.path().join(format!("{name}.log"));
        self.chunkservers[index] = Some(Daemon::start(&name, &mut command, &log));
    }

    /// Until there is a leader, all masters vote and all running chunkservers live.
    pub fn wait_whole(&self) {
        let servers = self.chunkservers.iter().flatten().count();
        until("the cluster is whole", 60, || {
            let status = self.try_status()?;
            let voters = count(&status["masters"], |master| master["voter"] == true);
            let alive = count(&status["servers"], |server| server["alive"] == true);
            // The root directory is there once the cluster is founded.
            let founded = status["inodes"].as_u64()? > 0;
            (voters == self.options.masters && alive == servers && founded).then_some(())
        });
    }

    pub fn status(&self) -> Value {
        json("mooseng", &["--masters", &self.masters_flag(), "--json", "status"])
    }

    pub fn try_status(&self) -> Option<Value> {
        let masters = self.masters_flag();
        let output = super::run("mooseng", &["--masters", &masters, "--json", "status"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Index of the master that leads.
    pub fn leader(&self) -> usize {
        until("there is a leader", 30, || {
            let status = self.try_status()?;
            let masters = status["masters"].as_array()?.clone();
            let leader = masters.iter().find(|master| master["leader"] == true)?;
            let address = leader["address"].as_str()?.to_owned();
            (0..self.options.masters).find(|index| self.master_address(*index) == address)
        })
    }

    /// SIGKILL to every daemon, then starts them all again.
    pub fn kill_all(&mut self) {
        self.masters.iter_mut().chain(&mut self.chunkservers).for_each(|daemon| {
            if let Some(daemon) = daemon {
                daemon.signal(rustix::process::Signal::KILL);
            }
        });
        self.masters.iter_mut().for_each(|daemon| *daemon = None);
        self.chunkservers.iter_mut().for_each(|daemon| *daemon = None);
    }

    /// SIGTERM to every daemon, chunkservers first; each must end cleanly.
    pub fn stop_all(&mut self) {
        self.chunkservers.iter_mut().filter_map(Option::take).for_each(Daemon::stop);
        self.masters.iter_mut().filter_map(Option::take).for_each(Daemon::stop);
    }

    /// Starts what is not running.
    pub fn start_all(&mut self) {
        for index in 0..self.masters.len() {
            if self.masters[index].is_none() {
                self.start_master(index);
            }
        }
        for index in 0..self.chunkservers.len() {
            if self.chunkservers[index].is_none() {
                self.start_chunkserver(index);
            }
        }
    }

    /// Mounts it in a separate process.
    pub fn mount(&self, name: &str) -> Mount {
        need_fuse();
        let dir = self.temp.dir(name);
        let mut command = self.command("mooseng-mount");
        command.arg(self.masters_flag()).arg(&dir).arg("--foreground");
        let log = self.temp.path().join(format!("{name}.log"));
        let mut daemon = Daemon::start(name, &mut command, &log);
        until("the mount is up", 30, || {
            assert!(daemon.running(), "the mount ended: {}", daemon.said());
            mounted(&dir).then_some(())
        });
        Mount { dir, daemon: Some(daemon) }
    }
}

/// Whether a MooseNG mount is at `dir`.
pub fn mounted(dir: &Path) -> bool {
    let entry = mooseng_fuse::mountinfo::at(dir).unwrap();
    entry.is_some_and(|entry| entry.kind == "fuse.mooseng")
}

pub fn count(list: &Value, test: impl Fn(&Value) -> bool) -> usize {
    list.as_array().map_or(0, |list| list.iter().filter(|item| test(item)).count())
}

/// A mount, unmounted when dropped, however dead its process is.
pub struct Mount {
    pub dir: PathBuf,
    pub daemon: Option<Daemon>,
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Unmounts cleanly and waits for the process.
    pub fn unmount(mut self) {
        let dir = self.dir.to_string_lossy().into_owned();
        let mut last = String::new();
        let mut daemon = self.daemon.take().expect("a mount process");
        until("umount", 20, || {
            let output = super::run("mooseng", &["umount", &dir]);
            last = super::text(&output.stderr);
            output.status.success().then_some(())
        });
        until("the mount's process ends", 60, || (!daemon.running()).then_some(()));
    }

    /// SIGKILL: what it leaves behind is detached.
    pub fn kill(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Detached first: a killed mount process leaves a dead directory otherwise.
        while mounted(&self.dir) && mooseng_fuse::unmount(&self.dir, true).is_ok() {
            pause(10);
        }
    }
}
