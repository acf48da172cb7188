//! Medians, spread and ratios.

use super::{Metric, Place, Sizes, caches};
use crate::cli::out;
use crate::cli::out::say;
use serde_json::{Value, json};

struct Line {
    metric: Metric,
    /// One list of values per place.
    values: Vec<Vec<f64>>,
}

pub(super) struct Report {
    places: Vec<String>,
    sizes: Sizes,
    lines: Vec<Line>,
}

impl Report {
    pub(super) fn new(places: &[Place], sizes: Sizes) -> Report {
        let places = places.iter().map(|place| place.name.clone()).collect();
        Report { places, sizes, lines: Vec::new() }
    }

    pub(super) fn add(&mut self, place: usize, metric: Metric, value: f64) {
        let found = self.lines.iter().position(|line| line.metric == metric);
        let index = found.unwrap_or_else(|| {
            self.lines.push(Line { metric, values: vec![Vec::new(); self.places.len()] });
            self.lines.len() - 1
        });
        self.lines[index].values[place].push(value);
    }

    pub(super) fn as_json(&self) -> Value {
        let place = |name: &String, values: &Vec<f64>| {
            let spread = Spread::of(values);
            json!({
                "dir": name,
                "median": spread.median,
                "min": spread.min,
                "max": spread.max,
                "values": values,
            })
        };
        let line = |line: &Line| {
            let places: Value = self
                .places
                .iter()
                .zip(&line.values)
                .map(|(name, values)| place(name, values))
                .collect();
            json!({
                "name": line.metric.name,
                "unit": line.metric.unit,
                "places": places,
                "ratio": line.ratio(),
            })
        };
        json!({
            "conditions": self.conditions(),
            "results": self.lines.iter().map(line).collect::<Value>(),
        })
    }

    fn conditions(&self) -> Value {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        json!({
            "rounds": self.sizes.rounds,
            "file_bytes": self.sizes.file_bytes,
            "small_files": self.sizes.files,
            "accesses": self.sizes.accesses,
            "caches": caches::describe(),
            "processors": std::thread::available_parallelism().map_or(1, usize::from),
            "kernel": kernel,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    pub(super) fn print(&self, as_json: bool) {
        if as_json {
            return out::json(&self.as_json());
        }
        say!(
            "medians of {} interleaved rounds (smallest to largest); {} MiB file, {} small files; {}\n",
            self.sizes.rounds,
            self.sizes.file_bytes >> 20,
            self.sizes.files,
            caches::describe()
        );
        let mut header = vec!["WORKLOAD", "UNIT"];
        header.extend(self.places.iter().map(String::as_str));
        if self.places.len() > 1 {
            header.push("RATIO");
        }
        out::table(&header, self.lines.iter().map(|line| line.row()));
    }
}

impl Line {
    /// Median of the first place over that of the second.
    fn ratio(&self) -> Option<f64> {
        let [first, second] = self.values.as_slice() else { return None };
        Some(Spread::of(first).median / Spread::of(second).median)
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![self.metric.name.to_owned(), self.metric.unit.to_owned()];
        row.extend(self.values.iter().map(|values| {
            let spread = Spread::of(values);
            format!("{:.0} ({:.0} to {:.0})", spread.median, spread.min, spread.max)
        }));
        row.extend(self.ratio().map(|ratio| format!("{ratio:.2}")));
        row
    }
}

#[derive(Debug, PartialEq)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Spread { min: 0.0, median: 0.0, max: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Spread { min: *min, median, max: *max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_lists() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
        assert_eq!(Spread::of(&[]).median, 0.0);
    }
}
