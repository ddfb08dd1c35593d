//! Bounds how many of the node's tracked connections pods have: each, and all together.
//!
//! ```text
//! arriving   filter, prerouting, behind conntrack    new, from a pod's veth, beyond the pod's part of the limit    drop
//!                                                    new, from any of them, beyond their part of the node's table  drop
//! ```
//! Where anything translates addresses (masquerade, host ports, kube-proxy) the kernel keeps an entry for each connection, in
//! one table for the node, and drops what finds no place in it: the node's own connections, too. The kernel counts by walking
//! a list, so each pod has [`PARTS`] lists, and the number of a connection, a keyed hash, chooses one: a new connection
//! costs a walk over a list of `limit / PARTS`, however many pods and connections there are. Many pods of one author could
//! fill the table together, or one after the other, as an entry outlives its pod: so all pods together have three quarters of
//! it, counted without the pod, and once an eighth of it is in use, [`Connections::forget`] deletes those of a pod that goes.
//! Called by: [`super::Sources`], which says how long the table is there; [`super::Builtin`]. Invariants: connections that a
//! pod is called by are not counted; a table that is written again counts from 0.
//! Not here: pods of plugins.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_spec::error::chain;

use super::super::error::Error;
use super::super::nft::{Base, Batch, Hook, Kind, Rule, Set, Type, forget_addresses};
use super::fixed::Fixed;

/// Lists a pod. Few in each, so that its walk is short, and not so few that chance fills one long before the others.
const PARTS: u32 = 256;
/// Most lists that are kept: those of as many busy pods as a table of a million connections has room for.
const MOST_LISTS: u32 = 1 << 20;
// Source: linux/netfilter_ipv4.h, NF_IP_PRI_MANGLE: behind conntrack, before addresses are translated.
const PRIORITY_MANGLE: i32 = -150;
/// How many entries the node's table has room for. There where the kernel tracks connections, or can.
pub(super) const NODE_LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// How many it has.
const NODE_COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// A table that has fewer entries than this part of its room keeps those of pods that have gone.
const ROOM: u32 = 8;
/// Entries in one list of all pods, about: what a new connection costs.
const LIST: u32 = 64;
const ARRIVING: &str = "arriving";
const COUNTS: Set = Set {
    name: "pods",
    key: &[Type::Mark, Type::Interface],
    value: &[],
};

const ALL_COUNTS: Set = Set {
    name: "all",
    key: &[Type::Mark],
    value: &[],
};

/// The table of one daemon.
#[derive(Debug)]
pub(super) struct Connections {
    interface_prefix: String,
    /// Of one pod; none if it is 0.
    limit: u32,
    node_limit: PathBuf,
    /// With the node's limit that it was made for. `None` before it is kept.
    table: Mutex<Option<(u32, Fixed)>>,
    /// Whether this kernel cannot have it.
    is_unknown: AtomicBool,
}

impl Connections {
    /// The table for the pods whose veths have this prefix; each may have `limit` connections, or any number if it is 0, and
    /// all together three quarters of the number in the file `node_limit`. Nothing is written yet.
    pub(super) fn new(interface_prefix: &str, limit: u32, node_limit: PathBuf) -> Self {
        Self {
            interface_prefix: interface_prefix.to_owned(),
            limit,
            node_limit,
            table: Mutex::default(),
            is_unknown: AtomicBool::new(false),
        }
    }

    /// Writes the table unless it is there, where connections are tracked, and again where the node's limit is another one now.
    /// A kernel that cannot have it is told of in the log, once. Errors: the kernel refuses for another reason.
    pub(super) fn keep(&self) -> Result<(), Error> {
        let Some(node_limit) = number(&self.node_limit) else {
            return Ok(());
        };
        if self.limit == 0 || self.is_unknown.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut held = self.lock();
        let kept = held.take().filter(|(of, _)| *of == node_limit);
        let batch = || batch(&self.interface_prefix, self.limit, node_limit);
        let (_, table) = held.insert(kept.unwrap_or_else(|| (node_limit, Fixed::new(batch()))));
        match table.keep() {
            Err(error) if error.is_unknown_to_kernel() => {
                self.is_unknown.store(true, Ordering::Relaxed);
                tracing::warn!(
                    error = %chain(&error),
                    "this kernel's nftables cannot count connections: one pod can fill the node's table of them; load \
                     nft_connlimit and restart, or set network.connections_per_pod to 0"
                );
                Ok(())
            }
            done => done,
        }
    }

    /// Deletes the table if nobody needs it.
    pub(super) fn delete_if(&self, is_unused: impl FnOnce() -> bool) {
        match &*self.lock() {
            Some((_, table)) => table.delete_if(is_unused),
            // A daemon before this one may have left it.
            None => Fixed::new(Batch::new(&name(&self.interface_prefix))).delete_if(is_unused),
        }
    }

    /// Deletes what a daemon with a limit has left to one without.
    pub(super) fn delete_if_off(&self) {
        if self.limit == 0 {
            self.delete_if(|| true);
        }
    }

    /// Deletes what the node's table has of connections from and to `addresses`, those of a pod that is going, unless it has
    /// room enough: finding them takes walks over all of it. Best effort: an entry that stays expires, one of an
    /// established connection after days.
    pub(super) fn forget(&self, pod: &str, addresses: &[IpAddr]) {
        // Also where nothing is tracked: asking would make the kernel load what tracks.
        let count = number(Path::new(NODE_COUNT)).unwrap_or(0);
        let enough = number(&self.node_limit).unwrap_or(0) / ROOM;
        if count == 0 || count < enough {
            return;
        }
        if let Err(error) = forget_addresses(addresses) {
            tracing::warn!(
                pod, error = %chain(&error),
                "cannot delete the node's entries of a pod's connections; they expire by themselves"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u32, Fixed)>> {
        // No panic leaves it half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this kernel can count the connections of pods, tried in a network namespace that is gone afterwards; false where
/// it tracks none, and so has nothing to count. Errors: why it cannot.
pub fn can_count_connections() -> Result<bool, Error> {
    if !Path::new(NODE_LIMIT).exists() {
        return Ok(false);
    }
    super::fixed::try_elsewhere(batch("cor", 1, 4))?;
    Ok(true)
}

fn number(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn name(interface_prefix: &str) -> String {
    format!("coracle-{interface_prefix}-count")
}

fn batch(interface_prefix: &str, limit: u32, node_limit: u32) -> Batch {
    let mut batch = Batch::new(&name(interface_prefix));
    batch.renew_table();
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Prerouting,
        priority: PRIORITY_MANGLE,
        accepts: true,
    };
    batch.add_chain(ARRIVING, Some(base));
    let from_pods = || {
        Rule::default()
            .interfaces(base.hook, interface_prefix)
            .interface_kind("veth")
            .new_connection()
    };
    batch.add_counting_set(COUNTS, MOST_LISTS);
    let own = from_pods().beyond(COUNTS, PARTS, (limit / PARTS).max(1));
    batch.add_rule(ARRIVING, &own.drop());
    // 0 is the kernel's word for any number.
    if node_limit > 0 {
        let of_pods = node_limit - node_limit / 4;
        let parts = (of_pods / LIST).next_power_of_two().min(MOST_LISTS);
        batch.add_counting_set(ALL_COUNTS, parts);
        let all = from_pods().beyond(ALL_COUNTS, parts, (of_pods / parts).max(1));
        batch.add_rule(ARRIVING, &all.drop());
    }
    batch
}
