//! What a daemon costs and counts, looked at from outside.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// Resident memory of a process now, bytes.
pub fn rss(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// The highest resident memory that was seen while this lived.
pub struct Peak {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
}

impl Peak {
    /// Watches a process.
    pub fn of(pid: u32) -> Peak {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (stop.clone(), peak.clone());
        let watcher = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                highest.fetch_max(rss(pid), Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Peak { stop, peak, watcher: Some(watcher) }
    }

    /// Ends watching.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        self.watcher.take().expect("ends once").join().expect("the process lives");
        self.peak.load(Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// A daemon's own counters, from its metrics port.
pub fn counters(address: &str) -> BTreeMap<String, u64> {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let body = said.split_once("\r\n\r\n").expect("an HTTP answer").1;
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let parse = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.strip_prefix("mooseng_")?.to_owned(), value.parse().ok()?))
    };
    lines.map(|line| parse(line).unwrap_or_else(|| panic!("{line}"))).collect()
}
