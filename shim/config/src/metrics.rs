//! `[metrics]`: the address for scrapes, as written and as checked.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: what has no authentication and no TLS listens on
//! loopback only.
//! Must not know: whether the address is free, what is served there.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::values::{Invalid, invalid};

/// `[metrics]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsFile {
    /// The address to listen on, `ADDRESS:PORT`; empty for none.
    pub address: String,
    /// Descriptors and sockets of containers are counted.
    pub processes: bool,
}

impl Default for MetricsFile {
    fn default() -> Self {
        Self {
            address: String::new(),
            processes: true,
        }
    }
}

/// The listener for scrapes, and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The address to listen on: loopback. Port 0 is any.
    pub address: Option<SocketAddr>,
    /// Descriptors and sockets of containers are counted.
    pub processes: bool,
}

/// Checks the table.
pub(super) fn check(file: &MetricsFile) -> Result<Metrics, Invalid> {
    Ok(Metrics {
        address: address(&file.address)?,
        processes: file.processes,
    })
}

fn address(text: &str) -> Result<Option<SocketAddr>, Invalid> {
    let key = "metrics.address";
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(Some(address)),
        Ok(_) => invalid(
            key,
            format!(
                "is {text:?}, which others can reach; take 127.0.0.1 and put a proxy that authenticates before it"
            ),
        ),
        Err(_) => invalid(
            key,
            format!(
                "is {text:?}, must be an IP address and a port such as 127.0.0.1:9487, or empty"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        let checked = |address: &str| {
            address_of(address).map_err(|invalid| format!("{} {}", invalid.key, invalid.why))
        };
        assert_eq!(checked(""), Ok(None));
        for good in ["127.0.0.1:9487", "[::1]:0"] {
            assert_eq!(checked(good), Ok(good.parse().ok()), "{good}");
        }
        for bad in [
            "0.0.0.0:9487",
            "192.0.2.7:1",
            "[::]:1",
            "localhost:1",
            "127.0.0.1",
            ":9487",
        ] {
            let refused = checked(bad);
            assert!(
                refused
                    .as_ref()
                    .is_err_and(|why| why.starts_with("metrics.address is")),
                "{bad}: {refused:?}"
            );
        }
    }

    fn address_of(address: &str) -> Result<Option<SocketAddr>, Invalid> {
        let file = MetricsFile {
            address: address.to_owned(),
            ..MetricsFile::default()
        };
        check(&file).map(|metrics| metrics.address)
    }
}
