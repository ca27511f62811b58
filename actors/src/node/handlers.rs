//! What the root actor does with each message: pass it on, then sweep.

use super::messages::*;
use super::{NodeActor, TICK, bind, survey};
use crate::failure::Failure;
use crate::messages::{Died, Kill, Poke};
use crate::node::volumes::{Place, Staged};
use crate::node::{Health, VolumeView};
use crate::sources::{Change, Seen};
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, MessageResult, ResponseFuture};
use meshstor_kernel::hint::Hint;
use meshstor_kernel::id::VolumeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// A failed survey is repeated soon: nothing was adopted yet.
const SURVEY_AGAIN: Duration = Duration::from_secs(1);

impl Actor for NodeActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !crate::shell::running() {
            return;
        }
        ctx.run_interval(TICK, |node, ctx| node.tick(ctx));
        self.watches = self.sources.watch_own(&self.env.me.0);
        actix::spawn(forward(self.env.kernel.hints(), self.me.clone()));
        self.survey_soon();
    }
}

/// Brings the kernel's hints to the root, those that came together in one message. Ends with the root.
async fn forward(mut hints: broadcast::Receiver<Hint>, node: Addr<NodeActor>) {
    loop {
        let mut together = BTreeSet::new();
        match hints.recv().await {
            Ok(hint) => together.insert(hint),
            Err(broadcast::error::RecvError::Lagged(_)) => together.insert(Hint::Everything),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        loop {
            match hints.try_recv() {
                Ok(hint) => together.insert(hint),
                Err(broadcast::error::TryRecvError::Lagged(_)) => together.insert(Hint::Everything),
                Err(_) => break,
            };
        }
        if node.send(Hinted(together)).await.is_err() {
            return;
        }
    }
}

impl Handler<Poke> for NodeActor {
    type Result = ();

    fn handle(&mut self, _: Poke, ctx: &mut Self::Context) {
        self.sweep(ctx);
    }
}

impl Handler<Died> for NodeActor {
    type Result = ();

    fn handle(&mut self, died: Died, ctx: &mut Self::Context) {
        tracing::debug!(kind = died.kind, key = died.key, generation = died.generation, "ended");
        self.sweep(ctx);
    }
}

impl Handler<Hinted> for NodeActor {
    type Result = ();

    fn handle(&mut self, hinted: Hinted, ctx: &mut Self::Context) {
        self.route(&hinted.0);
        self.sweep(ctx);
    }
}

impl Handler<Seen> for NodeActor {
    type Result = ();

    fn handle(&mut self, seen: Seen, ctx: &mut Self::Context) {
        if self.stopping.is_some() {
            return;
        }
        match seen {
            Seen::Replica(change) => {
                self.replicas_listed |= matches!(change, Change::Listed(_));
                self.replicas_changed(change);
            }
            Seen::Volume(change) => self.volume_changed(change),
            Seen::Device(change) => self.devices_changed(change),
            Seen::Own(change) => self.own_changed(change),
            Seen::Machine(annotations) => self.machine_changed(&annotations),
            Seen::CopyOf(name) => {
                if let Some(volume) = self.env.book.borrow().volume(&name) {
                    self.arrays.look(&volume);
                }
            }
        }
        self.sweep(ctx);
    }
}

impl Handler<Verified> for NodeActor {
    type Result = ();

    fn handle(&mut self, verified: Verified, ctx: &mut Self::Context) {
        self.replica_verified(verified);
        self.sweep(ctx);
    }
}

impl Handler<PortsChecked> for NodeActor {
    type Result = ();

    fn handle(&mut self, checked: PortsChecked, ctx: &mut Self::Context) {
        self.ports_checked(checked);
        self.sweep(ctx);
    }
}

impl Handler<Surveyed> for NodeActor {
    type Result = ();

    fn handle(&mut self, Surveyed(result): Surveyed, ctx: &mut Self::Context) {
        self.surveying = false;
        self.survey_ended = Some(tokio::time::Instant::now());
        if self.stopping.is_some() {
            return;
        }
        match result {
            Ok(survey) => self.take_in(survey),
            Err(error) => {
                tracing::error!(%error, "the kernel could not be looked at");
                self.survey_ended = None;
                ctx.run_later(SURVEY_AGAIN, |node, _| node.survey_soon());
            }
        }
        self.sweep(ctx);
    }
}

impl Handler<StageVolume> for NodeActor {
    type Result = MessageResult<StageVolume>;

    fn handle(&mut self, wish: StageVolume, ctx: &mut Self::Context) -> Self::Result {
        let fresh = self.surveyed && !self.volumes.contains_key(&wish.volume);
        let place = if wish.raw { Place::Raw(wish.target) } else { Place::Mounted(wish.target) };
        let view = self.bring_up(&wish.name, wish.volume, place, wish.options);
        self.sweep(ctx);
        MessageResult(Staging { view, fresh })
    }
}

impl Handler<UnstageVolume> for NodeActor {
    type Result = ResponseFuture<Result<Option<watch::Receiver<VolumeView>>, Failure>>;

    fn handle(&mut self, wish: UnstageVolume, _: &mut Self::Context) -> Self::Result {
        let (env, me) = (self.env.clone(), self.me.clone());
        Box::pin(async move {
            let Some(volume) = survey::resolve(&env, &wish.name, &wish.target).await? else { return Ok(None) };
            Ok(me.send(ReleaseVolume { name: wish.name, volume }).await.ok())
        })
    }
}

impl Handler<ReleaseVolume> for NodeActor {
    type Result = MessageResult<ReleaseVolume>;

    fn handle(&mut self, wish: ReleaseVolume, ctx: &mut Self::Context) -> Self::Result {
        let receiver = self.let_go(&wish.name, wish.volume);
        self.sweep(ctx);
        MessageResult(receiver)
    }
}

impl Handler<BindVolume> for NodeActor {
    type Result = ResponseFuture<Result<Bound, Failure>>;

    fn handle(&mut self, wish: BindVolume, _: &mut Self::Context) -> Self::Result {
        let env = self.env.clone();
        Box::pin(async move { bind::bind(&env, wish).await })
    }
}

impl Handler<Unbind> for NodeActor {
    type Result = ResponseFuture<Result<(), Failure>>;

    fn handle(&mut self, wish: Unbind, _: &mut Self::Context) -> Self::Result {
        let env = self.env.clone();
        Box::pin(async move { bind::unbind(&env, wish.target).await })
    }
}

impl Handler<AskMounted> for NodeActor {
    type Result = ResponseFuture<Result<Option<Mounted>, Failure>>;

    fn handle(&mut self, question: AskMounted, _: &mut Self::Context) -> Self::Result {
        let env = self.env.clone();
        let known = self.volumes.iter().map(|(volume, staged)| (*volume, (staged.view(), self.health(*volume))));
        let mut known: BTreeMap<VolumeId, (VolumeView, Health)> = known.collect();
        Box::pin(async move {
            let Some(mounted) = bind::mounted(&env, question.path).await? else { return Ok(None) };
            let (view, health) = known.remove(&mounted.volume).unzip();
            Ok(Some(Mounted { view, health, ..mounted }))
        })
    }
}

impl Handler<AskGrowth> for NodeActor {
    type Result = ResponseFuture<Result<Option<Growth>, Failure>>;

    fn handle(&mut self, question: AskGrowth, _: &mut Self::Context) -> Self::Result {
        let (env, me) = (self.env.clone(), self.me.clone());
        let named = question.device_of.and_then(|name| env.book.borrow().volume(&name));
        Box::pin(async move {
            let found = match (bind::mounted(&env, question.path).await?, named) {
                (None, Some(volume)) => bind::device(&env, volume).await?,
                (found, _) => found,
            };
            let Some(mounted) = found else { return Ok(None) };
            let Mounted { volume, raw, size_bytes, .. } = mounted;
            Ok(me.send(AskVolumeGrowth { volume, raw, array_bytes: size_bytes }).await.ok())
        })
    }
}

impl Handler<AskVolumeGrowth> for NodeActor {
    type Result = MessageResult<AskVolumeGrowth>;

    fn handle(&mut self, asked: AskVolumeGrowth, ctx: &mut Self::Context) -> Self::Result {
        let growth = self.growth(asked);
        self.sweep(ctx);
        MessageResult(growth)
    }
}

impl Handler<AskDevice> for NodeActor {
    type Result = ResponseFuture<Result<Option<Mounted>, Failure>>;

    fn handle(&mut self, question: AskDevice, _: &mut Self::Context) -> Self::Result {
        let env = self.env.clone();
        let volume = env.book.borrow().volume(&question.name);
        let view = volume.and_then(|volume| self.volumes.get(&volume)).map(Staged::view);
        Box::pin(async move {
            let Some(volume) = volume else { return Ok(None) };
            Ok(bind::device(&env, volume).await?.map(|device| Mounted { view, ..device }))
        })
    }
}

impl Handler<Kill> for NodeActor {
    type Result = ();

    fn handle(&mut self, _: Kill, ctx: &mut Self::Context) {
        self.drives.kill_all();
        self.partitions.kill_all();
        self.exports.kill_all();
        self.connections.kill_all();
        self.arrays.kill_all();
        self.stages.kill_all();
        let _ = self.writer.try_send(Kill);
        self.watches.clear();
        self.volumes.clear();
        ctx.terminate();
    }
}

impl Handler<Shutdown> for NodeActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) -> Self::Result {
        let mut stopped = self.begin_stop();
        self.sweep(ctx);
        Box::pin(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        })
    }
}
