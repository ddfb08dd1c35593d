//! Removes what a daemon that died left of the built-in network, and detaches pods without a readable record.
//!
//! Called by: [`crate::Network`], at the daemon's start, and when a pod is dropped or its record becomes readable.
//! Invariants: it removes only what a lease in this daemon's own directory names, because an address is leased
//! before its interface is created, and what is down without one, because it was detached; pods whose attachment is unknown
//! keep what they hold.
//! Not here: which pods are live.

use std::collections::{HashMap, HashSet};

use super::super::error::Error;
use super::super::netlink::{Link, Netlink};
use super::super::{Attachment, Provider};
use super::detached::delete_together;
use super::{Builtin, Endpoint, ignore_gone, is_at_loopback};

impl Builtin {
    /// See [`crate::Network::sweep`].
    pub fn sweep(&self, live: &[Attachment], kept: &HashSet<String>) -> Result<Vec<String>, Error> {
        self.ports.restore(live, kept.is_empty())?;
        let removed = self.sweep_orphans(live, kept);
        // What the kernel refuses here keeps no address leased, and leftovers keep nobody from masquerading.
        self.check_sources(live)
            .and_then(|()| self.masquerade())
            .inspect_err(|_| {
                tracing::info!(?removed, "swept without writing all tables");
            })?;
        removed
    }

    /// Has the sources of pods' packets checked, also of pods that a build without this check has attached.
    fn check_sources(&self, live: &[Attachment]) -> Result<(), Error> {
        if self.leases() == 0 && live.is_empty() {
            self.sources.delete_if(|| true);
            return Ok(());
        }
        self.sources.tidy();
        self.sources.keep()?;
        let is_leased = |attachment: &Attachment| {
            let index = self.config.subnet_v4.index_among(&attachment.addresses);
            index.is_some()
        };
        if !live.iter().all(is_leased) {
            self.sources.stay();
        }
        let host = Netlink::open()?;
        let links = host.links()?;
        let by_name: HashMap<&str, &Link> = links
            .iter()
            .map(|link| (link.name.as_str(), link))
            .collect();
        for attachment in live {
            let link = by_name.get(attachment.host_interface.as_str());
            let Some(link) = link.filter(|link| !link.is_without_arp) else {
                continue;
            };
            let Some(index) = self.config.index_of(link) else {
                continue;
            };
            let done = self.configure_host(&host, &self.endpoint(index), link.index);
            if let Err(error) = ignore_gone(done) {
                tracing::warn!(interface = %link.name, error = %error, "cannot renew the settings of a pod's interface");
            }
        }
        Ok(())
    }

    fn masquerade(&self) -> Result<(), Error> {
        if self.config.masquerade {
            return self.masquerade.keep();
        }
        self.masquerade.delete_if(|| true);
        Ok(())
    }

    /// Removes leases, interfaces and host ports that no pod owns.
    fn sweep_orphans(
        &self,
        live: &[Attachment],
        kept: &HashSet<String>,
    ) -> Result<Vec<String>, Error> {
        let (mut removed, orphaned) = self.sweep_leases(live, kept)?;
        let owned: HashSet<&str> = live
            .iter()
            .map(|attachment| attachment.host_interface.as_str())
            .collect();
        let host = Netlink::open()?;
        let links = host.links()?;
        // An address is leased before its veth is created, so a veth without a lease of ours is another daemon's, unless it is
        // down: then it was detached, and that daemon ended before it was deleted.
        let is_leased = |index| self.lock_leases().is_leased(index);
        let orphans: Vec<&Link> = links
            .iter()
            .filter(|link| {
                let index = self.config.index_of(link);
                index.is_some_and(|index| {
                    orphaned.contains(&index) || (!link.is_up && !is_leased(index))
                }) && !owned.contains(link.name.as_str())
            })
            .collect();
        delete_together(&host, &links, &orphans)?;
        removed.extend(
            orphans
                .iter()
                .map(|orphan| format!("interface {}", orphan.name)),
        );
        if kept.is_empty() {
            removed.extend(self.ports.sweep());
        }
        Ok(removed)
    }

    /// See [`crate::Network::detach_unknown`].
    pub fn detach_unknown(&self, pod: &str) -> Result<(), Error> {
        let index = self.lock_leases().index_of(pod);
        let endpoint = index.map(|index| self.endpoint(index));
        self.detach(&Attachment {
            pod: pod.to_owned(),
            provider: Provider::Builtin,
            host_interface: endpoint.map_or_else(String::new, |end| end.host_interface),
            addresses: Vec::new(),
            ports: Vec::new(),
            is_listed: false,
        })
    }

    /// See [`crate::Network::restore`].
    pub fn restore(&self, attachment: &Attachment) -> Result<(), Error> {
        self.sources.keep()?;
        let index = self.config.subnet_v4.index_among(&attachment.addresses);
        if let Some(index) = index {
            self.lock_leases().restore(&attachment.pod, index)?;
        }
        self.ports
            .open(&attachment.pod, &attachment.addresses, &attachment.ports)?;
        // It is down if the pod was detached before.
        index.map_or(Ok(()), |index| self.bring_back(attachment, index))
    }

    /// Has the node's end of a pod with address `index` up, if it is there.
    fn bring_back(&self, attachment: &Attachment, index: u32) -> Result<(), Error> {
        let host = Netlink::open()?;
        let endpoint = Endpoint {
            serves_loopback: attachment.ports.iter().any(is_at_loopback),
            ..self.endpoint(index)
        };
        match host.index(&endpoint.host_interface)? {
            Some(found) => ignore_gone(self.configure_host(&host, &endpoint, found)),
            None => Ok(()),
        }
    }

    /// Returns a text for each lease that was removed, and their indices.
    fn sweep_leases(
        &self,
        live: &[Attachment],
        kept: &HashSet<String>,
    ) -> Result<(Vec<String>, HashSet<u32>), Error> {
        let pods: HashSet<&str> = live
            .iter()
            .map(|attachment| attachment.pod.as_str())
            .collect();
        let mut leases = self.lock_leases();
        let (mut removed, mut orphaned) = (Vec::new(), HashSet::new());
        for pod in leases.pods() {
            let is_owned = pods.contains(&*pod) || kept.contains(&*pod);
            if let Some(index) = leases.index_of(&pod).filter(|_| !is_owned) {
                leases.release(&pod)?;
                orphaned.insert(index);
                removed.push(format!(
                    "lease {} of pod {pod}",
                    self.config.subnet_v4.address(index)
                ));
            }
        }
        for attachment in live {
            // `None` after a change of the subnet: such a pod keeps its address without a lease.
            if let Some(index) = self.config.subnet_v4.index_among(&attachment.addresses) {
                leases.restore(&attachment.pod, index)?;
            }
        }
        Ok((removed, orphaned))
    }
}
