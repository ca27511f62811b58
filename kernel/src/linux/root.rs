//! Where the kernel's trees are: the host's own, or a fake tree in a test. With them the two smallest readers.
//!
//! Used by every file of the real bindings, so that no other one spells `/sys` or `/dev`. It never writes.

use crate::error::{KernelError, Result};
use std::io;
use std::path::{Path, PathBuf};

/// The trees the real bindings work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// sysfs.
    pub sys: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// configfs (nvmet).
    pub configfs: PathBuf,
    /// Run-time directory (udev database and rules).
    pub run: PathBuf,
    /// Configuration of the host (udev rules that outlive a boot).
    pub etc: PathBuf,
}

impl Root {
    /// The trees of the running system.
    pub fn host() -> Root {
        Root {
            sys: "/sys".into(),
            dev: "/dev".into(),
            proc: "/proc".into(),
            configfs: "/sys/kernel/config".into(),
            run: "/run".into(),
            etc: "/etc".into(),
        }
    }

    /// The same trees below a directory, for tests.
    pub fn at(dir: impl AsRef<Path>) -> Root {
        let dir = dir.as_ref();
        Root {
            sys: dir.join("sys"),
            dev: dir.join("dev"),
            proc: dir.join("proc"),
            configfs: dir.join("sys/kernel/config"),
            run: dir.join("run"),
            etc: dir.join("etc"),
        }
    }
}

/// An attribute's text without the white space around it.
pub fn read_attr(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map(|text| text.trim().to_string()).map_err(|e| failed("read", path, &e))
}

/// Names in a directory, sorted. A directory that does not exist is an error: an absent `holders/` must never be
/// taken for an empty one.
pub fn list(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let dir = dir.as_ref();
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    read().map_err(|e| failed("list", dir, &e))
}

/// Names in a directory, sorted; none when it does not exist. For directories whose absence means "nothing there",
/// such as `class/nvme` before the driver is loaded.
pub fn list_if_any(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let dir = dir.as_ref();
    // try_exists tells "absent" from "could not look".
    match dir.try_exists() {
        Ok(false) => Ok(Vec::new()),
        Ok(true) => list(dir),
        Err(e) => Err(failed("list", dir, &e)),
    }
}

/// An I/O error on a path, in the words of [`KernelError`].
pub fn failed(op: &str, path: &Path, error: &io::Error) -> KernelError {
    KernelError::io(op, path.display().to_string(), error)
}

/// A directory for tests that read past the page cache: beside the test program, where `/tmp` may be a file system
/// without `O_DIRECT`.
#[cfg(test)]
pub(crate) fn scratch() -> tempfile::TempDir {
    let beside = std::env::current_exe().unwrap();
    tempfile::tempdir_in(beside.parent().unwrap()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_trimmed_and_lists_sorted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            std::fs::write(dir.path().join(name), " 1\n").unwrap();
        }
        assert_eq!(read_attr(dir.path().join("a")).unwrap(), "1");
        assert_eq!(list(dir.path()).unwrap(), ["a", "b"]);
    }

    #[test]
    fn an_absent_directory_is_an_error_unless_asked_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("holders");
        assert_eq!(list(&absent).unwrap_err().errno, Some(2));
        assert_eq!(list_if_any(&absent).unwrap(), Vec::<String>::new());
        assert_eq!(read_attr(&absent).unwrap_err().errno, Some(2));
    }
}
