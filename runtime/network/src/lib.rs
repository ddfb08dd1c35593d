//! A pod's network: its namespaces and how they reach the rest of the node.
//! Called by: the daemon's effects, on blocking threads. Calls: netlink, mount(2), the lease files.
//!
//! ```text
//! create_namespaces -> create net, ipc, uts on a thread that ends; pin net as a file; set `lo` up
//! Network::attach   -> lease an address, create a veth, add routes at both ends (see `builtin`)
//! Network::detach   -> release the address; the kernel removes the veth with the namespace, asynchronously
//! unpin             -> the namespace ends with its last process
//! ```
//! With CNI, [`Cni`] replaces attach and detach, and is async instead of blocking.
//!
//! Invariants: every operation may be repeated; a failed one leaves nothing behind, or a DEL that is still owed;
//! only plugins are exec'd; no setting of the node itself changes, only those of interfaces that we created; the
//! provider that attached a pod detaches it, whatever the configuration is by then.
//! Not here: pod phases, pods with hostNetwork, DNS.

mod builtin;
mod choice;
pub mod cni;
mod config;
mod device;
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

use egress::ControlPorts;
use serde::{Deserialize, Serialize};

pub use builtin::{
    Builtin, BuiltinConfig, NetworkCounts, can_check_sources, can_count_connections,
};
pub use choice::{Choice, Mode};
pub use cni::{Cni, CniConfig};
pub use config::{Bandwidth, HostPort, NetworkConfig, Protocol, Resolver};
pub use device::move_device;
pub use error::Error;
pub use namespace::{
    IdMaps, NamespaceConfig, Namespaces, create_namespaces, list_pins, open_pin, unpin,
};
pub use netns_socket::tcp_socket;
pub use subnet::{Ipv4Subnet, Ipv6Subnet};

/// What attaches a pod to the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The built-in network, in process.
    #[default]
    Builtin,
    /// CNI plugins of the node.
    Cni,
}

impl Provider {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Provider::Builtin => "builtin",
            Provider::Cni => "cni",
        }
    }

    /// The one for a node with this CNI configuration.
    fn by(configuration: Option<&std::path::Path>) -> Self {
        match configuration {
            Some(_) => Provider::Cni,
            None => Provider::Builtin,
        }
    }
}

/// A pod's attachment to the network; part of the pod's record, so that it survives the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod, 64 lowercase hex digits.
    pub pod: String,
    /// What attached it and will detach it.
    #[serde(default)]
    pub provider: Provider,
    /// The host's end of the pod's veth; empty for CNI.
    pub host_interface: String,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its host ports, where the built-in network forwards them.
    #[serde(default)]
    pub ports: Vec<HostPort>,
    /// Whether the node's control ports are closed to it: it is under an egress list.
    #[serde(default)]
    pub is_listed: bool,
}

impl Attachment {
    /// The attachment of a pod that CNI plugins attached.
    #[must_use]
    pub fn by_plugins(pod: &str, addresses: Vec<IpAddr>) -> Self {
        Self {
            pod: pod.to_owned(),
            provider: Provider::Cni,
            host_interface: String::new(),
            addresses,
            ports: Vec::new(),
            is_listed: false,
        }
    }
}

/// Both providers: one attaches new pods, each detaches the pods that it attached.
#[derive(Debug)]
pub struct Network {
    choice: Choice,
    builtin: Builtin,
    cni: Arc<Cni>,
    control_ports: ControlPorts,
}

impl Network {
    /// `choice` says which of them attaches new pods.
    #[must_use]
    pub fn new(choice: Choice, builtin: Builtin, cni: Arc<Cni>) -> Self {
        Self {
            control_ports: ControlPorts::new(builtin.interface_prefix()),
            choice,
            builtin,
            cni,
        }
    }

    /// The provider for a pod that is about to be attached. Errors: the decision cannot be recorded.
    pub fn decide(&self) -> Result<Provider, Error> {
        self.choice.decide()
    }

    /// Most tracked connections of one pod; any number if it is 0.
    #[must_use]
    pub fn connections_per_pod(&self) -> u32 {
        self.builtin.connections_per_pod()
    }

    /// Which provider attaches new pods, for people.
    #[must_use]
    pub fn mode(&self) -> String {
        self.choice.shown()
    }

    /// The CNI networks.
    #[must_use]
    pub fn cni(&self) -> &Arc<Cni> {
        &self.cni
    }

    /// What the built-in network has and has done.
    #[must_use]
    pub fn counts(&self) -> NetworkCounts {
        self.builtin.counts()
    }

    /// Why new pods get no network, for users to read; `None` if they do. Returns within 100 ms.
    pub async fn problem(&self) -> Option<String> {
        match self.choice.look().1 {
            Provider::Builtin => None,
            Provider::Cni => self.cni.problem().await,
        }
    }

    /// Attaches a pod with network namespace `netns` to the built-in network. Repeating it returns an equal attachment.
    /// Errors: no address is free, or the kernel refuses an interface or a route; nothing is left then.
    pub fn attach(
        &self,
        config: &NetworkConfig,
        netns: BorrowedFd<'_>,
    ) -> Result<Attachment, Error> {
        self.builtin.attach(config, netns)
    }

    /// Closes the node's control ports to an attached pod under an egress list, at all addresses that the node has or gets:
    /// [`Denied::USUAL_PORTS`](coracle_spec::egress::Denied::USUAL_PORTS) and `denied`, which is `None` for a pod without a
    /// list. To be called before the pod's first process; the attachment that is recorded then says so. It may be repeated.
    /// Errors: the kernel refuses.
    pub fn close_control_ports(
        &self,
        attachment: &mut Attachment,
        denied: Option<&[(u16, u16)]>,
    ) -> Result<(), Error> {
        attachment.is_listed = denied.is_some();
        let (pod, addresses) = (&attachment.pod, &attachment.addresses);
        match denied.map(egress::denied_ports) {
            Some(ports) => self.control_ports.close_to(pod, addresses, &ports),
            // Where not all pods are known, one before it may have left its address among those of pods under a list.
            None => self.control_ports.release(pod, addresses),
        }
    }

    /// Detaches a pod from the built-in network; for pods attached by CNI, see [`Cni::del`]. It may be repeated.
    pub fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        // Before the address is another pod's. One that was detached has none any more.
        if attachment.is_listed {
            let (pod, addresses) = (&attachment.pod, &attachment.addresses);
            self.control_ports.release(pod, addresses)?;
        }
        match attachment.provider {
            Provider::Builtin => self.builtin.detach(attachment),
            Provider::Cni => Ok(()),
        }
    }

    /// Detaches a pod whose attachment is unknown from the built-in network. It may be repeated.
    pub fn detach_unknown(&self, pod: &str) -> Result<(), Error> {
        self.control_ports.release(pod, &[])?;
        self.builtin.detach_unknown(pod)
    }

    /// Restores the address and the ports of an attachment that was unknown at the start; to one under an egress list the
    /// node's control ports and `denied` are closed.
    pub fn restore(&self, attachment: &Attachment, denied: &[(u16, u16)]) -> Result<(), Error> {
        if attachment.is_listed {
            self.close_control_ports(&mut attachment.clone(), Some(denied))?;
        }
        match attachment.provider {
            Provider::Builtin => self.builtin.restore(attachment),
            Provider::Cni => Ok(()),
        }
    }

    /// To be called once in a tokio runtime, at the daemon's start, with the ids of live pods: see [`Cni::resume`].
    pub fn resume(&self, live: &HashSet<String>) {
        let is_in_use = self.choice.look() == (true, Provider::Cni);
        self.cni.resume(live, is_in_use);
    }

    /// Removes what is there for pods in general, if no pod is left; to be called once, at the daemon's end.
    pub fn retire(&self) {
        self.builtin.retire();
    }

    /// Removes from the built-in network what no attachment in `live` owns, and returns one line for each removal. To
    /// be called once, at the daemon's start, before the first [`Network::attach`]. The pods in `kept`, whose
    /// attachments are unknown, keep what they hold. To those under an egress list the node's control ports and `denied` are
    /// closed.
    pub fn sweep(
        &self,
        live: &[Attachment],
        kept: &HashSet<String>,
        denied: &[(u16, u16)],
    ) -> Result<Vec<String>, Error> {
        let listed = live.iter().filter(|attachment| attachment.is_listed);
        let listed = listed.map(|one| (one.pod.as_str(), one.addresses.as_slice()));
        let ports = egress::denied_ports(denied);
        let closed = self.control_ports.restore(listed, &ports, kept.is_empty());
        let builtin = |attachment: &&Attachment| attachment.provider == Provider::Builtin;
        let live: Vec<Attachment> = live.iter().filter(builtin).cloned().collect();
        // What the kernel refuses of one keeps nothing of the other.
        let swept = self.builtin.sweep(&live, kept);
        closed.and(swept)
    }
}
