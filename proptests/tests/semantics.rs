//! docs/SEMANTICS.md names a test for each promise: the tests exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[expect(clippy::disallowed_methods, reason = "the test reads the repository")]
fn sources(dir: &Path, found: &mut Vec<String>) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    #[expect(clippy::disallowed_methods, reason = "the test reads the repository")]
    let page = std::fs::read_to_string(root().join("docs/SEMANTICS.md")).expect("the page");
    let quoted = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> =
        quoted.filter(|q| q.contains("::")).filter_map(|q| q.rsplit("::").next()).collect();
    assert!(named.len() > 30, "{} tests named", named.len());
    let mut found = Vec::new();
    for room in ["src", "sim", "fuse", "daemons", "proptests"] {
        sources(&root().join(room), &mut found);
    }
    let exists = |name: &&str| found.iter().any(|text| text.contains(&format!("fn {name}(")));
    let missing: Vec<_> = named.iter().filter(|name| !exists(name) && **name != "c").collect();
    assert!(missing.is_empty(), "named in docs/SEMANTICS.md, not found: {missing:?}");
}
