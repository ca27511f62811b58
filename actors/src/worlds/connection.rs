//! The connection to one replica: the host's controllers, which of them an array uses, and which addresses have just
//! refused (the one thing no kernel remembers).

use crate::env::Env;
use crate::events;
use crate::failure::Failure;
use crate::shell::World;
use meshstor_kernel::facts::{ArrayFact, ConnectionFact, Listen, Transport};
use meshstor_kernel::id::{ExportKey, ReplicaKey};
use meshstor_kernel::ops::{Changed, Op};
use meshstor_plan::Step;
use meshstor_plan::connection::{Connection, ConnectionLook, ConnectionWish, DIAL_AGAIN};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::time::Instant;

/// The world of one replica's connection.
pub struct ConnectionWorld {
    env: Rc<Env>,
    key: ReplicaKey,
    refusals: RefCell<BTreeMap<Listen, Instant>>,
    paths: Paths,
}

/// Live paths as last told: people and dashboards hear of changes only.
struct Paths {
    key: String,
    told: RefCell<BTreeMap<Transport, usize>>,
}

impl Paths {
    fn see(&self, connections: &BTreeMap<ExportKey, ConnectionFact>) {
        let controllers = connections.values().flat_map(|connection| connection.controllers.values());
        let mut live = BTreeMap::new();
        for controller in controllers.filter(|controller| controller.state == "live") {
            *live.entry(controller.address.transport).or_default() += 1;
        }
        self.tell(live);
    }

    fn tell(&self, now: BTreeMap<Transport, usize>) {
        let before = self.told.replace(now.clone());
        for transport in [Transport::Rdma, Transport::Tcp] {
            let count = |map: &BTreeMap<Transport, usize>| map.get(&transport).copied().unwrap_or(0);
            let (before, now) = (count(&before), count(&now));
            if before != now {
                events::paths(&self.key, transport, before, now);
            }
        }
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.tell(BTreeMap::new());
    }
}

impl ConnectionWorld {
    /// To this replica.
    pub fn new(env: Rc<Env>, key: ReplicaKey) -> Self {
        let paths = Paths { key: key.to_string(), told: RefCell::default() };
        ConnectionWorld { env, key, refusals: RefCell::default(), paths }
    }
}

/// Whether an array uses the head of a connection.
pub fn in_array(array: Option<&ArrayFact>, connection: &ConnectionFact) -> bool {
    let head = connection.head.as_ref();
    head.is_some_and(|head| array.is_some_and(|array| array.members.contains_key(&head.name)))
}

impl World<Connection> for ConnectionWorld {
    async fn observe(&self, _: Option<&ConnectionWish>) -> Result<ConnectionLook, Failure> {
        let volume = self.key.volume;
        let mut connections = self.env.kernel.connections(volume).await?;
        connections.retain(|key, _| key.replica == self.key);
        self.paths.see(&connections);
        // The array last: a member that joined meanwhile must not look unused.
        let array = self.env.kernel.array(volume).await?;
        let used = connections.iter().filter(|(_, connection)| in_array(array.as_ref(), connection));
        let in_array = used.map(|(key, _)| *key).collect();
        self.refusals.borrow_mut().retain(|_, at| at.elapsed() < DIAL_AGAIN);
        let refused = self.refusals.borrow().keys().cloned().collect();
        Ok(ConnectionLook { connections, in_array, transports: self.env.transports().await?, refused })
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        let result = self.env.apply_to_kernel(step).await;
        if let (Step::Kernel(Op::Connect { address, .. }), Err(_)) = (step, &result) {
            self.refusals.borrow_mut().insert(address.clone(), Instant::now());
        }
        result
    }
}
