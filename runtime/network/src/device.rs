//! Moves a network device of the node into a pod's network namespace.
//!
//! Called by: the daemon's effects, on blocking threads, before a container starts. Source: CDI 1.1, `netDevices`; OCI
//! runtime specification 1.3, which has name, MTU, MAC and global addresses kept.
//! Invariants: repeating a move that was made changes nothing, and one that was begun comes to its end, addresses included, whoever
//! was killed in between; no name in the pod is taken over. The kernel gives a
//! physical device back to the node when the pod's namespace ends: the node's name for it stays as an alternative name, by
//! which the next move finds it.
//! Not here: which pod gets which device.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, Prop};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::netlink::{self, Netlink, Request};
use super::veth;

// Source: linux/if_addr.h and linux/rtnetlink.h.
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// An address that moves with its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Address {
    prefix: u8,
    /// The device's own.
    own: IpAddr,
    /// The other end's, or the same.
    other: IpAddr,
}

/// Moves device `on_node` into `netns`, where it is `in_pod`, up, with the addresses that it had. `directory`, of this pod alone
/// and gone with it, has these while the device is on its way, for the kernel takes them from a device that it moves.
///
/// Errors: neither the node nor the pod has it; the pod has another device of that name; the kernel refuses; the addresses cannot
/// be recorded, or not be read again.
pub fn move_device(
    netns: BorrowedFd<'_>,
    (on_node, in_pod): (&str, &str),
    directory: &Path,
) -> Result<(), Error> {
    let (node, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    // No name of a device has a slash.
    let record = directory.join(format!("device-{in_pod}"));
    match (node.index(on_node)?, pod.index(in_pod)?) {
        (Some(_), Some(_)) => {
            return Err(Error::DeviceTaken {
                device: on_node.to_owned(),
                name: in_pod.to_owned(),
            });
        }
        (Some(index), None) => {
            record_addresses(&record, &addresses(&node, index)?)?;
            node.run(vec![moved(netns, index, on_node, in_pod)])?;
        }
        // By an earlier start of a container of this pod, which may not have come to its end.
        (None, Some(_)) => {}
        (None, None) => {
            return Err(Error::NoDevice {
                name: on_node.to_owned(),
            });
        }
    }
    set_up(&pod, (on_node, in_pod), &record)
}

/// Gives a device that has arrived its other name and the addresses that are recorded, if it has not had them.
fn set_up(pod: &Netlink, (on_node, in_pod): (&str, &str), record: &Path) -> Result<(), Error> {
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
    let addresses = recorded_addresses(record)?;
    requests.extend(addresses.iter().flatten().map(|one| add(one, index)));
    pod.run(requests)?;
    match addresses {
        Some(_) => fs::remove_file(record)
            .map_err(|error| Error::file("remove the record of addresses", record, error)),
        None => Ok(()),
    }
}

/// Records `addresses` before they are lost. What is there is of a device that has not left the node.
fn record_addresses(record: &Path, addresses: &[Address]) -> Result<(), Error> {
    let what = "record the addresses of a device in";
    let text = serde_json::to_vec(addresses).map_err(|error| Error::file(what, record, error))?;
    fs::write(record, text).map_err(|error| Error::file(what, record, error))
}

/// What is recorded; `None` when the device has its addresses.
fn recorded_addresses(record: &Path) -> Result<Option<Vec<Address>>, Error> {
    let what = "read the addresses of a device in";
    match fs::read(record) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::file(what, record, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(what, record, error)),
    }
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

/// The permanent addresses of a device that other machines can reach.
fn addresses(node: &Netlink, index: u32) -> Result<Vec<Address>, Error> {
    node.dump_addresses(|payload| address(payload, index))
}

fn address(payload: &[u8], of: u32) -> Option<Address> {
    let &[_, prefix, flags, scope, ..] = payload else {
        return None;
    };
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    if index != of || scope != RT_SCOPE_UNIVERSE || flags & IFA_F_PERMANENT == 0 {
        return None;
    }
    let (own, other) = netlink::address_pair(payload)?;
    Some(Address {
        prefix,
        own: own.or(other)?,
        other: other.or(own)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::Command;

    use super::super::netlink::inside;
    use super::super::{NamespaceConfig, create_namespaces};
    use super::*;

    fn run(netns: BorrowedFd<'_>, line: &str) -> String {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let output = inside(netns, || Ok(command.output().unwrap())).unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_device_has_its_addresses_although_its_daemon_died_behind_the_move() {
        let netns = || {
            let config = NamespaceConfig {
                net: true,
                ..NamespaceConfig::default()
            };
            create_namespaces(config, None).unwrap().net.unwrap()
        };
        let (node, pod) = (netns(), netns());
        let temp = tempfile::tempdir().unwrap();
        for line in [
            "ip link add wire0 type veth peer name wire1",
            "ip addr add 192.0.2.7/24 dev wire0",
            "ip addr add 2001:db8::7/64 dev wire0 nodad",
            "ip link set wire0 up",
        ] {
            run(node.as_fd(), line);
        }
        let shown = || run(pod.as_fd(), "ip -o addr show dev net1");
        let again = || {
            inside(node.as_fd(), || {
                move_device(pod.as_fd(), ("wire0", "net1"), temp.path())
            })
        };
        // As far as the move, and no further.
        inside(node.as_fd(), || {
            let node = Netlink::open()?;
            let index = node.index("wire0")?.unwrap();
            record_addresses(&temp.path().join("device-net1"), &addresses(&node, index)?)?;
            node.run(vec![moved(pod.as_fd(), index, "wire0", "net1")])
        })
        .unwrap();
        assert!(!shown().contains("192.0.2.7"));
        again().unwrap();
        let has_both =
            |shown: &str| shown.contains("192.0.2.7/24") && shown.contains("2001:db8::7/64");
        assert!(has_both(&shown()), "{}", shown());
        // A container that changes them is not undone by the next one's start.
        run(pod.as_fd(), "ip addr del 192.0.2.7/24 dev net1");
        again().unwrap();
        assert!(!shown().contains("192.0.2.7"), "{}", shown());
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}
