//! The end of a node agent: every actor finishes its round, then the root ends. Nothing in the kernel changes (P5).

use super::NodeActor;
use actix::{ActorContext, Context};
use tokio::sync::watch;

impl NodeActor {
    /// Lets go of all children; answers with what to wait on.
    pub(super) fn begin_stop(&mut self) -> watch::Receiver<bool> {
        let sender = self.stopping.get_or_insert_with(|| watch::Sender::new(false));
        let receiver = sender.subscribe();
        self.watches.clear();
        self.volumes.clear();
        self.drives.retire_all();
        self.partitions.retire_all();
        self.exports.retire_all();
        self.connections.retire_all();
        self.arrays.retire_all();
        self.stages.retire_all();
        receiver
    }

    /// Ends when nobody is left and an end was asked for.
    pub(super) fn finish_stop(&mut self, ctx: &mut Context<Self>) {
        let Some(stopping) = &self.stopping else { return };
        let quiet = self.drives.is_empty()
            && self.partitions.is_empty()
            && self.exports.is_empty()
            && self.connections.is_empty()
            && self.arrays.is_empty()
            && self.stages.is_empty();
        if quiet {
            stopping.send_replace(true);
            ctx.stop();
        }
    }
}
