//! Wrong directories, ports, disks and mount points: one line that names the thing and what to do.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::cluster::{Cluster, Options, count, mounted};
use common::{TempDir, free_ports, need_fuse, ok, one_line, program, turn, until};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn master(dir: &Path, listen: &str) -> String {
    one_line("mooseng-master", &["--data", &text(dir), "--listen", listen], 1)
}

fn chunkserver(dirs: &[&Path], listen: &str, masters: &str) -> String {
    let dirs = dirs.iter().map(|dir| text(dir)).collect::<Vec<_>>().join(",");
    let args = ["--data", &dirs, "--listen", listen, "--masters", masters];
    one_line("mooseng-chunkserver", &args, 1)
}

#[test]
fn directories_that_are_not_a_masters() {
    let temp = TempDir::new("masterdirs");
    let listen = format!("127.0.0.1:{}", free_ports(2));
    let empty = temp.dir("empty");
    let line = master(&empty, &listen);
    assert!(line.contains(&text(&empty)) && line.contains("mooseng init"), "{line}");
    let line = master(&temp.path().join("missing"), &listen);
    assert!(line.contains("missing: No such file"), "{line}");

    let foreign = temp.dir("foreign");
    std::fs::write(foreign.join("photo.jpg"), "x").unwrap();
    let line = master(&foreign, &listen);
    assert!(line.contains(&text(&foreign)) && line.contains("photo.jpg"), "{line}");
    let line = one_line("mooseng", &["init", "--data", &text(&foreign)], 1);
    assert!(line.contains("not empty") && line.contains("photo.jpg"), "{line}");

    let good = temp.path().join("good");
    ok("mooseng", &["init", "--data", &text(&good)]);
    let line = one_line("mooseng", &["init", "--data", &text(&good)], 1);
    assert!(line.contains("not empty"), "twice: {line}");
    let superblock = good.join("superblock");
    let mut raw = std::fs::read(&superblock).unwrap();
    let middle = raw.len() / 2;
    raw[middle] ^= 1;
    std::fs::write(&superblock, raw).unwrap();
    let line = master(&good, &listen);
    assert!(line.contains(&text(&superblock)), "{line}");
}

#[test]
fn directories_that_cannot_be_read_or_are_none() {
    let temp = TempDir::new("unreadable");
    let listen = format!("127.0.0.1:{}", free_ports(2));
    let (dir, file) = (temp.dir("closed"), temp.path().join("file"));
    std::fs::write(&file, "x").unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o000)).unwrap();
    for (name, more) in [
        ("mooseng-master", vec![]),
        ("mooseng-master", vec!["--join", "127.0.0.1:1"]),
        ("mooseng-chunkserver", vec!["--masters", "127.0.0.1:1"]),
    ] {
        let args = |dir: &Path| {
            let args = ["--data", &text(dir), "--listen", &listen].map(str::to_owned);
            args.into_iter().chain(more.iter().map(|arg| (*arg).to_owned())).collect::<Vec<_>>()
        };
        let mut command = common::unprivileged(&temp, name);
        let line = common::refused(name, command.args(args(&dir)), 1);
        let said = line.contains(&text(&dir)) && line.contains("Permission denied");
        assert!(said && line.contains("give it to the user"), "{line}");
        let line = common::refused(name, Command::new(program(name)).args(args(&file)), 1);
        assert!(line.contains(&text(&file)) && line.contains("name a directory"), "{line}");
    }
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Killed while the first superblock was being written: half of it under its temporary name.
#[test]
fn a_first_start_that_was_interrupted_is_begun_again() {
    let _turn = turn();
    let cluster = Cluster::start("half", Options::new(1, 0));
    let half = |dir: &Path| {
        let whole = std::fs::read(cluster.master_dir(0).join("superblock")).unwrap();
        std::fs::create_dir_all(dir.join("lost+found")).unwrap();
        std::fs::write(dir.join("superblock.new"), &whole[..whole.len() / 2]).unwrap();
        std::fs::write(dir.join("LOCK"), "").unwrap();
    };
    // A chunkserver, and a master that joins, go on as if nothing had been.
    let disk = cluster.temp.path().join("disk");
    half(&disk);
    let mut command = Command::new(program("mooseng-chunkserver"));
    command.args(["--data", &text(&disk), "--masters", &cluster.masters_flag()]);
    command.args(["--listen", &format!("127.0.0.1:{}", free_ports(1))]);
    let server = common::Daemon::start("half", &mut command, &cluster.temp.path().join("half.log"));
    until("it is registered", 30, || {
        let status = cluster.try_status()?;
        (count(&status["servers"], |s| s["alive"] == true) == 1).then_some(())
    });
    server.stop();
    half(&cluster.temp.path().join("joining"));
    cluster.join_master("joining");
    // So does init; where it had come further, it says that the directory is to be emptied.
    let fresh = cluster.temp.path().join("fresh");
    half(&fresh);
    ok("mooseng", &["init", "--data", &text(&fresh)]);
    std::fs::rename(fresh.join("superblock"), fresh.join("superblock.new")).unwrap();
    let line = one_line("mooseng", &["init", "--data", &text(&fresh)], 1);
    assert!(line.contains(&text(&fresh)) && line.contains("choose an empty directory"), "{line}");
    let line = master(&fresh, &format!("127.0.0.1:{}", free_ports(2)));
    assert!(line.contains(&text(&fresh)) && line.contains("choose an empty directory"), "{line}");
}

#[test]
fn an_empty_directory_under_a_known_identity_is_refused() {
    let _turn = turn();
    let options = Options::new(1, 2).limit("server_dead_ms", 4000);
    let mut cluster = Cluster::start("known", options);
    let listen = cluster.chunkserver_address(1);
    cluster.chunkservers[1].take().unwrap().stop();
    // Its disk is not mounted: the mount point is there, and empty.
    let (dir, away) = (cluster.chunkserver_dir(1), cluster.temp.path().join("away"));
    std::fs::rename(&dir, &away).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let line = chunkserver(&[&dir], &listen, &cluster.masters_flag());
    assert!(line.contains(&listen) && line.contains("mount its disks"), "{line}");
    // Nothing is lost: mounted again it is who it was.
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    cluster.start_chunkserver(1);
    cluster.wait_whole();
    assert_eq!(cluster.status()["servers"].as_array().unwrap().len(), 2);

    // A master whose superblock is all that is left must not take part under its number.
    cluster.masters[0].take().unwrap().stop();
    let bare = cluster.temp.dir("bare");
    std::fs::copy(cluster.master_dir(0).join("superblock"), bare.join("superblock")).unwrap();
    let line = master(&bare, &cluster.master_address(0));
    assert!(line.contains(&text(&bare)) && line.contains("--join"), "{line}");
    cluster.start_master(0);
    cluster.wait_whole();
}

#[test]
fn a_chunkserver_of_another_cluster_is_refused() {
    let _turn = turn();
    let mut cluster = Cluster::start("ours", Options::new(1, 1));
    let theirs = Cluster::start("theirs", Options::new(1, 0));
    let listen = cluster.chunkserver_address(0);
    cluster.chunkservers[0].take().unwrap().stop();
    let line = chunkserver(&[&cluster.chunkserver_dir(0)], &listen, &theirs.masters_flag());
    let said = line.contains("belongs to cluster") && line.contains(&theirs.masters_flag());
    assert!(said && line.contains("correct the masters"), "{line}");
    cluster.start_chunkserver(0);
    cluster.wait_whole();
}

#[test]
fn a_master_refuses_a_used_directory_a_used_port_and_another_cluster() {
    let _turn = turn();
    let cluster = Cluster::start("used", Options::new(1, 1));
    let other = format!("127.0.0.1:{}", free_ports(2));
    let line = master(&cluster.master_dir(0), &other);
    assert!(line.contains("in use by another running process"), "{line}");
    let line = chunkserver(&[&cluster.chunkserver_dir(0)], &other, &cluster.masters_flag());
    assert!(line.contains(&text(&cluster.chunkserver_dir(0))) && line.contains("in use"), "{line}");

    let fresh = cluster.temp.path().join("fresh");
    ok("mooseng", &["init", "--data", &text(&fresh)]);
    let line = master(&fresh, &cluster.master_address(0));
    let address = cluster.master_address(0);
    let said = line.contains("Address already in use") && line.contains(&address);
    assert!(said && line.contains("--listen"), "{line}");
    let mut command = Command::new(program("mooseng-master"));
    command.args(["--data", &text(&fresh), "--listen", &other, "--grpc-listen", &address]);
    let line = common::refused("mooseng-master", &mut command, 1);
    assert!(line.contains(&address) && line.contains("--grpc-listen"), "{line}");
    let mut command = Command::new(program("mooseng-master"));
    command.args(["--data", &text(&fresh), "--listen", &other]);
    let line = common::refused("mooseng-master", command.env("MOOSENG_NODE__METRICS", &address), 1);
    assert!(line.contains(&address) && line.contains("metrics"), "{line}");
    let disk = cluster.temp.dir("disk");
    let line = chunkserver(&[&disk], &cluster.chunkserver_address(0), &cluster.masters_flag());
    assert!(line.contains("in use") && line.contains(&cluster.chunkserver_address(0)), "{line}");
    assert!(line.contains("--listen"), "{line}");

    let output = Command::new(program("mooseng-master"))
        .args(["--data", &text(&fresh), "--listen", &other])
        .env("MOOSENG_CLUSTER__ID", "00112233445566778899aabbccddeeff")
        .output()
        .unwrap();
    let err = common::text(&output.stderr);
    assert!(!output.status.success() && err.contains("belongs to cluster"), "{err}");
}

#[test]
fn a_chunkserver_refuses_a_missing_an_emptied_and_a_foreign_disk() {
    let _turn = turn();
    let mut cluster = Cluster::start("disks", Options::new(1, 0));
    let masters = cluster.masters_flag();
    let listen = format!("127.0.0.1:{}", free_ports(1));
    let (one, two) = (cluster.temp.dir("one"), cluster.temp.dir("two"));
    let mut command = Command::new(program("mooseng-chunkserver"));
    command.args(["--data", &text(&one), "--data", &text(&two)]);
    command.args(["--listen", &listen, "--masters", &masters]);
    let log = cluster.temp.path().join("two-disks.log");
    let daemon = common::Daemon::start("two-disks", &mut command, &log);
    until("it is registered", 30, || {
        let status = cluster.try_status()?;
        (common::cluster::count(&status["servers"], |s| s["alive"] == true) == 1).then_some(())
    });
    daemon.stop();

    let line = chunkserver(&[&one], &listen, &masters);
    assert!(line.contains("missing"), "a registered disk is not given: {line}");
    let line = chunkserver(&[&one, Path::new("/no/such/disk")], &listen, &masters);
    assert!(line.contains("/no/such/disk: No such file"), "{line}");
    let away = cluster.temp.path().join("away");
    std::fs::rename(&two, &away).unwrap();
    std::fs::create_dir(&two).unwrap();
    let line = chunkserver(&[&one, &two], &listen, &masters);
    assert!(line.contains("missing"), "an emptied disk: {line}");
    std::fs::write(two.join("photo.jpg"), "x").unwrap();
    let line = chunkserver(&[&one, &two], &listen, &masters);
    assert!(line.contains(&text(&two)), "a foreign directory: {line}");
    let line = chunkserver(&[&cluster.master_dir(0)], &listen, &masters);
    assert!(line.contains(&text(&cluster.master_dir(0))), "a master's directory: {line}");
    cluster.stop_all();
}

#[test]
fn a_mount_left_over_or_busy_is_named_and_umount_clears_it() {
    let _turn = turn();
    need_fuse();
    let cluster = Cluster::start("points", Options::new(1, 2));
    let mount = cluster.mount("mount");
    let dir = mount.dir.clone();
    let masters = cluster.masters_flag();
    let line = one_line("mooseng-mount", &[&masters, &text(&dir)], 1);
    assert!(line.ends_with("busy: fuse.mooseng is mounted there"), "{line}");
    // Busy for umount as well while a file is open.
    let open = std::fs::File::create(mount.path("open")).unwrap();
    let line = one_line("mooseng", &["umount", &text(&dir)], 1);
    assert!(line.contains("busy"), "{line}");
    drop(open);

    let mut mount = mount;
    mount.daemon.take().unwrap().kill();
    assert!(mounted(&dir), "the killed process leaves its mount");
    // The kernel notices the death when it has torn down the process's descriptors.
    let line = common::until("the mount is seen to be left over", 10, || {
        let line = one_line("mooseng-mount", &[&masters, &text(&dir)], 1);
        line.contains("left over from a killed process").then_some(line)
    });
    assert!(line.contains(&format!("mooseng umount {}", text(&dir))), "{line}");
    ok("mooseng", &["umount", &text(&dir)]);
    assert!(!mounted(&dir));
    // In the background this time: the command returns when the mount is up.
    ok("mooseng-mount", &[&masters, &text(&dir)]);
    assert!(mounted(&dir));
    assert!(dir.join("open").exists());
    ok("mooseng", &["umount", &text(&dir)]);
    assert!(!mounted(&dir));
}

#[test]
fn a_class_wider_than_the_cluster_is_refused() {
    let _turn = turn();
    need_fuse();
    let cluster = Cluster::start("wide", Options::new(1, 2));
    let mount = cluster.mount("mount");
    std::fs::create_dir(mount.path("dir")).unwrap();
    let dir = text(&mount.path("dir"));
    let line = one_line("mooseng", &["class", "set", &dir, "4+2"], 1);
    assert!(line.contains('6') && line.contains('2'), "says what it has and what it needs: {line}");
    // Copies that fit are taken, by name or by layout, and inherited.
    ok("mooseng", &["class", "set", &dir, "1+0"]);
    std::fs::write(mount.path("dir/file"), vec![7; 100_000]).unwrap();
    let file = text(&mount.path("dir/file"));
    let class = common::json("mooseng", &["--json", "class", "get", &file]);
    assert_eq!((&class["data"], &class["parity"]), (&1.into(), &0.into()), "{class:#}");
    let info = common::json("mooseng", &["--json", "file", "info", &file]);
    assert_eq!(info["chunks"][0]["replicas"].as_array().unwrap().len(), 1, "{info:#}");
}

/// Nobody, without a helper that mounts for others.
const NO_HELPER: &str = "/nonexistent";

#[test]
fn without_rights_the_mount_says_so() {
    let temp = TempDir::new("rights");
    let dir = temp.dir("mount");
    let mut command = common::unprivileged(&temp, "mooseng-mount");
    command.args(["127.0.0.1:1", &text(&dir)]).env("PATH", NO_HELPER);
    let line = common::refused("mooseng-mount", &mut command, 1);
    let said = line.contains("cannot use /dev/fuse") || line.contains("needs root, or fusermount3");
    assert!(said, "{line}");
}

/// Tests that need a mount are never passed over: where they cannot run they fail, and say why in one line.
#[test]
fn without_rights_the_mount_tests_fail() {
    let temp = TempDir::new("tests");
    let this = std::env::current_exe().unwrap();
    let mut command = common::unprivileged_copy(&temp, &this);
    command.args(["--exact", "a_class_wider_than_the_cluster_is_refused"]).env("PATH", NO_HELPER);
    let output = command.env("RUST_BACKTRACE", "0").output().unwrap();
    let said = common::text(&output.stdout) + &common::text(&output.stderr);
    assert!(!output.status.success() && said.contains("1 failed"), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("mount tests need")).collect();
    assert_eq!(lines.len(), 1, "{said}");
}
