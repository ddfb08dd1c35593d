//! Internal addresses, those of clusters, pods, nodes and local networks, and the names that may resolve to them.
//!
//! Who owns a domain chooses the addresses of its names, and changes them at will (DNS rebinding). So an entry that names a
//! host opens the outside, and what is inside only where the operator's own domains say so. An entry of addresses
//! opens what it lists, inside or outside.
//! Called by: [`super::Egress::allows_resolved`], and by whoever writes the same for nftables, which knows no names.
//! Invariant: an IPv6 address is internal, too, if it embeds an internal IPv4 address.
//! Not here: what is denied even if it is listed ([`super::Denied`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Cidr, List, Rule, Target, embedded_ipv4};

/// Which addresses are internal besides [`Internal::NETWORKS`] and the node's own, and which names may resolve to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Internal {
    /// Domains that may, and every name below them may; in lower case, without a final dot.
    pub domains: Vec<String>,
    /// Further internal networks.
    pub networks: Vec<Cidr>,
}

impl Default for Internal {
    fn default() -> Self {
        Self {
            domains: vec![Self::CLUSTER.to_owned()],
            networks: Vec::new(),
        }
    }
}

const fn v4(a: u8, b: u8, bits: u8) -> Cidr {
    Cidr {
        base: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)),
        bits,
    }
}

const fn v6(first: u16, bits: u8) -> Cidr {
    Cidr {
        base: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)),
        bits,
    }
}

impl Internal {
    /// The usual domain of a cluster.
    pub const CLUSTER: &str = "cluster.local";

    /// Networks that are never on the internet: private use, providers' NAT, protocol assignments, benchmarks, multicast
    /// with all that is reserved behind it; unique local, site-local and multicast. Source: IANA's registries of
    /// special-purpose addresses; link-local ones are in [`super::Denied::NETWORKS`].
    pub const NETWORKS: [Cidr; 10] = [
        v4(10, 0, 8),
        v4(100, 64, 10),
        v4(172, 16, 12),
        v4(192, 0, 24),
        v4(192, 168, 16),
        v4(198, 18, 15),
        v4(224, 0, 3),
        v6(0xfc00, 7),
        v6(0xfec0, 10),
        v6(0xff00, 8),
    ];

    /// Whether `name`, in lower case, may resolve to internal addresses.
    fn has(&self, name: &str) -> bool {
        self.domains.iter().any(|domain| is_within(name, domain))
    }
}

impl List {
    /// Whether an entry for `name`, in lower case, opens `address`.
    pub(super) fn takes(&self, name: &str, address: IpAddr) -> bool {
        self.internal.has(name) || !self.is_internal(address)
    }

    /// Whether `rule` opens internal addresses, too, if any name that it covers resolves to one.
    #[must_use]
    pub fn leads_inside(&self, rule: &Rule) -> bool {
        match &rule.target {
            Target::Cidr(_) => true,
            Target::Name(name) => self.internal.has(name),
            Target::Suffix(domain) => {
                let holds = |inner: &String| is_within(inner, domain);
                self.internal.has(domain) || self.internal.domains.iter().any(holds)
            }
        }
    }

    /// The internal networks; the node's own addresses ([`super::Denied`]) are internal as well.
    pub fn internal_networks(&self) -> impl Iterator<Item = Cidr> {
        Internal::NETWORKS
            .into_iter()
            .chain(self.internal.networks.iter().copied())
    }

    fn is_internal(&self, address: IpAddr) -> bool {
        let names = |address: IpAddr| {
            self.denied.node.contains(&address)
                || self
                    .internal_networks()
                    .any(|network| network.contains(address))
        };
        let address = address.to_canonical();
        names(address)
            || match address {
                IpAddr::V4(_) => false,
                IpAddr::V6(address) => {
                    embedded_ipv4::embedded(&self.denied, address).any(|inner| names(inner.into()))
                }
            }
    }
}

/// Whether `name` is `domain` or below it.
fn is_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::SocketAddr;

    use super::super::{Decision, Denied, Egress};
    use super::*;

    fn listed(rules: &[&str]) -> List {
        List {
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            denied: Denied {
                node: vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
                ports: Denied::USUAL_PORTS.to_vec(),
                nat64: vec!["2001:db8:64::/48".parse().unwrap()],
            },
            internal: Internal {
                domains: vec!["cluster.local".to_owned(), "corp.example.com".to_owned()],
                networks: vec!["2001:db8:88::/48".parse().unwrap()],
            },
            ..List::default()
        }
    }

    /// Addresses inside, each of them in every form.
    const INSIDE: [&str; 26] = [
        "10.96.0.1",
        "100.64.0.1",
        "172.31.255.255",
        "192.0.0.9",
        "192.168.1.1",
        "198.19.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "192.0.2.2",
        "fd00::1",
        "fec0::1",
        "ff05::1",
        "2001:db8::2",
        "2001:db8:88::7",
        "::ffff:10.96.0.1",
        "::10.96.0.1",
        "::ffff:0:10.96.0.1",
        "64:ff9b::10.96.0.1",
        "64:ff9b:1::10.96.0.1",
        "64:ff9b:1:a60:0:100::",
        "64:ff9b:1:7:a:6000:100:0",
        "64:ff9b:1:7:ff:8:192.0.2.2",
        "2002:a60:1::1",
        "2002:c000:202::1",
        "2001:db8:64:a60:0:100::",
        "2001:db8:64:c000:2:200::",
    ];

    #[test]
    fn a_name_leads_inside_only_below_the_operators_domains() {
        let egress = Egress::Listed(listed(&[
            ".example.com:443",
            "db.team.svc.cluster.local:443",
            "evilcluster.local:443",
            "192.168.1.0/24:443",
        ]));
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 443);
        for address in INSIDE {
            let judge = |name| egress.allows_resolved(name, at(address));
            for name in ["x.example.com", "X.Example.COM.", "evilcluster.local"] {
                assert_eq!(judge(name), Decision::Internal, "{name} at {address}");
            }
            for name in ["db.team.svc.cluster.local", "x.CORP.example.com."] {
                assert_eq!(judge(name), Decision::Allowed, "{name} at {address}");
            }
            assert_eq!(judge("x.example.org"), Decision::Unlisted, "{address}");
        }
        for address in ["203.0.113.9", "2001:db8:1::9", "64:ff9b::203.0.113.9"] {
            let judged = egress.allows_resolved("x.example.com", at(address));
            assert_eq!(judged, Decision::Allowed, "{address}");
        }
        // What nothing may open stays so, and what is listed by its address is open.
        let inside = "db.team.svc.cluster.local";
        let metadata = egress.allows_resolved(inside, at("169.254.169.254"));
        assert_eq!(metadata, Decision::Never);
        assert!(egress.allows_addr(at("192.168.1.1")).is_allowed());
        assert!(
            egress
                .allows_resolved("x.example.com", at("127.0.0.1"))
                .is_allowed()
        );
    }

    #[test]
    fn entries_that_lead_inside_are_known_without_an_answer() {
        let list = listed(&[]);
        for (entry, leads) in [
            ("10.0.0.0/8", true),
            ("db.team.svc.cluster.local:5432", true),
            (".svc.cluster.local", true),
            (".local:443", true),
            (".com", true),
            ("corp.example.com", true),
            ("xcorp.example.com", false),
            (".example.org", false),
            ("cluster.local.example.org", false),
            (".r.local", false),
        ] {
            let rule: Rule = entry.parse().unwrap();
            assert_eq!(list.leads_inside(&rule), leads, "{entry}");
        }
    }

    #[test]
    fn records_of_older_builds_have_the_usual_domain() {
        let old: List = serde_json::from_str(r#"{"rules":["a.example.com"]}"#).unwrap();
        assert_eq!(old.internal.domains, [Internal::CLUSTER]);
        let list = listed(&[]);
        let text = serde_json::to_string(&list).unwrap();
        assert!(
            text.contains(r#""networks":["2001:db8:88::/48"]"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<List>(&text).unwrap(), list);
    }
}
