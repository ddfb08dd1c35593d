//! What is reached without a proxy: one entry of `images.no_proxy` or `NO_PROXY`.
//!
//! Called by: the parent. Invariants: an entry means what it means to Go's HTTP client, which containerd and the kubelet
//! use: a name includes the names below it, `.suffix` and `*.suffix` only those; networks hold addresses that are written
//! as such, and no name is resolved. Pure. Not here: which hosts are this machine.

use std::net::IpAddr;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bypass {
    /// `*`: every host.
    All,
    /// A network, or an address as the network that holds it alone.
    Network {
        base: IpAddr,
        bits: u32,
        port: Option<u16>,
    },
    /// A name and those below it, or only those below it.
    Name {
        /// Lower case, without dots around it.
        name: String,
        is_suffix: bool,
        port: Option<u16>,
    },
}

impl Bypass {
    /// Reads an entry: `*`, an address or a network, a name, `.suffix` or `*.suffix`; after all but networks `:port` may
    /// follow. `None` if it is none of them.
    pub(super) fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim();
        if entry == "*" {
            return Some(Self::All);
        }
        if let Some((base, bits)) = entry.split_once('/') {
            let (base, bits) = (base.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
            return (bits <= width(base)).then_some(Self::Network {
                base,
                bits,
                port: None,
            });
        }
        if let Some(address) = address(entry) {
            return Some(Self::address(address, None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().ok()?)),
            None => (entry, None),
        };
        if let Some(address) = address(host) {
            return Some(Self::address(address, port));
        }
        let (name, is_suffix) = match host.strip_prefix('*').unwrap_or(host).strip_prefix('.') {
            Some(suffix) => (suffix, true),
            None => (host, false),
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let is_odd = |letter: char| {
            letter.is_whitespace() || matches!(letter, '*' | ':' | '/' | '@' | '[' | ']')
        };
        (!name.is_empty() && !name.contains(is_odd)).then_some(Self::Name {
            name,
            is_suffix,
            port,
        })
    }

    fn address(address: IpAddr, port: Option<u16>) -> Self {
        Self::Network {
            base: address,
            bits: width(address),
            port,
        }
    }

    /// Whether the entry is about this host, as URLs have it, and port.
    pub(super) fn contains(&self, host: &str, to: Option<u16>) -> bool {
        let is_port = |port: &Option<u16>| port.is_none() || *port == to;
        match self {
            Self::All => true,
            Self::Network { base, bits, port } => {
                let address = address(host);
                is_port(port) && address.is_some_and(|address| is_within(address, *base, *bits))
            }
            Self::Name {
                name,
                is_suffix,
                port,
            } => {
                let host = host.to_ascii_lowercase();
                let before = host.strip_suffix(name.as_str());
                let is_name = match before {
                    Some("") => !is_suffix,
                    Some(before) => before.ends_with('.'),
                    None => false,
                };
                is_port(port) && is_name
            }
        }
    }
}

/// An address, with or without the brackets of a URL; one of IPv4 inside IPv6 as the former.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok()?;
    Some(address.to_canonical())
}

/// The bits of an address of this kind.
fn width(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_within(address: IpAddr, base: IpAddr, bits: u32) -> bool {
    match (address, base) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            let differ = u32::from(one) ^ u32::from(other);
            differ.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let differ = u128::from(one) ^ u128::from(other);
            differ.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}
