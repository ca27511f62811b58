//! Tables and properties of the StorageClass parameters.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use proptest::prelude::*;

use super::*;

fn parse(pairs: &[(&str, &str)]) -> Result<VolumeParameters, Refusal> {
    let map = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    VolumeParameters::parse(&map)
}

fn refused(pairs: &[(&str, &str)]) -> String {
    match parse(pairs) {
        Ok(parameters) => panic_with(format!("{pairs:?} was accepted as {parameters:?}")),
        Err(refusal) => {
            assert_eq!(refusal.code, tonic::Code::InvalidArgument);
            refusal.message
        }
    }
}

#[allow(clippy::panic, reason = "a test reports that way")]
fn panic_with(message: String) -> String {
    panic!("{message}")
}

#[test]
fn the_defaults() {
    let defaults = parse(&[]).unwrap();
    assert_eq!(defaults, VolumeParameters::default());
    assert_eq!(defaults.replica_count, 2);
    assert_eq!(defaults.stripe_width, 1);
    assert_eq!(defaults.member_missing_timeout, Duration::from_secs(900));
    assert_eq!(defaults.relocation_delay, Some(Duration::from_secs(300)));
    assert_eq!(defaults.sector_size.choices(), [4096, 512]);
    assert_eq!(defaults.local_copy, LocalCopy::Preferred);
    assert_eq!(defaults.topology_spread, TopologySpread::None);
    assert_eq!(defaults.filesystem, None);
}

#[test]
fn accepted_values() {
    assert_eq!(parse(&[("replicaCount", "1")]).unwrap().replica_count, 1);
    assert_eq!(parse(&[("replicaCount", "16")]).unwrap().replica_count, 16);
    assert_eq!(parse(&[("numberOfCopies", "3")]).unwrap().replica_count, 3);
    assert_eq!(parse(&[("replicaCount", "3"), ("numberOfCopies", "3")]).unwrap().replica_count, 3);
    assert_eq!(parse(&[("drivesPerCopy", "1")]).unwrap().stripe_width, 1);
    assert_eq!(parse(&[("relocationDelay", "never")]).unwrap().relocation_delay, None);
    assert_eq!(parse(&[("relocationDelay", "0")]).unwrap().relocation_delay, Some(Duration::ZERO));
    assert_eq!(parse(&[("memberMissingTimeout", "60")]).unwrap().member_missing_timeout.as_secs(), 60);
    assert_eq!(parse(&[("sectorSize", "512")]).unwrap().sector_size, SectorSize::B512);
    assert_eq!(parse(&[("localCopy", "required")]).unwrap().local_copy, LocalCopy::Required);
    assert_eq!(parse(&[("localCopy", "none")]).unwrap().local_copy, LocalCopy::None);
    for spread in [TopologySpread::None, TopologySpread::Zone, TopologySpread::ZonePreferred] {
        assert_eq!(parse(&[("topologySpread", spread.as_str())]).unwrap().topology_spread, spread);
    }
    assert_eq!(parse(&[("csi.storage.k8s.io/fstype", "xfs")]).unwrap().filesystem, Some(Filesystem::Xfs));
    assert_eq!(parse(&[("csi.storage.k8s.io/fstype", "ext4")]).unwrap().filesystem, Some(Filesystem::Ext4));
    assert_eq!(parse(&[("csi.storage.k8s.io/fstype", "")]).unwrap().filesystem, None);
    assert_eq!(parse(&[("csi.storage.k8s.io/pvc/name", "db")]).unwrap(), VolumeParameters::default());
}

#[test]
fn refused_values_are_told_what_is_allowed() {
    let table = [
        ("replicaCount", "0", "a whole number from 1 to 16"),
        ("replicaCount", "17", "a whole number from 1 to 16"),
        ("replicaCount", "", "a whole number from 1 to 16"),
        ("replicaCount", "+2", "a whole number from 1 to 16"),
        ("replicaCount", "02", "a whole number from 1 to 16"),
        ("replicaCount", " 2", "a whole number from 1 to 16"),
        ("replicaCount", "2.0", "a whole number from 1 to 16"),
        ("replicaCount", "٢", "a whole number from 1 to 16"),
        ("replicaCount", "258", "a whole number from 1 to 16"),
        ("numberOfCopies", "18446744073709551617", "a whole number from 1 to 16"),
        ("stripeWidth", "0", "allowed is 1"),
        ("stripeWidth", "2", "striped volumes are not available in this version"),
        ("drivesPerCopy", "4", "striped volumes are not available in this version"),
        ("memberMissingTimeout", "59", "seconds from 60 to"),
        ("memberMissingTimeout", "31536001", "seconds from 60 to"),
        ("memberMissingTimeout", "15m", "seconds from 60 to"),
        ("memberMissingTimeout", "0", "there is no 0 and no never"),
        ("memberMissingTimeout", "never", "there is no 0 and no never"),
        ("relocationDelay", "-1", "from 0 to 31536000, or never"),
        ("relocationDelay", "", "from 0 to 31536000, or never"),
        ("sectorSize", "4k", "any, 512 or 4096"),
        ("localCopy", "Preferred", "preferred, required or none"),
        ("topologySpread", "zones", "none, zone (a zone for each copy or no volume) or zonePreferred"),
        ("csi.storage.k8s.io/fstype", "zfs", "allowed is xfs or ext4"),
    ];
    for (key, value, allowed) in table {
        let message = refused(&[(key, value)]);
        assert!(message.starts_with(&format!("parameters.{key}")), "{message}");
        assert!(message.contains(allowed), "{key}={value}: {message}");
    }
}

#[test]
fn two_spellings_must_agree() {
    let message = refused(&[("replicaCount", "2"), ("numberOfCopies", "3")]);
    assert!(message.contains("parameters.replicaCount and parameters.numberOfCopies are two spellings"), "{message}");
    // The older spelling is checked even where the present one decides.
    assert!(refused(&[("replicaCount", "2"), ("numberOfCopies", "x")]).starts_with("parameters.numberOfCopies"));
}

#[test]
fn an_unknown_key_is_answered_with_all_known_ones() {
    let message = refused(&[("replicacount", "3")]);
    assert!(message.contains("unknown key \"replicacount\""), "{message}");
    for key in KNOWN {
        assert!(message.contains(key), "{message} lacks {key}");
    }
    // fstype without its prefix is a known slip; it must not be swallowed.
    assert!(refused(&[("fstype", "xfs")]).contains("unknown key"));
}

fn any_parameters() -> impl Strategy<Value = VolumeParameters> {
    let sectors = prop_oneof![Just(SectorSize::Any), Just(SectorSize::B512), Just(SectorSize::B4096)];
    let copies = prop_oneof![Just(LocalCopy::Preferred), Just(LocalCopy::Required), Just(LocalCopy::None)];
    let spreads =
        prop_oneof![Just(TopologySpread::None), Just(TopologySpread::Zone), Just(TopologySpread::ZonePreferred)];
    let filesystems = prop_oneof![Just(None), Just(Some(Filesystem::Xfs)), Just(Some(Filesystem::Ext4))];
    let seconds = (MISSING_SECONDS_MIN..=MISSING_SECONDS_MAX, proptest::option::of(0..=MISSING_SECONDS_MAX));
    (1..=16u8, seconds, sectors, copies, spreads, filesystems).prop_map(
        |(replica_count, (seconds, delay), sector_size, local_copy, topology_spread, filesystem)| VolumeParameters {
            replica_count,
            stripe_width: 1,
            member_missing_timeout: Duration::from_secs(seconds),
            relocation_delay: delay.map(Duration::from_secs),
            sector_size,
            local_copy,
            topology_spread,
            filesystem,
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(parameters in any_parameters()) {
        let map = parameters.to_map().into_iter().collect();
        prop_assert_eq!(VolumeParameters::parse(&map), Ok(parameters));
    }

    #[test]
    fn parsing_never_panics_and_refuses_with_a_sentence(
        map in prop::collection::hash_map(
            prop_oneof![prop::sample::select(KNOWN).prop_map(str::to_owned), ".*"],
            prop_oneof!["[0-9]{0,22}", ".*"],
            0..6,
        )
    ) {
        if let Err(refusal) = VolumeParameters::parse(&map) {
            prop_assert!(refusal.message.contains("parameters"));
            prop_assert!(refusal.message.contains("allowed") && refusal.message.len() < 1200);
        }
    }
}
