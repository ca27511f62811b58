//! Kernel regressions: what a stock kernel does wrong with the plain commands, and right with ours.
//!
//! Called by `meshstor-demo regressions`. Each case cuts the same crash out of two guests twice: once the plain way and
//! once our way. It passes only if the plain way did the harm (else the test could not see it) and ours did not. A
//! kernel that does no harm the plain way is named as such: a fact about that kernel, and a failed case.

mod crash;
mod fifth;
mod first;
mod second;
mod seventeenth;
mod third;
mod twentyfourth;

pub use crash::suite;

use crate::story::Story;
use anyhow::{Result, bail};
use meshstor_lab::{Config, Lab};
use std::path::Path;

/// What one way did.
pub struct Seen {
    /// Whether acknowledged data were lost or reads changed their answer.
    pub harm: bool,
    /// What was read, for people.
    pub text: String,
}

/// Plain commands, or the product's own operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// mdadm as an administrator would.
    Plain,
    /// The kernel crate's operations, in the product's order.
    Ours,
}

type Case = fn(&Lab, Way) -> Result<Seen>;

/// Which kernels do harm the plain way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// All that we know.
    All,
    /// None: kept to see when that changes.
    None,
    /// Newer ones than 6.1.
    After61,
}

impl Harm {
    fn on(self, kernel: &str) -> bool {
        self == Harm::All || self == Harm::After61 && kernel != "6.1"
    }
}

const ALL: &[(&str, &str, Harm, Case)] = &[
    ("F1", "a bitmap re-add after a takeover by one survivor", Harm::All, first::run),
    ("F1-RAID10", "the same on stripes of mirrors", Harm::None, first::striped),
    ("F2", "a host refused while it waits for its target", Harm::After61, second::run),
    ("F3", "a copy moved while nobody can record it", Harm::All, third::run),
    ("F5", "a target's power fails while its drive's cache holds a write", Harm::All, fifth::run),
    ("F17", "a write-mostly member in the lowest slot while a resync is pending", Harm::After61, seventeenth::run),
    ("F24", "a recovery by bitmap that is held before its end", Harm::All, twentyfourth::run),
    ("F17-RAID10", "the same on stripes of mirrors", Harm::None, seventeenth::striped),
];

/// Runs the cases whose number is `only` (all when empty) and prints a table.
pub fn run(binaries: &Path, kernel: &str, only: &str, keep: bool) -> Result<()> {
    let mut story = Story::begin();
    let mut table = Vec::new();
    let (mut failed, mut release) = (0, kernel.to_string());
    for (number, what, harm, case) in ALL.iter().filter(|(number, ..)| only.is_empty() || *number == only) {
        let mut one = |way: Way| {
            story.step(&format!("{number}, {what}: {way:?}"), || {
                let lab = Lab::up(&config(binaries, kernel))?;
                release = lab.guest("node-a")?.ssh_checked("uname -r")?;
                let seen = case(&lab, way)?;
                let text = format!("{}: {}", if seen.harm { "HARM" } else { "no harm" }, seen.text);
                Ok((seen, text))
            })
        };
        let both = one(Way::Plain).and_then(|plain| Ok((plain, one(Way::Ours)?)));
        let (verdict, line) = verdict(&both, harm.on(kernel));
        failed += usize::from(!verdict);
        table.push(format!("{number} on {release}: {line}"));
    }
    if !keep && let Ok(lab) = Lab::attach() {
        lab.down()?;
    }
    println!("{}", table.join("\n"));
    println!("regressions: {} passed, {failed} failed in {} s", table.len() - failed, story.begin.elapsed().as_secs());
    match (table.len(), failed) {
        (0, _) => bail!("no regression is called {only:?}"),
        (_, 0) => Ok(()),
        _ => bail!("{failed} regressions failed"),
    }
}

/// Two guests with blank drives: each way begins from nothing.
fn config(binaries: &Path, kernel: &str) -> Config {
    let share = Some(binaries.to_path_buf());
    Config { nodes: 2, kernel: kernel.into(), fresh: true, share, ..Config::default() }
}

/// Whether the case passes, and its line in the table.
fn verdict(both: &Result<(Seen, Seen)>, harmful: bool) -> (bool, String) {
    let (plain, ours) = match both {
        Ok(seen) => seen,
        Err(error) => return (false, format!("FAILED: {error:#}")),
    };
    let line = format!("plain: {}; ours: {}", plain.text, ours.text);
    match (plain.harm, ours.harm) {
        (_, true) => (false, format!("FAILED, our way does harm; {line}")),
        (plain, false) if plain == harmful => (true, format!("passed; {line}")),
        (true, false) => (false, format!("FAILED, this kernel does harm the plain way; {line}")),
        (false, false) => (false, format!("FAILED, this kernel does no harm the plain way; {line}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(plain: bool, ours: bool) -> Result<(Seen, Seen)> {
        let seen = |harm| Seen { harm, text: String::new() };
        Ok((seen(plain), seen(ours)))
    }

    #[test]
    fn harm_is_known_by_kernel() {
        assert!(Harm::All.on("6.1") && Harm::After61.on("6.12") && Harm::After61.on("6.18"));
        assert!(!Harm::After61.on("6.1") && !Harm::None.on("6.12"));
    }

    #[test]
    fn a_case_passes_only_if_the_plain_way_does_what_is_known_of_it_and_ours_no_harm() {
        assert!(verdict(&both(true, false), true).0);
        assert!(!verdict(&both(true, true), true).0);
        assert!(!verdict(&both(false, true), true).0);
        let (passed, line) = verdict(&both(false, false), true);
        assert!(!passed && line.contains("no harm the plain way"), "{line}");
        assert!(verdict(&both(false, false), false).0);
        assert!(!verdict(&both(true, false), false).0);
        assert!(!verdict(&both(false, true), false).0);
        assert!(!verdict(&Err(anyhow::anyhow!("a guest fell over")), false).0);
    }
}
