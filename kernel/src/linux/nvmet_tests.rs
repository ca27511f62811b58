//! Exports on a fake configfs: a folder whose `mkdir` fills groups with the attributes the kernel would give them.

use super::*;
use crate::id::{ReplicaId, VolumeId};

/// What `mkdir` and `rmdir` do in nvmet's part of configfs (drivers/nvme/target/configfs.c).
pub(super) mod groups {
    use std::fs;
    use std::io;
    use std::path::Path;

    fn attributes(path: &Path) -> (&'static [&'static str], &'static [(&'static str, &'static str)]) {
        match path.parent().and_then(|p| p.file_name()).and_then(|n| n.to_str()) {
            Some("subsystems") => (
                &["allowed_hosts", "namespaces"],
                &[("attr_allow_any_host", "0"), ("attr_serial", "f00"), ("attr_model", "Linux")],
            ),
            Some("namespaces") => {
                (&[], &[("device_path", "(null)"), ("device_uuid", ""), ("device_nguid", ""), ("enable", "0")])
            }
            Some("ports") => (
                &["subsystems", "referrals", "ana_groups/1"],
                &[
                    ("addr_trtype", ""),
                    ("addr_adrfam", ""),
                    ("addr_traddr", ""),
                    ("addr_trsvcid", ""),
                    ("ana_groups/1/ana_state", "optimized"),
                ],
            ),
            _ => (&[], &[]),
        }
    }

    pub fn make(path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        let (folders, values) = attributes(path);
        for folder in folders {
            fs::create_dir_all(path.join(folder))?;
        }
        values.iter().try_for_each(|(name, value)| fs::write(path.join(name), format!("{value}\n")))
    }

    pub fn remove(path: &Path) -> io::Result<()> {
        // The kernel refuses to remove a group that holds objects or that something links to.
        for folder in ["subsystems", "referrals", "allowed_hosts", "namespaces"] {
            if fs::read_dir(path.join(folder)).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(io::Error::from_raw_os_error(39));
            }
        }
        fs::remove_dir_all(path)
    }
}

struct Fake {
    _dir: tempfile::TempDir,
    root: Root,
    wanted: Wanted,
}

fn fake() -> Fake {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(dir.path());
    for folder in ["hosts", "ports", "subsystems"] {
        fs::create_dir_all(root.configfs.join("nvmet").join(folder)).unwrap();
    }
    let device = dir.path().join("nvme0n1p1");
    fs::write(&device, "").unwrap();
    let volume: VolumeId = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f".parse().unwrap();
    let replica = ReplicaKey { volume, replica: ReplicaId(1) };
    let wanted = Wanted {
        key: ExportKey { replica, epoch: 3, generation: 1 },
        device: attr::show(&device),
        host: crate::id::NodeName("a".into()).host_nqn(),
        listen: BTreeSet::from([listen(Transport::Rdma), listen(Transport::Tcp)]),
    };
    Fake { _dir: dir, root, wanted }
}

fn listen(transport: Transport) -> Listen {
    Listen { transport, address: "10.77.0.12".parse().unwrap(), port: 5001 }
}

#[test]
fn an_export_reads_back_as_it_was_built_and_is_not_built_twice() {
    let fake = fake();
    assert_eq!(export(&fake.root, &fake.wanted), Ok(Changed::Yes));
    assert_eq!(export(&fake.root, &fake.wanted), Ok(Changed::No));
    let fact = observe(&fake.root, fake.wanted.key.replica).unwrap();
    let entry = &fact.entries[&fake.wanted.key];
    assert!(entry.enabled);
    assert_eq!(entry.device_path.as_ref(), Some(&fake.wanted.device));
    assert_eq!(entry.namespace_uuid, Some(fake.wanted.key.namespace_uuid()));
    assert_eq!(entry.hosts, BTreeSet::from([fake.wanted.host.clone()]));
    assert_eq!(entry.ports, fake.wanted.listen);
    assert_eq!(fact.ports_in_use, BTreeSet::from([5001]));
}

#[test]
fn tcp_beside_rdma_is_offered_as_the_reserve() {
    let fake = fake();
    export(&fake.root, &fake.wanted).unwrap();
    let state = |id: &str| {
        attr::read_opt(&fake.root.configfs.join("nvmet/ports").join(id).join("ana_groups/1/ana_state")).unwrap()
    };
    assert_eq!((state("5001").as_str(), state("35001").as_str()), ("non-optimized", "optimized"));
}

#[test]
fn every_half_built_export_is_completed() {
    let paths = |fake: &Fake| Paths::new(&fake.root, fake.wanted.key);
    let steps: [fn(&Fake, &Paths); 5] = [
        |_, p| groups::make(&p.subsystem).unwrap(),
        |_, p| groups::make(&p.namespace).unwrap(),
        |_, p| fs::write(p.namespace.join("enable"), "1\n").unwrap(),
        |f, p| groups::make(&p.host(&f.wanted.host.0)).unwrap(),
        |_, p| groups::make(&p.port("5001")).unwrap(),
    ];
    for count in 1..=steps.len() {
        let fake = fake();
        steps[..count].iter().for_each(|step| step(&fake, &paths(&fake)));
        assert_eq!(export(&fake.root, &fake.wanted), Ok(Changed::Yes), "after {count} steps");
        assert_eq!(export(&fake.root, &fake.wanted), Ok(Changed::No), "after {count} steps");
    }
}

#[test]
fn a_linked_export_that_differs_is_refused_and_left_alone() {
    let fake = fake();
    export(&fake.root, &fake.wanted).unwrap();
    let before = observe(&fake.root, fake.wanted.key.replica).unwrap();
    let other_host = Wanted { host: crate::id::NodeName("b".into()).host_nqn(), ..fake.wanted.clone() };
    let other_device = Wanted { device: "/dev/nvme9n1p9".into(), ..fake.wanted.clone() };
    for wrong in [other_host, other_device] {
        let error = export(&fake.root, &wrong).unwrap_err();
        assert_eq!(error.class, crate::Class::Refuse, "{error}");
    }
    assert_eq!(observe(&fake.root, fake.wanted.key.replica).unwrap(), before);
}

#[test]
fn a_port_of_another_export_is_never_shared() {
    let fake = fake();
    export(&fake.root, &fake.wanted).unwrap();
    fence(&fake.root, fake.wanted.key).unwrap();
    let mut next = fake.wanted.clone();
    next.key.generation += 1;
    let error = export(&fake.root, &next).unwrap_err();
    assert!(error.class == crate::Class::Refuse && error.detail.contains(&fake.wanted.key.nqn().0), "{error}");
}

#[test]
fn a_fence_closes_every_port_and_disables_and_keeps_the_numbers_taken() {
    let fake = fake();
    export(&fake.root, &fake.wanted).unwrap();
    assert_eq!(fence(&fake.root, fake.wanted.key), Ok(Changed::Yes));
    assert_eq!(fence(&fake.root, fake.wanted.key), Ok(Changed::No));
    let fact = observe(&fake.root, fake.wanted.key.replica).unwrap();
    let entry = &fact.entries[&fake.wanted.key];
    assert!(!entry.enabled && entry.ports.is_empty());
    assert_eq!(entry.unlinked_ports, fake.wanted.listen);
    assert_eq!(entry.hosts.len(), 1, "the allowed host stays");
    assert_eq!(fact.ports_in_use, BTreeSet::from([5001]));
}

#[test]
fn only_a_fenced_export_is_removed_and_wholly() {
    let fake = fake();
    export(&fake.root, &fake.wanted).unwrap();
    assert_eq!(remove(&fake.root, fake.wanted.key).unwrap_err().class, crate::Class::Refuse);
    fence(&fake.root, fake.wanted.key).unwrap();
    assert_eq!(remove(&fake.root, fake.wanted.key), Ok(Changed::Yes));
    assert_eq!(remove(&fake.root, fake.wanted.key), Ok(Changed::No));
    assert_eq!(observe(&fake.root, fake.wanted.key.replica).unwrap(), ExportFact::default());
    for folder in ["hosts", "ports", "subsystems"] {
        assert!(attr::names(&fake.root.configfs.join("nvmet").join(folder)).is_empty(), "{folder}");
    }
}

#[test]
fn unmarked_ports_of_our_range_are_swept_and_no_others() {
    let fake = fake();
    export(&fake.root, &fake.wanted).unwrap();
    let ports = fake.root.configfs.join("nvmet/ports");
    for id in ["5002", "35003", "4420"] {
        groups::make(&ports.join(id)).unwrap();
    }
    assert_eq!(sweep(&fake.root, &(5000..=5999)), ["35003", "5002"]);
    assert_eq!(attr::names(&ports), ["35001", "4420", "5001"]);
}

#[test]
fn without_nvmet_there_are_no_exports_and_none_can_be_made() {
    let mut fake = fake();
    fake.root = Root::at("/nonexistent");
    assert_eq!(observe(&fake.root, fake.wanted.key.replica), Ok(ExportFact::default()));
    assert_eq!(export(&fake.root, &fake.wanted).unwrap_err().class, crate::Class::Wait);
    assert_eq!(fence(&fake.root, fake.wanted.key), Ok(Changed::No));
}

#[test]
fn an_export_of_a_drive_that_was_taken_away_shows_and_is_made_anew() {
    let mut fake = fake();
    let disk = fake.root.sys.join("devices/nvme0n1");
    fs::create_dir_all(disk.join("nvme0n1p1")).unwrap();
    fs::create_dir_all(fake.root.sys.join("class/block")).unwrap();
    std::os::unix::fs::symlink(disk.join("nvme0n1p1"), fake.root.sys.join("class/block/nvme0n1p1")).unwrap();
    fs::write(disk.join("diskseq"), "9\n").unwrap();
    fake.wanted.device = attr::show(&fake._dir.path().join("nvme0n1p1"));
    export(&fake.root, &fake.wanted).unwrap();
    assert_eq!(export(&fake.root, &fake.wanted), Ok(Changed::No));
    let key = fake.wanted.key;
    let gone = || observe(&fake.root, key.replica).unwrap().entries[&key].gone;
    assert!(!gone());
    // It is back under the same name.
    fs::write(disk.join("diskseq"), "10\n").unwrap();
    assert!(gone());
    assert!(export(&fake.root, &fake.wanted).is_err(), "never changed while it is linked");
    fence(&fake.root, key).unwrap();
    assert!(!gone(), "a disabled namespace holds nothing");
    assert_eq!(export(&fake.root, &fake.wanted), Ok(Changed::Yes));
    assert!(!gone());
    fs::remove_file(fake.root.sys.join("class/block/nvme0n1p1")).unwrap();
    assert!(gone(), "the drive is away");
}
