//! The protocol in small bounds, and every variant.

use super::*;
use crate::rules::VARIANTS;

/// The whole of a small space, so that nothing in it is missed: if a rule of the model were too strict the things that
/// must be possible would go missing, if it were too lax a promise would break.
#[test]
fn every_promise_holds_in_the_least_bounds() {
    let outcome = run(LEAST, None);
    let trace = outcome.violation.map(|v| (v.promises, v.trace.iter().map(Action::to_string).collect::<Vec<_>>()));
    assert!(trace.is_none(), "{trace:#?}");
    assert_eq!(outcome.unseen, Vec::<&str>::new());
    assert!(outcome.unique > 100_000, "only {} states: most of the protocol cannot happen", outcome.unique);
}

/// P7, P8 and rule 2's freeze with one write less and no cut: a member that fails, and one that returns.
#[test]
fn every_promise_holds_when_the_kernel_fails_members() {
    let outcome = run(Bounds { writes: 1, faults: faults(1, 0, 2, 0), ..LEAST }, None);
    assert!(outcome.holds(), "{:?}", outcome.violation.map(|v| v.promises));
}

/// Each rule is needed. This is also what shows that the properties can see.
#[test]
fn every_broken_rule_breaks_a_promise() {
    for named in VARIANTS {
        let outcome = run(bounds_of(named.variant), Some(named.variant));
        let violation = outcome.violation.unwrap_or_else(|| panic!("{} breaks nothing", named.name));
        assert!(!violation.promises.is_empty() && violation.trace.len() < 20, "{}: {:?}", named.name, violation.trace);
    }
}

/// F1 as it was reproduced on real kernels: a crash, a takeover from the other copy, a return, and the old data are back.
#[test]
fn a_return_without_the_bitmap_brings_unacknowledged_data_back() {
    let violation = run(LEAST, Some(Variant::NoMerge)).violation.map(|v| (v.promises, v.trace));
    let (promises, trace) = violation.unwrap_or_default();
    assert_eq!(promises, [properties::READ]);
    assert!(matches!(trace.last(), Some(Action::Copied { .. })), "{trace:?}");
    assert!(trace.iter().any(|action| matches!(action, Action::Crash { .. })), "{trace:?}");
}

#[test]
fn names_of_variants_are_unique() {
    let names: std::collections::BTreeSet<&str> = VARIANTS.iter().map(|named| named.name).collect();
    assert_eq!(names.len(), VARIANTS.len());
}
