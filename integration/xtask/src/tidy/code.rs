//! Rules for one Rust file: a module doc, readable sizes, and the names that must stand in one place only or nowhere.
//!
//! Called by `tidy` for each file. A rule that has to be broken is changed here, with the reason beside it.

use super::Finding;
use super::source::Source;
use super::tree::File;

/// A module doc stands in the first screen of a file.
const DOC_WITHIN: usize = 12;
/// Longer functions do more than one thing; a test may be a long list of the same.
const FUNCTION_MAX: usize = 70;
const TEST_FUNCTION_MAX: usize = 120;
/// Longer files are split by decision. Test modules at the end of a file do not count.
const FILE_MAX: usize = 400;
const TEST_FILE_MAX: usize = 900;

/// A name that may stand only where `allowed` says.
struct Ban {
    name: &'static str,
    /// Path of the file, and whether the line is test code.
    allowed: fn(&str, bool) -> bool,
    /// A longer name with this one in it that is meant.
    except: Option<&'static str>,
    instead: &'static str,
}

/// Crates and modules in which the same input must give the same output, every time.
fn is_pure(path: &str) -> bool {
    path.starts_with("actors/plan/") || path.starts_with("kernel/src/sim/")
}

/// Everything that tests the product may start programs; the product has one file for it.
fn may_start_programs(path: &str, test: bool) -> bool {
    test || path == "kernel/src/linux/cmd.rs" || path.starts_with("integration/")
}

const ORDERED: &str = "use the BTree one here: its order is the same in every run";
const PURE: &str = "plans and simulated kernels read no clock and draw no number: it comes in with the facts";
const PROGRAMS: &str = "programs are started by kernel/src/linux/cmd.rs alone";

const BANS: &[Ban] = &[
    Ban { name: "HashMap", allowed: |path, _| !is_pure(path), except: None, instead: ORDERED },
    Ban { name: "HashSet", allowed: |path, _| !is_pure(path), except: None, instead: ORDERED },
    // Tokio's clock stands still in tests and moves as they say; written whole, so that a reader sees which one it is.
    Ban {
        name: "Instant::now",
        allowed: |path, _| !is_pure(path),
        except: Some("tokio::time::Instant::now"),
        instead: PURE,
    },
    Ban { name: "SystemTime", allowed: |path, _| !is_pure(path), except: None, instead: PURE },
    Ban { name: "Uuid::new_v4", allowed: |path, _| !is_pure(path), except: None, instead: PURE },
    Ban { name: "process::Command", allowed: may_start_programs, except: None, instead: PROGRAMS },
    Ban { name: "tokio::process", allowed: may_start_programs, except: None, instead: PROGRAMS },
    Ban {
        name: "unsafe",
        allowed: |path, _| path == "kernel/src/linux/ioctl.rs",
        except: None,
        instead: "unsafe code stands in kernel/src/linux/ioctl.rs alone",
    },
    Ban {
        name: "do_send",
        allowed: |_, _| false,
        except: None,
        instead: "it drops messages silently: use try_send and say why a full mailbox is harmless",
    },
];

/// All findings in one file.
pub fn check(file: &File) -> Vec<Finding> {
    let source = Source::new(&file.path, &file.text);
    let mut findings = Vec::new();
    findings.extend(module_doc(file));
    findings.extend(file_length(file, &source));
    findings.extend(function_lengths(file, &source));
    findings.extend(BANS.iter().flat_map(|ban| banned(file, &source, ban)));
    findings.extend(imported_commands(file, &source));
    findings
}

fn module_doc(file: &File) -> Option<Finding> {
    let has = file.text.lines().take(DOC_WITHIN).any(|line| line.starts_with("//!"));
    let what = "no module doc: begin with `//!` what it is, who calls it, what it never does";
    (!has).then(|| Finding::new(&file.path, 1, what))
}

fn file_length(file: &File, source: &Source) -> Option<Finding> {
    let all = file.text.lines().count();
    let (lines, limit) = match source.is_test() {
        true => (all, TEST_FILE_MAX),
        false => (all.saturating_sub(source.test_line_count()), FILE_MAX),
    };
    let what = format!("{lines} lines without tests, {limit} allowed: split it by decision");
    (lines > limit).then(|| Finding::new(&file.path, limit, what))
}

fn function_lengths(file: &File, source: &Source) -> Vec<Finding> {
    let too_long = source.functions().into_iter().filter_map(|function| {
        let (first, last) = (*function.lines.start(), *function.lines.end());
        let limit = if source.in_test(first) { TEST_FUNCTION_MAX } else { FUNCTION_MAX };
        let lines = last + 1 - first;
        let what = format!("fn {} has {lines} lines, {limit} allowed", function.name);
        (lines > limit).then(|| Finding::new(&file.path, first, what))
    });
    too_long.collect()
}

fn banned(file: &File, source: &Source, ban: &Ban) -> Vec<Finding> {
    let meant = ban.except.map(|name| source.lines_with(name)).unwrap_or_default();
    let lines = source.lines_with(ban.name).into_iter().filter(|line| !meant.contains(line));
    let wrong = lines.filter(|line| !(ban.allowed)(&file.path, source.in_test(*line)));
    wrong.map(|line| Finding::new(&file.path, line, format!("{}: {}", ban.name, ban.instead))).collect()
}

/// `use std::process::{Command, …}`, which the plain name does not find.
fn imported_commands(file: &File, source: &Source) -> Vec<Finding> {
    let tokens = source.tokens();
    let text = |at: usize| tokens.get(at).map(|token| token.text.as_str());
    let lists = (0..tokens.len()).filter(|at| {
        (text(*at), text(at + 1), text(at + 2), text(at + 3)) == (Some("process"), Some(":"), Some(":"), Some("{"))
    });
    let commands = lists.filter_map(|at| {
        let end = (at + 4..tokens.len()).find(|end| tokens[*end].text == "}")?;
        tokens[at..end].iter().find(|token| token.text == "Command")
    });
    let wrong = commands.filter(|token| !may_start_programs(&file.path, source.in_test(token.line)));
    wrong.map(|token| Finding::new(&file.path, token.line, format!("process::Command: {PROGRAMS}"))).collect()
}
