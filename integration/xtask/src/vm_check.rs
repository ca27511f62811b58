//! `cargo xtask vm check`: does the lab itself work? Every function of it is used once on real guests.
//!
//! Called by people after a change of the lab, of QEMU or of the kernel. Writes over the guests' drives. It tests the
//! lab and the stock kernel, nothing of the product.

use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::{ControlPlane, Guest, Lab, Paths};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Exports a drive of a guest through the kernel's NVMe target, on TCP port 4420 and RDMA port 4421.
const EXPORT: &str = r#"set -e
cd /sys/kernel/config/nvmet
mkdir subsystems/lab-check
echo 1 >subsystems/lab-check/attr_allow_any_host
mkdir subsystems/lab-check/namespaces/1
echo -n $DRIVE >subsystems/lab-check/namespaces/1/device_path
echo 1 >subsystems/lab-check/namespaces/1/enable
for kind in tcp:4420 rdma:4421; do
    port=ports/${kind#*:}
    mkdir $port
    echo ipv4 >$port/addr_adrfam
    echo ${kind%:*} >$port/addr_trtype
    echo $ADDRESS >$port/addr_traddr
    echo ${kind#*:} >$port/addr_trsvcid
    ln -s $PWD/subsystems/lab-check $port/subsystems/lab-check
done"#;

/// Takes the export back.
const UNEXPORT: &str = r#"cd /sys/kernel/config/nvmet
rm -f ports/*/subsystems/lab-check
rmdir ports/* subsystems/lab-check/namespaces/1 subsystems/lab-check"#;

/// Connects, compares the far drive's first megabyte with what the near end wrote, disconnects.
const IMPORT: &str = r#"set -e
nvme connect -t $KIND -a $ADDRESS -s $PORT -n lab-check --nr-io-queues=1
trap 'nvme disconnect -n lab-check' EXIT
for i in $(seq 100); do
    for s in /sys/class/nvme-subsystem/*; do
        [ "$(cat $s/subsysnqn)" != lab-check ] || far=/dev/$(ls $s | grep -E '^nvme[0-9]+n[0-9]+$')
    done
    [ -b "$far" ] && break
    sleep 0.1
done
dd if=$far bs=1M count=1 iflag=direct status=none | sha256sum | cut -c1-64"#;

/// Answers one byte with another on a unix socket: what a forward is tried with.
const ECHO_SERVER: &str = r#"setsid perl -e 'use IO::Socket::UNIX; unlink "/run/check.sock";
$l = IO::Socket::UNIX->new(Local => "/run/check.sock", Listen => 5) or die;
while ($c = $l->accept) { sysread($c, $b, 1); syswrite($c, uc $b); close $c }' </dev/null >/dev/null 2>&1 &
for i in $(seq 50); do [ -S /run/check.sock ] && exit 0; sleep 0.1; done; exit 1"#;

/// One check; holds what it needs.
type Check<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// Uses every function of the lab once on the guests `a` and `b` of a fresh lab; returns how many checks passed.
pub fn run(lab: &Lab) -> Result<usize> {
    let plane = ControlPlane::up_at(lab.paths(), false)?;
    let (a, b) = (lab.guest("node-a")?, lab.guest("node-b")?);
    let checks: Vec<(&str, Check<'_>)> = vec![
        ("drives and their sector sizes", Box::new(|| drives(&a))),
        ("identities differ", Box::new(|| identities(&a, &b))),
        ("host directory", Box::new(|| share(lab, &a))),
        ("storage network", Box::new(|| ping(&a, &b))),
        ("control plane from a guest", Box::new(|| control_plane(&plane, &a))),
        ("export and import, TCP and RDMA", Box::new(|| export_import(&a, &b))),
        ("storage cable", Box::new(|| cable(&a, &b))),
        ("API cable", Box::new(|| api_cable(&plane, &a))),
        ("API outage", Box::new(|| api_outage(&plane))),
        ("drive pulled and inserted", Box::new(|| drive_pull(&a))),
        ("frozen and thawed", Box::new(|| freeze(&a))),
        ("socket forward and power cut", Box::new(|| power_cut(lab.paths(), &a))),
    ];
    for (name, check) in &checks {
        let begin = Instant::now();
        check().with_context(|| format!("check failed: {name}"))?;
        println!("check: {name}: ok in {:.1} s", begin.elapsed().as_secs_f32());
    }
    Ok(checks.len())
}

fn drives(a: &Guest) -> Result<()> {
    for (slot, bytes) in [(0, "4096"), (1, "512")] {
        let path = a.drive_path(slot);
        let found = a.ssh_checked(&format!("udevadm settle; blockdev --getss {path}"))?;
        ensure!(found == bytes, "{path} has sectors of {found}, not {bytes}");
    }
    Ok(())
}

fn identities(a: &Guest, b: &Guest) -> Result<()> {
    for file in ["/etc/machine-id", "/etc/nvme/hostnqn", "/proc/sys/kernel/random/boot_id"] {
        let [of_a, of_b] = [a, b].map(|guest| guest.ssh_checked(&format!("cat {file}; uuidgen")));
        ensure!(of_a? != of_b?, "{file} is the same on both");
    }
    Ok(())
}

fn share(lab: &Lab, a: &Guest) -> Result<()> {
    let file = lab.share().join("lab-check.txt");
    std::fs::write(&file, "seen").with_context(|| format!("write {}", file.display()))?;
    let seen = a.ssh_checked("cat /host/lab-check.txt")?;
    std::fs::remove_file(&file).context("remove the check's file")?;
    ensure!(seen == "seen", "the guest saw {seen:?}");
    ensure!(!a.ssh("touch /host/x")?.ok(), "the guest could write to the host's directory");
    a.put_bytes(b"#!/bin/sh\necho $0\n", "/tmp/a b/script", 0o755)?;
    ensure!(a.ssh_checked("'/tmp/a b/script'")? == "/tmp/a b/script", "a file that was put did not run");
    Ok(())
}

fn ping(a: &Guest, b: &Guest) -> Result<()> {
    a.ssh_checked(&format!("ping -c 3 -i 0.1 -W 5 -M do -s 8900 {}", b.address())).map(drop)
}

fn readyz(a: &Guest) -> Result<bool> {
    Ok(a.ssh("/tools/kubectl --kubeconfig /run/check.kubeconfig --request-timeout=3s get --raw /readyz")?.ok())
}

fn control_plane(plane: &ControlPlane, a: &Guest) -> Result<()> {
    a.put(&plane.guest_kubeconfig()?, "/run/check.kubeconfig")?;
    ensure!(readyz(a)?, "the guest does not reach the API server");
    a.put(&plane.node_kubeconfig("node-a")?, "/run/node.kubeconfig")?;
    let may = a.ssh("/tools/kubectl --kubeconfig /run/node.kubeconfig auth can-i get secrets")?;
    ensure!(may.stdout.trim() == "no", "a node without rights may read secrets: {may:?}");
    Ok(())
}

fn export_import(a: &Guest, b: &Guest) -> Result<()> {
    let (drive, address) = (b.drive_path(0), b.address());
    let write = format!("dd if=/dev/urandom of={drive} bs=1M count=1 oflag=direct status=none");
    let sum = b.ssh_checked(&format!("{write}; dd if={drive} bs=1M count=1 status=none | sha256sum | cut -c1-64"))?;
    b.ssh_checked(&format!("DRIVE={drive} ADDRESS={address}\n{EXPORT}"))?;
    for (kind, port) in [("tcp", 4420), ("rdma", 4421)] {
        let out = a.ssh_checked(&format!("KIND={kind} PORT={port} ADDRESS={address}\n{IMPORT}"))?;
        ensure!(out.contains(&sum), "over {kind} the drive reads differently: {out}");
    }
    b.ssh_checked(UNEXPORT).map(drop)
}

fn cable(a: &Guest, b: &Guest) -> Result<()> {
    let reached = || a.ssh(&format!("ping -c 1 -W 1 {}", b.address())).map(|out| out.ok());
    b.cable(false)?;
    ensure!(!reached()?, "a cut cable carries packets");
    b.cable(true)?;
    eventually("packets after the cable is back", reached)
}

fn api_cable(plane: &ControlPlane, a: &Guest) -> Result<()> {
    a.api_cable(false)?;
    ensure!(!readyz(a)?, "the API server answers through a cut cable");
    a.api_cable(true)?;
    ensure!(plane.is_up()?, "the control plane went down");
    eventually("the API server after the cable is back", || readyz(a))
}

fn api_outage(plane: &ControlPlane) -> Result<()> {
    // A ConfigMap, not a namespace: without a controller manager a deleted namespace never goes.
    plane.kubectl(&["delete", "--ignore-not-found", "configmap", "lab-check"])?;
    plane.kubectl(&["create", "configmap", "lab-check", "--from-literal=kept=yes"])?;
    plane.stop_api()?;
    ensure!(plane.kubectl(&["--request-timeout=2s", "get", "configmaps"]).is_err(), "a stopped API server answers");
    plane.start_api()?;
    plane.kubectl(&["delete", "configmap", "lab-check"]).map(drop)
}

fn drive_pull(a: &Guest) -> Result<()> {
    let present = || a.ssh(&format!("[ -b {} ]", a.drive_path(1))).map(|out| out.ok());
    let mark = "echo mark | dd of=$D bs=512 count=1 conv=sync oflag=direct status=none".replace("$D", &a.drive_path(1));
    a.ssh_checked(&mark)?;
    a.drive_pull(1)?;
    eventually("the drive to vanish", || present().map(|there| !there))?;
    a.drive_insert(1)?;
    eventually("the drive to come back", present)?;
    let read = a.ssh_checked(&format!("head -c 4 {}", a.drive_path(1)))?;
    ensure!(read == "mark", "the drive came back with {read:?}");
    Ok(())
}

fn freeze(a: &Guest) -> Result<()> {
    a.freeze()?;
    let hung = a.ssh_within("true", Duration::from_secs(1)).is_err();
    a.thaw()?;
    ensure!(hung, "a frozen guest answers");
    a.set_clock()
}

fn power_cut(paths: &Paths, a: &Guest) -> Result<()> {
    let socket = paths.run().join("check.sock");
    a.ssh_checked(ECHO_SERVER)?;
    a.forward_unix(&socket, "/run/check.sock")?;
    ensure!(echo(&socket)? == b'X', "the forward does not lead to the guest's socket");
    let mark = format!("echo kept | dd of={} bs=4096 count=1 conv=sync oflag=direct status=none", a.drive_path(0));
    a.ssh_checked(&mark)?;
    let before = a.boot_id()?;
    a.power_cut()?;
    ensure!(!a.is_on()?, "on after a power cut");
    ensure!(a.ssh("true").is_err(), "a guest without power answers");
    a.power_on()?;
    ensure!(a.boot_id()? != before, "the same boot id after a power cut");
    let read = a.ssh_checked(&format!("head -c 4 {}", a.drive_path(0)))?;
    ensure!(read == "kept", "the drive came back with {read:?}");
    a.ssh_checked(ECHO_SERVER)?;
    let answer = echo(&socket).context("the forward after the guest came back")?;
    ensure!(answer == b'X', "the forward leads elsewhere after the guest came back");
    a.unforward_unix(&socket)
}

fn echo(socket: &std::path::Path) -> Result<u8> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.write_all(b"x").context("write to the forwarded socket")?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("read from the forwarded socket")?;
    Ok(byte[0])
}

fn eventually(what: &str, ask: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(30) {
        if ask()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("{what}: not within 30 s")
}
