//! Conditions on the addresses of a packet.
//!
//! Invariant: each looks where the family has them that its argument is of; what says the family stands before it.
//! Not here: ports, verdicts.

use std::net::{IpAddr, Ipv6Addr};

use super::super::{Set, Type};
use super::{NFT_PAYLOAD_NETWORK_HEADER, Rule};
use coracle_spec::egress::Cidr;

/// Where an IPv6 header has the destination. Source: RFC 8200 section 3.
const DESTINATION_V6: u32 = 24;

impl Rule {
    /// Only what is addressed to one of `cidr`.
    pub(crate) fn destination(self, cidr: Cidr) -> Self {
        self.address_in(cidr, false)
    }

    /// Only what claims to come from one of `cidr`.
    pub(crate) fn source(self, cidr: Cidr) -> Self {
        self.address_in(cidr, true)
    }

    fn address_in(self, cidr: Cidr, is_source: bool) -> Self {
        let (base, mask) = match cidr.base() {
            IpAddr::V4(base) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(cidr.bits()));
                (
                    base.octets().to_vec(),
                    mask.unwrap_or(0).to_be_bytes().to_vec(),
                )
            }
            IpAddr::V6(base) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(cidr.bits()));
                (
                    base.octets().to_vec(),
                    mask.unwrap_or(0).to_be_bytes().to_vec(),
                )
            }
        };
        let loaded = self.load_address(cidr.base().is_ipv4(), is_source, 0);
        match cidr == Cidr::host(cidr.base()) {
            true => loaded.equals(&base),
            false => loaded.masked(&mask).equals(&base),
        }
    }

    /// Only what is addressed to one of `set`.
    pub(crate) fn destination_in(self, set: Set) -> Self {
        let is_ipv4 = set.key.first() == Some(&Type::Ipv4);
        self.load_address(is_ipv4, false, 0).look_up(set)
    }

    /// Only IPv6 that is addressed to one whose bits of `mask` are those of `value`.
    pub(crate) fn destination_bits(self, mask: Ipv6Addr, value: Ipv6Addr) -> Self {
        let loaded = self.load_address(false, false, 0);
        loaded.masked(&mask.octets()).equals(&value.octets())
    }

    /// Only IPv6 that is addressed to one of which `set` has these octets: first and length of each run, a field each.
    pub(crate) fn destination_runs_in(self, runs: &[(u8, u8)], set: Set) -> Self {
        let loaded = runs.iter().zip(0..).fold(self, |rule, (run, at)| {
            let offset = DESTINATION_V6 + u32::from(run.0);
            rule.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, run.1.into(), at)
        });
        loaded.look_up(set)
    }

    /// Only what goes from and to a pair of addresses that `set` has.
    pub(crate) fn source_and_destination_in(self, set: Set) -> Self {
        let is_ipv4 = set.key.first() == Some(&Type::Ipv4);
        let second = if is_ipv4 { 1 } else { 4 };
        let loaded = self
            .load_address(is_ipv4, true, 0)
            .load_address(is_ipv4, false, second);
        loaded.look_up(set)
    }

    /// Offsets: RFC 791 section 3.1, RFC 8200 section 3.
    pub(super) fn load_address(self, is_ipv4: bool, is_source: bool, at: u32) -> Self {
        let (offset, length) = match (is_ipv4, is_source) {
            (true, true) => (12, 4),
            (true, false) => (16, 4),
            (false, true) => (8, 16),
            (false, false) => (DESTINATION_V6, 16),
        };
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length, at)
    }
}
