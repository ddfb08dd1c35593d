//! The nftables table that forwards ports of the node to pods.
//!
//! ```text
//! guard        raw, prerouting   packets of others to 127.0.0.0/8, of pods from it drop
//! arriving     nat, prerouting   packets to the node                              -> offered
//! made_here    nat, output       packets to the node from its own programs        -> offered
//! offered                        (address . protocol . port), (protocol . port)    -> pod . port, by maps
//! leaving      nat, postrouting  loopback to a pod, a pod to itself: both need a source that the pod can answer
//! ```
//! The kernel routes a packet from 127.0.0.1 to a pod only if the pod's veth has `route_localnet`, which would also
//! let the pod send to the node's loopback. `guard` prevents that: it sees packets before NAT is undone, when the
//! answers to our own are still addressed to the gateway. IPv6 has no such switch, so `::1` has no host ports.
//! The kernel itself drops what others send to 127.0.0.0/8, but only once `arriving` has led it to a pod: whoever is on the
//! node's link would reach ports that are offered to the node alone. So `guard` drops it first, from all interfaces but `lo`.
//! Invariants: a lookup is one hash, however many pods have ports; the table exists exactly while a pod has ports;
//! its rules do not depend on the ports, so that their number shows whether another program changed them.
//! Not here: which pod has which port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::nft::{
    Base, Batch, Element, Hook, Kind, LOOPBACK_INDEX, Rule, Set, Type, concat,
};
use super::super::veth::GATEWAY_V4;
use super::super::{HostPort, Protocol};
use coracle_spec::egress::Cidr;

const OFFERED: &str = "offered";
// Source: linux/netfilter_ipv4.h, NF_IP_PRI_RAW, NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_NAT_DST: i32 = -100;
const PRIORITY_NAT_SRC: i32 = 100;

const EXACT_V4: Set = Set {
    name: "exact_v4",
    key: &[Type::Ipv4, Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
};
const ANY_V4: Set = Set {
    name: "any_v4",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
};
const SELF_V4: Set = Set {
    name: "self_v4",
    key: &[Type::Ipv4, Type::Ipv4],
    value: &[],
};
const EXACT_V6: Set = Set {
    name: "exact_v6",
    key: &[Type::Ipv6, Type::Protocol, Type::Port],
    value: &[Type::Ipv6, Type::Port],
};
const ANY_V6: Set = Set {
    name: "any_v6",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Ipv6, Type::Port],
};
const SELF_V6: Set = Set {
    name: "self_v6",
    key: &[Type::Ipv6, Type::Ipv6],
    value: &[],
};
const SETS: [Set; 6] = [EXACT_V4, ANY_V4, SELF_V4, EXACT_V6, ANY_V6, SELF_V6];

/// The settings of a table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Its name.
    pub(super) name: String,
    /// Prefix of the names of the host's ends of veths.
    pub(super) interface_prefix: String,
    /// The source address when a pod reaches itself by IPv6; no pod has it.
    pub(super) sender_v6: Option<Ipv6Addr>,
}

/// The ports of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Its ports.
    pub(super) ports: Vec<HostPort>,
}

impl Table {
    /// Replaces the table by one with the ports of `mappings`.
    pub(super) fn renew<'a>(&self, mappings: impl Iterator<Item = &'a Mapping>) -> Batch {
        let mut batch = Batch::new(&self.name);
        batch.renew_table();
        for set in SETS {
            batch.add_set(set);
        }
        self.add_chains(&mut batch);
        let mut all: [Vec<Element>; SETS.len()] = Default::default();
        for mapping in mappings {
            for (all, own) in all.iter_mut().zip(elements(mapping)) {
                all.extend(own);
            }
        }
        for (set, elements) in SETS.into_iter().zip(&all) {
            batch.add_elements(set, elements);
        }
        batch
    }

    /// How many rules it has.
    pub(super) fn rules(&self) -> usize {
        self.renew(std::iter::empty()).rules()
    }

    /// Adds the ports of one pod.
    pub(super) fn add(&self, mapping: &Mapping) -> Batch {
        let mut batch = Batch::new(&self.name);
        for (set, elements) in SETS.into_iter().zip(elements(mapping)) {
            batch.add_elements(set, &elements);
        }
        batch
    }

    /// Removes the ports of one pod.
    pub(super) fn remove(&self, mapping: &Mapping) -> Batch {
        let mut batch = Batch::new(&self.name);
        for (set, elements) in SETS.into_iter().zip(elements(mapping)) {
            batch.delete_elements(set, &elements);
        }
        batch
    }

    /// Deletes the table.
    pub(super) fn delete(&self) -> Batch {
        let mut batch = Batch::new(&self.name);
        batch.delete_table();
        batch
    }

    fn add_chains(&self, batch: &mut Batch) {
        let base = |kind, hook, priority| Base {
            kind,
            hook,
            priority,
            accepts: true,
        };
        let arriving = base(Kind::Nat, Hook::Prerouting, PRIORITY_NAT_DST);
        let made_here = base(Kind::Nat, Hook::Output, PRIORITY_NAT_DST);
        batch.add_chain(OFFERED, None);
        for map in [EXACT_V4, ANY_V4] {
            batch.add_rule(OFFERED, &Rule::default().ipv4().dnat_by(map));
        }
        for map in [EXACT_V6, ANY_V6] {
            batch.add_rule(OFFERED, &Rule::default().ipv6().dnat_by(map));
        }
        for (name, base) in [("arriving", arriving), ("made_here", made_here)] {
            batch.add_chain(name, Some(base));
            let rule = Rule::default().destination_is_local();
            batch.add_rule(name, &rule.jump(OFFERED));
        }
        self.add_guard(batch, base(Kind::Filter, Hook::Prerouting, PRIORITY_RAW));
        self.add_leaving(batch, base(Kind::Nat, Hook::Postrouting, PRIORITY_NAT_SRC));
    }

    fn add_guard(&self, batch: &mut Batch, base: Base) {
        batch.add_chain("guard", Some(base));
        let loopback = loopback_v4();
        let others = Rule::default().not_from_interface(LOOPBACK_INDEX).ipv4();
        batch.add_rule("guard", &others.destination(loopback).drop());
        let pods = Rule::default()
            .interfaces(base.hook, &self.interface_prefix)
            .ipv4();
        batch.add_rule("guard", &pods.source(loopback).drop());
    }

    fn add_leaving(&self, batch: &mut Batch, base: Base) {
        batch.add_chain("leaving", Some(base));
        let to_pods = || Rule::default().interfaces(base.hook, &self.interface_prefix);
        let loopback = to_pods().ipv4().source(loopback_v4());
        batch.add_rule("leaving", &loopback.snat_to(GATEWAY_V4.into()));
        let itself = to_pods().ipv4().source_and_destination_in(SELF_V4);
        batch.add_rule("leaving", &itself.snat_to(GATEWAY_V4.into()));
        if let Some(sender) = self.sender_v6 {
            let itself = to_pods().ipv6().source_and_destination_in(SELF_V6);
            batch.add_rule("leaving", &itself.snat_to(sender.into()));
        }
    }
}

fn loopback_v4() -> Cidr {
    // Its last 24 bits are zero.
    Cidr::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8)
        .unwrap_or(Cidr::host(Ipv4Addr::LOCALHOST.into()))
}

/// The elements of one pod in each of [`SETS`]. A port of every address is offered in the pod's families.
fn elements(mapping: &Mapping) -> [Vec<Element>; SETS.len()] {
    let mut all: [Vec<Element>; SETS.len()] = Default::default();
    for address in &mapping.addresses {
        let (first, own) = match address {
            IpAddr::V4(address) => (0, address.octets().to_vec()),
            IpAddr::V6(address) => (3, address.octets().to_vec()),
        };
        let [exact, any, itself] = &mut all[first..first + 3] else {
            continue;
        };
        for port in &mapping.ports {
            let protocol = [protocol_number(port.protocol)];
            let host_port = port.host_port.to_be_bytes();
            let value = concat(&[&own, &port.container_port.to_be_bytes()]);
            let at = match port.host_ip.map(|at| at.to_canonical()) {
                Some(at) if at.is_ipv4() != address.is_ipv4() => continue,
                Some(at) if !at.is_unspecified() => Some(at),
                _ => None,
            };
            let (key, set) = match at {
                Some(IpAddr::V4(at)) => {
                    (concat(&[&at.octets(), &protocol, &host_port]), &mut *exact)
                }
                Some(IpAddr::V6(at)) => {
                    (concat(&[&at.octets(), &protocol, &host_port]), &mut *exact)
                }
                None => (concat(&[&protocol, &host_port]), &mut *any),
            };
            set.push(Element { key, value });
        }
        itself.push(Element {
            key: concat(&[&own, &own]),
            value: Vec::new(),
        });
    }
    all
}

/// The protocol's number in an IP header. Source: linux/in.h.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
