//! Files of the harness in the real world: states of sweeps, recipes, timelines.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the harness lives in the real world: it keeps what it found in real files"
)]

use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes a file whole or not at all.
pub fn write(path: &Path, text: &str) -> Result<(), String> {
    let new = path.with_extension("new");
    let written = (|| {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads a file.
pub fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads a file that may not be there.
pub fn read_if_there(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Names this program's build: what one build found says nothing about another.
pub fn build() -> Result<String, String> {
    let read = std::env::current_exe().and_then(fs::read);
    let bytes = read.map_err(|error| format!("own executable: {error}"))?;
    Ok(format!("{:08x}-{}", mooseng::checksum::crc32c(&bytes), bytes.len()))
}
