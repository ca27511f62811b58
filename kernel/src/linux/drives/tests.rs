//! Drives on fake trees: which are found, under which identity, and what sysfs can take away from a blank one.

use super::*;
use crate::linux::gpt::tests::{Drive, foreign, ours};
use crate::linux::root::scratch;
use crate::linux::uring::Engine;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use uuid::Uuid;

/// A node with NVMe drives whose bytes lie in plain files.
pub(crate) struct Node {
    _dir: tempfile::TempDir,
    pub root: Root,
}

pub(crate) const SIZE: u64 = 256 << 20;

impl Node {
    pub fn new() -> Node {
        let dir = scratch();
        let root = Root::at(dir.path());
        for path in [&root.dev, &root.sys.join("block"), &root.sys.join("class/nvme")] {
            std::fs::create_dir_all(path).unwrap();
        }
        Node { _dir: dir, root }
    }

    pub fn ring(&self) -> Ring {
        Ring::start_with(self.root.clone(), Engine::detect())
    }

    pub fn attrs(&self, at: &Path, attrs: &[(&str, &str)]) {
        for (name, value) in attrs {
            let path = at.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
    }

    /// A controller with one namespace on it, without multipath.
    pub fn drive(&self, instance: u32, serial: &str, sector_bytes: u32) -> PathBuf {
        let controller = self.controller(instance, "pcie", serial);
        let name = format!("nvme{instance}n1");
        self.disk(&controller.join(&name), &name, sector_bytes)
    }

    pub fn controller(&self, instance: u32, transport: &str, serial: &str) -> PathBuf {
        let name = format!("nvme{instance}");
        let at = self.root.sys.join("devices").join(&name);
        self.attrs(&at, &[("transport", transport), ("serial", serial), ("model", "Fast Drive"), ("state", "live")]);
        symlink(&at, self.root.sys.join("class/nvme").join(&name)).unwrap();
        at
    }

    pub fn disk(&self, at: &Path, name: &str, sector_bytes: u32) -> PathBuf {
        let (size, sector) = ((SIZE / 512).to_string(), sector_bytes.to_string());
        self.attrs(at, &[("size", &size), ("nsid", "1"), ("ro", "0"), ("hidden", "0")]);
        self.attrs(at, &[("queue/logical_block_size", &sector), ("queue/write_cache", "write through")]);
        std::fs::create_dir_all(at.join("holders")).unwrap();
        symlink(at, self.root.sys.join("block").join(name)).unwrap();
        let node = self.root.dev.join(name);
        File::create(&node).unwrap().set_len(SIZE).unwrap();
        node
    }

    /// Makes the kernel have a partition; its node is a file of its own.
    pub fn partition(&self, disk: &str, number: u32, extent: Extent) -> PathBuf {
        let name = format!("{disk}p{number}");
        let at = self.root.sys.join("block").join(disk).join(&name);
        let (start, size) = ((extent.start / 512).to_string(), (extent.length / 512).to_string());
        self.attrs(&at, &[("partition", &number.to_string()), ("start", &start), ("size", &size)]);
        std::fs::create_dir_all(at.join("holders")).unwrap();
        let node = self.root.dev.join(name);
        File::create(&node).unwrap().set_len(extent.length).unwrap();
        node
    }
}

pub(crate) fn write(node: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(node).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// Writes a partition table to a drive.
pub(crate) fn put_table(node: &Path, sector: u32, label: Uuid, entries: &[(u32, crate::facts::PartitionEntry)]) {
    let mut ends = Drive::blank(sector, SIZE);
    ends.table(label, entries);
    write(node, 0, &ends.first);
    write(node, SIZE - ends.last.len() as u64, &ends.last);
}

async fn scanned(node: &Node) -> Vec<DriveFact> {
    scan(&node.ring(), &node.root).await.unwrap()
}

fn reason(fact: &DriveFact) -> &str {
    match &fact.class {
        DriveClass::Theirs(reason) => reason,
        other => panic!("not theirs: {other:?}"),
    }
}

#[tokio::test]
async fn no_driver_means_no_drives() {
    let node = Node::new();
    std::fs::remove_dir(node.root.sys.join("class/nvme")).unwrap();
    assert_eq!(scanned(&node).await, []);
}

#[tokio::test]
async fn a_drive_is_described_whole() {
    let node = Node::new();
    let path = node.drive(0, "S4EV_NF0 M1", 4096);
    node.attrs(&node.root.sys.join("block/nvme0n1"), &[("queue/write_cache", "write back")]);
    let facts = scanned(&node).await;
    let [fact] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(fact.id, DriveId("s4ev-nf0-m1-1".into()));
    assert_eq!(fact.path, path.display().to_string());
    assert_eq!((fact.model.as_str(), fact.serial.as_str()), ("Fast Drive", "S4EV_NF0 M1"));
    assert_eq!((fact.size_bytes, fact.sector_bytes, fact.volatile_cache), (SIZE, 4096, true));
    assert!(matches!(fact.class, DriveClass::Blank(_)));
    assert_eq!(fact.free, [Extent { start: 1 << 20, length: SIZE - (2 << 20) }]);
    assert_eq!(one(&node.ring(), &node.root, &fact.id).await.unwrap().as_ref(), Some(fact));
    assert_eq!(one(&node.ring(), &node.root, &DriveId("x-1".into())).await.unwrap(), None);
}

#[test]
fn identities_are_valid_names() {
    for (serial, expected) in
        [("S1", "s1-7"), ("  _A b._", "a-b-7"), ("", "unnamed-7"), ("é", "unnamed-7"), ("vol0abc.d", "vol0abc-d-7")]
    {
        assert_eq!(drive_id(serial, 7).0, expected);
    }
}

#[test]
fn names_of_disks_are_told_from_everything_else() {
    for (entry, expected) in [
        ("nvme0n1", Some("nvme0n1")),
        ("nvme12c3n45", Some("nvme12n45")),
        ("nvme0", None),
        ("ng0n1", None),
        ("nvme0n1p1", None),
        ("nvme0n", None),
        ("nvme0nc1", None),
        ("nvme0c1", None),
        ("hwmon0", None),
    ] {
        assert_eq!(disk_name(entry).as_deref(), expected, "{entry}");
    }
}

#[tokio::test]
async fn imports_and_hidden_disks_are_no_drives() {
    let node = Node::new();
    let tcp = node.controller(3, "tcp", "S3");
    node.disk(&tcp.join("nvme3n1"), "nvme3n1", 512);
    node.drive(4, "S4", 512);
    node.attrs(&node.root.sys.join("block/nvme4n1"), &[("hidden", "1")]);
    assert_eq!(scanned(&node).await, []);
}

/// A drive with two ports: two controllers, each with a hidden path, and the head below the subsystem.
#[tokio::test]
async fn a_multipath_head_is_one_drive_unless_a_path_is_an_import() {
    for (second, expected) in [("pcie", 1), ("tcp", 0)] {
        let node = Node::new();
        let subsystem = node.root.sys.join("devices/nvme-subsys0");
        node.disk(&subsystem.join("nvme0n1"), "nvme0n1", 512);
        for (instance, transport) in [(0, "pcie"), (1, second)] {
            let controller = node.controller(instance, transport, "S1");
            std::fs::create_dir_all(controller.join(format!("nvme0c{instance}n1"))).unwrap();
            symlink(&controller, subsystem.join(format!("nvme{instance}"))).unwrap();
        }
        let facts = scanned(&node).await;
        assert_eq!(facts.len(), expected, "{second}");
        assert!(facts.iter().all(|fact| fact.path.ends_with("nvme0n1")));
    }
}

#[tokio::test]
async fn two_drives_with_one_identity_are_both_refused() {
    let node = Node::new();
    node.drive(0, "SAME", 512);
    node.drive(1, "same", 512);
    let facts = scanned(&node).await;
    assert_eq!(facts.len(), 2);
    assert!(facts.iter().all(|fact| reason(fact).contains("nvme0n1 and nvme1n1")));
    assert!(find(&node.root, &DriveId("same-1".into())).unwrap_err().detail.contains("same serial number"));
}

#[tokio::test]
async fn what_sysfs_knows_keeps_us_away_from_a_blank_drive() {
    let block = "block/nvme0n1";
    type Spoil = fn(&Node, &Path);
    let cases: [(&str, Spoil, &str); 5] = [
        ("holder", |_, at| std::fs::create_dir(at.join("holders/md127")).unwrap(), "held by md127"),
        ("read-only", |node, at| node.attrs(at, &[("ro", "1")]), "write-protected"),
        ("zoned", |node, at| node.attrs(at, &[("queue/zoned", "host-managed")]), "zoned"),
        (
            "partition",
            |node, _| drop(node.partition("nvme0n1", 1, Extent { start: 1 << 20, length: 1 << 20 })),
            "partition nvme0n1p1 that no table lists",
        ),
        ("no holders directory", |_, at| std::fs::remove_dir(at.join("holders")).unwrap(), "list"),
    ];
    for (name, spoil, expected) in cases {
        let node = Node::new();
        node.drive(0, "S1", 512);
        spoil(&node, &node.root.sys.join(block));
        let facts = scanned(&node).await;
        assert!(reason(&facts[0]).contains(expected), "{name}: {:?}", facts[0].class);
        assert_eq!(facts[0].free, [], "{name}");
    }
}

#[tokio::test]
async fn space_is_free_only_where_table_and_kernel_agree() {
    for sector in [512, 4096] {
        let node = Node::new();
        let path = node.drive(0, "S1", sector);
        put_table(&path, sector, Uuid::from_u128(9), &[(1, ours(1, 1, 9)), (2, foreign(2, 100, 10))]);
        node.partition("nvme0n1", 7, Extent { start: 50 << 20, length: 10 << 20 });
        let facts = scanned(&node).await;
        assert_eq!(facts[0].class, DriveClass::Shared);
        assert_eq!(facts[0].entries.len(), 2);
        let free: Vec<(u64, u64)> = facts[0].free.iter().map(|e| (e.start >> 20, e.end() >> 20)).collect();
        assert_eq!(free, [(10, 50), (60, 100), (110, 255)]);
    }
}

#[tokio::test]
async fn a_drive_that_cannot_be_read_is_unreadable() {
    let node = Node::new();
    let path = node.drive(0, "S1", 512);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(scanned(&node).await[0].class, DriveClass::Unreadable(_)));
    File::create(&path).unwrap().set_len(SIZE / 2).unwrap();
    assert!(matches!(scanned(&node).await[0].class, DriveClass::Unreadable(_)));
}

#[test]
fn a_node_that_is_another_device_is_not_opened() {
    let node = Node::new();
    let path = node.drive(0, "S1", 512);
    let mut options = OpenOptions::new();
    options.read(true);
    assert!(open_node(&path, None, &options).is_ok());
    let error = open_node(&path, Some("259:0"), &options).unwrap_err();
    assert!(error.to_string().contains("not 259:0"), "{error}");
}

#[test]
fn opening_quietly_leaves_no_node_behind() {
    let node = Node::new();
    let path = node.drive(0, "S1", 512);
    let mut options = OpenOptions::new();
    options.read(true);
    assert!(open_quietly(&path, None, &options).is_ok());
    let before = list(&node.root.dev).unwrap();
    // No such device: with the right to make nodes the open fails, without it the well-known node is another one.
    assert!(open_quietly(&path, Some("259:1048575"), &options).is_err());
    assert_eq!(list(&node.root.dev).unwrap(), before);
}
