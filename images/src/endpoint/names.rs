//! Names of hosts: which are mirrors, which are this machine, what messages call them.
//!
//! Called by: the parent and its parts. Pure. Not here: addresses that names resolve to ([`super::address_policy`]).

use crate::mirrors::{Upstream, host_of};
use crate::reference::ImageRef;

/// True for a host that is not the registry itself under one of its names.
pub(super) fn is_mirror(reference: &ImageRef, upstream: &Upstream) -> bool {
    upstream.authority != host_of(reference.registry())
}

/// What messages call it: the registry's name, or the URL of a mirror.
pub(super) fn name(reference: &ImageRef, upstream: &Upstream) -> String {
    if !is_mirror(reference, upstream) && upstream.api == "/v2" {
        return reference.registry().to_owned();
    }
    let scheme = if upstream.plain_http { "http" } else { "https" };
    let prefix = upstream.api.strip_suffix("/v2").unwrap_or(&upstream.api);
    format!("{scheme}://{}{prefix}", upstream.authority)
}

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
