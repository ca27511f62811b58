//! Mutants: named, realistic bugs in our own code, each behind a switch that only a test can turn. They prove that the
//! simulator's oracle sees: `cargo xtask mutants` turns each on alone and demands that some seed fails.
//!
//! Called where the bug would sit, as `if mutant::on(Mutant::X)`. Without the feature `mutants` the answer is a constant
//! `false` and the bug is not in the program at all; with it, the switch is a thread's own and starts turned off. No flag,
//! variable or file turns one on.

/// The mutants. A new safety rule brings one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mutant {
    /// A stuck member is dropped first and taken out of the record afterwards (rule 2).
    DropBeforeRecord,
    /// A takeover assembles whatever copy is reachable, recorded in sync or not (rule 4).
    TrustStaleCopy,
    /// A returning copy is re-added by bitmap without merging its own (rule 6, F1).
    ReAddWithoutMerge,
    /// The activation records the old set, not the active members (rule 4, F4).
    ActivateOldSet,
    /// A member counts as in sync from the moment it is added (rule 3, F15).
    GrowBeforeProof,
    /// A drop is called off when the path is back (F9).
    DropCalledOff,
    /// A consumer that has the volume again takes its old array for the new one (F6).
    DeposedByName,
    /// A deposed consumer lets go of its connections before it has shut the file system down (rule 7, F7).
    ReleaseBeforeShutdown,
    /// Remote members are write-mostly while a resync is pending (F17).
    WriteMostlyDuringResync,
    /// A consumer that rebooted goes on in the same epoch (F6, F20).
    SameEpochAfterReboot,
    /// The epoch on a drive is no floor for what is exported or assembled (rule 9, F16).
    FloorIgnored,
    /// A new export is made while the old one still answers (rule 4).
    FenceSkipped,
    /// A fence is done before what is in flight has drained, as an unlinked port alone would be (rule 4). It sits in the
    /// simulated kernel: the plan believes what the fence says.
    FenceReportedEarly,
    /// The fence of a local copy does not wait for the array that holds it (F6).
    LocalFenceEarly,
    /// A port's number is used again at once (rule 5, F13).
    PortReusedAtOnce,
    /// Whether a file system was made is remembered by the agent, not read from the record (P4).
    FormatRemembered,
    /// A copy whose object is not there is wiped (rule 10).
    WipeOnAbsence,
    /// A DELETED event is taken for a deletion (rule 10, K5).
    DeletedIsDeletion,
    /// A refused compare-and-swap is drafted anew on the newer object and sent again (section 5).
    BlindRetry,
    /// ControllerPublish takes the volume from its consumer (rule 4, K3).
    PublishTakesOver,
    /// An absent in-sync set is read as all copies (rule 9, K1).
    AbsentIsAll,
    /// After a failed operation nobody looks again.
    NoLookAfterFailure,
    /// Only hints make an actor look: a lost one is lost.
    HintsOnly,
    /// A copy that is to leave is wiped while it is in the set.
    RetiredIsWiped,
    /// A recovery may end while nobody is there to record it (rule 3).
    EndsAlone,
    /// Writes go on between the end of a recovery and its record (rule 3).
    EndsUnfrozen,
    /// A recovery by bitmap leaps over the point where it is held (rule 3, F24).
    HoldLeapt,
    /// The number of a copy whose object was lost is given to a new one.
    NumberUsedAgain,
    /// An array takes a partition that is exported. It sits in the simulated kernel, as the rule does in the real binding.
    TakesExported,
    /// A partition is made for an object that a watch showed and nobody has read since.
    MadeUnread,
}

impl Mutant {
    /// All of them, in the order of the list above.
    pub const ALL: [Mutant; 30] = [
        Mutant::DropBeforeRecord,
        Mutant::TrustStaleCopy,
        Mutant::ReAddWithoutMerge,
        Mutant::ActivateOldSet,
        Mutant::GrowBeforeProof,
        Mutant::DropCalledOff,
        Mutant::DeposedByName,
        Mutant::ReleaseBeforeShutdown,
        Mutant::WriteMostlyDuringResync,
        Mutant::SameEpochAfterReboot,
        Mutant::FloorIgnored,
        Mutant::FenceSkipped,
        Mutant::FenceReportedEarly,
        Mutant::LocalFenceEarly,
        Mutant::PortReusedAtOnce,
        Mutant::FormatRemembered,
        Mutant::WipeOnAbsence,
        Mutant::DeletedIsDeletion,
        Mutant::BlindRetry,
        Mutant::PublishTakesOver,
        Mutant::AbsentIsAll,
        Mutant::NoLookAfterFailure,
        Mutant::HintsOnly,
        Mutant::RetiredIsWiped,
        Mutant::EndsAlone,
        Mutant::EndsUnfrozen,
        Mutant::HoldLeapt,
        Mutant::NumberUsedAgain,
        Mutant::TakesExported,
        Mutant::MadeUnread,
    ];

    /// Its name on the command line: `drop-before-record`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is in the program now, on this thread.
#[cfg(feature = "mutants")]
pub fn on(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Whether this bug is in the program: never.
#[cfg(not(feature = "mutants"))]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Puts a bug into this thread's program, or takes it out.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    ACTIVE.set(mutant);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_with_hyphens_and_unique() {
        assert_eq!(Mutant::DropBeforeRecord.name(), "drop-before-record");
        let names: std::collections::BTreeSet<String> = Mutant::ALL.iter().map(|m| m.name()).collect();
        assert_eq!(names.len(), Mutant::ALL.len());
    }

    #[cfg(feature = "mutants")]
    #[test]
    fn a_mutant_is_on_only_where_it_was_set() {
        assert!(Mutant::ALL.iter().all(|m| !on(*m)));
        set(Some(Mutant::FenceSkipped));
        assert!(on(Mutant::FenceSkipped) && !on(Mutant::AbsentIsAll));
        let elsewhere = std::thread::spawn(|| on(Mutant::FenceSkipped)).join();
        assert!(!elsewhere.unwrap());
        set(None);
        assert!(!on(Mutant::FenceSkipped));
    }
}
