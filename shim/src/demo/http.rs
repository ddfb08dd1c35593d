//! The little HTTP/1.1 that pushing an image to a registry on this machine takes: one request a connection.
//!
//! Called by: `registry`. Invariant: a reply is read whole or not at all, and never waited for longer than [`PATIENCE`].
//! Not here: TLS, redirects, credentials; the daemon's own registry client has those.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::error::Error;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest reply that is read. Bytes; a registry answers a push with headers.
const MAX_REPLY_BYTES: u64 = 1 << 20;

/// A reply: status line and headers as text, body as text for people.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    head: String,
    /// The body, as far as it is text.
    pub body: String,
}

impl Reply {
    /// The value of a header; its name is compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    }
}

/// Sends one request to `host` (`address:port`); `content` is a media type and a body.
///
/// Errors: the connection fails, or what comes back within five seconds is not HTTP.
pub async fn request(
    host: &str,
    method: &str,
    path: &str,
    content: Option<(&str, &[u8])>,
) -> Result<Reply, Error> {
    let what = || format!("{method} http://{host}{path}");
    let exchanged = tokio::time::timeout(PATIENCE, exchange(host, method, path, content)).await;
    let raw = match exchanged {
        Ok(raw) => raw.map_err(|error| Error::because(what(), error))?,
        Err(_) => {
            return Err(Error::new(format!(
                "{}: no answer within {PATIENCE:?}",
                what()
            )));
        }
    };
    parse(&raw).ok_or_else(|| Error::new(format!("{}: the answer is not HTTP", what())))
}

async fn exchange(
    host: &str,
    method: &str,
    path: &str,
    content: Option<(&str, &[u8])>,
) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host).await?;
    let (kind, body) = content.unwrap_or(("application/octet-stream", b""));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut raw = Vec::new();
    stream.take(MAX_REPLY_BYTES).read_to_end(&mut raw).await?;
    Ok(raw)
}

fn parse(raw: &[u8]) -> Option<Reply> {
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&raw[..end]).ok()?.to_owned();
    let status = head
        .strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    let body = String::from_utf8_lossy(&raw[end + 4..]).into_owned();
    Some(Reply { status, head, body })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_apart() {
        let reply =
            parse(b"HTTP/1.1 202 Accepted\r\nlocation: /v2/a?b=c\r\nX: y\r\n\r\nbody").unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (202, "body"));
        assert_eq!(reply.header("Location"), Some("/v2/a?b=c"));
        assert_eq!(reply.header("absent"), None);
        assert!(parse(b"SSH-2.0-OpenSSH\r\n\r\n").is_none());
        assert!(
            parse(b"HTTP/1.1 200 OK\r\n").is_none(),
            "a head that was cut off is no reply"
        );
    }
}
