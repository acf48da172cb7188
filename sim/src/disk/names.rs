//! The names on one disk: the written tree, the durable one, and the changes between them in order.

use super::content::Outcome;
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A file, by its number.
    File(u64),
}

type Tree = BTreeMap<String, Node>;

/// One create, remove or rename: all of its names change together or not at all.
#[derive(Clone, Debug)]
struct Change(Vec<(String, Option<Node>)>);

impl Change {
    fn dirs(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(path, _)| parent(path))
    }

    fn apply(&self, tree: &mut Tree) {
        for (path, node) in &self.0 {
            match node {
                Some(node) => tree.insert(path.clone(), *node),
                None => tree.remove(path),
            };
        }
    }
}

/// Both trees. Paths are whole, the root is not in them.
#[derive(Clone, Default)]
pub struct Names {
    written: Tree,
    durable: Tree,
    pending: Vec<Change>,
}

/// The directory part of a path; `""` is the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Names {
    /// What the written name stands for.
    pub fn get(&self, path: &str) -> Option<Node> {
        if path.is_empty() { Some(Node::Dir) } else { self.written.get(path).copied() }
    }

    /// What the durable name stands for; `None` also if a directory above it is not durable.
    pub fn get_durable(&self, path: &str) -> Option<Node> {
        reachable(&self.durable, path).then(|| match path {
            "" => Some(Node::Dir),
            path => self.durable.get(path).copied(),
        })?
    }

    /// Sets names (`None` removes) as one change.
    pub fn change(&mut self, names: Vec<(String, Option<Node>)>) {
        let change = Change(names);
        change.apply(&mut self.written);
        self.pending.push(change);
    }

    /// Forgets all other names, durably.
    pub fn keep_only(&mut self, path: &str) {
        self.written.retain(|name, _| name == path);
        self.durable.retain(|name, _| name == path);
        self.pending.clear();
    }

    /// Written names in a directory.
    pub fn list(&self, dir: &str) -> Vec<String> {
        children(&self.written, dir)
    }

    /// Durable names in a directory.
    pub fn list_durable(&self, dir: &str) -> Vec<String> {
        if reachable(&self.durable, dir) { children(&self.durable, dir) } else { vec![] }
    }

    /// Makes every change in `dir` durable, with whatever those depend on.
    pub fn sync(&mut self, dir: &str) {
        let mut dirs = BTreeSet::from([dir.to_owned()]);
        let mut now: Vec<Change> = Vec::new();
        let mut later = Vec::new();
        while let Some(change) = self.pending.pop() {
            if change.dirs().any(|dir| dirs.contains(dir)) {
                dirs.extend(change.dirs().map(str::to_owned));
                now.push(change);
            } else {
                later.push(change);
            }
        }
        now.iter().rev().for_each(|change| change.apply(&mut self.durable));
        later.reverse();
        self.pending = later;
    }

    /// Un-synced changes.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Becomes what the power loss leaves. Returns how many changes were lost.
    pub fn power_loss(&mut self, outcome: Outcome, rng: &mut Rng, unit: &mut usize) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        let prefix = rng.index(pending.len() + 1);
        // Journals keep a prefix; other file systems any subset.
        let journal = rng.chance(1, 2);
        let mut lost = 0;
        for (at, change) in pending.iter().enumerate() {
            let kept = match outcome {
                Outcome::DropAll => false,
                Outcome::KeepAll => true,
                Outcome::Mixed if journal => at < prefix,
                Outcome::Mixed => rng.chance(1, 2),
                Outcome::Only(chosen) => chosen.keeps(*unit + at),
            };
            if kept {
                change.apply(&mut self.durable);
            } else {
                lost += 1;
            }
        }
        *unit += pending.len();
        let whole = self.durable.clone();
        self.durable.retain(|path, _| reachable(&whole, parent(path)));
        self.written = self.durable.clone();
        lost
    }

    /// Every file that some image or un-synced change still names.
    pub fn files(&self) -> BTreeSet<u64> {
        let pending = self.pending.iter().flat_map(|change| change.0.iter());
        let nodes = self.written.values().chain(self.durable.values()).copied();
        let nodes = nodes.chain(pending.filter_map(|(_, node)| *node));
        nodes.filter_map(file).collect()
    }

    /// Every file that has a written name.
    pub fn written_files(&self) -> BTreeSet<u64> {
        self.written.values().copied().filter_map(file).collect()
    }

    /// A written path of this file.
    pub fn path_of(&self, number: u64) -> Option<&str> {
        let named = self.written.iter().find(|(_, node)| **node == Node::File(number));
        named.map(|(path, _)| path.as_str())
    }

    /// Written paths of files, sorted.
    pub fn paths(&self) -> Vec<String> {
        let files = self.written.iter().filter(|(_, node)| **node != Node::Dir);
        files.map(|(path, _)| path.clone()).collect()
    }
}

fn file(node: Node) -> Option<u64> {
    match node {
        Node::File(number) => Some(number),
        Node::Dir => None,
    }
}

/// Whether every directory above and at `dir` exists (for a file: above it).
fn reachable(tree: &Tree, path: &str) -> bool {
    let mut dir = path;
    while !dir.is_empty() {
        if dir != path && tree.get(dir) != Some(&Node::Dir) {
            return false;
        }
        dir = parent(dir);
    }
    path.is_empty() || tree.contains_key(path)
}

fn children(tree: &Tree, dir: &str) -> Vec<String> {
    let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    let below = tree.range(prefix.clone()..).map(|(path, _)| path);
    let below = below.take_while(|path| path.starts_with(&prefix));
    below
        .map(|path| &path[prefix.len()..])
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect()
}
