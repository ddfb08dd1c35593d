//! The nftables table that lets pods reach other machines under the node's address, where the operator wants that.
//!
//! ```text
//! leaving      nat, postrouting  from the pods' subnet, to no pod of this node and to no address of the subnet    masquerade
//! ```
//! Called by: [`super::Builtin::sweep`], at the daemon's start. Invariants: packets between pods keep their addresses; so do
//! those of everybody else; the table is written again when another program changed it, and deleted by a daemon that
//! does not masquerade; it stays while no daemon runs, as pods do.
//! Not here: whether the node forwards packets.

use coracle_spec::egress::Cidr;

use super::super::error::Error;
use super::super::nft::{Base, Batch, Hook, Kind, Nft, Rule};
use super::BuiltinConfig;
use super::watch::Watch;

// Source: linux/netfilter_ipv4.h, NF_IP_PRI_NAT_SRC. After the chain of host ports, which has the same.
const PRIORITY_NAT_SRC: i32 = 101;

/// The table of one daemon.
#[derive(Clone, Debug)]
struct Table {
    name: String,
    interface_prefix: String,
    subnets: Vec<Cidr>,
}

/// Keeps the table as it should be until it is dropped.
#[derive(Debug)]
pub(super) struct Masquerade {
    _watch: Watch,
}

/// Writes the table and keeps it, or deletes the one of a daemon that masqueraded. Errors: the kernel refuses.
pub(super) fn set(config: &BuiltinConfig) -> Result<Option<Masquerade>, Error> {
    let table = Table::of(config);
    if !config.masquerade {
        if let Err(error) = table.delete() {
            // It is absent, or this kernel has no nf_tables.
            tracing::debug!(error = %error, "found no table of masquerading to delete");
        }
        return Ok(None);
    }
    let kept = table.clone();
    // Started before the table is written, so that no change is missed.
    let watch = Watch::start(&table.name, move || kept.mend())?;
    Nft::open()?.commit(table.batch())?;
    Ok(Some(Masquerade { _watch: watch }))
}

impl Table {
    fn of(config: &BuiltinConfig) -> Self {
        let v6 = config.subnet_v6.as_ref().map(|subnet| subnet.cidr());
        let subnets = [Some(config.subnet_v4.cidr()), v6];
        Self {
            name: format!("coracle-{}-out", config.interface_prefix),
            interface_prefix: config.interface_prefix.clone(),
            subnets: subnets.into_iter().flatten().collect(),
        }
    }

    /// All of it, in place of what is there.
    fn batch(&self) -> Batch {
        let mut batch = Batch::new(&self.name);
        batch.renew_table();
        let base = Base {
            kind: Kind::Nat,
            hook: Hook::Postrouting,
            priority: PRIORITY_NAT_SRC,
            accepts: true,
        };
        batch.add_chain("leaving", Some(base));
        for subnet in &self.subnets {
            let rule = Rule::default()
                .other_interfaces(Hook::Postrouting, &self.interface_prefix)
                .family_of(subnet.base())
                .source(*subnet)
                .other_destination(*subnet);
            batch.add_rule("leaving", &rule.masquerade());
        }
        batch
    }

    fn delete(&self) -> Result<(), Error> {
        let mut batch = Batch::new(&self.name);
        batch.delete_table();
        Nft::open()?.commit(batch)
    }

    /// Writes it again if another program flushed or changed it; returns whether that was so.
    fn mend(&self) -> Result<bool, Error> {
        let (nft, batch) = (Nft::open()?, self.batch());
        if nft.rules(&self.name)? == batch.rules() {
            return Ok(false);
        }
        nft.commit(batch)?;
        tracing::warn!(table = %self.name, "another program changed our nftables table; writing it again");
        Ok(true)
    }
}
