//! Who is connected to our exports: the sockets of their TCP ports, the connection ids of their RDMA ports.
//!
//! Called by `observe`. nvmet itself tells of its controllers only in debugfs, which Debian's kernels leave out (6.12, 6.18). What
//! cannot be looked at counts as connected: the answer may bring a node's volumes to another node.

use crate::facts::{Listen, Transport};
use crate::linux::attr;
use crate::linux::netlink;
use crate::linux::root::Root;
use std::collections::BTreeSet;

/// `TCP_ESTABLISHED` (include/net/tcp_states.h), as `/proc/net/tcp` shows it.
const ESTABLISHED: &str = "01";

/// Local ports with a connection; `None`: it could not be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Peers {
    tcp: Option<BTreeSet<u16>>,
    rdma: Option<BTreeSet<u16>>,
}

/// All connections of this node, whoever's they are.
pub(super) fn look(root: &Root) -> Peers {
    let tables = ["net/tcp", "net/tcp6"].map(|table| attr::read_opt(&root.proc.join(table)));
    // A kernel without IPv6 has no second table.
    let tcp = tables[0].as_ref().map(|_| tables.iter().flatten().flat_map(|table| established(table)).collect());
    Peers { tcp, rdma: netlink::rdma_connections() }
}

impl Peers {
    /// Transports over which some of these ports are connected.
    pub(super) fn to(&self, ports: &BTreeSet<Listen>) -> BTreeSet<Transport> {
        let connected = |listen: &&Listen| {
            let seen = match listen.transport {
                Transport::Tcp => &self.tcp,
                Transport::Rdma => &self.rdma,
            };
            seen.as_ref().is_none_or(|seen| seen.contains(&listen.port))
        };
        ports.iter().filter(connected).map(|listen| listen.transport).collect()
    }
}

/// Local ports of established connections, from the text of `/proc/net/tcp`: `0: 0B4D0A0A:4E20 0C4D0A0A:C350 01 …`.
fn established(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let port = local.rsplit(':').next()?;
        (state == ESTABLISHED).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
        0: 0B4D000A:4E20 00000000:0000 0A 00000000:00000000\n   \
        1: 0B4D000A:4E20 0C4D000A:C350 01 00000000:00000000\n   \
        2: 0B4D000A:4E21 0C4D000A:C351 06 00000000:00000000\n";

    fn listen(transport: Transport, port: u16) -> Listen {
        Listen { transport, address: "10.0.77.11".parse().unwrap(), port }
    }

    #[test]
    fn only_established_connections_count() {
        assert_eq!(established(TABLE).collect::<Vec<_>>(), [20000]);
        let peers = Peers { tcp: Some(established(TABLE).collect()), rdma: Some(BTreeSet::new()) };
        let of = |port| peers.to(&BTreeSet::from([listen(Transport::Tcp, port), listen(Transport::Rdma, port)]));
        assert_eq!(of(20000), BTreeSet::from([Transport::Tcp]));
        assert_eq!(of(20001), BTreeSet::new());
    }

    #[test]
    fn what_cannot_be_looked_at_counts_as_connected() {
        let ports = BTreeSet::from([listen(Transport::Tcp, 1), listen(Transport::Rdma, 2)]);
        assert_eq!(Peers::default().to(&ports), BTreeSet::from([Transport::Tcp, Transport::Rdma]));
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(look(&Root::at(temp.path())).tcp, None);
    }
}
