//! F2: a target that refuses a host, instead of not answering it, ends that host's wait: its MD drops the member and goes on
//! alone, acknowledging what no other copy has.
//!
//! Both ways fence node-b's replica while the cable between the two is out for longer than the keep-alive. The plain way
//! takes the host off the allowed ones first, as one would to lock somebody out; ours closes the port first.

use super::crash;
use super::{Seen, Way};
use anyhow::{Result, ensure};
use meshstor_lab::{Guest, Lab};
use std::time::{Duration, Instant};

/// Long enough for several attempts to connect again (`reconnect_delay` 2 s) under emulation.
const WATCHED: Duration = Duration::from_secs(20);

/// Runs one way.
pub fn run(lab: &Lab, way: Way) -> Result<Seen> {
    let (a, b) = crash::pair(lab)?;
    crash::suite(&a, &[&format!("once create {} local:r0 head:r1:1:1", crash::COMPONENT)])?;
    crash::await_whole(&a)?;
    crash::start_writing(&a)?;
    std::thread::sleep(Duration::from_secs(3));
    let healthy = crash::count_acks(&a)?;
    ensure!(healthy > 5, "a healthy array acknowledged {healthy} writes only");
    b.cable(false)?;
    await_state(&a, "connecting")?;
    let frozen = crash::count_acks(&a)?;
    match way {
        Way::Plain => {
            let hosts = "/sys/kernel/config/nvmet/subsystems/*/allowed_hosts";
            b.ssh_checked(&format!("rm {hosts}/*; [ -z \"$(ls {hosts})\" ]"))?;
        }
        Way::Ours => crash::suite(&b, &["once fence r1 1 1"]).map(drop)?,
    }
    b.cable(true)?;
    std::thread::sleep(WATCHED);
    let after = crash::count_acks(&a)?;
    let array = crash::array(&a)?;
    let degraded = a.ssh_checked(&format!("cat /sys/block/{}/md/degraded", array.trim_start_matches("/dev/")))?;
    let state = states(&a)?;
    let text = format!(
        "{frozen} writes acknowledged before the fence, {} after it; degraded {degraded}; controller {}",
        after - frozen,
        if state.is_empty() { "gone" } else { &state }
    );
    Ok(Seen { harm: after > frozen || degraded != "0", text })
}

fn states(guest: &Guest) -> Result<String> {
    guest
        .ssh_checked("for c in /sys/class/nvme/nvme*; do [ \"$(cat $c/transport)\" = tcp ] && cat $c/state; done; true")
}

/// Waits until the guest's one connection is in a state.
pub fn await_state(guest: &Guest, wanted: &str) -> Result<()> {
    let begin = Instant::now();
    while states(guest)? != wanted {
        ensure!(begin.elapsed() < Duration::from_secs(60), "the controller is {:?}", states(guest)?);
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
