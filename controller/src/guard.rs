//! Guards: a pod on every storage node that a drain has to evict, and a disruption budget that says when it may.
//!
//! Run by `Controller::run` beside the other loops when the configuration names an image. `kubectl drain` does not ask about
//! the pods of a DaemonSet, so our agents cannot hold it up; it does ask for this pod, again every 5 s, until the budget
//! allows it (K12). The rule is `meshstor_plan::drain`'s. Two nodes are never let go at once on the strength of each other's
//! copies: leave is written into one ConfigMap by compare-and-swap, and a node that has leave counts as away from then on.
//! It never deletes a pod that is not a guard, and touches no volume.
//!
//! ```text
//!  cordoned ─▶ every used volume has a complete copy elsewhere? ─ no ──▶ event DrainWaits on the node, look again
//!                                                   │ yes
//!                           leave in the ConfigMap ─▶ budget 0: the guard is evicted ─▶ uncordoned: budget 1, no leave
//! ```

mod objects;

use crate::Context;
use crate::decide;
use crate::error::ControlError;
use crate::offers;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use meshstor_api::node::MeshStorNode;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::tell::Told;
use meshstor_api::volume::MeshStorVolume;
use meshstor_kernel::id::NodeName;
use meshstor_plan::drain::{Endangered, Volume, endangered};
use objects::{Ledger, Objects};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// `kubectl drain` asks again every 5 s.
const PERIOD: Duration = Duration::from_secs(5);
/// Guards and budgets are looked at this often when no node is being drained.
const UPKEEP: Duration = Duration::from_secs(60);

/// What guards are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardConfig {
    /// Where they live: the chart's namespace.
    pub namespace: String,
    /// The image of this program.
    pub image: String,
    /// `imagePullPolicy` of it.
    pub pull_policy: String,
    /// Names of `imagePullSecrets`.
    pub pull_secrets: Vec<String>,
    /// The Deployment in that namespace that they belong to, and go with.
    pub owner: String,
}

/// What this process remembers: nothing that matters to anybody's data.
#[derive(Debug, Default)]
struct Memory {
    /// When a volume was first seen unused.
    unused: BTreeMap<String, Instant>,
    /// What was last told of a node.
    told: BTreeMap<String, String>,
    /// What the last upkeep was about, and when.
    kept: Option<(View, Instant)>,
}

/// Which nodes are cordoned, and which of them may go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    cordoned: BTreeSet<String>,
    leave: BTreeSet<String>,
}

/// Runs for ever; without a configuration it does nothing.
pub(crate) async fn run(context: Arc<Context>) {
    let Some(config) = context.config.guard.clone() else { return std::future::pending().await };
    let (objects, mut memory) = (Objects::new(&context, &config), Memory::default());
    loop {
        if let Err(error) = look(&context, &objects, &mut memory).await {
            tracing::warn!(%error, "guards are looked at again");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn look(context: &Context, objects: &Objects<'_>, memory: &mut Memory) -> Result<(), ControlError> {
    let cordoned = cordoned(context).await?;
    let mut ledger = objects.ledger().await?;
    let back: Vec<String> = ledger.leave.keys().filter(|node| !cordoned.contains(*node)).cloned().collect();
    if !back.is_empty() {
        // First the budgets, then the leave: others may go on the strength of these nodes afterwards.
        for node in &back {
            objects.budget(node, 1).await?;
        }
        ledger.leave.retain(|node, _| !back.contains(node));
        objects.write(&mut ledger).await?;
        tracing::info!(nodes = ?back, "no longer being drained");
    }
    // A node that was cordoned long before it is drained has leave of long ago: as long as its guard stands, it may be taken
    // back.
    let guarded = if ledger.leave.is_empty() { BTreeSet::new() } else { objects.about::<Pod>().await? };
    let open = |node: &&String| !ledger.leave.contains_key(*node) || guarded.contains(*node);
    let asking: BTreeSet<String> = cordoned.iter().filter(open).cloned().collect();
    memory.told.retain(|node, _| asking.contains(node));
    if !asking.is_empty() {
        review(context, objects, memory, &asking, &mut ledger).await?;
    }
    let view = View { cordoned, leave: ledger.leave.into_keys().collect() };
    if memory.kept.as_ref().is_none_or(|(kept, at)| *kept != view || at.elapsed() >= UPKEEP) {
        upkeep(context, objects, &view).await?;
        memory.kept = Some((view, Instant::now()));
    }
    Ok(())
}

/// Nodes that take no new pods: the first thing that a drain does.
async fn cordoned(context: &Context) -> Result<BTreeSet<String>, ControlError> {
    let api = kube::Api::<Node>::all(context.writer.client());
    let params = ListParams::default().fields("spec.unschedulable=true");
    let list = context.writer.ask("list of cordoned nodes", api.list_metadata(&params)).await?;
    Ok(list.items.into_iter().filter_map(|node| node.metadata.name).collect())
}

/// Gives leave, or takes it back, and tells of what holds nodes up.
async fn review(
    context: &Context,
    objects: &Objects<'_>,
    memory: &mut Memory,
    asking: &BTreeSet<String>,
    ledger: &mut Ledger,
) -> Result<(), ControlError> {
    let had = ledger.leave.clone();
    let verdicts = judge(context, memory, asking, &mut ledger.leave).await?;
    for node in had.keys().filter(|node| !ledger.leave.contains_key(*node)) {
        objects.budget(node, 1).await?;
    }
    if had != ledger.leave {
        objects.write(ledger).await?;
    }
    for (node, held) in verdicts.into_iter().filter(|(node, held)| !held.is_empty() || !had.contains_key(node)) {
        memory.tell(context, &node, &held).await;
    }
    Ok(())
}

/// What holds each asking node back. Those that nothing holds are added to `leave`, one after the other; others lose theirs.
async fn judge(
    context: &Context,
    memory: &mut Memory,
    asking: &BTreeSet<String>,
    leave: &mut BTreeMap<String, String>,
) -> Result<Vec<(String, Vec<Endangered>)>, ControlError> {
    let writer = &context.writer;
    let (replicas, volumes, nodes) = futures::try_join!(
        writer.list::<MeshStorReplica>(),
        writer.list::<MeshStorVolume>(),
        writer.list::<MeshStorNode>()
    )?;
    let volumes = memory.volumes(&volumes, &replicas);
    let now = (context.config.now)();
    let silent = nodes.iter().filter(|other| {
        let heartbeat = other.status.as_ref().and_then(|status| status.heartbeat.as_deref());
        offers::silence(heartbeat, now, context.config.heartbeat_max).is_some()
    });
    let silent: BTreeSet<String> = silent.filter_map(|other| other.metadata.name.clone()).collect();
    let mut verdicts = Vec::new();
    for node in nodes.iter().filter_map(|node| node.metadata.name.as_ref()).filter(|name| asking.contains(*name)) {
        let away = silent.iter().chain(leave.keys()).filter(|other| *other != node);
        let away: BTreeSet<NodeName> = away.cloned().map(NodeName).collect();
        let held = endangered(&NodeName(node.clone()), &volumes, &away);
        if held.is_empty() {
            leave.entry(node.clone()).or_insert_with(|| context.timestamp());
        } else {
            leave.remove(node);
        }
        verdicts.push((node.clone(), held));
    }
    Ok(verdicts)
}

/// A budget for each storage node, and a guard on each that takes pods.
async fn upkeep(context: &Context, objects: &Objects<'_>, view: &View) -> Result<(), ControlError> {
    let nodes = context.writer.list::<MeshStorNode>().await?;
    let names: BTreeSet<String> = nodes.into_iter().filter_map(|node| node.metadata.name).collect();
    for node in &names {
        objects.budget(node, i32::from(!view.leave.contains(node))).await?;
    }
    let guarded = objects.about::<Pod>().await?;
    for node in names.iter().filter(|node| !guarded.contains(*node) && !view.cordoned.contains(*node)) {
        if context.writer.node_exists(node).await? {
            objects.guard(node).await?;
        }
    }
    for node in objects.about::<PodDisruptionBudget>().await?.union(&guarded).filter(|node| !names.contains(*node)) {
        objects.remove(node).await?;
    }
    Ok(())
}

impl Memory {
    /// Every recorded volume as the rule wants it.
    fn volumes(&mut self, volumes: &[MeshStorVolume], replicas: &[MeshStorReplica]) -> Vec<Volume> {
        let mut known = Vec::new();
        let mut unused = BTreeMap::new();
        for volume in volumes {
            let name = volume.metadata.name.clone().unwrap_or_default();
            let complete = decide::complete(volume, replicas);
            let consumer = volume.spec.attachment.consumer.clone().map(NodeName);
            let since = consumer.is_none().then(|| self.unused.get(&name).copied().unwrap_or_else(Instant::now));
            if let Some(since) = since {
                unused.insert(name.clone(), since);
            }
            known.push(Volume {
                complete: complete.map(|copy| NodeName(copy.spec.node.clone())).collect(),
                consumer,
                unused: since.map(|since| since.elapsed()).unwrap_or_default(),
                pinned: volume.spec.replica_count == 1 && volume.spec.relocation_delay_seconds.is_none(),
                name,
            });
        }
        self.unused = unused;
        known
    }

    /// An event on the node, as often as the reason is another one.
    async fn tell(&mut self, context: &Context, node: &str, held: &[Endangered]) {
        let told = match held.first() {
            Some(first) => {
                let more = held.len() - 1;
                let more = if more == 0 { String::new() } else { format!("; so have {more} more volumes") };
                Told { warning: true, reason: "DrainWaits".into(), note: format!("{first}{more}") }
            }
            None => Told {
                warning: false,
                reason: "DrainAllowed".into(),
                note: "every volume in use has a complete copy on another node".into(),
            },
        };
        if self.told.get(node) == Some(&told.note) {
            return;
        }
        tracing::info!(node, reason = told.reason, note = told.note, "a node is being drained");
        let uid = context.writer.node(node).await.ok().flatten().and_then(|node| node.metadata.uid);
        self.told.insert(node.to_string(), told.note.clone());
        context.teller.tell::<Node>(node, uid, &[told]).await;
    }
}
