//! `cargo xtask test`: everything CI runs, on any Debian machine, with one command.
//!
//! Each stage is announced, timed and counted; its whole output goes to a log below the target directory. A failing
//! stage does not keep the others from running, except where nothing could work without it. The last line is the sum:
//! `N passed, N failed`, with `, N skipped` where something was left out. `.ci/run` calls this and nothing else.

mod count;
mod stages;
mod stream;

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use count::Tally;
use stages::{STAGES, Stage};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Everything CI runs.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --list\n  cargo xtask test --only fmt --only tidy\n  \
                        cargo xtask test --package meshstor-plan --only unit"
)]
pub struct Arguments {
    /// Only this stage (may be given several times)
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Build, lint and test this crate alone (may be given several times)
    #[arg(long, value_name = "CRATE")]
    package: Vec<String>,
    /// Name the stages and do nothing
    #[arg(long)]
    list: bool,
}

/// What every stage is given.
pub struct Context {
    /// The workspace.
    root: PathBuf,
    /// Directory of the logs.
    logs: PathBuf,
    /// The crates to build and test; empty: all.
    packages: Vec<String>,
}

/// Does what the arguments say.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let stages = chosen(&arguments.only)?;
    if arguments.list {
        stages.iter().for_each(|stage| println!("{:<10} {}", stage.name, stage.about));
        return Ok(ExitCode::SUCCESS);
    }
    let logs = workspace::target()?.join("xtask");
    std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let context = Context { root: workspace::root()?, logs, packages: arguments.package };
    let total = run_all(&stages, &context);
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(only: &[String]) -> Result<Vec<&'static Stage>> {
    if let Some(unknown) = only.iter().find(|name| STAGES.iter().all(|stage| stage.name != **name)) {
        let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        bail!("no stage {unknown:?}: there are {}", names.join(", "));
    }
    Ok(STAGES.iter().filter(|stage| only.is_empty() || only.iter().any(|name| name == stage.name)).collect())
}

fn run_all(stages: &[&Stage], context: &Context) -> Tally {
    let mut total = Tally::default();
    for (index, stage) in stages.iter().enumerate() {
        println!("==> [{}/{}] {}: {}", index + 1, stages.len(), stage.name, stage.about);
        let begin = Instant::now();
        let tally = (stage.run)(context).unwrap_or_else(|error| {
            println!("    error: {error:#}");
            Tally::FAILED
        });
        println!("<== {}: {tally} in {:.1} s", stage.name, begin.elapsed().as_secs_f32());
        total += tally;
        if stage.gate && tally.failed > 0 {
            let rest: Vec<&str> = stages[index + 1..].iter().map(|stage| stage.name).collect();
            println!("{} failed, nothing after it can work; not run: {}", stage.name, rest.join(", "));
            total.skipped += rest.len();
            break;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context { root: PathBuf::new(), logs: PathBuf::new(), packages: Vec::new() }
    }

    fn stage(gate: bool, run: fn(&Context) -> Result<Tally>) -> Stage {
        Stage { name: "sample", about: "a sample", gate, run }
    }

    #[test]
    fn a_failing_stage_is_counted_and_the_next_one_still_runs() {
        let (bad, good) = (stage(false, |_| bail!("broken")), stage(false, |_| Ok(Tally::PASSED)));
        let total = run_all(&[&bad, &good], &context());
        assert_eq!((total.passed, total.failed, total.skipped), (1, 1, 0));
        assert_eq!(total.to_string(), "1 passed, 1 failed");
    }

    #[test]
    fn nothing_runs_after_a_failed_gate_and_the_sum_says_so() {
        let (bad, never) = (stage(true, |_| Ok(Tally::FAILED)), stage(false, |_| panic!("must not run")));
        let total = run_all(&[&bad, &never, &never], &context());
        assert_eq!(total.to_string(), "0 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn an_unknown_stage_is_named_with_those_that_exist() {
        let error = chosen(&["units".into()]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("units") && error.contains("tidy"), "{error}");
        assert_eq!(chosen(&["tidy".into()]).unwrap().len(), 1);
        assert_eq!(chosen(&[]).unwrap().len(), STAGES.len());
    }
}
