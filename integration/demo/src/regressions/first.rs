//! F1: after a takeover by one survivor MD forgets dirty bits; a plain bitmap re-add brings unacknowledged data back.
//!
//! Both ways assemble the survivor alone, wait until its bits are forgotten, acknowledge one more write, and take the
//! other member back by bitmap. Ours first merges the returning member's own bitmap.

use super::crash::{self, Crash, K, LATER, Level};
use super::{Seen, Way};
use anyhow::Result;
use meshstor_lab::Lab;

/// Runs one way.
pub fn run(lab: &Lab, way: Way) -> Result<Seen> {
    level(lab, Level::Raid1, way)
}

/// The same on stripes of mirrors.
pub fn striped(lab: &Lab, way: Way) -> Result<Seen> {
    level(lab, Level::Raid10, way)
}

fn level(lab: &Lab, level: Level, way: Way) -> Result<Seen> {
    let crash = crash::make(lab, level, false)?;
    let part = crash::partition(&crash.b)?;
    match way {
        Way::Plain => {
            crash.b.ssh_checked(&format!("mdadm -q -A /dev/md900 --run {part}"))?;
        }
        Way::Ours => {
            crash::suite(&crash.b, &["once assemble local:r1", "once activate", "once release"])?;
        }
    }
    let array = crash::array(&crash.b)?;
    let served = crash::read(&crash.b, &array, K)?;
    anyhow::ensure!(served == 'X', "the survivor serves {served:?}");
    let forgotten = crash::forgotten(&crash.b, &part)?;
    crash::put(&crash.b, &array, LATER, 'Y')?;
    let device = crash.comes_back()?;
    match way {
        Way::Plain => {
            crash.b.ssh_checked(&format!("mdadm -q {array} --re-add {device}"))?;
        }
        Way::Ours => crash::return_by_bitmaps(&crash.b, "r0:2:1")?,
    }
    crash::await_whole(&crash.b)?;
    seen(&crash, forgotten)
}

fn seen(crash: &Crash, forgotten: Option<std::time::Duration>) -> Result<Seen> {
    let (members, answers) = (crash.members(K)?, crash::answers(&crash.b, K)?);
    let later = crash.members(LATER)?;
    let right = members == ('X', 'X') && answers.iter().eq(&['X']) && later == ('Y', 'Y');
    let bits = match forgotten {
        Some(after) => format!("dirty bit forgotten {:.0} s after the takeover", after.as_secs_f64()),
        None => "dirty bit kept".to_string(),
    };
    let text = format!(
        "{bits}; acknowledged X: r0 has {}, r1 has {}, the array answers {answers:?}; acknowledged Y: r0 {}, r1 {}",
        members.0, members.1, later.0, later.1
    );
    Ok(Seen { harm: !right, text })
}
