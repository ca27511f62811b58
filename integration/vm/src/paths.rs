//! Where the lab keeps its files: one cache directory outside the source tree.
//!
//! Used by every other module. Never holds anything that cannot be rebuilt by running the lab again.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Unix socket paths are limited to 107 bytes, and ssh appends 17 of its own while it creates one.
const LONGEST_SOCKET_PATH: usize = 88;

/// The lab's directories.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// `$MESHSTOR_CACHE`, or `~/.cache/meshstor`.
    pub fn from_env() -> Result<Paths> {
        if let Some(dir) = std::env::var_os("MESHSTOR_CACHE") {
            return Paths::at(Path::new(&dir));
        }
        let home = std::env::var_os("HOME").context("neither MESHSTOR_CACHE nor HOME is set")?;
        Paths::at(&Path::new(&home).join(".cache/meshstor"))
    }

    /// The same layout below another directory.
    pub fn at(root: &Path) -> Result<Paths> {
        let paths = Paths { root: std::path::absolute(root)? };
        let longest = paths.node("node-a").join("monitor.sock");
        if longest.as_os_str().len() > LONGEST_SOCKET_PATH {
            bail!("{} is too long a path for unix sockets: set MESHSTOR_CACHE to a shorter one", longest.display());
        }
        Ok(paths)
    }

    /// The cache directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Programs that guests may run, shared with them read-only at `/tools`.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Root disks, one directory for each set of inputs.
    pub fn images(&self) -> PathBuf {
        self.root.join("image")
    }

    /// Unpacked-package archives, the slow part of an image.
    pub fn rootfs(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// Container images and their parts.
    pub fn containers(&self) -> PathBuf {
        self.root.join("container")
    }

    /// Saved machine states, one directory for each image and machine shape.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshot")
    }

    /// Everything about what runs now.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// One running node.
    pub fn node(&self, name: &str) -> PathBuf {
        self.run().join(name)
    }

    /// The control plane that runs now.
    pub fn control(&self) -> PathBuf {
        self.run().join("control")
    }
}

/// Creates a directory and its parents.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("create directory {}", path.display()))
}

/// Writes a whole file or nothing: readers see the old content or the new one.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".part{}", std::process::id()));
    std::fs::write(&part, content).with_context(|| format!("write {}", Path::new(&part).display()))?;
    std::fs::rename(&part, path).with_context(|| format!("rename to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_root_too_deep_for_sockets() {
        assert!(Paths::at(Path::new("/tmp/lab")).is_ok());
        assert!(Paths::at(Path::new(&format!("/tmp/{}", "x".repeat(80)))).is_err());
    }

    #[test]
    fn writes_replace_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        write_atomically(&file, b"one").unwrap();
        write_atomically(&file, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
