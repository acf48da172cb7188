//! `mooseng dev`, and what the mount settled with the kernel.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::{Daemon, TempDir, cluster, free_ports, need_fuse, pause, program, tree, turn, until};
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A running `mooseng dev`.
struct Dev {
    mount: PathBuf,
    daemon: Option<Daemon>,
}

impl Dev {
    fn start(temp: &TempDir, port: u16, more: &[&str]) -> Dev {
        need_fuse();
        let mount = temp.path().join("mount");
        let mut command = Command::new(program("mooseng"));
        command.arg("dev").arg("--mount").arg(&mount).arg("--data").arg(temp.path().join("data"));
        command.args(["--port", &port.to_string()]).args(more);
        let mut daemon = Daemon::start("dev", &mut command, &temp.path().join("dev.log"));
        until("dev is up", 60, || {
            assert!(daemon.running(), "dev ended: {}", daemon.said());
            cluster::mounted(&mount).then_some(())
        });
        Dev { mount, daemon: Some(daemon) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    fn stats(&self) -> Value {
        serde_json::from_slice(&common::xattr(&self.mount, mooseng_fuse::STATS)).unwrap()
    }

    fn stop(mut self) {
        self.daemon.take().unwrap().stop();
        assert!(!cluster::mounted(&self.mount), "dev unmounts at its end");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.daemon.take().is_some() {
            while cluster::mounted(&self.mount) && mooseng_fuse::unmount(&self.mount, true).is_ok()
            {
            }
        }
    }
}

#[test]
fn files_are_kept_across_restarts() {
    let _turn = turn();
    let temp = TempDir::new("dev");
    let port = free_ports(5);
    let source = temp.dir("source");
    tree::make(&source, 120);
    let want = tree::hash(&source);

    let dev = Dev::start(&temp, port, &[]);
    tree::copy(&source, &dev.path("tree"), false, &mut |_| {}).unwrap();
    tree::assert_same("at once", &want, &tree::hash(&dev.path("tree")));
    let status =
        common::json("mooseng", &["--masters", &format!("127.0.0.1:{port}"), "--json", "status"]);
    assert_eq!(cluster::count(&status["servers"], |server| server["alive"] == true), 3);
    assert_eq!(status["under_replicated"], 0, "{status:#}");
    let said = dev.daemon.as_ref().unwrap().said();
    assert!(said.contains("no authentication yet"), "{said}");
    dev.stop();

    let dev = Dev::start(&temp, port, &[]);
    tree::assert_same("after a restart", &want, &tree::hash(&dev.path("tree")));
    // Commands find the cluster through the mount.
    let file = dev.path("tree/d0/e0/file 42 \u{e9}.bin");
    let info = common::json("mooseng", &["--json", "file", "info", &file.to_string_lossy()]);
    assert_eq!(info["size"], std::fs::metadata(&file).unwrap().len(), "{info:#}");
    dev.stop();
}

#[test]
fn a_command_runs_inside_and_says_how_it_ended() {
    let _turn = turn();
    need_fuse();
    let temp = TempDir::new("command");
    let (mount, data) = (temp.path().join("m"), temp.path().join("d"));
    let port = free_ports(5).to_string();
    let run = |script: &str| {
        let dirs = [mount.to_str().unwrap(), data.to_str().unwrap()];
        let args = [
            "dev", "--mount", dirs[0], "--data", dirs[1], "--port", &port, "--", "sh", "-c", script,
        ];
        common::run("mooseng", &args)
    };
    let output = run("echo hello > $MOOSENG_MOUNT/hello && cat $MOOSENG_MOUNT/hello");
    let (out, err) = (common::text(&output.stdout), common::text(&output.stderr));
    assert!(output.status.success() && out.ends_with("hello\n"), "{out}{err}");
    assert_eq!(run("exit 7").status.code(), Some(7));
    assert!(run("grep -q hello $MOOSENG_MOUNT/hello").status.success());
    // Whoever is told to stop tells the command, and waits for it.
    let told = "trap 'echo told > $MOOSENG_MOUNT/told; exit 9' TERM; kill -TERM $PPID; \
                sleep 20 > /dev/null 2>&1 & wait";
    assert_eq!(run(told).status.code(), Some(9));
    assert!(run("grep -q told $MOOSENG_MOUNT/told").status.success());
}

#[test]
fn the_kernel_granted_what_speed_needs_and_asks_no_more_than_it_must() {
    let _turn = turn();
    let temp = TempDir::new("counts");
    let dev = Dev::start(&temp, free_ports(5), &[]);
    let init = dev.stats()["init"].clone();
    let flags: Vec<&str> =
        init["flags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for flag in [
        "FUSE_HANDLE_KILLPRIV_V2",
        "FUSE_PARALLEL_DIROPS",
        "FUSE_ASYNC_DIO",
        "FUSE_DO_READDIRPLUS",
        "FUSE_READDIRPLUS_AUTO",
        "FUSE_AUTO_INVAL_DATA",
        "FUSE_MAX_PAGES",
    ] {
        assert!(flags.contains(&flag), "{flag} was not granted: {init}");
    }
    assert!(!flags.contains(&"FUSE_WRITEBACK_CACHE"));
    assert_eq!(init["max_write"], 1 << 20);
    kernel_took(&dev.mount);

    creates_cost(&dev);
    writes_cost(&dev);
    dev.stop();
}

/// What the kernel's own files say about the connection.
fn kernel_took(mount: &Path) {
    let device = std::fs::metadata(mount).unwrap().dev();
    let minor = rustix::fs::minor(device);
    if let Ok(text) =
        std::fs::read_to_string(format!("/sys/fs/fuse/connections/{minor}/max_background"))
    {
        assert_eq!(text.trim(), "64");
    }
    if rustix::process::geteuid().is_root() {
        let path = format!("/sys/class/bdi/0:{minor}/read_ahead_kb");
        assert_eq!(std::fs::read_to_string(path).unwrap().trim(), "1024");
    }
}

fn difference(before: &Value, after: &Value, name: &str) -> u64 {
    let get = |stats: &Value| stats["requests"][name].as_u64().unwrap_or(0);
    get(after) - get(before)
}

/// create + 4 KiB + close: one lookup, create, write, flush and release each, and nothing that waits besides.
fn creates_cost(dev: &Dev) {
    const FILES: u64 = 50;
    let dir = dev.path("counted");
    std::fs::create_dir(&dir).unwrap();
    let before = dev.stats();
    for number in 0..FILES {
        let mut file = std::fs::File::create(dir.join(number.to_string())).unwrap();
        file.write_all(&[7; 4096]).unwrap();
    }
    // The release comes when the kernel finds the time.
    let after = until("all files are released", 10, || {
        let now = dev.stats();
        (difference(&before, &now, "release") >= FILES).then_some(now)
    });
    for name in ["lookup", "create", "write", "flush", "release"] {
        assert_eq!(difference(&before, &after, name), FILES, "{name}: {:#}", after["requests"]);
    }
    for name in ["open", "setattr", "fsync", "other", "read"] {
        assert_eq!(difference(&before, &after, name), 0, "{name}: {:#}", after["requests"]);
    }
    // The kernel drops the directory's attributes after every change and asks for them; the answer is known.
    let asked = difference(&before, &after, "getattr");
    assert!(asked <= FILES + FILES / 5, "{asked} getattrs for {FILES} creates");
    let inline = difference(&before, &after, "answered_inline");
    assert!(inline >= FILES * 3 / 2, "{inline} answers without waiting for {FILES} creates");
}

/// Overwrites ask for nothing but the write: no getxattr for capabilities, no getattr.
fn writes_cost(dev: &Dev) {
    const WRITES: u64 = 200;
    let path = dev.path("overwritten");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    pause(100);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let before = dev.stats();
    for number in 0..WRITES {
        file.write_all_at(&[2; 4096], number % 256 * 4096).unwrap();
    }
    let after = dev.stats();
    assert_eq!(difference(&before, &after, "write"), WRITES);
    // One of these is the look at the statistics.
    let asked = difference(&before, &after, "getxattr");
    assert!(asked <= 2, "{asked} getxattrs for {WRITES} writes");
    let asked = difference(&before, &after, "getattr");
    assert!(asked <= 5, "{asked} getattrs for {WRITES} writes");
    // 1 MiB in one call is one request, or two where the buffer does not begin on a page: a request carries
    // 256 pages.
    let before = dev.stats();
    file.write_all_at(&vec![3; 1 << 20], 0).unwrap();
    assert!(difference(&before, &dev.stats(), "write") <= 2);
}
