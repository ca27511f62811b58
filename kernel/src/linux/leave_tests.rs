//! The script of the shutdown on a host of files: what it ends, in which order, and what it leaves alone.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// A host as the script sees it: sysfs, procfs, cgroups, and programs that only note that they were called.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new(systemd: &str) -> Host {
        let host = Host { dir: tempfile::tempdir().unwrap() };
        host.put("leave", SCRIPT_TEXT);
        host.put("proc/self/mountinfo", "20 1 254:0 / / rw - ext4 /dev/vda rw\n");
        host.put("cgroup/kubepods/cgroup.procs", "");
        host.program("systemctl", &format!("echo {systemd}"));
        host.program("losetup", "echo \"losetup $*\" >>$HOST/log");
        // What is unmounted is gone from the list, unless it hangs.
        let gone = r#"echo "umount $2" >>$HOST/log
[ -e $HOST/hangs ] && exit
point=$(printf %s "$2" | sed 's/ /\\040/g')
grep -vF " $point " $HOST/proc/self/mountinfo >$HOST/left.$$; mv $HOST/left.$$ $HOST/proc/self/mountinfo"#;
        host.program("umount", gone);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn program(&self, name: &str, text: &str) {
        let name = format!("bin/{name}");
        self.put(&name, &format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(self.path(&name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn array(&self, name: &str, number: &str, state: &str) {
        self.put(&format!("sys/block/{name}/md/array_state"), state);
        self.put(&format!("sys/block/{name}/dev"), &format!("{number}\n"));
    }

    fn mounted(&self, number: &str, point: &str) {
        let line = format!("40 20 {number} / {point} rw shared:9 - xfs /dev/md rw\n");
        self.put("proc/self/mountinfo", &format!("{}{line}", self.read("proc/self/mountinfo")));
    }

    fn controller(&self, name: &str, nqn: &str) {
        self.put(&format!("sys/class/nvme/{name}/subsysnqn"), nqn);
        self.put(&format!("sys/class/nvme/{name}/delete_controller"), "");
    }

    fn leave(&self) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let output = Command::new("/bin/sh")
            .arg(self.path("leave"))
            .env_clear()
            .envs([("SYS", at("sys")), ("PROC", at("proc")), ("CGROUP", at("cgroup")), ("HOST", at(""))])
            .envs([("PATH", format!("{}:/usr/bin:/bin", at("bin"))), ("PATIENCE", "3".into())])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn a_machine_that_goes_on_keeps_everything() {
    let host = Host::new("degraded");
    host.array("md1000", "9:1000", "active\n");
    host.mounted("9:1000", "/a");
    assert!(host.leave().contains("the machine is not shutting down"));
    assert_eq!((host.read("log"), host.read("sys/block/md1000/md/array_state")), (String::new(), "active\n".into()));
}

#[test]
fn our_arrays_are_unmounted_and_stopped_and_nobody_elses() {
    let host = Host::new("stopping");
    for (name, number, state) in
        [("md1000", "9:1000", "active\n"), ("md1001", "9:1001", "clean\n"), ("md127", "9:127", "active\n")]
    {
        host.array(name, number, state);
    }
    host.mounted("9:1000", "/stage");
    host.mounted("9:1000", r"/stage/a\040pod");
    host.mounted("9:127", "/theirs");
    host.controller("nvme1", "nqn.2025-12.io.meshstor:x");
    host.put("sys/block/loop3/loop/backing_file", "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/v/dev");
    host.put("sys/block/loop4/loop/backing_file", "/home/image");
    let said = host.leave();
    assert!(
        said.contains("ending md1000 md1001") && said.ends_with("meshstor-leave: done\n") && !said.contains("given up"),
        "{said}"
    );
    let log = host.read("log");
    assert!(log.contains("umount /stage\n") && log.contains("umount /stage/a pod\n"), "{log}");
    assert!(!log.contains("/theirs") && log.contains("losetup -d /dev/loop3") && !log.contains("loop4"), "{log}");
    let state = |name: &str| host.read(&format!("sys/block/{name}/md/array_state"));
    assert_eq!([state("md1000"), state("md1001"), state("md127")], ["clear\n", "clear\n", "active\n"]);
    assert_eq!(host.read("sys/class/nvme/nvme1/delete_controller"), "1\n", "LVM would wait for it without a network");
}

#[test]
fn paths_are_given_up_only_when_something_hangs_and_only_ours() {
    let host = Host::new("stopping");
    host.put("hangs", "");
    host.array("md1000", "9:1000", "active\n");
    host.mounted("9:1000", "/stage");
    host.controller("nvme0", "nqn.2014.org.nvmexpress:QEMU");
    host.controller("nvme1", "nqn.2025-12.io.meshstor:x");
    let said = host.leave();
    assert!(said.contains("paths to other nodes are given up") && said.contains("still there: md1000"), "{said}");
    let given_up = |name: &str| host.read(&format!("sys/class/nvme/{name}/delete_controller"));
    assert_eq!([given_up("nvme0"), given_up("nvme1")], ["", "1\n"]);
    assert_eq!(host.read("sys/block/md1000/md/array_state"), "active\n", "a mounted array is not stopped");
}

#[test]
fn what_has_a_volume_in_a_namespace_of_its_own_is_killed_before_paths_are_given_up() {
    let host = Host::new("stopping");
    host.put("hangs", "");
    host.array("md1000", "9:1000", "active\n");
    host.mounted("9:1000", "/stage");
    let mut inside = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let mut beside = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let link = |pid: &str, namespace: &str| {
        host.put(&format!("proc/{pid}/mountinfo"), "40 20 9:1000 / /data rw - xfs /dev/md rw\n");
        std::fs::create_dir_all(host.path(&format!("proc/{pid}/ns"))).unwrap();
        std::os::unix::fs::symlink(namespace, host.path(&format!("proc/{pid}/ns/mnt"))).unwrap();
    };
    std::fs::create_dir_all(host.path("proc/self/ns")).unwrap();
    std::os::unix::fs::symlink("mnt:[1]", host.path("proc/self/ns/mnt")).unwrap();
    link(&inside.id().to_string(), "mnt:[2]");
    link(&beside.id().to_string(), "mnt:[1]");
    host.leave();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&inside.wait().unwrap()), Some(9));
    assert_eq!(beside.try_wait().unwrap(), None);
    beside.kill().unwrap();
    beside.wait().unwrap();
}

#[test]
fn processes_of_pods_are_ended() {
    let host = Host::new("stopping");
    let mut pod = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    host.put("cgroup/kubepods/pod1/cgroup.procs", &format!("{}\n", pod.id()));
    host.put("cgroup/kubepods/cgroup.kill", "");
    let said = std::thread::scope(|scope| {
        let reaped = scope.spawn(|| {
            let status = pod.wait().unwrap();
            host.put("cgroup/kubepods/pod1/cgroup.procs", "");
            status
        });
        let said = host.leave();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&reaped.join().unwrap()), Some(15));
        said
    });
    assert!(said.contains("ending 1 processes of pods") && said.contains("no volume is in use"), "{said}");
    assert_eq!(host.read("cgroup/kubepods/cgroup.kill"), "", "SIGTERM was enough");
}

#[tokio::test(flavor = "current_thread")]
async fn a_host_without_systemd_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("proc/1/root/run")).unwrap();
    assert_eq!(install(&Root::at(temp.path()), &Tools::default()).await, Ok(Installed::NoSystemd));
    assert!(!temp.path().join("proc/1/root/run/meshstor").exists());
}

#[test]
fn the_unit_runs_the_script_where_it_is_put() {
    assert!(
        UNIT_TEXT.contains("ExecStop=/bin/sh /run/meshstor/leave\n") && UNIT_TEXT.contains("Before=shutdown.target")
    );
}
