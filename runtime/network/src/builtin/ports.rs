//! Who has which port of the node, and that the kernel's table says the same.
//!
//! ```text
//! open     nobody else has it? -> into the table -> UDP flows that go past it are forgotten
//! close    out of the table -> with a UDP port, whatever was led to the pod is forgotten
//! restore  the table is written anew from the live pods, whatever happened to it
//! mend     somebody else changed the table (`watch` says so): all of it is written anew
//! ```
//! Invariants: a port belongs to one pod; the lock is held while the table changes, so that both say the same, and
//! never touched for a pod without ports; somebody watches the table exactly while a pod has ports.
//! Not here: what the table looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
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

/// What the watch looks at, too.
#[derive(Debug)]
struct Shared {
    table: Table,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by_pod: ByPod,
    /// There while `by_pod` has any.
    watch: Option<Watch>,
}

/// Ports by pod.
type ByPod = BTreeMap<String, Mapping>;

impl Ports {
    /// Nobody has any. What the kernel's table says is not known before [`Ports::restore`].
    pub(super) fn new(table: Table) -> Self {
        Self(Arc::new(Shared {
            table,
            held: Mutex::default(),
        }))
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
        let mut held = self.0.lock();
        check(pod, &mapping, &held.by_pod)?;
        let before = held.by_pod.insert(pod.to_owned(), mapping.clone());
        // One step where the pod's are the only ones to change, and somebody's are there already.
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

    /// Takes back what [`Ports::open`] gave to a pod. Fine if it has none.
    /// Errors: the kernel refuses; the pod still has them then.
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

    /// Makes the ports of `live` pods, and only those, lead where they should. Where none has any, the table is left
    /// as it is for [`Ports::sweep`]. Unless `all` pods are known, what the table has besides stays.
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
                    tracing::warn!(error = %error, "a pod's record has host ports that it cannot have")
                }
            }
        }
        if held.by_pod.is_empty() {
            return Ok(());
        }
        // A step that changes nothing, where the table is as the last daemon left it.
        let known = held.by_pod.values().next().filter(|_| !all);
        let step = known.map(|mapping| self.0.table.add(mapping));
        self.0.write(step, &mut held)
    }

    /// Deletes the table if no pod has ports, and says so. Nothing that needs its guard may be left.
    pub(super) fn sweep(&self) -> Vec<String> {
        let mut held = self.0.lock();
        if !held.by_pod.is_empty() {
            return Vec::new();
        }
        held.watch = None;
        match commit(self.0.table.delete()) {
            Ok(()) => vec![format!("table {} of nftables", self.0.table.name)],
            Err(error) => {
                // It is not there, or this kernel has no nf_tables at all.
                tracing::debug!(error = %error, "no table of host ports is left");
                Vec::new()
            }
        }
    }
}

impl Shared {
    /// Makes the table say what `held` says: by one `step` if that works, else by writing all of it.
    fn write(self: &Arc<Self>, step: Option<Batch>, held: &mut Held) -> Result<(), Error> {
        if held.by_pod.is_empty() {
            match commit(self.table.delete()) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                done => done?,
            }
            held.watch = None;
            return Ok(());
        }
        // Before the table: no change of it goes unnoticed.
        if held.watch.is_none() {
            held.watch = Some(self.watch()?);
        }
        match step.map(commit) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => {
                tracing::warn!(error = %error, "somebody else changed our table; it is written anew");
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

    /// Writes the table anew if somebody else flushed or changed it; says whether that was so.
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
        tracing::warn!(table = %self.table.name, "somebody else changed our table of nftables; it is written anew");
        let udp: ByPod = held
            .by_pod
            .iter()
            .filter(|(_, mapping)| has_udp(mapping))
            .map(|(pod, mapping)| (pod.clone(), mapping.clone()))
            .collect();
        drop(held);
        // Those that began without the table go past the pods.
        for (pod, mapping) in &udp {
            forget(pod, |flow, node| passes_by(flow, node, mapping));
        }
        Ok(true)
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
fn check(pod: &str, mapping: &Mapping, held: &ByPod) -> Result<(), Error> {
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
