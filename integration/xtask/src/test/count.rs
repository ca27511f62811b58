//! Counting: what a stage found, and what cargo's test runs say in their `test result:` lines.
//!
//! Used by the stages. It believes no exit code alone and no text alone: a run that fails without naming a failed test
//! counts as one failure, and a run in which no test ran at all is a failure too.

use std::fmt;
use std::ops::AddAssign;

/// How many checks passed, failed, were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Left out: ignored tests, stages that could not run.
    pub skipped: usize,
}

impl Tally {
    /// One check that passed.
    pub const PASSED: Tally = Tally { passed: 1, failed: 0, skipped: 0 };
    /// One check that failed.
    pub const FAILED: Tally = Tally { passed: 0, failed: 1, skipped: 0 };

    /// One check.
    pub fn of(passed: bool) -> Tally {
        if passed { Tally::PASSED } else { Tally::FAILED }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Reads the output of `cargo test` line by line.
#[derive(Default)]
pub struct TestRun {
    tally: Tally,
    /// Names of failed tests.
    pub failures: Vec<String>,
}

impl TestRun {
    /// One more line.
    pub fn line(&mut self, line: &str) {
        if let Some(tally) = test_result(line) {
            self.tally += tally;
        }
        let name = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        self.failures.extend(name.map(str::to_string));
    }

    /// The sum, given whether the command succeeded.
    pub fn sum(&self, succeeded: bool) -> Tally {
        let mut tally = self.tally;
        // A test binary that crashes prints no result line: only the exit code knows.
        let unexplained = !succeeded && tally.failed == 0;
        let nothing_ran = tally == Tally::default();
        if unexplained || nothing_ran {
            tally += Tally::FAILED;
        }
        tally
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn test_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        let part = counts.split(';').find_map(|part| part.trim().strip_suffix(word))?;
        part.trim().parse::<usize>().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.31s";
    const BAD: &str =
        "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";

    fn fed(lines: &[&str]) -> TestRun {
        let mut run = TestRun::default();
        lines.iter().for_each(|line| run.line(line));
        run
    }

    #[test]
    fn results_of_all_binaries_are_summed() {
        let run = fed(&["running 13 tests", GOOD, "test a::b ... FAILED", BAD]);
        assert_eq!(run.sum(false), Tally { passed: 16, failed: 2, skipped: 1 });
        assert_eq!(run.failures, ["a::b"]);
    }

    #[test]
    fn a_crash_counts_although_no_line_names_it() {
        assert_eq!(fed(&[GOOD]).sum(true).failed, 0);
        assert_eq!(fed(&[GOOD]).sum(false).failed, 1);
    }

    #[test]
    fn a_run_without_any_test_is_a_failure() {
        assert_eq!(fed(&["Finished"]).sum(true), Tally::FAILED);
    }

    #[test]
    fn a_line_that_only_looks_like_a_result_is_none() {
        assert_eq!(test_result("test result: ok"), None);
        assert_eq!(test_result("the test result: ok. 1 passed; 0 failed; 0 ignored"), None);
    }
}
