//! Real daemons for tests: each is its own process on loopback ports with data in a temporary directory, and
//! everything is killed and unmounted when the test ends, however it ends.
#![cfg(not(feature = "sim"))]
#![allow(dead_code, clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cluster;
pub mod damage;
pub mod image;
pub mod probe;
pub mod tree;

use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Path of one of our programs: the one just built, or that in `MOOSENG_TEST_BINARIES=DIR`, which puts other
/// builds under the same tests.
pub fn program(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("MOOSENG_TEST_BINARIES") {
        return PathBuf::from(dir).join(name);
    }
    PathBuf::from(match name {
        "mooseng" => env!("CARGO_BIN_EXE_mooseng"),
        "mooseng-master" => env!("CARGO_BIN_EXE_mooseng-master"),
        "mooseng-chunkserver" => env!("CARGO_BIN_EXE_mooseng-chunkserver"),
        "mooseng-mount" => env!("CARGO_BIN_EXE_mooseng-mount"),
        other => panic!("no program {other}"),
    })
}

/// Two cores do not carry two clusters at once: tests with daemons take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails with one clear line where mounting is impossible: never silently skipped.
pub fn need_fuse() {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        panic!("mount tests need /dev/fuse, which cannot be opened here: {error}");
    }
    let helper = || Command::new("fusermount3").arg("-V").output().is_ok();
    if !rustix::process::geteuid().is_root() && !helper() {
        panic!("mount tests need root or fusermount3, and have neither");
    }
}

/// A number from the environment, for the longer variants of a test.
pub fn knob(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// A directory that is removed at the end.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let base =
            std::env::var_os("MOOSENG_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = base.join(format!("mooseng-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        TempDir(dir.canonicalize().unwrap())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A new directory inside.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.0.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("MOOSENG_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The first of `count` neighbouring ports that nobody uses now. Below the range from which the kernel gives
/// outgoing connections theirs.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let home = 10_000 + (std::process::id() % 180) as u16 * 100;
    for _ in 0..200 {
        let first = home + NEXT.fetch_add(count, Relaxed) % 2000;
        let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + count).all(free) {
            return first;
        }
    }
    panic!("no free ports near {home}");
}

/// A process of ours, killed when dropped. What it said is in its log file.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`; standard output and error go to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Daemon {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        Daemon { name: name.to_owned(), child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{} ended with {status}\n{}", self.name, self.said());
                return;
            }
            pause(10);
        }
        panic!("{} did not end after SIGTERM\n{}", self.name, self.said());
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Everything it has logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let running = self.running();
        self.end();
        if std::thread::panicking() {
            let said = self.said();
            let tail = said.lines().rev().take(15).collect::<Vec<_>>();
            eprintln!("--- {} ({}):", self.name, if running { "was running" } else { "had ended" });
            tail.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
    }
}

pub fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Waits until `condition` gives something.
pub fn until<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {seconds} s");
        pause(50);
    }
}

/// One of our programs, to be run as a user without any rights.
pub fn unprivileged(temp: &TempDir, name: &str) -> Command {
    unprivileged_copy(temp, &program(name))
}

/// The same for any program.
pub fn unprivileged_copy(temp: &TempDir, program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    // The build directory need not be open to others. Another process copies: a file that this one had open for
    // writing while another test started a child would be busy when it is to be run.
    let copy = temp.path().join(program.file_name().unwrap());
    let copied = Command::new("cp").arg(program).arg(&copy).status().unwrap();
    assert!(copied.success(), "cp {} {}", program.display(), copy.display());
    std::fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command.uid(65_534).gid(65_534).current_dir("/");
    command
}

/// Runs one of our programs to its end.
pub fn run(name: &str, args: &[&str]) -> Output {
    Command::new(program(name)).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must succeed; returns its standard output.
pub fn ok(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name} {args:?}: {}\n{out}{err}", output.status);
    out
}

/// Runs a command that must print JSON.
pub fn json(name: &str, args: &[&str]) -> Value {
    let out = ok(name, args);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{name} {args:?}: {e}\n{out}"))
}

/// Runs a command that must fail with this exit code and exactly one line; returns the line.
pub fn one_line(name: &str, args: &[&str], code: i32) -> String {
    refused(name, Command::new(program(name)).args(args), code)
}

/// The same for a prepared command. It must end by itself.
pub fn refused(name: &str, command: &mut Command, code: i32) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut err = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut err, &mut text).map(|_| text)
    });
    let end = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let said = text(&reader.join().unwrap().unwrap());
            panic!("{command:?} was to be refused, and runs: {said}");
        }
        pause(5);
    };
    let err = text(&reader.join().unwrap().unwrap());
    assert_eq!(status.code(), Some(code), "{command:?}: {err}");
    // Log lines have a time in front; the failure does not.
    let lines: Vec<&str> = err.lines().filter(|line| line.starts_with(name)).collect();
    assert_eq!(lines.len(), 1, "one line expected: {err}");
    lines[0].to_owned()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The value of an extended attribute.
pub fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = Vec::with_capacity(64 << 10);
    rustix::fs::getxattr(path, name, rustix::buffer::spare_capacity(&mut value))
        .unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
    value
}
