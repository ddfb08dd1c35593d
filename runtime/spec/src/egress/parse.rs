//! Parses and prints one entry of an egress list. Strict: an ambiguous entry is refused, because it could allow more
//! than its author meant.
//!
//! Invariant: a printed rule parses to the same rule.
//! Not here: the list, and what a rule allows.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{Cidr, Rule, Target};

/// Longest host name and longest part of one. Source: RFC 1035, section 2.3.4.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// An invalid entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("egress entry {entry:?} {why}")]
pub struct BadRule {
    /// The entry, at most its first 300 bytes.
    pub entry: String,
    /// What is wrong with it.
    pub why: String,
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(entry: &str) -> Result<Self, BadRule> {
        rule(entry).map_err(|why| {
            let shown = entry.char_indices().take_while(|(at, _)| *at < 300);
            BadRule {
                entry: shown.map(|(_, letter)| letter).collect(),
                why,
            }
        })
    }
}

fn rule(entry: &str) -> Result<Rule, String> {
    if entry.is_empty() {
        return Err("is empty".to_owned());
    }
    if let Some(rest) = entry.strip_prefix('[') {
        let (inside, behind) = rest
            .split_once(']')
            .ok_or("has no ] behind its [".to_owned())?;
        let port = match behind.strip_prefix(':') {
            Some(text) => Some(port(text)?),
            None if behind.is_empty() => None,
            None => return Err("must have nothing or :PORT behind its ]; a prefix length stands inside, as in [fd00::/64]:443".to_owned()),
        };
        if !inside.contains(':') {
            return Err("has brackets around what is no IPv6 address".to_owned());
        }
        let target = Target::Cidr(cidr(inside)?);
        return Ok(Rule { target, port });
    }
    // Two colons: a bare IPv6 address, whose last part could be taken for a port.
    if entry.matches(':').count() > 1 {
        let target = Target::Cidr(cidr(entry)?);
        return Ok(Rule { target, port: None });
    }
    let (host, port) = match entry.split_once(':') {
        Some((host, text)) => (host, Some(port(text)?)),
        None => (entry, None),
    };
    let target = target(host)?;
    Ok(Rule { target, port })
}

fn target(host: &str) -> Result<Target, String> {
    // As in URL parsers: a host that ends in a number must be an IPv4 address, so `127.1` and `0x7f.1` are refused.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with(|first: char| first.is_ascii_digit())
        && (last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x"));
    if host.contains('/') || is_number {
        return cidr(host).map(Target::Cidr);
    }
    match host.strip_prefix('.') {
        Some(domain) => name(domain).map(Target::Suffix),
        None => name(host).map(Target::Name),
    }
}

fn name(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err("has a *; every host below a domain is written .DOMAIN".to_owned());
    }
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > MAX_NAME || !text.split('.').all(is_label) {
        return Err(
            "is neither a host name, a .suffix, an address nor ADDRESS/BITS, each with or without :PORT"
                .to_owned(),
        );
    }
    Ok(text.to_ascii_lowercase())
}

/// The domain that `text` names, in lower case. Errors: it is no host name; the text says what is wrong with it.
pub fn domain(text: &str) -> Result<String, String> {
    name(text).map_err(|_| "is no name of a domain, as cluster.local is one".to_owned())
}

fn cidr(text: &str) -> Result<Cidr, String> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (
            address,
            Some(
                number(bits)
                    .ok_or_else(|| format!("has {bits:?} for the number of bits behind its /"))?,
            ),
        ),
        None => (text, None),
    };
    let address = if address.contains(':') {
        let address = address
            .parse::<Ipv6Addr>()
            .map_err(|_| format!("has {address:?} where an IPv6 address should be"))?;
        if let Some(mapped) = address.to_ipv4_mapped() {
            return Err(format!(
                "is an IPv4 address written as IPv6; write {mapped}"
            ));
        }
        IpAddr::V6(address)
    } else {
        let address = address.parse::<Ipv4Addr>().map_err(|_| {
            format!("has {address:?} where an IPv4 address of four numbers should be")
        })?;
        IpAddr::V4(address)
    };
    let Some(bits) = bits else {
        return Ok(Cidr::host(address));
    };
    let bits = u8::try_from(bits).unwrap_or(u8::MAX);
    Cidr::new(address, bits).ok_or_else(|| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits > most {
            true => format!("has more than {most} bits behind its /"),
            false => format!("has bits set behind its first {bits}"),
        }
    })
}

fn port(text: &str) -> Result<u16, String> {
    number(text)
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("has port {text:?}, must be 1 to 65535"))
}

/// Digits only, without a leading zero.
fn number(text: &str) -> Option<u16> {
    let is_plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok()).flatten()
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        cidr(text)
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        cidr(&text)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self == Self::host(self.base) {
            true => write!(f, "{}", self.base),
            false => write!(f, "{}/{}", self.base, self.bits),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.port) {
            (Target::Cidr(cidr), Some(_)) if cidr.base.is_ipv6() => write!(f, "[{cidr}]")?,
            (Target::Cidr(cidr), _) => write!(f, "{cidr}")?,
            (Target::Name(name), _) => f.write_str(name)?,
            (Target::Suffix(domain), _) => write!(f, ".{domain}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl TryFrom<String> for Rule {
    type Error = BadRule;

    fn try_from(text: String) -> Result<Self, BadRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_written_back() {
        for (entry, written) in [
            ("api.example.com", "api.example.com"),
            ("API.example.com:443", "api.example.com:443"),
            (".example.com", ".example.com"),
            (".Example.com:80", ".example.com:80"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_srv.my_host", "_srv.my_host"),
            ("db", "db"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/32:5432", "10.1.2.3:5432"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0:53", "0.0.0.0/0:53"),
            ("fd00::1", "fd00::1"),
            ("fd00:0::/64", "fd00::/64"),
            ("[fd00::1]", "fd00::1"),
            ("[fd00::1]:443", "[fd00::1]:443"),
            ("[fd00::/64]:443", "[fd00::/64]:443"),
            ("::/0", "::/0"),
        ] {
            let rule: Rule = entry.parse().unwrap();
            assert_eq!(rule.to_string(), written);
            assert_eq!(written.parse::<Rule>().unwrap(), rule, "{written}");
        }
    }

    #[test]
    fn ambiguous_entries_are_refused() {
        let long = format!("{}.com", "a".repeat(64));
        let longer = vec!["abcdefg"; 40].join(".");
        for entry in [
            "",
            " ",
            "a b",
            "a.com ",
            "*",
            "*.example.com",
            "a..b",
            ".",
            "..a",
            "a.",
            "-a.com",
            "a-.com",
            "http://a.com",
            "a.com/path",
            "user@a.com",
            "a.com:",
            "a.com:0",
            "a.com:65536",
            "a.com:+80",
            "a.com:080",
            "a.com:http",
            "a.com:80:80",
            "127.1",
            "10",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "1.2.3.4.5",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10/8",
            "fd00::1/64",
            "fd00::/129",
            "::ffff:10.0.0.1",
            "::ffff:10.0.0.0/104",
            "[fd00::1",
            "[fd00::1]443",
            "[fd00::]/64:443",
            "[10.0.0.1]:80",
            "[a.com]:80",
            "fe80::1%eth0",
            "fd00::g",
            "bücher.example",
            &long,
            &longer,
        ] {
            let refused = entry.parse::<Rule>();
            assert!(refused.is_err(), "{entry:?} became {refused:?}");
        }
        let why = |entry: &str| entry.parse::<Rule>().unwrap_err().to_string();
        assert_eq!(
            why("10.0.0.1/8"),
            "egress entry \"10.0.0.1/8\" has bits set behind its first 8"
        );
        assert_eq!(
            why("a.com:0"),
            "egress entry \"a.com:0\" has port \"0\", must be 1 to 65535"
        );
        assert_eq!(
            why("::ffff:10.0.0.1"),
            "egress entry \"::ffff:10.0.0.1\" is an IPv4 address written as IPv6; write 10.0.0.1"
        );
        assert!(why("*.a.com").ends_with("is written .DOMAIN"));
    }
}
