//! The table of what recover proposes, and of what it refuses to.

use super::*;
use crate::record::{FormatRecord, ReplicaRecord};
use crate::testing;

/// A copy with number `replica` as MD device `replica`, on a drive that was fenced for `epoch` while `set` was recorded.
fn copy(replica: u32, epoch: Epoch, set: &[u32], events: u64, active: &[u32]) -> CopyReport {
    CopyReport {
        node: NodeName(format!("node-{replica}")),
        drive: DriveId(format!("drive-{replica}")),
        bytes: 1 << 30,
        record: EpochRecord { in_sync: ids(set), ..testing::record(replica, epoch, 0) },
        member: Some(Member {
            set_uuid: testing::volume().md_uuid(),
            events,
            number: replica,
            active: active.iter().copied().collect(),
            recovering: false,
            component_bytes: 1 << 30,
        }),
        holders: BTreeSet::new(),
    }
}

fn ids(numbers: &[u32]) -> BTreeSet<ReplicaId> {
    numbers.iter().copied().map(ReplicaId).collect()
}

/// A record of `epoch` with this set, and objects of these copies.
fn recorded(epoch: Epoch, set: &[u32], copies: &[u32]) -> VolumeRecord {
    let replica = |n: &u32| {
        let record = ReplicaRecord {
            granted: None,
            node: NodeName(format!("node-{n}")),
            wanted: true,
            partition_bytes: 1 << 30,
            wanted_export: (epoch, 0),
            fenced_epoch: epoch,
            export: None,
        };
        (ReplicaId(*n), record)
    };
    VolumeRecord {
        epoch,
        in_sync: Some(ids(set)),
        activated_epoch: 1,
        replicas: copies.iter().map(replica).collect(),
        ..testing::volume_record()
    }
}

fn case(record: Option<&VolumeRecord>, copies: Vec<CopyReport>) -> Case<'_> {
    let known = record.iter().flat_map(|r| &r.replicas).map(|(id, r)| (*id, r.node.clone())).collect();
    Case { volume: testing::volume(), record, known, dismissed: BTreeSet::new(), copies, accepted: None }
}

fn written(finding: &Finding) -> &Proposal {
    match &finding.outcome {
        Outcome::Write(proposal) => proposal,
        other => panic!("{other:?}"),
    }
}

fn blocked(finding: &Finding) -> &Blocked {
    match &finding.outcome {
        Outcome::Blocked(blocked) => blocked,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_as_new_as_its_drives_is_left_alone() {
    let record = recorded(4, &[0, 1], &[0, 1]);
    let finding = propose(&case(Some(&record), vec![copy(0, 4, &[0, 1], 9, &[0, 1]), copy(1, 3, &[0, 1], 9, &[0, 1])]));
    assert_eq!(finding.outcome, Outcome::Sound);
    // A silent copy changes nothing about that: the record counts.
    let finding = propose(&case(Some(&record), vec![copy(0, 4, &[0, 1], 9, &[0, 1])]));
    assert_eq!(finding.outcome, Outcome::Sound);
}

#[test]
fn after_two_moves_the_copies_that_agree_are_taken_above_every_epoch() {
    let record = recorded(2, &[0, 1], &[0, 1]);
    let copies = vec![copy(0, 6, &[0, 1], 9, &[0, 1]), copy(1, 5, &[0, 1], 9, &[0, 1])];
    let finding = propose(&case(Some(&record), copies));
    let proposal = written(&finding);
    assert_eq!((finding.recorded, finding.seen, proposal.epoch, proposal.activated), (Some(2), 6, 7, 6));
    assert_eq!(proposal.in_sync, ids(&[0, 1]));
    assert!(proposal.given_up.is_empty() && proposal.overruled.is_empty());
}

#[test]
fn an_epoch_that_only_an_object_remembers_counts_too() {
    let mut record = recorded(2, &[0, 1], &[0, 1]);
    record.replicas.get_mut(&ReplicaId(1)).unwrap().fenced_epoch = 11;
    let copies = vec![copy(0, 6, &[0, 1], 9, &[0, 1]), copy(1, 5, &[0, 1], 9, &[0, 1])];
    assert_eq!(written(&propose(&case(Some(&record), copies))).epoch, 12);
}

#[test]
fn the_copy_that_went_on_alone_is_taken_and_not_the_one_with_the_higher_epoch() {
    // r1 left the set, then the consumer with r0 died; r1's node alone was fenced for what came next.
    let record = recorded(2, &[0, 1], &[0, 1]);
    let copies = vec![copy(0, 5, &[0, 1], 50, &[0]), copy(1, 6, &[0], 40, &[0, 1])];
    let finding = propose(&case(Some(&record), copies));
    assert_eq!(written(&finding).in_sync, ids(&[0]));
    assert_eq!(finding.verdicts, [Verdict::Complete, Verdict::Behind]);
}

#[test]
fn two_histories_are_never_chosen_between() {
    let record = recorded(2, &[0, 1], &[0, 1]);
    for events in [(50, 40), (40, 50), (40, 40)] {
        let copies = vec![copy(0, 6, &[0, 1], events.0, &[0]), copy(1, 6, &[0, 1], events.1, &[1])];
        let mut asked = case(Some(&record), copies);
        assert_eq!(*blocked(&propose(&asked)), Blocked::Diverged(ids(&[0, 1])));
        // Nor by a blanket permission.
        asked.accepted = Some(Accepted::Newest);
        assert_eq!(*blocked(&propose(&asked)), Blocked::Diverged(ids(&[0, 1])));
        for named in [0, 1] {
            asked.accepted = Some(Accepted::Copy(ReplicaId(named)));
            let finding = propose(&asked);
            assert_eq!(written(&finding).in_sync, ids(&[named]));
            assert_eq!(written(&finding).overruled, ids(&[1 - named]));
        }
    }
}

#[test]
fn a_silent_copy_that_may_be_newer_blocks_until_its_loss_is_accepted() {
    let record = recorded(2, &[0, 1], &[0, 1]);
    let mut asked = case(Some(&record), vec![copy(0, 6, &[0, 1], 9, &[0, 1])]);
    let silent: BTreeSet<Unseen> = [Unseen::Copy(ReplicaId(1))].into();
    assert_eq!(*blocked(&propose(&asked)), Blocked::Silent(silent.clone()));
    asked.accepted = Some(Accepted::Newest);
    let finding = propose(&asked);
    assert_eq!((written(&finding).in_sync.clone(), written(&finding).given_up.clone()), (ids(&[0]), silent));
    // Of a member that no object and no record names, all that is known is its number.
    asked.known.clear();
    asked.accepted = None;
    asked.copies[0].record.in_sync = ids(&[0]);
    assert_eq!(*blocked(&propose(&asked)), Blocked::Silent([Unseen::Device(1)].into()));
}

#[test]
fn a_silent_copy_that_had_left_before_the_last_fence_blocks_nothing() {
    let record = recorded(2, &[0, 1], &[0, 1]);
    let finding = propose(&case(Some(&record), vec![copy(0, 6, &[0], 9, &[0])]));
    assert_eq!(written(&finding).in_sync, ids(&[0]));
    assert_eq!(finding.unseen[&Unseen::Copy(ReplicaId(1))], Newer::Excluded);
    // When it was in the set at that fence, it may have gone on alone.
    let finding = propose(&case(Some(&record), vec![copy(0, 6, &[0, 1], 9, &[0])]));
    assert_eq!(*blocked(&finding), Blocked::Silent([Unseen::Copy(ReplicaId(1))].into()));
}

#[test]
fn a_number_that_was_given_twice_hides_nobody() {
    // r2 was device 1 after r1 had left; r1 answers, r2 does not.
    let record = recorded(2, &[0, 1], &[0, 1, 2]);
    let copies = vec![copy(0, 6, &[0], 50, &[0, 1]), copy(1, 6, &[0], 20, &[0, 1])];
    let finding = propose(&case(Some(&record), copies));
    assert_eq!(*blocked(&finding), Blocked::Silent([Unseen::Copy(ReplicaId(2))].into()));
}

#[test]
fn the_last_step_of_a_crash_does_not_make_a_member_a_stranger() {
    let record = recorded(2, &[0, 1], &[0, 1]);
    let copies = vec![copy(0, 6, &[0, 1], 9, &[0, 1]), copy(1, 6, &[0, 1], 8, &[0, 1])];
    let finding = propose(&case(Some(&record), copies));
    assert_eq!(written(&finding).in_sync, ids(&[0]), "one event less: it comes back by a copy");
    assert!(finding.unseen.is_empty());
}

#[test]
fn unfinished_dismissed_and_foreign_copies_are_left_out() {
    let record = recorded(2, &[0], &[0, 1, 2, 3]);
    let mut unfinished = copy(1, 6, &[0], 9, &[0, 1, 2]);
    unfinished.member.as_mut().unwrap().recovering = true;
    let mut foreign = copy(3, 6, &[0], 99, &[3]);
    foreign.member.as_mut().unwrap().set_uuid = Uuid::from_u128(1);
    let copies = vec![copy(0, 6, &[0], 9, &[0]), unfinished, copy(2, 6, &[0], 99, &[2]), foreign];
    let mut asked = case(Some(&record), copies);
    asked.dismissed = ids(&[2]);
    let finding = propose(&asked);
    assert_eq!(written(&finding).in_sync, ids(&[0]));
    assert_eq!(finding.verdicts, [Verdict::Complete, Verdict::Unfinished, Verdict::Dismissed, Verdict::Blank]);
}

#[test]
fn a_volume_without_an_object_is_rebuilt_from_its_copies() {
    let copies = vec![copy(0, 6, &[0, 1], 9, &[0, 1]), copy(1, 6, &[0, 1], 9, &[0, 1])];
    let finding = propose(&case(None, copies));
    let proposal = written(&finding);
    assert_eq!((finding.recorded, proposal.epoch, proposal.size_bytes), (None, 7, Some(1 << 30)));
    assert_eq!(proposal.in_sync, ids(&[0, 1]));
    assert_eq!(*blocked(&propose(&case(None, Vec::new()))), Blocked::NoCopy);
}

#[test]
fn two_partitions_with_one_number_are_not_chosen_between() {
    let mut other = copy(1, 6, &[0, 1], 9, &[0, 1]);
    other.node = NodeName("node-7".into());
    let copies = vec![copy(0, 6, &[0, 1], 9, &[0, 1]), copy(1, 6, &[0, 1], 9, &[0, 1]), other];
    assert_eq!(*blocked(&propose(&case(None, copies))), Blocked::Doubled(ReplicaId(1)));
}

#[test]
fn a_volume_that_was_never_used_needs_all_its_copies() {
    let mut record = recorded(2, &[0, 1], &[0, 1]);
    (record.activated_epoch, record.format) = (0, FormatRecord::Never);
    let bare = |replica| CopyReport { member: None, ..copy(replica, 4, &[0, 1], 0, &[]) };
    let finding = propose(&case(Some(&record), vec![bare(0), bare(1)]));
    assert_eq!((written(&finding).in_sync.clone(), written(&finding).activated), (ids(&[0, 1]), 0));
    assert_eq!(*blocked(&propose(&case(Some(&record), vec![bare(0)]))), Blocked::NoWholeCopy);
    // Nobody may make an array over a volume of which only new, empty copies answer.
    assert_eq!(*blocked(&propose(&case(None, vec![bare(0), bare(1)]))), Blocked::NoWholeCopy);
    record.activated_epoch = 1;
    assert_eq!(*blocked(&propose(&case(Some(&record), vec![bare(0), bare(1)]))), Blocked::NoWholeCopy);
}

#[test]
fn the_dead_nodes_copy_alone_was_complete_and_a_stale_one_is_named() {
    // Nothing went back in time: r0 is recorded alone, its node is gone for good.
    let record = recorded(6, &[0], &[0, 1]);
    let mut asked = case(Some(&record), vec![copy(1, 6, &[0], 40, &[0, 1])]);
    assert_eq!(propose(&asked).outcome, Outcome::Sound, "nothing is done unasked");
    asked.accepted = Some(Accepted::Copy(ReplicaId(1)));
    let finding = propose(&asked);
    assert_eq!((written(&finding).epoch, written(&finding).in_sync.clone()), (7, ids(&[1])));
    assert_eq!(written(&finding).given_up, [Unseen::Copy(ReplicaId(0))].into());
    asked.accepted = Some(Accepted::Copy(ReplicaId(0)));
    assert_eq!(*blocked(&propose(&asked)), Blocked::NotUsable(ReplicaId(0)));
    // What the record names now counts, whatever the drives remember.
    asked.accepted = Some(Accepted::Newest);
    asked.copies = vec![copy(1, 6, &[1], 40, &[1])];
    assert_eq!(written(&propose(&asked)).given_up, [Unseen::Copy(ReplicaId(0))].into());
    // While it answers there is nothing to accept.
    asked.copies.push(copy(0, 6, &[0], 50, &[0]));
    asked.accepted = Some(Accepted::Copy(ReplicaId(1)));
    assert_eq!(*blocked(&propose(&asked)), Blocked::NotNeeded(ids(&[0])));
}

#[test]
fn a_record_of_another_object_or_without_a_set_is_rebuilt_in_any_epoch() {
    let copies = || vec![copy(0, 4, &[0, 1], 9, &[0, 1]), copy(1, 4, &[0, 1], 9, &[0, 1])];
    let mut record = recorded(4, &[0, 1], &[0, 1]);
    record.in_sync = None;
    assert_eq!(written(&propose(&case(Some(&record), copies()))).epoch, 5);
    record = recorded(9, &[0], &[0, 1]);
    record.foreign = Some("status.recordOf is another".into());
    let finding = propose(&case(Some(&record), copies()));
    assert_eq!((written(&finding).epoch, written(&finding).in_sync.clone()), (10, ids(&[0, 1])));
}
