//! A registry that answers what a test has set for each path, and keeps every request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_images::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::image::{OCI_MANIFEST, Parts};

/// Requests, oldest first.
type Log = Arc<Mutex<Vec<String>>>;

/// What the server does with one request.
#[derive(Clone)]
pub enum Reply {
    /// This status, these headers, this body.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These headers; promises the whole body, sends this many bytes, hangs up.
    Dies(Vec<(&'static str, String)>, Vec<u8>, usize),
    /// Sends what a Range asks for, or all, but hangs up after this many bytes.
    Breaks(Vec<u8>, usize),
    /// Promises the whole body, sends this many bytes, says nothing more.
    Stalls(Vec<u8>, usize),
    /// Sends the body byte by byte with this pause between them.
    Drips(Vec<u8>, Duration),
    /// This status and these headers, then bytes without end and without a word on how many.
    Endless(u16, Vec<(&'static str, String)>),
    /// Header fields without end.
    EndlessHead,
    /// One after the other, the last for ever.
    Turns(Arc<AtomicUsize>, Vec<Reply>),
}

impl Reply {
    pub fn ok(body: &[u8]) -> Self {
        Self::Full(200, vec![], body.to_vec())
    }

    /// A status, with a header field.
    pub fn status(status: u16, name: &'static str, value: &str) -> Self {
        Self::Full(status, vec![(name, value.to_owned())], b"{}".to_vec())
    }

    /// One after the other, the last for ever. Never empty.
    pub fn turns(replies: Vec<Self>) -> Self {
        Self::Turns(Arc::default(), replies)
    }

    pub fn manifest(body: &Value) -> Self {
        Self::Full(
            200,
            vec![("Content-Type", OCI_MANIFEST.into())],
            body.to_string().into_bytes(),
        )
    }
}

/// A registry with a reply for each path; it keeps every request.
pub struct ScriptedRegistry {
    pub host: String,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    requests: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl ScriptedRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let replies: Arc<Mutex<HashMap<String, Reply>>> = Arc::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (heads, sent): (Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) = Default::default();
        let (known, log) = (
            replies.clone(),
            (requests.clone(), heads.clone(), sent.clone()),
        );
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, known.clone(), log.clone()));
            }
        });
        Self {
            host,
            replies,
            requests,
            heads,
            sent,
            task,
        }
    }

    /// From now on a `HEAD` of `path` is answered so, whatever a `GET` is.
    pub fn on_head(&self, path: &str, reply: Reply) {
        let key = format!("HEAD /v2{path}");
        self.replies.lock().unwrap().insert(key, reply);
    }

    /// Answers at `to`, by both methods, as at `from`.
    pub fn alias(&self, from: &str, to: &str) {
        let mut replies = self.replies.lock().unwrap();
        for method in ["", "HEAD "] {
            if let Some(reply) = replies.get(&format!("{method}/v2{from}")).cloned() {
                replies.insert(format!("{method}/v2{to}"), reply);
            }
        }
    }

    /// Answers at the whole path `to` as below `/v2` at `from`.
    pub fn alias_path(&self, from: &str, to: &str) {
        let mut replies = self.replies.lock().unwrap();
        let reply = replies[&format!("/v2{from}")].clone();
        replies.insert(to.to_owned(), reply);
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.requests.lock().unwrap().clear();
        self.heads.lock().unwrap().clear();
    }

    /// All requests, with their header fields.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Bytes of endless answers that were taken from it.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// From now on `path` (after `/v2`) is answered so.
    pub fn on(&self, path: &str, reply: Reply) {
        self.replies
            .lock()
            .unwrap()
            .insert(format!("/v2{path}"), reply);
    }

    /// Serves a whole image, honestly. Answers the digest of its manifest.
    pub fn serve_image(&self, repository: &str, tag: &str, image: &Parts) -> Digest {
        let describe = |media_type: &str, data: &[u8]| {
            self.on(
                &format!("/{repository}/blobs/{}", Digest::of(data)),
                Reply::ok(data),
            );
            json!({"mediaType": media_type, "digest": Digest::of(data).as_str(), "size": data.len()})
        };
        let config = describe(image.config.0, &image.config.1);
        let layers = image
            .layers
            .iter()
            .map(|(media_type, data)| describe(media_type, data))
            .collect();
        let manifest = image.manifest(config, layers);
        let digest = Digest::of(manifest.to_string().as_bytes());
        for name in [tag, digest.as_str()] {
            self.on(
                &format!("/{repository}/manifests/{name}"),
                Reply::manifest(&manifest),
            );
        }
        digest
    }

    /// How often a path that contains this was requested.
    pub fn requests(&self, part: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|line| line.contains(part)).count()
    }

    /// How often a `GET` of a path that ends so was sent.
    pub fn gets(&self, end: &str) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.starts_with("GET ") && line.ends_with(end))
            .count()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads one request and sends the reply that is set for it.
async fn serve(
    mut stream: TcpStream,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    (requests, heads, sent_endless): (Log, Log, Arc<AtomicUsize>),
) {
    let Some(head) = read_head(&mut stream).await else {
        return;
    };
    let mut fields = head.split(' ');
    let method = fields.next().unwrap_or_default();
    let path = fields.next().unwrap_or_default();
    requests.lock().unwrap().push(format!("{method} {path}"));
    heads.lock().unwrap().push(head.clone());
    let reply = find_reply(&replies.lock().unwrap(), method, path);
    let has_body = method != "HEAD";
    match reply {
        Reply::Full(status, headers, body) => {
            send(
                &mut stream,
                (status, &headers),
                &body,
                has_body.then_some(body.len()),
            )
            .await;
        }
        Reply::Dies(headers, body, sent) => {
            let sent = has_body.then_some(sent);
            send(&mut stream, (200, &headers), &body, sent).await;
        }
        Reply::Breaks(body, most) => breaks(&mut stream, &head, &body, most).await,
        Reply::Stalls(body, sent) => {
            send(&mut stream, (200, &[]), &body, has_body.then_some(sent)).await;
            if has_body {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
        }
        Reply::Drips(body, pause) => drip(stream, &body, pause).await,
        Reply::Endless(status, headers) => {
            let head = open_head(status, &headers);
            endless(
                stream,
                &format!("{head}\r\n"),
                &[b' '; 64 << 10],
                &sent_endless,
            )
            .await;
        }
        Reply::EndlessHead => {
            let field = format!("X-Filler: {}\r\n", "x".repeat(1000));
            endless(
                stream,
                &open_head(200, &[]),
                field.as_bytes(),
                &sent_endless,
            )
            .await;
        }
        Reply::Turns(..) => unreachable!("a turn is taken when the reply is looked up"),
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head == [22] {
            // A client that speaks TLS.
            let _ = stream.write_all(b"HTTP/1.1 400 X\r\n\r\n").await;
            return None;
        }
    }
    let mut text = String::from_utf8_lossy(&head).into_owned();
    let mut body = vec![0; field(&text, "content-length: ").unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    text.push_str(&String::from_utf8_lossy(&body));
    Some(text)
}

/// The number in a header field.
fn field(head: &str, name: &str) -> Option<usize> {
    let head = head.to_ascii_lowercase();
    let (_, rest) = head.split_once(name)?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Sends at most `most` bytes from where a Range begins.
async fn breaks(stream: &mut TcpStream, head: &str, body: &[u8], most: usize) {
    let first = field(head, "range: bytes=");
    let rest = &body[first.unwrap_or(0)..];
    let range = format!(
        "bytes {}-{}/{}",
        body.len() - rest.len(),
        body.len() - 1,
        body.len()
    );
    let (status, headers) = match first {
        Some(_) => (206, vec![("Content-Range", range)]),
        None => (200, vec![]),
    };
    send(stream, (status, &headers), rest, Some(rest.len().min(most))).await;
}

fn find_reply(replies: &HashMap<String, Reply>, method: &str, path: &str) -> Reply {
    let bare = path.split('?').next().unwrap_or_default();
    let found = replies
        .get(&format!("{method} {path}"))
        .or(replies.get(path))
        .or(replies.get(bare));
    match found {
        Some(Reply::Turns(taken, turns)) => {
            let turn = taken.fetch_add(1, Ordering::Relaxed);
            turns[turn.min(turns.len() - 1)].clone()
        }
        Some(reply) => reply.clone(),
        None if path == "/v2/" => Reply::ok(b"{}"),
        None => Reply::Full(404, vec![], b"{}".to_vec()),
    }
}

/// Sends a head that promises all of `body`, then the first `sent` bytes of it, if any.
async fn send(
    stream: &mut TcpStream,
    (status, headers): (u16, &[(&'static str, String)]),
    body: &[u8],
    sent: Option<usize>,
) {
    let head = head_of(status, headers, body.len());
    let _ = stream.write_all(head.as_bytes()).await;
    if let Some(sent) = sent {
        let _ = stream.write_all(&body[..sent]).await;
        let _ = stream.flush().await;
    }
}

/// Sends the body byte by byte.
async fn drip(mut stream: TcpStream, body: &[u8], pause: Duration) {
    let head = head_of(200, &[], body.len());
    let _ = stream.write_all(head.as_bytes()).await;
    for byte in body {
        tokio::time::sleep(pause).await;
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
    }
}

fn head_of(status: u16, headers: &[(&'static str, String)], length: usize) -> String {
    let extra: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n")
}

/// A head that promises no length, up to where further fields may follow.
fn open_head(status: u16, headers: &[(&'static str, String)]) -> String {
    let extra: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{extra}")
}

/// Sends `first`, and then `block` again and again.
async fn endless(mut stream: TcpStream, first: &str, block: &[u8], sent: &AtomicUsize) {
    let _ = stream.write_all(first.as_bytes()).await;
    while stream.write_all(block).await.is_ok() {
        sent.fetch_add(block.len(), Ordering::Relaxed);
    }
}
