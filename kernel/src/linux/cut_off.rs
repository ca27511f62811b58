//! The end of a raw block volume's writes on a deposed consumer (docs/protocol.md, rule 7).
//!
//! A file system that was shut down answers every write with an error, however late its writer comes. A bare array has no
//! such call; but MD refuses every write for good once its last member was called faulty (raid1.c `raid1_error` sets
//! MD_BROKEN, md.c `md_submit_bio` looks for it). That is a danger to every other array, and here exactly what is
//! wanted: a container that kubelet starts anew, on a node that has heard of nothing, gets EIO instead of an
//! acknowledgement by the local copy alone.
//!
//! Called by the dispatch of operations. It never touches an array that has more than one member to lose: its remote members
//! are dropped before, by their controllers' end.

use super::root::Root;
use super::{attr, md, openers};
use crate::error::{KernelError, Result};
use crate::id::VolumeId;
use crate::ops::Changed;
use nix::errno::Errno;
use std::path::Path;

/// Has the array refuse writes, kills whoever has it open, and lets go of what was frozen. In this order: who writes
/// after the first step gets an error, who waits since before is killed in the second, and nobody who lives is left to be
/// told of what the third lets through. Blocking.
pub fn cut_off(root: &Root, volume: VolumeId, op: &str) -> Result<Changed> {
    let array = md::find(root, volume).and_then(|name| Some((md::device_number(root, &name)?, name)));
    let Some((device, name)) = array else { return Ok(Changed::No) };
    let dir = md::dir(root, &name);
    give_up_the_lost(root, &dir, op)?;
    let members = md::members(&dir);
    let mut left = members.iter().filter(|(_, member)| member.in_sync()).map(|(component, _)| component);
    match (left.next(), left.next()) {
        (Some(last), None) => call_faulty(op, &dir, last)?,
        (Some(_), Some(other)) => {
            return Err(KernelError::wait(op, name, format!("{other} is still a member beside the last one")));
        }
        (None, _) => {}
    }
    openers::kill_all(root, op, device)?;
    for (component, member) in members.iter().filter(|(_, member)| member.flags.contains("blocked")) {
        if !member.flags.contains("faulty") {
            attr::write(op, &dir.join(format!("dev-{component}/state")), "-blocked")?;
        }
    }
    Ok(Changed::Yes)
}

/// Members whose device is gone and that MD has not missed yet, because nothing was written: they go first, but for the
/// last member of all.
fn give_up_the_lost(root: &Root, dir: &Path, op: &str) -> Result<()> {
    let members = md::members(dir);
    let mut in_sync = members.values().filter(|member| member.in_sync()).count();
    for (component, member) in members {
        let gone = !root.sys.join("class/block").join(&component).exists();
        if member.in_sync() && gone && in_sync > 1 {
            call_faulty(op, dir, &component)?;
            in_sync -= 1;
        }
    }
    Ok(())
}

/// MD answers EBUSY when that was the last one, and has done what was asked for (md.c `state_store`).
fn call_faulty(op: &str, dir: &Path, component: &str) -> Result<()> {
    match attr::write(op, &dir.join(format!("dev-{component}/state")), "faulty") {
        Err(error) if error.errno == Some(Errno::EBUSY as i32) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::linux::md::tests::{array, put, volume};

    fn state(root: &Root, component: &str) -> String {
        attr::read_opt(&root.sys.join(format!("block/md1000/md/dev-{component}/state"))).unwrap()
    }

    fn at(members: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1000");
        std::fs::create_dir_all(root.sys.join("class/block/nvme0n1p1")).unwrap();
        for (component, flags) in members {
            put(&root, &format!("block/md1000/md/dev-{component}/state"), flags);
        }
        (temp, root)
    }

    #[test]
    fn the_last_member_is_called_faulty_and_what_was_frozen_goes() {
        // A folder of files keeps the last word written: the thaw comes after the verdict.
        let (_temp, root) = at(&[("nvme0n1p1", "in_sync,blocked"), ("nvme3n1", "faulty")]);
        assert_eq!(cut_off(&root, volume(), "cut-off"), Ok(Changed::Yes));
        assert_eq!(state(&root, "nvme0n1p1"), "-blocked");
        assert_eq!(state(&root, "nvme3n1"), "faulty", "nothing is asked of one that has failed");
        let (_temp, root) = at(&[("nvme0n1p1", "in_sync"), ("nvme3n1", "faulty")]);
        assert_eq!(cut_off(&root, volume(), "cut-off"), Ok(Changed::Yes));
        assert_eq!(state(&root, "nvme0n1p1"), "faulty");
    }

    #[test]
    fn a_member_whose_device_is_gone_goes_first_and_one_that_is_there_is_waited_for() {
        let (_temp, root) = at(&[("nvme0n1p1", "in_sync"), ("nvme3n1", "in_sync")]);
        assert_eq!(cut_off(&root, volume(), "cut-off"), Ok(Changed::Yes));
        assert_eq!((state(&root, "nvme0n1p1"), state(&root, "nvme3n1")), ("faulty".into(), "faulty".into()));
        let (_temp, root) = at(&[("nvme0n1p1", "in_sync"), ("nvme3n1", "in_sync")]);
        std::fs::create_dir_all(root.sys.join("class/block/nvme3n1")).unwrap();
        assert_eq!(cut_off(&root, volume(), "cut-off").unwrap_err().class, Class::Wait);
        assert_eq!(state(&root, "nvme0n1p1"), "in_sync");
    }

    #[test]
    fn a_volume_without_an_array_has_nothing_to_cut_off() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(cut_off(&Root::at(temp.path()), volume(), "cut-off"), Ok(Changed::No));
    }
}
