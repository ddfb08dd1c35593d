//! A registry that misbehaves in one chosen way. It serves one image, from memory, under every repository and tag.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use crate::Outcome;
use crate::push::{Image, digest};

/// The way in which the registry is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is wrong: the control.
    None,
    /// One byte of every layer differs from the digest in the manifest.
    WrongLayer,
    /// The connection is closed in the middle of every layer.
    DieMidLayer,
    /// The first half of a layer is sent, then nothing, until the registry is dropped.
    StallMidLayer,
    /// A manifest that is requested by digest has another digest.
    WrongManifest,
    /// Every request is answered 500.
    ServerError,
    /// Every request is answered 401 without a way to authenticate.
    Unauthorized,
    /// Requests without a password are answered 401; any password is accepted.
    WantsPassword,
}

/// The running server; ends on drop.
#[derive(Debug)]
pub struct FaultyRegistry {
    host: String,
    end: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    passwords: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

struct Site {
    image: Image,
    fault: Fault,
    end: Arc<AtomicBool>,
    passwords: Arc<AtomicUsize>,
}

/// What is looked at of a request.
struct Request {
    method: String,
    /// Without the query.
    path: String,
    has_password: bool,
}

impl FaultyRegistry {
    /// Serves `image` with this fault on a free loopback port.
    pub fn start(image: Image, fault: Fault) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        let end = Arc::new(AtomicBool::new(false));
        let (requests, passwords) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let site = Arc::new(Site {
            image,
            fault,
            end: Arc::clone(&end),
            passwords: Arc::clone(&passwords),
        });
        let count = Arc::clone(&requests);
        let thread = spawn(move || {
            for stream in listener.incoming().flatten() {
                if site.end.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let site = Arc::clone(&site);
                spawn(move || site.serve(&stream));
            }
        });
        Ok(Self {
            host,
            end,
            requests,
            passwords,
            thread: Some(thread),
        })
    }

    /// `address:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How many connections were made so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// How many requests came with a password or a token.
    pub fn passwords(&self) -> usize {
        self.passwords.load(Ordering::SeqCst)
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Site {
    /// Answers the requests of one connection, one after the other, until the client or the fault ends it.
    fn serve(&self, stream: &TcpStream) {
        let mut lines = BufReader::new(stream);
        while let Some(request) = read_request(&mut lines) {
            self.passwords
                .fetch_add(usize::from(request.has_password), Ordering::SeqCst);
            if self.answer(stream, &request).is_none() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn answer(&self, stream: &TcpStream, request: &Request) -> Option<()> {
        let (method, path) = (request.method.as_str(), request.path.as_str());
        match self.fault {
            Fault::WantsPassword if !request.has_password => {
                let status = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"faulty\"";
                return send(stream, status, ("text/plain", b"who?"));
            }
            Fault::ServerError => {
                return send(stream, "500 Internal Server Error", ("text/plain", b"no"));
            }
            Fault::Unauthorized => return send(stream, "401 Unauthorized", ("text/plain", b"no")),
            _ => {}
        }
        if path == "/v2/" {
            return send(stream, "200 OK", ("application/json", b"{}"));
        }
        let name = path.rsplit('/').next()?;
        if path.contains("/manifests/") {
            let mut manifest = self.image.manifest();
            if self.fault == Fault::WrongManifest {
                manifest.push(b'\n');
            }
            let body = if method == "HEAD" { &[][..] } else { &manifest };
            return send_sized(
                stream,
                ("application/vnd.oci.image.manifest.v1+json", body),
                manifest.len(),
            );
        }
        let blobs = self.image.blobs();
        let found = blobs.iter().position(|blob| digest(blob) == name);
        let Some(at) = found else {
            return send(stream, "404 Not Found", ("text/plain", b"absent"));
        };
        self.send_blob(stream, blobs[at].clone(), at > 0)
    }

    fn send_blob(&self, mut stream: &TcpStream, mut blob: Vec<u8>, is_layer: bool) -> Option<()> {
        let (size, half) = (blob.len(), blob.len() / 2);
        match (self.fault, is_layer) {
            (Fault::WrongLayer, true) => blob[half] ^= 0xff,
            (Fault::DieMidLayer | Fault::StallMidLayer, true) => {
                send_sized(stream, ("application/octet-stream", &blob[..half]), size)?;
                stream.flush().ok()?;
                while self.fault == Fault::StallMidLayer && !self.end.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                return None;
            }
            _ => {}
        }
        send_sized(stream, ("application/octet-stream", &blob), size)
    }
}

fn read_request(lines: &mut impl BufRead) -> Option<Request> {
    let mut first = String::new();
    if lines.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let (mut header, mut has_password) = (String::new(), false);
    while lines.read_line(&mut header).ok()? > 2 {
        has_password |= header.to_ascii_lowercase().starts_with("authorization:");
        header.clear();
    }
    let mut fields = first.split(' ');
    let method = fields.next()?.to_owned();
    let path = fields.next()?.split('?').next()?.to_owned();
    Some(Request {
        method,
        path,
        has_password,
    })
}

fn send(mut stream: &TcpStream, status: &str, content: (&str, &[u8])) -> Option<()> {
    let (kind, body) = content;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()
}

/// Promises `size` bytes and sends those of `content`, however many they are.
fn send_sized(mut stream: &TcpStream, content: (&str, &[u8]), size: usize) -> Option<()> {
    let (kind, body) = content;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).ok()
}
