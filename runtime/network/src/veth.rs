//! The netlink requests that connect one pod, built from its [`Endpoint`]. Pure: nothing is sent here.
//!
//! ```text
//! pod:  eth0      ADDR/32, default via 169.254.1.1 onlink, 169.254.1.1 -> host MAC permanent
//! host: PREFIXn   ADDR/32 scope link,                      ADDR -> pod MAC permanent, forwarding on
//! ```
//! The same with /128 and fe80::1 for IPv6. ARP and NDP are not used: both MACs follow from
//! the address, so the neighbour entries are permanent, which also exempts them from the
//! `gc_thresh` limits. Neither end has link-local addresses: nothing needs them, and each costs timers.
//! Invariant: everything but [`create`] replaces what is there, so that it may be repeated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Request;

/// The pod's interface.
pub(super) const POD_INTERFACE: &str = "eth0";
/// The pod's gateway. No interface has this address.
pub(super) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// `lo` has this index in every network namespace. Source: net/loopback.c, `LOOPBACK_IFINDEX`.
const LOOPBACK_INDEX: u32 = 1;
// Source: linux/if_link.h and linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ACCEPT_SOURCE_ROUTE: u16 = 9;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;

/// The parameters of one pod's veth; all follow from its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host_interface: String,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Option<Ipv6Addr>,
    /// Whether this kernel has IPv6.
    pub(super) kernel_has_v6: bool,
    /// Whether a host port needs packets from the node's loopback addresses. [`super::builtin`] makes sure
    /// that the pod cannot send to those addresses.
    pub(super) serves_loopback: bool,
}

impl Endpoint {
    /// The addresses, IPv4 first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(self.v4))
            .chain(self.v6.map(IpAddr::V6))
            .collect()
    }

    fn pod_mac(&self) -> [u8; 6] {
        mac(0x0e, self.v4)
    }

    /// The MAC of the host's end.
    pub(super) fn host_mac(&self) -> [u8; 6] {
        host_mac(self.v4)
    }
}

/// The MAC of the host's end of the pod with address `v4`. Locally administered; it marks an interface as ours.
pub(super) fn host_mac(v4: Ipv4Addr) -> [u8; 6] {
    mac(0x0a, v4)
}

fn mac(first: u8, address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [first, 0xc0, a, b, c, d]
}

/// Brings `lo` up.
pub(super) fn loopback_up() -> Request {
    up(LOOPBACK_INDEX, "lo", LinkFlags::empty())
}

/// Creates both ends, the pod's directly in its namespace. Fails if either name is taken.
pub(super) fn create(endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Request {
    // One queue: by default there is one a CPU, and a veth uses them only for XDP.
    let end = |name: &str, mac: [u8; 6]| {
        let name = LinkAttribute::IfName(name.to_owned());
        vec![
            name,
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ]
    };
    let mut peer = LinkMessage::default();
    peer.attributes = end(POD_INTERFACE, endpoint.pod_mac());
    peer.attributes
        .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut message = LinkMessage::default();
    message.attributes = end(&endpoint.host_interface, endpoint.host_mac());
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request {
        operation: "create veth",
        object: endpoint.host_interface.clone(),
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// Configures the host's end, whose index is `index`. Strict rp_filter is the second wall behind the table in
/// [`super::builtin`]: it holds while somebody has flushed the ruleset, and where the kernel has no nftables. Without ARP the
/// node learns nothing from the pod, and has no neighbour entries for what the pod claims to be.
pub(super) fn configure_host(endpoint: &Endpoint, index: u32) -> Vec<Request> {
    let mut switches = vec![
        switch(IPV4_DEVCONF_FORWARDING, true),
        switch(IPV4_DEVCONF_RP_FILTER, true),
        switch(IPV4_DEVCONF_ACCEPT_REDIRECTS, false),
        switch(IPV4_DEVCONF_ACCEPT_SOURCE_ROUTE, false),
    ];
    if endpoint.serves_loopback {
        switches.push(switch(IPV4_DEVCONF_ROUTE_LOCALNET, true));
    }
    let mut requests = vec![
        settings(endpoint, index, Some(inet_conf(&switches))),
        up(index, &endpoint.host_interface, LinkFlags::Noarp),
    ];
    for address in endpoint.addresses() {
        requests.push(host_route(address, index));
        requests.push(neighbour(address, endpoint.pod_mac(), index));
    }
    requests
}

/// Stops routing packets with loopback addresses.
pub(super) fn close_loopback(index: u32, name: &str) -> Request {
    let off = switch(IPV4_DEVCONF_ROUTE_LOCALNET, false);
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![inet_conf(&[off])]));
    set_link("close the node's loopback to", name, message)
}

fn switch(setting: u16, is_on: bool) -> DefaultNla {
    DefaultNla::new(setting, u32::from(is_on).to_ne_bytes().to_vec())
}

fn inet_conf(switches: &[DefaultNla]) -> AfSpecUnspec {
    let mut nested = vec![0; switches.buffer_len()];
    switches.emit(&mut nested);
    let conf = DefaultNla::new(IFLA_INET_CONF, nested);
    AfSpecUnspec::Inet(vec![AfSpecInet::Other(conf)])
}

/// Configures the pod's end, whose index in the pod's namespace is `index`. Without ARP, as the other end: the kernel's table of
/// neighbours is one for all network namespaces, and what a pod would have it look up there would be kept for seconds.
pub(super) fn configure_pod(endpoint: &Endpoint, index: u32) -> Vec<Request> {
    let mut requests = Vec::new();
    if endpoint.kernel_has_v6 {
        requests.push(settings(endpoint, index, None));
    }
    requests.push(up(index, POD_INTERFACE, LinkFlags::Noarp));
    for address in endpoint.addresses() {
        let gateway = match address {
            IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
            IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
        };
        requests.push(pod_address(address, index));
        requests.push(neighbour(gateway, endpoint.host_mac(), index));
        requests.push(default_route(gateway, index));
    }
    requests
}

/// Requests interface `index` and ignores the answer: before it answers, the kernel completes a pending
/// change of carrier, which it would otherwise complete later, dropping every packet until then
/// (`rtnl_getlink`, Linux 6.8; older kernels are only late by some microseconds).
pub(super) fn sync_carrier(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let message = RouteNetlinkMessage::GetLink(message);
    Request {
        operation: "sync the carrier of",
        object: name.to_owned(),
        message,
        flags: 0,
    }
}

/// Puts interface `index` into `group`, for [`delete_group`].
pub(super) fn set_group(index: u32, name: &str, group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Group(group));
    set_link("mark for deletion", name, message)
}

/// Deletes all interfaces of `group`, waiting for the kernel once.
pub(super) fn delete_group(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    let message = RouteNetlinkMessage::DelLink(message);
    Request {
        operation: "delete interfaces",
        object: format!("of group {group}"),
        message,
        flags: 0,
    }
}

/// Deletes one interface; the kernel takes some 40 ms.
pub(super) fn delete(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let message = RouteNetlinkMessage::DelLink(message);
    Request {
        operation: "delete veth",
        object: name.to_owned(),
        message,
        flags: 0,
    }
}

/// Changes what `message` says of interface `name`.
pub(super) fn set_link(operation: &'static str, name: &str, message: LinkMessage) -> Request {
    Request {
        operation,
        object: name.to_owned(),
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

/// Brings interface `index` up, and sets the flags `others`, too.
pub(super) fn up(index: u32, name: &str, others: LinkFlags) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | others;
    message.header.change_mask = LinkFlags::Up | others;
    set_link("bring up", name, message)
}

/// Takes interface `index` down, and with it the routes and neighbours behind it.
pub(super) fn down(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    set_link("take down", name, message)
}

/// Settings by address family. They must precede [`up`]: link-local addresses come with it.
fn settings(endpoint: &Endpoint, index: u32, inet: Option<AfSpecUnspec>) -> Request {
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let families = inet
        .into_iter()
        .chain(endpoint.kernel_has_v6.then_some(inet6))
        .collect();
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(families));
    set_link(
        "set forwarding of the veth",
        &endpoint.host_interface,
        message,
    )
}

fn family(address: IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}

fn pod_address(address: IpAddr, index: u32) -> Request {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = family(address);
    message.header.index = index;
    message.attributes.extend([
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ]);
    if address.is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    let message = RouteNetlinkMessage::NewAddress(message);
    Request {
        operation: "add pod address",
        object: address.to_string(),
        message,
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

fn neighbour(address: IpAddr, mac: [u8; 6], index: u32) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address).0;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.extend([
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ]);
    let message = RouteNetlinkMessage::NewNeighbour(message);
    Request {
        operation: "add neighbour",
        object: address.to_string(),
        message,
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

fn host_route(address: IpAddr, index: u32) -> Request {
    let mut message = route(address, index);
    message.header.destination_prefix_length = family(address).1;
    message.header.scope = RouteScope::Link;
    message
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    add_route("add route to pod", address, message)
}

fn default_route(gateway: IpAddr, index: u32) -> Request {
    let mut message = route(gateway, index);
    message.header.flags = RouteFlags::Onlink;
    message
        .attributes
        .push(RouteAttribute::Gateway(gateway.into()));
    add_route("add default route via", gateway, message)
}

fn route(address: IpAddr, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address).0;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn add_route(operation: &'static str, address: IpAddr, message: RouteMessage) -> Request {
    let message = RouteNetlinkMessage::NewRoute(message);
    Request {
        operation,
        object: address.to_string(),
        message,
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}
