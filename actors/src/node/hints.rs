//! Who has to look when the kernel hints at something: each hint to the actors whose facts it may have changed.

use super::NodeActor;
use meshstor_kernel::hint::Hint;
use std::collections::BTreeSet;

impl NodeActor {
    /// Makes everybody look whom one of these hints may concern.
    pub(super) fn route(&mut self, hints: &BTreeSet<Hint>) {
        for hint in hints {
            match hint {
                Hint::Drive(drive) => {
                    self.survey_soon();
                    self.drives.look(drive);
                    self.look_at_replicas(|replica| replica.object.spec.drive == drive.0);
                }
                Hint::Drives => {
                    self.survey_soon();
                    self.drives.look_where(|_| true);
                    self.look_at_replicas(|_| true);
                }
                Hint::Connection(volume) => {
                    self.connections.look_where(|key| key.volume == *volume);
                    self.arrays.look(volume);
                }
                Hint::Connections => {
                    self.connections.look_where(|_| true);
                    self.arrays.look_where(|_| true);
                }
                Hint::Array(volume) => {
                    self.arrays.look(volume);
                    self.stages.look(volume);
                    // A partition of this node may be free for an export now, or used.
                    self.exports.look_where(|key| key.volume == *volume);
                    self.partitions.look_where(|key| key.volume == *volume);
                }
                Hint::Arrays => {
                    self.arrays.look_where(|_| true);
                    self.stages.look_where(|_| true);
                    self.look_at_replicas(|_| true);
                }
                Hint::Network => {
                    self.survey_soon();
                    self.exports.look_where(|_| true);
                    self.connections.look_where(|_| true);
                }
                Hint::Everything => {
                    self.survey_soon();
                    self.drives.look_where(|_| true);
                    self.look_at_replicas(|_| true);
                    self.connections.look_where(|_| true);
                    self.arrays.look_where(|_| true);
                    self.stages.look_where(|_| true);
                }
            }
        }
    }

    fn look_at_replicas(&self, which: impl Fn(&super::replicas::Held) -> bool) {
        for replica in self.replicas.values().filter(|replica| which(replica)) {
            self.partitions.look(&replica.key);
            self.exports.look(&replica.key);
        }
    }
}
