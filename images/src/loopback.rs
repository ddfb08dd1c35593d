//! Names of this machine, as they stand in references and URLs.
//!
//! Called by: whoever decides what a host on loopback may have (plain http, no proxy). Pure. Not here: addresses that names
//! resolve to.

/// True for loopback hosts, with any port.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.evil.io",
            "127.0.0.1.evil.io:5000",
            "10.0.0.1:5000",
            "[::2]:5000",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
