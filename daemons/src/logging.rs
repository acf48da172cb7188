//! Log lines on standard error or in a file, as text or JSON.

use crate::config::{Log, LogFormat};
use crate::fail::Fail;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::sync::Mutex;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Other people's crates speak only when something is wrong.
const DEFAULT_LEVEL: &str = "info,openraft=error,fuser=error,h2=error,tonic=error";

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(log: &Log) -> Result<(), Fail> {
    let wrong =
        |level: &str, why: &dyn Display| Fail::usage(format!("[log] level `{level}`: {why}"));
    let level = match log.level.as_deref() {
        Some(level) if !level.contains(['=', ',']) => {
            // A bare level keeps the quiet of other people's crates.
            let level: LevelFilter = level.parse().map_err(|e| wrong(level, &e))?;
            DEFAULT_LEVEL.replacen("info", &level.to_string(), 1)
        }
        Some(level) => level.to_owned(),
        None => DEFAULT_LEVEL.to_owned(),
    };
    let targets: Targets = level.parse().map_err(|e| wrong(&level, &e))?;
    let writer = match &log.file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            let file =
                file.map_err(|e| Fail::usage(format!("[log] file {}: {e}", path.display())))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    let layer = fmt::layer().with_writer(writer).with_ansi(false);
    let layer = match log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_level_is_refused() {
        let log = Log { level: Some("loud".into()), ..Log::default() };
        assert_eq!(start(&log).unwrap_err().code(), 2);
    }
}
