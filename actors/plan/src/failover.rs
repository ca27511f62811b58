//! Automatic fail-over: whether a node is so surely gone that its volumes may be brought to other nodes without anybody asking
//! (docs/protocol.md, *Fail-over*; K6).
//!
//! Called by the controller's loop. Two sides have to agree: the node has given no sign of life to the API server, neither its
//! agent nor its kubelet, *and* no node that holds one of its volumes' complete copies is connected to it any more. A node
//! that has lost the API server only, or the storage network only, is left to Kubernetes' own patience. It never says that
//! a node is dead, only that its volumes may be fenced: what keeps data safe is the fence.

use meshstor_kernel::facts::Transport;
use meshstor_kernel::id::NodeName;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A kubelet renews its lease every 10 s (`nodeLeaseDurationSeconds` 40, of which it takes a quarter); with half of that for
/// a busy server. One whose lease moved this lately lives.
pub const LEASE_QUIET: Duration = Duration::from_secs(15);

/// A node that a volume is attached to, and that is quiet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// For how long its agent has given no sign, as this controller has watched it.
    pub quiet: Duration,
    /// The same of its kubelet; `None`: it has no lease.
    pub lease_quiet: Option<Duration>,
    /// Complete copies on other nodes, volume by volume; those on nodes that are quiet as well are left out.
    pub volumes: BTreeMap<String, Vec<Witness>>,
}

/// A node that holds a complete copy of a suspect's volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Which.
    pub node: NodeName,
    /// Over which transports a host is connected to the copy, as it says now; `None`: it has not answered yet.
    pub connected: Option<BTreeSet<Transport>>,
}

/// How many nodes there are, and how many of them are quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// All that ever gave a sign.
    pub nodes: usize,
    /// Quiet ones, whether or not they use volumes.
    pub quiet: usize,
}

/// What may be done about a suspect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has not been quiet for long enough, or its kubelet lives.
    Alive,
    /// So many nodes are quiet that it is more likely the watcher who sees badly.
    TooMany,
    /// Some nodes have not said whether it is connected to them.
    Ask,
    /// It is: it writes on. Left to Kubernetes.
    Connected {
        /// To this node.
        node: NodeName,
    },
    /// No other node holds a complete copy of any of its volumes: nobody can testify, and nothing could be started elsewhere.
    NoWitness,
    /// These volumes may be fenced and started elsewhere; with each the number of nodes that testified.
    Gone(BTreeMap<String, usize>),
}

/// The verdict about one suspect.
pub fn judge(suspect: &Suspect, cluster: Cluster, patience: Duration) -> Verdict {
    if suspect.quiet < patience || suspect.lease_quiet.is_some_and(|quiet| quiet < LEASE_QUIET) {
        return Verdict::Alive;
    }
    // More than a third.
    if cluster.quiet * 3 > cluster.nodes {
        return Verdict::TooMany;
    }
    let witnesses = || suspect.volumes.values().flatten();
    let connected = witnesses().find(|witness| witness.connected.as_ref().is_some_and(|c| !c.is_empty()));
    if let Some(witness) = connected {
        return Verdict::Connected { node: witness.node.clone() };
    }
    if witnesses().any(|witness| witness.connected.is_none()) {
        return Verdict::Ask;
    }
    let gone: BTreeMap<String, usize> = suspect
        .volumes
        .iter()
        .filter(|(_, witnesses)| !witnesses.is_empty())
        .map(|(volume, witnesses)| (volume.clone(), witnesses.len()))
        .collect();
    if gone.is_empty() { Verdict::NoWitness } else { Verdict::Gone(gone) }
}

/// A persistent volume that a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Ours, its consumer's time is over, and a complete copy is fenced.
    Fenced,
    /// Ours, and not fenced yet.
    Unfenced,
    /// Another driver's, or nobody knows whose.
    Foreign,
}

/// Whether a pod on a node that is gone may be deleted by force, so that another one is made: all that it has to lose is ours
/// and fenced. `None`: it uses none of our volumes.
pub fn may_release(claims: &[Claim]) -> Option<bool> {
    let ours = claims.iter().any(|claim| matches!(claim, Claim::Fenced | Claim::Unfenced));
    ours.then(|| claims.iter().all(|claim| *claim == Claim::Fenced))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const HEALTHY: Cluster = Cluster { nodes: 3, quiet: 1 };

    fn witness(node: &str, connected: Option<&[Transport]>) -> Witness {
        Witness { node: NodeName(node.into()), connected: connected.map(|list| list.iter().copied().collect()) }
    }

    fn suspect(witnesses: Vec<Witness>) -> Suspect {
        let lease_quiet = Some(Duration::from_secs(40));
        Suspect { quiet: Duration::from_secs(31), lease_quiet, volumes: [("v".to_string(), witnesses)].into() }
    }

    #[test]
    fn both_sides_have_to_agree() {
        let gone = suspect(vec![witness("b", Some(&[]))]);
        assert_eq!(judge(&gone, HEALTHY, PATIENCE), Verdict::Gone([("v".to_string(), 1)].into()));
        let connected = suspect(vec![witness("b", Some(&[])), witness("c", Some(&[Transport::Rdma]))]);
        assert_eq!(judge(&connected, HEALTHY, PATIENCE), Verdict::Connected { node: NodeName("c".into()) });
        let beats = Suspect { quiet: Duration::from_secs(29), ..gone.clone() };
        assert_eq!(judge(&beats, HEALTHY, PATIENCE), Verdict::Alive);
        let kubelet_lives = Suspect { lease_quiet: Some(Duration::from_secs(14)), ..gone.clone() };
        assert_eq!(judge(&kubelet_lives, HEALTHY, PATIENCE), Verdict::Alive);
        let without_kubelet = Suspect { lease_quiet: None, ..gone };
        assert!(matches!(judge(&without_kubelet, HEALTHY, PATIENCE), Verdict::Gone(_)));
    }

    #[test]
    fn silence_of_a_witness_is_no_testimony() {
        let asked = suspect(vec![witness("b", Some(&[])), witness("c", None)]);
        assert_eq!(judge(&asked, HEALTHY, PATIENCE), Verdict::Ask);
        assert_eq!(judge(&suspect(vec![]), HEALTHY, PATIENCE), Verdict::NoWitness);
    }

    #[test]
    fn a_volume_without_a_copy_elsewhere_stays() {
        let mut two = suspect(vec![witness("b", Some(&[]))]);
        two.volumes.insert("local".into(), vec![]);
        assert_eq!(judge(&two, HEALTHY, PATIENCE), Verdict::Gone([("v".to_string(), 1)].into()));
    }

    #[test]
    fn when_more_than_a_third_looks_gone_nothing_is_done() {
        let gone = suspect(vec![witness("b", Some(&[]))]);
        for (nodes, quiet, acts) in [(3, 1, true), (3, 2, false), (5, 2, false), (6, 2, true), (2, 1, false)] {
            let verdict = judge(&gone, Cluster { nodes, quiet }, PATIENCE);
            assert_eq!(verdict == Verdict::TooMany, !acts, "{quiet} of {nodes}");
        }
    }

    #[test]
    fn a_pod_with_anything_foreign_or_unfenced_is_left_alone() {
        use Claim::*;
        assert_eq!(may_release(&[Fenced, Fenced]), Some(true));
        assert_eq!(may_release(&[Fenced, Foreign]), Some(false));
        assert_eq!(may_release(&[Fenced, Unfenced]), Some(false));
        assert_eq!(may_release(&[Foreign]), None);
        assert_eq!(may_release(&[]), None);
    }
}
