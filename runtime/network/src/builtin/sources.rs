//! The nftables table that drops what a pod sends under an address that is not its own, and what others send under a pod's.
//!
//! ```text
//! arriving   filter, prerouting, before fragments are joined   from a pod's veth                       -> from_pods
//!                                                              from the pods' subnet, answers would
//!                                                              go to a pod's veth                      drop
//! from_pods                                                    from nobody (0.0.0.0/8, ::)             drop
//!                                                              answers would not go back to that veth  drop
//!                                                              all else                                accept
//! ```
//! The routes to the pods say who has which address, so that there is no list of pods, and a packet costs one lookup of a
//! route however many there are. An address of the node, of a neighbour, of the gateway or of anybody outside has another
//! route than the veth, or none. Fragments are seen one by one: those of a stranger would otherwise be joined with the
//! victim's before anybody looks. What is no IP at all stays at the veth: it has no bridge, and takes no ARP (`veth`).
//! A pod is behind its veth and nowhere else. So whoever comes under its address by another interface, a neighbour on the node's
//! link for example, is not that pod, whatever rp_filter the operator has there; what comes by `lo` is the node's own. Pods that
//! have an address of an earlier subnet are not covered by this.
//! Called by: [`super::Builtin`]. Invariants: the table is there before a pod's first packet, and as long as a pod has an
//! address, also while no daemon runs; it holds pods that were attached by builds without it.
//! Not here: what a pod may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_spec::egress::Cidr;
use coracle_spec::error::chain;

use super::super::error::Error;
use super::super::nft::{Base, Batch, Hook, Kind, Rule};
use super::BuiltinConfig;
use super::connections::Connections;
use super::fixed::Fixed;

// Source: linux/netfilter_ipv4.h, NF_IP_PRI_RAW_BEFORE_DEFRAG.
const PRIORITY_BEFORE_DEFRAGMENTATION: i32 = -450;
const ARRIVING: &str = "arriving";
const FROM_PODS: &str = "from_pods";

/// The table of one daemon.
#[derive(Debug)]
pub(super) struct Sources {
    table: Fixed,
    /// It is there as long as this one.
    connections: Connections,
    /// Whether this kernel cannot have it.
    is_unknown: AtomicBool,
    /// Whether pods have addresses that nobody counts, since the subnet was changed.
    stays: AtomicBool,
}

impl Sources {
    /// The table for the pods of this configuration, and that of their connections, of which all have a part of the number in
    /// the file `node_limit`. Nothing is written yet.
    pub(super) fn new(config: &BuiltinConfig, node_limit: PathBuf) -> Self {
        let prefix = &config.interface_prefix;
        let v6 = config.subnet_v6.as_ref().map(|subnet| subnet.cidr());
        let subnets = [Some(config.subnet_v4.cidr()), v6].into_iter().flatten();
        Self {
            table: Fixed::new(batch(prefix, subnets)),
            connections: Connections::new(prefix, config.connections_per_pod, node_limit),
            is_unknown: AtomicBool::new(false),
            stays: AtomicBool::new(false),
        }
    }

    /// Writes the table unless it is there. A kernel that cannot have it is told of in the log, once: pods are held by less
    /// then. Errors: the kernel refuses for another reason.
    pub(super) fn keep(&self) -> Result<(), Error> {
        self.connections.keep()?;
        if self.is_unknown.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.table.keep() {
            Err(error) if error.is_unknown_to_kernel() => {
                self.is_unknown.store(true, Ordering::Relaxed);
                tracing::warn!(
                    error = %chain(&error),
                    "this kernel's nftables cannot look up routes (fib): by IPv6 a pod can send under another's address, \
                     by IPv4 rp_filter of its interface prevents it; load nft_fib_inet and restart, see `coracle check`"
                );
                Ok(())
            }
            done => done,
        }
    }

    /// Leaves the table to the next daemon in any case.
    pub(super) fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// Deletes what a daemon with a limit of connections has left to one without.
    pub(super) fn tidy(&self) {
        self.connections.delete_if_off();
    }

    /// Deletes what the node's table has of connections of a pod that is going: see [`Connections::forget`].
    pub(super) fn forget(&self, pod: &str, addresses: &[IpAddr]) {
        self.connections.forget(pod, addresses);
    }

    /// Deletes the table if no pod has an address.
    pub(super) fn delete_if(&self, is_unused: impl FnOnce() -> bool) {
        if self.stays.load(Ordering::Relaxed) {
            return;
        }
        self.table.delete_if(|| {
            let is_last = is_unused();
            self.connections.delete_if(|| is_last);
            is_last
        });
    }
}

/// Whether this kernel can check the sources of pods' packets, tried in a network namespace that is gone afterwards.
/// Errors: why not.
pub fn can_check_sources() -> Result<(), Error> {
    super::fixed::try_elsewhere(batch("cor", nobodies().into_iter()))
}

fn batch(interface_prefix: &str, subnets: impl Iterator<Item = Cidr>) -> Batch {
    let mut batch = Batch::new(&format!("coracle-{interface_prefix}-in"));
    batch.renew_table();
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Prerouting,
        priority: PRIORITY_BEFORE_DEFRAGMENTATION,
        accepts: true,
    };
    batch.add_chain(FROM_PODS, None);
    // The kernel's lookup lets these two pass to groups and to everybody.
    for nobody in nobodies() {
        let rule = Rule::default().family_of(nobody.base()).source(nobody);
        batch.add_rule(FROM_PODS, &rule.drop());
    }
    let elsewhere = Rule::default().source_is_elsewhere();
    batch.add_rule(FROM_PODS, &elsewhere.drop());
    batch.add_rule(FROM_PODS, &Rule::default().accept());
    batch.add_chain(ARRIVING, Some(base));
    // An interface of the operator may begin with the same letters.
    let rule = Rule::default()
        .interfaces(base.hook, interface_prefix)
        .interface_kind("veth");
    batch.add_rule(ARRIVING, &rule.jump(FROM_PODS));
    for subnet in subnets {
        let as_pod = Rule::default()
            .family_of(subnet.base())
            .source(subnet)
            .source_is_behind(interface_prefix);
        batch.add_rule(ARRIVING, &as_pod.drop());
    }
    batch
}

fn nobodies() -> [Cidr; 2] {
    let v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    // Its last 24 bits are zero.
    [Cidr::new(v4, 8).unwrap_or(Cidr::host(v4)), Cidr::host(v6)]
}
