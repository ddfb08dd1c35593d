//! Protects against SSRF: the addresses to which a registry may redirect this node.
//!
//! Called by: [`super::wire`], which checks every URL before it sends; both of its clients resolve names through
//! [`Resolver`], so that they connect to the address that was checked. Where a proxy resolves names, [`super::wire`] lets
//! only https lead to another host.
//! Invariants: a realm or a redirect to another host never reaches link-local or metadata addresses, nor loopback
//! unless the registry is on loopback itself, by any name or notation; the registry's own host may be loopback, but
//! link-local only if the operator's configuration names it.
//! Not here: requests, credentials.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::lookup;
use crate::error::Cause;
use crate::proxy::Proxies;

/// The addresses to which a client may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressPolicy {
    /// Addresses of this machine.
    pub loopback: bool,
    /// Link-local addresses and those of cloud metadata services.
    pub link_local: bool,
}

/// The policy forbids an address. The text does not show to which address a name resolves.
#[derive(Debug)]
pub(super) struct ForbiddenAddress {
    host: String,
}

impl fmt::Display for ForbiddenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is a loopback, link-local or metadata address, where no registry may lead",
            self.host
        )
    }
}

impl std::error::Error for ForbiddenAddress {}

impl AddressPolicy {
    /// Checks a URL whose host is an address; the [`Resolver`] checks names. Errors: the policy forbids the address.
    pub(super) fn check(self, url: &Url) -> Result<(), ForbiddenAddress> {
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) if !self.allows(address) => Err(ForbiddenAddress {
                host: host.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn allows(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.allows_v4(address),
            IpAddr::V6(address) => self.allows_v6(address),
        }
    }

    fn allows_v4(self, address: Ipv4Addr) -> bool {
        // The kernel treats what it accepts of 0.0.0.0/8 as this machine.
        if address.is_loopback() || address.octets()[0] == 0 {
            return self.loopback;
        }
        if address.is_link_local() || METADATA_V4.contains(&address) {
            return self.link_local;
        }
        !address.is_multicast() && !address.is_broadcast()
    }

    fn allows_v6(self, address: Ipv6Addr) -> bool {
        if let Some(inner) = embedded_v4(address) {
            return self.allows_v4(inner);
        }
        if address.is_loopback() || address.is_unspecified() {
            return self.loopback;
        }
        if address.is_unicast_link_local() || METADATA_V6.contains(&address) {
            return self.link_local;
        }
        !address.is_multicast()
    }
}

/// Metadata services outside of link-local: Alibaba Cloud, Azure's host, Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// Metadata services of EC2 and of Google Cloud.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// The IPv4 address embedded in an IPv6 address: mapped, compatible, translated (NAT64, SIIT) or 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            v4(high, low)
        }
        [0x64, 0xff9b, 0 | 1, _, _, _, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

/// Resolves names as the node does and returns only addresses that the policy allows; of proxies, all.
pub(super) struct Resolver {
    pub policy: AddressPolicy,
    pub proxies: Arc<Proxies>,
    /// For whom it looks up names.
    pub tenant: Arc<str>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, host) = (self.policy, name.as_str().to_owned());
        let tenant = self.tenant.clone();
        let is_proxy = self.proxies.is_proxy(&host);
        Box::pin(async move {
            let found = lookup::addresses(&tenant, &host).await?;
            let is_empty = found.is_empty();
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| is_proxy || policy.allows(address.ip()))
                .collect();
            if allowed.is_empty() && !is_empty {
                return Err(ForbiddenAddress { host }.into());
            }
            Ok::<Addrs, Cause>(Box::new(allowed.into_iter()))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    const STRICT: AddressPolicy = AddressPolicy {
        loopback: false,
        link_local: false,
    };

    fn allows(policy: AddressPolicy, url: &str) -> bool {
        policy.check(&Url::parse(url).unwrap()).is_ok()
    }

    #[test]
    fn no_notation_of_a_forbidden_address_is_allowed() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "0xa9fea9fe",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[::ffff:0:169.254.169.254]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::7f00:1]",
            "[2002:7f00:1::]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
        ] {
            assert!(!allows(STRICT, &format!("http://{host}:80/x")), "{host}");
        }
        for host in [
            "10.0.0.1",
            "203.0.113.7",
            "[2001:db8::1]",
            "[fd00::1]",
            "a.example",
        ] {
            assert!(allows(STRICT, &format!("https://{host}/")), "{host}");
        }
    }

    #[test]
    fn each_permission_opens_its_own_addresses_only() {
        let (loopback, link_local) = (
            AddressPolicy {
                loopback: true,
                ..STRICT
            },
            AddressPolicy {
                link_local: true,
                ..STRICT
            },
        );
        assert!(allows(loopback, "http://127.0.0.1/") && allows(loopback, "http://[::1]/"));
        assert!(!allows(loopback, "http://169.254.169.254/"));
        assert!(allows(link_local, "http://169.254.1.1/"));
        assert!(!allows(link_local, "http://127.0.0.1/"));
    }

    #[tokio::test]
    async fn a_name_is_checked_by_the_addresses_it_resolves_to() {
        let loopback = AddressPolicy {
            loopback: true,
            ..STRICT
        };
        let proxy = || Proxies::new("http://localhost:3128", &[]).unwrap();
        for (policy, proxies, is_allowed) in [
            (STRICT, Proxies::default(), false),
            (loopback, Proxies::default(), true),
            // The operator has named it.
            (STRICT, proxy(), true),
        ] {
            let resolver = Resolver {
                policy,
                proxies: Arc::new(proxies),
                tenant: "".into(),
            };
            match resolver.resolve("localhost".parse().unwrap()).await {
                Ok(mut found) => assert!(is_allowed && found.next().is_some()),
                Err(refused) => {
                    assert!(!is_allowed, "{refused}");
                    assert!(refused.downcast_ref::<ForbiddenAddress>().is_some());
                }
            }
        }
    }
}
