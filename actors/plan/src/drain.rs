//! Whether a node may be drained: nobody's last complete copy may go with it (docs/operations/drain.md; K12).
//!
//! Called by the controller's guards. It says which volumes would be left without a complete copy that can be reached. It
//! never says that a node is needed for ever: what nobody uses does not hold a node back, nor does a volume of one copy that
//! was made never to follow its pod.

use meshstor_kernel::id::NodeName;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// A volume that was let go this lately may be on its way to another node: a drain moves the pod first.
pub const SETTLED: Duration = Duration::from_secs(60);

/// What matters of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Nodes of its complete copies.
    pub complete: BTreeSet<NodeName>,
    /// The node that uses it.
    pub consumer: Option<NodeName>,
    /// For how long nobody has used it, as far as the watcher knows.
    pub unused: Duration,
    /// It has one copy, and that never moves after its pod.
    pub pinned: bool,
}

/// A volume that holds a node back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endangered {
    /// Its name.
    pub volume: String,
    /// Who uses it; `None`: it was let go a moment ago.
    pub consumer: Option<NodeName>,
    /// Complete copies on nodes that are away already.
    pub away: BTreeSet<NodeName>,
}

impl fmt::Display for Endangered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}", self.volume)?;
        match &self.consumer {
            Some(node) => write!(f, " (used on {node})")?,
            None => write!(f, " (about to be used elsewhere)")?,
        }
        if self.away.is_empty() {
            return write!(f, " has no other complete copy");
        }
        let away: Vec<&str> = self.away.iter().map(|node| node.0.as_str()).collect();
        write!(f, " has its other complete copies on nodes that are away or may go at any time: {}", away.join(", "))
    }
}

/// The volumes that would be left without a complete copy if this node went as well. Empty: it may go.
pub fn endangered(node: &NodeName, volumes: &[Volume], away: &BTreeSet<NodeName>) -> Vec<Endangered> {
    let held = volumes.iter().filter(|volume| volume.complete.contains(node) && !volume.pinned);
    let used = held.filter(|volume| volume.consumer.is_some() || volume.unused < SETTLED);
    let alone = used.filter(|volume| volume.complete.iter().all(|other| other == node || away.contains(other)));
    alone
        .map(|volume| Endangered {
            volume: volume.name.clone(),
            consumer: volume.consumer.clone(),
            away: volume.complete.iter().filter(|other| *other != node).cloned().collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nodes: &[&str]) -> BTreeSet<NodeName> {
        nodes.iter().map(|node| NodeName(node.to_string())).collect()
    }

    fn volume(name: &str, complete: &[&str], consumer: Option<&str>) -> Volume {
        let consumer = consumer.map(|node| NodeName(node.into()));
        Volume { name: name.into(), complete: set(complete), consumer, unused: Duration::MAX, pinned: false }
    }

    fn held(volumes: &[Volume], away: &[&str]) -> Vec<String> {
        endangered(&NodeName("a".into()), volumes, &set(away)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_goes_while_every_used_volume_has_another_complete_copy_within_reach() {
        let volumes =
            [volume("x", &["a", "b"], Some("a")), volume("y", &["b"], Some("a")), volume("z", &[], Some("a"))];
        assert_eq!(held(&volumes, &[]), [""; 0]);
        assert_eq!(held(&volumes, &["c"]), [""; 0]);
        assert_eq!(
            held(&volumes, &["b"]),
            ["volume x (used on a) has its other complete copies on nodes that are away or may go at any time: b"]
        );
    }

    #[test]
    fn the_last_complete_copy_holds_its_node_back_wherever_it_is_used() {
        for consumer in ["a", "b"] {
            let held = held(&[volume("x", &["a"], Some(consumer))], &[]);
            assert_eq!(held, [format!("volume x (used on {consumer}) has no other complete copy")]);
        }
    }

    #[test]
    fn what_nobody_uses_holds_nobody_back_once_it_is_not_on_its_way() {
        let mut unused = volume("x", &["a"], None);
        assert!(held(&[unused.clone()], &[]).is_empty());
        unused.unused = SETTLED - Duration::from_secs(1);
        assert_eq!(held(&[unused], &[]), ["volume x (about to be used elsewhere) has no other complete copy"]);
    }

    #[test]
    fn a_single_copy_that_never_moves_is_left_behind() {
        let mut pinned = volume("x", &["a"], Some("b"));
        pinned.pinned = true;
        assert!(held(&[pinned], &[]).is_empty());
    }
}
