//! The subnets that pods get their addresses from. Checked once, when parsed; arithmetic afterwards.
//! Not here: who holds which address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use coracle_spec::egress::Cidr;
use serde::{Deserialize, Serialize};

use super::error::Error;

/// An IPv4 subnet of /8 to /20, e.g. `10.88.0.0/16`. A /20 holds 4,094 pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

/// An IPv6 subnet of /16 to /112, e.g. `fd00:88::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Subnet {
    network: Ipv6Addr,
    prefix_len: u8,
}

impl Ipv4Subnet {
    /// All of it.
    pub(super) fn cidr(&self) -> Cidr {
        let network = IpAddr::V4(self.network);
        Cidr::new(network, self.prefix_len).unwrap_or(Cidr::host(network))
    }

    /// How many addresses pods can have: all but the first and the last.
    #[must_use]
    pub fn size(&self) -> u32 {
        (1 << (32 - self.prefix_len)) - 2
    }

    /// The address of `index`, which runs from 1 to [`Ipv4Subnet::size`].
    pub(super) fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + index)
    }

    /// The index of `address`, if pods can have it.
    pub(super) fn index(&self, address: Ipv4Addr) -> Option<u32> {
        let index = address.to_bits().checked_sub(self.network.to_bits())?;
        (1..=self.size()).contains(&index).then_some(index)
    }

    /// The index of the IPv4 address among `addresses`.
    pub(super) fn index_among(&self, addresses: &[IpAddr]) -> Option<u32> {
        addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => self.index(*address),
            IpAddr::V6(_) => None,
        })
    }
}

impl Ipv6Subnet {
    /// All of it.
    pub(super) fn cidr(&self) -> Cidr {
        let network = IpAddr::V6(self.network);
        Cidr::new(network, self.prefix_len).unwrap_or(Cidr::host(network))
    }

    /// The address of `index`.
    pub(super) fn address(&self, index: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network.to_bits() | u128::from(index))
    }

    /// Whether each IPv4 index has an address here.
    pub(super) fn covers(&self, v4: &Ipv4Subnet) -> bool {
        128 - self.prefix_len >= 32 - v4.prefix_len
    }
}

/// Splits `ADDRESS/LENGTH`, wants the length within `lengths` and the bits behind it zero.
fn parse<A: FromStr>(
    key: &'static str,
    text: &str,
    lengths: std::ops::RangeInclusive<u8>,
    host_bits: impl Fn(&A, u8) -> bool,
) -> Result<(A, u8), Error> {
    let refuse = |why: String| Error::BadSetting {
        key,
        value: text.to_owned(),
        why,
    };
    let (address, length) = text
        .split_once('/')
        .ok_or_else(|| refuse("has no /LENGTH".to_owned()))?;
    let address: A = address
        .parse()
        .map_err(|_| refuse("does not begin with an address of its family".to_owned()))?;
    let length = length
        .parse()
        .ok()
        .filter(|length| lengths.contains(length));
    let length = length.ok_or_else(|| {
        refuse(format!(
            "must be of /{} to /{}",
            lengths.start(),
            lengths.end()
        ))
    })?;
    if host_bits(&address, length) {
        return Err(refuse(format!("has bits set behind its first {length}")));
    }
    Ok((address, length))
}

impl FromStr for Ipv4Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let host_bits = |address: &Ipv4Addr, length: u8| address.to_bits() << length != 0;
        let (network, prefix_len) = parse("subnet_v4", text, 8..=20, host_bits)?;
        let is_special =
            network.octets()[0] == 0 || network.is_loopback() || network.is_link_local();
        if is_special || network.octets()[0] >= 224 {
            let why = "is not for ordinary hosts (RFC 6890)".to_owned();
            return Err(Error::BadSetting {
                key: "subnet_v4",
                value: text.to_owned(),
                why,
            });
        }
        Ok(Self {
            network,
            prefix_len,
        })
    }
}

impl FromStr for Ipv6Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let host_bits = |address: &Ipv6Addr, length: u8| address.to_bits() << length != 0;
        let (network, prefix_len) = parse("subnet_v6", text, 16..=112, host_bits)?;
        Ok(Self {
            network,
            prefix_len,
        })
    }
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl fmt::Display for Ipv6Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl TryFrom<String> for Ipv4Subnet {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl TryFrom<String> for Ipv6Subnet {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Ipv4Subnet> for String {
    fn from(subnet: Ipv4Subnet) -> Self {
        subnet.to_string()
    }
}

impl From<Ipv6Subnet> for String {
    fn from(subnet: Ipv6Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_checked() {
        for text in [
            "10.88.0.0",
            "10.88.0.0/21",
            "10.0.0.0/7",
            "10.88.1.0/16",
            "fd00::/64",
            "10.88.0.0/x",
            "127.0.0.0/8",
            "224.0.0.0/16",
            "169.254.0.0/16",
            "/16",
            "",
        ] {
            assert!(text.parse::<Ipv4Subnet>().is_err(), "{text:?}");
        }
        for text in ["fd00::/113", "fd00::1/64", "10.88.0.0/16", "fd00::"] {
            assert!(text.parse::<Ipv6Subnet>().is_err(), "{text:?}");
        }
        assert_eq!(
            "10.88.0.0/16".parse::<Ipv4Subnet>().unwrap().to_string(),
            "10.88.0.0/16"
        );
        let error = "10.88.0.0/24"
            .parse::<Ipv4Subnet>()
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "network setting subnet_v4: \"10.88.0.0/24\" must be of /8 to /20"
        );
    }

    #[test]
    fn index_and_address_are_inverse() {
        let subnet: Ipv4Subnet = "10.88.0.0/20".parse().unwrap();
        assert_eq!(subnet.size(), 4094);
        for index in [1, 255, 256, 4094] {
            assert_eq!(subnet.index(subnet.address(index)), Some(index));
        }
        for outside in ["10.88.0.0", "10.88.15.255", "10.88.16.0", "10.87.255.255"] {
            assert_eq!(subnet.index(outside.parse().unwrap()), None, "{outside}");
        }
        let v6: Ipv6Subnet = "fd00:88::/112".parse().unwrap();
        assert_eq!(v6.address(4094).to_string(), "fd00:88::ffe");
        assert!(v6.covers(&subnet) && !v6.covers(&"10.0.0.0/8".parse().unwrap()));
    }
}
