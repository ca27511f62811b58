//! Deterministic tar archives and digests: the same files give the same bytes on any machine, at any time.
//!
//! Used by the other files of this directory. Never keeps owners, times or an order that a directory happens to have.

use crate::exec::run;
use crate::paths::make_dir;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What fixes an archive's bytes: an order, no owners, no times, a format without extensions.
const SAME_BYTES: &[&str] =
    &["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"];

/// A file that goes into an image.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is in the image, without the first slash.
    pub path: String,
    /// The file of the host that is copied there.
    pub from: PathBuf,
    /// Permission bits.
    pub mode: u32,
}

impl Entry {
    /// A program, copied from the host.
    pub fn program(path: &str, from: &Path) -> Entry {
        Entry { path: path.into(), from: from.into(), mode: 0o755 }
    }
}

/// A layer of an image: an uncompressed archive, named by its digest. Unpacking costs more than reading in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where it lies.
    pub file: PathBuf,
    /// `sha256:…` of its bytes.
    pub digest: String,
    /// Their number.
    pub size: u64,
}

impl Layer {
    /// An archive that exists.
    pub fn of_archive(file: &Path) -> Result<Layer> {
        let (digest, size) = digest(file)?;
        Ok(Layer { file: file.into(), digest, size })
    }

    /// Archives these files; `dir` is removed first and holds the layer afterwards.
    pub(super) fn of_files(entries: &[Entry], dir: &Path) -> Result<Layer> {
        let tree = empty(&dir.join("tree"))?;
        for entry in entries {
            if entry.path.starts_with('/') || entry.path.split('/').any(|part| part.is_empty() || part == "..") {
                bail!("{:?} is not a path inside an image", entry.path);
            }
            let file = tree.join(&entry.path);
            make_dir(file.parent().unwrap_or(&tree))?;
            std::fs::copy(&entry.from, &file).with_context(|| format!("put {} into a layer", entry.path))?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(entry.mode))
                .with_context(|| format!("set mode of {}", file.display()))?;
        }
        let file = dir.join("layer.tar");
        pack(&tree, &file)?;
        Layer::of_archive(&file)
    }
}

/// Archives a directory's content. Directories are searchable by all, whatever the mask of who runs this.
pub(super) fn pack(tree: &Path, file: &Path) -> Result<()> {
    run(Command::new("find").arg(tree).args(["-type", "d", "-exec", "chmod", "755", "{}", "+"]))?;
    let mut names: Vec<_> = std::fs::read_dir(tree)
        .with_context(|| format!("list {}", tree.display()))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("list {}", tree.display()))?;
    names.sort();
    run(Command::new("tar").args(SAME_BYTES).arg("--create").arg("--file").arg(file).arg("-C").arg(tree).args(names))
        .map(drop)
}

/// A directory with nothing in it.
pub(super) fn empty(dir: &Path) -> Result<PathBuf> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("empty {}", dir.display()));
        }
        _ => {}
    }
    make_dir(dir)?;
    Ok(dir.to_path_buf())
}

/// Digest and size of a file.
pub(super) fn digest(file: &Path) -> Result<(String, u64)> {
    let mut source = std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match source.read(&mut buffer).with_context(|| format!("read {}", file.display()))? {
            0 => return Ok((named(hash), size)),
            count => {
                hash.update(buffer.get(..count).unwrap_or_default());
                size += count as u64;
            }
        }
    }
}

/// Digest of bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    named(Sha256::new_with_prefix(bytes))
}

fn named(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<Entry> {
        let entry = |path: &str, text: &str| {
            let from = dir.join(text);
            std::fs::write(&from, text).unwrap();
            Entry { path: path.into(), from, mode: 0o644 }
        };
        vec![entry("usr/bin/b", "content-two"), entry("usr/bin/a", "content-one")]
    }

    #[test]
    fn the_same_files_give_the_same_bytes_whatever_their_order_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let one = Layer::of_files(&entries(dir.path()), &dir.path().join("one")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let reversed: Vec<Entry> = entries(dir.path()).into_iter().rev().collect();
        let two = Layer::of_files(&reversed, &dir.path().join("two")).unwrap();
        assert_eq!((&one.digest, one.size), (&two.digest, two.size));
        let mut other = entries(dir.path());
        other[0].mode = 0o755;
        assert_ne!(one.digest, Layer::of_files(&other, &dir.path().join("three")).unwrap().digest);
    }

    #[test]
    fn paths_stay_inside_the_image() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a//b", ""] {
            let entry = Entry { path: path.into(), from: "/dev/null".into(), mode: 0o644 };
            assert!(Layer::of_files(&[entry], dir.path()).is_err(), "{path}");
        }
    }

    #[test]
    fn digests_are_those_of_sha256() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b""), empty);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"").unwrap();
        assert_eq!(digest(&dir.path().join("f")).unwrap(), (empty.to_string(), 0));
    }
}
