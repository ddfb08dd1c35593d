//! Closes the node's control ports once more, on the node, to pods under an egress list.
//!
//! ```text
//! arriving   filter, input   from a pod under a list, by its address                                -> closed
//! closed                     first TCP segments, UDP and SCTP packets to a denied port              reject
//! ```
//! The rules in a pod's own namespace ([`super`]) know the addresses that the node had when the pod began, and see a packet before
//! the node translates it. These here come after that, and hold for whatever address is the node's by then: one that it was given
//! later, or a Service whose endpoint is the node.
//! They need no tracked connections, which a node may do without; so of TCP they see only what opens a connection, and a node
//! that itself calls a pod by UDP must not do that from a denied port (`net.ipv4.ip_local_reserved_ports`).
//! Called by: [`crate::Network`]. Invariants: a pod is in the table before its first process, and out of it before its address is
//! another pod's; the table exists exactly while there is such a pod, also while no daemon runs; it is written again when
//! another program changed it.
//! Not here: which pods are under a list.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::builtin::Watch;
use super::super::error::Error;
use super::super::nft::{Base, Batch, Element, Hook, Kind, Nft, Rule, Set, Type};
use super::{WITH_PORTS, key};

const ARRIVING: &str = "arriving";
const CLOSED: &str = "closed";
// Source: linux/netfilter_ipv4.h, NF_IP_PRI_FILTER.
const PRIORITY_FILTER: i32 = 0;
const PODS_V4: Set = Set {
    name: "pods_v4",
    key: &[Type::Ipv4],
    value: &[],
};
const PODS_V6: Set = Set {
    name: "pods_v6",
    key: &[Type::Ipv6],
    value: &[],
};

/// The ports of one daemon's node, and who is kept from them.
#[derive(Debug)]
pub(crate) struct ControlPorts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: String,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Addresses of pods under a list.
    pods: BTreeMap<String, Vec<IpAddr>>,
    /// First and last of the ranges.
    ports: Vec<(u16, u16)>,
    /// Whether the table may have pods of which nobody has told.
    has_others: bool,
    /// `Some` while there is a pod.
    watch: Option<Watch>,
}

impl ControlPorts {
    /// Of the daemon with this prefix of interfaces. Nothing is written yet.
    pub(crate) fn new(interface_prefix: &str) -> Self {
        Self(Arc::new(Shared {
            table: format!("coracle-{interface_prefix}-control"),
            held: Mutex::default(),
        }))
    }

    /// Closes `ports` to a pod at `addresses`, and to all others that are held. It may be repeated. Errors: the kernel refuses.
    pub(crate) fn close_to(
        &self,
        pod: &str,
        addresses: &[IpAddr],
        ports: &[(u16, u16)],
    ) -> Result<(), Error> {
        let mut held = self.0.lock();
        let is_step = !held.pods.is_empty() && held.ports == ports;
        let before = held.pods.insert(pod.to_owned(), addresses.to_vec());
        let ports_before = std::mem::replace(&mut held.ports, ports.to_vec());
        let step = is_step.then(|| self.0.add(addresses));
        let written = self.0.write(step, &mut held);
        if written.is_err() {
            held.ports = ports_before;
            match before {
                Some(before) => drop(held.pods.insert(pod.to_owned(), before)),
                None => drop(held.pods.remove(pod)),
            }
        }
        written
    }

    /// A pod is gone, or begins without a list: `addresses` are nobody's who is held. Errors: the kernel refuses.
    pub(crate) fn release(&self, pod: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut held = self.0.lock();
        let known = held.pods.remove(pod);
        if known.is_none() && !held.has_others {
            return Ok(());
        }
        // Plugins may have given an address to the next pod by now.
        let is_over = |address: &&IpAddr| !held.pods.values().flatten().any(|one| one == *address);
        let own = known.as_deref().unwrap_or(addresses);
        let over: Vec<IpAddr> = own.iter().filter(is_over).copied().collect();
        let written = match held.pods.is_empty() && !held.has_others {
            true => self.0.write(None, &mut held),
            false => over
                .iter()
                .try_for_each(|address| ignore_absent(commit(self.0.remove(*address)))),
        };
        if let (Err(_), Some(known)) = (&written, known) {
            held.pods.insert(pod.to_owned(), known);
        }
        written
    }

    /// Holds exactly `pods`, at the daemon's start. Unless they are `all` that there are, others stay in the table.
    /// Errors: the kernel refuses.
    pub(crate) fn restore<'a>(
        &self,
        pods: impl Iterator<Item = (&'a str, &'a [IpAddr])>,
        ports: &[(u16, u16)],
        all: bool,
    ) -> Result<(), Error> {
        let mut held = self.0.lock();
        held.pods = pods
            .map(|(pod, addresses)| (pod.to_owned(), addresses.to_vec()))
            .collect();
        held.ports = ports.to_vec();
        held.has_others = !all;
        if held.has_others && held.pods.is_empty() {
            return Ok(());
        }
        let known: Vec<IpAddr> = held.pods.values().flatten().copied().collect();
        let step = held.has_others.then(|| self.0.add(&known));
        self.0.write(step, &mut held)
    }
}

impl Shared {
    /// Makes the table equal to `held`: by one `step` if that works, else by writing all of it.
    fn write(self: &Arc<Self>, step: Option<Batch>, held: &mut Held) -> Result<(), Error> {
        if held.pods.is_empty() {
            held.watch = None;
            let mut batch = Batch::new(&self.table);
            batch.delete_table();
            // It is absent, or this kernel has no nf_tables, and so holds no pod to a list.
            return match commit(batch) {
                Err(error) if error.is_unknown_to_kernel() => Ok(()),
                done => done,
            };
        }
        // Started before the table is written, so that no change is missed.
        if held.watch.is_none() {
            let shared = Arc::downgrade(self);
            held.watch = Some(Watch::start(&self.table, move || {
                shared.upgrade().map_or(Ok(false), |shared| shared.mend())
            })?);
        }
        if step.is_some_and(|step| commit(step).is_ok()) {
            return Ok(());
        }
        commit(self.renew(held))
    }

    /// Writes the table again if another program flushed or changed it; returns whether that was so.
    fn mend(&self) -> Result<bool, Error> {
        let held = self.lock();
        let nft = Nft::open()?;
        let wanted = self.renew(&held);
        if held.pods.is_empty() || nft.rules(&self.table)? == wanted.rules() {
            return Ok(false);
        }
        nft.commit(wanted)?;
        tracing::warn!(table = %self.table, "another program changed our nftables table; writing it again");
        Ok(true)
    }

    /// Replaces the table.
    fn renew(&self, held: &Held) -> Batch {
        let mut batch = Batch::new(&self.table);
        batch.renew_table();
        let base = Base {
            kind: Kind::Filter,
            hook: Hook::Input,
            priority: PRIORITY_FILTER,
            accepts: true,
        };
        batch.add_chain(CLOSED, None);
        for (first, last) in &held.ports {
            for protocol in WITH_PORTS {
                let there = Rule::default()
                    .protocol(protocol as u8)
                    .ports(*first, *last);
                let refused = match protocol {
                    libc::IPPROTO_TCP => there.first_of_tcp().reset(),
                    _ => there.reject(),
                };
                batch.add_rule(CLOSED, &refused);
            }
        }
        batch.add_chain(ARRIVING, Some(base));
        for (set, family) in [
            (PODS_V4, Rule::default().ipv4()),
            (PODS_V6, Rule::default().ipv6()),
        ] {
            batch.add_set(set);
            batch.add_rule(ARRIVING, &family.source_in(set).jump(CLOSED));
        }
        let all: Vec<IpAddr> = held.pods.values().flatten().copied().collect();
        add_to(&mut batch, &all);
        batch
    }

    /// Adds pods at `addresses`.
    fn add(&self, addresses: &[IpAddr]) -> Batch {
        let mut batch = Batch::new(&self.table);
        add_to(&mut batch, addresses);
        batch
    }

    fn remove(&self, address: IpAddr) -> Batch {
        let mut batch = Batch::new(&self.table);
        batch.delete_elements(set_of(address), &[key(&address)]);
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // No panic leaves the state half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add_to(batch: &mut Batch, addresses: &[IpAddr]) {
    for set in [PODS_V4, PODS_V6] {
        let own = addresses.iter().filter(|address| set_of(**address) == set);
        let elements: Vec<Element> = own.map(key).collect();
        batch.add_elements(set, &elements);
    }
}

fn set_of(address: IpAddr) -> Set {
    match address {
        IpAddr::V4(_) => PODS_V4,
        IpAddr::V6(_) => PODS_V6,
    }
}

fn commit(batch: Batch) -> Result<(), Error> {
    Nft::open()?.commit(batch)
}

fn ignore_absent(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}
