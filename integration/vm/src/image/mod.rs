//! The guests' root disk: a Debian minbase with the stock kernel, made once and cached by the hash of its inputs.
//!
//! Called by `Lab::up`. Two stages, because they change at different speeds: the package archive (about 45 s) depends on
//! package names only, the disk (seconds) on that, on the kernel and on the files of this directory. Never kept in git.

mod initramfs;
mod kernel;
mod rootfs;

use crate::exec::{run, step};
use crate::paths::{Paths, make_dir, write_atomically};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use kernel::Choice;

/// Loaded at boot, so that a saved machine state has them: a test then never waits for a module.
const GUEST_MODULES: &[&str] = &[
    "configfs",
    "nvme",
    "nvmet",
    "nvmet-tcp",
    "nvmet-rdma",
    "nvme-tcp",
    "nvme-rdma",
    "raid1",
    "raid10",
    "xfs",
    "ext4",
    "rdma_rxe",
    "loop",
    "9p",
    "9pnet_virtio",
    "virtio_net",
];

/// Enough to mount the root disk.
const BOOT_MODULES: &[&str] = &["virtio_blk", "crc32c_generic", "ext4"];

const INIT: &str = include_str!("files/init");
const INITRD_INIT: &str = include_str!("files/initrd-init");
const SSHD_CONFIG: &str = include_str!("files/sshd_config");

/// Raise it when the way of building changes without a change of the inputs.
const FORMAT: &str = "1";

/// A finished image: everything a node needs to boot.
#[derive(Clone, Debug)]
pub struct Image {
    /// Names the image; changes with its inputs.
    pub key: String,
    dir: PathBuf,
}

impl Image {
    /// The root disk, qcow2, only ever used as a backing file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("root.qcow2")
    }

    /// The kernel, as Debian ships it.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Our own tiny initial RAM disk.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// The private key that opens every guest of this image.
    pub fn ssh_key(&self) -> PathBuf {
        self.dir.join("id_ed25519")
    }

    /// The kernel's full version, such as `6.12.107+deb13-amd64`.
    pub fn release(&self) -> Result<String> {
        std::fs::read_to_string(self.dir.join("release")).context("read the image's kernel release")
    }

    /// An image that exists already, by its key.
    pub(crate) fn cached(paths: &Paths, key: &str) -> Image {
        Image { key: key.to_string(), dir: paths.images().join(key) }
    }
}

/// Makes the image for a kernel such as `6.12` or `6.18`, or takes it from the cache.
pub fn ensure(paths: &Paths, kernel: &str) -> Result<Image> {
    let choice = Choice::parse(kernel)?;
    let packages_key = digest(&[FORMAT, &rootfs::inputs()]);
    let modules = format!("{} {}", GUEST_MODULES.join(" "), BOOT_MODULES.join(" "));
    let inputs = [&packages_key, &choice.inputs(), INIT, INITRD_INIT, SSHD_CONFIG, &modules, &rootfs::tree_inputs()];
    let key = digest(&inputs);
    let image = Image::cached(paths, &key);
    if image.dir.join("release").is_file() {
        return Ok(image);
    }
    let archive = rootfs::ensure(paths, &packages_key)?;
    let package = choice.download(paths)?;
    step(&format!("build root disk {key} (Linux {kernel})"), || build(paths, &choice, &archive, &package, &image))?;
    std::fs::remove_file(&package).context("remove the unpacked kernel package")?;
    Ok(image)
}

fn build(paths: &Paths, choice: &Choice, archive: &Path, package: &Path, image: &Image) -> Result<()> {
    let work = paths.images().join(format!("{}.part", image.key));
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    let tree = work.join("tree");
    make_dir(&tree)?;
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&tree))?;
    kernel::unpack(package, &tree)?;
    let release = release_in(&tree)?;
    let moved = |from: &Path, to: &str| {
        std::fs::rename(from, work.join(to)).with_context(|| format!("take {} out of the tree", from.display()))
    };
    moved(&tree.join(format!("boot/vmlinuz-{release}")), "vmlinuz")?;
    rootfs::unpack_modules(&tree, &release)?;
    let modules = [choice.boot_modules(), BOOT_MODULES].concat();
    std::fs::write(work.join("initramfs"), initramfs::build(&tree, &release, &modules, INITRD_INIT)?)
        .context("write the initramfs")?;
    rootfs::configure(&tree, &work, &INIT.replace("@MODULES@", &GUEST_MODULES.join(" ")), SSHD_CONFIG)?;
    rootfs::make_disk(&tree, &work.join("root.qcow2"))?;
    std::fs::remove_dir_all(&tree).context("remove the unpacked tree")?;
    write_atomically(&work.join("release"), release.as_bytes())?;
    if image.dir.exists() {
        std::fs::remove_dir_all(&image.dir).with_context(|| format!("remove unfinished {}", image.dir.display()))?;
    }
    std::fs::rename(&work, &image.dir).with_context(|| format!("move {} into place", image.dir.display()))
}

/// The version of the one kernel in the tree.
fn release_in(tree: &Path) -> Result<String> {
    let modules = tree.join("usr/lib/modules");
    let entry = std::fs::read_dir(&modules)
        .with_context(|| format!("list {}", modules.display()))?
        .next()
        .context("the tree has no kernel modules")?
        .context("read the kernel modules' directory")?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// A short name for a set of inputs.
pub(crate) fn digest(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hash.update(input.len().to_le_bytes());
        hash.update(input);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_depends_on_every_input_and_its_borders() {
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_eq!(digest(&["a"]).len(), 12);
    }

    #[test]
    fn init_gets_its_modules() {
        assert!(INIT.contains("modprobe -a @MODULES@"));
    }
}
