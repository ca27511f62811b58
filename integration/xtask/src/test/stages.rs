//! The stages of `cargo xtask test`, in order. A new one is a function and a line in [`STAGES`].
//!
//! Called by `test`. Each returns what it counted; an error counts as one failure. A stage brings what it needs, or says
//! what is missing.

use super::count::{Tally, TestRun};
use super::{Context, stream};
use crate::{build, chart, model, sanity, sim, tidy, workspace};
use anyhow::{Context as _, Result, bail};
use meshstor_lab::{Paths, tools};
use std::path::PathBuf;
use std::process::Command;

/// One stage.
pub struct Stage {
    /// Short name, for `--only` and the log's file name.
    pub name: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    /// Whether nothing after it can work when it fails.
    pub gate: bool,
    /// Does it.
    pub run: fn(&Context) -> Result<Tally>,
}

/// Cheap ones first, so that a slip shows within seconds; then what everything else needs.
pub const STAGES: &[Stage] = &[
    Stage { name: "prepare", about: "packages that the build needs", gate: false, run: prepare },
    Stage { name: "fmt", about: "every file formatted", gate: false, run: fmt },
    Stage { name: "tidy", about: "style rules, crate graph, pages tied to code", gate: false, run: tidy_up },
    Stage { name: "build", about: "every crate, every target", gate: true, run: build_all },
    Stage { name: "alone", about: "values and plans without any I/O crate", gate: false, run: alone },
    Stage { name: "clippy", about: "lints are errors", gate: false, run: clippy },
    Stage { name: "unit", about: "unit, property and simulation tests", gate: false, run: unit },
    Stage { name: "crds", about: "printed resource definitions parse", gate: false, run: crds },
    Stage { name: "sim", about: "whole clusters on simulated kernels, with faults", gate: false, run: simulate },
    Stage {
        name: "mutants",
        about: "known bugs in the code, each of which the simulator finds",
        gate: false,
        run: mutants,
    },
    Stage {
        name: "model",
        about: "the protocol explored exhaustively, each rule broken once",
        gate: false,
        run: explore,
    },
    Stage { name: "dev", about: "meshstor dev without root, a CSI client, promtool's lint", gate: false, run: dev },
    Stage { name: "sanity", about: "csi-sanity against meshstor dev", gate: false, run: conformance },
    Stage {
        name: "chart",
        about: "the Helm chart on a real API server, rights of nodes' accounts",
        gate: false,
        run: helm_chart,
    },
    Stage { name: "demo", about: "the main job on real kernels", gate: false, run: demo },
    Stage { name: "scenarios", about: "harm done to a cluster on real kernels", gate: false, run: scenarios },
];

/// Crates that must build with no feature and no other crate beside them: what others pull in would hide a slip.
const ALONE: &[&str] = &["meshstor-kernel", "meshstor-plan"];

/// Seeds of each run: about two seconds each. 1 and 2 have found something.
const SEEDS: u64 = 40;

/// Seeds at most for each mutant that a kept seed has seen: that one comes first, and a change of the code may move it.
const MUTANT_SEEDS: u64 = 100;

/// The scenarios that are short: minutes together. `cargo xtask vm scenarios` runs the long ones as well.
const SCENARIOS: &str = "crowded-table,api-cut,ext4-cut,raw-cut,storage-cut,cable-flap,bad-input,foreign-drives,agent-killed,consumer-rebooted,\
                         object-deleted,crd-deleted";

/// The kernel of the guests: Debian's stable one.
const DEFAULT_KERNEL: &str = "6.12";

/// The kinds that `meshstor crds` prints.
const KINDS: &[&str] = &["MeshStorVolume", "MeshStorReplica", "MeshStorNode", "MeshStorNodeDevice"];

fn prepare(_: &Context) -> Result<Tally> {
    build::ensure_packages()?;
    Ok(Tally::PASSED)
}

fn fmt(context: &Context) -> Result<Tally> {
    let command = cargo(context, &["fmt", "--all", "--check", "--", "--color", "never"]);
    run(context, "fmt", command, |line| line.starts_with("Diff in"))
}

fn tidy_up(context: &Context) -> Result<Tally> {
    let report = tidy::check(&context.root)?;
    report.print();
    println!("    {}", report.summary());
    Ok(Tally::of(report.findings.is_empty()))
}

fn build_all(context: &Context) -> Result<Tally> {
    let mut command = cargo(context, &["test", "--no-run", "--all-features"]);
    select(context, &mut command);
    run(context, "build", command, is_diagnostic)
}

fn alone(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    for name in ALONE {
        let command = cargo(context, &["check", "--package", name]);
        tally += run(context, &format!("alone-{name}"), command, is_diagnostic)?;
    }
    Ok(tally)
}

fn clippy(context: &Context) -> Result<Tally> {
    let mut command = cargo(context, &["clippy", "--all-targets", "--all-features"]);
    select(context, &mut command);
    command.args(["--", "-D", "warnings"]);
    run(context, "clippy", command, is_diagnostic)
}

fn unit(context: &Context) -> Result<Tally> {
    let mut command = cargo(context, &["test", "--no-fail-fast", "--all-features"]);
    select(context, &mut command);
    let mut tests = TestRun::default();
    let succeeded = stream::run(command, &log(context, "unit"), |line| {
        tests.line(line);
        is_test_line(line)
    })?;
    tests.failures.iter().for_each(|name| println!("    failed: {name}"));
    Ok(tests.sum(succeeded))
}

fn crds(context: &Context) -> Result<Tally> {
    let mut binary = Command::new(build::binaries()?.join("meshstor"));
    binary.arg("crds").current_dir(&context.root);
    let kinds = kinds(&output(binary)?)?;
    let missing: Vec<&&str> = KINDS.iter().filter(|kind| !kinds.iter().any(|k| k == *kind)).collect();
    if !missing.is_empty() {
        bail!("`meshstor crds` does not print {missing:?}, only {kinds:?}");
    }
    Ok(Tally::PASSED)
}

fn simulate(context: &Context) -> Result<Tally> {
    let shown = |line: &str| line.starts_with("seed ") || line.starts_with("… ");
    self_counting(context, "sim", sim::command(1, SEEDS)?, shown)
}

fn mutants(context: &Context) -> Result<Tally> {
    let shown = |line: &str| line.contains("caught by") || line.contains("NOT CAUGHT");
    let mut command = sim::mutants(MUTANT_SEEDS)?;
    command.arg("--seen");
    self_counting(context, "mutants", command, shown)
}

fn explore(context: &Context) -> Result<Tally> {
    let shown = |line: &str| line.starts_with("scope ") || line.contains("FAILED") || line.contains("BROKEN");
    self_counting(context, "model", model::command(true)?, shown)
}

fn conformance(context: &Context) -> Result<Tally> {
    let shown = |line: &str| line.contains("skipped: ") || line.contains("FAILED");
    self_counting(context, "sanity", sanity::command()?, shown)
}

fn helm_chart(context: &Context) -> Result<Tally> {
    self_counting(context, "chart", chart::command()?, |line| line.starts_with("lab: "))
}

/// Runs a program whose last line is `NAME: N passed, N failed`, `, N skipped` or not.
fn self_counting(context: &Context, name: &str, command: Command, shown: impl Fn(&str) -> bool) -> Result<Tally> {
    let mut tally = Tally::default();
    let succeeded = stream::run(command, &log(context, name), |line| {
        let own = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": "));
        tally = own.and_then(sum).unwrap_or(tally);
        own.is_some() || shown(line)
    })?;
    // A crash prints no last line.
    let unexplained = !succeeded && tally.failed == 0 || tally == Tally::default();
    if unexplained {
        tally += Tally::FAILED;
    }
    Ok(tally)
}

/// `N passed, N failed`; `, N skipped` may follow.
fn sum(text: &str) -> Option<Tally> {
    let (text, skipped) = match text.strip_suffix(" skipped") {
        Some(text) => text.rsplit_once(", ").and_then(|(text, number)| Some((text, number.parse().ok()?)))?,
        None => (text, 0),
    };
    let (passed, failed) = text.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some(Tally { passed: passed.parse().ok()?, failed: failed.parse().ok()?, skipped })
}

fn dev(context: &Context) -> Result<Tally> {
    let binaries = build::binaries()?;
    let page = context.logs.join("metrics.txt");
    let mut command = Command::new(binaries.join("meshstor-demo"));
    command.arg("dev").arg("--binary").arg(binaries.join("meshstor")).arg("--page").arg(&page);
    let mut tally = run(context, "dev", command, |line| line.starts_with("dev: "))?;
    let mut lint = Command::new(tools::promtool(&Paths::from_env()?)?);
    let page = std::fs::File::open(&page).with_context(|| format!("open {}", page.display()))?;
    lint.args(["check", "metrics"]).stdin(page);
    let lint = lint.output().context("run promtool")?;
    let words = [lint.stdout, lint.stderr].concat();
    String::from_utf8_lossy(&words).lines().for_each(|line| println!("    promtool: {line}"));
    tally += Tally::of(lint.status.success() && words.is_empty());
    Ok(tally)
}

fn demo(context: &Context) -> Result<Tally> {
    on_real_kernels(context, "run", &[], |line| u32::from(line.starts_with("demo: passed in ")))
}

fn scenarios(context: &Context) -> Result<Tally> {
    let passed = |line: &str| {
        let number = line.strip_prefix("scenarios: ").and_then(|rest| rest.split_once(" passed"));
        number.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
    };
    on_real_kernels(context, "scenarios", &["--only", SCENARIOS], passed)
}

/// Runs the story's program; `passed` reads from its last line how many passed.
fn on_real_kernels(context: &Context, what: &str, arguments: &[&str], passed: impl Fn(&str) -> u32) -> Result<Tally> {
    let mut command = build::story(what, DEFAULT_KERNEL, false)?;
    command.args(arguments);
    let mut count = 0;
    let succeeded = stream::run(command, &log(context, what), |line| {
        count += passed(line);
        is_story_line(line)
    })?;
    let failed = usize::from(!succeeded || count == 0);
    Ok(Tally { passed: count as usize, failed, skipped: 0 })
}

/// Steps, what they proved, and what the lab is doing.
fn is_story_line(line: &str) -> bool {
    line.starts_with('[') || line.starts_with("lab: ") || line.contains("FAILED") || line.starts_with("            ")
}

/// The kinds that a stream of resource definitions defines.
fn kinds(text: &str) -> Result<Vec<String>> {
    let mut kinds = Vec::new();
    for document in text.split("\n---") {
        let value: serde_yaml::Value = serde_yaml::from_str(document).context("parse what `meshstor crds` prints")?;
        kinds.extend(value["spec"]["names"]["kind"].as_str().map(str::to_string));
    }
    Ok(kinds)
}

fn cargo(context: &Context, arguments: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.args(arguments).current_dir(&context.root);
    command.env("CARGO_TERM_COLOR", "never").env("CARGO_TERM_PROGRESS_WHEN", "never");
    command
}

/// All crates, or those asked for.
fn select(context: &Context, command: &mut Command) {
    if context.packages.is_empty() {
        command.arg("--workspace");
    }
    for name in &context.packages {
        command.args(["--package", name]);
    }
}

fn log(context: &Context, name: &str) -> PathBuf {
    context.logs.join(format!("{name}.log"))
}

/// One command as one check.
fn run(context: &Context, name: &str, command: Command, show: impl FnMut(&str) -> bool) -> Result<Tally> {
    stream::run(command, &log(context, name), show).map(Tally::of)
}

fn output(mut command: Command) -> Result<String> {
    let output = command.output().context("start the program")?;
    if !output.status.success() {
        bail!("it ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("it printed no text")
}

fn is_diagnostic(line: &str) -> bool {
    ["error", "warning", "  -->", "   -->", "    -->"].iter().any(|start| line.starts_with(start))
}

fn is_test_line(line: &str) -> bool {
    let progress = ["Running ", "Doc-tests ", "test result: "].iter().any(|start| line.trim_start().starts_with(start));
    progress || line.ends_with("... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_from_every_document() {
        let one = |kind: &str| format!("---\nkind: CustomResourceDefinition\nspec:\n  names:\n    kind: {kind}\n");
        assert_eq!(kinds(&format!("{}{}", one("A"), one("B"))).unwrap(), ["A", "B"]);
        assert!(kinds("").unwrap().is_empty());
        assert!(kinds("spec: [").is_err());
    }

    #[test]
    fn the_sum_is_read_from_a_last_line_and_from_nothing_else() {
        assert_eq!(sum("25 passed, 1 failed"), Some(Tally { passed: 25, failed: 1, skipped: 0 }));
        assert_eq!(sum("5 passed, 0 failed, 12 skipped"), Some(Tally { passed: 5, failed: 0, skipped: 12 }));
        assert_eq!(sum("5 passed, 0 failed, skipped"), None);
        assert_eq!(sum("25 passed"), None);
        assert_eq!(sum("110232 writes acknowledged, 30 seeds per minute"), None);
        assert_eq!(sum("many passed, 0 failed"), None);
    }

    #[test]
    fn names_of_stages_are_unique() {
        let names: std::collections::BTreeSet<&str> = STAGES.iter().map(|stage| stage.name).collect();
        assert_eq!(names.len(), STAGES.len());
    }
}
