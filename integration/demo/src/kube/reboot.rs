//! A node that its own systemd reboots, without having been drained, while a pod writes.
//!
//! Called by `kube`. The one machine of the lab that is run by systemd: kubelet, containerd and pods are its units, and the
//! storage network goes down with the service that brought it up, as on most machines. What could hang is the way down.

use super::Scenario;
use super::cluster::{Kube, PATIENCE, is_ready};
use super::pods::Set;
use crate::cluster::wait;
use anyhow::{Context, Result, ensure};
use meshstor_lab::Guest;
use serde_json::json;
use std::time::{Duration, Instant};

pub const ALL: &[(&str, Scenario)] =
    &[("reboots: a pod's node rebooted by its systemd without drain, during writes, again and again", reboots)];

/// From `systemctl reboot` until the machine is off (K12: back in less than 90 s; an emulated boot is no measure).
const DOWN_MAX: Duration = Duration::from_secs(90);
/// A machine that is not off by then hangs.
const HANGS: Duration = Duration::from_secs(300);

fn reboots(kube: &Kube) -> Result<String> {
    let guests = kube.lab.guests();
    let guest = guests.last().context("no guest")?;
    under_systemd(kube, guest)?;
    let unit = "systemctl is-active meshstor-leave.service";
    wait("the unit of the shutdown", PATIENCE, || Ok(guest.ssh(unit)?.ok())).context("the agent installs it")?;
    let mut set = Set::up_as(kube, "rebooted", 1, |manifest| {
        manifest["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": guest.name()});
    })?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let mut lines = Vec::new();
    for time in 1..=kube.reboots {
        lines.push(format!("{time}. {}", once(kube, guest, &mut set).with_context(|| lines.join("\n"))?));
    }
    lines.push(set.down(kube)?);
    Ok(lines.join("\n"))
}

/// Has the guest run by systemd from now on.
fn under_systemd(kube: &Kube, guest: &Guest) -> Result<()> {
    if guest.ssh("test -d /run/systemd/system")?.ok() {
        return Ok(());
    }
    guest.use_systemd()?;
    guest.power_cut()?;
    guest.power_on()?;
    back(kube, guest)
}

fn back(kube: &Kube, guest: &Guest) -> Result<()> {
    if kube.transport == super::cluster::Transport::Tcp {
        guest.ssh_checked("rdma link del rxe0 2>/dev/null; true")?;
    }
    guest.rejoin()?;
    kube.await_node(guest, true)?;
    kube.await_agents()
}

fn once(kube: &Kube, guest: &Guest, set: &mut Set) -> Result<String> {
    let writer = &mut set.writers[0];
    let (pod, uid, restarts) = (writer.pod.clone(), writer.uid().to_string(), writer.restarts());
    let (begin, before) = (Instant::now(), writer.so_far().acks.len());
    // The connection ends with the machine; what was acknowledged until then has arrived.
    let _ = guest.ssh_within("systemctl reboot", Duration::from_secs(20));
    wait("the machine goes down by itself", HANGS, || Ok(!guest.is_on()?))
        .with_context(|| guest.console_tail(40).unwrap_or_default())?;
    let down = begin.elapsed();
    writer.stop_listening()?;
    let told = writer.so_far().acks.len();
    // Only the lab's own memory of it: the machine is off already.
    guest.power_cut()?;
    guest.power_on()?;
    let booted = begin.elapsed();
    back(kube, guest)?;
    let ready = begin.elapsed();
    wait("the pod started again", PATIENCE, || {
        let pod = kube.get(&["pod", &pod])?;
        let anew = pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(restarts);
        Ok(is_ready(&pod) && (anew || pod["metadata"]["uid"] != uid.as_str()))
    })
    .with_context(|| kube.diagnosis())?;
    writer.await_ready(kube)?;
    writer.follow(kube)?;
    writer.wait_for(1)?;
    let writes = begin.elapsed();
    kube.await_whole()?;
    writer.wait_for(20)?;
    let verified = writer.verify(kube)?;
    ensure!(down < DOWN_MAX, "off after {down:?}");
    Ok(format!(
        "{} writes acknowledged; off after {:.1} s, booted {:.1} s, node and agent ready {:.1} s, pod writes {:.1} s; \
         {verified} blocks verified",
        told - before.min(told),
        down.as_secs_f64(),
        booted.as_secs_f64(),
        ready.as_secs_f64(),
        writes.as_secs_f64()
    ))
}
