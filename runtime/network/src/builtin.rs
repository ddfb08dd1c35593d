//! The built-in network: routed, one veth a pod, everything by netlink in this process.
//! Called by [`super::Network`] on blocking threads of the host's network namespace.
//!
//! ```text
//! attach: lease -> host ports -> veth with its peer in the pod's namespace -> host's end -> pod's end
//! detach: loopback shut, host ports and lease back. The veth goes with the namespace; deleting it here would cost 40 ms.
//! sweep:  leases, veths and host ports without a live pod
//! ```
//! Invariants: an address is leased only when no interface of its name exists (a dropped namespace
//! answers for some 30 ms more); a failed attach leaves neither lease nor interface; an interface
//! is deleted only if name, kind and MAC say that it is ours; one that lets packets of loopback
//! addresses by (`route_localnet`) has come after the table that guards them, and stops doing so
//! before that goes. The node's own settings are left alone: what leaves the node needs
//! `net.ipv4.ip_forward` and routes from whoever runs it.
//! Not here: masquerading of what leaves the node, policies.

mod ports;
mod sweep;
mod table;
mod watch;

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::error::Error;
use super::lease::{Lease, Leases};
use super::netlink::Netlink;
use super::subnet::{Ipv4Subnet, Ipv6Subnet};
use super::veth::{self, Endpoint, POD_INTERFACE};
use super::{Attachment, HostPort, NetworkConfig};
use ports::Ports;
use table::Table;

/// What the built-in network needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltinConfig {
    /// Where IPv4 addresses come from.
    pub subnet_v4: Ipv4Subnet,
    /// Where IPv6 addresses come from; none unless set. At least as large as `subnet_v4`.
    pub subnet_v6: Option<Ipv6Subnet>,
    /// Where leases are kept; made if absent. Best on a tmpfs: no lease outlives a reboot, and ext4
    /// is slow to make a file when many were deleted within the last half minute.
    pub lease_dir: PathBuf,
    /// What names of host interfaces begin with: 3 or 4 lowercase letters, `cor` by default. Two
    /// daemons on one node need different ones.
    pub interface_prefix: String,
}

/// The built-in network of one daemon.
#[derive(Debug)]
pub struct Builtin {
    config: BuiltinConfig,
    kernel_has_v6: bool,
    leases: Mutex<Leases>,
    ports: Ports,
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
        let leases = Mutex::new(Leases::open(&config.lease_dir, config.subnet_v4)?);
        let ports = Ports::new(Table {
            name: format!("coracle-{}", config.interface_prefix),
            interface_prefix: config.interface_prefix.clone(),
            sender_v6: config.subnet_v6.map(|subnet| subnet.address(0)),
        });
        Ok(Self {
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
            // A pod that was attached before keeps what it has: the next attempt mends it.
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
        })
    }

    /// The ports come first: their table must be there before a veth lets packets of loopback addresses by.
    fn connect(
        &self,
        host: &Netlink,
        netns: BorrowedFd<'_>,
        endpoint: &Endpoint,
        (config, lease): (&NetworkConfig, Lease),
    ) -> Result<(), Error> {
        self.ports
            .open(&config.pod, &endpoint.addresses(), &config.ports)?;
        let pod = self.make(host, netns, endpoint, lease)?;
        self.configure(host, &pod, endpoint).inspect_err(|_| {
            if lease.is_new {
                undo(host, endpoint);
            }
        })
    }

    /// After a failed attach; what cannot be undone, the next sweep finds.
    fn give_back(&self, pod: &str) {
        let closed = self.ports.close(pod);
        let released = self.lock_leases().release(pod).map(drop);
        if let Err(error) = closed.and(released) {
            tracing::warn!(pod, error = %error, "what a failed attach held is left for the next sweep");
        }
    }

    /// Makes the veth, unless an earlier attempt did. Gives a socket in the pod's namespace.
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
        host.run(veth::configure_host(endpoint, host_index))?;
        if endpoint.v6.is_some() {
            forward_v6(name)?;
        }
        pod.run(veth::configure_pod(endpoint, index(pod, POD_INTERFACE)?))?;
        // The pod's end came up last, which is when the host's end got its carrier.
        host.run(vec![veth::settle(host_index, name)])
    }

    /// See [`super::Network::detach`].
    pub fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        // The veth lives on for a while, and the guard goes with the last port. A pod without ports may have been
        // detached before, and its interface be another pod's.
        if self.ports.has(&attachment.pod) {
            close_loopback(&attachment.host_interface)?;
        }
        // The address may be another pod's as soon as its lease is back.
        self.ports.close(&attachment.pod)?;
        self.lock_leases().release(&attachment.pod).map(drop)
    }

    /// How many addresses are leased.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.lock_leases().len()
    }

    fn endpoint(&self, index: u32) -> Endpoint {
        Endpoint {
            host_interface: format!("{}{index:x}", self.config.interface_prefix),
            v4: self.config.subnet_v4.address(index),
            v6: self.config.subnet_v6.map(|subnet| subnet.address(index)),
            kernel_has_v6: self.kernel_has_v6,
            serves_loopback: false,
        }
    }

    fn lock_leases(&self) -> MutexGuard<'_, Leases> {
        // No method of `Leases` leaves it half changed where it could panic.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody on the node reaches `port` at 127.0.0.1.
fn is_at_loopback(port: &HostPort) -> bool {
    port.host_ip
        .map(|at| at.to_canonical())
        .is_none_or(|at| at.is_ipv4() && (at.is_unspecified() || at.is_loopback()))
}

fn is_v6_off_for_new_interfaces() -> bool {
    let switch = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    switch.is_ok_and(|value| value.trim() == "1")
}

/// For a pod that was attached before, perhaps not to the end: true if both ends are there.
/// A host's end whose peer is not in this namespace belongs to an older one and is deleted.
fn keep_whole(host: &Netlink, pod: &Netlink, name: &str) -> Result<bool, Error> {
    match (host.index(name)?, pod.index(POD_INTERFACE)?) {
        (Some(_), Some(_)) => Ok(true),
        (Some(stale), None) => host.run(vec![veth::delete(stale, name)]).map(|()| false),
        (None, _) => Ok(false),
    }
}

/// Deletes the veth of a failed attach. Best effort: what fails here, the next sweep finds.
fn undo(host: &Netlink, endpoint: &Endpoint) {
    let name = &endpoint.host_interface;
    let deleted = match host.index(name) {
        Ok(Some(index)) => host.run(vec![veth::delete(index, name)]),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = deleted {
        tracing::warn!(interface = %name, error = %error, "the veth of a failed attach is left for the next sweep");
    }
}

/// Shuts the node's loopback to the pod behind `interface`. Fine if that is gone.
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

/// Lets the kernel forward IPv6 from `interface`. Before Linux 6.17 there is no such switch an
/// interface, and the node must set `net.ipv6.conf.all.forwarding` itself.
fn forward_v6(interface: &str) -> Result<(), Error> {
    let switch = PathBuf::from(format!(
        "/proc/sys/net/ipv6/conf/{interface}/force_forwarding"
    ));
    match fs::write(&switch, "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("write 1 to", &switch, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
