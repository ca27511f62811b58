//! Findings as sentences, for the table that `meshstor recover` prints and for events.

use super::{Blocked, Newer, Unseen, Verdict};
use meshstor_kernel::id::ReplicaId;
use std::collections::BTreeSet;
use std::fmt;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Complete => "complete",
            Verdict::Behind => "left out: a newer copy went on without it",
            Verdict::Unfinished => "left out: it was still being copied to",
            Verdict::Blank => "left out: it holds no data of this volume",
            Verdict::Dismissed => "left out: it was let go for ever",
            Verdict::Diverged => "diverged: it and the newest copy each went on without the other",
            Verdict::Doubled => "left out: two partitions have this number",
        })
    }
}

impl fmt::Display for Newer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Newer::Possible => "does not answer, and may have newer data",
            Newer::Excluded => "does not answer; it had left before",
        })
    }
}

fn list<T: fmt::Display>(items: &BTreeSet<T>) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocked::NoCopy => f.write_str("no drive that answers holds a copy"),
            Blocked::NoWholeCopy => f.write_str("no copy that answers is whole"),
            Blocked::Silent(who) => silent(f, who),
            Blocked::Diverged(copies) => write!(
                f,
                "{} each went on without the other, and the drives do not say which one was the volume; look at them \
                 (read-only), then name one: --accept-data-loss VOLUME=COPY",
                list(copies)
            ),
            Blocked::Doubled(replica) => {
                write!(f, "two partitions say that they are {replica}; one is a leftover of another time")
            }
            Blocked::NotUsable(replica) => {
                write!(f, "{replica}, which was named, does not answer or is not whole")
            }
            Blocked::NotNeeded(set) => write!(f, "the record is sound and a copy of {} answers", list(set)),
        }
    }
}

fn silent(f: &mut fmt::Formatter<'_>, who: &BTreeSet<Unseen>) -> fmt::Result {
    let verb = if who.len() == 1 { "does not answer and may have" } else { "do not answer and may have" };
    write!(
        f,
        "{} {verb} newer data: bring them back, or give up what only they have: --accept-data-loss VOLUME",
        list(who)
    )
}

/// `r0, r2`.
pub fn copies(set: &BTreeSet<ReplicaId>) -> String {
    list(set)
}
