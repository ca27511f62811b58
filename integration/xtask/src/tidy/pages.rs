//! Pages tied to code: every reason is explained, every dependency has its why, every promise is cited, links lead
//! somewhere.
//!
//! Called by `tidy`. It compares names only: whether a page is true, a reader has to judge.

use super::crates::Place;
use super::source::{Source, mask};
use super::tree::File;
use super::{Finding, Report};
use std::collections::{BTreeMap, BTreeSet};

/// The page that says why each dependency was chosen.
pub const DEPENDENCIES: &str = "docs/dependencies.md";
const ERRORS: &str = "docs/errors.md";
const REASONS: &str = "actors/plan/src/reason.rs";
const PROMISES: &str = "docs/promises.md";
const HAZARDS: &str = "docs/kernel-hazards.md";
/// Letters that code cites things by, and the pages that explain them: a row or heading that begins with the number.
const NUMBERED: &[(char, &str)] = &[('F', HAZARDS), ('K', "docs/kubernetes.md")];

/// All checks that need the files alone.
pub fn check(files: &[File], report: &mut Report) {
    let file = |path: &str| files.iter().find(|file| file.path == path);
    if let Some(reasons) = file(REASONS) {
        let empty = File { path: ERRORS.to_string(), text: String::new() };
        report.findings.extend(errors(reasons, file(ERRORS).unwrap_or(&empty)));
    }
    if let Some(promises) = file(PROMISES) {
        report.warnings.extend(uncited(promises, files));
    }
    for (letter, path) in NUMBERED {
        report.findings.extend(unexplained(*letter, file(path), path, files));
    }
    report.findings.extend(file(HAZARDS).map(|page| missing_guards(page, files)).unwrap_or_default());
    report.findings.extend(files.iter().flat_map(|file| missing_pages(file, files)));
    report.findings.extend(links(files));
}

/// The reasons and their page, both ways; the enum and its list of words as well.
pub fn errors(reasons: &File, page: &File) -> Vec<Finding> {
    let variants = variants(&reasons.path, &reasons.text);
    let words = listed_words(&reasons.text);
    let sections = headings(&page.text);
    let mut findings = Vec::new();
    for (word, line) in variants.iter().filter(|(word, _)| !words.contains_key(*word)) {
        findings.push(Finding::new(&reasons.path, *line, format!("{word} is missing in Reason::WORDS")));
    }
    for (word, line) in words.iter().filter(|(word, _)| !variants.contains_key(*word)) {
        findings.push(Finding::new(&reasons.path, *line, format!("{word} is in Reason::WORDS and no reason")));
    }
    for word in variants.keys().filter(|word| !sections.contains_key(*word)) {
        findings.push(Finding::new(&page.path, 1, format!("no section `## {word}`: what it means, what to do")));
    }
    for (word, line) in sections.iter().filter(|(word, _)| !variants.contains_key(*word)) {
        findings.push(Finding::new(&page.path, *line, format!("{word} is not a reason of {}", reasons.path)));
    }
    findings
}

/// Names of the variants of `enum Reason`.
fn variants(path: &str, text: &str) -> BTreeMap<String, usize> {
    let source = Source::new(path, text);
    let tokens = source.tokens();
    let start = tokens.windows(2).position(|pair| (pair[0].text.as_str(), pair[1].text.as_str()) == ("enum", "Reason"));
    let mut found = BTreeMap::new();
    let mut depth = 0usize;
    for token in tokens.iter().skip(start.map_or(tokens.len(), |start| start + 2)) {
        match token.text.as_str() {
            "{" | "(" => depth += 1,
            "}" | ")" if depth <= 1 => break,
            "}" | ")" => depth -= 1,
            word if depth == 1 && word.starts_with(char::is_uppercase) => {
                found.insert(word.to_string(), token.line);
            }
            _ => {}
        }
    }
    found
}

/// The literals in `const WORDS`.
fn listed_words(text: &str) -> BTreeMap<String, usize> {
    let lines = text.lines().enumerate().skip_while(|(_, line)| !line.contains("const WORDS"));
    let lines = lines.take_while(|(_, line)| !line.trim_start().starts_with("];"));
    let literals =
        lines.flat_map(|(index, line)| line.split('"').skip(1).step_by(2).map(move |word| (word, index + 1)));
    literals.map(|(word, line)| (word.to_string(), line)).collect()
}

fn headings(text: &str) -> BTreeMap<String, usize> {
    let lines = text.lines().enumerate();
    lines.filter_map(|(index, line)| Some((line.strip_prefix("## ")?.trim().to_string(), index + 1))).collect()
}

/// Dependencies and their page, both ways. A row of the page begins with the crate's name: "| `name` |".
pub fn dependencies(external: &BTreeMap<String, Place>, page: &File) -> Vec<Finding> {
    let rows: BTreeMap<&str, usize> = page
        .text
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((line.strip_prefix("| `")?.split('`').next()?, index + 1)))
        .collect();
    let missing = external.iter().filter(|(name, _)| !rows.contains_key(name.as_str()));
    let missing = missing.map(|(name, place)| {
        Finding::new(&place.manifest, place.line, format!("{name} has no line in {}: say why", page.path))
    });
    let stale = rows.iter().filter(|(name, _)| !external.contains_key(**name));
    let stale = stale.map(|(name, line)| Finding::new(&page.path, *line, format!("{name} is no dependency any more")));
    missing.chain(stale).collect()
}

/// Promises (`## P1 …`) that no code and no test cites.
fn uncited(page: &File, files: &[File]) -> Vec<Finding> {
    let cited: BTreeSet<String> = files.iter().filter(|file| is_product_code(file)).flat_map(citations).collect();
    let promises = headings(&page.text).into_iter().filter_map(|(heading, line)| {
        let number = heading.split_whitespace().next()?.trim_end_matches([':', '.']).to_string();
        is_promise(&number).then_some((number, line))
    });
    let uncited = promises.filter(|(number, _)| !cited.contains(number));
    uncited
        .map(|(number, line)| Finding::new(&page.path, line, format!("{number} is cited by no code and no test")))
        .collect()
}

/// Promise numbers in the comments and literals of a file: everything that is not code.
fn citations(file: &File) -> BTreeSet<String> {
    numbered('P', &file.text).map(|(number, _)| number).collect()
}

/// Numbers that code cites and their page does not explain.
fn unexplained(letter: char, page: Option<&File>, path: &str, files: &[File]) -> Vec<Finding> {
    let explained: BTreeSet<&str> = page.map_or("", |page| &page.text).split(|c: char| !c.is_alphanumeric()).collect();
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| is_product_code(file)) {
        for (number, line) in numbered(letter, &file.text).filter(|(number, _)| !explained.contains(number.as_str())) {
            findings.push(Finding::new(&file.path, line, format!("{number} is not explained in {path}")));
        }
    }
    findings
}

/// Guarding tests that a hazard's row names, in its last cell, and that do not exist.
fn missing_guards(page: &File, files: &[File]) -> Vec<Finding> {
    let exists = |name: &str| files.iter().any(|file| file.text.contains(&format!("fn {name}(")));
    let rows = page.text.lines().enumerate().filter(|(_, line)| line.starts_with("| F"));
    let names = rows.flat_map(|(index, line)| {
        let guard = line.trim_end_matches(['|', ' ']).rsplit(" | ").next().unwrap_or_default();
        guard.split('`').skip(1).step_by(2).map(move |name| (index + 1, name))
    });
    let tests = names.filter(|(_, name)| name.contains('_') && name.chars().all(|c| c == '_' || c.is_alphanumeric()));
    let missing = tests.filter(|(_, name)| !exists(name));
    missing.map(|(line, name)| Finding::new(&page.path, line, format!("there is no test {name}"))).collect()
}

/// Pages that comments name and nobody has written.
fn missing_pages(file: &File, files: &[File]) -> Vec<Finding> {
    if !is_product_code(file) {
        return Vec::new();
    }
    let known = |name: &str| files.iter().any(|file| file.path == name || file.path.ends_with(&format!("/{name}")));
    let mut findings = Vec::new();
    for (line, text) in comments(&file.text) {
        let names = text.split(|c: char| !(c.is_alphanumeric() || "-_./".contains(c)));
        let names = names.map(|name| name.trim_end_matches('.')).filter(|name| name.ends_with(".md"));
        for name in names.filter(|name| !known(name)) {
            findings.push(Finding::new(&file.path, line, format!("{name} does not exist")));
        }
        if text.contains("design section") || text.contains("design rule") {
            let what = "cite the rule where a reader finds it: docs/protocol.md, rule N";
            findings.push(Finding::new(&file.path, line, what));
        }
    }
    findings
}

fn is_product_code(file: &File) -> bool {
    file.path.ends_with(".rs") && !file.path.starts_with("integration/xtask/")
}

/// Numbers such as `F12` outside code, with their lines.
fn numbered(letter: char, text: &str) -> impl Iterator<Item = (String, usize)> {
    let is_number = move |word: &str| {
        word.strip_prefix(letter)
            .is_some_and(|n| !n.is_empty() && n.len() <= 2 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let code = mask(text);
    let code: Vec<String> = words(&code).filter(|word| is_number(word)).map(str::to_string).collect();
    let lines: Vec<(String, usize)> = text
        .lines()
        .enumerate()
        .flat_map(|(index, line)| words(line).map(move |word| (word.to_string(), index + 1)))
        .collect();
    lines.into_iter().filter(move |(word, _)| is_number(word) && !code.contains(word))
}

/// Comment lines, by the way they begin: enough to find what they cite.
fn comments(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(index, line)| line.find("//").map(|at| (index + 1, &line[at..])))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn is_promise(word: &str) -> bool {
    word.strip_prefix('P').is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Links between pages that lead nowhere.
fn links(files: &[File]) -> Vec<Finding> {
    let known: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (index, line) in page.text.lines().enumerate() {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
            let local = targets.filter(|target| !target.is_empty() && !target.contains("://"));
            for target in local {
                let path = resolve(&page.path, target);
                let folder = format!("{}/", path.trim_end_matches('/'));
                if !known.contains(path.as_str()) && !known.iter().any(|known| known.starts_with(&folder)) {
                    findings.push(Finding::new(&page.path, index + 1, format!("the link {target} leads nowhere")));
                }
            }
        }
    }
    findings
}

/// `target` as seen from `page`, with `..` taken away.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}
