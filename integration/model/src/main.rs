//! `meshstor-model`: checks the protocol, then shows that each of its rules is needed.
//!
//! Called by `cargo xtask model`. Without arguments it explores every scope of the correct protocol to its end, then looks
//! for the broken promise behind each variant. Its last line is `model: N passed, N failed`.

use clap::Parser;
use meshstor_model::check::{self, FULL, Outcome, SMALL, Scope};
use meshstor_model::rules::{Named, VARIANTS};
use std::process::ExitCode;

/// Explores the protocol.
#[derive(Parser)]
#[command(
    name = "meshstor-model",
    after_help = "Examples:\n  meshstor-model\n  meshstor-model --small\n  meshstor-model --variant no-merge"
)]
struct Arguments {
    /// Smaller bounds: some seconds
    #[arg(long)]
    small: bool,
    /// Break this rule and print the whole way to the broken promise
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Name the scopes and variants and do nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let scopes = if arguments.small { SMALL } else { FULL };
    if arguments.list {
        scopes.iter().for_each(|scope| println!("scope    {}", scope.name));
        VARIANTS.iter().for_each(|named| println!("{:<8} {:<26} {}", kind(named), named.name, named.about));
        return ExitCode::SUCCESS;
    }
    let results: Vec<bool> = match &arguments.variant {
        Some(name) => match VARIANTS.iter().find(|named| named.name == name) {
            Some(named) => vec![variant(named, true)],
            None => {
                eprintln!("error: no variant {name:?}; --list names them");
                return ExitCode::FAILURE;
            }
        },
        None => scopes.iter().map(scope).chain(VARIANTS.iter().map(|named| variant(named, false))).collect(),
    };
    let failed = results.iter().filter(|passed| !**passed).count();
    println!("model: {} passed, {failed} failed", results.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn kind(named: &Named) -> &'static str {
    if named.limit { "limit" } else { "variant" }
}

/// The correct protocol in one scope, to its end.
fn scope(scope: &Scope) -> bool {
    let outcome = check::run(scope.bounds, None);
    let violations = usize::from(outcome.violation.is_some());
    println!("scope {}: {}, {violations} violations", scope.name, counts(&outcome));
    outcome.unseen.iter().for_each(|what| println!("  FAILED: never seen: {what}"));
    trace(&outcome);
    outcome.holds()
}

fn counts(outcome: &Outcome) -> String {
    let seconds = outcome.took.as_secs_f64();
    let Outcome { generated, unique, depth, .. } = outcome;
    format!("{generated} states explored, {unique} unique, depth {depth}, {seconds:.1} s")
}

/// One broken rule: passed when the broken promise is found.
fn variant(named: &Named, whole: bool) -> bool {
    let outcome = check::run(check::bounds_of(named.variant), Some(named.variant));
    let Some(violation) = &outcome.violation else {
        println!("{} {}: FAILED: nothing broken in {}", kind(named), named.name, counts(&outcome));
        return false;
    };
    if whole {
        println!("{}: {}", named.name, named.about);
        trace(&outcome);
    } else {
        let (steps, promises) = (violation.trace.len(), violation.promises.join("; "));
        println!("{:<7} {:<25} {steps:>2} steps to {promises}", kind(named), named.name);
    }
    true
}

fn trace(outcome: &Outcome) {
    let Some(violation) = &outcome.violation else { return };
    violation.trace.iter().enumerate().for_each(|(n, action)| println!("  {:>2}  {action}", n + 1));
    violation.promises.iter().for_each(|promise| println!("      BROKEN {promise}"));
}
