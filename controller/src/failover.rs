//! Automatic fail-over: the volumes of a node that is gone are fenced and handed to the scheduler (K6).
//!
//! A loop of its own beside `loops`, in every controller process; it is off unless the configuration has a patience. Signs of
//! life are what this process has *seen change*, by its own clock: a heartbeat from before it looked proves nothing, and after
//! a time in which the API server did not answer everybody's patience begins anew. What it decides is in
//! `meshstor_plan::failover`; what follows from it is in `release`, step by step from objects, so that another controller
//! can go on anywhere. It never takes a silence for a fence: a volume is started elsewhere by the ordinary takeover only.
//!
//! ```text
//!  heartbeat and lease quiet ─▶ ask the copies ─▶ nobody is connected ─▶ mark the node, raise the epochs
//!                                                                            │ a complete copy is fenced
//!                         the node is back and clean ─▶ unmark   ◀── delete its pods, let the volumes detach
//! ```

mod release;

use crate::Context;
use crate::decide;
use crate::error::ControlError;
use crate::unpublish;
use crate::writer::FIELD_MANAGER;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use meshstor_api::node::MeshStorNode;
use meshstor_api::replica::{CONNECTED_ANNOTATION, MeshStorReplica};
use meshstor_api::volume::MeshStorVolume;
use meshstor_kernel::facts::Transport;
use meshstor_kernel::id::NodeName;
use meshstor_plan::failover::{Cluster, Suspect, Verdict, Witness, judge};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks. A look at a cluster in which everybody gives signs asks the API server nothing.
const PERIOD: Duration = Duration::from_secs(1);
/// A question is asked anew after this long: a target drops a silent host after its keep-alive (5 s) and some.
const SLOT: i64 = 10;
/// Kubelets' leases.
const LEASES: &str = "kube-node-lease";

/// The last that was seen of somebody, and when it was first seen.
#[derive(Debug, Clone)]
struct Sign {
    text: String,
    since: Instant,
}

#[derive(Debug, Default)]
struct View {
    heartbeats: BTreeMap<String, Sign>,
    leases: BTreeMap<String, Sign>,
    /// Since when every request was answered.
    trusted: Option<Instant>,
    /// What was last said of each suspect.
    said: BTreeMap<String, Verdict>,
}

/// Signs of life of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Signs(Mutex<View>);

impl Signs {
    /// A node's object as a watch or a read shows it.
    pub(crate) fn heartbeat(&self, node: &str, text: &str) {
        note(&mut self.lock().heartbeats, node, text);
    }

    /// A node has no object any more.
    pub(crate) fn gone(&self, node: &str) {
        let mut view = self.lock();
        view.heartbeats.remove(node);
        view.leases.remove(node);
    }

    fn lease(&self, node: &str, text: Option<&str>) {
        let mut view = self.lock();
        match text {
            Some(text) => note(&mut view.leases, node, text),
            None => drop(view.leases.remove(node)),
        }
    }

    /// Nothing that was not seen from now on counts.
    fn distrust(&self) {
        self.lock().trusted = Some(Instant::now());
    }

    /// For how long a node's agent, and its kubelet, have been quiet.
    fn quiet(&self, node: &str) -> (Duration, Option<Duration>) {
        let view = self.lock();
        let age = |sign: &Sign| view.trusted.map_or(sign.since, |trusted| trusted.max(sign.since)).elapsed();
        (view.heartbeats.get(node).map(age).unwrap_or_default(), view.leases.get(node).map(age))
    }

    /// All nodes that ever gave a sign; those that gave none for so long.
    fn all(&self, than: Duration) -> (usize, BTreeSet<String>) {
        let names: Vec<String> = self.lock().heartbeats.keys().cloned().collect();
        let quiet = names.iter().filter(|name| self.quiet(name).0 >= than).cloned().collect();
        (names.len(), quiet)
    }

    fn last(&self, node: &str) -> String {
        self.lock().heartbeats.get(node).map(|sign| sign.text.clone()).unwrap_or_default()
    }

    /// Logs a verdict when it is a new one.
    fn say(&self, node: &str, verdict: &Verdict) {
        let old = self.lock().said.insert(node.to_string(), verdict.clone());
        if old.as_ref() != Some(verdict) {
            tracing::warn!(node, ?verdict, "a node that uses volumes gives no sign of life");
        }
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(signs: &mut BTreeMap<String, Sign>, node: &str, text: &str) {
    if signs.get(node).is_none_or(|sign| sign.text != text) {
        signs.insert(node.to_string(), Sign { text: text.to_string(), since: Instant::now() });
    }
}

/// Runs for ever; with `patience` absent it does nothing.
pub(crate) async fn run(context: Arc<Context>) {
    let Some(patience) = context.config.fail_over else { return std::future::pending().await };
    context.signs.distrust();
    let mut marked = release::Marked::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        let looked = async {
            look(&context, patience).await?;
            release::step(&context, patience, &mut marked).await
        };
        if let Err(error) = looked.await {
            tracing::warn!(%error, "fail-over looks again; everybody's patience begins anew");
            context.signs.distrust();
        }
    }
}

/// One look at the quiet ones.
async fn look(context: &Arc<Context>, patience: Duration) -> Result<(), ControlError> {
    // From half of the patience on: kubelet's lease has to be watched for some time as well.
    for node in context.signs.all(patience / 2).1 {
        refresh(context, &node).await?;
    }
    let (nodes, quiet) = context.signs.all(patience);
    if quiet.is_empty() {
        return Ok(());
    }
    let (volumes, replicas) =
        futures::try_join!(context.writer.list::<MeshStorVolume>(), context.writer.list::<MeshStorReplica>())?;
    let cluster = Cluster { nodes, quiet: quiet.len() };
    for node in &quiet {
        let used: Vec<&MeshStorVolume> =
            volumes.iter().filter(|volume| volume.spec.attachment.consumer.as_ref() == Some(node)).collect();
        if !used.is_empty() {
            suspected(context, patience, node, &used, &replicas, cluster, &quiet).await?;
        }
    }
    Ok(())
}

/// Asks the API server itself: a watch that is broken shows everybody as quiet.
async fn refresh(context: &Context, node: &str) -> Result<(), ControlError> {
    match context.writer.get::<MeshStorNode>(node).await? {
        Some(object) => {
            let heartbeat = object.status.and_then(|status| status.heartbeat).unwrap_or_default();
            context.signs.heartbeat(node, &heartbeat);
        }
        None => {
            context.signs.gone(node);
            return Ok(());
        }
    }
    let api: Api<Lease> = Api::namespaced(context.writer.client(), LEASES);
    let lease = context.writer.ask(&format!("lease of node {node}"), api.get_opt(node)).await?;
    let renewed = lease.and_then(|lease| lease.spec?.renew_time).map(|time| time.0.to_string());
    context.signs.lease(node, renewed.as_deref());
    Ok(())
}

async fn suspected(
    context: &Arc<Context>,
    patience: Duration,
    node: &str,
    used: &[&MeshStorVolume],
    replicas: &[MeshStorReplica],
    cluster: Cluster,
    quiet: &BTreeSet<String>,
) -> Result<(), ControlError> {
    let question = Question::new(context, node);
    let (agent, lease_quiet) = context.signs.quiet(node);
    let copies = |volume: &MeshStorVolume| complete_elsewhere(volume, replicas, quiet);
    let name = |volume: &MeshStorVolume| volume.metadata.name.clone().unwrap_or_default();
    let volumes = used.iter().map(|volume| {
        let witnesses = copies(volume).into_iter().map(|copy| question.witness(copy)).collect();
        (name(volume), witnesses)
    });
    let suspect = Suspect { quiet: agent, lease_quiet, volumes: volumes.collect() };
    let verdict = judge(&suspect, cluster, patience);
    context.signs.say(node, &verdict);
    match verdict {
        Verdict::Ask | Verdict::Connected { .. } => {
            for copy in used.iter().flat_map(|volume| copies(volume)) {
                question.ask(context, copy).await?;
            }
        }
        Verdict::Gone(volumes) => {
            release::mark(context, node).await?;
            for (volume, witnesses) in volumes {
                tracing::warn!(node, volume, witnesses, quiet = ?agent, "fenced without being asked");
                let ended = unpublish::unpublish(context.clone(), volume.clone(), Some(node.to_string())).await;
                if let Err(status) = ended {
                    tracing::warn!(node, volume, %status, "looking again");
                }
            }
        }
        Verdict::Alive | Verdict::TooMany | Verdict::NoWitness => {}
    }
    Ok(())
}

/// Complete copies of a volume on nodes that are not quiet themselves.
fn complete_elsewhere<'a>(
    volume: &MeshStorVolume,
    replicas: &'a [MeshStorReplica],
    quiet: &BTreeSet<String>,
) -> Vec<&'a MeshStorReplica> {
    decide::complete(volume, replicas).filter(|copy| !quiet.contains(&copy.spec.node)).collect()
}

/// Who is connected, asked about one silence of one node. Two controllers ask the same in the same words.
struct Question {
    silence: String,
    slot: i64,
}

impl Question {
    fn new(context: &Context, node: &str) -> Question {
        let now = (context.config.now)().as_second();
        Question { silence: format!("{node} since {}", context.signs.last(node)), slot: now.div_euclid(SLOT) }
    }

    fn text(&self) -> String {
        format!("{} #{}", self.silence, self.slot)
    }

    /// An answer counts when it is of this silence and not older than two slots.
    fn witness(&self, copy: &MeshStorReplica) -> Witness {
        let answer = copy.status.as_ref().and_then(|status| status.connection.as_ref());
        let fresh = answer.filter(|answer| {
            let slot = answer.asked.rsplit_once(" #").filter(|(silence, _)| *silence == self.silence);
            slot.and_then(|(_, slot)| slot.parse::<i64>().ok()).is_some_and(|slot| slot >= self.slot - 1)
        });
        let transport = |text: &String| if text == "rdma" { Transport::Rdma } else { Transport::Tcp };
        let connected = fresh.map(|answer| answer.transports.iter().map(transport).collect());
        Witness { node: NodeName(copy.spec.node.clone()), connected }
    }

    async fn ask(&self, context: &Context, copy: &MeshStorReplica) -> Result<(), ControlError> {
        let name = copy.metadata.name.as_deref().unwrap_or_default();
        let asked = copy.metadata.annotations.as_ref().and_then(|all| all.get(CONNECTED_ANNOTATION));
        if asked == Some(&self.text()) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { CONNECTED_ANNOTATION: self.text() } } }));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = context.writer.api::<MeshStorReplica>();
        context.writer.ask(&format!("asking {name} who is connected"), api.patch(name, &params, &patch)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quiet_is_what_was_seen_not_to_change() {
        let signs = Signs::default();
        signs.heartbeat("a", "1");
        signs.lease("a", Some("x"));
        tokio::time::advance(Duration::from_secs(20)).await;
        signs.heartbeat("a", "1");
        assert_eq!(signs.quiet("a"), (Duration::from_secs(20), Some(Duration::from_secs(20))));
        signs.heartbeat("a", "2");
        assert_eq!(signs.quiet("a").0, Duration::ZERO);
        signs.heartbeat("b", "1");
        tokio::time::advance(Duration::from_secs(30)).await;
        signs.heartbeat("a", "3");
        assert_eq!(signs.all(Duration::from_secs(30)), (2, BTreeSet::from(["b".to_string()])));
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_outage_everybodys_patience_begins_anew() {
        let signs = Signs::default();
        signs.heartbeat("a", "1");
        tokio::time::advance(Duration::from_secs(60)).await;
        signs.distrust();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(signs.quiet("a").0, Duration::from_secs(5));
    }
}
