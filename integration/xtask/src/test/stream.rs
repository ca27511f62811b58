//! Running a command whose output goes to a log, while a person sees that it moves.
//!
//! Used by the stages. Lines that `show` picks are printed at once; when nothing was printed for a while, the last line
//! is shown. A process left behind by the command, with the output still open, does not hold the run up.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest silence on the terminal.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// How long to wait for more lines once the command itself has ended.
const POLL: Duration = Duration::from_secs(1);
/// Lines of the log that are printed when the command fails.
const TAIL: usize = 40;
/// Longer lines are cut on the terminal; the log has them whole.
const WIDTH: usize = 160;

/// Runs a command to its end. Returns whether it succeeded; prints the end of the log when it did not.
pub fn run(command: Command, log: &Path, mut show: impl FnMut(&str) -> bool) -> Result<bool> {
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let (mut child, lines) = start(command)?;
    let mut tail: Vec<String> = Vec::new();
    let mut printed = Instant::now();
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                writeln!(file, "{line}").with_context(|| format!("write {}", log.display()))?;
                if show(&line) {
                    println!("    {}", cut(&line));
                    printed = Instant::now();
                }
                tail.push(line);
                tail.drain(..tail.len().saturating_sub(TAIL));
            }
            Err(RecvTimeoutError::Timeout) if child.try_wait().context("ask for the command's end")?.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if printed.elapsed() > QUIET_MAX {
            println!("    … {}", cut(tail.last().map_or("no output yet", |line| line.trim())));
            printed = Instant::now();
        }
    }
    let succeeded = child.wait().context("wait for the command")?.success();
    if !succeeded {
        println!("    --- end of {} ---", log.display());
        tail.iter().for_each(|line| println!("    {line}"));
    }
    Ok(succeeded)
}

fn start(mut command: Command) -> Result<(Child, Receiver<String>)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let both = writer.try_clone().context("duplicate the pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(both);
    let child = command.spawn().with_context(|| format!("start {name}"))?;
    // The command still holds our ends of the pipe; while it does, the reader never sees the end.
    drop(command);
    Ok((child, lines(reader)))
}

fn lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_string();
            bytes.clear();
            // Nobody listens any more: the command has ended and its leftovers are of no interest.
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn cut(line: &str) -> String {
    let mut chars = line.chars();
    let head: String = chars.by_ref().take(WIDTH).collect();
    if chars.next().is_some() { format!("{head}…") } else { head }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn log(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("meshstor-xtask-{}-{name}.log", std::process::id()))
    }

    #[test]
    fn both_outputs_reach_the_log_and_the_filter() {
        let log = log("both");
        let mut seen = Vec::new();
        let ok = run(shell("echo one; echo two >&2; exit 3"), &log, |line| {
            seen.push(line.to_string());
            false
        });
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(!ok.unwrap());
        assert_eq!((seen, text.as_str()), (vec!["one".to_string(), "two".to_string()], "one\ntwo\n"));
    }

    #[test]
    fn a_process_left_behind_does_not_hold_the_run_up() {
        let log = log("left");
        let begin = Instant::now();
        assert!(run(shell("sleep 20 & echo done"), &log, |_| false).unwrap());
        std::fs::remove_file(&log).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
