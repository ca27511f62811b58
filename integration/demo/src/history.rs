//! What a writer was told, as received by the host, and the comparison with what a volume holds.
//!
//! Pure, but for the thread that collects lines. An acknowledgement that reached the host was certainly given.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One acknowledged write; times are microseconds since 1970 by the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Sequence number.
    pub sequence: u64,
    /// Block.
    pub index: u64,
    /// When it was issued.
    pub begin: u128,
    /// When it was acknowledged.
    pub end: u128,
}

/// Everything a writer printed.
#[derive(Debug, Default, Clone)]
pub struct History {
    /// Acknowledged writes in order.
    pub acks: Vec<Ack>,
    /// Errors it met.
    pub errors: Vec<String>,
}

impl History {
    fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("ack") => {
                let numbers: Vec<u128> = words.filter_map(|w| w.parse().ok()).collect();
                if let [sequence, index, begin, end] = numbers[..] {
                    self.acks.push(Ack { sequence: sequence as u64, index: index as u64, begin, end });
                }
            }
            Some("error") => self.errors.push(line.to_string()),
            _ => {}
        }
    }

    /// The longest time a single write took.
    pub fn longest(&self) -> Duration {
        let longest = self.acks.iter().map(|a| a.end.saturating_sub(a.begin)).max().unwrap_or(0);
        Duration::from_micros(longest as u64)
    }

    /// The write that took longest.
    pub fn slowest(&self) -> Option<Ack> {
        self.acks.iter().max_by_key(|a| a.end.saturating_sub(a.begin)).copied()
    }

    /// The next sequence number for a writer that goes on.
    pub fn next(&self) -> u64 {
        self.acks.last().map_or(1, |a| a.sequence + 2)
    }

    /// Joins a later writer's history.
    pub fn append(&mut self, later: &History) {
        self.acks.extend(&later.acks);
        self.errors.extend(later.errors.iter().cloned());
    }

    /// Compares with what a reader printed: every block must be whole and at least as new as its last acknowledged
    /// write. Returns the number of acknowledged blocks compared.
    pub fn verify(&self, read: &str) -> Result<usize> {
        let mut found = BTreeMap::new();
        for line in read.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["block", index, sequence] => {
                    found.insert(index.parse::<u64>()?, sequence.parse::<u64>()?);
                }
                ["torn", index] => bail!("block {index} is not whole"),
                _ => {}
            }
        }
        let mut last = BTreeMap::new();
        for ack in &self.acks {
            last.insert(ack.index, ack.sequence);
        }
        for (index, acknowledged) in &last {
            let sequence = found.get(index).with_context(|| format!("block {index} is missing"))?;
            if sequence < acknowledged {
                bail!("LOST: block {index} carries write {sequence}, but {acknowledged} was acknowledged");
            }
        }
        Ok(last.len())
    }
}

/// A writer that runs in a guest.
pub struct Running {
    child: Child,
    history: Arc<Mutex<History>>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts the command (an ssh into a guest) and collects what it prints.
    pub fn start(mut command: Command) -> Result<Running> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("a piped child has a stdout")?;
        let history = Arc::new(Mutex::new(History::default()));
        let shared = history.clone();
        let thread = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(mut history) = shared.lock() {
                    history.line(&line);
                }
            }
        });
        Ok(Running { child, history, thread })
    }

    /// What was received so far.
    pub fn so_far(&self) -> History {
        self.history.lock().map(|h| h.clone()).unwrap_or_default()
    }

    /// Whether the command has ended by itself.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until at least this many more writes are acknowledged than now.
    pub fn wait_for(&self, more: usize, within: Duration) -> Result<()> {
        let target = self.so_far().acks.len() + more;
        let begin = std::time::Instant::now();
        while self.so_far().acks.len() < target {
            let history = self.so_far();
            if !history.errors.is_empty() {
                bail!("the writer met an error: {}", history.errors.join("; "));
            }
            if begin.elapsed() > within {
                bail!("the writer got {} of {target} acknowledgements within {within:?}", history.acks.len());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits for the command to end by itself (it was told to stop, or its guest died) and returns all it printed.
    pub fn finish(mut self, within: Duration) -> Result<History> {
        let begin = std::time::Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > within {
                self.child.kill()?;
                self.child.wait()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ended = self.thread.join();
        Ok(self.history.lock().map(|h| h.clone()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(acks: &[(u64, u64)]) -> History {
        let ack = |(sequence, index): &(u64, u64)| Ack { sequence: *sequence, index: *index, begin: 0, end: 1 };
        History { acks: acks.iter().map(ack).collect(), errors: vec![] }
    }

    #[test]
    fn a_lost_write_is_found() {
        let h = history(&[(1, 0), (2, 1), (3, 0)]);
        assert_eq!(h.verify("block 0 3\nblock 1 2\n").unwrap(), 2);
        assert_eq!(h.verify("block 0 4\nblock 1 2\n").unwrap(), 2, "a newer write in flight is allowed");
        assert!(h.verify("block 0 1\nblock 1 2\n").is_err());
        assert!(h.verify("block 0 3\n").is_err());
        assert!(h.verify("block 0 3\ntorn 1\n").is_err());
    }
}
