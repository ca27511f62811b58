//! What all actors of one node share: its kernel, the API server, who it is, and a book of names.
//!
//! Made once by the root actor, handed to every world as an `Rc`. The book and the caches hold what was read, for
//! routing and for a life without the API server; no destructive step and no fence is ever decided from them.

use crate::api::Server;
use crate::clock::Clock;
use crate::failure::Failure;
use crate::messages::Poke;
use crate::node::NodeConfig;
use actix::Recipient;
use meshstor_api::convert::volume_record;
use meshstor_api::{MeshStorNode, MeshStorVolume};
use meshstor_kernel::SharedKernel;
use meshstor_kernel::facts::{NodeFact, Transport};
use meshstor_kernel::id::{ClusterId, NodeName, ReplicaKey, VolumeId};
use meshstor_kernel::ops::Changed;
use meshstor_plan::Step;
use meshstor_plan::array::{RecordLook, SyncSpeeds};
use meshstor_plan::record::VolumeRecord;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

/// Shared by the actors of one node.
pub struct Env {
    /// The node's kernel.
    pub kernel: SharedKernel,
    /// The API server.
    pub server: Server,
    /// The node's name.
    pub me: NodeName,
    /// The cluster.
    pub cluster: ClusterId,
    /// Wall time for objects.
    pub clock: Clock,
    /// How fast resyncs of this node's arrays run.
    pub speeds: SyncSpeeds,
    /// Drives keep their volatile caches on.
    pub keep_caches: bool,
    /// Told when a record was read that differs from the one before.
    pub poke: Recipient<Poke>,
    /// Who is called what.
    pub book: RefCell<Book>,
    node: RefCell<Option<NodeFact>>,
    /// Addresses that people gave this node, by transport; empty: those its kernel has.
    pub given_addresses: RefCell<BTreeSet<(Transport, IpAddr)>>,
    /// Service numbers that are recorded as quarantined; `None`: nobody has read yet which these are.
    quarantined: RefCell<Option<BTreeSet<u16>>>,
    /// Service numbers whose last consumer is known to have let go: they need no quarantine.
    pub let_go_ports: RefCell<BTreeSet<u16>>,
    records: RefCell<BTreeMap<VolumeId, VolumeRecord>>,
}

/// Names of objects by identity.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// Volumes' objects.
    pub volumes: BTreeMap<VolumeId, String>,
    /// Replicas' objects, of replicas on this node.
    pub replicas: BTreeMap<ReplicaKey, String>,
    /// Replicas whose partition was found on a drive of this node.
    pub found: BTreeSet<ReplicaKey>,
}

impl Book {
    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Option<VolumeId> {
        self.volumes.iter().find(|(_, known)| *known == name).map(|(volume, _)| *volume)
    }

    /// Replicas of a volume on this node, by object or by partition.
    pub fn local(&self, volume: VolumeId) -> BTreeSet<ReplicaKey> {
        self.replicas.keys().chain(&self.found).filter(|key| key.volume == volume).copied().collect()
    }
}

/// A volume's record together with the object it was read from, for compare-and-swaps.
pub struct Reading {
    /// The record.
    pub look: RecordLook,
    /// The object.
    pub stored: Option<MeshStorVolume>,
}

impl Env {
    /// The shared part of a node agent.
    pub fn new(kernel: SharedKernel, client: kube::Client, config: NodeConfig, poke: Recipient<Poke>) -> Rc<Env> {
        let NodeConfig { node: me, cluster, fabric: _, clock, speeds, keep_caches } = config;
        Rc::new(Env {
            kernel,
            server: Server::new(client),
            me,
            cluster,
            clock,
            speeds,
            keep_caches,
            poke,
            book: RefCell::default(),
            node: RefCell::default(),
            given_addresses: RefCell::default(),
            quarantined: RefCell::default(),
            let_go_ports: RefCell::default(),
            records: RefCell::default(),
        })
    }

    /// The node as last seen; looked at now if it never was.
    pub async fn node(&self) -> Result<NodeFact, Failure> {
        if let Some(fact) = self.node.borrow().clone() {
            return Ok(fact);
        }
        self.look_at_node().await
    }

    /// Looks at the node again.
    pub async fn look_at_node(&self) -> Result<NodeFact, Failure> {
        let fact = self.kernel.node().await?;
        self.node.replace(Some(fact.clone()));
        Ok(fact)
    }

    /// Addresses that exports listen on: those that people gave, else those that the kernel has.
    pub async fn addresses(&self) -> Result<BTreeSet<(Transport, IpAddr)>, Failure> {
        let given = self.given_addresses.borrow().clone();
        if !given.is_empty() {
            return Ok(given);
        }
        Ok(self.node().await?.addresses.iter().map(|(transport, address, _)| (*transport, *address)).collect())
    }

    /// Transports that this node can dial out on.
    pub async fn transports(&self) -> Result<BTreeSet<Transport>, Failure> {
        Ok(self.node().await?.addresses.iter().map(|(transport, ..)| *transport).collect())
    }

    /// Service numbers whose dead exports may be removed: recorded as quarantined, or let go. Read from this node's
    /// object when nobody has yet: a number must not be chosen before that is known.
    pub async fn resting_ports(&self) -> Result<BTreeSet<u16>, Failure> {
        if self.quarantined.borrow().is_none() {
            let object: Option<MeshStorNode> = self.server.get(&self.me.0).await?;
            let status = object.and_then(|object| object.status).unwrap_or_default();
            let ports = status.quarantined_ports.iter().map(|entry| entry.port).collect();
            self.quarantined.borrow_mut().get_or_insert(ports);
        }
        let mut ports = self.quarantined.borrow().clone().unwrap_or_default();
        ports.extend(self.let_go_ports.borrow().iter());
        Ok(ports)
    }

    /// This node's object says that these are quarantined. Returns whether that is new.
    pub fn note_quarantine(&self, ports: BTreeSet<u16>) -> bool {
        let changed = self.quarantined.borrow().as_ref() != Some(&ports);
        self.quarantined.replace(Some(ports));
        changed
    }

    /// Reads a volume's record by quorum.
    pub async fn read_record(&self, volume: VolumeId) -> Reading {
        let known = self.book.borrow().volumes.get(&volume).cloned();
        let name = match known {
            Some(name) => name,
            // An array found without a mount does not say its name (simulator, seed 1353).
            None => match self.server.name_of(volume).await {
                Ok(Some(name)) => self.book.borrow_mut().volumes.entry(volume).or_insert(name).clone(),
                Ok(None) => return Reading { look: RecordLook::Missing, stored: None },
                Err(_unreachable) => return Reading { look: RecordLook::Unreachable, stored: None },
            },
        };
        match futures::join!(self.server.get::<MeshStorVolume>(&name), self.server.replicas_of(&name)) {
            (Ok(None), _) => Reading { look: RecordLook::Missing, stored: None },
            (Ok(Some(stored)), Ok(replicas)) => match volume_record(&stored, &replicas, self.cluster) {
                // Another volume under the name of the old one: the old one's object is gone.
                Ok(record) if record.volume != volume => Reading { look: RecordLook::Missing, stored: None },
                Ok(record) => {
                    self.note(&record);
                    Reading { look: RecordLook::Fresh(Box::new(record)), stored: Some(stored) }
                }
                Err(garbage) => {
                    tracing::error!(%volume, %garbage, "the record cannot be understood: treated as unreadable");
                    Reading { look: RecordLook::Unreachable, stored: None }
                }
            },
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%volume, %error, "the record could not be read");
                Reading { look: RecordLook::Unreachable, stored: None }
            }
        }
    }

    fn note(&self, record: &VolumeRecord) {
        let changed = self.records.borrow().get(&record.volume) != Some(record);
        if changed {
            self.records.borrow_mut().insert(record.volume, record.clone());
            // A full mailbox makes the root look at everything anyway.
            let _ = self.poke.try_send(Poke);
        }
    }

    /// The record as last read: for routing and reports, never for a decision that must be right.
    pub fn last_record(&self, volume: VolumeId) -> Option<VolumeRecord> {
        self.records.borrow().get(&volume).cloned()
    }

    /// Forgets a volume that this node has let go.
    pub fn forget(&self, volume: VolumeId) {
        self.records.borrow_mut().remove(&volume);
    }

    /// Does one step of a kind that never writes the record.
    pub async fn apply_to_kernel(&self, step: &Step) -> Result<Changed, Failure> {
        match step {
            Step::Kernel(op) => Ok(self.kernel.apply(op).await?),
            Step::Record(op) => {
                Err(Failure::Refused { what: op.to_string(), error: "not this kind's to write".into() })
            }
        }
    }
}
