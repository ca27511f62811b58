//! Small blocking reads and writes of kernel attribute files (sysfs, configfs, procfs), and listings of their folders.
//!
//! Called by the other files of this folder, only where blocking is allowed. It never retries and never interprets.

use crate::error::{KernelError, Result};
use crate::ops::Changed;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Larger than any attribute we read whole; `/proc/self/mountinfo` of a busy node is the longest.
const READ_MAX: u64 = 8 << 20;

/// The attribute's text without the trailing white space.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(READ_MAX).read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// The attribute's text; `None` when it cannot be read (gone, or not offered by this kernel).
pub fn read_opt(path: &Path) -> Option<String> {
    read(path).ok()
}

/// The attribute as a number.
pub fn read_number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    read_opt(path)?.parse().ok()
}

/// Writes an attribute in one system call: the kernel takes each `write` as one whole command.
pub fn write(op: &str, path: &Path, value: &str) -> Result<()> {
    let done =
        OpenOptions::new().write(true).truncate(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    done.map_err(|e| KernelError::io(format!("{op}: write {value:?}"), show(path), &e))
}

/// Writes an attribute unless it already reads so.
pub fn set(op: &str, path: &Path, value: &str) -> Result<Changed> {
    if read_opt(path).is_some_and(|now| now == value) {
        return Ok(Changed::No);
    }
    write(op, path, value)?;
    Ok(Changed::Yes)
}

/// Names in a folder, sorted; none when the folder does not exist.
pub fn list(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// [`list`] for folders whose absence or unreadability means "nothing there".
pub fn names(path: &Path) -> Vec<String> {
    list(path).unwrap_or_default()
}

/// A path as text for messages.
pub fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `Changed::Yes` when either is.
pub fn either(a: Changed, b: Changed) -> Changed {
    if a == Changed::Yes { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_already_reads_so_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attr");
        fs::write(&path, "1\n").unwrap();
        assert_eq!(set("test", &path, "1"), Ok(Changed::No));
        assert_eq!(set("test", &path, "0"), Ok(Changed::Yes));
        assert_eq!(read(&path).unwrap(), "0");
    }

    #[test]
    fn an_absent_folder_lists_as_empty_and_an_absent_attribute_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(list(&dir.path().join("none")).unwrap(), Vec::<String>::new());
        let error = write("test", &dir.path().join("none"), "1").unwrap_err();
        assert!(error.path.ends_with("none") && error.errno == Some(2), "{error:?}");
    }
}
