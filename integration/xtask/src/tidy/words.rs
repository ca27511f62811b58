//! Rules for any text file: it speaks of the project alone, and works on any machine.
//!
//! Called by `tidy` for each file. The words are written in halves, so that this file passes its own check.

use super::Finding;
use super::tree::File;

/// A text that must not stand anywhere, in two halves.
struct Word {
    halves: [&'static str; 2],
    why: &'static str,
}

const PATH: &str = "a path of one machine: take it from the environment or from the workspace";
const REGISTRY: &str = "the host name of a package registry: use the machine's own configuration";
const TOPIC: &str = "the text speaks of how it was made: say what the project does";

const WORDS: &[Word] = &[
    Word { halves: ["/wo", "rk/"], why: PATH },
    Word { halves: ["/ro", "ot/"], why: PATH },
    Word { halves: ["/fa", "rm"], why: PATH },
    Word { halves: ["crates", ".io"], why: REGISTRY },
    Word { halves: ["proxy.go", "lang.org"], why: REGISTRY },
    Word { halves: ["sum.go", "lang.org"], why: REGISTRY },
    Word { halves: ["deb.deb", "ian.org"], why: REGISTRY },
    Word { halves: ["pypi", ".org"], why: REGISTRY },
    Word { halves: ["npmjs", ".org"], why: REGISTRY },
    Word { halves: ["assi", "stant"], why: TOPIC },
    Word { halves: ["language ", "model"], why: TOPIC },
    Word { halves: ["chat", "bot"], why: TOPIC },
    Word { halves: ["sub", "agent"], why: TOPIC },
];

/// Written by a tool, which names its registry in every entry.
const GENERATED: &[&str] = &["Cargo.lock"];
/// Scripts that run inside a guest, where such paths are the guest's own.
const GUEST_FILES: &str = "integration/vm/src/image/files/";

/// All findings in one file.
pub fn check(file: &File) -> Vec<Finding> {
    if GENERATED.iter().any(|name| file.path.ends_with(name)) || file.path.starts_with(GUEST_FILES) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let lower = line.to_lowercase();
        for word in WORDS {
            let text = word.halves.concat();
            if stands_alone(&lower, &text) {
                findings.push(Finding::new(&file.path, index + 1, format!("`{text}`: {}", word.why)));
            }
        }
    }
    findings
}

/// A path counts only where a path begins, not in the middle of an address.
fn stands_alone(line: &str, text: &str) -> bool {
    let path_begins = |at: usize| {
        let before = line[..at].chars().next_back();
        !text.starts_with('/') || before.is_none_or(|c| !(c.is_alphanumeric() || "._-/}".contains(c)))
    };
    line.match_indices(text).any(|(at, _)| path_begins(at))
}
