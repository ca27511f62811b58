//! The files to check: every text file of the project, read once.
//!
//! Walks the directories itself instead of asking git, so that an unpacked source archive can be checked too and a file
//! that is not committed yet is not overlooked.

use anyhow::{Context, Result};
use std::path::Path;

/// Not ours, or made by a build.
const SKIPPED: &[&str] = &[".git", "target", "node_modules"];
/// Larger files are data, not text that somebody wrote.
const BYTES_MAX: u64 = 2 << 20;

/// A text file of the project.
#[derive(Debug, Clone)]
pub struct File {
    /// Path below the workspace, with forward slashes.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// All text files below `root`, by path.
pub fn files(root: &Path) -> Result<Vec<File>> {
    let mut found = Vec::new();
    walk(root, "", &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// One file that must be there; a missing one reads as empty, so that what it should hold is reported as missing.
pub fn read(root: &Path, path: &str) -> Result<File> {
    let text = match std::fs::read_to_string(root.join(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.with_context(|| format!("read {path}"))?,
    };
    Ok(File { path: path.to_string(), text })
}

fn walk(root: &Path, below: &str, found: &mut Vec<File>) -> Result<()> {
    let dir = root.join(below);
    for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        let kind = entry.file_type().with_context(|| format!("look at {path}"))?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            walk(root, &path, found)?;
        }
        if kind.is_file() && entry.metadata().is_ok_and(|m| m.len() <= BYTES_MAX) {
            // What is not UTF-8 is not text; what vanished while we walked is not there.
            found.extend(std::fs::read_to_string(entry.path()).ok().map(|text| File { path, text }));
        }
    }
    Ok(())
}
