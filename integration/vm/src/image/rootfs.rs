//! The file tree of a guest: Debian packages first, then our few files, then a disk.
//!
//! Used by `image`. Never boots anything and never changes the machine outside the cache directory.

use crate::exec::{run, run_logged, step};
use crate::paths::{Paths, make_dir};
use crate::tools::{apt, find};
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is tested, what the product calls, what tests look with, the rivals it is measured against, and what runs pods.
const PACKAGES: &[&str] = &[
    "udev",
    "kmod",
    "mdadm",
    "nvme-cli",
    "xfsprogs",
    "e2fsprogs",
    "fio",
    "iproute2",
    "iputils-ping",
    "rdma-core",
    "ibverbs-providers",
    "openssh-server",
    "gdisk",
    "fdisk",
    "lvm2",
    "thin-provisioning-tools",
    "drbd-utils",
    "cryptsetup-bin",
    "ktls-utils",
    "iperf3",
    "jq",
    "strace",
    "procps",
    "util-linux",
    "dosfstools",
    "nftables",
    "libudev1",
    "busybox-static",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "systemd",
];

/// Never needed in a guest.
const EXCLUDED: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// The suite of everything but the kernel.
const SUITE: &str = "trixie";

/// Coldplug would load these for parts of the emulated chipset that nothing uses: seconds at each boot.
const BLACKLIST: &str = "blacklist lpc_ich\nblacklist iTCO_wdt\nblacklist i2c_i801\nblacklist pcspkr\n";

/// For guests that systemd runs. Programs in pods that do not hear SIGTERM would hold each reboot up for 90 s otherwise.
const SYSTEMD: &str = "[Manager]\nDefaultTimeoutStopSec=20s\nShowStatus=yes\n";
const LAB_SERVICE: &str = include_str!("files/lab.service");
const LAB_TARGET: &str = include_str!("files/lab.target");

/// Room for logs, core files and copies of test binaries; sparse, so unused room costs nothing.
const DISK_SIZE: &str = "6G";

/// What the package archive depends on.
pub(super) fn inputs() -> String {
    format!("{SUITE} {} {}", PACKAGES.join(","), EXCLUDED.join(","))
}

/// What the tree depends on besides, apart from the files of this directory.
pub(super) fn tree_inputs() -> String {
    format!("{BLACKLIST} {DISK_SIZE} {SYSTEMD} {LAB_SERVICE} {LAB_TARGET}")
}

/// The package archive, made by mmdebstrap or taken from the cache.
pub(super) fn ensure(paths: &Paths, key: &str) -> Result<PathBuf> {
    let archive = paths.rootfs().join(format!("{key}.tar"));
    if archive.is_file() {
        return Ok(archive);
    }
    make_dir(&paths.rootfs())?;
    step("collect the guests' Debian packages (about a minute)", || {
        let sources = paths.rootfs().join(format!("{key}.sources"));
        std::fs::write(&sources, apt::sources(&[SUITE])?).context("write the sources list")?;
        let part = paths.rootfs().join(format!("{key}.part.tar"));
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--variant=minbase", &format!("--include={}", PACKAGES.join(","))])
            .args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
            // An empty suite name: the suites are in the sources list.
            .arg("")
            .arg(&part)
            .arg(&sources);
        run_logged(&mut command, &paths.rootfs().join(format!("{key}.log")))?;
        std::fs::rename(&part, &archive).context("move the package archive into place")
    })?;
    Ok(archive)
}

/// Debian ships modules xz-compressed, which an emulated processor unpacks slowly at every boot.
pub(super) fn unpack_modules(tree: &Path, release: &str) -> Result<()> {
    let modules = tree.join("usr/lib/modules").join(release);
    run(Command::new("sh")
        .args(["-c", "find \"$1\" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P 2 xz --decompress", "sh"])
        .arg(&modules))?;
    let depmod = find("depmod").context("depmod is not installed")?;
    run(Command::new(depmod).arg("-b").arg(tree).arg(release)).map(drop)
}

/// Adds what makes the tree a guest: init, keys, a small sshd configuration.
pub(super) fn configure(tree: &Path, keys: &Path, init: &str, sshd_config: &str) -> Result<()> {
    let write = |path: &str, content: &str, mode: u32| -> Result<()> {
        let file = tree.join(path);
        // Debian's own file may be a link to somewhere outside the tree's view of the world.
        let _ = std::fs::remove_file(&file);
        std::fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("set mode of {}", file.display()))
    };
    write("usr/sbin/init", init, 0o755)?;
    write("etc/ssh/sshd_config", sshd_config, 0o644)?;
    write("etc/modprobe.d/lab.conf", BLACKLIST, 0o644)?;
    make_dir(&tree.join("etc/systemd/system.conf.d"))?;
    write("etc/systemd/system.conf.d/lab.conf", SYSTEMD, 0o644)?;
    write("etc/systemd/system/lab.service", LAB_SERVICE, 0o644)?;
    write("etc/systemd/system/default.target", LAB_TARGET, 0o644)?;
    let names = (0..9).map(|i| format!("10.77.0.{} node-{}\n", 11 + i, (b'a' + i) as char)).collect::<String>();
    write("etc/hosts", &format!("127.0.0.1 localhost\n10.0.2.2 host\n{names}"), 0o644)?;
    for (name, comment) in [("id_ed25519", "lab"), ("host_ed25519", "guest")] {
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
            .arg(keys.join(name)))?;
    }
    let read = |name: &str| std::fs::read_to_string(keys.join(name)).with_context(|| format!("read key {name}"));
    write("etc/ssh/ssh_host_ed25519_key", &read("host_ed25519")?, 0o600)?;
    write("etc/ssh/ssh_host_ed25519_key.pub", &read("host_ed25519.pub")?, 0o644)?;
    make_dir(&tree.join("root/.ssh"))?;
    make_dir(&tree.join("host"))?;
    make_dir(&tree.join("tools"))?;
    write("root/.ssh/authorized_keys", &read("id_ed25519.pub")?, 0o600)
}

/// Turns the tree into a qcow2 disk.
pub(super) fn make_disk(tree: &Path, disk: &Path) -> Result<()> {
    let raw = disk.with_extension("raw");
    let mke2fs = find("mke2fs").context("mke2fs is not installed")?;
    run(Command::new(mke2fs)
        .args(["-q", "-t", "ext4", "-L", "root", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", "-d"])
        .arg(tree)
        .arg(&raw)
        .arg(DISK_SIZE))?;
    run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(disk))?;
    std::fs::remove_file(&raw).context("remove the raw disk")
}
