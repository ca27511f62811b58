//! F17: while a resync is pending reads come from the lowest slot, write-mostly or not, and the resync copies from the
//! first member that is not write-mostly: the same block reads differently before and after.
//!
//! Both ways assemble the two members after a crash that left them different, with the flag of the lowest slot in the
//! superblocks. Ours clears the flag before the resync and before anybody may read, and refuses to set one until it is
//! done. Linux 6.1 reads past a write-mostly member even then; with it the plain way does no harm.

use super::crash::{self, K, Level};
use super::{Seen, Way};
use anyhow::{Result, ensure};
use meshstor_lab::Lab;

/// Runs one way.
pub fn run(lab: &Lab, way: Way) -> Result<Seen> {
    level(lab, Level::Raid1, way)
}

/// The same on stripes of mirrors, which know no write-mostly member.
pub fn striped(lab: &Lab, way: Way) -> Result<Seen> {
    level(lab, Level::Raid10, way)
}

fn level(lab: &Lab, level: Level, way: Way) -> Result<Seen> {
    let crash = crash::make(lab, level, true)?;
    let device = crash.comes_back()?;
    let b = &crash.b;
    let differ = crash.members(K)?;
    ensure!(differ == ('W', 'X'), "the members do not differ: {differ:?}");
    match way {
        Way::Plain => {
            let part = crash::partition(b)?;
            // Read-only at first, so that there is time to look before the resync.
            b.ssh_checked("echo 1 >/sys/module/md_mod/parameters/start_ro")?;
            b.ssh_checked(&format!("mdadm -q -A /dev/md900 --run {device} {part}"))?;
        }
        Way::Ours => {
            crash::suite(b, &["once assemble local:r1 head:r0:2:1", "e:Wait wm local:r1 on"])?;
        }
    }
    let md = format!("/sys/block/{}/md", crash::array(b)?.trim_start_matches("/dev/"));
    let pending = b.ssh_checked(&format!("cat {md}/resync_start; grep -H . {md}/dev-*/slot {md}/dev-*/state"))?;
    ensure!(!pending.starts_with("none"), "no resync is pending:\n{pending}");
    if way == Way::Ours {
        crash::suite(b, &["once activate", "y wm head:r0:2:1 off", "e:Wait wm head:r0:2:1 on"])?;
    }
    let before = crash::answers(b, K)?;
    match way {
        Way::Plain => b.ssh_checked(&format!("mdadm -q --readwrite {}", crash::array(b)?)).map(drop)?,
        Way::Ours => {
            let union = &crash::dirty(b, &device)? | &crash::dirty(b, &crash::partition(b)?)?;
            let both: Vec<String> = union.iter().map(u64::to_string).collect();
            crash::suite(b, &[&format!("once merge {}", both.join(" ")), "once release"])?;
        }
    }
    crash::await_whole(b)?;
    let after = crash::answers(b, K)?;
    if way == Way::Ours {
        crash::suite(b, &["y wm head:r0:2:1 on"])?;
    }
    let (last, members) = (crash::answers(b, K)?, crash.members(K)?);
    let stable = before.len() == 1 && before == after && before == last && members.0 == members.1;
    let text =
        format!("reads {before:?} before the resync, {after:?} and {last:?} after; r0 {}, r1 {}", members.0, members.1);
    Ok(Seen { harm: !stable, text })
}
