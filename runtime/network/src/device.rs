//! Moves a network device of the node into a pod's network namespace.
//!
//! Called by: the daemon's effects, on blocking threads, before a container starts. Source: CDI 1.1, `netDevices`; OCI
//! runtime specification 1.3, which has name, MTU, MAC and global addresses kept.
//! Invariants: repeating a move that was made changes nothing; no name in the pod is taken over. The kernel gives a
//! physical device back to the node when the pod's namespace ends: the node's name for it stays as an alternative name, by
//! which the next move finds it.
//! Not here: which pod gets which device.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, Prop};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::Error;
use super::netlink::{self, Netlink, Request};
use super::veth;

// Source: linux/if_addr.h and linux/rtnetlink.h.
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// An address that moves with its device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    index: u32,
    prefix: u8,
    /// The device's own.
    own: IpAddr,
    /// The other end's, or the same.
    other: IpAddr,
}

/// Moves device `on_node` into `netns`, where it is `in_pod`, up, with the addresses that it had.
///
/// Errors: neither the node nor the pod has it; the pod has another device of that name; the kernel refuses.
pub fn move_device(netns: BorrowedFd<'_>, on_node: &str, in_pod: &str) -> Result<(), Error> {
    let (node, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    let present = pod.index(in_pod)?;
    let Some(index) = node.index(on_node)? else {
        return match present {
            // By an earlier start of a container of this pod, which may not have come to its end.
            Some(index) => pod.run(vec![veth::up(index, in_pod, LinkFlags::empty())]),
            None => Err(Error::NoDevice {
                name: on_node.to_owned(),
            }),
        };
    };
    if present.is_some() {
        return Err(Error::DeviceTaken {
            device: on_node.to_owned(),
            name: in_pod.to_owned(),
        });
    }
    let addresses =
        node.dump_addresses(|payload| address(payload).filter(|at| at.index == index))?;
    node.run(vec![moved(netns, index, on_node, in_pod)])?;
    let Some(index) = pod.index(in_pod)? else {
        return Err(Error::NoDevice {
            name: in_pod.to_owned(),
        });
    };
    if on_node != in_pod {
        // The name by which it is found when it is back on the node. Not every kernel has such names.
        let _ = pod.run(vec![alternative_name(index, on_node)]);
    }
    let mut requests = vec![veth::up(index, in_pod, LinkFlags::empty())];
    requests.extend(addresses.iter().map(|address| add(address, index)));
    pod.run(requests)
}

fn moved(netns: BorrowedFd<'_>, index: u32, on_node: &str, in_pod: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
        LinkAttribute::IfName(in_pod.to_owned()),
    ];
    veth::set_link("move into the pod", on_node, message)
}

fn alternative_name(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let name_of = Prop::AltIfName(name.to_owned());
    message.attributes = vec![LinkAttribute::PropList(vec![name_of])];
    Request {
        operation: "give an alternative name",
        object: name.to_owned(),
        message: RouteNetlinkMessage::NewLinkProp(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

fn add(address: &Address, index: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = match address.own {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix;
    message.header.index = index;
    message.attributes.extend([
        AddressAttribute::Local(address.own),
        AddressAttribute::Address(address.other),
    ]);
    Request {
        operation: "add an address of a device",
        object: address.own.to_string(),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// A permanent address that other machines can reach.
fn address(payload: &[u8]) -> Option<Address> {
    let &[_, prefix, flags, scope, ..] = payload else {
        return None;
    };
    if scope != RT_SCOPE_UNIVERSE || flags & IFA_F_PERMANENT == 0 {
        return None;
    }
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let (own, other) = netlink::address_pair(payload)?;
    Some(Address {
        index,
        prefix,
        own: own.or(other)?,
        other: other.or(own)?,
    })
}
