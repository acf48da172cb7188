//! `mooseng bench`: how fast a directory is, beside another if wished, in interleaved rounds.

mod caches;
mod report;
mod small;
mod stream;

use crate::fail::Fail;
use clap::Args;
use report::Report;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// The directory to measure
    dir: PathBuf,
    /// Another one, measured in turn, to compare with
    #[arg(long, value_name = "DIR2")]
    against: Option<PathBuf>,
    /// Rounds; medians are over these
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Small sizes and three rounds: to see that it works, not how fast
    #[arg(long)]
    quick: bool,
    /// Size of the large file, MiB
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// Number of small files
    #[arg(long, default_value_t = 5000)]
    files: usize,
    /// Number of random accesses
    #[arg(long, default_value_t = 5000)]
    accesses: usize,
}

/// How much of everything.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) rounds: usize,
    pub(crate) file_bytes: u64,
    pub(crate) files: usize,
    pub(crate) accesses: usize,
}

impl BenchArgs {
    fn sizes(&self) -> Sizes {
        let full = Sizes {
            rounds: self.rounds.max(1),
            file_bytes: self.size_mib.max(1) << 20,
            files: self.files.max(8),
            accesses: self.accesses.max(16),
        };
        if !self.quick {
            return full;
        }
        Sizes {
            rounds: full.rounds.min(3),
            file_bytes: full.file_bytes.min(32 << 20),
            files: full.files.min(200),
            accesses: full.accesses.min(200),
        }
    }
}

/// One directory under measurement. What was made in it is removed at the end.
pub(crate) struct Place {
    /// As the user named it.
    pub(crate) name: String,
    /// Made for this run.
    pub(crate) work: PathBuf,
}

impl Place {
    fn new(dir: &Path) -> Result<Place, Fail> {
        let work = dir.join(format!("mooseng-bench-{}", std::process::id()));
        std::fs::create_dir(&work).map_err(|e| Fail::new(format!("{}: {e}", work.display())))?;
        Ok(Place { name: dir.display().to_string(), work })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.work);
    }
}

/// Runs the benchmark and prints what it measured.
pub(crate) fn run(json: bool, args: &BenchArgs) -> Result<(), Fail> {
    let sizes = args.sizes();
    let mut places = vec![Place::new(&args.dir)?];
    if let Some(against) = &args.against {
        places.push(Place::new(against)?);
    }
    let mut report = Report::new(&places, sizes);
    let work: [(&str, Workload); 2] = [("large file", stream::run), ("small files", small::run)];
    for round in 0..sizes.rounds {
        for (name, workload) in work {
            // Every other round begins with the other directory.
            for turn in 0..places.len() {
                let index = (turn + round) % places.len();
                if !json {
                    eprintln!(
                        "round {} of {}: {name}, {}",
                        round + 1,
                        sizes.rounds,
                        places[index].name
                    );
                }
                workload(&places[index], sizes, &mut |metric, value| {
                    report.add(index, metric, value);
                })?;
            }
        }
    }
    report.print(json);
    Ok(())
}

type Workload = fn(&Place, Sizes, &mut dyn FnMut(Metric, f64)) -> Result<(), Fail>;

/// What a number says; larger is better for all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

pub(crate) const fn metric(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit }
}

/// Bytes that do not repeat within a block and differ between blocks.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

/// xorshift64: the same accesses in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Runs `work(thread)` on so many threads; returns seconds until the last is done.
pub(crate) fn timed<F>(threads: usize, work: F) -> Result<f64, Fail>
where
    F: Fn(usize) -> io::Result<()> + Sync,
{
    let begin = Instant::now();
    let outcome: io::Result<()> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let work = &work;
                scope.spawn(move || work(number))
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        };
        running.into_iter().try_for_each(join)
    });
    let seconds = begin.elapsed().as_secs_f64();
    outcome.map_err(|e| Fail::new(format!("benchmark: {e}")))?;
    Ok(seconds)
}

/// Names the file in an error.
pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), describe(path, &error))
}

fn describe(path: &Path, error: &dyn Display) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_measures_everything_on_both_directories() {
        let dirs = ["a", "b"].map(|name| {
            let dir = std::env::temp_dir().join(format!("mooseng-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            dir
        });
        let sizes = Sizes { rounds: 1, file_bytes: 2 << 20, files: 16, accesses: 16 };
        let places = dirs.iter().map(|dir| Place::new(dir).unwrap()).collect::<Vec<_>>();
        let mut report = Report::new(&places, sizes);
        for (index, place) in places.iter().enumerate() {
            stream::run(place, sizes, &mut |m, v| report.add(index, m, v)).unwrap();
            small::run(place, sizes, &mut |m, v| report.add(index, m, v)).unwrap();
        }
        let value = report.as_json();
        let results = value["results"].as_array().unwrap();
        assert!(results.len() >= 18, "{value:#}");
        for result in results {
            assert!(result["ratio"].as_f64().unwrap() > 0.0, "{result}");
            assert_eq!(result["places"].as_array().unwrap().len(), 2);
        }
        drop(places);
        for dir in dirs {
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "it cleans up");
            std::fs::remove_dir(dir).unwrap();
        }
    }

    #[test]
    fn an_error_names_its_file() {
        let fail =
            timed(2, |_| std::fs::read("/no/such").map(drop).map_err(at(Path::new("/no/such"))));
        assert!(fail.unwrap_err().to_string().contains("/no/such: No such file"));
    }
}
