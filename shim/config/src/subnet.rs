//! An address range as the operator writes it: `10.88.0.0/16`.
//!
//! Called by: `super::check`, for the two `network.subnet*` settings. Invariant: a [`Subnet`] has no bits set after its
//! prefix.
//! Must not know: which sizes are allowed, who has which address.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The first address of a range, and the number of leading bits that its addresses share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet<A> {
    /// The first address.
    pub base: A,
    /// Leading bits in common.
    pub prefix: u8,
}

impl<A: fmt::Display> fmt::Display for Subnet<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// The operations of an address family that ranges need.
pub trait Family: Copy + Eq + FromStr + fmt::Display {
    /// Bits of an address.
    const BITS: u8;
    /// The address with all but its leading `prefix` bits cleared.
    fn masked(self, prefix: u8) -> Self;
}

impl Family for Ipv4Addr {
    const BITS: u8 = 32;
    fn masked(self, prefix: u8) -> Self {
        Self::from_bits(self.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
    }
}

impl Family for Ipv6Addr {
    const BITS: u8 = 128;
    fn masked(self, prefix: u8) -> Self {
        Self::from_bits(
            self.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0),
        )
    }
}

impl<A: Family> Subnet<A> {
    /// Parses `ADDRESS/PREFIX`. The error completes the sentence "KEY ...".
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = || {
            format!(
                "is {text:?}, not an address and a prefix of at most {} bits",
                A::BITS
            )
        };
        let (address, prefix) = text.split_once('/').ok_or_else(shape)?;
        let base: A = address.parse().map_err(|_| shape())?;
        let prefix: u8 = prefix.parse().map_err(|_| shape())?;
        if prefix > A::BITS {
            return Err(shape());
        }
        let first = base.masked(prefix);
        if first != base {
            return Err(format!(
                "is {text}, which has bits set behind its prefix; did you mean {first}/{prefix}?"
            ));
        }
        Ok(Self { base, prefix })
    }

    /// Whether an address is in the range.
    pub fn contains(&self, address: A) -> bool {
        address.masked(self.prefix) == self.base
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_prints_as_it_was_written() {
        for text in ["10.88.0.0/16", "0.0.0.0/0", "192.0.2.1/32"] {
            assert_eq!(Subnet::<Ipv4Addr>::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Subnet::<Ipv6Addr>::parse("fd00:10:88::/64")
                .unwrap()
                .to_string(),
            "fd00:10:88::/64"
        );
    }

    #[test]
    fn texts_that_are_not_subnets_are_refused() {
        for text in [
            "",
            "10.88.0.0",
            "10.88.0.0/33",
            "10.88.0/16",
            "10.88.0.0/-1",
            "fd00::/64",
            "10.88.0.0/16/2",
        ] {
            assert!(Subnet::<Ipv4Addr>::parse(text).is_err(), "{text:?}");
        }
        let host_bits = Subnet::<Ipv4Addr>::parse("10.88.4.1/20").unwrap_err();
        assert!(
            host_bits.ends_with("did you mean 10.88.0.0/20?"),
            "{host_bits}"
        );
    }

    #[test]
    fn membership_ends_at_the_prefix() {
        let subnet = Subnet::<Ipv4Addr>::parse("10.88.16.0/20").unwrap();
        assert!(subnet.contains(Ipv4Addr::new(10, 88, 31, 255)));
        assert!(!subnet.contains(Ipv4Addr::new(10, 88, 32, 0)));
    }
}
