//! Table tests of the array plan: one healthy two-copy volume (r0 local, r1 remote), changed by each test.

use super::*;
use crate::Step;
use crate::record::*;
use crate::testing::{cluster, key, listen, record as drive_record, volume};
use meshstor_kernel::facts::*;
use meshstor_kernel::id::ReplicaKey;

pub(super) const EPOCH: Epoch = 4;

pub(super) fn life(replica: u32, generation: u64) -> ExportKey {
    ExportKey { replica: ReplicaKey { ..key(replica) }, epoch: EPOCH, generation }
}

pub(super) fn superblock(slot: u16, events: u64) -> Superblock {
    let bitmap = Bitmap {
        uuid: volume().md_uuid(),
        events,
        events_cleared: events,
        chunk_bytes: BITMAP_CHUNK,
        dirty: BTreeSet::new(),
    };
    Superblock {
        set_uuid: volume().md_uuid(),
        name: "ms".into(),
        level: 1,
        raid_disks: 2,
        events,
        dev_number: slot.into(),
        roles: vec![0, 1],
        device_uuid: uuid::Uuid::from_u128(slot.into()),
        data_offset: DATA_OFFSET,
        component_bytes: 1 << 30,
        recovery_offset: None,
        write_mostly: false,
        resync_pending: false,
        bitmap: Some(bitmap),
    }
}

pub(super) fn probe(slot: u16, events: u64) -> MemberProbe {
    MemberProbe {
        superblock: Some(superblock(slot, events)),
        record: Some(drive_record(slot.into(), EPOCH, 0)),
        blank: None,
    }
}

pub(super) fn blank(device: &str) -> MemberProbe {
    let zeros = vec![0; ALIGNMENT as usize];
    MemberProbe { superblock: None, record: None, blank: BlankData::from_bytes(device, &zeros, &zeros) }
}

pub(super) fn connection() -> ConnectionFact {
    let controller = ControllerFact { state: "live".into(), address: listen(Transport::Tcp) };
    let head = BlockDevice {
        name: "nvme3n1".into(),
        path: "/dev/nvme3n1".into(),
        size_bytes: 1 << 30,
        sector_bytes: 4096,
        uuid: None,
    };
    ConnectionFact {
        controllers: [("nvme3".to_string(), controller)].into(),
        head: Some(head),
        ..ConnectionFact::default()
    }
}

pub(super) fn member(slot: u32, flags: &[&str]) -> MemberFact {
    MemberFact { flags: flags.iter().map(|f| f.to_string()).collect(), slot: Some(slot) }
}

pub(super) fn array() -> ArrayFact {
    ArrayFact {
        name: "md1000".into(),
        path: "/dev/md1000".into(),
        state: "active".into(),
        raid_disks: 2,
        degraded: 0,
        size_bytes: 1 << 30,
        sync_action: "idle".into(),
        sync_completed: None,
        resync_done: true,
        has_bitmap: true,
        keeps_bitmap: false,
        safe_mode_off: true,
        sync_speed: None,
        // As every recovery finds it.
        sync_held: true,
        members: [
            ("nvme0n1p1".to_string(), member(0, &["in_sync"])),
            ("nvme3n1".to_string(), member(1, &["in_sync", "write_mostly"])),
        ]
        .into(),
        mounts: BTreeSet::new(),
        holders: BTreeSet::new(),
    }
}

pub(super) fn replica(node: &str, local: bool, generation: u64) -> ReplicaRecord {
    let listen = if local { BTreeSet::new() } else { [listen(Transport::Tcp)].into() };
    ReplicaRecord {
        node: NodeName(node.into()),
        wanted: true,
        partition_bytes: 1 << 30,
        wanted_export: (EPOCH, generation),
        fenced_epoch: EPOCH,
        export: Some(ExportRecord { epoch: EPOCH, generation, listen, ready: true }),
        granted: Some((EPOCH, generation)),
    }
}

pub(super) fn ids(list: &[u32]) -> BTreeSet<ReplicaId> {
    list.iter().map(|r| ReplicaId(*r)).collect()
}

pub(super) fn recorded() -> VolumeRecord {
    VolumeRecord {
        name: "pvc-1".into(),
        uid: "11111111-1111-4111-8111-111111111111".into(),
        volume: volume(),
        cluster: cluster(),
        size_bytes: 1 << 30,
        content: Default::default(),
        replica_count: 2,
        epoch: EPOCH,
        consumer: Some(NodeName("a".into())),
        consumer_boot: Some(BootId("boot".into())),
        in_sync: Some(ids(&[0, 1])),
        foreign: None,
        activated_epoch: EPOCH,
        departures: BTreeMap::new(),
        flaps: BTreeMap::new(),
        format: FormatRecord::Done,
        released_epoch: 0,
        replicas: [(ReplicaId(0), replica("a", true, 0)), (ReplicaId(1), replica("b", false, 0))].into(),
    }
}

/// Running and healthy.
pub(super) fn look() -> ArrayLook {
    let local = Candidate {
        component: "nvme0n1p1".into(),
        path: "/dev/nvme0n1p1".into(),
        local: true,
        bytes: 1 << 40,
        probe: Some(probe(0, 9)),
    };
    let remote = Candidate {
        component: "nvme3n1".into(),
        path: "/dev/nvme3n1".into(),
        local: false,
        bytes: 1 << 40,
        probe: Some(probe(1, 9)),
    };
    ArrayLook {
        me: NodeName("a".into()),
        boot: BootId("boot".into()),
        speeds: SyncSpeeds::default(),
        now: crate::wall::WallTime(1_700_000_000),
        record: RecordLook::Fresh(Box::new(recorded())),
        array: Some(array()),
        candidates: [(life(0, 0), local), (life(1, 0), remote)].into(),
        connections: [(life(1, 0), connection())].into(),
        live_mounts: BTreeSet::new(),
        waiting_for: Duration::ZERO,
        merged: BTreeSet::new(),
        re_add_failed: BTreeSet::new(),
        freeze_failed: false,
        cut_off: false,
    }
}

/// A look whose parts tests can reach without ceremony.
pub(super) struct At(pub(super) ArrayLook);

impl At {
    pub(super) fn healthy() -> At {
        At(look())
    }
    pub(super) fn stopped() -> At {
        At(ArrayLook { array: None, ..look() })
    }
    pub(super) fn record(&mut self) -> &mut VolumeRecord {
        match &mut self.0.record {
            RecordLook::Fresh(r) => r,
            _ => panic!("no record"),
        }
    }
    pub(super) fn array(&mut self) -> &mut ArrayFact {
        self.0.array.as_mut().unwrap()
    }
    pub(super) fn member(&mut self, name: &str) -> &mut MemberFact {
        self.array().members.get_mut(name).unwrap()
    }
    pub(super) fn wire(&mut self) -> &mut ConnectionFact {
        self.0.connections.get_mut(&life(1, 0)).unwrap()
    }
    pub(super) fn probe(&mut self, replica: u32) -> &mut MemberProbe {
        self.0.candidates.get_mut(&life(replica, 0)).unwrap().probe.as_mut().unwrap()
    }
    pub(super) fn plan(&self) -> Plan<ArrayReport> {
        Array::plan(Some(&ArrayWish { volume: volume(), staged: true }), &self.0)
    }
    pub(super) fn name(&self) -> &'static str {
        self.plan().next.as_ref().map_or("rest", Step::name)
    }
    pub(super) fn reason(&self) -> &'static str {
        self.plan().status.reason.map_or("none", |r| r.word())
    }
}

/// Last chunk of the array: 1 GiB in chunks of 64 MiB.
pub(super) const LAST: u64 = 15;

/// The remote copy was taken out under generation 0 and is offered anew under generation 1. All that it lacks is merged.
pub(super) fn returning() -> At {
    let mut at = At::healthy();
    at.record().in_sync = Some(ids(&[0]));
    at.record().departures = [(ReplicaId(1), DepartureRecord { epoch: EPOCH, generation: 0, events: 9 })].into();
    at.record().replicas.insert(ReplicaId(1), replica("b", false, 1));
    at.array().members.remove("nvme3n1");
    at.array().degraded = 1;
    let remote = at.0.candidates.remove(&life(1, 0)).unwrap();
    at.0.candidates.insert(life(1, 1), remote);
    let wire = at.0.connections.remove(&life(1, 0)).unwrap();
    at.0.connections.insert(life(1, 1), wire);
    at.0.merged = [LAST].into();
    at
}

#[test]
fn healthy_means_nothing_to_do() {
    let at = At::healthy();
    assert_eq!((at.name(), at.reason(), at.plan().status.phase), ("rest", "none", ArrayPhase::Active));
    assert!(probes(&at.0).is_empty(), "a healthy array costs no reads");
}

// ------------------------------------------------------------------------------------------------ starting

#[test]
fn the_first_array_is_created_whole_from_blank_members_local_first() {
    let mut at = At::stopped();
    at.record().activated_epoch = 0;
    at.record().format = FormatRecord::Never;
    *at.probe(0) = blank("/dev/nvme0n1p1");
    *at.probe(1) = blank("/dev/nvme3n1");
    assert!(probes(&at.0).values().all(|data_too| *data_too));
    let next = at.plan().next;
    let Some(Step::Kernel(meshstor_kernel::ops::Op::CreateArray { members, local: 1, .. })) = next else { panic!() };
    assert_eq!(members.iter().map(|m| m.device()).collect::<Vec<_>>(), ["/dev/nvme0n1p1", "/dev/nvme3n1"]);
    at.0.waiting_for = FIRST_PATIENCE - Duration::from_secs(1);
    at.wire().controllers.clear();
    assert!(probes(&at.0).values().all(|data_too| !data_too), "data are read once, when all copies answer");
    assert_eq!((at.name(), at.reason()), ("rest", "AwaitingConnection"), "a new volume waits for all its copies");
}

#[test]
fn a_new_volume_starts_without_a_copy_whose_node_does_not_come() {
    let mut at = At::stopped();
    at.record().activated_epoch = 0;
    at.record().format = FormatRecord::Never;
    *at.probe(0) = blank("/dev/nvme0n1p1");
    at.wire().controllers.clear();
    at.0.waiting_for = FIRST_PATIENCE;
    assert!(probes(&at.0).values().any(|data_too| *data_too));
    let next = at.plan().next;
    let Some(Step::Kernel(meshstor_kernel::ops::Op::CreateArray { members, .. })) = next else { panic!("{next:?}") };
    assert_eq!(members.iter().map(|m| m.device()).collect::<Vec<_>>(), ["/dev/nvme0n1p1"]);
    at.record().replicas.values_mut().for_each(|replica| replica.fenced_epoch = EPOCH - 1);
    assert_eq!((at.name(), at.reason()), ("rest", "AwaitingFence"), "none at all is waited for");
}

#[test]
fn a_new_volume_that_is_not_blank_is_not_created() {
    let mut at = At::stopped();
    at.record().activated_epoch = 0;
    at.record().format = FormatRecord::Never;
    assert_eq!((at.name(), at.reason()), ("rest", "DataMissing"));
}

#[test]
fn assembly_waits_for_missing_copies_with_patience_but_not_for_ever() {
    let mut at = At::stopped();
    at.record().activated_epoch = EPOCH - 1;
    assert_eq!(at.name(), "assemble-array");
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().fenced_epoch = EPOCH - 1;
    assert_eq!((at.name(), at.reason()), ("rest", "AwaitingFence"));
    at.0.waiting_for = START_PATIENCE;
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("assemble-array 00000000 from /dev/nvme0n1p1".into()));
}

#[test]
fn no_fenced_copy_means_waiting_however_long() {
    let mut at = At::stopped();
    at.record().activated_epoch = EPOCH - 1;
    at.0.waiting_for = Duration::from_secs(86_400);
    for replica in at.record().replicas.values_mut() {
        replica.fenced_epoch = EPOCH - 1;
    }
    assert_eq!((at.name(), at.reason()), ("rest", "AwaitingFence"));
}

#[test]
fn a_copy_that_a_fresher_one_marks_missing_stays_out() {
    let mut at = At::stopped();
    at.record().activated_epoch = EPOCH - 1;
    at.probe(0).superblock.as_mut().unwrap().events = 12;
    at.probe(0).superblock.as_mut().unwrap().roles = vec![0, 0xfffe];
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("assemble-array 00000000 from /dev/nvme0n1p1".into()));
}

#[test]
fn a_copy_outside_the_recorded_set_is_never_assembled() {
    let mut at = At::stopped();
    at.record().activated_epoch = EPOCH - 1;
    at.record().in_sync = Some(ids(&[1]));
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("assemble-array 00000000 from /dev/nvme3n1".into()));
}

#[test]
fn it_goes_read_write_only_after_the_set_is_recorded() {
    let mut at = At::healthy();
    at.record().activated_epoch = EPOCH - 1;
    at.array().state = "readonly".into();
    at.array().sync_action = "frozen".into();
    at.array().members.remove("nvme3n1");
    let Some(Step::Record(RecordOp { change: Change::Activate { in_sync, departures, .. }, .. })) = at.plan().next
    else {
        panic!()
    };
    assert_eq!(in_sync, ids(&[0]));
    assert_eq!(departures[&ReplicaId(1)].events, 9);
    assert_ne!(at.plan().status.phase, ArrayPhase::Active);
    at.record().activated_epoch = EPOCH;
    at.record().in_sync = Some(ids(&[0]));
    assert_eq!(at.name(), "activate-array");
    at.array().state = "active".into();
    assert_eq!(at.name(), "release-sync");
}

#[test]
fn bitmaps_are_united_before_sync_is_released() {
    let mut at = At::healthy();
    at.array().sync_action = "frozen".into();
    at.probe(1).superblock.as_mut().unwrap().bitmap.as_mut().unwrap().dirty = [3, 5].into();
    assert_eq!(at.name(), "merge-bitmap");
    at.probe(0).superblock.as_mut().unwrap().bitmap.as_mut().unwrap().dirty = [3, 5].into();
    assert_eq!(at.name(), "release-sync");
}

/// F17: the flag is in the superblocks, and comes along with them.
#[test]
fn nothing_is_write_mostly_while_a_resync_is_pending() {
    let mut at = At::healthy();
    at.array().sync_action = "frozen".into();
    at.array().resync_done = false;
    at.member("nvme3n1").flags.insert("write_mostly".into());
    assert_eq!(at.name(), "set-write-mostly");
    at.member("nvme3n1").flags.remove("write_mostly");
    assert_eq!(at.name(), "release-sync");
}

#[test]
fn an_assembly_by_somebody_else_is_taken_down_not_adopted() {
    let mut at = At::healthy();
    at.record().activated_epoch = EPOCH - 1;
    assert_eq!(at.name(), "stop-array", "read-write before it was recorded");
    at.array().state = "readonly".into();
    at.array().name = "md127".into();
    assert_eq!(at.name(), "stop-array");
}
