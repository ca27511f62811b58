//! F24: a recovery by bitmap leaps over clean chunks, and over `sync_max` with them: it ends although it is held before its
//! end, and the kernel counts a copy that nobody has recorded.
//!
//! Both ways take a member out, write, and take it back by bitmap with the recovery held. Ours has the last chunk copied as
//! well, whether it is dirty or not, so that there is something to stop in.

use super::crash::{self, K};
use super::{Seen, Way};
use anyhow::{Result, ensure};
use meshstor_lab::Lab;
use std::time::Duration;

/// Longer than the recovery of the little that is dirty.
const WATCHED: Duration = Duration::from_secs(15);

/// Runs one way.
pub fn run(lab: &Lab, way: Way) -> Result<Seen> {
    let (a, b) = crash::pair(lab)?;
    crash::suite(&a, &[&format!("once create {} local:r0 head:r1:1:1", crash::COMPONENT)])?;
    let array = crash::array(&a)?;
    let md = format!("/sys/block/{}/md", array.trim_start_matches("/dev/"));
    // A new array's bits are all set; they are cleared while nothing is written.
    ensure!(crash::forgotten(&a, &crash::partition(&a)?)?.is_some(), "the bits of the new array are still set");
    crash::suite(&a, &["once drop r1 1 1 local:r0", "once rmfaulty faulty"])?;
    crash::put(&a, &array, K, 'Y')?;
    let address = format!("t:{}:5002", b.address());
    crash::suite(&b, &["once fence r1 1 1", &format!("y export r1 1 2 node-a {address}")])?;
    crash::suite(&a, &[&format!("y connect r1 1 2 {address}"), "until conn r1 1 2 head:Some("])?;
    let chunks =
        a.ssh_checked(&format!("echo $(( ($(cat {md}/component_size) * 1024 - 1) / $(cat {md}/bitmap/chunksize) ))"))?;
    let own: Vec<String> = crash::dirty(&a, &crash::head(&a)?)?.iter().map(u64::to_string).collect();
    ensure!(!own.contains(&chunks), "the last chunk is dirty already: {own:?}");
    let last = if way == Way::Ours { chunks.as_str() } else { "" };
    let merge = format!("once merge {} {last}", own.join(" "));
    if way == Way::Ours || !own.is_empty() {
        crash::suite(
            &a,
            &[&merge, "once release", "until array resync_done:true", "until array sync_action:\"idle\""],
        )?;
    }
    crash::suite(&a, &["once hold on", "once readd head:r1:1:2"])?;
    std::thread::sleep(WATCHED);
    let look = format!("cat {md}/sync_action {md}/sync_max {md}/degraded | tr '\\n' ' '");
    let held = a.ssh_checked(&look)?;
    if way == Way::Ours {
        crash::suite(&a, &["once hold off"])?;
    }
    crash::await_whole(&a)?;
    let values = (crash::raw(&a, &crash::partition(&a)?, K)?, crash::raw(&b, &crash::partition(&b)?, K)?);
    ensure!(values == ('Y', 'Y'), "the copies are {values:?}");
    let text = format!("sync_action, sync_max, degraded after {} s: {held}", WATCHED.as_secs());
    Ok(Seen { harm: !held.starts_with("recover"), text })
}
