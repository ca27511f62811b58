//! A minimal initial RAM disk: busybox, a handful of modules in load order, a ten-line script.
//!
//! Used by `image`. Debian's own takes ten times as long to unpack under emulation. The archive format is "newc" cpio,
//! simple enough to write here; it is left uncompressed because unpacking costs more than reading.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::path::Path;

/// Modules of older series that newer ones have as part of the kernel.
const LIBRARY_SINCE_6_16: &[&str] = &["crc32c_generic"];

/// Builds the archive from an unpacked tree whose modules are uncompressed.
pub(super) fn build(tree: &Path, release: &str, modules: &[&str], init: &str) -> Result<Vec<u8>> {
    let base = tree.join("usr/lib/modules").join(release);
    let index = std::fs::read_to_string(base.join("modules.dep")).context("read modules.dep")?;
    let builtin = std::fs::read_to_string(base.join("modules.builtin")).context("read modules.builtin")?;
    let order = load_order(&index, &builtin, modules)?;
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "root"] {
        archive.add(dir, 0o040755, &[]);
    }
    archive.add("init", 0o100755, init.as_bytes());
    let busybox = std::fs::read(tree.join("usr/bin/busybox")).context("read busybox from the tree")?;
    archive.add("bin/busybox", 0o100755, &busybox);
    let mut names = String::new();
    for path in &order {
        let content = std::fs::read(base.join(path)).with_context(|| format!("read module {path}"))?;
        let name = file_name(path);
        archive.add(&format!("modules/{name}"), 0o100644, &content);
        names.push_str(name);
        names.push('\n');
    }
    archive.add("modules/order", 0o100644, names.as_bytes());
    Ok(archive.finish())
}

/// Module files so that each comes after those it needs. Modules built into the kernel need no file.
fn load_order(index: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let needs: HashMap<&str, Vec<&str>> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, rest)| (path, rest.split_whitespace().collect()))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let Some(path) = needs.keys().find(|path| module_name(path) == *module) else {
            if builtin.lines().any(|path| module_name(path) == *module) || LIBRARY_SINCE_6_16.contains(module) {
                continue;
            }
            bail!("the kernel has no module {module}");
        };
        // modules.dep lists all that a module needs, the deepest last.
        for needed in needs[path].iter().rev().chain([path]) {
            if !order.iter().any(|known| known == needed) {
                order.push((*needed).to_string());
            }
        }
    }
    Ok(order)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn module_name(path: &str) -> &str {
    file_name(path).split(".ko").next().unwrap_or(path)
}

/// A cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = content.len();
        let length = name.len() + 1;
        // magic, ino, mode, uid, gid, nlink, mtime, size, dev ×2, rdev ×2, name length, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size as u32, 0, 0, 0, 0, length as u32, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_modules_come_first_and_once() {
        let index = "k/fs/ext4.ko: k/lib/crc16.ko k/fs/mbcache.ko k/fs/jbd2.ko\nk/lib/crc16.ko:\nk/b/virtio_blk.ko:\n\
                     k/fs/jbd2.ko:\nk/fs/mbcache.ko:\n";
        let order = load_order(index, "kernel/lib/builtin_one.ko\n", &["virtio_blk", "ext4", "builtin_one"]).unwrap();
        assert_eq!(order, ["k/b/virtio_blk.ko", "k/fs/jbd2.ko", "k/fs/mbcache.ko", "k/lib/crc16.ko", "k/fs/ext4.ko"]);
        assert!(load_order(index, "", &["absent"]).is_err());
    }

    #[test]
    fn entries_are_aligned() {
        let mut archive = Archive::default();
        archive.add("ab", 0o100644, b"xyz");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..113], b"ab\0");
        assert_eq!(&bytes[116..119], b"xyz");
    }
}
