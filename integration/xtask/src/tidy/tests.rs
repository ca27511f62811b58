//! The checker, seen to fail: a small sample for every rule, and its twin that passes.

use super::source::{Source, mask};
use super::tree::File;
use super::*;
use std::collections::BTreeMap;

fn file(path: &str, text: &str) -> File {
    File { path: path.to_string(), text: text.to_string() }
}

/// What `code` and `words` say of a Rust file with a module doc.
fn said(path: &str, code: &str) -> Vec<String> {
    let file = file(path, &format!("//! Sample.\n{code}\n"));
    let findings = code::check(&file).into_iter().chain(words::check(&file));
    findings.map(|finding| finding.to_string()).collect()
}

#[track_caller]
fn assert_said(path: &str, code: &str, wanted: &str) {
    let said = said(path, code);
    assert!(said.len() == 1 && said[0].contains(wanted), "wanted {wanted:?}, got {said:?}");
}

#[track_caller]
fn assert_silent(path: &str, code: &str) {
    assert_eq!(said(path, code), Vec::<String>::new());
}

#[test]
fn comments_and_literals_are_blanked_and_lines_stay() {
    let text = "a // unsafe\nb /* x /* y */ z */ c\n\"un\\\"safe\" d r#\"un\"safe\"# e '{' '\\'' f<'a> b\"{\" g";
    let masked = mask(text);
    assert_eq!(masked.lines().count(), text.lines().count());
    let words: Vec<&str> = masked.split_whitespace().collect();
    assert_eq!(words, ["a", "b", "c", "d", "e", "f<'a>", "b", "g"]);
}

#[test]
fn a_string_over_several_lines_ends_where_it_ends() {
    assert_eq!(mask("\"one\n{ two\" x").trim(), "x");
    assert_eq!(mask("let c = '\"'; y").split_whitespace().last(), Some("y"));
}

#[test]
fn functions_are_found_with_their_lines() {
    let text =
        "fn a(x: [u8; 4]) -> [u8; 2] {\n  let s = \"}\";\n  fn b() {}\n}\ntrait T { fn c(&self); }\nlet f: fn(u8) = g;";
    let functions = Source::new("a.rs", text).functions();
    let found: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.lines.clone())).collect();
    assert_eq!(found, [("a", 1..=4), ("b", 3..=3)]);
}

#[test]
fn test_modules_are_known_whatever_stands_between() {
    let text = "fn a() {}\n#[cfg(all(test, unix))]\n#[allow(dead_code)]\nmod tests {\n  fn b() {}\n}\nfn c() {}";
    let source = Source::new("a.rs", text);
    assert_eq!((1..=7).filter(|line| source.in_test(*line)).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    assert_eq!(Source::new("a.rs", "#[cfg(feature = \"test\")]\nmod m {\n}").test_line_count(), 0);
    assert!(Source::new("x/tests/all.rs", "").is_test() && Source::new("x/a_tests.rs", "").is_test());
}

#[test]
fn a_file_without_module_doc_is_found() {
    let without = file("a.rs", "use std::fmt;\n");
    assert!(code::check(&without)[0].to_string().starts_with("a.rs:1: no module doc"));
    let late = format!("{}//! Too late.\n", "// filler\n".repeat(12));
    assert_eq!(code::check(&file("a.rs", &late)).len(), 1);
    assert_silent("a.rs", "use std::fmt;");
}

#[test]
fn long_functions_are_found_and_tests_may_be_longer() {
    let body = |lines: usize| format!("fn long() {{\n{}}}", "    x();\n".repeat(lines - 2));
    assert_silent("a.rs", &body(70));
    assert_said("a.rs", &body(71), "a.rs:2: fn long has 71 lines, 70 allowed");
    assert_silent("a.rs", &format!("#[cfg(test)]\nmod tests {{\n{}\n}}", body(120)));
    assert_said("a_tests.rs", &body(121), "fn long has 121 lines, 120 allowed");
}

#[test]
fn long_files_are_found_without_their_tests() {
    let lines = |count: usize| "const A: u8 = 1;\n".repeat(count);
    assert_silent("a.rs", &lines(398));
    assert_said("a.rs", &lines(401), "allowed: split it by decision");
    assert_silent("a.rs", &format!("{}#[cfg(test)]\nmod tests {{\n{}}}", lines(300), lines(300)));
    assert_silent("a_tests.rs", &lines(800));
    assert_said("a_tests.rs", &lines(901), "900 allowed");
}

#[test]
fn names_that_make_runs_differ_are_found_in_pure_code_only() {
    for (code, name) in [
        ("use std::collections::HashMap;", "HashMap"),
        ("use std::collections::{BTreeMap, HashSet};", "HashSet"),
        ("let t = std::time::Instant :: now();", "Instant::now"),
        ("fn f(t: SystemTime) {}", "SystemTime"),
        ("let u = Uuid::new_v4();", "Uuid::new_v4"),
    ] {
        assert_said("actors/plan/src/a.rs", code, name);
        assert_said("kernel/src/sim/a.rs", code, name);
        assert_silent("actors/src/a.rs", code);
    }
    assert_silent("kernel/src/sim/a.rs", "let t = tokio::time::Instant::now();");
    assert_silent("actors/plan/src/a.rs", "// no HashMap here\nlet s = \"SystemTime\"; let BTreeHashMapping = 1;");
}

#[test]
fn programs_are_started_in_one_file() {
    for code in [
        "use std::process::Command;",
        "use std::process::{Command, Stdio};",
        "let c = tokio::process::spawn();",
        "let c = std::process::Command::new(\"sh\");",
    ] {
        assert_said("kernel/src/linux/md.rs", code, "kernel/src/linux/cmd.rs alone");
        assert_silent("kernel/src/linux/cmd.rs", code);
        assert_silent("integration/vm/src/exec.rs", code);
        assert_silent("csi/tests/socket.rs", code);
        assert_silent("kernel/src/linux/md.rs", &format!("#[cfg(test)]\nmod tests {{ {code} }}"));
    }
    assert_silent("kernel/src/linux/md.rs", "use std::process::{ExitCode, Stdio};\nenum Command { A }");
}

#[test]
fn unsafe_code_and_silent_sends_are_found() {
    assert_said("kernel/src/linux/md.rs", "unsafe { f() }", "ioctl.rs alone");
    assert_silent("kernel/src/linux/ioctl.rs", "unsafe { f() }");
    assert_silent("kernel/src/linux/md.rs", "#![deny(unsafe_code)] // unsafe");
    assert_said("actors/src/tree.rs", "addr.do_send(Look);", "do_send");
}

#[test]
fn paths_of_one_machine_and_registries_are_found_in_any_text() {
    let path = ["/ro", "ot/"].concat();
    let host = ["crates", ".io"].concat();
    assert_eq!(words::check(&file("docs/a.md", &format!("see\n`{path}.cache`\n")))[0].line, 2);
    assert_eq!(words::check(&file("a.rs", &format!("// from {}", host.to_uppercase()))).len(), 1);
    assert!(words::check(&file("Cargo.lock", &host)).is_empty());
    let inside = ["https://example.org/wo", "rk/x and target", "/ro", "ot/"].concat();
    assert!(words::check(&file("docs/a.md", &inside)).is_empty());
}

#[test]
fn reasons_and_their_page_are_compared_both_ways() {
    let code = "pub enum Reason {\n    /// A.\n    Alpha,\n    Beta { what: String },\n    Gamma(Delta),\n}\n\
                pub const WORDS: &'static [&'static str] = &[\n    \"Alpha\",\n    \"Beta\",\n    \"Omega\",\n];\n";
    let page = file("docs/errors.md", "# Errors\n\n## Alpha\n\ntext\n\n## Gamma\n\n## Sigma\n");
    let said: Vec<String> =
        pages::errors(&file("reason.rs", code), &page).iter().map(|finding| finding.to_string()).collect();
    assert_eq!(
        said,
        [
            "reason.rs:5: Gamma is missing in Reason::WORDS",
            "reason.rs:10: Omega is in Reason::WORDS and no reason",
            "docs/errors.md:1: no section `## Beta`: what it means, what to do",
            "docs/errors.md:9: Sigma is not a reason of reason.rs",
        ]
    );
}

#[test]
fn dependencies_and_their_page_are_compared_both_ways() {
    let external = BTreeMap::from([("clap", "Cargo.toml"), ("udev", "kernel/Cargo.toml")]);
    let place = |manifest: &str| crates::Place { manifest: manifest.to_string(), line: 3 };
    let external = external.into_iter().map(|(name, manifest)| (name.to_string(), place(manifest))).collect();
    let page = file("docs/dependencies.md", "| crate | why |\n|---|---|\n| `clap` | arguments |\n| `old` | gone |\n");
    let said: Vec<String> = pages::dependencies(&external, &page).iter().map(|f| f.to_string()).collect();
    assert_eq!(
        said,
        [
            "kernel/Cargo.toml:3: udev has no line in docs/dependencies.md: say why",
            "docs/dependencies.md:4: old is no dependency any more"
        ]
    );
}

#[test]
fn uncited_promises_are_warned_about() {
    let page = file("docs/promises.md", "## P1 Kept\n\n## P2 Cited by a test\n\n## P3 A name in code\n\n## Notes\n");
    let code = file("a.rs", "//! Keeps P1.\nstruct P3;\n#[test]\nfn t() { assert!(ok(), \"P2\"); }\n");
    let mut report = Report::default();
    pages::check(&[page, code], &mut report);
    let said: Vec<String> = report.warnings.iter().map(|warning| warning.to_string()).collect();
    assert_eq!(said, ["docs/promises.md:5: P3 is cited by no code and no test"]);
}

#[test]
fn citations_of_pages_and_numbers_that_do_not_exist_are_found() {
    let code =
        "//! Order of F2, K5 (kernel.md; see docs/protocol.md, a.md.).\nstruct K9;\n// design section 4, rule 5\n";
    let pages =
        [file("docs/protocol.md", ""), file("docs/kernel-hazards.md", "| F2 | order |\n"), file("docs/a.md", "")];
    let mut report = Report::default();
    pages::check(&[&pages[..], &[file("a.rs", code)]].concat(), &mut report);
    let said: Vec<String> = report.findings.iter().map(|finding| finding.to_string()).collect();
    assert_eq!(
        said,
        [
            "a.rs:1: K5 is not explained in docs/kubernetes.md",
            "a.rs:1: kernel.md does not exist",
            "a.rs:3: cite the rule where a reader finds it: docs/protocol.md, rule N",
        ]
    );
}

#[test]
fn guarding_tests_that_do_not_exist_are_found() {
    let page = "| F1: `not_a_test` | how | `policy_of_ours` | `a_test`, `a_lost_test`, law `Order`; *later* |\n";
    let mut report = Report::default();
    pages::check(&[file("docs/kernel-hazards.md", page), file("a.rs", "fn a_test() {}")], &mut report);
    let said: Vec<String> = report.findings.iter().map(|finding| finding.to_string()).collect();
    assert_eq!(said, ["docs/kernel-hazards.md:1: there is no test a_lost_test"]);
}

#[test]
fn links_that_lead_nowhere_are_found() {
    let page =
        file("docs/a.md", "[b](adr/b.md#part) [up](../README.md) [far](https://e.org) [gone](c.md) [dir](adr/)\n");
    let files = [page, file("docs/adr/b.md", ""), file("README.md", "")];
    let mut report = Report::default();
    pages::check(&files, &mut report);
    let said: Vec<String> = report.findings.iter().map(|finding| finding.to_string()).collect();
    assert_eq!(said, ["docs/a.md:1: the link c.md leads nowhere"]);
}

/// What `cargo metadata` says of two crates, the second with a dependency of the given kind on `other`.
fn graph(name: &str, other: &str, kind: &str) -> crates::Graph {
    let metadata = format!(
        r#"{{"workspace_root": "/w", "packages": [
            {{"name": "{name}", "manifest_path": "/w/x/Cargo.toml", "dependencies": [
                {{"name": "{other}", "kind": {kind}, "path": "/w/y"}}, {{"name": "serde", "kind": null}}]}}]}}"#
    );
    let manifest = "[workspace.dependencies]\nserde = \"1\"\nold = \"2\"\nyaml = { package = \"yaml_ng\" }\n\
                    mine = { path = \"y\" }\n[package]\nversion = \"1\"\n";
    crates::Graph::parse(&metadata, manifest).unwrap()
}

#[test]
fn a_crate_that_depends_against_the_order_is_found() {
    let against = crates::check(&graph("meshstor-plan", "meshstor-api", "null"));
    assert_eq!(
        against[0].to_string().split(": crates").next(),
        Some("x/Cargo.toml:1: meshstor-plan must not depend on meshstor-api")
    );
    assert!(crates::check(&graph("meshstor-plan", "meshstor-api", "\"dev\"")).is_empty());
    assert!(crates::check(&graph("meshstor-plan", "meshstor-kernel", "null")).is_empty());
    assert_eq!(crates::check(&graph("meshstor-new", "meshstor-kernel", "null")).len(), 1);
}

#[test]
fn dependencies_from_outside_are_collected_and_unused_ones_named() {
    let graph = graph("meshstor-api", "meshstor-plan", "null");
    let names: Vec<&str> = graph.external.keys().map(String::as_str).collect();
    assert_eq!(names, ["old", "serde", "yaml_ng"]);
    let unused: Vec<String> = crates::unused(&graph).iter().map(|finding| finding.to_string()).collect();
    assert_eq!(
        unused,
        [
            "Cargo.toml:3: old is declared and no crate uses it",
            "Cargo.toml:4: yaml_ng is declared and no crate uses it"
        ]
    );
}

#[test]
fn an_impure_crate_in_the_tree_is_found_by_its_whole_name() {
    let tree = "meshstor-plan v0.1.0 (/x)\nserde v1.0\ntokio-stream v0.1\n";
    assert!(crates::impure("meshstor-plan", tree).is_empty());
    assert_eq!(crates::impure("meshstor-plan", &format!("{tree}tokio v1.54.1\n")).len(), 1);
}
