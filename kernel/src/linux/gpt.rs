//! Edits of a drive's partition table, made in this process, under the lock that other partitioners respect.
//!
//! ```text
//!  lock ─▶ read + classify ─▶ change one entry ─▶ write backup ─▶ fsync ─▶ write primary ─▶ fsync ─▶ read back
//! ```
//!
//! Called by the partition operations, on threads that may block. It never touches an entry that is not of our type,
//! never writes to a drive that the classifier does not call ours or shared, and never moves an entry to another number
//! (`gptman` keeps them, other crates compact). A process killed between any two steps leaves a table that the
//! classifier recognises as an edit of ours cut short; the next edit writes both copies again.

use crate::error::{KernelError, Result};
use crate::facts::{ALIGNMENT, BlankDrive, DriveClass, Extent, PartitionEntry};
use crate::id::{DriveId, PARTITION_TYPE};
use crate::linux::classify::table::{ENTRY_BYTES, Table};
use crate::linux::classify::{self, Geometry, Verdict, WINDOW_BYTES, Window, free_extents};
use crate::linux::drives::{self, Namespace};
use crate::linux::ioctl::{AlignedBuf, O_DIRECT};
use crate::linux::root::Root;
use crate::ops::Changed;
use nix::libc::O_EXCL;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use uuid::Uuid;

mod image;
#[cfg(test)]
pub(crate) mod tests;

use image::{Image, slots_of};

/// How long to wait for another partitioner (udev's prober holds the lock for a moment, sfdisk while it runs).
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Linux numbers no partition higher (`DISK_MAX_PARTS` in include/linux/genhd.h, now blkdev.h).
const HIGHEST_NUMBER: u32 = 255;

/// A drive's table, locked against every well-behaved partitioner for as long as this value lives.
pub struct Editor {
    file: File,
    /// Holds the lock.
    _locked: File,
    device: PathBuf,
    drive: DriveId,
    geometry: Geometry,
}

impl Editor {
    /// Opens and locks a whole drive. udev's own rule (BLOCK_DEVICE_LOCKING of systemd): whoever holds the exclusive
    /// `flock` on the whole device keeps udev from probing it and from re-reading its table half way.
    ///
    /// A lock belongs to a node, not to the device behind it: it is taken on the node that everybody knows, while what is
    /// written goes through a node of our own. Taken there it would keep nobody out, other edits of ours included.
    pub fn lock(namespace: &Namespace) -> Result<Editor> {
        Editor::open(namespace, 0)
    }

    /// The same, and refused by the kernel while anything on the drive is mounted or claimed.
    fn lock_exclusive(namespace: &Namespace) -> Result<Editor> {
        Editor::open(namespace, O_EXCL)
    }

    fn open(namespace: &Namespace, flags: i32) -> Result<Editor> {
        let (device, drive) = (PathBuf::from(&namespace.path), namespace.id.clone());
        let failed = |e: io::Error| KernelError::io("open drive", namespace.path.clone(), &e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(O_DIRECT | flags);
        let numbers = namespace.numbers.as_deref();
        // For reading only: udev reads a table anew when a node is closed that was open for writing.
        let locked = drives::open_node(&device, numbers, OpenOptions::new().read(true)).map_err(failed)?;
        wait_for_lock(&locked, &namespace.path)?;
        let file = drives::open_quietly(&device, numbers, &options).map_err(failed)?;
        Ok(Editor { file, _locked: locked, device, drive, geometry: namespace.geometry() })
    }

    /// The whole drive, for BLKPG and for bytes outside any partition.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the drive's ends say now.
    pub fn verdict(&self) -> Result<Verdict> {
        let len = WINDOW_BYTES.min(self.geometry.size_bytes);
        let first = self.read(0, len)?;
        let last = self.read(self.geometry.size_bytes - len, len)?;
        Ok(classify::classify(&self.drive, Window { geometry: self.geometry, first: &first, last: &last }))
    }

    /// The table of a drive that is ours or shared; refused for any other.
    pub fn table(&self) -> Result<Table> {
        match self.verdict()? {
            Verdict { table: Some(table), class: DriveClass::Ours | DriveClass::Shared } => Ok(table),
            Verdict { class: DriveClass::Blank(_), .. } => Err(self.refuse("the drive has no partition table yet")),
            Verdict { class: DriveClass::Unreadable(why), .. } => {
                Err(KernelError::wait("edit table", self.name(), format!("the drive cannot be read: {why}")))
            }
            Verdict { class, .. } => Err(self.refuse(format!("the drive is not ours: {}", reason(&class)))),
        }
    }

    /// Adds an entry of ours in free space and answers its number. `kernel` is what the kernel has on the drive: space
    /// and number must be free in both views.
    pub fn add(&self, name: &str, unique_guid: Uuid, extent: Extent, kernel: &BTreeMap<u32, Extent>) -> Result<u32> {
        let table = self.table()?;
        self.check_free(&table, extent, &kernel.values().copied().collect::<Vec<_>>())?;
        let taken = |number: &u32| table.entries.contains_key(number) || kernel.contains_key(number);
        let free_number = (1..=table.slots.min(HIGHEST_NUMBER)).find(|number| !taken(number));
        let number = free_number.ok_or_else(|| self.refuse(format!("all {} entries are used", table.slots)))?;
        let entry = PartitionEntry { type_guid: PARTITION_TYPE, unique_guid, name: name.into(), extent };
        self.write(&table, number, Some(&entry))?;
        Ok(number)
    }

    /// Lengthens an entry of ours into free space. `kernel` is what the kernel has on the drive of others.
    pub fn lengthen(&self, unique_guid: Uuid, bytes: u64, kernel: &[Extent]) -> Result<()> {
        let table = self.table()?;
        let found = table.entries.iter().find(|(_, entry)| entry.unique_guid == unique_guid);
        let Some((number, entry)) = found.filter(|(_, entry)| entry.type_guid == PARTITION_TYPE) else {
            return Err(KernelError::retry(
                "edit table",
                self.name(),
                format!("it has no entry {unique_guid} of ours"),
            ));
        };
        let Extent { start, length } = entry.extent;
        let added = bytes.checked_sub(length).filter(|added| *added > 0);
        let added = added.ok_or_else(|| self.refuse(format!("{number} has {length} bytes, not less than {bytes}")))?;
        self.check_free(&table, Extent { start: entry.extent.end(), length: added }, kernel)?;
        self.write(&table, *number, Some(&PartitionEntry { extent: Extent { start, length: bytes }, ..entry.clone() }))
    }

    /// Refuses an extent that is not aligned or not free in both views of the drive.
    pub fn check_free(&self, table: &Table, extent: Extent, kernel: &[Extent]) -> Result<()> {
        let aligned = [extent.start, extent.length].iter().all(|n| n.is_multiple_of(ALIGNMENT)) && extent.length > 0;
        if !aligned {
            return Err(self.refuse(format!("{}+{} is not aligned to 1 MiB", extent.start, extent.length)));
        }
        let used = table.entries.values().map(|entry| entry.extent).chain(kernel.iter().copied());
        let free = free_extents(table.usable, used);
        if !free.iter().any(|gap| gap.start <= extent.start && extent.end() <= gap.end()) {
            return Err(self.refuse(format!("{}+{} is not free", extent.start, extent.length)));
        }
        Ok(())
    }

    /// Removes an entry of ours. An absent one is already removed; one of another type is refused.
    pub fn remove(&self, unique_guid: Uuid) -> Result<Changed> {
        let table = self.table()?;
        match table.entries.iter().find(|(_, entry)| entry.unique_guid == unique_guid) {
            None => Ok(Changed::No),
            Some((_, entry)) if entry.type_guid != PARTITION_TYPE => {
                Err(self.refuse(format!("the entry {unique_guid} is of the foreign type {}", entry.type_guid)))
            }
            Some((number, _)) => self.write(&table, *number, None).map(|()| Changed::Yes),
        }
    }

    /// Writes the table with one entry set or cleared.
    fn write(&self, table: &Table, number: u32, entry: Option<&PartitionEntry>) -> Result<()> {
        let mut slots = slots_of(table).map_err(|e| self.refuse(e))?;
        image::set(&mut slots, number, entry, self.geometry).map_err(|e| self.refuse(e))?;
        let image = Image::of(table, &slots, self.geometry).map_err(|e| self.refuse(e))?;
        // Enough to rebuild the table by hand should the worst happen.
        tracing::info!(drive = %self.drive, number, after = ?entry, before = ?table.entries, "editing partition table");
        self.put(&image.backup)?;
        self.put(&image.primary)?;
        let mut wanted: BTreeMap<u32, PartitionEntry> = table.entries.clone();
        match entry {
            Some(entry) => wanted.insert(number, entry.clone()),
            None => wanted.remove(&number),
        };
        self.verify(&wanted, &image.array)
    }

    /// Reads the drive again and compares.
    fn verify(&self, wanted: &BTreeMap<u32, PartitionEntry>, array: &[u8]) -> Result<()> {
        let table = self.table()?;
        if table.whole && table.entries == *wanted && table.array == array {
            return Ok(());
        }
        let detail = format!("read back {:?} instead of {wanted:?}", table.entries);
        Err(KernelError::bug("verify table", self.name(), detail))
    }

    /// Writes runs of whole blocks and makes them durable, the drive's own cache included.
    fn put(&self, runs: &[(u64, Vec<u8>)]) -> Result<()> {
        let write = || -> io::Result<()> {
            for (at, bytes) in runs {
                let mut buffer = AlignedBuf::zeroed(bytes.len())?;
                buffer.copy_from_slice(bytes);
                self.file.write_all_at(&buffer, *at)?;
            }
            self.file.sync_all()
        };
        write().map_err(|e| KernelError::io("write table", self.name(), &e))
    }

    fn read(&self, at: u64, len: u64) -> Result<AlignedBuf> {
        let read = || -> io::Result<AlignedBuf> {
            let mut buffer = AlignedBuf::zeroed(len as usize)?;
            self.file.read_exact_at(&mut buffer, at)?;
            Ok(buffer)
        };
        read().map_err(|e| KernelError::io("read drive", self.name(), &e))
    }

    fn name(&self) -> String {
        self.device.display().to_string()
    }

    fn refuse(&self, detail: impl Into<String>) -> KernelError {
        KernelError::refuse("edit table", self.name(), detail)
    }
}

fn wait_for_lock(node: &File, path: &str) -> Result<()> {
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        match node.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                let detail = format!("another program has held the drive's lock for {LOCK_WAIT:?}");
                return Err(KernelError::retry("lock drive", path, detail));
            }
            Err(TryLockError::Error(e)) => return Err(KernelError::io("lock drive", path, &e)),
        }
    }
}

// --------------------------------------------------------------------------------------------- labelling

/// Writes a fresh table on a drive proven blank, after looking again. A drive labelled by us and empty is already so.
pub fn label(root: &Root, evidence: &BlankDrive) -> Result<Changed> {
    let namespace = drives::find(root, evidence.drive())?;
    let refuse = |detail: String| KernelError::refuse("label drive", namespace.path.clone(), detail);
    if let Some(why) = drives::unfit(root, &namespace)? {
        return Err(refuse(why));
    }
    let known = drives::kernel_partitions(root, &namespace.name)?;
    if let Some(partition) = known.values().next() {
        return Err(refuse(format!("the kernel has a partition {} on it", partition.name)));
    }
    label_namespace(&namespace)
}

fn label_namespace(namespace: &Namespace) -> Result<Changed> {
    // While this is open exclusively nobody can mount, claim or stack anything on the drive.
    let editor = Editor::lock_exclusive(namespace)?;
    match editor.verdict()? {
        Verdict { class: DriveClass::Blank(_), .. } => {}
        Verdict { class: DriveClass::Ours, table: Some(table) } if table.entries.is_empty() => {
            // A label cut short by a crash is completed by the first entry.
            return Ok(Changed::No);
        }
        Verdict { class, .. } => return Err(editor.refuse(format!("no longer blank: {}", reason(&class)))),
    }
    let image = Image::fresh(classify::label_of(&namespace.id), namespace.geometry()).map_err(|e| editor.refuse(e))?;
    // Primary first: there is nothing to lose, and a primary of ours alone is known for what it is, a backup is not.
    editor.put(&image.primary)?;
    editor.put(&image.backup)?;
    editor.verify(&BTreeMap::new(), &image.array)?;
    Ok(Changed::Yes)
}

fn reason(class: &DriveClass) -> String {
    match class {
        DriveClass::Ours => "it has a table of ours".into(),
        DriveClass::Shared => "it has partitions of others".into(),
        DriveClass::Blank(_) => "it is blank".into(),
        DriveClass::Theirs(why) | DriveClass::Unreadable(why) => why.clone(),
    }
}

/// The bytes that partitions may occupy once [`label`] has written its table.
pub fn label_space(geometry: Geometry) -> Extent {
    image::usable(geometry)
}

/// Bytes of the entry array of a table with this many slots.
fn array_bytes(slots: u32) -> usize {
    slots as usize * ENTRY_BYTES as usize
}
