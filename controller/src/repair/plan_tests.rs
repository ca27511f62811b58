//! Repair by table: from each reading to one step, and whole repairs played to their end.

use super::*;

/// Copies by what is said of each: `+` in the set, `r` retiring, `d` dismissed, `b` buried, `x` on its way out, `l` lost,
/// `n` refused, `u` a member as the consumer says; r0 is on node a, r1 on b and so on.
fn view(count: usize, words: &[&str]) -> View {
    let copy = |(number, word): (usize, &&str)| {
        let copy = CopyView {
            node: char::from(b'a' + number as u8).to_string(),
            in_sync: word.contains('+'),
            retiring: word.contains('r'),
            dismissed: word.contains('d'),
            buried: word.contains('b'),
            deleting: word.contains('x'),
            lost: word.contains('l'),
            refused: word.contains('n'),
            used: word.contains('u'),
            ..CopyView::default()
        };
        (ReplicaId(number as u32), copy)
    };
    let copies = words.iter().enumerate().map(copy).collect();
    View { count, consumer: Some("a".into()), resident: false, copies }
}

fn r(number: u32) -> ReplicaId {
    ReplicaId(number)
}

#[test]
fn one_step_for_each_reading() {
    let free = || Some(Action::Reserve(Place::Free));
    let surplus = |number| Some(Action::Retire(r(number), Cause::Surplus));
    let table: &[(&str, usize, &[&str], Option<Action>)] = &[
        ("whole", 2, &["+", "+"], None),
        ("out of the set, its node is there or the time is not up", 2, &["+", ""], None),
        ("lost", 2, &["+", "l"], free()),
        ("lost, the other is on its way", 2, &["+", "l", ""], None),
        ("the new one was first", 2, &["+", "l", "+"], surplus(1)),
        ("the old one was first", 2, &["+", "+", ""], surplus(2)),
        ("both came", 2, &["+", "+", "+"], surplus(2)),
        ("both came, one is leaving", 2, &["+", "r+", "+", "+"], None),
        ("told to leave", 2, &["+", "", "r"], Some(Action::Dismiss(r(2)))),
        ("let go", 2, &["+", "+", "rd"], Some(Action::Bury(r(2)))),
        ("let go, still a member", 2, &["+", "+", "rdu"], None),
        ("let go, half done", 2, &["+", "+", "rdb"], Some(Action::Bury(r(2)))),
        ("let go, its node is awaited", 2, &["+", "+", "rdbx"], None),
        ("a reservation that was withdrawn", 2, &["+", "+", "b"], Some(Action::Bury(r(2)))),
        ("recorded as complete, whatever else is said", 2, &["+", "rd+", "+"], None),
        ("an operator's move", 2, &["+", "r+"], free()),
        ("an operator's move, under way", 2, &["+", "r+", ""], None),
        ("an operator's move of the lost one", 2, &["+", "rl"], Some(Action::Dismiss(r(1)))),
        ("all of them are to leave", 2, &["r+", "r+"], free()),
        ("the new one is lost as well", 2, &["+", "l", "l"], Some(Action::Retire(r(2), Cause::Lost))),
        ("two of three are lost", 3, &["+", "l", "l"], free()),
        ("its node does not take it", 2, &["+", "l", "n"], Some(Action::Retire(r(2), Cause::Refused))),
        ("one copy, being moved", 1, &["r+"], free()),
        ("one copy, moved", 1, &["r+", "+"], None),
    ];
    for (what, count, words, expected) in table {
        assert_eq!(decide(&view(*count, words)), *expected, "{what}: {words:?}");
    }
}

#[test]
fn of_a_detached_volume_the_set_is_ours_to_shrink_when_enough_stay() {
    let mut moved = view(2, &["+", "r+", "+"]);
    assert_eq!(decide(&moved), None, "the consumer's");
    moved.consumer = None;
    assert_eq!(decide(&moved), Some(Action::Shrink(r(1))));
    let mut few = view(2, &["+", "r+", ""]);
    few.consumer = None;
    assert_eq!(decide(&few), None);
}

#[test]
fn a_copy_follows_the_consumer_and_stays_when_the_consumer_moves_on() {
    let mut one = view(1, &["+"]);
    one.consumer = Some("c".into());
    assert_eq!(decide(&one), None, "not for long enough");
    one.resident = true;
    assert_eq!(decide(&one), Some(Action::Relocate(r(0), "c".into())));
    let copy = one.copies.get_mut(&r(0)).unwrap();
    (copy.retiring, copy.relocating, copy.move_to) = (true, true, Some("c".into()));
    assert_eq!(decide(&one), Some(Action::Reserve(Place::Only("c".into()))));
    let at = |node: &str, in_sync| CopyView { node: node.into(), in_sync, ..CopyView::default() };
    one.copies.insert(r(1), at("c", false));
    assert_eq!(decide(&one), None, "being copied");
    let mut gone = one.clone();
    gone.consumer = Some("d".into());
    assert_eq!(decide(&gone), Some(Action::Stay(r(0))));
    (gone.copies.get_mut(&r(0)).unwrap().retiring, gone.copies.get_mut(&r(0)).unwrap().relocating) = (false, false);
    assert_eq!(decide(&gone), Some(Action::Retire(r(1), Cause::Surplus)));
    one.copies.insert(r(1), at("c", true));
    one.consumer = Some("d".into());
    assert_eq!(decide(&one), None, "it is there: the old one may go");
}

#[test]
fn nothing_follows_the_consumer_while_anything_else_is_under_way() {
    for words in [&["+", "", ""][..], &["+", "r+"], &["+", "+", "rdbx"], &["+"]] {
        let mut view = view(2, words);
        (view.consumer, view.resident) = (Some("z".into()), true);
        assert!(!matches!(decide(&view), Some(Action::Relocate(..))), "{words:?}");
    }
    let mut here = view(2, &["+", "+"]);
    here.resident = true;
    assert_eq!(decide(&here), None, "one of them is where it is used");
    here.consumer = Some("z".into());
    assert_eq!(decide(&here), Some(Action::Relocate(r(1), "z".into())));
}

/// What steps of a controller and of its consumer lead to, played by the rules' own words.
fn play(mut view: View, mut outside: impl FnMut(&mut View)) -> View {
    for _ in 0..40 {
        outside(&mut view);
        let next = view.copies.keys().map(|id| id.0 + 1).max().unwrap_or(0);
        match decide(&view) {
            Some(Action::Reserve(_)) => {
                view.copies.insert(r(next), CopyView { node: format!("n{next}"), ..CopyView::default() });
            }
            Some(Action::Retire(id, _)) => view.copies.get_mut(&id).unwrap().retiring = true,
            Some(Action::Dismiss(id)) => view.copies.get_mut(&id).unwrap().dismissed = true,
            Some(Action::Bury(id)) => drop(view.copies.remove(&id)),
            other => assert_eq!(other, None),
        }
        assert!(view.copies.len() <= view.count + 2, "{view:?}");
    }
    view
}

#[test]
fn a_repair_ends_with_as_many_copies_as_are_wanted_whoever_is_first() {
    for first in [1, 2] {
        let end = play(view(2, &["+", "l"]), |view| {
            if view.copies.len() == 3 {
                let copy = view.copies.get_mut(&r(first)).unwrap();
                (copy.in_sync, copy.lost) = (true, false);
            }
        });
        assert_eq!(end.copies.keys().copied().collect::<Vec<_>>(), [r(0), r(first)]);
        assert_eq!(decide(&end), None);
    }
}

#[test]
fn a_complete_copy_that_cannot_grow_is_replaced_one_at_a_time() {
    let copy = |cramped| CopyView { in_sync: true, cramped, ..CopyView::default() };
    let mut view = View { count: 2, copies: [(r(0), copy(true)), (r(1), copy(true))].into(), ..View::default() };
    assert_eq!(decide(&view), Some(Action::Retire(r(1), Cause::Cramped)));
    view.copies.get_mut(&r(1)).unwrap().retiring = true;
    assert_eq!(decide(&view), Some(Action::Reserve(Place::Free)), "one more before the next goes");
    view.copies.insert(r(0), copy(false));
    view.copies.remove(&r(1));
    view.copies.insert(r(2), copy(false));
    assert_eq!(decide(&view), None);
}
