//! Edits on image files of both block sizes: what is written first, what survives a cut, what is refused.

use super::*;
use crate::linux::root::scratch;
use std::os::unix::fs::FileExt;

const SECTORS: [u32; 2] = [512, 4096];
const SIZE: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

// -------------------------------------------------------------------- the two ends of a drive, in memory

/// The ends of a drive, for tests of the classifier as well.
#[derive(Clone)]
pub(crate) struct Drive {
    pub geometry: Geometry,
    pub first: Vec<u8>,
    pub last: Vec<u8>,
}

impl Drive {
    pub fn blank(sector_bytes: u32, size_bytes: u64) -> Drive {
        let zeroes = vec![0; WINDOW_BYTES as usize];
        Drive { geometry: Geometry { size_bytes, sector_bytes }, first: zeroes.clone(), last: zeroes }
    }

    pub fn read(sector_bytes: u32, file: &File) -> Drive {
        let mut drive = Drive::blank(sector_bytes, file.metadata().unwrap().len());
        file.read_exact_at(&mut drive.first, 0).unwrap();
        file.read_exact_at(&mut drive.last, drive.geometry.size_bytes - WINDOW_BYTES).unwrap();
        drive
    }

    fn byte(&mut self, at: u64) -> &mut u8 {
        let last = self.geometry.size_bytes - WINDOW_BYTES;
        if at >= last { &mut self.last[(at - last) as usize] } else { &mut self.first[at as usize] }
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            *self.byte(at + i as u64) = *byte;
        }
    }

    pub fn flip(&mut self, at: u64) {
        self.xor(at, 0x40);
    }

    pub fn xor(&mut self, at: u64, mask: u8) {
        *self.byte(at) ^= mask;
    }

    pub fn classify(&self) -> Verdict {
        let window = Window { geometry: self.geometry, first: &self.first, last: &self.last };
        classify::classify(&DriveId("s1-1".into()), window)
    }

    pub fn image(&self, disk_guid: Uuid, entries: &[(u32, PartitionEntry)]) -> Image {
        let fresh = Image::fresh(disk_guid, self.geometry).unwrap();
        let mut table = self.frame(disk_guid, fresh.array);
        let mut slots = slots_of(&table).unwrap();
        for (number, entry) in entries {
            image::set(&mut slots, *number, Some(entry), self.geometry).unwrap();
        }
        table.array.clear();
        Image::of(&table, &slots, self.geometry).unwrap()
    }

    fn frame(&self, disk_guid: Uuid, array: Vec<u8>) -> Table {
        let usable = label_space(self.geometry);
        Table { disk_guid, slots: 128, usable, entries: BTreeMap::new(), array, array_lba: 2, whole: true }
    }

    fn write(&mut self, runs: &[(u64, Vec<u8>)]) {
        for (at, bytes) in runs {
            self.put(*at, bytes);
        }
    }

    pub fn primary_only(&mut self, disk_guid: Uuid, entries: &[(u32, PartitionEntry)]) {
        // The MBR as well, which only a fresh table brings along.
        self.write(&Image::fresh(disk_guid, self.geometry).unwrap().primary);
        let image = self.image(disk_guid, entries);
        self.write(&image.primary);
    }

    pub fn backup_only(&mut self, disk_guid: Uuid, entries: &[(u32, PartitionEntry)]) {
        let image = self.image(disk_guid, entries);
        self.write(&image.backup);
    }

    pub fn table(&mut self, disk_guid: Uuid, entries: &[(u32, PartitionEntry)]) {
        self.primary_only(disk_guid, entries);
        self.backup_only(disk_guid, entries);
    }
}

pub(crate) fn entry(type_guid: Uuid, unique: u128, extent: Extent) -> PartitionEntry {
    let unique_guid = Uuid::from_u128(unique);
    PartitionEntry { type_guid, unique_guid, name: format!("meshstor-{unique}"), extent }
}

fn mib(start: u64, length: u64) -> Extent {
    Extent { start: start * MIB, length: length * MIB }
}

pub(crate) fn ours(unique: u128, start: u64, length: u64) -> PartitionEntry {
    entry(PARTITION_TYPE, unique, mib(start, length))
}

pub(crate) fn foreign(unique: u128, start: u64, length: u64) -> PartitionEntry {
    entry(Uuid::from_u128(0x0fc6_3daf), unique, mib(start, length))
}

// ------------------------------------------------------------------------------------------ drives in files

struct OnFile {
    _dir: tempfile::TempDir,
    namespace: Namespace,
}

impl OnFile {
    fn new(sector_bytes: u32) -> OnFile {
        let dir = scratch();
        let path = dir.path().join("nvme0n1");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let namespace = Namespace {
            id: DriveId("s1-1".into()),
            name: "nvme0n1".into(),
            path: path.display().to_string(),
            numbers: None,
            model: "model".into(),
            serial: "S1".into(),
            size_bytes: SIZE,
            sector_bytes,
            has_cache: false,
            power: String::new(),
            volatile_cache: false,
            ambiguous: None,
        };
        OnFile { _dir: dir, namespace }
    }

    fn labelled(sector_bytes: u32) -> OnFile {
        let drive = OnFile::new(sector_bytes);
        assert_eq!(label_namespace(&drive.namespace), Ok(Changed::Yes));
        drive
    }

    fn with(sector_bytes: u32, disk_guid: Uuid, entries: &[(u32, PartitionEntry)]) -> OnFile {
        let drive = OnFile::new(sector_bytes);
        let mut ends = drive.ends();
        ends.table(disk_guid, entries);
        drive.put(&ends);
        drive
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.namespace.path).unwrap()
    }

    fn ends(&self) -> Drive {
        Drive::read(self.namespace.sector_bytes, &self.file())
    }

    fn put(&self, ends: &Drive) {
        self.file().write_all_at(&ends.first, 0).unwrap();
        self.file().write_all_at(&ends.last, SIZE - WINDOW_BYTES).unwrap();
        self.file().sync_all().unwrap();
    }

    fn editor(&self) -> Editor {
        Editor::lock(&self.namespace).unwrap()
    }

    fn add(&self, unique: u128, start: u64, length: u64) -> Result<u32> {
        self.editor().add("name", Uuid::from_u128(unique), mib(start, length), &BTreeMap::new())
    }
}

#[test]
fn a_blank_drive_is_labelled_once() {
    for sector in SECTORS {
        let drive = OnFile::labelled(sector);
        let verdict = drive.ends().classify();
        assert_eq!(verdict.class, DriveClass::Ours);
        assert!(verdict.table.unwrap().whole);
        assert_eq!(label_namespace(&drive.namespace), Ok(Changed::No));
        drive.add(1, 1, 10).unwrap();
        assert!(label_namespace(&drive.namespace).unwrap_err().detail.contains("no longer blank"));
    }
}

#[test]
fn a_drive_that_is_not_blank_is_not_labelled_and_not_changed() {
    let drive = OnFile::new(512);
    drive.file().write_all_at(b"x", 5000).unwrap();
    let before = drive.ends();
    let error = label_namespace(&drive.namespace).unwrap_err();
    assert!(error.detail.contains("unrecognised content at byte 5000"), "{error}");
    assert_eq!(error.class, crate::Class::Refuse);
    let after = drive.ends();
    assert!(before.first == after.first && before.last == after.last);
}

#[test]
fn a_fresh_table_is_sound_to_gptman_as_well() {
    for sector in SECTORS {
        let drive = OnFile::labelled(sector);
        drive.add(1, 1, 10).unwrap();
        let mut file = drive.file();
        let table = gptman::GPT::read_from(&mut file, u64::from(sector)).unwrap();
        assert!(table.is_primary());
        let used: Vec<(u32, String, u64)> = table
            .iter()
            .filter(|(_, entry)| entry.is_used())
            .map(|(number, entry)| (number, entry.partition_name.to_string(), entry.size().unwrap()))
            .collect();
        assert_eq!(used, [(1, "name".to_string(), 10 * MIB / u64::from(sector))]);
        assert_eq!(table[1].partition_type_guid, PARTITION_TYPE.to_bytes_le());
    }
}

#[test]
fn entries_come_and_go_without_moving_others() {
    for sector in SECTORS {
        let drive = OnFile::with(sector, Uuid::from_u128(9), &[(2, foreign(50, 100, 20)), (5, ours(51, 130, 5))]);
        assert_eq!(drive.add(1, 1, 10), Ok(1));
        assert_eq!(drive.add(3, 11, 10), Ok(3));
        assert_eq!(drive.editor().remove(Uuid::from_u128(1)), Ok(Changed::Yes));
        assert_eq!(drive.editor().remove(Uuid::from_u128(1)), Ok(Changed::No));
        assert_eq!(drive.add(4, 1, 10), Ok(1), "the first free number is used again");
        let entries = drive.ends().classify().entries();
        assert_eq!(entries.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 5]);
        assert_eq!((&entries[&2], &entries[&5]), (&foreign(50, 100, 20), &ours(51, 130, 5)));
    }
}

#[test]
fn foreign_entries_and_taken_space_are_refused() {
    let drive = OnFile::with(512, Uuid::from_u128(9), &[(2, foreign(50, 100, 20))]);
    assert!(drive.editor().remove(Uuid::from_u128(50)).unwrap_err().detail.contains("foreign type"));
    for (start, length) in [(90, 20), (119, 1), (0, 2), (255, 1), (110, 0)] {
        let error = drive.add(1, start, length).unwrap_err();
        assert_eq!(error.class, crate::Class::Refuse, "{start}+{length}");
    }
    let odd = Extent { start: MIB, length: MIB + 512 };
    assert!(
        drive.editor().add("n", Uuid::from_u128(1), odd, &BTreeMap::new()).unwrap_err().detail.contains("not aligned")
    );
    // Free in the table, but the kernel has something there.
    let error = drive.editor().add("n", Uuid::from_u128(1), mib(1, 5), &[(7, mib(3, 1))].into()).unwrap_err();
    assert!(error.detail.contains("not free"));
    assert_eq!(drive.ends().classify().entries().len(), 1);
    // A number that the kernel still has for something else is not given out: the new entry could not be announced.
    let added = drive.editor().add("n", Uuid::from_u128(1), mib(1, 5), &[(1, mib(30, 1))].into());
    assert_eq!(added, Ok(3));
}

#[test]
fn attributes_and_names_of_others_stay_byte_for_byte() {
    let drive = OnFile::with(512, Uuid::from_u128(9), &[(2, foreign(50, 100, 20))]);
    let mut ends = drive.ends();
    // Attribute bits, and a name with rubbish behind its end; both copies sealed again by hand.
    let patch = |array: &mut [u8]| {
        array[128 + 48] = 5;
        array[128 + 56 + 70] = 0x7a;
    };
    let mut array = ends.classify().table.unwrap().array;
    patch(&mut array);
    reseal(&mut ends, &array);
    drive.put(&ends);
    assert_eq!(drive.ends().classify().class, DriveClass::Shared);
    drive.add(1, 1, 10).unwrap();
    assert_eq!(drive.ends().classify().table.unwrap().array[128..256], array[128..256]);
}

/// Puts an array into both copies with right checksums.
fn reseal(ends: &mut Drive, array: &[u8]) {
    let sector = u64::from(ends.geometry.sector_bytes);
    let last = ends.geometry.size_bytes - sector;
    for (header, at) in [(sector, 2 * sector), (last, last - array.len() as u64)] {
        ends.put(at, array);
        ends.put(header + 88, &crc32fast::hash(array).to_le_bytes());
        ends.put(header + 16, &[0; 4]);
        let bytes: Vec<u8> = (0..92).map(|i| *ends.byte(header + i)).collect();
        ends.put(header + 16, &crc32fast::hash(&bytes).to_le_bytes());
    }
}

#[test]
fn usable_blocks_and_the_place_of_the_array_stay_as_they_were() {
    // A board that boots from the blocks behind the header: array at block 64, first usable block 2048.
    let drive = OnFile::new(512);
    let mut ends = drive.ends();
    let usable = Extent { start: MIB, length: SIZE - 2 * MIB };
    let array = vec![0; array_bytes(56)];
    let table = Table {
        disk_guid: Uuid::from_u128(9),
        slots: 56,
        usable,
        entries: BTreeMap::new(),
        array,
        array_lba: 64,
        whole: true,
    };
    let mut slots = slots_of(&table).unwrap();
    image::set(&mut slots, 1, Some(&foreign(50, 100, 20)), ends.geometry).unwrap();
    let image = Image::of(&table, &slots, ends.geometry).unwrap();
    assert_eq!(image.primary.len(), 2, "header and array apart");
    ends.write(&Image::fresh(Uuid::from_u128(1), ends.geometry).unwrap().primary);
    ends.put(1024, &vec![0xb0; 31 * 1024]);
    ends.write(&image.primary);
    ends.write(&image.backup);
    drive.put(&ends);
    assert_eq!(drive.add(1, 1, 10), Ok(2));
    let after = drive.ends();
    let table = after.classify().table.unwrap();
    assert_eq!((table.usable, table.array_lba, table.slots), (usable, 64, 56));
    assert!(after.first[1024..32 * 1024].iter().all(|b| *b == 0xb0), "the boot code is untouched");
}

#[test]
fn a_full_table_says_so() {
    let entries: Vec<(u32, PartitionEntry)> = (1..=128).map(|i| (i, ours(u128::from(i), u64::from(i), 1))).collect();
    let drive = OnFile::with(512, Uuid::from_u128(9), &entries);
    assert!(drive.add(999, 200, 1).unwrap_err().detail.contains("all 128 entries are used"));
}

#[test]
fn a_lock_held_elsewhere_is_waited_for() {
    let drive = OnFile::labelled(512);
    let other = drive.file();
    other.lock().unwrap();
    let waiter = std::thread::spawn({
        let namespace = drive.namespace.clone();
        move || Editor::lock(&namespace).map(|_| ())
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!waiter.is_finished());
    other.unlock().unwrap();
    assert_eq!(waiter.join().unwrap(), Ok(()));
}

// ----------------------------------------------------------------------------------- edits cut short

/// Every state a killed process can leave: none, some or all of the runs written, in the order of the editor.
#[test]
fn an_edit_cut_anywhere_is_completed_by_the_next() {
    for sector in SECTORS {
        for label in [classify::label_of(&DriveId("s1-1".into())), Uuid::from_u128(9)] {
            let start = OnFile::with(sector, label, &[(1, ours(1, 1, 10)), (2, foreign(50, 100, 20))]);
            let before = start.ends();
            let image = before.image(label, &[(1, ours(1, 1, 10)), (2, foreign(50, 100, 20)), (3, ours(3, 20, 5))]);
            let steps: Vec<&(u64, Vec<u8>)> = image.backup.iter().chain(&image.primary).collect();
            for cut in 0..=steps.len() {
                let mut ends = before.clone();
                for (at, bytes) in &steps[..cut] {
                    ends.put(*at, bytes);
                }
                start.put(&ends);
                let present = ends.classify().entries().contains_key(&3);
                assert_eq!(present, cut == steps.len(), "cut after {cut} writes");
                if !present {
                    assert_eq!(start.add(3, 20, 5), Ok(3), "cut after {cut} writes");
                }
                let table = start.ends().classify().table.unwrap();
                assert!(table.whole);
                assert_eq!(table.entries.len(), 3);
            }
        }
    }
}

/// A power cut may tear a write anywhere. On a drive of our own no partition gets lost by it.
#[test]
fn a_torn_write_on_a_drive_of_our_own_loses_nothing() {
    for sector in SECTORS {
        let label = classify::label_of(&DriveId("s1-1".into()));
        let start = OnFile::with(sector, label, &[(1, ours(1, 1, 10))]);
        let before = start.ends();
        let image = before.image(label, &[(1, ours(1, 1, 10)), (2, ours(2, 20, 5))]);
        let runs: Vec<&(u64, Vec<u8>)> = image.backup.iter().chain(&image.primary).collect();
        for torn in 0..runs.len() {
            for blocks in [0, 1, 2, 3] {
                let mut ends = before.clone();
                for (at, bytes) in &runs[..torn] {
                    ends.put(*at, bytes);
                }
                let (at, bytes) = runs[torn];
                ends.put(*at, &bytes[..blocks * sector as usize]);
                let verdict = ends.classify();
                assert_eq!(verdict.class, DriveClass::Ours, "run {torn}, {blocks} blocks");
                assert_eq!(verdict.entries()[&1], ours(1, 1, 10));
            }
        }
    }
}

#[test]
fn a_label_cut_short_is_completed_by_the_first_entry() {
    for sector in SECTORS {
        let drive = OnFile::new(sector);
        let mut ends = drive.ends();
        ends.primary_only(classify::label_of(&DriveId("s1-1".into())), &[]);
        drive.put(&ends);
        assert_eq!(label_namespace(&drive.namespace), Ok(Changed::No));
        assert_eq!(drive.add(1, 1, 10), Ok(1));
        assert!(drive.ends().classify().table.unwrap().whole);
    }
}

#[test]
fn a_drive_that_is_theirs_is_never_edited() {
    let drive = OnFile::with(512, Uuid::from_u128(9), &[(2, foreign(50, 100, 20))]);
    let mut ends = drive.ends();
    ends.flip(512 + 40);
    drive.put(&ends);
    for result in [drive.add(1, 1, 10).map(|_| ()), drive.editor().remove(Uuid::from_u128(50)).map(|_| ())] {
        let error = result.unwrap_err();
        assert!(error.detail.contains("damaged"), "{error}");
    }
    let after = drive.ends();
    assert!(after.first == ends.first && after.last == ends.last);
}
