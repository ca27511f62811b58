//! The fault model: everything that can go wrong in a simulated world, and what it means there.
//!
//! **Links.** Each direction of each pair of nodes can be cut, for TCP, RDMA or both. What was on the wire waits there
//! and is delivered when the wire is whole again, unless the host has given the connection up by then. Commands that
//! had arrived are carried out; their answers are lost with the way back. A host notices after its keep-alive (5 s).
//! Nothing is ever corrupted or reordered on one connection; between two connections of one host there is no order,
//! so a write of a former connection can land late (a *ghost*, docs/kernel-hazards.md, F20). So can one that a target
//! throttles: later ones pass it, and it lands whatever became of its host.
//!
//! **Power.** A power cut takes everything a kernel holds and what volatile caches did not flush. It leaves drives with
//! partition table, superblocks, bitmaps, records and flushed data. Commands of the dead node that are already in
//! another node's drive, or in the socket of a frozen one, still land. Power on gives a new boot id, other device
//! names and no exports. An orderly shutdown kills the drives first, while the network still answers for a second:
//! every command in that second fails with "do not retry" (F8).
//!
//! **Freezing.** A frozen node (a stopped virtual machine, a long SMI) does nothing; to the others it looks like a cut.
//! At the thaw it carries out everything that arrived, in order, as if no time had passed for it.
//!
//! **Drives.** A pulled drive fails its commands; it can be plugged in again on any node. A hung one accepts commands and
//! finishes none until released: controllers stay live, fences wait. A broken one fails every command.
//!
//! **Operations.** An operation can fail before its effect, fail after it, stop half way, or take long. A slow one is
//! carried out even when nobody waits for it any more (F9). Killing the agent forgets operations that have not begun;
//! one that hangs in the kernel goes on.
//!
//! **Observations and hints.** An observation can fail. A hint can be lost, come twice or come late, and so out of order.
//! A lost path causes no event at all: only the agent's poll finds it.
//!
//! **Strangers.** udev can assemble our partitions as `md127` at any time, read-write (F11).
//!
//! Not in the model: silent corruption, torn data blocks, memory pressure, clocks that run differently.
//!
//! Called by tests through `World`, and by the seed through `FaultRates`. It never repairs anything by itself.

use super::bio::Dev;
use super::event::{Event, What};
use super::state::{State, Time};
use crate::facts::Transport;
use crate::hint::Hint;
use crate::id::{BootId, DriveId};
use crate::ops::Op;

/// What happens to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpFault {
    /// It fails and did nothing.
    Before,
    /// It fails although it was done.
    After,
    /// It stops half way and fails. Operations of one step fail after it.
    Half,
    /// It begins only after this long.
    Slow(Time),
}

/// A fault that waits for the next operation of a name.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    op: String,
    fault: OpFault,
}

/// How long the network of a machine answers after its drives are gone in an orderly shutdown.
const SHUTDOWN_TAIL: Time = Time::from_secs(1);
/// Longest that the seed makes an operation late.
const SLOW_MAX: Time = Time::from_secs(30);

impl State {
    pub(super) fn plan_fault(&mut self, node: usize, op: &str, fault: OpFault) {
        self.planned.push((node, Planned { op: op.into(), fault }));
    }

    pub(super) fn draw_op_fault(&mut self, node: usize, op: &Op) -> Option<OpFault> {
        if let Some(at) = self.planned.iter().position(|(n, p)| *n == node && p.op == op.name()) {
            return Some(self.planned.remove(at).1.fault);
        }
        let rates = self.config.rates;
        if self.rng.chance(rates.op_fails_before) {
            Some(OpFault::Before)
        } else if self.rng.chance(rates.op_fails_after) {
            Some(OpFault::After)
        } else if self.rng.chance(rates.op_fails_half) {
            Some(OpFault::Half)
        } else if self.rng.chance(rates.op_slow) {
            Some(OpFault::Slow(self.rng.between(Time::ZERO, SLOW_MAX)))
        } else {
            None
        }
    }

    /// Cuts one direction for the given transports.
    pub(super) fn cut(&mut self, from: usize, to: usize, transports: &[Transport]) {
        for transport in transports {
            self.cuts.insert((from, to, *transport));
        }
        let line = format!("cut {} -> {}", self.nodes[from].name, self.nodes[to].name);
        self.say_world(line);
        self.check_paths();
    }

    pub(super) fn heal(&mut self, from: usize, to: usize, transports: &[Transport]) {
        for transport in transports {
            self.cuts.remove(&(from, to, *transport));
        }
        let line = format!("heal {} -> {}", self.nodes[from].name, self.nodes[to].name);
        self.say_world(line);
        for (wire, event) in std::mem::take(&mut self.parked) {
            if self.cuts.contains(&wire) {
                self.parked.push((wire, event));
            } else if self.still_wanted(&event) {
                self.queue.add(self.now, event);
            }
        }
        self.check_paths();
    }

    /// A command that a host has taken back was never sent: its socket was closed with it.
    fn still_wanted(&self, event: &Event) -> bool {
        let What::Arrive { packet } = &event.what else { return true };
        let host = &self.nodes[packet.assoc.host];
        host.controllers.get(&packet.assoc.ctrl).is_some_and(|c| c.assoc.serial == packet.assoc.serial && c.is_live())
    }

    /// A machine goes dark; in good order its caches are flushed.
    pub(super) fn power_off(&mut self, node: usize, orderly: bool) {
        if !self.nodes[node].up {
            return;
        }
        let mut lost = 0;
        for drive in self.drives_of(node) {
            if orderly {
                self.drives[drive].flush();
                self.drives[drive].cache_off = false;
            } else {
                lost += self.drives[drive].lose_cache();
            }
        }
        self.say(node, format!("power off, {lost} unflushed blocks lost"));
        let n = &mut self.nodes[node];
        n.up = false;
        n.frozen = false;
        n.stopping = false;
        n.life += 1;
        n.known.clear();
        n.subsystems.clear();
        n.ports.clear();
        n.nvmet_lock = None;
        n.controllers.clear();
        n.heads.clear();
        n.down_since.clear();
        n.mounts.clear();
        n.openers.clear();
        n.deferred.clear();
        self.callers_lost(node);
        let dead: Vec<u64> = self.arrays.iter().filter(|(_, a)| a.node == node).map(|(id, _)| *id).collect();
        self.ios.retain(|_, io| !dead.contains(&io.array));
        self.arrays.retain(|_, a| a.node != node);
        self.bios.retain(|_, b| b.node != node);
        self.landings.retain(|_, l| l.node != node);
        self.jobs.retain(|_, j| j.node != node);
        self.parked.retain(|((from, to, _), _)| *from != node && *to != node);
        self.check_paths();
    }

    pub(super) fn power_on(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        let boot = BootId(self.rng.uuid().to_string());
        let mut drives = self.drives_of(node);
        // PCI devices enumerate in any order.
        for at in (1..drives.len()).rev() {
            let other = self.rng.below(at as u64 + 1) as usize;
            drives.swap(at, other);
        }
        let n = &mut self.nodes[node];
        n.up = true;
        n.boot = boot;
        n.drive_numbers = drives.iter().enumerate().map(|(number, drive)| (*drive, number as u32)).collect();
        for drive in drives {
            self.read_table(node, drive);
        }
        self.say(node, "power on");
        self.check_paths();
        self.hint(node, Hint::Everything);
    }

    pub(super) fn shut_down(&mut self, node: usize) {
        if self.nodes[node].up && !self.nodes[node].stopping {
            self.nodes[node].stopping = true;
            // Programs end before devices do: only what other nodes asked for meets the dead drives.
            let arrays: Vec<u64> = self.arrays.iter().filter(|(_, a)| a.node == node).map(|(id, _)| *id).collect();
            for array in arrays {
                self.kill_callers(array);
            }
            self.say(node, "shuts down: drives gone, network answers");
            self.after(SHUTDOWN_TAIL, node, What::Off);
        }
    }

    /// The kernel learns the partitions of a drive.
    fn read_table(&mut self, node: usize, drive: usize) {
        let table = self.drives[drive].table.clone().unwrap_or_default();
        self.nodes[node].known.extend(table.into_iter().map(|(number, entry)| ((drive, number), entry.extent)));
    }

    pub(super) fn freeze(&mut self, node: usize) {
        if self.nodes[node].up {
            self.nodes[node].frozen = true;
            self.say(node, "frozen");
            self.check_paths();
        }
    }

    pub(super) fn thaw(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].frozen, false) {
            return;
        }
        self.say(node, "thawed");
        for event in std::mem::take(&mut self.nodes[node].deferred) {
            self.queue.add(self.now, event);
        }
        // What had arrived is carried out before the node does anything new.
        self.advance(self.now);
        self.check_paths();
    }

    pub(super) fn plug(&mut self, drive: usize, node: usize) {
        if self.drives[drive].home.is_some() {
            return;
        }
        self.drives[drive].home = Some(node);
        self.drives[drive].plugs += 1;
        self.fail_dead_members(node, drive);
        if self.nodes[node].up {
            let number = self.free_device_number(node);
            self.nodes[node].drive_numbers.insert(drive, number);
            self.read_table(node, drive);
        }
        self.say(node, format!("drive {} plugged in", self.drives[drive].spec.serial));
        self.hint_drive(node, drive);
    }

    /// Arrays of the node that hold the drive from before it was pulled hold a block device that is no more. Without
    /// I/O they have not noticed; they would at the next command.
    fn fail_dead_members(&mut self, node: usize, drive: usize) {
        let mut dead = Vec::new();
        for (id, a) in self.arrays.iter().filter(|(_, a)| a.node == node) {
            let on_drive = |m: &super::md::Member| matches!(m.dev, Dev::Part { drive: d, .. } if d == drive);
            dead.extend(a.members.iter().filter(|(_, m)| on_drive(m)).map(|(name, _)| (*id, name.clone())));
        }
        for (id, name) in dead {
            self.fail_member(id, &name, "its drive was pulled");
        }
    }

    pub(super) fn pull(&mut self, node: usize, id: &DriveId) {
        let Some(drive) = self.drive_at(node, id) else { return };
        self.say(node, format!("drive {} pulled", self.drives[drive].spec.serial));
        self.drives[drive].lose_cache();
        self.drives[drive].home = None;
        self.drives[drive].hung = false;
        self.nodes[node].drive_numbers.remove(&drive);
        self.nodes[node].known.retain(|(d, _), _| *d != drive);
        for subsystem in self.nodes[node].subsystems.values_mut().filter(|s| s.drive == drive) {
            subsystem.dead = true;
        }
        self.release_landings(drive);
        self.hint(node, Hint::Drive(id.clone()));
    }

    pub(super) fn hang(&mut self, node: usize, id: &DriveId, on: bool) {
        let Some(drive) = self.drive_at(node, id) else { return };
        self.drives[drive].hung = on;
        self.say(node, format!("drive {} {}", self.drives[drive].spec.serial, if on { "hangs" } else { "goes on" }));
        if !on {
            self.release_landings(drive);
        }
    }

    pub(super) fn throttle(&mut self, node: usize, id: &DriveId, count: u32, time: Time) {
        let Some(drive) = self.drive_at(node, id) else { return };
        self.drives[drive].throttled = (count, time);
        if count > 0 {
            let line =
                format!("drive {} holds {count} writes back for {} s", self.drives[drive].spec.serial, time.as_secs());
            self.say(node, line);
        }
    }

    pub(super) fn break_drive(&mut self, node: usize, id: &DriveId, on: bool) {
        let Some(drive) = self.drive_at(node, id) else { return };
        self.drives[drive].broken = on;
        self.say(node, format!("drive {} {}", self.drives[drive].spec.serial, if on { "breaks" } else { "mended" }));
        self.hint_drive(node, drive);
    }

    /// Commands that a hung drive kept go on, in their order.
    fn release_landings(&mut self, drive: usize) {
        let kept = self.landings.iter().filter(|(_, l)| l.drive == drive);
        for (landing, node) in kept.map(|(id, l)| (*id, l.node)).collect::<Vec<_>>() {
            self.after(Time::ZERO, node, What::Landed { landing });
        }
    }

    /// The agent's process dies: what it had asked for and the kernel has not begun never happens.
    pub(super) fn kill_agent(&mut self, node: usize) {
        self.say(node, "agent killed");
        self.jobs.retain(|_, j| j.node != node || j.begun);
    }
}
