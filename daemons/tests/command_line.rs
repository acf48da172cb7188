//! Wrong input to the programs: one line that names the thing, and the right exit code. No cluster needed.
#![cfg(not(feature = "sim"))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::{TempDir, one_line};
use std::path::Path;

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn an_unknown_config_key_is_one_line_naming_file_and_key() {
    let temp = TempDir::new("config");
    let file = temp.path().join("m.toml");
    std::fs::write(&file, "[node]\nlisten = \"127.0.0.1:1\"\nlistn = \"127.0.0.1:2\"\n").unwrap();
    let line = one_line("mooseng", &["--config", &text(&file), "status"], 2);
    assert!(line.contains(&text(&file)) && line.contains("unknown key `listn`"), "{line}");
    let line = one_line("mooseng-mount", &["--config", &text(&file), "/mnt"], 2);
    assert!(line.contains(&text(&file)) && line.contains("unknown key `listn`"), "{line}");
    let line = one_line("mooseng", &["--config", "/no/such.toml", "status"], 2);
    assert!(line.contains("/no/such.toml: No such file"), "{line}");
}

#[test]
fn masters_that_do_not_answer_are_named() {
    let line = one_line("mooseng", &["--masters", "127.0.0.1:1", "status"], 1);
    assert!(line.contains("no master answered") && line.contains("127.0.0.1:2"), "{line}");
    let line = one_line("mooseng", &["--masters", "nonsense", "status"], 2);
    assert!(line.contains("`nonsense` is not an address"), "{line}");
}

#[test]
fn umount_refuses_what_is_not_ours() {
    let temp = TempDir::new("umount");
    let line = one_line("mooseng", &["umount", &text(temp.path())], 1);
    assert!(line.ends_with("nothing is mounted there"), "{line}");
    let line = one_line("mooseng", &["umount", "/proc"], 1);
    assert!(line.contains("not MooseNG"), "{line}");
    let line = one_line("mooseng", &["umount", "/no/such"], 1);
    assert!(line.contains("/no/such: No such file"), "{line}");
}

#[test]
fn paths_that_are_not_on_a_mount_are_refused() {
    for args in [["file", "info", "/bin/sh"], ["class", "get", "/bin/sh"]] {
        let line = one_line("mooseng", &args, 1);
        assert!(line.ends_with("not on a MooseNG mount"), "{line}");
    }
    let line = one_line("mooseng", &["class", "create", "wide", "200+100"], 2);
    assert!(line.contains("200+100"), "{line}");
}

#[test]
fn wrong_mount_points_are_one_line() {
    common::need_fuse();
    let temp = TempDir::new("points");
    let file = temp.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let missing = temp.path().join("missing");
    for (dir, says) in [
        (missing.as_path(), "no such directory"),
        (file.as_path(), "not a directory"),
        (Path::new("/proc"), "busy: proc is mounted there"),
    ] {
        let line = one_line("mooseng-mount", &["127.0.0.1:1", &text(dir)], 1);
        assert!(line.contains(&text(dir)) && line.ends_with(says), "{line}");
    }
    let dir = temp.dir("dir");
    let line = one_line("mooseng-mount", &["127.0.0.1:1", &text(&dir), "-o", "fast"], 2);
    assert!(line.contains("unknown mount option `fast`"), "{line}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    use std::process::{Command, Stdio};
    let temp = common::TempDir::new("pipe");
    let mut command = Command::new(common::program("mooseng"));
    command.args(["init", "--data"]).arg(temp.path().join("m"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(common::text(&output.stderr), "", "nothing to complain about");
}
