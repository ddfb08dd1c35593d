//! `[streaming]`: the address for clients of exec, attach and port-forward, as written and as checked.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariants: a server that other hosts can reach
//! uses TLS; the address is one that a URL can contain.
//! Must not know: whether the address is free, what the files contain.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::{Invalid, invalid, plain_absolute, within};

/// Longest `streaming.idle_timeout_s`: a week.
const MAX_IDLE_S: u64 = 7 * 24 * 3600;

/// `[streaming]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingFile {
    /// The address to listen on, `ADDRESS:PORT`.
    pub address: String,
    /// PEM file of the certificate; empty for HTTP.
    pub tls_certificate: PathBuf,
    /// PEM file of its key; empty for HTTP.
    pub tls_key: PathBuf,
    /// A session that is idle for this long ends. Seconds.
    pub idle_timeout_s: u64,
    /// Allowed origins, in addition to this host's own. Empty: the origin is not checked.
    pub allowed_origins: Vec<String>,
}

impl Default for StreamingFile {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".to_owned(),
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            idle_timeout_s: 4 * 3600,
            allowed_origins: Vec::new(),
        }
    }
}

/// The address and limits of the streaming server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// The address to listen on: not a wildcard, and loopback unless TLS is configured. Port 0 is any.
    pub address: SocketAddr,
    /// PEM files of certificate and key. Absolute.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A session that is idle for this long ends.
    pub idle_timeout: Duration,
    /// `https://HOST` of allowed origins, in addition to this host's own; `*` is any. Empty: the origin is not checked.
    pub allowed_origins: Vec<String>,
}

/// Checks the table.
pub(super) fn check(file: &StreamingFile) -> Result<Streaming, Invalid> {
    let identity = identity(file)?;
    for origin in &file.allowed_origins {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        let bare = !host.is_empty() && !host.contains(['/', '*', ' ']);
        if origin != "*" && !bare {
            let why = format!(
                "has {origin:?}, must be origins such as https://console.example.com, or \"*\""
            );
            return invalid("streaming.allowed_origins", why);
        }
    }
    let idle = within(
        "streaming.idle_timeout_s",
        file.idle_timeout_s,
        1..=MAX_IDLE_S,
    )?;
    Ok(Streaming {
        address: address(&file.address, identity.is_some())?,
        identity,
        idle_timeout: Duration::from_secs(idle),
        allowed_origins: file.allowed_origins.clone(),
    })
}

fn address(text: &str, secured: bool) -> Result<SocketAddr, Invalid> {
    let key = "streaming.address";
    let Ok(address) = text.parse::<SocketAddr>() else {
        return invalid(
            key,
            format!("is {text:?}, must be an IP address and a port such as 127.0.0.1:0"),
        );
    };
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() {
        return invalid(
            key,
            format!(
                "is {text:?}, but the kubelet gets this address as it is; give one of the node's"
            ),
        );
    }
    if !ip.is_loopback() && !secured {
        let why = format!(
            "is {text:?}, which others can reach; set tls_certificate and tls_key, or take 127.0.0.1:0"
        );
        return invalid(key, why);
    }
    Ok(address)
}

fn identity(file: &StreamingFile) -> Result<Option<(PathBuf, PathBuf)>, Invalid> {
    let (certificate, key) = (&file.tls_certificate, &file.tls_key);
    let given = |path: &Path| !path.as_os_str().is_empty();
    if !given(certificate) && !given(key) {
        return Ok(None);
    }
    let mut paths = Vec::new();
    for (name, path) in [
        ("streaming.tls_certificate", certificate),
        ("streaming.tls_key", key),
    ] {
        match plain_absolute(path) {
            Some(path) => paths.push(path),
            None => {
                let why = format!(
                    "is {path:?}, must be the absolute path of a PEM file, as certificate and key go together"
                );
                return invalid(name, why);
            }
        }
    }
    let key = paths.pop().unwrap_or_default();
    Ok(Some((paths.pop().unwrap_or_default(), key)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    fn judged(address: &str, certificate: &str, key: &str) -> Result<Streaming, String> {
        let file = StreamingFile {
            address: address.into(),
            tls_certificate: certificate.into(),
            tls_key: key.into(),
            ..StreamingFile::default()
        };
        check(&file).map_err(|invalid| format!("{} {}", invalid.key, invalid.why))
    }

    #[test]
    fn other_addresses_than_loopback_need_tls() {
        for address in ["127.0.0.1:0", "[::1]:10010"] {
            assert_eq!(judged(address, "", "").unwrap().identity, None, "{address}");
        }
        let open = judged("192.0.2.7:10010", "", "").unwrap_err();
        assert!(
            open.starts_with("streaming.address") && open.contains("tls_key"),
            "{open}"
        );
        let secured = judged("192.0.2.7:10010", "/etc/a.pem", "/etc/b.pem").unwrap();
        assert_eq!(
            secured.identity,
            Some(("/etc/a.pem".into(), "/etc/b.pem".into()))
        );
    }

    #[test]
    fn addresses_that_no_url_can_contain_are_refused() {
        for address in [
            "0.0.0.0:0",
            "[::]:10010",
            "224.0.0.1:1",
            "localhost:0",
            "127.0.0.1",
            "",
        ] {
            let refused = judged(address, "/etc/a.pem", "/etc/b.pem").unwrap_err();
            assert!(refused.starts_with("streaming.address is"), "{refused}");
        }
    }

    #[test]
    fn certificate_and_key_go_together() {
        let refused = judged("127.0.0.1:0", "/etc/a.pem", "").unwrap_err();
        assert!(refused.starts_with("streaming.tls_key"), "{refused}");
        let refused = judged("127.0.0.1:0", "a.pem", "/b.pem").unwrap_err();
        assert!(
            refused.starts_with("streaming.tls_certificate"),
            "{refused}"
        );
    }

    #[test]
    fn origins_have_a_scheme_and_a_host() {
        let with = |origin: &str| {
            check(&StreamingFile {
                allowed_origins: vec![origin.into()],
                ..StreamingFile::default()
            })
        };
        for good in ["*", "https://console.example.com", "http://10.0.0.1:8080"] {
            with(good).unwrap();
        }
        for odd in [
            "",
            "console.example.com",
            "https://a/b",
            "https://*.example.com",
            "https://",
        ] {
            assert_eq!(
                with(odd).unwrap_err().key,
                "streaming.allowed_origins",
                "{odd}"
            );
        }
    }
}
