//! The nftables table that bounds how many of the node's tracked connections one pod has.
//!
//! ```text
//! arriving   filter, prerouting, behind conntrack    new, from a pod's veth, beyond the pod's part of the limit    drop
//! ```
//! Where anything translates addresses (masquerade, host ports, kube-proxy) the kernel keeps an entry for each connection, in
//! one table for the node, and drops what finds no place in it: the node's own connections, too. The kernel counts by walking
//! a list, so each pod has [`PARTS`] lists, and the number of a connection, a keyed hash, chooses one: a new connection
//! costs a walk over a list of `limit / PARTS`, however many pods and connections there are.
//! Called by: [`super::Sources`], which says how long the table is there. Invariants: connections that a pod is called by
//! are not counted; a table that is written again counts from 0.
//! Not here: pods of plugins.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_spec::error::chain;

use super::super::error::Error;
use super::super::nft::{Base, Batch, Hook, Kind, Rule, Set, Type};
use super::fixed::Fixed;

/// Lists a pod. Few in each, so that its walk is short, and not so few that chance fills one long before the others.
const PARTS: u32 = 256;
/// Most lists that are kept: those of as many busy pods as a table of a million connections has room for.
const MOST_LISTS: u32 = 1 << 20;
// Source: linux/netfilter_ipv4.h, NF_IP_PRI_MANGLE: behind conntrack, before addresses are translated.
const PRIORITY_MANGLE: i32 = -150;
/// There where the kernel tracks connections, or can.
const CONNTRACK: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const ARRIVING: &str = "arriving";
const COUNTS: Set = Set {
    name: "pods",
    key: &[Type::Mark, Type::Interface],
    value: &[],
};

/// The table of one daemon.
#[derive(Debug)]
pub(super) struct Connections {
    table: Fixed,
    /// Whether there is no limit.
    is_off: bool,
    /// Whether this kernel cannot have it.
    is_unknown: AtomicBool,
}

impl Connections {
    /// The table for the pods whose veths have this prefix; each may have `limit` connections, or any number if it is 0.
    /// Nothing is written yet.
    pub(super) fn new(interface_prefix: &str, limit: u32) -> Self {
        Self {
            table: Fixed::new(batch(interface_prefix, (limit / PARTS).max(1))),
            is_off: limit == 0,
            is_unknown: AtomicBool::new(false),
        }
    }

    /// Writes the table unless it is there, where connections are tracked. A kernel that cannot have it is told of in the log,
    /// once. Errors: the kernel refuses for another reason.
    pub(super) fn keep(&self) -> Result<(), Error> {
        if self.is_off || self.is_unknown.load(Ordering::Relaxed) || !Path::new(CONNTRACK).exists()
        {
            return Ok(());
        }
        match self.table.keep() {
            Err(error) if super::sources::is_unknown(&error) => {
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
        self.table.delete_if(is_unused);
    }

    /// Deletes what a daemon with a limit has left to one without.
    pub(super) fn delete_if_off(&self) {
        if self.is_off {
            self.table.delete_if(|| true);
        }
    }
}

/// Whether this kernel can count the connections of pods, tried in a network namespace that is gone afterwards; false where
/// it tracks none, and so has nothing to count. Errors: why it cannot.
pub fn can_count_connections() -> Result<bool, Error> {
    if !Path::new(CONNTRACK).exists() {
        return Ok(false);
    }
    super::fixed::try_elsewhere(batch("cor", 1))?;
    Ok(true)
}

fn batch(interface_prefix: &str, most: u32) -> Batch {
    let mut batch = Batch::new(&format!("coracle-{interface_prefix}-count"));
    batch.renew_table();
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Prerouting,
        priority: PRIORITY_MANGLE,
        accepts: true,
    };
    batch.add_chain(ARRIVING, Some(base));
    batch.add_counting_set(COUNTS, MOST_LISTS);
    let rule = Rule::default()
        .interfaces(base.hook, interface_prefix)
        .interface_kind("veth")
        .new_connection()
        .beyond(COUNTS, PARTS, most);
    batch.add_rule(ARRIVING, &rule.drop());
    batch
}
