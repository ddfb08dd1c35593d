//! Assigns ports of the node to pods, and keeps the kernel's table equal to the assignments.
//!
//! ```text
//! open     check for conflicts -> add to the table -> drop conntrack entries of UDP flows that bypass it
//! close    remove from the table -> with a UDP port, drop the conntrack entries that lead to the pod
//! restore  write the whole table from the live pods
//! mend     another program changed the table (`watch` reports it): write all of it again
//! ```
//! Invariants: a port belongs to one pod; the lock is held while the table changes, so that both agree, and a pod
//! without ports never takes it; a watch runs exactly while a pod has ports.
//! Not here: the rules of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::error::Error;
use super::super::netlink::Netlink;
use super::super::nft::{Batch, Flow, Nft, forget_flows};
use super::super::{Attachment, HostPort, Protocol};
use super::table::{Mapping, Table, protocol_number};
use super::watch::Watch;

/// The host ports of one daemon's pods.
#[derive(Debug)]
pub(super) struct Ports(Arc<Shared>);

/// State that the watch uses, too.
#[derive(Debug)]
struct Shared {
    table: Table,
    held: Mutex<Held>,
    repairs: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    by_pod: ByPod,
    /// `Some` while `by_pod` has a port.
    watch: Option<Watch>,
}

/// Ports by pod.
type ByPod = BTreeMap<String, Mapping>;

impl Ports {
    /// No pod has a port. The content of the kernel's table is unknown before [`Ports::restore`].
    pub(super) fn new(table: Table) -> Self {
        Self(Arc::new(Shared {
            table,
            held: Mutex::default(),
            repairs: AtomicU64::new(0),
        }))
    }

    /// How many ports pods have.
    pub(super) fn count(&self) -> u64 {
        let held = self.0.lock();
        held.by_pod
            .values()
            .map(|mapping| mapping.ports.len() as u64)
            .sum()
    }

    /// How often the table was written again after another program's change.
    pub(super) fn repairs(&self) -> u64 {
        self.0.repairs.load(Ordering::Relaxed)
    }

    /// Forwards `ports` of the node to a pod at `addresses`. It may be repeated.
    /// Errors: another pod has one of the ports, the pod has no address of a port's family, or the kernel refuses;
    /// the pod then has none of the ports.
    pub(super) fn open(
        &self,
        pod: &str,
        addresses: &[IpAddr],
        ports: &[HostPort],
    ) -> Result<(), Error> {
        if ports.is_empty() {
            return Ok(());
        }
        let mapping = mapping(addresses, ports);
        let mut held = self.0.lock();
        check(pod, &mapping, &held.by_pod)?;
        let before = held.by_pod.insert(pod.to_owned(), mapping.clone());
        // Only this pod's elements change, in a table that exists.
        let is_step = match &before {
            Some(before) => *before == mapping,
            None => held.by_pod.len() > 1,
        };
        let step = is_step.then(|| self.0.table.add(&mapping));
        if let Err(error) = self.0.write(step, &mut held) {
            held.by_pod.remove(pod);
            if held.by_pod.is_empty() {
                held.watch = None;
            }
            return Err(error);
        }
        drop(held);
        if has_udp(&mapping) {
            forget(pod, |flow, node| passes_by(flow, node, &mapping));
        }
        Ok(())
    }

    /// Releases the ports of a pod. Does nothing if it has none.
    /// Errors: the kernel refuses; the pod then keeps its ports.
    pub(super) fn close(&self, pod: &str) -> Result<(), Error> {
        let mut held = self.0.lock();
        let Some(mapping) = held.by_pod.remove(pod) else {
            return Ok(());
        };
        let step = self.0.table.remove(&mapping);
        if let Err(error) = self.0.write(Some(step), &mut held) {
            held.by_pod.insert(pod.to_owned(), mapping);
            return Err(error);
        }
        drop(held);
        if has_udp(&mapping) {
            forget(pod, |flow, _| mapping.addresses.contains(&flow.answers));
        }
        Ok(())
    }

    /// Whether `pod` has any.
    pub(super) fn has(&self, pod: &str) -> bool {
        self.0.lock().by_pod.contains_key(pod)
    }

    /// Writes the ports of `live` pods, and only those, to the table. If no pod has a port, the table stays
    /// as it is for [`Ports::sweep`]. Unless `all` pods are known, other entries of the table stay.
    pub(super) fn restore(&self, live: &[Attachment], all: bool) -> Result<(), Error> {
        let mut held = self.0.lock();
        held.by_pod.clear();
        for attachment in live {
            if attachment.ports.is_empty() {
                continue;
            }
            let mapping = mapping(&attachment.addresses, &attachment.ports);
            match check(&attachment.pod, &mapping, &held.by_pod) {
                Ok(()) => drop(held.by_pod.insert(attachment.pod.clone(), mapping)),
                Err(error) => {
                    tracing::warn!(error = %error, "a pod's record has host ports that conflict with another pod's")
                }
            }
        }
        if held.by_pod.is_empty() {
            return Ok(());
        }
        // Changes nothing if the table is as the last daemon left it.
        let known = held.by_pod.values().next().filter(|_| !all);
        let step = known.map(|mapping| self.0.table.add(mapping));
        self.0.write(step, &mut held)
    }

    /// Deletes the table if no pod has ports, and reports it. No interface may still need its guard chain.
    pub(super) fn sweep(&self) -> Vec<String> {
        let mut held = self.0.lock();
        if !held.by_pod.is_empty() {
            return Vec::new();
        }
        held.watch = None;
        match commit(self.0.table.delete()) {
            Ok(()) => vec![format!("table {} of nftables", self.0.table.name)],
            Err(error) => {
                // The table is absent, or this kernel has no nf_tables.
                tracing::debug!(error = %error, "found no table of host ports to delete");
                Vec::new()
            }
        }
    }
}

impl Shared {
    /// Makes the table equal to `held`: by one `step` if that works, else by writing all of it.
    fn write(self: &Arc<Self>, step: Option<Batch>, held: &mut Held) -> Result<(), Error> {
        if held.by_pod.is_empty() {
            match commit(self.table.delete()) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                done => done?,
            }
            held.watch = None;
            return Ok(());
        }
        // Started before the table is written, so that no change is missed.
        if held.watch.is_none() {
            held.watch = Some(self.watch()?);
        }
        match step.map(commit) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => {
                tracing::warn!(error = %error, "another program changed our nftables table; writing it again");
            }
            None => {}
        }
        commit(self.table.renew(held.by_pod.values()))
    }

    fn watch(self: &Arc<Self>) -> Result<Watch, Error> {
        let shared = Arc::downgrade(self);
        Watch::start(&self.table.name, move || {
            shared.upgrade().map_or(Ok(false), |shared| shared.mend())
        })
    }

    /// Writes the table again if another program flushed or changed it; returns whether that was so.
    fn mend(&self) -> Result<bool, Error> {
        let held = self.lock();
        if held.by_pod.is_empty() {
            return Ok(false);
        }
        let nft = Nft::open()?;
        if nft.rules(&self.table.name)? == self.table.rules() {
            return Ok(false);
        }
        nft.commit(self.table.renew(held.by_pod.values()))?;
        self.repairs.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(table = %self.table.name, "another program changed our nftables table; writing it again");
        let udp: ByPod = held
            .by_pod
            .iter()
            .filter(|(_, mapping)| has_udp(mapping))
            .map(|(pod, mapping)| (pod.clone(), mapping.clone()))
            .collect();
        drop(held);
        // Flows that began without the table bypass the pods.
        for (pod, mapping) in &udp {
            forget(pod, |flow, node| passes_by(flow, node, mapping));
        }
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // No panic leaves the state half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops duplicates.
fn mapping(addresses: &[IpAddr], ports: &[HostPort]) -> Mapping {
    let ports: BTreeSet<HostPort> = ports.iter().cloned().collect();
    Mapping {
        addresses: addresses.to_vec(),
        ports: ports.into_iter().collect(),
    }
}

fn commit(batch: Batch) -> Result<(), Error> {
    Nft::open()?.commit(batch)
}

/// Errors: another pod has a port of `mapping`, or the pod has no address of a port's family.
fn check(pod: &str, mapping: &Mapping, held: &ByPod) -> Result<(), Error> {
    for (number, port) in mapping.ports.iter().enumerate() {
        if let Some(at) = port.host_ip.map(|at| at.to_canonical()) {
            let serves = |own: &IpAddr| own.is_ipv4() == at.is_ipv4();
            if !mapping.addresses.iter().any(serves) {
                return Err(Error::PortFamily {
                    port: describe(port),
                    pod: pod.to_owned(),
                });
            }
        }
        let others = held.iter().filter(|(holder, _)| *holder != pod);
        let taken = others.flat_map(|(holder, other)| {
            other
                .ports
                .iter()
                .map(move |theirs| (holder.as_str(), theirs))
        });
        let own = mapping.ports[..number].iter().map(|other| (pod, other));
        if let Some((holder, _)) = taken.chain(own).find(|(_, other)| overlap(port, other)) {
            return Err(Error::PortTaken {
                port: describe(port),
                pod: pod.to_owned(),
                holder: holder.to_owned(),
            });
        }
    }
    Ok(())
}

/// Whether one packet could match both.
fn overlap(one: &HostPort, other: &HostPort) -> bool {
    let meet = match (one.host_ip, other.host_ip) {
        (Some(one), Some(other)) => {
            let (one, other) = (one.to_canonical(), other.to_canonical());
            one.is_ipv4() == other.is_ipv4()
                && (one == other || one.is_unspecified() || other.is_unspecified())
        }
        _ => true,
    };
    meet && (one.protocol, one.host_port) == (other.protocol, other.host_port)
}

/// The text of a port in errors.
fn describe(port: &HostPort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let at = match port.host_ip {
        Some(at) if at.is_unspecified() && at.is_ipv4() => "every IPv4 address".to_owned(),
        Some(at) if at.is_unspecified() => "every IPv6 address".to_owned(),
        Some(at) => at.to_string(),
        None => "every address".to_owned(),
    };
    format!("{protocol} port {} of {at}", port.host_port)
}

/// Whether conntrack entries must be dropped. TCP needs it not: the pod or its successor resets the connection.
fn has_udp(mapping: &Mapping) -> bool {
    let is_udp = |port: &HostPort| port.protocol == Protocol::Udp;
    mapping.ports.iter().any(is_udp)
}

/// Whether `flow` goes to a UDP port of `mapping`, but not to its pod.
fn passes_by(flow: &Flow, node: &[IpAddr], mapping: &Mapping) -> bool {
    let is_for_node = flow.target.is_loopback() || node.contains(&flow.target);
    let is_ours = |port: &HostPort| {
        port.protocol == Protocol::Udp
            && port.host_port == flow.port
            && port
                .host_ip
                .is_none_or(|at| at.is_unspecified() || at.to_canonical() == flow.target)
    };
    flow.protocol == protocol_number(Protocol::Udp)
        && is_for_node
        && !mapping.addresses.contains(&flow.answers)
        && mapping.ports.iter().any(is_ours)
}

/// Drops the conntrack entries for which `is_stale` (given the node's addresses, too) is true. Best effort: an
/// entry that stays expires after some minutes without traffic.
fn forget(pod: &str, is_stale: impl Fn(&Flow, &[IpAddr]) -> bool) {
    let node = Netlink::open().and_then(|host| host.addresses());
    let done = node.and_then(|node| forget_flows(|flow| is_stale(flow, &node)));
    match done {
        Ok(0) => {}
        Ok(count) => tracing::debug!(pod, count, "dropped stale conntrack entries"),
        Err(error) => {
            tracing::warn!(pod, error = %error, "cannot drop stale conntrack entries of host ports; they expire without traffic");
        }
    }
}
