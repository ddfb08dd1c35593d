//! The little HTTP/1.1 that pushing an image needs: one request a connection, plain text, loopback only.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Outcome;

/// How long a single read or write of a registry on the same machine may take.
const IO_DEADLINE: Duration = Duration::from_secs(60);

/// A registry returns OCI manifests only for requests that accept their media type.
const ACCEPT: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";

/// A reply, read whole.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    headers: String,
    /// The body as it came, without the headers.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, its name compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| {
            line.split(':')
                .next()
                .is_some_and(|key| key.eq_ignore_ascii_case(name))
        };
        let line = self.headers.lines().find(named)?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

/// Sends one request to `host` (an `address:port`) and reads the reply to its end.
/// Errors: the connection failed, or the reply is not HTTP.
pub fn request(
    host: &str,
    method: &str,
    path: &str,
    content: Option<(&str, &[u8])>,
) -> Outcome<Reply> {
    let mut stream = TcpStream::connect(host).map_err(|e| format!("connect {host}: {e}"))?;
    stream.set_read_timeout(Some(IO_DEADLINE))?;
    stream.set_write_timeout(Some(IO_DEADLINE))?;
    let (kind, body) = content.unwrap_or(("application/octet-stream", b""));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: */*, {ACCEPT}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    parse(raw).ok_or_else(|| format!("{method} http://{host}{path}: the reply is not HTTP").into())
}

fn parse(raw: Vec<u8>) -> Option<Reply> {
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
    let headers = String::from_utf8(raw[..end].to_vec()).ok()?;
    let status = headers.split(' ').nth(1)?.parse().ok()?;
    Some(Reply {
        status,
        headers,
        body: raw[end + 4..].to_vec(),
    })
}
