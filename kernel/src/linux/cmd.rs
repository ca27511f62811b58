//! Running the few programs whose work the kernel leaves to user space: `mdadm`, `mkfs.xfs`, `mkfs.ext4`, `modprobe`, `udevadm`.
//!
//! The only file that starts programs. A program is looked for once, in fixed folders; it gets an empty environment, no
//! input and a deadline, and whatever it printed is in the error. It never goes through a shell.

use crate::error::{Class, KernelError, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Where programs may live; `PATH` is not consulted, so that an operator's shell cannot change what runs.
const FOLDERS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];
/// Characters of each output stream that an error quotes: enough for mdadm's last words, short enough for a condition.
const QUOTE: usize = 800;

/// The programs found on this node.
#[derive(Debug, Default)]
pub struct Tools {
    found: Mutex<BTreeMap<String, PathBuf>>,
    versions: Mutex<BTreeMap<String, String>>,
}

impl Tools {
    /// Absolute path of a program. What was not there is looked for again: an operator may install it meanwhile.
    pub fn path(&self, program: &str) -> Option<PathBuf> {
        let mut found = self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(path) = found.get(program) {
            return Some(path.clone());
        }
        let path = FOLDERS.iter().map(|folder| PathBuf::from(folder).join(program)).find(|path| path.is_file())?;
        found.insert(program.to_string(), path.clone());
        Some(path)
    }

    /// What a program says of its version, asked once: the node is looked at often, and each process costs. Empty while
    /// the program cannot be run.
    pub async fn version(&self, program: &str, flag: &str, deadline: Duration) -> String {
        let known = self.versions.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(program).cloned();
        if let Some(version) = known {
            return version;
        }
        let Ok(output) = self.run(program, &args(&[flag]), deadline).await else { return String::new() };
        let version = output.trim().to_string();
        let mut versions = self.versions.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        versions.insert(program.to_string(), version.clone());
        version
    }

    /// Runs a program and returns what it printed on standard output.
    ///
    /// After the deadline the program is killed and the error is [`Class::Retry`]; one that the kernel holds in an
    /// uninterruptible call stays behind until the kernel lets go.
    pub async fn run(&self, program: &str, args: &[String], deadline: Duration) -> Result<String> {
        let what = || format!("{program} {}", args.join(" "));
        let path = self.path(program).ok_or_else(|| {
            KernelError::refuse(what(), program, format!("the program is in none of {}", FOLDERS.join(", ")))
        })?;
        let mut command = tokio::process::Command::new(&path);
        command
            .args(args)
            .env_clear()
            .env("PATH", FOLDERS.join(":"))
            .env("LC_ALL", "C")
            // The node's devtmpfs makes the nodes; in a container there is no udev to wait for, and mdmonitor is the
            // host's business (mdadm: lib.c use_udev, util.c continue_via_systemd).
            .env("MDADM_NO_UDEV", "1")
            .env("MDADM_NO_SYSTEMCTL", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let shown = path.to_string_lossy().into_owned();
        let child = command.spawn().map_err(|e| KernelError::io(what(), shown.clone(), &e))?;
        match tokio::time::timeout(deadline, child.wait_with_output()).await {
            Err(_) => Err(KernelError::retry(what(), shown, format!("not done after {} s", deadline.as_secs()))),
            Ok(Err(e)) => Err(KernelError::io(what(), shown, &e)),
            Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(Ok(output)) => Err(failed(what(), shown, &output)),
        }
    }
}

fn failed(op: String, path: String, output: &Output) -> KernelError {
    let code = output.status.code().map_or_else(|| "a signal".to_string(), |code| format!("status {code}"));
    let detail = format!("ended with {code}: {} {}", quote(&output.stderr), quote(&output.stdout));
    KernelError { op, path, errno: None, detail: detail.trim_end().to_string(), class: Class::Retry }
}

/// The end of an output on one line: programs say last what went wrong.
fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let skip = line.chars().count().saturating_sub(QUOTE);
    line.chars().skip(skip).collect()
}

/// The arguments as owned strings, so that call sites stay short.
pub fn args(list: &[&str]) -> Vec<String> {
    list.iter().map(|arg| arg.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, list: &[&str], deadline: Duration) -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Tools::default().run(program, &args(list), deadline))
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_environment_is_clean_and_the_output_comes_back() {
        let output = run("env", &[], LONG).unwrap();
        let mut names: Vec<&str> = output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.sort();
        assert_eq!(names, ["LC_ALL", "MDADM_NO_SYSTEMCTL", "MDADM_NO_UDEV", "PATH"]);
    }

    #[test]
    fn a_failure_quotes_both_outputs() {
        let error = run("sh", &["-c", "echo out; echo err >&2; exit 3"], LONG).unwrap_err();
        assert!(error.detail.contains("status 3: err out"), "{error}");
        assert_eq!(error.class, Class::Retry);
    }

    #[test]
    fn a_program_past_its_deadline_is_given_up() {
        let error = run("sleep", &["30"], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.class, Class::Retry);
    }

    #[test]
    fn an_absent_program_is_refused_by_name() {
        let error = run("no-such-program", &[], LONG).unwrap_err();
        assert_eq!((error.class, error.path.as_str()), (Class::Refuse, "no-such-program"));
    }
}
