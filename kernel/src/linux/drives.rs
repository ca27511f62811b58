//! The node's own NVMe drives: found in sysfs, read at both ends through the ring, told apart by the classifier.
//!
//! Called by the real kernel's `drives` and `drive`, and by the partition code to find its drive again. It never reads
//! a fabric namespace, never writes, and keeps nothing between two calls: device names change between boots.

use crate::error::{Class, KernelError, Result};
use crate::facts::{DriveClass, DriveFact, Extent};
use crate::id::DriveId;
use crate::linux::cache;
use crate::linux::classify::{self, Geometry, Verdict, WINDOW_BYTES, Window, free_extents};
use crate::linux::gpt;
use crate::linux::root::{Root, list, list_if_any, read_attr};
use crate::linux::uring::{ReadRequest, Ring};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[cfg(test)]
pub(crate) mod tests;

/// A drive that answers at all answers within this; the NVMe driver gives up on a command after 30 s.
pub const READ_DEADLINE: Duration = Duration::from_secs(5);
/// sysfs counts sizes in these whatever the device's block size (block/genhd.c: part_size_show).
const SYSFS_SECTOR: u64 = 512;

/// A namespace with a local transport, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Stable identity.
    pub id: DriveId,
    /// Kernel name (`nvme0n1`).
    pub name: String,
    /// Device node.
    pub path: String,
    /// Device numbers (`259:0`), which the node must have when it is opened for writing.
    pub numbers: Option<String>,
    /// Model of its controller.
    pub model: String,
    /// Serial number of its controller.
    pub serial: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub sector_bytes: u32,
    /// Whether it has a volatile write cache (`queue/write_cache`), on or off.
    pub has_cache: bool,
    /// Whether a volatile write cache is on, as far as is known.
    pub volatile_cache: bool,
    /// Boot id and `diskseq`: another value after a reboot and after the drive was away. Empty when that cannot be told.
    pub power: String,
    /// Why it is not for us whatever its bytes say: no identity, or one that another drive has too.
    pub ambiguous: Option<String>,
}

impl Namespace {
    /// Size and block size.
    pub fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.size_bytes, sector_bytes: self.sector_bytes }
    }
}

/// A partition as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPartition {
    /// Kernel name (`nvme0n1p2`).
    pub name: String,
    /// Device node.
    pub path: PathBuf,
    /// Device numbers, which the node must have when it is opened for writing.
    pub numbers: Option<String>,
    /// Where it lies.
    pub extent: Extent,
    /// Names in its `holders/`.
    pub holders: BTreeSet<String>,
}

// ---------------------------------------------------------------------------------------------- facts

/// Every drive with a local transport.
pub async fn scan(ring: &Ring, root: &Root) -> Result<Vec<DriveFact>> {
    let seen = look(root).await?;
    Ok(futures::future::join_all(seen.into_iter().map(|seen| observe(ring, seen))).await)
}

/// One drive; `None` when it is gone.
pub async fn one(ring: &Ring, root: &Root, id: &DriveId) -> Result<Option<DriveFact>> {
    match look(root).await?.into_iter().find(|seen| seen.namespace.id == *id) {
        Some(mut seen) => {
            seen.namespace = ask_cache(seen.namespace).await;
            Ok(Some(observe(ring, seen).await))
        }
        None => Ok(None),
    }
}

/// Asks the drive itself for its cache, for no longer than a read may take.
async fn ask_cache(namespace: Namespace) -> Namespace {
    let mut asked = namespace.clone();
    let task = tokio::task::spawn_blocking(move || {
        cache::ask(&mut asked);
        asked
    });
    match tokio::time::timeout(READ_DEADLINE, task).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(_)) | Err(_) => namespace,
    }
}

/// A drive as sysfs alone shows it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The namespace.
    pub namespace: Namespace,
    /// The partitions the kernel has on it.
    pub kernel: BTreeMap<u32, KernelPartition>,
    /// Why it is not for us whatever its bytes say.
    pub unfit: Option<String>,
}

/// Every drive in sysfs, on a thread that may block: an attribute of a controller under reset can take its time.
pub async fn look(root: &Root) -> Result<Vec<Seen>> {
    let (root, path) = (root.clone(), root.sys.display().to_string());
    let looked = tokio::task::spawn_blocking(move || {
        let see = |namespace: Namespace| {
            let (kernel, unfit) = match (kernel_partitions(&root, &namespace.name), unfit(&root, &namespace)) {
                (Ok(kernel), Ok(unfit)) => (kernel, unfit),
                // Not knowing who holds it is reason enough.
                (Err(error), _) | (_, Err(error)) => (BTreeMap::new(), Some(error.to_string())),
            };
            Seen { namespace, kernel, unfit }
        };
        namespaces(&root).map(|found| found.into_iter().map(see).collect())
    });
    looked.await.map_err(|e| KernelError::bug("list drives", path, e.to_string()))?
}

async fn observe(ring: &Ring, seen: Seen) -> DriveFact {
    let geometry = seen.namespace.geometry();
    let verdict = match read_ends(ring, &seen.namespace, WINDOW_BYTES).await {
        Ok((first, last)) => classify::classify(&seen.namespace.id, Window { geometry, first: &first, last: &last }),
        Err(error) => Verdict { class: DriveClass::Unreadable(error.detail), table: None },
    };
    fact(seen, verdict)
}

/// The first and the last `bytes` of a drive, past the page cache, at once.
pub async fn read_ends(ring: &Ring, namespace: &Namespace, bytes: u64) -> Result<(Vec<u8>, Vec<u8>)> {
    let len = bytes.min(namespace.size_bytes);
    let request = |offset| ReadRequest { path: namespace.path.clone(), offset, len: len as usize, direct: true };
    let ends = vec![request(0), request(namespace.size_bytes - len)];
    let mut results = ring.read_many(ends, READ_DEADLINE).await.into_iter();
    match (results.next(), results.next()) {
        (Some(first), Some(last)) => Ok((first?, last?)),
        _ => Err(KernelError::bug("read drive", namespace.path.clone(), "two reads gave fewer answers")),
    }
}

/// Puts together what the bytes and what sysfs say. sysfs can only take away.
fn fact(seen: Seen, verdict: Verdict) -> DriveFact {
    let Seen { namespace, kernel, unfit } = seen;
    let entries = verdict.entries();
    let stray = kernel.values().next().map(|p| format!("the kernel has a partition {} that no table lists", p.name));
    let class = match (unfit, verdict.class, stray) {
        (_, unreadable @ DriveClass::Unreadable(_), _) => unreadable,
        (Some(reason), _, _) => DriveClass::Theirs(reason),
        (None, DriveClass::Blank(_), Some(stray)) => DriveClass::Theirs(stray),
        (None, class, _) => class,
    };
    let usable = match (&class, &verdict.table) {
        (DriveClass::Ours | DriveClass::Shared, Some(table)) => table.usable,
        // What the label will leave between its two copies.
        (DriveClass::Blank(_), _) => gpt::label_space(namespace.geometry()),
        _ => Extent { start: 0, length: 0 },
    };
    let used = entries.values().map(|entry| entry.extent).chain(kernel.values().map(|p| p.extent));
    DriveFact {
        free: free_extents(usable, used),
        id: namespace.id,
        path: namespace.path,
        model: namespace.model,
        serial: namespace.serial,
        size_bytes: namespace.size_bytes,
        sector_bytes: namespace.sector_bytes,
        volatile_cache: namespace.volatile_cache,
        class,
        entries,
    }
}

// ---------------------------------------------------------------------------------------------- sysfs

/// One namespace by its identity. Refused while two drives answer to it.
pub fn find(root: &Root, id: &DriveId) -> Result<Namespace> {
    let found = namespaces(root)?.into_iter().find(|namespace| namespace.id == *id);
    let namespace =
        found.ok_or_else(|| KernelError::wait("find drive", id.0.clone(), "no drive of this name is here"))?;
    match &namespace.ambiguous {
        Some(why) => Err(KernelError::refuse("find drive", namespace.path.clone(), why.clone())),
        None => Ok(namespace),
    }
}

/// Every namespace with a local transport, in the order of their names.
pub fn namespaces(root: &Root) -> Result<Vec<Namespace>> {
    let class = root.sys.join("class/nvme");
    let mut found: BTreeMap<String, Namespace> = BTreeMap::new();
    for controller in list_if_any(&class)? {
        let at = class.join(&controller);
        // Fabric controllers are imports: their namespaces are members of arrays, never drives of this node.
        if read_attr(at.join("transport")).ok().as_deref() != Some("pcie") {
            continue;
        }
        for entry in list_if_any(&at)? {
            let Some(name) = disk_name(&entry) else { continue };
            if let Some(namespace) = namespace(root, &at, &name) {
                found.insert(name, namespace);
            }
        }
    }
    let mut found: Vec<Namespace> = found.into_values().collect();
    mark_ambiguous(&mut found);
    Ok(found)
}

/// The disk behind an entry of a controller's directory: `nvme0n1` is itself, `nvme0c1n1` is one path of the
/// multipath head `nvme0n1` (drivers/nvme/host/core.c: nvme_set_disk_name), which drives with two ports have.
fn disk_name(entry: &str) -> Option<String> {
    let numbers: Vec<&str> = entry.strip_prefix("nvme")?.split(['c', 'n']).collect();
    let valid = numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let shape: String = entry[4..].chars().filter(char::is_ascii_alphabetic).collect();
    match (valid, shape.as_str(), numbers.as_slice()) {
        (true, "n", [subsystem, nsid]) | (true, "cn", [subsystem, _, nsid]) => Some(format!("nvme{subsystem}n{nsid}")),
        _ => None,
    }
}

/// A namespace's attributes; `None` for one that is hidden or just going.
fn namespace(root: &Root, controller: &Path, name: &str) -> Option<Namespace> {
    let block = root.sys.join("block").join(name);
    let number = |attr: &str| read_attr(block.join(attr)).ok()?.parse::<u64>().ok();
    if number("hidden").unwrap_or(0) != 0 || foreign_head(&block) {
        return None;
    }
    let serial = read_attr(controller.join("serial")).ok()?;
    let nsid = number("nsid")?;
    let has_cache = read_attr(block.join("queue/write_cache")).ok()? == "write back";
    let boot = read_attr(root.proc.join("sys/kernel/random/boot_id")).ok();
    // Rises with every disk that appears, and no two of a boot share one (block/genhd.c).
    let power = boot.zip(number("diskseq")).map(|(boot, seq)| format!("{boot}/{seq}")).unwrap_or_default();
    let ambiguous = serial.is_empty().then(|| "its controller reports no serial number".to_string());
    Some(Namespace {
        id: drive_id(&serial, nsid),
        name: name.to_string(),
        path: root.dev.join(name).display().to_string(),
        numbers: read_attr(block.join("dev")).ok(),
        model: read_attr(controller.join("model")).unwrap_or_default(),
        serial,
        size_bytes: number("size")?.checked_mul(SYSFS_SECTOR)?,
        sector_bytes: u32::try_from(number("queue/logical_block_size")?).ok()?,
        volatile_cache: has_cache && cache::volatile(&power),
        has_cache,
        power,
        ambiguous,
    })
}

/// Whether some controller of a multipath head is a fabric one. The subsystem's directory holds links to all of them.
fn foreign_head(block: &Path) -> bool {
    let Ok(device) = std::fs::canonicalize(block) else { return false };
    let Some(parent) = device.parent() else { return false };
    let transports = list(parent).unwrap_or_default();
    transports.iter().filter_map(|name| read_attr(parent.join(name).join("transport")).ok()).any(|t| t != "pcie")
}

/// Serial number and namespace id in the characters of a Kubernetes name (RFC 1123 label: lower-case letters, digits
/// and inner hyphens).
pub fn drive_id(serial: &str, nsid: u64) -> DriveId {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = serial.trim().chars().map(plain).collect();
    let name = name.trim_matches('-');
    DriveId(format!("{}-{nsid}", if name.is_empty() { "unnamed" } else { name }))
}

/// Two drives with one identity are both untouchable: whatever was decided about one could hit the other.
fn mark_ambiguous(found: &mut [Namespace]) {
    let mut seen: BTreeMap<DriveId, Vec<String>> = BTreeMap::new();
    for namespace in found.iter() {
        seen.entry(namespace.id.clone()).or_default().push(namespace.name.clone());
    }
    for namespace in found.iter_mut() {
        match seen.get(&namespace.id) {
            Some(names) if names.len() > 1 => {
                namespace.ambiguous =
                    Some(format!("{} have the same serial number and namespace id", names.join(" and ")));
            }
            _ => {}
        }
    }
}

/// Why sysfs says that a drive is not for us; `None` when it does not.
pub fn unfit(root: &Root, namespace: &Namespace) -> Result<Option<String>> {
    let block = root.sys.join("block").join(&namespace.name);
    if let Some(why) = &namespace.ambiguous {
        return Ok(Some(why.clone()));
    }
    let holders = list(block.join("holders"))?;
    if !holders.is_empty() {
        return Ok(Some(format!("the whole drive is held by {}", holders.join(", "))));
    }
    if read_attr(block.join("ro"))? != "0" {
        return Ok(Some("the namespace is write-protected".into()));
    }
    // Kernels without zoned block devices have no such attribute.
    match read_attr(block.join("queue/zoned")) {
        Ok(zoned) if zoned != "none" => Ok(Some(format!("a zoned namespace ({zoned})"))),
        _ => Ok(None),
    }
}

/// The partitions the kernel has on a disk, by number.
pub fn kernel_partitions(root: &Root, disk: &str) -> Result<BTreeMap<u32, KernelPartition>> {
    let block = root.sys.join("block").join(disk);
    let mut partitions = BTreeMap::new();
    for name in list(&block)? {
        let at = block.join(&name);
        if !name.starts_with(disk) || !at.join("partition").exists() {
            continue;
        }
        match kernel_partition(root, &at, &name) {
            Ok((number, partition)) => partitions.insert(number, partition),
            // It went between the listing and the look.
            Err(error) if error.errno == Some(2) => continue,
            Err(error) => return Err(error),
        };
    }
    Ok(partitions)
}

fn kernel_partition(root: &Root, at: &Path, name: &str) -> Result<(u32, KernelPartition)> {
    let number = |attr: &str| -> Result<u64> {
        let text = read_attr(at.join(attr))?;
        let bad = |detail: String| KernelError::bug("read", at.join(attr).display().to_string(), detail);
        text.parse::<u64>().map_err(|e| bad(format!("{text:?} is not a number: {e}")))
    };
    let extent = Extent {
        start: number("start")?.saturating_mul(SYSFS_SECTOR),
        length: number("size")?.saturating_mul(SYSFS_SECTOR),
    };
    let holders = list(at.join("holders"))?.into_iter().collect();
    let (path, numbers) = (root.dev.join(name), read_attr(at.join("dev")).ok());
    let partition = KernelPartition { name: name.to_string(), path, numbers, extent, holders };
    Ok((u32::try_from(number("partition")?).unwrap_or(u32::MAX), partition))
}

/// Opens a device node that must be the device sysfs spoke of: a stale node of a drive that was replaced leads elsewhere.
pub fn open_node(path: &Path, numbers: Option<&str>, options: &OpenOptions) -> io::Result<File> {
    let file = options.open(path)?;
    let device = file.metadata()?.rdev();
    let found = format!("{}:{}", major(device), minor(device));
    match numbers {
        Some(numbers) if numbers != found => Err(io::Error::other(format!("the node is {found}, not {numbers}"))),
        _ => Ok(file),
    }
}

/// Opens a device for writing by its numbers, through a node of our own that is gone again at once.
///
/// udev watches the well-known nodes: when one that was open for writing is closed it re-reads the partition table of
/// a whole drive (BLKRRPART, which takes all partitions away for a moment when none is in use) and probes a partition
/// anew, upon which the stock rules may start an array on it. Watches go by inode, so a node of our own has none.
pub fn open_quietly(path: &Path, numbers: Option<&str>, options: &OpenOptions) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let device = numbers.and_then(|numbers| numbers.split_once(':'));
    let device = device.and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)));
    let Some(device) = device else { return open_node(path, numbers, options) };
    let own = path.with_file_name(format!(".meshstor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    if mknod(&own, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device).is_err() {
        // Without the right to make nodes: noisy, and as safe as before.
        return open_node(path, numbers, options);
    }
    let file = open_node(&own, numbers, options);
    std::fs::remove_file(&own)?;
    file
}

/// Whether a drive that could not be read may still hold what is looked for: one that did not answer may, one that
/// answered with an error holds nothing that can be used.
pub fn may_hold(error: &KernelError) -> bool {
    error.errno.is_none() && error.class != Class::Bug
}
