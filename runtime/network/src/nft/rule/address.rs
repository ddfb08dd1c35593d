//! Conditions on the addresses of a packet.
//!
//! Invariant: each condition uses the offsets of its argument's family; the family's own condition precedes it.
//! Not here: ports, verdicts.

use std::net::{IpAddr, Ipv6Addr};

use super::super::{Set, Type};
use super::{NFT_CMP_EQ, NFT_CMP_NEQ, NFT_PAYLOAD_NETWORK_HEADER, Rule};
use coracle_spec::egress::Cidr;

/// Offset of the destination in an IPv6 header. Source: RFC 8200 section 3.
const DESTINATION_V6: u32 = 24;

impl Rule {
    /// Only packets to an address in `cidr`.
    pub(crate) fn destination(self, cidr: Cidr) -> Self {
        self.address(cidr, false, NFT_CMP_EQ)
    }

    /// Only packets to an address that is not in `cidr`.
    pub(crate) fn other_destination(self, cidr: Cidr) -> Self {
        self.address(cidr, false, NFT_CMP_NEQ)
    }

    /// Only packets with a source address in `cidr`.
    pub(crate) fn source(self, cidr: Cidr) -> Self {
        self.address(cidr, true, NFT_CMP_EQ)
    }

    fn address(self, cidr: Cidr, is_source: bool, operator: u32) -> Self {
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
            true => loaded.compare(operator, &base),
            false => loaded.masked(&mask).compare(operator, &base),
        }
    }

    /// Only packets to an address in `set`.
    pub(crate) fn destination_in(self, set: Set) -> Self {
        let is_ipv4 = set.key.first() == Some(&Type::Ipv4);
        self.load_address(is_ipv4, false, 0).look_up(set)
    }

    /// Only packets from an address in `set`.
    pub(crate) fn source_in(self, set: Set) -> Self {
        let is_ipv4 = set.key.first() == Some(&Type::Ipv4);
        self.load_address(is_ipv4, true, 0).look_up(set)
    }

    /// Only IPv6 packets to an address whose bits under `mask` equal `value`.
    pub(crate) fn destination_bits(self, mask: Ipv6Addr, value: Ipv6Addr) -> Self {
        let loaded = self.load_address(false, false, 0);
        loaded.masked(&mask.octets()).equals(&value.octets())
    }

    /// Only IPv6 packets to an address with octets in `set`: `runs` has first octet and length of each field.
    pub(crate) fn destination_runs_in(self, runs: &[(u8, u8)], set: Set) -> Self {
        let loaded = runs.iter().zip(0..).fold(self, |rule, (run, at)| {
            let offset = DESTINATION_V6 + u32::from(run.0);
            rule.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, run.1.into(), at)
        });
        loaded.look_up(set)
    }

    /// Only packets whose source and destination are a pair in `set`.
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
