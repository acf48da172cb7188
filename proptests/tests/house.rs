//! Rules of the house that no compiler checks: floors, file lengths, nothing left to do.
#![expect(clippy::disallowed_methods, reason = "this test reads the sources")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules of `src/`, floor by floor. A module imports from lower floors, and on its own floor from what
/// stands before it.
const FLOORS: [&[&str]; 6] = [
    &["errno", "ids", "limits", "marks", "pb"],
    &["checksum", "seam", "codec", "erasure"],
    &["tables", "namespace", "placement"],
    &["wal", "wire"],
    &["raft", "store"],
    &["master", "chunkserver", "client"],
];

/// Longest source file, lines.
const LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

/// Every .rs file of the repository with its text, by path relative to the root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("readable directory") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                dirs.push(path);
            } else if name.ends_with(".rs") {
                let relative = path.strip_prefix(root()).expect("below the root");
                let text = std::fs::read_to_string(&path).expect("readable source");
                found.insert(relative.to_string_lossy().into_owned(), text);
            }
        }
    }
    assert!(found.len() > 20, "the sources are not where this test looks");
    found
}

fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let module = inside.split('/').next()?;
    Some(module.strip_suffix(".rs").unwrap_or(module)).filter(|module| *module != "lib")
}

/// What a line of code names right after `crate::`, also in `crate::{a, b::c}`.
fn crate_names(line: &str) -> BTreeSet<String> {
    let code = line.split("//").next().unwrap_or("");
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            None => _ = names.insert(word(rest)),
            Some(group) => names.extend(top_level(group).iter().map(|part| word(part))),
        }
    }
    names.remove("");
    names
}

/// The parts of `a, b::{c, d}, e}` that stand outside inner braces.
fn top_level(group: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(String::new()),
            _ => {}
        }
        parts.last_mut().expect("never empty").push(c);
    }
    parts.iter().map(|part| part.trim_start_matches(',').to_owned()).collect()
}

/// `use crate::{` may go on over several lines: such statements are put on one.
fn statements(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if open {
            lines.last_mut().expect("an open statement").push_str(line.trim());
        } else {
            lines.push(line.to_owned());
        }
        let last = lines.last().expect("just pushed");
        let import = last.contains("use crate::{") || last.contains("use super::");
        open = import && !last.contains(';');
    }
    lines
}

#[test]
fn modules_import_downwards_only() {
    let order: Vec<&str> = FLOORS.concat();
    let rank = |module: &str| order.iter().position(|known| *known == module);
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let Some(own) = rank(module) else {
            wrong.push(format!("{path}: module {module} has no floor"));
            continue;
        };
        for line in statements(&text) {
            for used in crate_names(&line) {
                if rank(&used).is_some_and(|used| used > own) {
                    wrong.push(format!("{path}: {module} must not use {used}: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_import_reader_sees_every_form() {
    let seen = |line: &str| crate_names(line).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(seen("use crate::wal::Wal;"), "wal");
    assert_eq!(
        seen("    let x = crate::raft::start(crate::limits::Limits::tiny());"),
        "limits raft"
    );
    assert_eq!(seen("use crate::{ids::{A, B}, pb, seam::{self, Disk}};"), "ids pb seam");
    assert_eq!(seen("// crate::raft is above"), "");
    assert_eq!(seen("$crate::marks::hit($name)"), "");
    let joined = statements("use crate::{\n    ids,\n    raft::X,\n};\nfn f() {}");
    assert_eq!(seen(&joined[0]), "ids raft");
    assert_eq!(joined.len(), 2);
}

#[test]
fn files_are_short() {
    let lengths = sources().into_iter().map(|(path, text)| (path, text.lines().count()));
    let long: Vec<String> = lengths
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "split these:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_to_do() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut left = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                left.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(left.is_empty(), "{}", left.join("\n"));
}
