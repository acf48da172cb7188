//! The library's own log in the timeline, for a person who looks into one run: `MOOSENG_LOG=debug` beside a
//! single seed. Lines are printed and are no part of the trace, so that looking changes nothing.

use crate::trace;
use crate::world::here;
use std::fmt::{Debug, Write};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

struct Printer(Level);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Printer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("mooseng");
        // What openraft has to say below a warning is far too much.
        let raft = metadata.target().starts_with("openraft") && *metadata.level() <= Level::WARN;
        *metadata.level() <= self.0 && (ours || raft)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let (ns, target) = (trace::now_ns(), event.metadata().target());
        let (s, us) = (ns / 1_000_000_000, ns / 1000 % 1_000_000);
        println!("{s:>4}.{us:06} {:<6} [{target}]{}", here(), text.0);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// Prints the library's log if `MOOSENG_LOG` says from which level on.
pub fn install() {
    let level = std::env::var("MOOSENG_LOG").ok().and_then(|level| level.parse().ok());
    if let Some(level) = level {
        tracing::subscriber::set_global_default(Printer(level)).expect("the first one");
    }
}
