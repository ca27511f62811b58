//! Placement by table and by property: the choice, and the sentence of everyone who lost.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn drive(id: &str, gib: u64) -> DriveOffer {
    DriveOffer {
        drive: DriveId(id.into()),
        unusable: None,
        sector_bytes: 4096,
        free_bytes: gib * GIB,
        largest_free_bytes: gib * GIB,
        reserved_bytes: 0,
    }
}

fn node(name: &str, gib: u64) -> NodeOffer {
    NodeOffer {
        name: NodeName(name.into()),
        not_ready: None,
        silent: None,
        maintenance: false,
        fabric: "default".into(),
        zone: None,
        transports: [Transport::Tcp].into(),
        drives: vec![drive("d", gib)],
    }
}

fn request(copies: usize, gib: u64) -> Request {
    Request {
        copies,
        partition_bytes: partition_bytes(gib * GIB),
        sector_bytes: 4096,
        local: Local::Anywhere,
        fabrics: vec![],
        zones: Zones::Any,
        excluded: BTreeMap::new(),
    }
}

fn name(text: &str) -> NodeName {
    NodeName(text.into())
}

fn names(offers: &[NodeOffer], request: &Request) -> Vec<String> {
    let choice = place(offers, request).unwrap();
    choice.picks.into_iter().map(|pick| pick.node.0).collect()
}

#[test]
fn sizes_of_partitions() {
    const MIB: u64 = 1 << 20;
    for (size, partition) in [(1, 6 * MIB), (MIB, 6 * MIB), (MIB + 1, 7 * MIB), (GIB, GIB + 5 * MIB)] {
        assert_eq!(partition_bytes(size), partition);
    }
    assert_eq!(volume_bytes(GIB + 5 * MIB + 7), GIB);
    assert_eq!(volume_bytes(4 * MIB), 0);
    assert!(partition_bytes(u64::MAX) > GIB, "no overflow");
}

#[test]
fn most_free_then_name() {
    let offers = [node("c", 10), node("a", 10), node("b", 50), node("d", 5)];
    assert_eq!(names(&offers, &request(2, 1)), ["b", "a"]);
    let choice = place(&offers, &request(2, 1)).unwrap();
    let lost: Vec<&str> = choice.lost.iter().map(|lost| lost.node.0.as_str()).collect();
    assert_eq!(lost, ["c", "d"]);
    assert!(choice.lost[0].why.starts_with("has room (10737418240 bytes free), others have more"));
}

#[test]
fn the_pods_node_comes_first_if_it_can() {
    let offers = [node("a", 50), node("b", 40), node("c", 2)];
    let near = |gib, node: &str| Request { local: Local::Preferred(name(node)), ..request(2, gib) };
    assert_eq!(names(&offers, &near(1, "c")), ["c", "a"]);
    assert_eq!(names(&offers, &near(3, "c")), ["a", "b"]);
    assert_eq!(names(&offers, &near(1, "unknown")), ["a", "b"]);
}

#[test]
fn a_required_local_copy_is_not_negotiable() {
    let offers = [node("a", 50), node("b", 40), node("c", 2)];
    let either = |first: Option<&str>| Local::Required { of: [name("b"), name("c")].into(), first: first.map(name) };
    let near = |gib, first| Request { local: either(first), ..request(2, gib) };
    assert_eq!(names(&offers, &near(1, None)), ["b", "a"]);
    assert_eq!(names(&offers, &near(1, Some("c"))), ["c", "a"]);
    assert_eq!(names(&offers, &near(3, Some("c"))), ["b", "a"], "the other one will do as well");
    let only_c = Request { local: Local::only(name("c")), ..request(2, 3) };
    let sentence = place(&offers, &only_c).unwrap_err().to_string();
    assert_eq!(
        sentence,
        "localCopy is required and c cannot hold a copy: \
         c drive d has no free extent of 3226468352 bytes, the largest is 2147483648"
    );
}

#[test]
fn every_loser_has_a_sentence_of_its_own() {
    let mut offers = vec![node("ok", 50)];
    let mut add = |change: fn(&mut NodeOffer)| {
        let mut offer = node(&format!("n{}", offers.len()), 50);
        change(&mut offer);
        offers.push(offer);
    };
    add(|n| n.maintenance = true);
    add(|n| n.silent = Some("status.heartbeat is 90 s old, allowed are 60 s".into()));
    add(|n| n.not_ready = Some("nvmet cannot be loaded".into()));
    add(|n| n.fabric = "blue".into());
    add(|n| n.transports.clear());
    add(|n| n.drives.clear());
    add(|n| n.drives[0].unusable = Some("ext4 file system on the whole drive".into()));
    add(|n| n.drives[0].sector_bytes = 512);
    add(|n| n.drives[0].reserved_bytes = 49 * GIB + GIB / 2);
    add(|_| {});
    let mut request = request(2, 1);
    request.fabrics = vec!["default".into()];
    request.excluded.insert(name("n10"), "holds another copy".into());
    let shortage = place(&offers, &request).unwrap_err();
    let text = shortage.to_string();
    assert_eq!((shortage.wanted, shortage.possible, shortage.lost.len()), (2, 1, 10));
    for sentence in [
        "2 nodes with 1078984704 bytes free on one drive are needed, 1 found: ",
        "n1 is in maintenance (spec.maintenance is true);",
        "n2 is silent: status.heartbeat is 90 s old, allowed are 60 s;",
        "n3 is not ready: nvmet cannot be loaded;",
        "n4 is on fabric blue, wanted is default;",
        "n5 has no address to export on (status.addresses is empty);",
        "n6 reports no drive;",
        "n7 drive d may not be used: ext4 file system on the whole drive;",
        "n8 drive d has sectors of 512 bytes, sectorSize is 4096;",
        "the largest is 536870912 (53150220288 bytes are held for copies under way)",
        "n10 holds another copy",
    ] {
        assert!(text.contains(sentence), "{sentence}\n in {text}");
    }
    let many: Vec<NodeOffer> = (0..40).map(|i| node(&format!("n{i:02}"), 0)).collect();
    let text = place(&many, &request).unwrap_err().to_string();
    assert!(text.ends_with("; and 28 more") && text.len() < 2000, "{text}");
}

#[test]
fn copies_share_a_fabric_and_a_transport_with_the_pods_node() {
    let mut offers = vec![node("a", 50), node("b", 40), node("c", 30), node("d", 20)];
    for index in [2, 3] {
        offers[index].fabric = "blue".into();
    }
    let with = |fabrics: &[&str], copies| Request {
        fabrics: fabrics.iter().map(|f| f.to_string()).collect(),
        ..request(copies, 1)
    };
    assert_eq!(names(&offers, &with(&[], 2)), ["c", "d"]);
    assert_eq!(names(&offers, &with(&["default", "blue"], 2)), ["a", "b"]);
    offers[1].maintenance = true;
    assert_eq!(names(&offers, &with(&["default", "blue"], 2)), ["c", "d"]);
    assert!(place(&offers, &with(&["default"], 2)).unwrap_err().to_string().contains("c is on fabric blue"));
    let nowhere = place(&offers, &with(&["red"], 1)).unwrap_err().to_string();
    assert!(nowhere.contains("a is on fabric default, wanted is red"), "{nowhere}");

    offers[2].transports = [Transport::Rdma].into();
    let near = Request { local: Local::Preferred(name("d")), ..with(&["blue"], 2) };
    let text = place(&offers, &near).unwrap_err().to_string();
    assert!(text.contains("c has rdma, d has tcp: no transport in common"), "{text}");
}

fn zoned(nodes: &[(&str, u64, &str)]) -> Vec<NodeOffer> {
    let offer = |(name, gib, zone): &(&str, u64, &str)| NodeOffer {
        zone: Some(zone.to_string()).filter(|zone| !zone.is_empty()),
        ..node(name, *gib)
    };
    nodes.iter().map(offer).collect()
}

fn own(taken: &[&str]) -> Zones {
    Zones::Own(taken.iter().map(|zone| zone.to_string()).collect())
}

#[test]
fn each_copy_has_a_zone_of_its_own_or_there_is_no_volume() {
    let offers = zoned(&[("a", 50, "z1"), ("b", 40, "z1"), ("c", 10, "z2"), ("d", 90, ""), ("e", 1, "z3")]);
    let strict = |copies, gib| Request { zones: own(&[]), ..request(copies, gib) };
    assert_eq!(names(&offers, &strict(2, 5)), ["a", "c"], "b has more than c and is in the zone of a");
    assert_eq!(names(&offers, &Request { zones: own(&["z1"]), ..request(1, 5) }), ["c"]);
    let near = Request { local: Local::Preferred(name("b")), ..strict(2, 5) };
    assert_eq!(names(&offers, &near), ["b", "c"]);
    let bound = Request { local: Local::only(name("b")), ..strict(2, 5) };
    assert_eq!(names(&offers, &bound), ["b", "c"]);
    assert_eq!(
        place(&offers, &strict(3, 5)).unwrap_err().to_string(),
        "topologySpread is zone: 3 zones with a node with 5373952000 bytes free on one drive are needed, 2 found: \
         a has room in zone z1; b has room in zone z1; c has room in zone z2; \
         d has no zone (its Node has no label topology.kubernetes.io/zone); \
         e drive d has no free extent of 5373952000 bytes, the largest is 1073741824"
    );
    let taken = place(&offers, &Request { zones: own(&["z1", "z2"]), ..request(1, 5) }).unwrap_err().to_string();
    assert!(taken.contains("c is in zone z2, which holds a copy of it"), "{taken}");
    assert_eq!(largest(&offers, &strict(2, 0)), volume_bytes(10 * GIB), "not the 50 GiB that two nodes have");
    assert_eq!(largest(&offers, &strict(4, 0)), 0);
}

#[test]
fn where_zones_are_only_preferred_copies_spread_as_evenly_as_can_be() {
    let offers = zoned(&[("a", 50, "z1"), ("b", 40, "z1"), ("c", 10, "z2"), ("d", 90, ""), ("e", 80, "")]);
    let even = |held: &[(&str, usize)], copies, gib| Request {
        zones: Zones::Even(held.iter().map(|(zone, count)| (zone.to_string(), *count)).collect()),
        ..request(copies, gib)
    };
    assert_eq!(names(&offers, &even(&[], 3, 5)), ["d", "a", "c"], "nodes of no known zone count as one");
    assert_eq!(names(&offers, &even(&[], 5, 5)), ["d", "a", "c", "e", "b"]);
    assert_eq!(names(&offers, &even(&[], 2, 20)), ["d", "a"]);
    assert_eq!(names(&offers, &even(&[("", 1), ("z1", 1)], 1, 5)), ["c"], "one more copy goes to an empty zone");
    assert_eq!(names(&offers, &even(&[("", 1), ("z1", 1)], 1, 20)), ["d"], "or where there is room at all");
    let bound = Request { local: Local::only(name("b")), ..even(&[("z1", 1)], 1, 5) };
    assert_eq!(names(&offers, &bound), ["b"], "a copy that must be there is there");
}

#[test]
fn capacity_is_what_would_be_made() {
    let offers = [node("a", 100), node("b", 10), node("c", 50)];
    assert_eq!(largest(&offers, &request(2, 0)), volume_bytes(50 * GIB));
    assert_eq!(largest(&offers, &request(3, 0)), volume_bytes(10 * GIB));
    assert_eq!(largest(&offers, &request(4, 0)), 0);
    let near = |node: &str, copies| Request { local: Local::only(name(node)), ..request(copies, 0) };
    assert_eq!(largest(&offers, &near("b", 2)), volume_bytes(10 * GIB));
    assert_eq!(largest(&offers, &near("a", 2)), volume_bytes(50 * GIB));
    assert_eq!(largest(&offers, &near("a", 1)), volume_bytes(100 * GIB));
    assert_eq!(largest(&offers, &near("x", 1)), 0);
}

prop_compose! {
    fn any_node()(
        gibs in prop::collection::vec((0..40u64, 0..8u64, prop::bool::weighted(0.1), prop::bool::weighted(0.1)), 0..3),
        flags in prop::array::uniform4(prop::bool::weighted(0.1)),
        rdma in any::<bool>(),
        zone in prop::option::weighted(0.8, "z[0-3]"),
    ) -> NodeOffer {
        let mut offer = node("x", 0);
        offer.zone = zone;
        offer.not_ready = flags[0].then(|| "broken".into());
        offer.silent = flags[1].then(|| "gone".into());
        offer.maintenance = flags[2];
        offer.fabric = if flags[3] { "blue".into() } else { "default".into() };
        if rdma {
            offer.transports.insert(Transport::Rdma);
        }
        offer.drives = gibs.into_iter().enumerate().map(|(index, (gib, reserved, bad, small))| {
            let mut drive = drive(&format!("d{index}"), gib);
            drive.reserved_bytes = reserved * GIB;
            drive.unusable = bad.then(|| "theirs".into());
            drive.sector_bytes = if small { 512 } else { 4096 };
            drive
        }).collect();
        offer
    }
}

fn any_offers() -> impl Strategy<Value = Vec<NodeOffer>> {
    prop::collection::vec(any_node(), 0..8).prop_map(|mut offers| {
        for (index, offer) in offers.iter_mut().enumerate() {
            offer.name = NodeName(format!("n{index}"));
        }
        offers
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let held = prop::option::of("z[0-3]");
    (1..4usize, 1..20u64, 0..3u8, 0..8u8, 0..9u8, 0..3u8, held).prop_map(
        |(copies, gib, local, near, out, zones, held)| {
            let near = NodeName(format!("n{near}"));
            let local = match local {
                0 => Local::Anywhere,
                1 => Local::Preferred(near),
                _ => Local::only(near),
            };
            let zones = match zones {
                0 => Zones::Any,
                1 => Zones::Own(held.into_iter().collect()),
                _ => Zones::Even(held.into_iter().map(|zone| (zone, 1)).collect()),
            };
            let excluded = BTreeMap::from([(NodeName(format!("n{out}")), "was slow".to_string())]);
            Request { local, zones, excluded, ..request(copies, gib) }
        },
    )
}

proptest! {
    #[test]
    fn a_choice_is_sound_and_everybody_else_is_told_why(offers in any_offers(), request in any_request()) {
        let everybody: BTreeSet<NodeName> = offers.iter().map(|offer| offer.name.clone()).collect();
        match place(&offers, &request) {
            Ok(choice) => {
                let picked: BTreeSet<NodeName> = choice.picks.iter().map(|pick| pick.node.clone()).collect();
                prop_assert_eq!(picked.len(), request.copies, "distinct nodes");
                for pick in &choice.picks {
                    let node = offers.iter().find(|offer| offer.name == pick.node).unwrap();
                    let drive = node.drives.iter().find(|drive| drive.drive == pick.drive).unwrap();
                    prop_assert!(drive.unusable.is_none() && drive.sector_bytes == request.sector_bytes);
                    prop_assert!(drive.room() >= request.partition_bytes);
                    prop_assert!(node.silent.is_none() && node.not_ready.is_none() && !node.maintenance);
                    prop_assert!(node.fabric == choice.fabric && !request.excluded.contains_key(&node.name));
                }
                if let Local::Required { of, .. } = &request.local {
                    prop_assert!(of.contains(&choice.picks[0].node));
                }
                let zone = |pick: &Pick| offers.iter().find(|offer| offer.name == pick.node).unwrap().zone.clone();
                if let Zones::Own(taken) = &request.zones {
                    let zones: BTreeSet<Option<String>> = choice.picks.iter().map(zone).collect();
                    prop_assert_eq!(zones.len(), request.copies, "a zone each");
                    prop_assert!(zones.iter().all(|zone| zone.as_ref().is_some_and(|zone| !taken.contains(zone))));
                }
                let lost: BTreeSet<NodeName> = choice.lost.iter().map(|lost| lost.node.clone()).collect();
                prop_assert_eq!(lost.len(), choice.lost.len(), "one sentence each");
                prop_assert!(lost.is_disjoint(&picked));
                prop_assert_eq!(&lost | &picked, everybody);
            }
            Err(shortage) => {
                prop_assert!(shortage.possible < request.copies || !shortage.required.is_empty());
                prop_assert!(shortage.lost.len() + shortage.possible >= everybody.len());
            }
        }
    }

    #[test]
    fn the_order_of_offers_does_not_matter(offers in any_offers(), request in any_request(), turn in 0..8usize) {
        let mut turned = offers.clone();
        let turn = turn.min(turned.len());
        turned.rotate_left(turn);
        for offer in &mut turned {
            offer.drives.reverse();
        }
        prop_assert_eq!(place(&turned, &request), place(&offers, &request));
        prop_assert_eq!(largest(&turned, &request), largest(&offers, &request));
    }

    #[test]
    fn the_largest_volume_can_be_made_and_no_larger_one(offers in any_offers(), request in any_request()) {
        let size = largest(&offers, &request);
        let of = |size: u64| Request { partition_bytes: partition_bytes(size), ..request.clone() };
        if size > 0 {
            prop_assert!(place(&offers, &of(size)).is_ok());
        }
        prop_assert!(place(&offers, &of(size + ALIGNMENT)).is_err());
    }
}
