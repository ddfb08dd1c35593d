//! A pod's network: its namespaces and how they reach the rest of the node.
//! Called by: the daemon's effects, on blocking threads. Calls: netlink, mount(2), the lease files.
//!
//! ```text
//! create_namespaces -> net, ipc, uts made on a thread that ends; net pinned as a file; `lo` up
//! Network::attach   -> address leased, veth made, both ends routed (see `builtin`)
//! Network::detach   -> address given back; the veth dies with the namespace, asynchronously
//! unpin             -> the namespace is gone once its last process is
//! ```
//!
//! Invariants: every operation may be repeated; a failed one leaves nothing behind; no process is
//! exec'd; no setting of the node itself is changed, only those of interfaces we made.
//! Not here: pod phases, hostNetwork (such a pod never comes here), DNS.

mod builtin;
pub mod egress;
mod error;
mod lease;
#[allow(
    unsafe_code,
    reason = "unshare(2) is unsafe to call; one call, argued there"
)]
mod namespace;
mod netlink;
mod nft;
mod plumbing;
mod subnet;
mod visit;
mod wish;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

pub use builtin::{Builtin, BuiltinConfig};
pub use egress::Egress;
pub use error::Error;
pub use namespace::{
    IdMaps, NamespaceWish, Namespaces, create_namespaces, list_pins, open_pin, unpin,
};
pub use subnet::{Ipv4Subnet, Ipv6Subnet};
pub use visit::tcp_socket;
pub use wish::{Bandwidth, HostPort, NetworkWish, Protocol, Resolver};

/// How a pod is connected; part of the pod's record, so that it survives the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod, 64 lowercase hex digits.
    pub pod: String,
    /// The host's end of the pod's veth.
    pub host_interface: String,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub ports: Vec<HostPort>,
}

/// Who connects pods.
#[derive(Debug)]
pub enum Network {
    /// The built-in routed network.
    Builtin(Builtin),
}

impl Network {
    /// Connects a pod whose network namespace is `netns`. Repeating it gives an equal attachment.
    /// Errors: no address free, the kernel refuses an interface or a route; nothing is left then.
    pub fn attach(&self, wish: &NetworkWish, netns: BorrowedFd<'_>) -> Result<Attachment, Error> {
        match self {
            Self::Builtin(builtin) => builtin.attach(wish, netns),
        }
    }

    /// Gives back what `attachment` holds. Fine if that has happened before.
    pub fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        match self {
            Self::Builtin(builtin) => builtin.detach(attachment),
        }
    }

    /// Removes what no attachment in `live` owns, and reports it, one line a thing. To be called
    /// once, at the daemon's start, before the first [`Network::attach`].
    pub fn sweep(&self, live: &[Attachment]) -> Result<Vec<String>, Error> {
        match self {
            Self::Builtin(builtin) => builtin.sweep(live),
        }
    }
}
