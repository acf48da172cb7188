//! What a long errand has done so far, in a file: the next start goes on from there.

use super::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is done, piece by piece. Another build, or other settings, would have found something else: they begin anew.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept<T> {
    build: String,
    settings: String,
    done: Vec<T>,
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl<T: Serialize + DeserializeOwned> Kept<T> {
    /// What the file has; nothing without one. `settings` are those that the pieces depend on.
    pub fn load(path: Option<&Path>, settings: &str) -> Result<Kept<T>, String> {
        let (build, settings) = (files::build()?, settings.to_owned());
        let fresh = Kept { build, settings, done: vec![], path: path.map(Path::to_owned) };
        let Some(path) = path else { return Ok(fresh) };
        let Some(text) = files::read_if_there(path)? else { return Ok(fresh) };
        let found: Kept<T> =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let same = (&found.build, &found.settings) == (&fresh.build, &fresh.settings);
        Ok(if same { Kept { path: fresh.path, ..found } } else { fresh })
    }

    /// All that is done.
    pub fn done(&self) -> &[T] {
        &self.done
    }

    /// One more is, and stands in the file.
    pub fn push(&mut self, piece: T) -> Result<(), String> {
        self.done.push(piece);
        let Some(path) = &self.path else { return Ok(()) };
        files::write(path, &serde_json::to_string(self).expect("what is kept prints"))
    }
}
