//! One run as a page for a browser: machines as lanes, zoom and filter, nothing loaded from anywhere.

use super::{Job, Report};
use crate::trace::Entry;
use serde::Serialize;

const PAGE: &str = include_str!("timeline.html");
/// Where the data goes in the page.
const PLACE: &str = "\"the data of the run\"";

#[derive(Serialize)]
struct Data<'a> {
    title: String,
    result: String,
    failed: bool,
    hash: String,
    end_ns: u64,
    entries: &'a [Entry],
}

/// The page of a run whose lines were all kept.
pub fn page(job: &Job, report: &Report, entries: &[Entry]) -> String {
    let mut title = format!("{}, seed {}", job.scenario, job.seed);
    if let Some(bug) = &job.bug {
        title += &format!(", planted bug {bug}");
    }
    let result = match &report.failure {
        Some(failure) => format!("{:?}: {}: {}", failure.kind, failure.oracle, failure.message),
        None => "nothing was broken".to_owned(),
    };
    let last = entries.iter().map(|entry| entry.time_ns).max().unwrap_or(0);
    let data = Data {
        title,
        result,
        failed: report.failure.is_some(),
        hash: format!("{:016x}", report.hash),
        end_ns: last.max(report.simulated_ms * 1_000_000),
        entries,
    };
    // Inside of a script element, so that nothing in it may end that.
    let text = serde_json::to_string(&data).expect("timelines print").replace('<', "\\u003c");
    PAGE.replacen(PLACE, &text, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Failure, Kind};
    use crate::trace::Kind as Line;

    fn entry(time_ns: u64, node: &str, kind: Line, text: &str) -> Entry {
        Entry { time_ns, node: node.to_owned(), kind, text: text.to_owned(), since_ns: None }
    }

    #[test]
    fn the_page_holds_the_run_and_needs_nothing_else() {
        let job = Job::new("cluster_chaos", 7).with_bug(Some("M21"));
        let failure = Failure {
            kind: Kind::Correctness,
            oracle: "O13".to_owned(),
            message: "s1 </script><b> lies".to_owned(),
        };
        let report = Report { failure: Some(failure), ..Report::empty(&job) };
        let entries = [
            entry(1, "m1", Line::Starts, "starts, incarnation 1"),
            Entry { since_ns: Some(2), ..entry(9, "c1", Line::Operation, "write: Ok(())") },
            entry(10, "-", Line::Broken, "O13 fails"),
        ];
        let page = page(&job, &report, &entries);
        for part in
            ["cluster_chaos, seed 7, planted bug M21", "O13 fails", "write: Ok(())", "\"m1\""]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains(PLACE), "the data is in");
        assert_eq!(page.matches("</script>").count(), 1, "nothing in the data ends the script");
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_page_knows_every_kind_of_line() {
        for kind in [
            Line::Note,
            Line::Phase,
            Line::Starts,
            Line::Ends,
            Line::Killed,
            Line::PowerLoss,
            Line::Stopped,
            Line::Continues,
            Line::Cut,
            Line::Mended,
            Line::Lag,
            Line::Clock,
            Line::Disk,
            Line::Role,
            Line::Operation,
            Line::Broken,
        ] {
            let name = serde_json::to_string(&kind).expect("prints");
            let name = name.trim_matches('"');
            assert!(PAGE.contains(&format!("{name}:")), "{name} has a colour in the page");
        }
    }
}
