//! A small HTTP/1.1 client for pushing an image to a registry on this machine: hyper, one request for each connection.
//!
//! Called by: `registry`. Invariant: a reply is read completely, within [`TIMEOUT`].
//! Must not know: TLS, redirects, credentials; the daemon's own registry client has those.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::error::Error;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest body that is read. Bytes; a registry answers a push with headers.
const MAX_BODY_BYTES: usize = 1 << 20;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A reply with its body as text.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    headers: HeaderMap,
    /// The body, where it is text.
    pub body: String,
}

impl Reply {
    /// The value of a header, if it is text; names are compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Sends one request to `host` (`address:port`); `content` is a media type and a body.
///
/// Errors: the connection fails, or there is no valid reply within five seconds.
pub async fn request(
    host: &str,
    method: &str,
    path: &str,
    content: Option<(&str, &[u8])>,
) -> Result<Reply, Error> {
    let what = || format!("{method} http://{host}{path}");
    let (kind, body) = content.unwrap_or(("application/octet-stream", b""));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, kind)
        .body(Full::new(Bytes::copy_from_slice(body)))
        .map_err(|error| Error::because(what(), error))?;
    match tokio::time::timeout(TIMEOUT, exchange(host, request)).await {
        Ok(reply) => reply.map_err(|cause| Error::because(what(), cause)),
        Err(_) => Err(Error::new(format!(
            "{}: no answer within {TIMEOUT:?}",
            what()
        ))),
    }
}

async fn exchange(host: &str, request: Request<Full<Bytes>>) -> Result<Reply, Cause> {
    let stream = TcpStream::connect(host).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with `sender`, and its errors are those of the request.
    tokio::spawn(connection);
    let (head, body) = Response::into_parts(sender.send_request(request).await?);
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await?;
    Ok(Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// The result of `request` for the reply `answer`, and the request as it was sent.
    async fn exchanged(answer: &'static [u8]) -> (Result<Reply, Error>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut sent, mut room) = (Vec::new(), [0; 1024]);
            while !sent.ends_with(b"\r\n\r\nblob") {
                let count = stream.read(&mut room).await.unwrap();
                assert_ne!(count, 0, "{}", String::from_utf8_lossy(&sent));
                sent.extend_from_slice(&room[..count]);
            }
            stream.write_all(answer).await.unwrap();
            String::from_utf8(sent).unwrap()
        });
        let reply = request(&host, "PUT", "/v2/a?b=c", Some(("x/y", b"blob"))).await;
        (reply, server.await.unwrap())
    }

    #[tokio::test]
    async fn a_request_is_sent_whole_and_its_reply_is_parsed() {
        let (reply, sent) = exchanged(
            b"HTTP/1.1 202 Accepted\r\nlocation: /v2/a?b=c\r\nContent-Length: 4\r\n\r\nbody",
        )
        .await;
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (202, "body"));
        assert_eq!(reply.header("Location"), Some("/v2/a?b=c"));
        assert_eq!(reply.header("absent"), None);
        assert!(sent.starts_with("PUT /v2/a?b=c HTTP/1.1\r\n"), "{sent}");
        for header in ["host: 127.0.0.1:", "content-type: x/y", "content-length: 4"] {
            assert!(sent.contains(header), "{sent}");
        }
    }

    #[tokio::test]
    async fn an_incomplete_reply_is_an_error() {
        for odd in [
            &b"SSH-2.0-OpenSSH\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        ] {
            let (reply, _) = exchanged(odd).await;
            assert!(reply.is_err(), "{}", String::from_utf8_lossy(odd));
        }
    }
}
