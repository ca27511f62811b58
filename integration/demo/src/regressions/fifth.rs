//! F5: a target loses its power with writes in its drive's volatile cache, and its path returns: MD never knows, and a
//! later flush succeeds although the copy lacks what it should have made durable.
//!
//! The lab's drives forget nothing (the host keeps their cache), so a device-mapper target that drops writes stands
//! below the export; it is there for one write that nobody flushes, as a cache would be. The plain way exports the copy
//! again where it was. Ours never lets that life answer again (rule 11): the member leaves, and comes back as a new one,
//! with its own bitmap merged. That bitmap has the bit: a cache that was flushed when the bit was cleared held nothing.

use super::crash::{self, K};
use super::{Seen, Way};
use anyhow::{Result, ensure};
use meshstor_lab::{Guest, Lab};

/// Runs one way.
pub fn run(lab: &Lab, way: Way) -> Result<Seen> {
    let (a, b) = crash::exported(lab)?;
    let part = crash::partition(&b)?;
    below_the_export(&b, &part)?;
    crash::connected(&a, &b)?;
    crash::suite(&a, &[&format!("once create {} local:r0 head:r1:1:1", crash::COMPONENT)])?;
    let array = crash::array(&a)?;
    // Its bit is on both members before the second write, which then needs no flush of its own.
    crash::put(&a, &array, K, 'X')?;
    swallow(&b, &part)?;
    crash::put(&a, &array, K, 'Y')?;
    let own = crash::partition(&a)?;
    let (on_a, on_b) = (crash::raw(&a, &own, K)?, crash::raw(&b, &part, K)?);
    ensure!((on_a, on_b) == ('Y', 'X'), "the cache holds nothing: r0 {on_a:?}, r1 {on_b:?}");
    ensure!(crash::dirty(&b, &part)?.contains(&0), "the bit was cleared, so the cache was flushed: too slow to tell");
    b.power_cut()?;
    let kept = match way {
        Way::Plain => same_life(&a, &b)?,
        Way::Ours => new_life(&a, &b, &own)?,
    };
    crash::await_whole(&a)?;
    a.ssh_checked(&format!("sync {array}"))?;
    let answers = crash::answers(&a, K)?;
    let (on_a, on_b) = (crash::raw(&a, &own, K)?, crash::raw(&b, &crash::partition(&b)?, K)?);
    let text =
        format!("{kept}; acknowledged and flushed Y: r0 has {on_a}, r1 has {on_b}, the array answers {answers:?}");
    Ok(Seen { harm: (on_a, on_b) != ('Y', 'Y') || !answers.iter().eq(&['Y']), text })
}

/// Puts a device of device-mapper between the export, which has no host yet, and its partition.
fn below_the_export(guest: &Guest, part: &str) -> Result<()> {
    guest.ssh_checked(&format!(
        "set -e; modprobe dm-flakey; dmsetup create cache --table \"0 $(blockdev --getsz {part}) linear {part} 0\"; \
         cd /sys/kernel/config/nvmet/subsystems/*/namespaces/1; echo 0 >enable; \
         echo -n /dev/mapper/cache >device_path; echo 1 >enable"
    ))?;
    let path = guest.ssh_checked("cat /sys/kernel/config/nvmet/subsystems/*/namespaces/1/device_path")?;
    ensure!(path == "/dev/mapper/cache", "the export is of {path}");
    Ok(())
}

/// From now on a write is acknowledged and lost.
fn swallow(guest: &Guest, part: &str) -> Result<()> {
    guest
        .ssh_checked(&format!(
            "set -e; dmsetup suspend --noflush --nolockfs cache; \
             dmsetup load cache --table \"0 $(blockdev --getsz {part}) flakey {part} 0 0 3600 1 drop_writes\"; \
             dmsetup resume cache"
        ))
        .map(drop)
}

/// The target is back as it was: same port, same names.
fn same_life(a: &Guest, b: &Guest) -> Result<String> {
    b.power_on()?;
    let address = format!("t:{}:5001", b.address());
    crash::suite(b, &[&format!("y export r1 1 1 node-a {address}")])?;
    super::second::await_state(a, "live")?;
    Ok("the same life is back".into())
}

/// The lost life ends: its member leaves, and comes back as generation 2 by the bitmaps of both.
fn new_life(a: &Guest, b: &Guest, own: &str) -> Result<String> {
    // As the agent does it: when the path is known to be lost. Before that the kernel waits for its farewell (60 s).
    super::second::await_state(a, "connecting")?;
    crash::suite(a, &["once drop r1 1 1 local:r0", "once rmfaulty faulty"])?;
    let kept = match crash::forgotten(a, own)? {
        Some(after) => format!("the survivor forgot the dirty bit {:.0} s later", after.as_secs_f64()),
        None => "the survivor kept the dirty bit".into(),
    };
    b.power_on()?;
    let address = format!("t:{}:5002", b.address());
    crash::suite(b, &[&format!("y export r1 1 2 node-a {address}")])?;
    crash::suite(a, &[&format!("y connect r1 1 2 {address}"), "until conn r1 1 2 head:Some("])?;
    crash::return_by_bitmaps(a, "r1:1:2")?;
    Ok(kept)
}
