//! Who has which port of the node, and that the kernel's table says the same.
//!
//! ```text
//! open     nobody else has it? -> into the table -> UDP flows that go past it are forgotten
//! close    out of the table -> with a UDP port, whatever was led to the pod is forgotten
//! restore  the table is written anew from the live pods, whatever happened to it
//! ```
//! Invariants: a port belongs to one pod; the lock is held while the table changes, so that both say the same, and
//! never touched for a pod without ports; if somebody else flushed the table, the next change writes all of it.
//! Not here: what the table looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::error::Error;
use super::super::netlink::Netlink;
use super::super::nft::{Batch, Flow, Nft, forget_flows};
use super::super::{Attachment, HostPort, Protocol};
use super::table::{Mapping, Table, protocol_number};

/// The host ports of one daemon's pods.
#[derive(Debug)]
pub(super) struct Ports {
    table: Table,
    held: Mutex<Held>,
}

/// Ports by pod.
type Held = BTreeMap<String, Mapping>;

impl Ports {
    /// Nobody has any. What the kernel's table says is not known before [`Ports::restore`].
    pub(super) fn new(table: Table) -> Self {
        Self {
            table,
            held: Mutex::default(),
        }
    }

    /// Leads `ports` of the node to a pod at `addresses`. Repeating it is fine.
    /// Errors: another pod has one, the pod has no address of the family of one, or the kernel refuses; the pod
    /// has none of them then.
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
        let mut held = self.lock();
        check(pod, &mapping, &held)?;
        let before = held.insert(pod.to_owned(), mapping.clone());
        // One step where the pod's are the only ones to change, and somebody's are there already.
        let is_step = match &before {
            Some(before) => *before == mapping,
            None => held.len() > 1,
        };
        let step = is_step.then(|| self.table.add(&mapping));
        if let Err(error) = self.write(step, &held) {
            held.remove(pod);
            return Err(error);
        }
        drop(held);
        if mapping
            .ports
            .iter()
            .any(|port| port.protocol == Protocol::Udp)
        {
            forget(pod, |flow, node| passes_by(flow, node, &mapping));
        }
        Ok(())
    }

    /// Takes back what [`Ports::open`] gave to a pod. Fine if it has none.
    /// Errors: the kernel refuses; the pod still has them then.
    pub(super) fn close(&self, pod: &str) -> Result<(), Error> {
        let mut held = self.lock();
        let Some(mapping) = held.remove(pod) else {
            return Ok(());
        };
        if let Err(error) = self.write(Some(self.table.remove(&mapping)), &held) {
            held.insert(pod.to_owned(), mapping);
            return Err(error);
        }
        drop(held);
        if has_udp(&mapping) {
            forget(pod, |flow, _| mapping.addresses.contains(&flow.answers));
        }
        Ok(())
    }

    /// Makes the ports of `live` pods, and only those, lead where they should. Says what it took away.
    pub(super) fn restore(&self, live: &[Attachment]) -> Result<Vec<String>, Error> {
        let mut held = self.lock();
        held.clear();
        for attachment in live {
            if attachment.ports.is_empty() {
                continue;
            }
            let mapping = mapping(&attachment.addresses, &attachment.ports);
            match check(&attachment.pod, &mapping, &held) {
                Ok(()) => drop(held.insert(attachment.pod.clone(), mapping)),
                Err(error) => {
                    tracing::warn!(error = %error, "a pod's record has host ports that it cannot have")
                }
            }
        }
        if !held.is_empty() {
            return self.write(None, &held).map(|()| Vec::new());
        }
        match commit(self.table.delete()) {
            Ok(()) => Ok(vec![format!("table {} of nftables", self.table.name)]),
            Err(error) => {
                // It is not there, or this kernel has no nf_tables at all.
                tracing::debug!(error = %error, "no table of host ports is left");
                Ok(Vec::new())
            }
        }
    }

    /// Makes the table say what `held` says: by one `step` if that works, else by writing all of it.
    fn write(&self, step: Option<Batch>, held: &Held) -> Result<(), Error> {
        if held.is_empty() {
            return match commit(self.table.delete()) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                done => done,
            };
        }
        match step.map(commit) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => {
                tracing::warn!(error = %error, "somebody else changed our table; it is written anew");
            }
            None => {}
        }
        commit(self.table.renew(held.values()))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics between the changes of it that belong together.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port that is asked for twice in the same words is one.
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

/// Errors: a port of `mapping` that somebody has, or that no address of the pod could serve.
fn check(pod: &str, mapping: &Mapping, held: &Held) -> Result<(), Error> {
    for (number, port) in mapping.ports.iter().enumerate() {
        if let Some(at) = port.host_ip.map(|at| at.to_canonical()) {
            let serves = |own: &IpAddr| own.is_ipv4() == at.is_ipv4();
            if !mapping.addresses.iter().any(serves) {
                return Err(Error::PortFamily {
                    port: words(port),
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
                port: words(port),
                pod: pod.to_owned(),
                holder: holder.to_owned(),
            });
        }
    }
    Ok(())
}

/// Whether a packet could mean either.
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

/// A port as an error names it.
fn words(port: &HostPort) -> String {
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

/// Whether connections must be forgotten: one of TCP ends when its pod or the next one resets it.
fn has_udp(mapping: &Mapping) -> bool {
    let is_udp = |port: &HostPort| port.protocol == Protocol::Udp;
    mapping.ports.iter().any(is_udp)
}

/// Whether `flow` goes to a UDP port of the node that is `mapping`'s, but not to its pod.
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

/// Has the kernel forget connections, of which `is_stale` judges with the node's addresses beside. Best effort: what
/// stays ends by itself when nothing comes for some minutes.
fn forget(pod: &str, is_stale: impl Fn(&Flow, &[IpAddr]) -> bool) {
    let node = Netlink::open().and_then(|host| host.addresses());
    let done = node.and_then(|node| forget_flows(&Nft::open()?, |flow| is_stale(flow, &node)));
    match done {
        Ok(0) => {}
        Ok(count) => tracing::debug!(pod, count, "stale connections are forgotten"),
        Err(error) => {
            tracing::warn!(pod, error = %error, "connections of host ports are left to end by themselves");
        }
    }
}
