//! Running other programs to their end: output captured, failures named, long work announced.
//!
//! Used by every module that calls a program. Never starts anything that outlives the call; see `process` for that.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a finished command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128 + signal number when a signal ended it.
    pub status: i32,
    /// Standard output, decoded leniently.
    pub stdout: String,
    /// Standard error, decoded leniently.
    pub stderr: String,
    /// Wall-clock time from start to end.
    pub took: Duration,
}

impl Output {
    /// Whether the command ended with status 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// Runs a command that must succeed and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let out = capture(command, None)?;
    if !out.ok() {
        bail!("`{name}` ended with {}: {}", out.status, tail(&out.stderr, 12));
    }
    Ok(out.stdout)
}

/// Runs a command that must succeed, its whole output going to a log file (named in the error).
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let name = describe(command);
    let file = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
    let both = file.try_clone().context("duplicate the log file's descriptor")?;
    let status =
        command.stdin(Stdio::null()).stdout(file).stderr(both).status().with_context(|| format!("start `{name}`"))?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        bail!("`{name}` failed ({status}), log {}:\n{}", log.display(), tail(&text, 20));
    }
    Ok(())
}

/// Runs a command, whatever its exit status, within a deadline if one is given.
pub(crate) fn capture(command: &mut Command, deadline: Option<Duration>) -> Result<Output> {
    capture_with_input(command, None, deadline)
}

/// Like [`capture`], feeding `input` to its standard input.
pub(crate) fn capture_with_input(
    command: &mut Command,
    input: Option<Vec<u8>>,
    deadline: Option<Duration>,
) -> Result<Output> {
    let name = describe(command);
    let begin = Instant::now();
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("start `{name}`"))?;
    if let (Some(bytes), Some(mut pipe)) = (input, child.stdin.take()) {
        // A child that ends early closes the pipe; its exit status says why, so the write error is of no use.
        std::thread::spawn(move || pipe.write_all(&bytes));
    }
    let stdout = read_in_background(child.stdout.take());
    let stderr = read_in_background(child.stderr.take());
    let collect = |source: mpsc::Receiver<Vec<u8>>| match deadline {
        None => source.recv().ok(),
        Some(limit) => source.recv_timeout(limit.saturating_sub(begin.elapsed())).ok(),
    };
    let (Some(stdout), Some(stderr)) = (collect(stdout), collect(stderr)) else {
        stop(&mut child);
        bail!("`{name}` did not end within {:.1} s", begin.elapsed().as_secs_f32());
    };
    let status = child.wait().with_context(|| format!("wait for `{name}`"))?;
    Ok(Output {
        status: code(status),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        took: begin.elapsed(),
    })
}

fn read_in_background(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the output like an end of file does; the exit status tells the rest.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

fn stop(child: &mut Child) {
    // Both fail only when the child is already gone, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// The command line as a person would type it, shortened: names a command in errors.
pub(crate) fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let line = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if line.len() <= 300 {
        return line;
    }
    let head: String = line.chars().take(300).collect();
    format!("{head}…")
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Announces a piece of work, does it, and says how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    eprintln!("lab: {what} …");
    let result = work().with_context(|| what.to_string());
    if result.is_ok() {
        eprintln!("lab: {what}: done in {:.1} s", begin.elapsed().as_secs_f32());
    }
    result
}

/// Asks again and again until there is an answer, for at most `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if begin.elapsed() > limit {
            bail!("{what}: not within {:.0} s", limit.as_secs_f32());
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_command_and_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo lost the key >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("ended with 3") && error.contains("lost the key"), "{error}");
    }

    #[test]
    fn deadline_ends_a_hanging_command() {
        let begin = Instant::now();
        let result = capture(Command::new("sleep").arg("30"), Some(Duration::from_millis(100)));
        assert!(result.is_err());
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn input_reaches_the_command() {
        let out = capture_with_input(&mut Command::new("cat"), Some(b"abc".to_vec()), None).unwrap();
        assert_eq!((out.status, out.stdout.as_str()), (0, "abc"));
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
