//! Enforces a pod's [`Egress`] by nftables in its network namespace: one table with an output chain, and one before it.
//!
//! ```text
//! from 127.0.0.0/8 to it, from ::1 to it      not tracked
//!
//! answers, neighbour discovery                accept
//! a source that is not the pod's own          drop
//! a connection beyond the pod's limit         drop
//! loopback                                    accept
//! DNS to the pod's servers                    accept if a host is listed by name
//! addresses that are always denied            reject, also where an IPv6 address embeds one
//! listed addresses, names that lead inside    accept, at their ports
//! internal addresses                          reject, also where an IPv6 address embeds one
//! other listed names                          accept, at their ports
//! everything else                             reject
//! ```
//! A host that is listed by name has no address yet, so its port is open to all addresses that such a name may have; the
//! host functions of a Wasm guest check the names themselves. A rejected connection fails at once, not after minutes.
//! Who sends to itself under the address of somebody it may not reach (IPV6_FREEBIND needs no privilege) would have been
//! called by that address, and could answer it: so sources of first packets are checked, on loopback, too.
//! To know answers the kernel tracks connections in the pod's namespace, in a table of as many entries as the node's, in memory
//! that no cgroup is charged with. So the pod has a limit there as at the node; its loopback, where a busy pod has thousands a
//! second and needs no answers to be known, is left out. Programs of the pod that translate addresses (a mesh's proxy) lead
//! connections to loopback from its own address: these are tracked, or nobody would undo it.
//! What the node translates or is given later is not seen here: `control_ports` closes its control ports once more.
//! Invariant: the table is replaced in one transaction.
//! Not here: packets that a process with CAP_NET_RAW sends past the kernel's IP stack.

mod control_ports;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use super::error::Error;
use super::netlink::Netlink;
use super::nft::{Base, Batch, Element, Hook, Kind, LOOPBACK_INDEX, Nft, Rule, Set, Type, concat};
pub(crate) use control_ports::ControlPorts;
use coracle_spec::egress::{Cidr, Denied, Egress, Form, List, Rule as Entry, Target};

/// The table in a pod's namespace.
const TABLE: &str = "coracle-egress";
const OUT: &str = "out";
const LOOPBACK: &str = "loopback";
/// Lists of connections, few in each: the kernel walks one for a new connection.
const PARTS: u32 = 256;
const COUNTS: Set = Set {
    name: "connections",
    key: &[Type::Mark],
    value: &[],
};
// Source: linux/netfilter_ipv4.h, NF_IP_PRI_RAW: before connections are tracked.
const PRIORITY_RAW: i32 = -300;
const LISTED: &str = "listed";
const PORTS: &str = "ports";
const NAMED: &str = "named";
const NAMED_PORTS: &str = "named_ports";
const INTERNAL: &str = "internal";
const INTERNAL_EMBEDDED: &str = "internal_embedded";
const REFUSED: &str = "refused";
const NODE: &str = "node";
const EMBEDDED_V4: &str = "embedded_v4";
const NODE_V4: Set = Set {
    name: "node_v4",
    key: &[Type::Ipv4],
    value: &[],
};
const NODE_V6: Set = Set {
    name: "node_v6",
    key: &[Type::Ipv6],
    value: &[],
};
/// The same for IPv6 forms that split the embedded IPv4 address.
const NODE_TORN: [Set; 2] = [
    Set {
        name: "node_2_2",
        key: &[Type::Port, Type::Port],
        value: &[],
    },
    Set {
        name: "node_1_2_1",
        key: &[Type::Protocol, Type::Port, Type::Protocol],
        value: &[],
    },
];
const DNS_PORT: u16 = 53;
const WITH_PORTS: [i32; 3] = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP];
/// Multicast listener query to done, router solicitation to neighbour advertisement, and listener report version 2.
/// IPv6 neighbours are not found without them. Source: RFC 2710, RFC 4861, RFC 3810.
const NEIGHBOUR_DISCOVERY: [(u8, u8); 3] = [(130, 132), (133, 136), (143, 143)];

/// The addresses that this node has now, except loopback ones, at `ports` and [`Denied::USUAL_PORTS`]. To be called in
/// the node's network namespace. Errors: the kernel does not list its addresses.
pub fn denied_of_this_node(ports: &[(u16, u16)]) -> Result<Denied, Error> {
    let mut node = Netlink::open()?.addresses()?;
    node.retain(|address| !address.is_loopback());
    node.sort_unstable();
    node.dedup();
    Ok(Denied {
        node,
        ports: denied_ports(ports),
        ..Denied::default()
    })
}

/// `ports` and [`Denied::USUAL_PORTS`], each once.
pub(crate) fn denied_ports(ports: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut ports: Vec<_> = Denied::USUAL_PORTS.iter().chain(ports).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Enforces `egress` on everything that runs in `netns`. `resolvers` are the pod's DNS servers, which it may query
/// if any host is listed by name; it may begin `connections` at a time, any number if that is 0. To be called before the pod's first process; repeating it replaces the rules. It
/// does nothing for [`Egress::Open`].
/// Errors: the kernel has no nf_tables, or refuses the table; there is no table then.
pub fn install(
    netns: BorrowedFd<'_>,
    egress: &Egress,
    resolvers: &[IpAddr],
    connections: u32,
) -> Result<(), Error> {
    let Egress::Listed(list) = egress else {
        return Ok(());
    };
    let resolvers = if egress.has_names() { resolvers } else { &[] };
    let nft = Nft::open_in(netns)?;
    match nft.commit(table(list, resolvers, connections)) {
        // A kernel that cannot count connections, of which the log tells where they are counted for the node.
        Err(error) if connections > 0 && error.is_unknown_to_kernel() => {
            nft.commit(table(list, resolvers, 0))
        }
        done => done,
    }
}

/// How many packets a pod's list has refused since [`install`]; 0 for a pod without one.
/// Errors: the kernel does not list the rules of `netns`.
pub fn refused(netns: BorrowedFd<'_>) -> Result<u64, Error> {
    Nft::open_in(netns)?.counted(TABLE, REFUSED)
}

fn table(list: &List, resolvers: &[IpAddr], connections: u32) -> Batch {
    let mut batch = Batch::new(TABLE);
    batch.renew_table();
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Output,
        priority: 0,
        accepts: false,
    };
    leave_loopback_untracked(&mut batch);
    batch.add_chain(OUT, Some(base));
    batch.add_chain(REFUSED, None);
    batch.add_rule(REFUSED, &Rule::default().counted());
    // An ICMP error about a SYN is lost while connect(2) still holds the socket; a reset is not.
    let tcp = Rule::default().protocol(libc::IPPROTO_TCP as u8);
    batch.add_rule(REFUSED, &tcp.reset());
    batch.add_rule(REFUSED, &Rule::default().reject());
    pass(&mut batch, resolvers, connections);
    refuse(&mut batch, &list.denied);
    let (inside, outside): (Vec<&Entry>, Vec<&Entry>) =
        list.rules.iter().partition(|rule| list.leads_inside(rule));
    accept(&mut batch, [LISTED, PORTS], &inside);
    if !outside.is_empty() {
        refuse_internal(&mut batch, list);
        accept(&mut batch, [NAMED, NAMED_PORTS], &outside);
    }
    batch.add_rule(OUT, &Rule::default().jump(REFUSED));
    batch
}

/// Keeps the kernel from tracking what the pod says to itself at the loopback addresses.
fn leave_loopback_untracked(batch: &mut Batch) {
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Output,
        priority: PRIORITY_RAW,
        accepts: true,
    };
    batch.add_chain(LOOPBACK, Some(base));
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into());
    // Its base is made of the first eight bits.
    let v4 = Cidr::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8).unwrap_or(Cidr::host(v4));
    for own in [v4, Cidr::host(v6)] {
        let rule = Rule::default()
            .out_interface(LOOPBACK_INDEX)
            .family_of(own.base())
            .source(own)
            .destination(own);
        batch.add_rule(LOOPBACK, &rule.untracked());
    }
}

/// Accepts what needs no list entry.
fn pass(batch: &mut Batch, resolvers: &[IpAddr], connections: u32) {
    // First, as among them are resets that the kernel makes for a rejected packet, from whom that was addressed to.
    batch.add_rule(OUT, &Rule::default().established().accept());
    // Its sources are unspecified at times.
    for (first, last) in NEIGHBOUR_DISCOVERY {
        let rule = Rule::default().ipv6().icmpv6_types(first, last);
        batch.add_rule(OUT, &rule.accept());
    }
    // Without an answer: that would go to whoever has the address.
    batch.add_rule(OUT, &Rule::default().source_is_not_local().drop());
    if connections > 0 {
        batch.add_counting_set(COUNTS, PARTS);
        let most = (connections / PARTS).max(1);
        let beyond = Rule::default().new_connection().beyond(COUNTS, PARTS, most);
        batch.add_rule(OUT, &beyond.drop());
    }
    let loopback = Rule::default().out_interface(LOOPBACK_INDEX);
    batch.add_rule(OUT, &loopback.accept());
    // Before the denied addresses: a node's DNS cache often has a link-local one.
    for resolver in resolvers {
        for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
            let rule = towards(Cidr::host(resolver.to_canonical()))
                .protocol(protocol as u8)
                .ports(DNS_PORT, DNS_PORT);
            batch.add_rule(OUT, &rule.accept());
        }
    }
}

/// Rejects the denied addresses, listed or not.
fn refuse(batch: &mut Batch, denied: &Denied) {
    for network in Denied::NETWORKS {
        batch.add_rule(OUT, &towards(network).jump(REFUSED));
    }
    // Sets, because a node may have thousands of addresses: kube-proxy may assign it those of all services.
    batch.add_chain(NODE, None);
    for (first, last) in &denied.ports {
        for protocol in WITH_PORTS {
            let rule = Rule::default().protocol(protocol as u8);
            batch.add_rule(NODE, &rule.ports(*first, *last).jump(REFUSED));
        }
    }
    for set in [NODE_V4, NODE_V6] {
        let is_ipv4 = set == NODE_V4;
        let own = |address: &&IpAddr| address.is_ipv4() == is_ipv4;
        let elements: Vec<Element> = denied.node.iter().filter(own).map(key).collect();
        batch.add_set(set);
        batch.add_elements(set, &elements);
        let rule = match is_ipv4 {
            true => Rule::default().ipv4(),
            false => Rule::default().ipv6(),
        };
        batch.add_rule(OUT, &rule.destination_in(set).jump(NODE));
    }
    refuse_embedded_v4(batch, denied);
}

/// The same for IPv4 addresses embedded in IPv6 ones, in a chain that IPv4 packets skip.
fn refuse_embedded_v4(batch: &mut Batch, denied: &Denied) {
    let v4 = |address: &IpAddr| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    };
    for set in NODE_TORN {
        let torn = |address: Ipv4Addr| Element {
            key: tear(address, set),
            value: Vec::new(),
        };
        let node = denied.node.iter().filter_map(v4);
        let elements: Vec<Element> = node.map(torn).collect();
        batch.add_set(set);
        batch.add_elements(set, &elements);
    }
    batch.add_chain(EMBEDDED_V4, None);
    for form in denied.forms() {
        for (network, bits) in Denied::BEHIND {
            let (mask, value) = form.bits_of(network, bits);
            let rule = Rule::default().ipv6().destination_bits(mask, value);
            batch.add_rule(EMBEDDED_V4, &rule.jump(REFUSED));
        }
        batch.add_rule(EMBEDDED_V4, &embedding_node(form).jump(NODE));
    }
    batch.add_rule(OUT, &Rule::default().ipv6().jump(EMBEDDED_V4));
}

/// Only packets to an address of this form in which one of the node's is embedded.
fn embedding_node(form: Form) -> Rule {
    let runs = form.runs();
    let set = match runs.len() {
        1 => NODE_V4,
        2 => NODE_TORN[0],
        _ => NODE_TORN[1],
    };
    towards(form.network()).destination_runs_in(&runs, set)
}

/// Rejects the internal addresses. Not for what is listed by address, nor for names that lead inside.
fn refuse_internal(batch: &mut Batch, list: &List) {
    batch.add_chain(INTERNAL, None);
    batch.add_chain(INTERNAL_EMBEDDED, None);
    for network in list.internal_networks() {
        batch.add_rule(INTERNAL, &towards(network).jump(REFUSED));
        let IpAddr::V4(base) = network.base() else {
            continue;
        };
        for form in list.denied.forms() {
            let (mask, value) = form.bits_of(base, network.bits());
            let rule = Rule::default().ipv6().destination_bits(mask, value);
            batch.add_rule(INTERNAL_EMBEDDED, &rule.jump(REFUSED));
        }
    }
    for form in list.denied.forms() {
        batch.add_rule(INTERNAL_EMBEDDED, &embedding_node(form).jump(REFUSED));
    }
    let node = [
        Rule::default().ipv4().destination_in(NODE_V4),
        Rule::default().ipv6().destination_in(NODE_V6),
    ];
    for rule in node {
        batch.add_rule(INTERNAL, &rule.jump(REFUSED));
    }
    batch.add_rule(INTERNAL, &Rule::default().ipv6().jump(INTERNAL_EMBEDDED));
    batch.add_rule(OUT, &Rule::default().jump(INTERNAL));
}

/// The octets of an address as fields of a set's key.
fn tear(address: Ipv4Addr, set: Set) -> Vec<u8> {
    let [a, b, c, d] = address.octets();
    match set.key.len() {
        2 => concat(&[&[a, b], &[c, d]]),
        _ => concat(&[&[a], &[b, c], &[d]]),
    }
}

fn key(address: &IpAddr) -> Element {
    let key = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    Element {
        key,
        value: Vec::new(),
    }
}

/// Accepts `entries`, by way of two chains: targets at all ports, and at one.
fn accept(batch: &mut Batch, [open, at_port]: [&str; 2], entries: &[&Entry]) {
    batch.add_chain(open, None);
    batch.add_chain(at_port, None);
    for entry in entries {
        let target = match entry.target {
            Target::Cidr(cidr) => towards(cidr),
            Target::Name(_) | Target::Suffix(_) => Rule::default(),
        };
        match entry.port {
            None => batch.add_rule(open, &target.accept()),
            Some(port) => batch.add_rule(at_port, &target.ports(port, port).accept()),
        }
    }
    batch.add_rule(OUT, &Rule::default().jump(open));
    for protocol in WITH_PORTS {
        let rule = Rule::default().protocol(protocol as u8);
        batch.add_rule(OUT, &rule.jump(at_port));
    }
}

fn towards(cidr: Cidr) -> Rule {
    Rule::default().family_of(cidr.base()).destination(cidr)
}
