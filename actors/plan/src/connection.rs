//! Connection: the host controllers to one replica's current export, over every transport both ends have.
//!
//! Called by the connection actor's shell on the consumer. It connects, and it removes what no array uses; a
//! controller whose device is a member of an array is never touched here: only the array plan may drop a member.

use crate::{Machine, Plan, Reason};
use meshstor_kernel::facts::{ConnectionFact, Listen, Transport};
use meshstor_kernel::id::{ExportKey, NodeName, ReplicaKey};
use meshstor_kernel::ops::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long an address that refused is left alone. Longer than one dial to a dead address takes (3.3 s measured), so
/// that a dead path cannot keep the node's one dialler busy.
pub const DIAL_AGAIN: Duration = Duration::from_secs(5);

/// The machine of one replica's connection.
pub struct Connection;

/// Which export to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionWish {
    /// The replica.
    pub replica: ReplicaKey,
    /// This node.
    pub me: NodeName,
    /// The usable export and its addresses; `None`: be connected to none.
    pub export: Option<(ExportKey, BTreeSet<Listen>)>,
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionLook {
    /// Controllers to any export of this replica.
    pub connections: BTreeMap<ExportKey, ConnectionFact>,
    /// Those whose head is a member of an array now.
    pub in_array: BTreeSet<ExportKey>,
    /// Transports this node has.
    pub transports: BTreeSet<Transport>,
    /// Addresses that refused less than [`DIAL_AGAIN`] ago.
    pub refused: BTreeSet<Listen>,
}

/// What is reported of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionReport {
    /// The export that is connected and live.
    pub live: Option<ExportKey>,
    /// Live paths by transport.
    pub transports: BTreeSet<Transport>,
    /// What it waits for.
    pub reason: Option<Reason>,
}

impl Machine for Connection {
    const KIND: &'static str = "connection";
    type Desired = ConnectionWish;
    type Fact = ConnectionLook;
    type Status = ConnectionReport;

    fn plan(desired: Option<&ConnectionWish>, look: &ConnectionLook) -> Plan<ConnectionReport> {
        let export = desired.and_then(|w| w.export.as_ref());
        let wanted = export.map(|(key, _)| *key);
        let stale = look.connections.keys().find(|k| Some(**k) != wanted && !look.in_array.contains(k));
        if let Some(key) = stale {
            let status = ConnectionReport { reason: Some(Reason::Releasing), ..report(wanted, look) };
            return Plan::step(Op::Disconnect { key: *key }, status);
        }
        let (Some(wish), Some((key, addresses))) = (desired, export) else { return Plan::rest(report(None, look)) };
        let connected = look.connections.get(key);
        let open = addresses
            .iter()
            .filter(|a| look.transports.contains(&a.transport))
            .filter(|a| !connected.is_some_and(|c| c.controllers.values().any(|controller| controller.address == **a)));
        let status = report(wanted, look);
        match open.clone().find(|a| !look.refused.contains(a)) {
            Some(address) => {
                let op = Op::Connect { key: *key, node: wish.me.clone(), address: address.clone() };
                Plan::step(op, status)
            }
            None if open.count() > 0 => Plan::look_in(status, DIAL_AGAIN),
            None => Plan::rest(status),
        }
    }
}

fn report(wanted: Option<ExportKey>, look: &ConnectionLook) -> ConnectionReport {
    let Some(key) = wanted else { return ConnectionReport::default() };
    let connection = look.connections.get(&key);
    let live = connection.is_some_and(|c| c.live() && c.head.is_some());
    let transports = connection
        .map(|c| c.controllers.values().filter(|x| x.state == "live").map(|x| x.address.transport).collect())
        .unwrap_or_default();
    let reason = (!live).then(|| Reason::AwaitingConnection { replicas: [key.replica.replica].into() });
    ConnectionReport { live: live.then_some(key), transports, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Step;
    use crate::testing::*;

    fn wish(addresses: &[Listen]) -> ConnectionWish {
        let key = ExportKey { replica: key(1), epoch: 3, generation: 0 };
        ConnectionWish {
            replica: crate::testing::key(1),
            me: NodeName("a".into()),
            export: Some((key, addresses.iter().cloned().collect())),
        }
    }

    fn both() -> BTreeSet<Transport> {
        [Transport::Rdma, Transport::Tcp].into()
    }

    fn dialled(plan: &Plan<ConnectionReport>) -> Option<Transport> {
        match &plan.next {
            Some(Step::Kernel(Op::Connect { address, .. })) => Some(address.transport),
            _ => None,
        }
    }

    #[test]
    fn rdma_is_dialled_first_and_a_refusal_does_not_keep_tcp_waiting() {
        let addresses = [listen(Transport::Rdma), listen(Transport::Tcp)];
        let mut look = ConnectionLook { transports: both(), ..ConnectionLook::default() };
        assert_eq!(dialled(&Connection::plan(Some(&wish(&addresses)), &look)), Some(Transport::Rdma));
        look.refused.insert(listen(Transport::Rdma));
        assert_eq!(dialled(&Connection::plan(Some(&wish(&addresses)), &look)), Some(Transport::Tcp));
        look.refused.insert(listen(Transport::Tcp));
        let idle = Connection::plan(Some(&wish(&addresses)), &look);
        assert!(idle.next.is_none() && idle.look_in == Some(DIAL_AGAIN));
    }

    #[test]
    fn a_node_without_rdma_dials_tcp_alone() {
        let look = ConnectionLook { transports: [Transport::Tcp].into(), ..ConnectionLook::default() };
        let addresses = [listen(Transport::Rdma), listen(Transport::Tcp)];
        assert_eq!(dialled(&Connection::plan(Some(&wish(&addresses)), &look)), Some(Transport::Tcp));
    }

    #[test]
    fn an_old_export_goes_unless_an_array_uses_it() {
        let old = ExportKey { replica: key(1), epoch: 2, generation: 0 };
        let mut look = ConnectionLook { transports: both(), ..ConnectionLook::default() };
        look.connections.insert(old, ConnectionFact::default());
        let plan = Connection::plan(Some(&wish(&[])), &look);
        assert_eq!(plan.next, Some(Step::Kernel(Op::Disconnect { key: old })));
        look.in_array.insert(old);
        assert!(Connection::plan(Some(&wish(&[])), &look).next.is_none());
        assert!(Connection::plan(None, &look).next.is_none());
    }
}
