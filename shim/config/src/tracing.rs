//! `[tracing]`: the collector of traces, as written and as checked.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: names of pods leave the node by TLS only, to a
//! collector whose certificate the operator's own authority vouches for.
//! Must not know: whether anybody listens there, what the file contains.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{Invalid, invalid, plain_absolute, within};

/// `[tracing]` as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingFile {
    /// The URL of a collector; empty for none.
    pub endpoint: String,
    /// PEM file of the certificates that may vouch for it; empty for HTTP.
    pub ca: PathBuf,
    /// How many of a million calls without a trace begin one.
    pub samples_per_million: u64,
}

/// The collector of traces, and what is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// The collector; `None` for no traces.
    pub collector: Option<TraceCollector>,
    /// How many of a million calls without a trace begin one.
    pub samples_per_million: u32,
}

/// Where spans are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceCollector {
    /// `http://ADDRESS:PORT`, loopback, or `https://HOST:PORT`.
    pub endpoint: String,
    /// For `https`: the PEM file of the certificates that may vouch for it. Absolute.
    pub ca: Option<PathBuf>,
}

/// Checks the table.
pub(super) fn check(file: &TracingFile) -> Result<Tracing, Invalid> {
    let key = "tracing.samples_per_million";
    let samples = within(key, file.samples_per_million, 0..=1_000_000)?;
    Ok(Tracing {
        collector: collector(file)?,
        samples_per_million: u32::try_from(samples).unwrap_or(0),
    })
}

fn collector(file: &TracingFile) -> Result<Option<TraceCollector>, Invalid> {
    let key = "tracing.endpoint";
    let endpoint = file.endpoint.trim_end_matches('/');
    let found = |ca| {
        Ok(Some(TraceCollector {
            endpoint: endpoint.to_owned(),
            ca,
        }))
    };
    if endpoint.is_empty() {
        return Ok(None);
    }
    if let Some(to) = endpoint.strip_prefix("https://").filter(|to| is_host(to)) {
        let Some(ca) = plain_absolute(&file.ca) else {
            let why = format!(
                "is {:?}, must be the absolute path of a PEM file, as {to} needs somebody who vouches for it",
                file.ca
            );
            return invalid("tracing.ca", why);
        };
        return found(Some(ca));
    }
    match endpoint.strip_prefix("http://").map(str::parse) {
        Some(Ok(address)) if is_own(address) => found(None),
        Some(Ok(_)) => invalid(
            key,
            format!(
                "is {endpoint:?}, which others could read; take https and tracing.ca, or a collector on 127.0.0.1"
            ),
        ),
        _ => invalid(
            key,
            format!(
                "is {endpoint:?}, must be http://127.0.0.1:PORT or https://HOST:PORT of a collector that takes OTLP by gRPC"
            ),
        ),
    }
}

fn is_own(address: SocketAddr) -> bool {
    address.ip().is_loopback() && address.port() != 0
}

/// Whether this is `HOST:PORT`.
fn is_host(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_part = |c: u8| c.is_ascii_alphanumeric() || b".-:[]".contains(&c);
    !host.is_empty() && host.bytes().all(is_part) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn checked(endpoint: &str, ca: &str) -> Result<Option<TraceCollector>, Invalid> {
        let file = TracingFile {
            endpoint: endpoint.to_owned(),
            ca: ca.into(),
            samples_per_million: 7,
        };
        check(&file).map(|tracing| tracing.collector)
    }

    #[test]
    fn without_tls_spans_stay_on_the_node() {
        assert_eq!(checked("", "").unwrap(), None);
        for good in ["http://127.0.0.1:4317", "http://[::1]:4317/"] {
            let collector = checked(good, "").unwrap().unwrap();
            assert_eq!(
                (collector.endpoint.as_str(), collector.ca),
                (good.trim_end_matches('/'), None)
            );
        }
        let secured = checked("https://otel.example.com:4317", "/etc/ca.pem").unwrap();
        assert_eq!(secured.unwrap().ca, Some("/etc/ca.pem".into()));
        for bad in [
            "http://192.0.2.7:4317",
            "http://localhost:4317",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "127.0.0.1:4317",
            "https://user@host:1",
            "https://host",
            "https://host:1/v1/traces",
        ] {
            let refused = checked(bad, "/etc/ca.pem").unwrap_err();
            assert_eq!(refused.key, "tracing.endpoint", "{bad}");
        }
        let refused = checked("https://host:1", "").unwrap_err();
        assert_eq!(refused.key, "tracing.ca");
    }
}
