//! What is done to a deposed consumer: its openers killed, its file system shut down, its raw device cut off.
//!
//! Called by the job dispatch. It never lets a write that waits be answered as a success to anybody alive.

use super::bio::Dev;
use super::host::Reach;
use super::job::Step;
use super::state::State;
use crate::error::KernelError;
use crate::id::VolumeId;
use crate::ops::{Changed, Op};

impl State {
    pub(in super::super) fn op_kill_openers(&mut self, node: usize, volume: VolumeId) -> Step {
        let Some(array) = self.array_of(node, volume) else { return Step::done(Changed::No) };
        let before = self.nodes[node].openers.len();
        self.nodes[node].openers.retain(|_, o| o.array != array);
        let killed = self.kill_callers(array);
        Step::changed(killed || self.nodes[node].openers.len() != before)
    }

    /// The array of a deposed raw volume takes no write any more; whoever waits is killed, what was frozen goes on.
    pub(super) fn op_cut_off(&mut self, node: usize, op: &Op, volume: VolumeId) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::done(Changed::No) };
        let Some(a) = self.arrays.get(&id) else { return Step::done(Changed::No) };
        let good: Vec<(String, Dev)> =
            a.members.iter().filter(|(_, m)| m.good()).map(|(n, m)| (n.clone(), m.dev)).collect();
        let lost = |dev: &Dev| matches!(self.reach(node, *dev), Reach::Gone);
        let (gone, there): (Vec<_>, Vec<_>) = good.into_iter().partition(|(_, dev)| lost(dev));
        if there.len() > 1 {
            let detail = "another member is still there beside the last one";
            return Step::fail(KernelError::wait(op.name(), volume.to_string(), detail));
        }
        for (name, _) in gone.into_iter().chain(there) {
            self.fail_member(id, &name, "the volume was deposed");
        }
        self.op_kill_openers(node, volume);
        for member in self.arrays.get_mut(&id).into_iter().flat_map(|a| a.members.values_mut()) {
            member.blocked = false;
        }
        self.hint_array(id);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_shutdown(&mut self, node: usize, volume: VolumeId) -> Step {
        let array = self.array_of(node, volume);
        let instance = array.and_then(|id| self.arrays.get_mut(&id)).and_then(|a| a.fs.as_mut());
        Step::changed(instance.is_some_and(|fs| std::mem::replace(&mut fs.alive, false)))
    }
}
