//! Whether a list of egress rules covers another rule: an exact subset test.
//!
//! Called by the daemon when a pod narrows what its handler allows. Pure.
//! Invariants: exact for addresses, also where several networks together make up the one that is tested; names and
//! addresses never cover each other, because a name may lead anywhere and looking it up sends a query.
//! Not here: what to do about a rule that is not covered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Cidr, Rule, Target};

impl Rule {
    /// Whether `rules` allow everything that this rule allows.
    #[must_use]
    pub fn is_covered_by(&self, rules: &[Rule]) -> bool {
        // Rules for single ports never add up to all ports: a list has far fewer than 65,535 entries.
        let fitting = rules
            .iter()
            .filter(|rule| rule.port.is_none() || rule.port == self.port);
        match &self.target {
            Target::Cidr(cidr) => {
                let networks: Vec<Cidr> = fitting
                    .filter_map(|rule| match rule.target {
                        Target::Cidr(network) => Some(network),
                        Target::Name(_) | Target::Suffix(_) => None,
                    })
                    .collect();
                cidr.is_covered_by(&networks)
            }
            Target::Name(name) => fitting.into_iter().any(|rule| rule.target.names(name)),
            Target::Suffix(domain) => fitting.into_iter().any(|rule| match &rule.target {
                Target::Suffix(wider) => wider == domain || rule.target.names(domain),
                Target::Cidr(_) | Target::Name(_) => false,
            }),
        }
    }
}

impl Cidr {
    /// Whether each of its addresses is in one of `networks`. Splits what several of them share between halves; a half
    /// without any of them ends the search, so that it visits at most two networks for each of `networks` and bit.
    fn is_covered_by(&self, networks: &[Cidr]) -> bool {
        let mut open = vec![*self];
        while let Some(part) = open.pop() {
            if networks.iter().any(|network| network.includes(&part)) {
                continue;
            }
            if !networks.iter().any(|network| part.includes(network)) {
                return false;
            }
            match part.halves() {
                Some(halves) => open.extend(halves),
                None => return false,
            }
        }
        true
    }

    /// Whether all of `other` is in it, both taken as they are written.
    fn includes(&self, other: &Cidr) -> bool {
        if self.bits > other.bits {
            return false;
        }
        match (self.base, other.base) {
            (IpAddr::V4(base), IpAddr::V4(inner)) => {
                (base.to_bits() ^ inner.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(_), IpAddr::V6(inner)) => self.contains_bits(inner.to_bits()),
            _ => false,
        }
    }

    /// Its lower and its upper half; `None` for a single address.
    fn halves(&self) -> Option<[Cidr; 2]> {
        let bits = self.bits + 1;
        let upper = match self.base {
            IpAddr::V4(base) if self.bits < 32 => {
                Ipv4Addr::from_bits(base.to_bits() | 1 << (32 - bits)).into()
            }
            IpAddr::V6(base) if self.bits < 128 => {
                Ipv6Addr::from_bits(base.to_bits() | 1 << (128 - bits)).into()
            }
            _ => return None,
        };
        let half = |base| Cidr { base, bits };
        Some([half(self.base), half(upper)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn is_covered(entry: &str, list: &[&str]) -> bool {
        let rules: Vec<Rule> = list.iter().map(|rule| rule.parse().unwrap()).collect();
        entry.parse::<Rule>().unwrap().is_covered_by(&rules)
    }

    #[test]
    fn addresses_are_covered_by_wider_ones_and_by_several_together() {
        for (entry, list, want) in [
            ("10.1.2.3", &["10.0.0.0/8"][..], true),
            ("10.0.0.0/8", &["10.0.0.0/8"], true),
            ("10.0.0.0/8", &["10.0.0.0/9"], false),
            ("10.0.0.0/8", &["10.0.0.0/9", "10.128.0.0/9"], true),
            (
                "10.0.0.0/8",
                &["10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/10"],
                true,
            ),
            (
                "10.0.0.0/8",
                &["10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/11"],
                false,
            ),
            ("0.0.0.0/0", &["0.0.0.0/1", "128.0.0.0/1"], true),
            ("0.0.0.0/0", &["0.0.0.0/1", "128.0.0.0/2", "::/0"], false),
            ("203.0.113.6/31", &["203.0.113.6", "203.0.113.7"], true),
            ("203.0.113.6/31", &["203.0.113.6"], false),
            ("203.0.113.6", &["203.0.113.7"], false),
            ("fd00::/63", &["fd00::/64", "fd00:0:0:1::/64"], true),
            ("fd00::/63", &["fd00::/64"], false),
            ("::/0", &["0.0.0.0/0"], false),
            ("10.0.0.1", &["::/0"], false),
            ("10.0.0.1", &[], false),
        ] {
            assert_eq!(is_covered(entry, list), want, "{entry} by {list:?}");
        }
    }

    #[test]
    fn a_port_is_covered_by_itself_and_by_all() {
        for (entry, list, want) in [
            ("10.0.0.1:443", &["10.0.0.0/8"][..], true),
            ("10.0.0.1:443", &["10.0.0.0/8:443"], true),
            ("10.0.0.1:443", &["10.0.0.0/8:80"], false),
            ("10.0.0.1", &["10.0.0.0/8:443"], false),
            ("10.0.0.0/8:443", &["10.0.0.0/9:443", "10.128.0.0/9"], true),
            (
                "10.0.0.0/8:443",
                &["10.0.0.0/9:443", "10.128.0.0/9:80"],
                false,
            ),
        ] {
            assert_eq!(is_covered(entry, list), want, "{entry} by {list:?}");
        }
    }

    #[test]
    fn names_are_covered_by_names_alone() {
        for (entry, list, want) in [
            ("api.example.com:443", &["api.example.com"][..], true),
            ("API.example.com", &["api.example.com"], true),
            ("api.example.com", &["api.example.com:443"], false),
            ("api.example.com", &[".example.com"], true),
            ("example.com", &[".example.com"], false),
            ("badexample.com", &[".example.com"], false),
            (".example.com", &[".example.com"], true),
            (".a.example.com:1", &[".example.com"], true),
            (".example.com", &[".a.example.com"], false),
            (".example.com", &["example.com"], false),
            ("api.example.com", &["0.0.0.0/0", "::/0"], false),
            ("203.0.113.1", &["api.example.com", ".com"], false),
        ] {
            assert_eq!(is_covered(entry, list), want, "{entry} by {list:?}");
        }
    }

    #[test]
    fn a_covered_rule_allows_nothing_that_its_cover_does_not() {
        // Exhaustive over small networks: the test agrees with asking for every address.
        let of = |base: u8, bits: u8| Cidr::new(Ipv4Addr::new(10, 0, 0, base).into(), bits);
        let all: Vec<Cidr> = (28..=32)
            .flat_map(|bits| (0..16).filter_map(move |base| of(base, bits)))
            .collect();
        for one in &all {
            for two in &all {
                for part in &all {
                    let is_in = |host: u8| {
                        let address = Ipv4Addr::new(10, 0, 0, host).into();
                        !part.contains(address) || one.contains(address) || two.contains(address)
                    };
                    let want = (0..16).all(is_in);
                    assert_eq!(
                        part.is_covered_by(&[*one, *two]),
                        want,
                        "{part} {one} {two}"
                    );
                }
            }
        }
    }
}
