//! The egress policy of a pod: it may reach everything, or only listed targets.
//!
//! Written by the daemon from the handler and the pod's annotation, kept in the pod's record, enforced twice: by
//! the host functions of a Wasm guest, which know names, and by nftables in the pod's network namespace, which
//! covers all processes of the pod and knows only addresses.
//! Invariants: denied addresses are refused even if they are listed or a name resolves to them ([`Denied`]); an
//! address is checked in its canonical form, so that `::ffff:169.254.169.254` is 169.254.169.254, and denied if it
//! embeds a denied IPv4 address (`embedded_ipv4`); a name leads to an internal address only if the operator says so
//! ([`Internal`]); loopback, incoming connections and their answers are not limited.
//! Not here: the annotation's name, DNS, sockets.

mod cover;
mod embedded_ipv4;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod internal;
mod parse;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use embedded_ipv4::{FORMS, Form};
pub use internal::Internal;
pub use parse::{BadRule, domain};

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// The egress policy of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Everything is allowed.
    #[default]
    Open,
    /// Only listed targets; with an empty list, nothing.
    Listed(List),
}

/// The targets of [`Egress::Listed`] and the denied addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The allowed targets.
    pub rules: Vec<Rule>,
    /// Addresses that stay denied although they are listed.
    #[serde(default)]
    pub denied: Denied,
    /// TCP ports that the pod's containers declare: they are reachable over loopback without a list entry.
    #[serde(default)]
    pub own_ports: Vec<u16>,
    /// Which addresses are internal, and which names may resolve to them.
    #[serde(default)]
    pub internal: Internal,
}

/// Addresses that are always denied, besides link-local ones, where clouds serve credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The node's own addresses at the pod's creation.
    pub node: Vec<IpAddr>,
    /// First and last port of the ranges that are denied at those addresses.
    pub ports: Vec<(u16, u16)>,
    /// Prefixes of the operator's own NAT64 translators, besides those that everybody has: behind them is all that is denied or
    /// internal, too. Of a length that RFC 6052 has.
    #[serde(default)]
    pub nat64: Vec<Cidr>,
}

/// One allowed target: as text `host`, `host:port`, `.suffix[:port]`, `ADDRESS[/BITS]`,
/// `ADDRESS[/BITS]:port`, `[V6ADDRESS[/BITS]]:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// The host, domain or network.
    pub target: Target,
    /// The port, 1 to 65535; `None` is every port.
    pub port: Option<u16>,
}

/// The target of a rule, without its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Addresses.
    Cidr(Cidr),
    /// One host, in lower case and without a final dot.
    Name(String),
    /// Every host below a domain, but not the domain itself; written without its first dot.
    Suffix(String),
}

/// All addresses that share their first bits; as text `ADDRESS[/BITS]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allowed,
    /// Refused: no rule lists it.
    Unlisted,
    /// Refused: it is internal, and listed only by a name that may not lead there.
    Internal,
    /// Refused, and no rule could allow it.
    Never,
}

impl Decision {
    fn of(is_listed: bool) -> Self {
        match is_listed {
            true => Self::Allowed,
            false => Self::Unlisted,
        }
    }

    /// Whether it is allowed.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

impl Egress {
    /// Whether `target` is allowed by its address. Loopback always is.
    #[must_use]
    pub fn allows_addr(&self, target: SocketAddr) -> Decision {
        let covers = |rule: &Rule| match &rule.target {
            Target::Cidr(cidr) => cidr.contains(target.ip()),
            Target::Name(_) | Target::Suffix(_) => false,
        };
        self.judge(target, covers)
    }

    /// Whether `target` is allowed because `name`, in full, resolved to its address. Denied addresses stay denied, and
    /// internal ones too unless the name is the operator's: a name that resolves to the node, a metadata service, a
    /// cluster's service or another pod opens none of them.
    #[must_use]
    pub fn allows_resolved(&self, name: &str, target: SocketAddr) -> Decision {
        let name = normal(name);
        let decision = self.judge(target, |rule| rule.target.names(&name));
        match self {
            Self::Listed(list) if decision.is_allowed() && !list.takes(&name, target.ip()) => {
                Decision::Internal
            }
            _ => decision,
        }
    }

    /// Whether `name` may be resolved to connect to `port`, or to any port if `None`. [`Egress::allows_resolved`] then
    /// checks the address.
    #[must_use]
    pub fn allows_name(&self, name: &str, port: Option<u16>) -> Decision {
        let Self::Listed(list) = self else {
            return Decision::Allowed;
        };
        let name = normal(name);
        let fits = |rule: &Rule| {
            rule.target.names(&name) && (port.is_none() || rule.port.is_none() || rule.port == port)
        };
        Decision::of(list.rules.iter().any(fits))
    }

    /// Whether any host is listed by name, so that the pod needs DNS.
    #[must_use]
    pub fn has_names(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Listed(list) => list
                .rules
                .iter()
                .any(|rule| !matches!(rule.target, Target::Cidr(_))),
        }
    }

    /// The TCP ports to which a guest may connect, over loopback too: the listed ones, the pod's own, and that of
    /// DNS if a name is listed. `None` is every port: there is no list, or an entry without a port.
    #[must_use]
    pub fn tcp_ports(&self) -> Option<Vec<u16>> {
        let Self::Listed(list) = self else {
            return None;
        };
        if list.rules.is_empty() {
            return None;
        }
        let mut ports: Vec<u16> = list
            .rules
            .iter()
            .map(|rule| rule.port)
            .collect::<Option<_>>()?;
        ports.extend(&list.own_ports);
        ports.extend(self.has_names().then_some(DNS_PORT));
        ports.sort_unstable();
        ports.dedup();
        Some(ports)
    }

    fn judge(&self, target: SocketAddr, covers: impl Fn(&Rule) -> bool) -> Decision {
        let Self::Listed(list) = self else {
            return Decision::Allowed;
        };
        let address = target.ip().to_canonical();
        // The kernel treats the unspecified address as loopback.
        if address.is_loopback() || address.is_unspecified() {
            return Decision::Allowed;
        }
        if list.denied.covers(address, target.port()) {
            return Decision::Never;
        }
        let fits = |rule: &Rule| covers(rule) && rule.port.is_none_or(|port| port == target.port());
        Decision::of(list.rules.iter().any(fits))
    }
}

impl Denied {
    /// Ports of the kubelet (10250, 10255, 10256 is kube-proxy's), the API server and etcd.
    pub const USUAL_PORTS: [(u16, u16); 4] =
        [(2379, 2380), (6443, 6443), (10250, 10250), (10255, 10256)];

    /// Networks denied at all ports: link-local ones, and the address of a metadata service that is not link-local.
    pub const NETWORKS: [Cidr; 3] = [
        Cidr {
            base: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)),
            bits: 16,
        },
        Cidr {
            base: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)),
            bits: 10,
        },
        Cidr {
            base: IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
            bits: 128,
        },
    ];

    /// IPv4 networks, with prefix lengths, that are denied behind a NAT64 translator: link-local and its own loopback.
    pub const BEHIND: [(Ipv4Addr, u8); 2] = [
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
    ];

    /// Whether `port` of `address`, in canonical form, or of an IPv4 address embedded in it is denied.
    fn covers(&self, address: IpAddr, port: u16) -> bool {
        let is_hidden = |inner: Ipv4Addr| {
            inner.is_link_local() || inner.is_loopback() || self.names(inner.into(), port)
        };
        let hides = match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => embedded_ipv4::embedded(self, address).any(is_hidden),
        };
        hides || self.names(address, port)
    }

    fn names(&self, address: IpAddr, port: u16) -> bool {
        Self::NETWORKS.iter().any(|cidr| cidr.contains(address))
            || (self.node.contains(&address)
                && self
                    .ports
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&port)))
    }
}

impl Target {
    /// Whether this rule covers `name`, which is lower case and has no final dot.
    fn names(&self, name: &str) -> bool {
        match self {
            Self::Cidr(_) => false,
            Self::Name(own) => own == name,
            Self::Suffix(domain) => name
                .strip_suffix(domain.as_str())
                .and_then(|host| host.strip_suffix('.'))
                .is_some_and(|host| !host.is_empty()),
        }
    }
}

impl Cidr {
    /// The addresses that share the first `bits` of `base`; none if it has others set, or fewer in all.
    #[must_use]
    pub fn new(base: IpAddr, bits: u8) -> Option<Self> {
        let behind = match base {
            IpAddr::V4(base) if bits <= 32 => {
                u128::from(base.to_bits().checked_shl(bits.into()).unwrap_or(0))
            }
            IpAddr::V6(base) if bits <= 128 => base.to_bits().checked_shl(bits.into()).unwrap_or(0),
            _ => return None,
        };
        (behind == 0).then_some(Self { base, bits })
    }

    /// One address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Self {
            base: address,
            bits,
        }
    }

    /// The first address.
    #[must_use]
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// How many leading bits its addresses share.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether `address`, or the IPv4 address mapped into it, is among them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differ = base.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(_), IpAddr::V6(address)) => self.contains_bits(address.to_bits()),
            _ => false,
        }
    }

    /// Whether the IPv6 address of these bits is among them, taken as it is written.
    fn contains_bits(&self, address: u128) -> bool {
        match self.base {
            IpAddr::V4(_) => false,
            IpAddr::V6(base) => (base.to_bits() ^ address).leading_zeros() >= u32::from(self.bits),
        }
    }
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn listed(rules: &[&str]) -> Egress {
        Egress::Listed(List {
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            denied: Denied {
                node: vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
                ports: Denied::USUAL_PORTS.to_vec(),
                nat64: vec!["2001:db8:64::/96".parse().unwrap()],
            },
            own_ports: vec![5432],
            internal: Internal::default(),
        })
    }

    #[test]
    fn tcp_has_ports_where_every_entry_has_one() {
        assert_eq!(Egress::Open.tcp_ports(), None);
        for rules in [
            &[][..],
            &["a.example.com"],
            &["a.example.com:443", "10.0.0.0/8"],
        ] {
            assert_eq!(listed(rules).tcp_ports(), None, "{rules:?}");
        }
        let addresses = listed(&["10.0.0.0/8:443", "[fd00::1]:80", "10.0.0.1:443"]);
        assert_eq!(addresses.tcp_ports().unwrap(), [80, 443, 5432]);
        let names = listed(&[".example.com:443"]);
        assert_eq!(names.tcp_ports().unwrap(), [53, 443, 5432]);
    }

    #[test]
    fn addresses_are_checked_in_canonical_form() {
        use Decision::{Allowed, Never, Unlisted};
        let egress = listed(&["0.0.0.0/0", "2001:db8::/32", "fe80::/10", "64:ff9b::/96"]);
        let everything = listed(&["::/0"]);
        let narrow = listed(&["203.0.113.0/24:443", "198.51.100.7"]);
        for (policy, target, want) in [
            (&egress, "203.0.113.9:80", Allowed),
            (&egress, "169.254.169.254:80", Never),
            (&egress, "[::ffff:169.254.169.254]:80", Never),
            (&egress, "[64:ff9b::169.254.169.254]:80", Never),
            (&egress, "[64:ff9b::203.0.113.9]:80", Allowed),
            (&egress, "[64:ff9b::192.0.2.2]:10250", Never),
            (&egress, "[64:ff9b::192.0.2.2]:443", Allowed),
            (&egress, "[64:ff9b::127.0.0.1]:10250", Never),
            (&everything, "[64:ff9b:1::192.0.2.2]:10250", Never),
            (&everything, "[64:ff9b:1:c000:2:200::]:10250", Never),
            (&everything, "[64:ff9b:1:c0:0:202::]:6443", Never),
            (&everything, "[64:ff9b:1:7:c0:2:200:0]:6443", Never),
            (&everything, "[64:ff9b:1:a9fe:a9:fe00::]:80", Never),
            (&everything, "[64:ff9b:1::203.0.113.9]:10250", Allowed),
            (&everything, "[64:ff9b:1::192.0.2.2]:443", Allowed),
            (&everything, "[2001:db8:64::192.0.2.2]:10250", Never),
            (&everything, "[2001:db8:64::169.254.169.254]:80", Never),
            (&everything, "[2001:db8:64::203.0.113.9]:10250", Allowed),
            (&everything, "[::192.0.2.2]:10250", Never),
            (&everything, "[::ffff:0:192.0.2.2]:10250", Never),
            (&everything, "[2002:c000:202::1]:10250", Never),
            (&everything, "[2002:a9fe:a9fe::1]:80", Never),
            (&everything, "[::1]:10250", Allowed),
            (&everything, "[2001:db8:1::2]:10250", Allowed),
            (&egress, "[fe80::1]:80", Never),
            (&egress, "[fd00:ec2::254]:80", Never),
            (&egress, "[fd00::1]:80", Unlisted),
            (&egress, "192.0.2.2:10250", Never),
            (&egress, "192.0.2.2:10256", Never),
            (&egress, "[::ffff:192.0.2.2]:6443", Never),
            (&egress, "[2001:db8::2]:2380", Never),
            (&egress, "192.0.2.2:443", Allowed),
            (&egress, "192.0.2.3:10250", Allowed),
            (&narrow, "127.0.0.1:10250", Allowed),
            (&narrow, "[::1]:1", Allowed),
            (&narrow, "0.0.0.0:1", Allowed),
            (&narrow, "203.0.113.9:443", Allowed),
            (&narrow, "203.0.113.9:80", Unlisted),
            (&narrow, "203.0.114.9:443", Unlisted),
            (&narrow, "198.51.100.7:9", Allowed),
            (&narrow, "[::ffff:198.51.100.7]:9", Allowed),
            (&narrow, "169.254.169.254:80", Never),
            (&Egress::Open, "169.254.169.254:80", Allowed),
        ] {
            assert_eq!(
                policy.allows_addr(target.parse().unwrap()),
                want,
                "{target}"
            );
        }
    }

    #[test]
    fn names_are_checked_without_case_and_final_dot() {
        let egress = listed(&["api.example.com:443", ".example.org", "10.0.0.0/8"]);
        for (name, port, want) in [
            ("api.example.com", Some(443), true),
            ("API.Example.COM.", Some(443), true),
            ("api.example.com", None, true),
            ("api.example.com", Some(80), false),
            ("x.api.example.com", Some(443), false),
            ("a.example.org", Some(1), true),
            ("a.b.example.org", None, true),
            ("example.org", None, false),
            ("badexample.org", None, false),
            (".example.org", None, false),
            ("", None, false),
            ("10.0.0.1", None, false),
        ] {
            assert_eq!(egress.allows_name(name, port).is_allowed(), want, "{name}");
        }
        assert!(egress.has_names() && !listed(&["10.0.0.0/8"]).has_names());
        assert!(Egress::Open.allows_name("any.where", None).is_allowed());
    }

    #[test]
    fn a_name_does_not_open_denied_addresses() {
        let egress = listed(&["rebind.example.com", "api.example.com:443"]);
        let judge = |name, target: &str| egress.allows_resolved(name, target.parse().unwrap());
        let name = "rebind.example.com";
        assert_eq!(judge(name, "203.0.113.9:80"), Decision::Allowed);
        assert_eq!(judge(name, "169.254.169.254:80"), Decision::Never);
        assert_eq!(judge(name, "192.0.2.2:10250"), Decision::Never);
        assert_eq!(
            judge("api.example.com", "203.0.113.9:80"),
            Decision::Unlisted
        );
        assert_eq!(
            judge("other.example.com", "203.0.113.9:80"),
            Decision::Unlisted
        );
    }

    #[test]
    fn records_keep_it_as_text() {
        let egress = listed(&["10.0.0.0/8:443", "[fd00::/8]:1", "a.b", ".c.d:5"]);
        let text = serde_json::to_string(&egress).unwrap();
        assert!(
            text.contains(r#"["10.0.0.0/8:443","[fd00::/8]:1","a.b",".c.d:5"]"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Egress>(&text).unwrap(), egress);
        assert_eq!(
            serde_json::from_str::<Egress>("\"open\"").unwrap(),
            Egress::Open
        );
    }
}
