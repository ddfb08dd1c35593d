//! Parses a pod's `/etc/resolv.conf` and `/etc/hosts`. Sources: resolv.conf(5), hosts(5).
//!
//! The resolver reads them inside the jail at each lookup, as libc does. Invariant: the result is bounded whatever the
//! files hold. It must not know how servers are queried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Most servers and search domains that are used.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// Most addresses of one name in a hosts file.
const MAX_ADDRESSES: usize = 64;

/// How names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Servers, in the order in which they are queried.
    pub(super) servers: Vec<IpAddr>,
    /// Domains that are appended to a short name.
    pub(super) searches: Vec<String>,
    /// A name with at least this many dots is tried unchanged first.
    pub(super) ndots: usize,
    /// How long one server may take.
    pub(super) timeout: Duration,
    /// How often the servers are queried.
    pub(super) attempts: u32,
}

impl Settings {
    /// Parses the text of resolv.conf; the defaults are those of resolv.conf(5).
    pub(super) fn parse(text: &str) -> Self {
        let mut settings = Self {
            servers: Vec::new(),
            searches: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            match fields.next() {
                Some("nameserver") => settings.server(fields.next()),
                Some("domain" | "search") => {
                    let domains = fields.map(|field| field.trim_end_matches('.').to_owned());
                    let domains = domains.filter(|domain| !domain.is_empty());
                    settings.searches = domains.take(MAX_SEARCHES).collect();
                }
                Some("options") => fields.for_each(|field| settings.option(field)),
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        settings
    }

    fn server(&mut self, field: Option<&str>) {
        // A link-local server may have its interface behind a %.
        let address = field.and_then(|field| field.split('%').next()?.parse::<IpAddr>().ok());
        if self.servers.len() < MAX_SERVERS {
            self.servers.extend(address);
        }
    }

    fn option(&mut self, field: &str) {
        let number = |name: &str| field.strip_prefix(name)?.parse::<u32>().ok();
        if let Some(dots) = number("ndots:") {
            self.ndots = dots.min(15) as usize;
        } else if let Some(seconds) = number("timeout:") {
            self.timeout = Duration::from_secs(seconds.clamp(1, 30).into());
        } else if let Some(attempts) = number("attempts:") {
            self.attempts = attempts.clamp(1, 5);
        }
    }

    /// The full names to try for `name`, in order.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        let searched = self
            .searches
            .iter()
            .map(|domain| format!("{name}.{domain}"));
        let own = std::iter::once(name.to_owned());
        match name.matches('.').count() >= self.ndots {
            true => own.chain(searched).collect(),
            false => searched.chain(own).collect(),
        }
    }
}

/// The addresses of `name` in the text of a hosts file.
pub(super) fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let mut found: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut fields = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let Some(address) = fields.next().and_then(|field| field.parse().ok()) else {
            continue;
        };
        if fields.any(|field| field.eq_ignore_ascii_case(name)) && !found.contains(&address) {
            found.push(address);
        }
        if found.len() == MAX_ADDRESSES {
            break;
        }
    }
    found
}

/// Whether `name` is the pod itself, whatever a file says. Source: RFC 6761, section 6.3.
pub(super) fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// The addresses of `localhost`.
pub(super) const LOCALHOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// A file's text, up to [`MAX_BYTES`]; empty if the file is absent or unreadable.
pub(super) fn text_of(path: &str) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    const CLUSTER: &str = "search a.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n\
        # comment\nnameserver fe80::1%eth0\nnameserver bad\noptions ndots:5 timeout:1 attempts:9 edns0\n";

    #[test]
    fn a_clusters_resolv_conf_is_parsed() {
        let settings = Settings::parse(CLUSTER);
        let servers: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(settings.servers, servers);
        assert_eq!((settings.ndots, settings.attempts), (5, 5));
        assert_eq!(settings.timeout, Duration::from_secs(1));
        assert_eq!(
            settings.candidates("db.other"),
            [
                "db.other.a.svc.cluster.local",
                "db.other.svc.cluster.local",
                "db.other"
            ]
        );
        assert_eq!(settings.candidates("db.other."), ["db.other"]);
    }

    #[test]
    fn an_empty_resolv_conf_uses_the_local_server() {
        let settings = Settings::parse("");
        assert_eq!(settings.servers, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        assert_eq!(settings.candidates("a.b"), ["a.b"]);
        assert_eq!(settings.candidates("a"), ["a"]);
    }

    #[test]
    fn hosts_give_all_addresses_of_a_name() {
        let text = "10.0.0.1 web web-0 # web-1\n::1 WEB\n10.0.0.2\tother\nbad web\n";
        let expected: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(hosts(text, "web."), expected);
        assert!(hosts(text, "web-1").is_empty() && hosts(text, "").is_empty());
        assert!(is_localhost("LOCALHOST.") && is_localhost("a.localhost"));
        assert!(!is_localhost("localhost.example"));
    }
}
