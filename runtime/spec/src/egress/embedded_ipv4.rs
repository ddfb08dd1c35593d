//! IPv4 addresses embedded in IPv6 ones, which a translator (NAT64, 6to4, ...) turns into IPv4 again.
//!
//! Invariant: an address may embed several, because only the operator of a translator knows its prefix length; all
//! of them are returned. A prefix from an operator's own addresses cannot be recognized.
//! Not here: which addresses are denied.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Cidr;

/// One way to write an IPv4 address as an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The prefix of such addresses.
    prefix: u128,
    bits: u8,
    /// Which of the sixteen octets are the IPv4 address, in order.
    octets_at: [u8; 4],
}

const LAST: [u8; 4] = [12, 13, 14, 15];

const fn form(prefix: u128, bits: u8, octets_at: [u8; 4]) -> Form {
    Form {
        prefix,
        bits,
        octets_at,
    }
}

/// All of them. Source: RFC 6052 section 2.2 with RFC 8215 (NAT64), RFC 4291 section 2.5.5, RFC 2765 section 2.1 and
/// RFC 3056 section 2. In the prefix for local use, octet 8 is not part of the address.
pub const FORMS: [Form; 9] = [
    form(0x64_ff9b << 96, 96, LAST),
    form(0x64_ff9b_0001 << 80, 48, [6, 7, 9, 10]),
    form(0x64_ff9b_0001 << 80, 48, [7, 9, 10, 11]),
    form(0x64_ff9b_0001 << 80, 48, [9, 10, 11, 12]),
    form(0x64_ff9b_0001 << 80, 48, LAST),
    form(0xffff << 32, 96, LAST),
    form(0, 96, LAST),
    form(0xffff << 48, 96, LAST),
    form(0x2002 << 112, 16, [2, 3, 4, 5]),
];

impl Form {
    /// The addresses of this form.
    pub fn network(&self) -> Cidr {
        Cidr {
            base: Ipv6Addr::from_bits(self.prefix).into(),
            bits: self.bits,
        }
    }

    /// The IPv4 address in `address`, if it is of this form.
    fn read(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = address.octets();
        let inner = self.octets_at.map(|place| octets[usize::from(place)]);
        let is_such = self.network().contains_bits(address.to_bits());
        is_such.then(|| Ipv4Addr::from(inner))
    }

    /// Mask and value of the IPv6 addresses of this form whose IPv4 address is in `network/bits`.
    pub fn bits_of(&self, network: Ipv4Addr, bits: u8) -> (Ipv6Addr, Ipv6Addr) {
        let inner_mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        let prefix_mask = u128::MAX.checked_shl(128 - u32::from(self.bits));
        let mask = prefix_mask.unwrap_or(0) | self.spread(inner_mask.to_be_bytes());
        let value = self.prefix | self.spread(network.octets());
        (Ipv6Addr::from_bits(mask), Ipv6Addr::from_bits(value))
    }

    fn spread(&self, octets: [u8; 4]) -> u128 {
        let mut all = [0; 16];
        for (place, octet) in self.octets_at.into_iter().zip(octets) {
            all[usize::from(place)] = octet;
        }
        u128::from_be_bytes(all)
    }

    /// The position of the IPv4 address: first octet and length of each run. One of 4, or 2 and 2, or 1, 2 and 1.
    pub fn runs(&self) -> Vec<(u8, u8)> {
        let longest = if self.octets_at[0] + 3 == self.octets_at[3] {
            4
        } else {
            2
        };
        let mut runs: Vec<(u8, u8)> = Vec::with_capacity(3);
        for place in self.octets_at {
            match runs.last_mut() {
                Some((first, length)) if *first + *length == place && *length < longest => {
                    *length += 1;
                }
                _ => runs.push((place, 1)),
            }
        }
        runs
    }
}

/// Every IPv4 address that `address` may embed.
pub(super) fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    FORMS.iter().filter_map(move |form| form.read(address))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_every_form() {
        // The examples of RFC 6052 section 2.4, with the prefix for local use in place of documentation's.
        for (address, inner) in [
            ("64:ff9b::192.0.2.33", "192.0.2.33"),
            ("64:ff9b:1:c000:2:2100::", "192.0.2.33"),
            ("64:ff9b:1:3c0:0:221::", "192.0.2.33"),
            ("64:ff9b:1:344:c0:2:2100:0", "192.0.2.33"),
            ("64:ff9b:1:344:ff:7:192.0.2.33", "192.0.2.33"),
            ("::ffff:192.0.2.33", "192.0.2.33"),
            ("::192.0.2.33", "192.0.2.33"),
            ("::ffff:0:192.0.2.33", "192.0.2.33"),
            ("2002:c000:221::1", "192.0.2.33"),
        ] {
            let inner: Ipv4Addr = inner.parse().unwrap();
            let found: Vec<_> = embedded(address.parse().unwrap()).collect();
            assert!(found.contains(&inner), "{address}: {found:?}");
        }
        for address in ["64:ff9b:2::192.0.2.33", "2001:db8::192.0.2.33", "fd00::1"] {
            assert_eq!(embedded(address.parse().unwrap()).count(), 0, "{address}");
        }
    }

    #[test]
    fn masks_and_runs_agree() {
        for form in FORMS {
            let (mask, value) = form.bits_of(Ipv4Addr::new(192, 0, 2, 33), 32);
            assert_eq!(form.read(value), Some(Ipv4Addr::new(192, 0, 2, 33)));
            assert_eq!(mask.to_bits() & value.to_bits(), value.to_bits());
            assert_eq!(mask.to_bits().count_ones(), u32::from(form.bits) + 32);
            let octets = value.octets();
            let found = form.runs().into_iter().flat_map(|(first, length)| {
                octets[usize::from(first)..usize::from(first + length)].to_vec()
            });
            assert_eq!(found.collect::<Vec<u8>>(), [192, 0, 2, 33]);
            let lengths: Vec<u8> = form.runs().into_iter().map(|(_, length)| length).collect();
            let is_known = matches!(lengths[..], [4] | [2, 2] | [1, 2, 1]);
            assert!(is_known, "{form:?}: {lengths:?}");
        }
    }
}
