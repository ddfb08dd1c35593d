//! A pod's network: its namespaces and how they reach the rest of the node.
//! Called by: the daemon's effects, on blocking threads. Calls: netlink, mount(2), the lease files.
//!
//! ```text
//! create_namespaces -> net, ipc, uts made on a thread that ends; net pinned as a file; `lo` up
//! Network::attach   -> address leased, veth made, both ends routed (see `builtin`)
//! Network::detach   -> address given back; the veth dies with the namespace, asynchronously
//! unpin             -> the namespace is gone once its last process is
//! ```
//! Where plugins connect pods, [`Cni`] takes the place of attach and detach, and waits instead of blocking.
//!
//! Invariants: every operation may be repeated; a failed one leaves nothing behind, or says what is owed; nothing but
//! plugins is exec'd; no setting of the node itself is changed, only those of interfaces we made; a pod is
//! disconnected by whoever connected it, whatever the configuration says by then.
//! Not here: pod phases, hostNetwork (such a pod never comes here), DNS.

mod builtin;
pub mod cni;
mod config;
pub mod egress;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod lease;
mod namespace;
mod netlink;
mod netns_socket;
mod nft;
mod subnet;
mod veth;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use builtin::{Builtin, BuiltinConfig};
pub use cni::{Cni, CniConfig};
pub use config::{Bandwidth, HostPort, NetworkConfig, Protocol, Resolver};
pub use error::Error;
pub use namespace::{
    IdMaps, NamespaceConfig, Namespaces, create_namespaces, list_pins, open_pin, unpin,
};
pub use netns_socket::tcp_socket;
pub use subnet::{Ipv4Subnet, Ipv6Subnet};

/// Who connects a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// We ourselves, in process.
    #[default]
    Builtin,
    /// Plugins of the node.
    Cni,
}

/// How a pod is connected; part of the pod's record, so that it survives the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod, 64 lowercase hex digits.
    pub pod: String,
    /// Who has connected it and will disconnect it.
    #[serde(default)]
    pub provider: Provider,
    /// The host's end of the pod's veth; empty where plugins made it.
    pub host_interface: String,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Ports of the node that lead to it, where we see to them.
    #[serde(default)]
    pub ports: Vec<HostPort>,
}

impl Attachment {
    /// That of a pod that plugins have connected.
    #[must_use]
    pub fn by_plugins(pod: &str, addresses: Vec<IpAddr>) -> Self {
        Self {
            pod: pod.to_owned(),
            provider: Provider::Cni,
            host_interface: String::new(),
            addresses,
            ports: Vec::new(),
        }
    }
}

/// Who connects pods: one of two for new pods, both for those that are there.
#[derive(Debug)]
pub struct Network {
    provider: Provider,
    builtin: Builtin,
    cni: Arc<Cni>,
}

impl Network {
    /// New pods are connected by `provider`, others disconnected by whoever connected them.
    #[must_use]
    pub fn new(provider: Provider, builtin: Builtin, cni: Arc<Cni>) -> Self {
        Self {
            provider,
            builtin,
            cni,
        }
    }

    /// Who connects new pods.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Networks by plugins.
    #[must_use]
    pub fn cni(&self) -> &Arc<Cni> {
        &self.cni
    }

    /// Why new pods get no network, for users to read; `None` if they do. Answers within 100 ms.
    pub async fn problem(&self) -> Option<String> {
        match self.provider {
            Provider::Builtin => None,
            Provider::Cni => self.cni.problem().await,
        }
    }

    /// Connects a pod whose network namespace is `netns` by the built-in network. Repeating it gives an equal attachment.
    /// Errors: no address free, the kernel refuses an interface or a route; nothing is left then.
    pub fn attach(
        &self,
        config: &NetworkConfig,
        netns: BorrowedFd<'_>,
    ) -> Result<Attachment, Error> {
        self.builtin.attach(config, netns)
    }

    /// Gives back what `attachment` holds of the built-in network; what plugins hold is [`Cni::del`]'s to give back.
    /// Fine if that has happened before.
    pub fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        match attachment.provider {
            Provider::Builtin => self.builtin.detach(attachment),
            Provider::Cni => Ok(()),
        }
    }

    /// Gives back what a pod holds of the built-in network whose attachment nobody knows. Fine if that is nothing.
    pub fn detach_unknown(&self, pod: &str) -> Result<(), Error> {
        self.builtin.detach_unknown(pod)
    }

    /// Takes back what an attachment says that was not known at the start: its address and its ports.
    pub fn restore(&self, attachment: &Attachment) -> Result<(), Error> {
        match attachment.provider {
            Provider::Builtin => self.builtin.restore(attachment),
            Provider::Cni => Ok(()),
        }
    }

    /// To be called once in a runtime, at the daemon's start, with the ids of the pods that live: see [`Cni::resume`].
    pub fn resume(&self, live: &HashSet<String>) {
        self.cni.resume(live, self.provider == Provider::Cni);
    }

    /// Removes from the built-in network what no attachment in `live` owns, and reports it, one line a thing. To be
    /// called once, at the daemon's start, before the first [`Network::attach`]. What the pods in `kept` hold stays,
    /// although nobody knows their attachments.
    pub fn sweep(&self, live: &[Attachment], kept: &HashSet<String>) -> Result<Vec<String>, Error> {
        let builtin = |attachment: &&Attachment| attachment.provider == Provider::Builtin;
        let live: Vec<Attachment> = live.iter().filter(builtin).cloned().collect();
        self.builtin.sweep(&live, kept)
    }
}
