//! `cargo xtask tidy`: the style rules and page contents that a machine can check.
//!
//! One line for each finding, `file:line: what to do`, and a failure when there is any. Called by people and as a stage
//! of `cargo xtask test`. Reads files and asks cargo for the crate graph; it never changes anything.
//!
//! ```text
//!  tree::files ─▶ source (comments, literals, functions, test code) ─▶ code    rules for one Rust file
//!             └─▶ words    rules for any text file
//!                 crates   which crate may depend on which
//!                 pages    docs tied to code: reasons, dependencies, promises, links
//! ```

mod code;
mod crates;
mod pages;
mod source;
mod tree;
mod words;

use anyhow::Result;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use tree::File;

/// Style rules and pages, checked.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask tidy\n  cargo xtask tidy --no-crates     (files only, without asking cargo)"
)]
pub struct Arguments {
    /// Leave out the checks of the crate graph
    #[arg(long)]
    no_crates: bool,
}

/// Something that a person has to mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: path.to_string(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// The outcome of all checks.
#[derive(Default)]
pub struct Report {
    /// What fails the check.
    pub findings: Vec<Finding>,
    /// What is only worth knowing.
    pub warnings: Vec<Finding>,
    /// Files read.
    pub files: usize,
}

impl Report {
    /// Prints everything, findings last.
    pub fn print(&self) {
        self.warnings.iter().for_each(|warning| println!("warning: {warning}"));
        self.findings.iter().for_each(|finding| println!("{finding}"));
    }

    /// One line that says it all.
    pub fn summary(&self) -> String {
        let Report { findings, warnings, files } = self;
        format!("{} findings, {} warnings in {files} files", findings.len(), warnings.len())
    }
}

/// Does what the arguments say.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = crate::workspace::root()?;
    let mut report = check_files(&tree::files(&root)?);
    if !arguments.no_crates {
        check_crates(&root, &mut report)?;
    }
    report.print();
    println!("tidy: {}", report.summary());
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every check, on the workspace at `root`.
pub fn check(root: &Path) -> Result<Report> {
    let mut report = check_files(&tree::files(root)?);
    check_crates(root, &mut report)?;
    Ok(report)
}

fn check_files(files: &[File]) -> Report {
    let mut report = Report { files: files.len(), ..Report::default() };
    for file in files {
        if file.path.ends_with(".rs") {
            report.findings.extend(code::check(file));
        }
        report.findings.extend(words::check(file));
    }
    pages::check(files, &mut report);
    report.findings.sort();
    report
}

fn check_crates(root: &Path, report: &mut Report) -> Result<()> {
    let graph = crates::Graph::ask(root)?;
    report.findings.extend(crates::check(&graph));
    report.findings.extend(crates::check_pure(root)?);
    report.warnings.extend(crates::unused(&graph));
    let page = tree::read(root, pages::DEPENDENCIES)?;
    report.findings.extend(pages::dependencies(&graph.external, &page));
    Ok(())
}

#[cfg(test)]
mod tests;
