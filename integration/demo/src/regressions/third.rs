//! F3: `want_replacement` moves the truth without asking: at the end of its copy MD drops the old member in the same moment,
//! whether or not anybody could record it, and goes on with the new one alone.
//!
//! Both ways copy the one recorded replica, r1 on node-b, to r0 on the consumer while nobody watches (no agent runs here),
//! and acknowledge one more write. What is recorded is r1: a takeover would start from it.

use super::crash::{self, K, LATER};
use super::{Seen, Way};
use anyhow::{Result, ensure};
use meshstor_lab::{Guest, Lab};
use std::time::{Duration, Instant};

/// Runs one way.
pub fn run(lab: &Lab, way: Way) -> Result<Seen> {
    let (a, b) = crash::pair(lab)?;
    crash::suite(&a, &[&format!("once create {} head:r1:1:1", crash::COMPONENT)])?;
    let array = crash::array(&a)?;
    let md = format!("/sys/block/{}/md", array.trim_start_matches("/dev/"));
    crash::put(&a, &array, K, 'X')?;
    match way {
        Way::Plain => {
            let part = crash::partition(&a)?;
            a.ssh_checked(&format!(
                "mdadm -q {array} --add {part} && for d in {md}/dev-*; do \
                 [ $d = {md}/dev-$(basename {part}) ] || echo want_replacement >$d/state; done"
            ))?;
        }
        Way::Ours => {
            // Where the kernel could not give it one the array has it already.
            let has = a.ssh(&format!("grep -qsv none {md}/bitmap/location"))?.ok();
            let bitmap = if has { "n bitmap" } else { "y bitmap" };
            crash::suite(&a, &[bitmap, "y disks 2", "once add local:r0"]).map(drop)?;
        }
    }
    // The new member is asked for by name: a copy that has not begun looks like one that is over.
    await_new(&a, &md)?;
    crash::await_whole(&a)?;
    crash::put(&a, &array, LATER, 'Y')?;
    let (recorded, new) = (crash::partition(&b)?, crash::partition(&a)?);
    let values = [crash::raw(&b, &recorded, K)?, crash::raw(&b, &recorded, LATER)?];
    // mdadm puts data where it likes; in blocks.
    let offset =
        a.ssh_checked(&format!("echo $(($(cat {md}/dev-$(basename {new})/offset) / 8))"))?.trim().parse::<u64>()?;
    let copied = [crash::read(&a, &new, offset + K)?, crash::read(&a, &new, offset + LATER)?];
    let text = format!("acknowledged X and Y: the recorded r1 has {values:?}, r0 has {copied:?}");
    Ok(Seen { harm: values != ['X', 'Y'], text })
}

/// Waits until the consumer's own partition is a complete member.
fn await_new(guest: &Guest, md: &str) -> Result<()> {
    let part = crash::partition(guest)?;
    let begin = Instant::now();
    loop {
        let state = guest.ssh_checked(&format!("cat {md}/dev-$(basename {part})/state"))?;
        if state.split(',').any(|flag| flag == "in_sync") {
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(120), "the new member is still {state:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
