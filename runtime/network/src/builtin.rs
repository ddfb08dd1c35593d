//! The built-in network: routed, one veth a pod, everything by netlink in this process.
//! Called by [`super::Network`] on blocking threads of the host's network namespace.
//!
//! ```text
//! attach: lease -> host ports -> veth with its peer in the pod's namespace -> host's end -> pod's end
//! detach: close loopback, take the host's end down, release host ports, forget connections, release the lease. The veth goes
//!         with the namespace; deleting it costs 40 ms. Where somebody holds the namespace open, `detached` deletes it some
//!         seconds later.
//! sweep:  leases, veths and host ports without a live pod
//! ```
//! Every packet of a pod has its own address as its source: `sources` drops others, and the node's end of a veth (`veth`)
//! has strict rp_filter, no ARP, and takes no redirects and no routes from the pod. `connections` bounds what a pod, and
//! all together, have of the node's tracked connections.
//!
//! Invariants: an address is leased only while no interface of its name exists (a dropped namespace
//! may be there for seconds); nothing passes under an address after `detach`, whoever holds a socket of the pod;
//! a failed attach leaves neither a lease nor an interface; an interface
//! is deleted only if its name, kind and MAC show that it is ours; `route_localnet` is set on an interface
//! only while the table that filters loopback packets exists. The node's own settings do not change:
//! its operator sets `net.ipv4.ip_forward` and the routes for traffic that leaves the node.
//! Not here: policies.

mod connections;
mod counts;
mod detached;
mod fixed;
mod masquerade;
mod ports;
mod sources;
mod sweep;
mod table;
mod watch;

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::error::Error;
use super::lease::{Lease, Leases};
use super::netlink::Netlink;
use super::subnet::{Ipv4Subnet, Ipv6Subnet};
use super::veth::{self, Endpoint, POD_INTERFACE};
use super::{Attachment, HostPort, NetworkConfig};
use detached::Detached;
use fixed::Fixed;
use ports::Ports;
use sources::Sources;
use table::Table;

pub use connections::can_count_connections;
pub use counts::NetworkCounts;
pub use sources::can_check_sources;
pub(crate) use watch::Watch;

/// Settings of the built-in network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltinConfig {
    /// Subnet of the pods' IPv4 addresses.
    pub subnet_v4: Ipv4Subnet,
    /// Subnet of the pods' IPv6 addresses; pods have none unless it is set. At least as large as `subnet_v4`.
    pub subnet_v6: Option<Ipv6Subnet>,
    /// Directory of leases, created if absent. Best on a tmpfs: no lease outlives a reboot, and ext4
    /// creates files slowly when many were deleted within the last half minute.
    pub lease_dir: PathBuf,
    /// Prefix of the names of host interfaces: 3 or 4 lowercase letters, `cor` by default. Two
    /// daemons on one node need different prefixes.
    pub interface_prefix: String,
    /// Whether pods reach other machines under the node's address.
    pub masquerade: bool,
    /// Most tracked connections of one pod; any number if it is 0.
    pub connections_per_pod: u32,
}

/// The built-in network of one daemon.
#[derive(Debug)]
pub struct Builtin {
    config: BuiltinConfig,
    kernel_has_v6: bool,
    leases: Arc<Mutex<Leases>>,
    detached: Detached,
    ports: Ports,
    /// Kept while a pod has an address.
    sources: Sources,
    /// Kept if the configuration says so.
    masquerade: Fixed,
}

impl BuiltinConfig {
    /// Errors: a prefix or an IPv6 subnet that cannot be used.
    fn check(&self, kernel_has_v6: bool) -> Result<(), Error> {
        let prefix = &self.interface_prefix;
        let is_good =
            (3..=4).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_lowercase());
        if !is_good {
            let why = "must be 3 or 4 lowercase letters".to_owned();
            return Err(Error::BadSetting {
                key: "interface_prefix",
                value: prefix.clone(),
                why,
            });
        }
        let Some(v6) = self.subnet_v6 else {
            return Ok(());
        };
        let why = if !kernel_has_v6 {
            "cannot be used, IPv6 is off in this kernel".to_owned()
        } else if is_v6_off_for_new_interfaces() {
            "cannot be used, net.ipv6.conf.default.disable_ipv6 is 1 on this node".to_owned()
        } else if !v6.covers(&self.subnet_v4) {
            format!("has fewer addresses than {}", self.subnet_v4)
        } else {
            return Ok(());
        };
        Err(Error::BadSetting {
            key: "subnet_v6",
            value: v6.to_string(),
            why,
        })
    }
}

impl Builtin {
    /// Checks `config` and reads the leases of the last daemon.
    /// Errors: a prefix or an IPv6 subnet that cannot be used, an unreadable lease directory.
    pub fn open(config: BuiltinConfig) -> Result<Self, Error> {
        let kernel_has_v6 = Path::new("/proc/sys/net/ipv6").exists();
        config.check(kernel_has_v6)?;
        let leases = Leases::open(&config.lease_dir, config.subnet_v4)?;
        let leases = Arc::new(Mutex::new(leases));
        let ports = Ports::new(Table {
            name: format!("coracle-{}", config.interface_prefix),
            interface_prefix: config.interface_prefix.clone(),
            sender_v6: config.subnet_v6.map(|subnet| subnet.address(0)),
        });
        Ok(Self {
            sources: Sources::new(&config, connections::NODE_LIMIT.into()),
            masquerade: Fixed::new(masquerade::batch(&config)),
            detached: Detached::new(&config, &leases),
            config,
            kernel_has_v6,
            leases,
            ports,
        })
    }

    /// See [`super::Network::attach`].
    pub fn attach(
        &self,
        config: &NetworkConfig,
        netns: BorrowedFd<'_>,
    ) -> Result<Attachment, Error> {
        let pod = config.pod.as_str();
        let host = Netlink::open()?;
        let is_in_use = |index| Ok(host.index(&self.endpoint(index).host_interface)?.is_some());
        let lease = self.lock_leases().take(pod, is_in_use)?;
        let endpoint = Endpoint {
            serves_loopback: config.ports.iter().any(is_at_loopback),
            ..self.endpoint(lease.index)
        };
        if let Err(error) = self.connect(&host, netns, &endpoint, (config, lease)) {
            // A pod that was attached before keeps its lease and ports: the next attempt repairs the rest.
            if lease.is_new {
                self.give_back(pod);
            }
            return Err(error);
        }
        Ok(Attachment {
            pod: pod.to_owned(),
            provider: super::Provider::Builtin,
            addresses: endpoint.addresses(),
            host_interface: endpoint.host_interface,
            ports: config.ports.clone(),
            is_listed: false,
        })
    }

    /// The tables come first: no packet of the pod is to precede the check of its source, and a veth forwards packets with
    /// loopback addresses only behind the ports' guard.
    fn connect(
        &self,
        host: &Netlink,
        netns: BorrowedFd<'_>,
        endpoint: &Endpoint,
        (config, lease): (&NetworkConfig, Lease),
    ) -> Result<(), Error> {
        self.sources.keep()?;
        self.ports
            .open(&config.pod, &endpoint.addresses(), &config.ports)?;
        let pod = self.make(host, netns, endpoint, lease)?;
        self.configure(host, &pod, endpoint).inspect_err(|_| {
            if lease.is_new {
                undo(host, endpoint);
            }
        })
    }

    /// Undoes a failed attach. The next sweep removes what cannot be undone here.
    fn give_back(&self, pod: &str) {
        let closed = self.ports.close(pod);
        let released = self.lock_leases().release(pod).map(drop);
        if let Err(error) = closed.and(released) {
            tracing::warn!(pod, error = %error, "cannot undo a failed attach; the next sweep tries again");
        }
    }

    /// Creates the veth, unless an earlier attempt did. Returns a socket in the pod's namespace.
    fn make(
        &self,
        host: &Netlink,
        netns: BorrowedFd<'_>,
        endpoint: &Endpoint,
        lease: Lease,
    ) -> Result<Netlink, Error> {
        let pod = Netlink::open_in(netns)?;
        let has_both = !lease.is_new && keep_whole(host, &pod, &endpoint.host_interface)?;
        if !has_both {
            host.run(vec![veth::create(endpoint, netns)])?;
        }
        Ok(pod)
    }

    fn configure(&self, host: &Netlink, pod: &Netlink, endpoint: &Endpoint) -> Result<(), Error> {
        let name = &endpoint.host_interface;
        let index = |end: &Netlink, name: &str| {
            end.index(name)?
                .ok_or_else(|| Error::io("find the veth we made", name, Errno::NODEV))
        };
        let host_index = index(host, name)?;
        self.configure_host(host, endpoint, host_index)?;
        pod.run(veth::configure_pod(endpoint, index(pod, POD_INTERFACE)?))?;
        // The host's end got its carrier when the pod's end came up.
        host.run(vec![veth::sync_carrier(host_index, name)])
    }

    /// The node's end. It may be repeated.
    fn configure_host(&self, host: &Netlink, endpoint: &Endpoint, index: u32) -> Result<(), Error> {
        let name = &endpoint.host_interface;
        match endpoint.v6 {
            Some(_) => take_no_advice_v6(name)?,
            None if self.kernel_has_v6 => set_v6(name, "disable_ipv6", "1")?,
            None => {}
        }
        host.run(veth::configure_host(endpoint, index))?;
        match endpoint.v6 {
            Some(_) => forward_v6(name),
            None => Ok(()),
        }
    }

    /// See [`super::Network::detach`].
    pub fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        // The veth lives on for a while, and the last port takes the guard chain with it. A pod without ports may have
        // been detached before, so that its interface is another pod's now.
        if self.ports.has(&attachment.pod) {
            close_loopback(&attachment.host_interface)?;
        }
        let shut = self.shut(attachment)?;
        // Another pod may get the address as soon as its lease is released, and has it if there is none.
        self.ports.close(&attachment.pod)?;
        let index = self.lock_leases().index_of(&attachment.pod);
        if let Some(index) = index {
            self.sources
                .forget(&attachment.pod, &self.endpoint(index).addresses());
        }
        self.lock_leases().release(&attachment.pod)?;
        self.detached.delete_later(shut);
        Ok(())
    }

    /// See [`super::Network::retire`]. While pods have addresses, the table outlives the daemon as they do.
    pub fn retire(&self) {
        self.sources.delete_if(|| self.leases() == 0);
    }

    /// The beginning of the names of the host's ends.
    pub(crate) fn interface_prefix(&self) -> &str {
        &self.config.interface_prefix
    }

    /// Most tracked connections of one pod; any number if it is 0.
    pub(crate) fn connections_per_pod(&self) -> u32 {
        self.config.connections_per_pod
    }

    /// How many addresses are leased.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.lock_leases().len()
    }

    fn endpoint(&self, index: u32) -> Endpoint {
        Endpoint {
            host_interface: self.config.interface(index),
            v4: self.config.subnet_v4.address(index),
            v6: self.config.subnet_v6.map(|subnet| subnet.address(index)),
            kernel_has_v6: self.kernel_has_v6,
            serves_loopback: false,
        }
    }

    fn lock_leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.leases)
    }
}

fn lock(leases: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    // No panic leaves `Leases` half changed.
    leases.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether programs on the node reach `port` at 127.0.0.1.
fn is_at_loopback(port: &HostPort) -> bool {
    port.host_ip
        .map(|at| at.to_canonical())
        .is_none_or(|at| at.is_ipv4() && (at.is_unspecified() || at.is_loopback()))
}

fn is_v6_off_for_new_interfaces() -> bool {
    let switch = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    switch.is_ok_and(|value| value.trim() == "1")
}

/// For a pod that was attached before, perhaps not completely: true if both ends exist.
/// A host's end whose peer is not in this namespace belongs to an older namespace and is deleted.
fn keep_whole(host: &Netlink, pod: &Netlink, name: &str) -> Result<bool, Error> {
    match (host.index(name)?, pod.index(POD_INTERFACE)?) {
        (Some(_), Some(_)) => Ok(true),
        (Some(stale), None) => host.run(vec![veth::delete(stale, name)]).map(|()| false),
        (None, _) => Ok(false),
    }
}

/// Deletes the veth of a failed attach. Best effort: the next sweep tries again.
fn undo(host: &Netlink, endpoint: &Endpoint) {
    let name = &endpoint.host_interface;
    let deleted = match host.index(name) {
        Ok(Some(index)) => host.run(vec![veth::delete(index, name)]),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = deleted {
        tracing::warn!(interface = %name, error = %error, "cannot delete the veth of a failed attach; the next sweep tries again");
    }
}

/// Closes the node's loopback to the pod behind `interface`. Does nothing if the interface is gone.
fn close_loopback(interface: &str) -> Result<(), Error> {
    let host = Netlink::open()?;
    match host.index(interface)? {
        Some(index) => ignore_gone(host.run(vec![veth::close_loopback(index, interface)])),
        None => Ok(()),
    }
}

fn ignore_gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// Sets a switch of `interface`. That of `disable_ipv6` must precede the interface's coming up: with IPv6 the kernel has a
/// multicast route for each interface, and walks the routes of all others whenever one comes up or goes.
fn set_v6(interface: &str, switch: &str, value: &str) -> Result<(), Error> {
    let file = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/{switch}"));
    fs::write(&file, value).map_err(|error| Error::file("set the switch", &file, error))
}

/// Keeps the node from taking routes, and addresses of other gateways, from whoever is behind `interface`.
fn take_no_advice_v6(interface: &str) -> Result<(), Error> {
    set_v6(interface, "accept_ra", "0")?;
    set_v6(interface, "accept_redirects", "0")
}

/// Lets the kernel forward IPv6 from `interface`. Before Linux 6.17 no interface has such a switch,
/// and the node must set `net.ipv6.conf.all.forwarding` itself.
fn forward_v6(interface: &str) -> Result<(), Error> {
    match set_v6(interface, "force_forwarding", "1") {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
