//! IPv4 addresses embedded in IPv6 ones, which a translator (NAT64, 6to4, ...) turns into IPv4 again.
//!
//! Invariant: an address may embed several, because only the operator of a translator knows its prefix length; all
//! of them are returned. A prefix from an operator's own addresses is recognized if the operator names it
//! ([`super::Denied::nat64`]).
//! Not here: which addresses are denied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Cidr, Denied};

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

/// Those that everybody has. Source: RFC 6052 section 2.2 with RFC 8215 (NAT64), RFC 4291 section 2.5.5, RFC 2765 section 2.1 and
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
    /// That of a NAT64 translator with this prefix; none if it is none of IPv6, or of a length that RFC 6052 section 2.2 does not
    /// have. Octet 8 is not part of the address there.
    #[must_use]
    pub fn of_translator(prefix: Cidr) -> Option<Self> {
        let IpAddr::V6(base) = prefix.base() else {
            return None;
        };
        let octets_at = match prefix.bits() {
            32 => [4, 5, 6, 7],
            40 => [5, 6, 7, 9],
            48 => [6, 7, 9, 10],
            56 => [7, 9, 10, 11],
            64 => [9, 10, 11, 12],
            96 => LAST,
            _ => return None,
        };
        Some(form(base.to_bits(), prefix.bits(), octets_at))
    }

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
        let [a, b, c, d] = self.octets_at;
        match (a + 3 == d, b + 1 == c) {
            (true, _) => vec![(a, 4)],
            (false, true) => vec![(a, 1), (b, 2), (d, 1)],
            (false, false) => vec![(a, 2), (c, 2)],
        }
    }
}

impl Denied {
    /// Every form that is known on this node.
    pub fn forms(&self) -> impl Iterator<Item = Form> {
        let own = self.nat64.iter().copied().filter_map(Form::of_translator);
        FORMS.into_iter().chain(own)
    }
}

/// Every IPv4 address that `address` may embed.
pub(super) fn embedded(denied: &Denied, address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    denied.forms().filter_map(move |form| form.read(address))
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
            let found: Vec<_> = embedded(&Denied::default(), address.parse().unwrap()).collect();
            assert!(found.contains(&inner), "{address}: {found:?}");
        }
        for address in ["64:ff9b:2::192.0.2.33", "2001:db8::192.0.2.33", "fd00::1"] {
            let denied = Denied::default();
            let found = embedded(&denied, address.parse().unwrap());
            assert_eq!(found.count(), 0, "{address}");
        }
    }

    /// The examples of RFC 6052 section 2.4.
    #[test]
    fn addresses_are_found_behind_an_operators_own_prefix() {
        let inner = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, address) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ] {
            let denied = Denied {
                nat64: vec![prefix.parse().unwrap()],
                ..Denied::default()
            };
            let found: Vec<_> = embedded(&denied, address.parse().unwrap()).collect();
            assert_eq!(found, [inner], "{address}");
        }
        for odd in ["2001:db8::/33", "2001:db8::/128", "10.0.0.0/32"] {
            assert_eq!(Form::of_translator(odd.parse().unwrap()), None, "{odd}");
        }
    }

    #[test]
    fn masks_and_runs_agree() {
        let own = [32, 40, 48, 56, 64, 96].map(|bits| {
            let base = "2001:db8::".parse::<IpAddr>().unwrap();
            Form::of_translator(Cidr::new(base, bits).unwrap()).unwrap()
        });
        for form in FORMS.into_iter().chain(own) {
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
