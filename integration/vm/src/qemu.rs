//! The command line of a guest: one processor, a root disk, three networks, empty NVMe slots.
//!
//! Used by `snapshot` and `guest`. Pure: builds arguments and names, starts nothing. Every listener is on loopback.

use crate::image::Image;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The storage network that all nodes share.
pub(crate) const STORAGE: &str = "stor0";
/// The way to the host's API server; a network of its own so that it can be cut while tests still look.
pub(crate) const API: &str = "api0";
/// NVMe drives of a guest: one for each sector size.
pub(crate) const SECTOR_SIZES: [u32; 2] = [4096, 512];

/// A multicast group on loopback is a switch that needs no privileges. Each lab (each run directory) has a port of its
/// own, so that two labs on one machine do not share a network.
fn switch(run: &Path) -> String {
    let sum = run
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    format!("230.0.0.77:{},localaddr=127.0.0.1", 10_000 + sum % 10_000)
}

/// A node of the lab: `node-a` is number 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) index: u8,
}

impl Node {
    pub(crate) fn name(&self) -> String {
        format!("node-{}", self.letter())
    }

    /// The address on the storage network.
    pub(crate) fn address(&self) -> String {
        format!("10.77.0.{}", 11 + self.index)
    }

    pub(crate) fn serial(&self, drive: usize) -> String {
        format!("ms{}{drive}", self.letter())
    }

    fn letter(&self) -> char {
        char::from(b'a' + self.index)
    }

    fn mac(&self, network: u8) -> String {
        format!("52:54:00:77:{network:02x}:{:02x}", self.index + 1)
    }
}

/// How a machine comes to life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// From the kernel, with these drives in their slots.
    Boot(Vec<usize>),
    /// From the state saved on the root disk; drives are added afterwards, QEMU cannot save them.
    Load,
}

/// All that a machine's command line depends on.
pub(crate) struct Machine<'a> {
    pub(crate) node: &'a Node,
    pub(crate) image: &'a Image,
    pub(crate) memory_mib: u32,
    pub(crate) root_disk: &'a Path,
    /// Holds sockets, logs and drives.
    pub(crate) dir: &'a Path,
    pub(crate) ssh_port: u16,
    pub(crate) share: &'a Path,
    pub(crate) tools: &'a Path,
}

impl Machine<'_> {
    pub(crate) fn arguments(&self, start: &Start) -> Vec<String> {
        let mut line = self.shape();
        line.extend(self.files());
        line.extend(self.networks());
        match start {
            Start::Load => line.extend(["-loadvm".into(), crate::snapshot::NAME.into()]),
            Start::Boot(drives) => {
                for drive in drives {
                    line.extend(["-blockdev".into(), blockdev(self.dir, *drive).to_string()]);
                    line.extend(["-device".into(), nvme_device(self.node, *drive).to_string()]);
                }
            }
        }
        line
    }

    /// What a saved state must find again: the machine without file names and ports.
    pub(crate) fn shape(&self) -> Vec<String> {
        let memory = format!("{}M", self.memory_mib);
        let append = format!(
            "root=/dev/vda console=ttyS0 quiet mitigations=off nokaslr nowatchdog random.trust_cpu=on net.ifnames=0 \
             no_timer_check panic=0 meshstor.node={} meshstor.index={}",
            self.node.name(),
            self.node.index
        );
        let mut line = words(&[
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
            "-machine",
            "q35,sata=off,smbus=off,i8042=off,vmport=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,svm=off",
            "-smp",
            "1",
            "-m",
            &memory,
            "-rtc",
            "base=utc",
            "-append",
            &append,
            "-device",
            "virtio-rng-pci",
            "-device",
            "isa-serial,chardev=console",
            "-device",
            "virtio-blk-pci,drive=root",
        ]);
        for (network, id) in [(0, STORAGE), (1, "mgmt0"), (2, API)] {
            let card = format!("virtio-net-pci,netdev={id},id={id}-card,mac={}", self.node.mac(network));
            line.extend(["-device".into(), card]);
        }
        for slot in 0..4 {
            line.extend(["-device".into(), format!("pcie-root-port,id=slot{slot},chassis={},slot={0}", slot + 1)]);
        }
        for tag in ["host", "tools"] {
            line.extend(["-device".into(), format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        line
    }

    fn files(&self) -> Vec<String> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        // cache=unsafe ignores only the host's fsync: what a guest wrote survives the end of QEMU, not of the host.
        words(&[
            "-kernel",
            &self.image.kernel().display().to_string(),
            "-initrd",
            &self.image.initramfs().display().to_string(),
            "-drive",
            &format!("file={},if=none,id=root,format=qcow2,cache=unsafe", self.root_disk.display()),
            "-chardev",
            &format!("file,id=console,path={},append=on", at("console.log")),
            "-qmp",
            &format!("unix:{},server=on,wait=off", at("monitor.sock")),
            "-fsdev",
            &format!("local,id=host,path={},security_model=none,readonly=on", self.share.display()),
            "-fsdev",
            &format!("local,id=tools,path={},security_model=none,readonly=on", self.tools.display()),
        ])
    }

    fn networks(&self) -> Vec<String> {
        // The way for ssh reaches nothing else; the way to the API server has the host at 10.0.2.2.
        words(&[
            "-netdev",
            &format!("socket,id={STORAGE},mcast={}", switch(self.dir.parent().unwrap_or(self.dir))),
            "-netdev",
            &format!(
                "user,id=mgmt0,net=10.0.3.0/24,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:{}-10.0.3.15:22",
                self.ssh_port
            ),
            "-netdev",
            &format!("user,id={API},net=10.0.2.0/24,ipv6=off"),
        ])
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_string()).collect()
}

/// The file behind a drive.
pub(crate) fn drive_file(dir: &Path, drive: usize) -> PathBuf {
    dir.join(format!("drive{drive}.raw"))
}

/// The host side of a drive, for `-blockdev` and for `blockdev-add`.
pub(crate) fn blockdev(dir: &Path, drive: usize) -> Value {
    let cache = json!({"direct": false, "no-flush": true});
    json!({
        "node-name": format!("disk{drive}"),
        "driver": "raw",
        "discard": "unmap",
        "detect-zeroes": "off",
        "cache": cache,
        "file": {"driver": "file", "filename": drive_file(dir, drive), "discard": "unmap", "cache": cache},
    })
}

/// The guest side of a drive, for `-device` and for `device_add`.
pub(crate) fn nvme_device(node: &Node, drive: usize) -> Value {
    let sector = SECTOR_SIZES[drive % SECTOR_SIZES.len()];
    json!({
        "driver": "nvme",
        "id": format!("nvme{drive}"),
        "bus": format!("slot{drive}"),
        "serial": node.serial(drive),
        "drive": format!("disk{drive}"),
        "logical_block_size": sector,
        "physical_block_size": sector,
    })
}

/// Receive buffer of the storage network's sockets. QEMU takes the host's default, 208 KiB, which a burst of 9000-byte
/// frames overruns: soft-RoCE then falls into retransmissions that take seconds each (38,000 frames lost in one mkfs).
const RECEIVE_BUFFER: u64 = 32 << 20;

/// Raises the host's default receive buffer, where this program may. It holds for sockets opened from now on.
pub(crate) fn make_room_for_frames() {
    let file = Path::new("/proc/sys/net/core/rmem_default");
    let now = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if now.is_none_or(|bytes| bytes < RECEIVE_BUFFER)
        && let Err(error) = std::fs::write(file, RECEIVE_BUFFER.to_string())
    {
        eprintln!("lab: {} stays as it is ({error}): RDMA between guests will be slow", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Paths;

    fn arguments(index: u8, start: &Start) -> Vec<String> {
        let paths = Paths::at(Path::new("/c")).unwrap();
        let image = Image::cached(&paths, "k");
        Machine {
            node: &Node { index },
            image: &image,
            memory_mib: 1024,
            root_disk: Path::new("/c/root"),
            dir: Path::new("/c/run/n"),
            ssh_port: 2222,
            share: Path::new("/s"),
            tools: Path::new("/t"),
        }
        .arguments(start)
    }

    #[test]
    fn every_listener_is_on_loopback() {
        for argument in arguments(0, &Start::Load) {
            if argument.contains("hostfwd") || argument.contains("mcast") {
                assert!(argument.contains("127.0.0.1"), "{argument}");
            }
        }
    }

    #[test]
    fn boot_has_its_drives_and_load_has_none() {
        let boot = arguments(1, &Start::Boot(vec![0, 1])).join("\n");
        assert!(boot.contains("\"serial\":\"msb0\"") && boot.contains("\"logical_block_size\":512"));
        assert!(!boot.contains("-loadvm"));
        let one_pulled = arguments(1, &Start::Boot(vec![1])).join("\n");
        assert!(!one_pulled.contains("msb0"));
        let load = arguments(1, &Start::Load).join("\n");
        assert!(load.contains("-loadvm") && !load.contains("nvme"));
    }

    #[test]
    fn nodes_differ() {
        let (a, b) = (Node { index: 0 }, Node { index: 1 });
        assert_eq!((a.name().as_str(), a.address().as_str()), ("node-a", "10.77.0.11"));
        assert_ne!(a.mac(0), b.mac(0));
        assert_ne!(arguments(0, &Start::Load), arguments(1, &Start::Load));
    }
}
