//! Where a panic came from: an `invariant!` of the library, another assertion or an `unwrap` of it, a crate that
//! it uses, or the simulator.

use crate::failure::{OWN_ASSERTION, PANIC};
use std::any::Any;
use std::panic;
use std::sync::{Mutex, PoisonError};

/// What panics said, and the file that each is in.
static SEEN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// From now on the places of panics are remembered.
pub fn watch() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or_else(String::new, |place| place.file().to_owned());
        let seen = (text(info.payload()).to_owned(), file);
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        before(info);
    }));
}

/// What it says.
pub fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

/// What stands as the oracle of the panic that says this.
pub fn oracle(message: &str) -> String {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = seen.iter().find(|(text, _)| text == message).map(|(_, file)| file.as_str());
    named(message, file)
}

fn named(message: &str, file: Option<&str>) -> String {
    match file {
        _ if message.starts_with("invariant: ") => OWN_ASSERTION.to_owned(),
        Some(file) => format!("{PANIC} in {}", place(file)),
        None => PANIC.to_owned(),
    }
}

/// The file, or the crate if it is not of this repository: where that lies is the machine's business.
fn place(file: &str) -> &str {
    match file.split_once("/registry/src/") {
        Some((_, rest)) => rest.split('/').nth(1).unwrap_or(rest),
        None => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_named_by_where_it_is() {
        let of = |file| named("index 3", Some(file));
        assert_eq!(of("src/wal/mod.rs"), "panic in src/wal/mod.rs");
        let elsewhere = "/home/x/.cargo/registry/src/index.crates.io-1/openraft-0.9.1/src/a.rs";
        assert_eq!(of(elsewhere), "panic in openraft-0.9.1");
        assert_eq!(named("index 3", None), "panic");
        assert_eq!(named("invariant: sorted", Some("src/a.rs")), "own assertion");
    }
}
