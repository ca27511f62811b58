//! The node's network as exports see it: addresses with their devices (rtnetlink), RDMA ports (RDMA netlink), hints.
//!
//! Asked by `node.rs`, started by the seam. Whatever fails about RDMA means "no RDMA here"; it is never fatal.

use crate::error::{KernelError, Result};
use crate::facts::Transport;
use crate::hint::Hint;
use futures::{StreamExt, TryStreamExt};
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::genl::{AttrTypeBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tokio::sync::broadcast;

/// Devices of container networks: their addresses are of no use to another node. By name, because a plugin's bridge
/// and a node's own bridge are of one kind.
const CONTAINER_NETS: [&str; 12] =
    ["cni", "docker", "flannel", "cali", "cilium", "lxc", "veth", "virbr", "kube", "nodelocaldns", "tunl", "weave"];

// ------------------------------------------------------------------------------------------ addresses

/// Addresses that exports may use, each with its device; RDMA ones where an RDMA port is active on that device.
pub async fn addresses() -> Result<BTreeSet<(Transport, IpAddr, String)>> {
    let fail = |e: rtnetlink::Error| KernelError::retry("list addresses", "rtnetlink", e.to_string());
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| KernelError::io("open", "rtnetlink", &e))?;
    let connection = tokio::spawn(connection);
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(fail)?;
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(fail)?;
    connection.abort();
    let names: BTreeMap<u32, String> = links.iter().filter_map(usable_link).collect();
    let rdma = tokio::task::spawn_blocking(rdma_devices).await.unwrap_or_default();
    let mut found = BTreeSet::new();
    for message in &addresses {
        let Some(name) = names.get(&message.header.index) else { continue };
        let Some(ip) = usable_address(message) else { continue };
        found.insert((Transport::Tcp, ip, name.clone()));
        if rdma.contains(name) {
            found.insert((Transport::Rdma, ip, name.clone()));
        }
    }
    Ok(found)
}

fn usable_link(link: &rtnetlink::packet_route::link::LinkMessage) -> Option<(u32, String)> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let up = link.header.flags.contains(LinkFlags::Up) && link.header.flags.contains(LinkFlags::LowerUp);
    let virtual_kind = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| match info {
            LinkInfo::Kind(kind) => !carries_nodes(kind),
            _ => false,
        }),
        _ => false,
    });
    let container = CONTAINER_NETS.iter().any(|prefix| name.starts_with(prefix));
    let usable = up && !link.header.flags.contains(LinkFlags::Loopback) && !virtual_kind && !container;
    usable.then_some((link.header.index, name))
}

/// Kinds of virtual device that may lead to other nodes. A physical device has no kind at all.
fn carries_nodes(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Bond | InfoKind::Vlan | InfoKind::Bridge | InfoKind::MacVlan | InfoKind::IpVlan | InfoKind::Ipoib
    ) || matches!(kind, InfoKind::Other(name) if name == "team")
}

fn usable_address(message: &rtnetlink::packet_route::address::AddressMessage) -> Option<IpAddr> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // Not yet or no longer good for new connections.
    let passing = AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Dadfailed;
    if flags.intersects(passing) {
        return None;
    }
    // On point-to-point links `Address` is the peer's.
    local.or(address)
}

/// Turns changes of links and addresses into hints, for ever. Spawned once.
pub async fn watch(hints: broadcast::Sender<Hint>) {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _handle, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
        Ok(parts) => parts,
        Err(error) => {
            tracing::error!(%error, "changes of the network are seen at the periodic looks only");
            return;
        }
    };
    tokio::spawn(connection);
    while messages.next().await.is_some() {
        let _ = hints.send(Hint::Network);
    }
}

// ----------------------------------------------------------------------------------------------- RDMA

/// `RDMA_NL_NLDEV` << 10 in a message type (include/uapi/rdma/rdma_netlink.h).
const NLDEV: u16 = 5 << 10;
const CMD_GET: u16 = 1;
const CMD_PORT_GET: u16 = 5;
const ATTR_DEV_INDEX: u16 = 1;
const ATTR_PORT_STATE: u16 = 12;
const ATTR_NDEV_NAME: u16 = 51;
const CMD_RES_CM_ID_GET: u16 = 11;
const ATTR_RES_STATE: u16 = 27;
const ATTR_RES_CM_ID: u16 = 30;
const ATTR_RES_CM_ID_ENTRY: u16 = 31;
const ATTR_RES_SRC_ADDR: u16 = 33;
/// `RDMA_CM_CONNECT` (include/rdma/rdma_cm.h, `enum rdma_cm_state`): asked for or up.
const CONNECTED: u8 = 5;
/// `IB_PORT_ACTIVE` (ib_verbs.h).
const ACTIVE: u8 = 4;

type Attributes = GenlBuffer<u16, Buffer>;

/// Network devices with an active RDMA port. Empty where the kernel or the node has no RDMA. Blocking.
pub fn rdma_devices() -> BTreeSet<String> {
    rdma_ports().unwrap_or_else(|error| {
        tracing::debug!(error, "no RDMA on this node");
        BTreeSet::new()
    })
}

fn rdma_ports() -> Result<BTreeSet<String>, String> {
    // Without RDMA in the kernel the family does not exist: EPROTONOSUPPORT.
    let socket = NlSocketHandle::connect(NlFamily::Rdma, None, Groups::empty()).map_err(|e| e.to_string())?;
    let mut found = BTreeSet::new();
    for device in dump(&socket, CMD_GET, GenlBuffer::new())? {
        let index = attribute(&device, ATTR_DEV_INDEX).ok_or("a device without an index")?;
        for port in dump(&socket, CMD_PORT_GET, std::iter::once(number(ATTR_DEV_INDEX, index)?).collect())? {
            let active = attribute(&port, ATTR_PORT_STATE).is_some_and(|state| state.first() == Some(&ACTIVE));
            let name = attribute(&port, ATTR_NDEV_NAME).map(text).filter(|_| active);
            found.extend(name);
        }
    }
    Ok(found)
}

/// Local ports of RDMA connections that are up. `None` where it cannot be asked; empty where there is no RDMA. Blocking.
pub fn rdma_connections() -> Option<BTreeSet<u16>> {
    // Without RDMA in the kernel the family does not exist.
    let Ok(socket) = NlSocketHandle::connect(NlFamily::Rdma, None, Groups::empty()) else {
        return Some(BTreeSet::new());
    };
    connection_ports(&socket).inspect_err(|error| tracing::debug!(error, "RDMA connections could not be listed")).ok()
}

fn connection_ports(socket: &NlSocketHandle) -> Result<BTreeSet<u16>, String> {
    let mut ports = BTreeSet::new();
    for device in dump(socket, CMD_GET, GenlBuffer::new())? {
        let index = attribute(&device, ATTR_DEV_INDEX).ok_or("a device without an index")?;
        for answer in dump(socket, CMD_RES_CM_ID_GET, std::iter::once(number(ATTR_DEV_INDEX, index)?).collect())? {
            let Some(list) = answer.iter().find(|a| *a.nla_type().nla_type() == ATTR_RES_CM_ID) else { continue };
            let entries = list.get_attr_handle::<u16>().map_err(|e| e.to_string())?;
            for entry in entries.iter().filter(|entry| *entry.nla_type().nla_type() == ATTR_RES_CM_ID_ENTRY) {
                let fields = entry.get_attr_handle::<u16>().map_err(|e| e.to_string())?;
                let field = |wanted: u16| {
                    let found = fields.iter().find(|field| *field.nla_type().nla_type() == wanted)?;
                    Some(found.nla_payload().as_ref().to_vec())
                };
                let up = field(ATTR_RES_STATE).is_some_and(|state| state.first() == Some(&CONNECTED));
                ports.extend(field(ATTR_RES_SRC_ADDR).filter(|_| up).and_then(|address| port_of(&address)));
            }
        }
    }
    Ok(ports)
}

/// The port of a `sockaddr_in` or `sockaddr_in6`: both have it behind the family, in network order.
fn port_of(address: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*address.get(2)?, *address.get(3)?]))
}

fn number(attribute: u16, payload: Vec<u8>) -> Result<Nlattr<u16, Buffer>, String> {
    NlattrBuilder::default()
        .nla_type(AttrTypeBuilder::default().nla_type(attribute).build().map_err(|e| e.to_string())?)
        .nla_payload(payload)
        .build()
        .map_err(|e| e.to_string())
}

fn dump(socket: &NlSocketHandle, command: u16, payload: Attributes) -> Result<Vec<Attributes>, String> {
    let message = NlmsghdrBuilder::default()
        .nl_type(NLDEV + command)
        .nl_flags(NlmF::REQUEST | NlmF::DUMP)
        .nl_payload(NlPayload::Payload(payload))
        .build()
        .map_err(|e| e.to_string())?;
    socket.send(&message).map_err(|e| e.to_string())?;
    let mut answers = Vec::new();
    loop {
        let (messages, _) = socket.recv_all::<u16, Attributes>().map_err(|e| e.to_string())?;
        if messages.is_empty() {
            return Err("the socket closed in the middle of a dump".into());
        }
        for mut message in messages {
            match end_of(&mut message) {
                End::Done => return Ok(answers),
                End::Error(text) => return Err(text),
                End::No => {}
            }
            answers.extend(message.get_payload().cloned());
        }
    }
}

enum End {
    No,
    Done,
    Error(String),
}

/// `NLMSG_DONE` and `NLMSG_ERROR` (netlink(7)).
fn end_of(message: &mut Nlmsghdr<u16, Attributes>) -> End {
    let kind = *message.nl_type();
    match (kind, message.get_err()) {
        (_, Some(error)) => End::Error(format!("{error:?}")),
        (3, None) => End::Done,
        (2, None) => End::Error("the kernel refused the dump".into()),
        _ => End::No,
    }
}

fn attribute(attributes: &Attributes, wanted: u16) -> Option<Vec<u8>> {
    let found = attributes.iter().find(|attribute| *attribute.nla_type().nla_type() == wanted)?;
    Some(found.nla_payload().as_ref().to_vec())
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_an_address_is_in_network_order() {
        let mut address = [0u8; 128];
        address[..4].copy_from_slice(&[2, 0, 0x4e, 0x20]);
        assert_eq!(port_of(&address), Some(20_000));
        assert_eq!(port_of(&address[..3]), None);
    }

    #[test]
    fn a_node_without_rdma_has_no_rdma_devices() {
        // The build machine's kernel has none; a developer's may: only the absence of a failure is checked.
        let _ = rdma_devices();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn addresses_are_never_of_the_loopback() {
        match addresses().await {
            Ok(found) => assert!(found.iter().all(|(_, ip, name)| !ip.is_loopback() && name != "lo"), "{found:?}"),
            Err(error) => assert_eq!(error.path, "rtnetlink"),
        }
    }
}
