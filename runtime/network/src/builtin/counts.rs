//! What the built-in network has and has done, for metrics.
//!
//! Called by: the daemon's effects. Invariant: nothing but memory is looked at. Must not know: names of series.

use super::Builtin;

/// Amounts, and what was done since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounts {
    /// Addresses of each family that pods have.
    pub used: u64,
    /// Addresses of each family that pods can have besides.
    pub free: u64,
    /// Pods get IPv6 addresses, too: as many.
    pub has_v6: bool,
    /// Ports of the node that lead to pods.
    pub host_ports: u64,
    /// How often the table of these was written again because another program had changed it.
    pub port_repairs: u64,
}

impl Builtin {
    /// The numbers as they are now.
    pub fn counts(&self) -> NetworkCounts {
        let used = u64::try_from(self.lock_leases().len()).unwrap_or(u64::MAX);
        NetworkCounts {
            used,
            free: u64::from(self.config.subnet_v4.size()).saturating_sub(used),
            has_v6: self.config.subnet_v6.is_some(),
            host_ports: self.ports.count(),
            port_repairs: self.ports.repairs(),
        }
    }
}
