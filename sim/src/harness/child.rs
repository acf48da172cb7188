//! The process of one seed, and how its parent starts it and reads what it reports.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the parent lives in the real world: it starts processes and watches the real clock"
)]

use super::{Report, Scenario, run_here};
use crate::failure::{Failure, Kind};
use crate::trace;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// First argument of a child process.
pub const CHILD_ARG: &str = "--child";
/// What stands before the report in the child's output.
const REPORT: &str = "REPORT ";
/// A child that takes longer than this in the real world hangs.
const CHILD_TIME_MAX: Duration = Duration::from_secs(300);

/// If this process was started to run one seed: runs it and exits.
pub fn child_main(scenarios: &[Scenario]) {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) != Some(CHILD_ARG) {
        return;
    }
    let name = args.get(2).expect("name of the scenario");
    let seed = args.get(3).and_then(|seed| seed.parse().ok()).expect("seed");
    let bug = args.get(4).map(String::as_str);
    if std::env::var("MOOSENG_TIMELINE").is_ok() {
        trace::print_lines();
    }
    let scenario = scenarios.iter().find(|known| known.name == name).expect("a known scenario");
    let report = run_here(scenario, seed, bug);
    for line in trace::last_lines() {
        println!("{line}");
    }
    println!("{REPORT}{}", serde_json::to_string(&report).expect("reports print"));
    std::process::exit(report.failure.map_or(0, |failure| failure.kind.exit_code()));
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
pub fn spawn(scenario: &str, seed: u64, bug: Option<&str>) -> Outcome {
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe().expect("own executable"));
    command.args([CHILD_ARG, scenario, &seed.to_string()]).args(bug);
    // The environment must not decide what happens.
    command.env_clear().env("RUST_BACKTRACE", "1");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a child process starts");
    let stdout = reader(child.stdout.take().expect("piped"));
    let stderr = reader(child.stderr.take().expect("piped"));
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
    let report = report_in(&stdout).unwrap_or_else(|| lost_report(scenario, seed, bug, hung));
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

fn lost_report(scenario: &str, seed: u64, bug: Option<&str>, hung: bool) -> Report {
    let (kind, oracle, message) = match hung {
        true => (Kind::Liveness, "real time", format!("no end after {CHILD_TIME_MAX:?}")),
        false => (Kind::Crash, "process", "the process died without a report".to_owned()),
    };
    Report {
        scenario: scenario.to_owned(),
        seed,
        bug: bug.map(str::to_owned),
        bug_reached: 0,
        hash: 0,
        events: 0,
        simulated_ms: 0,
        counts: Default::default(),
        marks: Default::default(),
        failure: Some(Failure { kind, oracle: oracle.to_owned(), message }),
    }
}
