//! The process of one seed, and how its parent starts it and reads what it reports.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the parent lives in the real world: it starts processes and watches the real clock"
)]

use super::{Job, Report, Scenario, run_here};
use crate::failure::{Failure, Kind};
use crate::trace;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// First argument of a child process; its job comes on stdin.
pub const CHILD_ARG: &str = "--child";
/// What stands before the report in the child's output.
const REPORT: &str = "REPORT ";
/// A child that takes longer than this in the real world hangs.
const CHILD_TIME_MAX: Duration = Duration::from_secs(300);

/// If this process was started to run one seed: runs it and exits.
pub fn child_main(scenarios: &[Scenario]) {
    if std::env::args().nth(1).as_deref() != Some(CHILD_ARG) {
        return;
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("a job on stdin");
    let job: Job = serde_json::from_str(&text).expect("a job");
    let known = scenarios.iter().find(|known| known.name == job.scenario);
    let report = run_here(known.expect("a known scenario"), &job);
    for line in trace::lines() {
        println!("{line}");
    }
    println!("{REPORT}{}", serde_json::to_string(&report).expect("reports print"));
    std::process::exit(report.exit_code());
}

/// What came of a child.
pub struct Outcome {
    /// Its report; a made-up one if it died before writing it.
    pub report: Report,
    /// The end of its timeline and of what it wrote to stderr.
    pub tail: Vec<String>,
    /// How long it took, real time.
    pub took: Duration,
}

/// Runs one seed in a process of its own.
pub fn spawn(job: &Job) -> Outcome {
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe().expect("own executable"));
    command.arg(CHILD_ARG);
    // The environment must not decide what happens.
    command.env_clear().env("RUST_BACKTRACE", "1");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child process starts");
    let stdout = reader(child.stdout.take().expect("piped"));
    let stderr = reader(child.stderr.take().expect("piped"));
    let job_text = serde_json::to_string(job).expect("jobs print");
    // A child that died at once shows below.
    _ = child.stdin.take().expect("piped").write_all(job_text.as_bytes());
    let hung = loop {
        match child.try_wait().expect("child") {
            Some(_) => break false,
            None if started.elapsed() > CHILD_TIME_MAX => {
                _ = child.kill();
                _ = child.wait();
                break true;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let report = report_in(&stdout).unwrap_or_else(|| lost_report(job, hung));
    let lines = stdout.lines().filter(|line| !line.starts_with(REPORT)).map(str::to_owned);
    let mut tail = last(lines.collect(), 60);
    tail.extend(last(stderr.lines().map(str::to_owned).collect(), 40));
    Outcome { report, tail, took: started.elapsed() }
}

fn reader(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn text(reader: std::thread::JoinHandle<String>) -> String {
    reader.join().expect("a reader does not panic")
}

fn last(mut lines: Vec<String>, count: usize) -> Vec<String> {
    lines.split_off(lines.len().saturating_sub(count))
}

fn report_in(stdout: &str) -> Option<Report> {
    let line = stdout.lines().rev().find_map(|line| line.strip_prefix(REPORT))?;
    serde_json::from_str(line).ok()
}

fn lost_report(job: &Job, hung: bool) -> Report {
    let (kind, oracle, message) = match hung {
        true => (Kind::Liveness, "real time", format!("no end after {CHILD_TIME_MAX:?}")),
        false => (Kind::Crash, "process", "the process died without a report".to_owned()),
    };
    let failure = Some(Failure { kind, oracle: oracle.to_owned(), message });
    Report { failure, ..Report::empty(job) }
}
