//! The nftables table that lets pods reach other machines under the node's address, where the operator wants that.
//!
//! ```text
//! leaving      nat, postrouting  from the pods' subnet, to no pod of this node and to no address of the subnet    masquerade
//! ```
//! Called by: [`super::Builtin`]; [`super::fixed`] keeps it from the daemon's start on. Invariants: packets between pods
//! keep their addresses; so do those of everybody else; the table is deleted by a daemon that does not masquerade; it stays
//! while no daemon runs, as pods do.
//! Not here: whether the node forwards packets.

use super::super::nft::{Base, Batch, Hook, Kind, Rule};
use super::BuiltinConfig;

// Source: linux/netfilter_ipv4.h, NF_IP_PRI_NAT_SRC. After the chain of host ports, which has the same.
const PRIORITY_NAT_SRC: i32 = 101;

/// All of the table, in place of what is there.
pub(super) fn batch(config: &BuiltinConfig) -> Batch {
    let mut batch = Batch::new(&format!("coracle-{}-out", config.interface_prefix));
    batch.renew_table();
    let base = Base {
        kind: Kind::Nat,
        hook: Hook::Postrouting,
        priority: PRIORITY_NAT_SRC,
        accepts: true,
    };
    batch.add_chain("leaving", Some(base));
    let v6 = config.subnet_v6.as_ref().map(|subnet| subnet.cidr());
    for subnet in [Some(config.subnet_v4.cidr()), v6].into_iter().flatten() {
        let rule = Rule::default()
            .other_interfaces(base.hook, &config.interface_prefix)
            .family_of(subnet.base())
            .source(subnet)
            .other_destination(subnet);
        batch.add_rule("leaving", &rule.masquerade());
    }
    batch
}
