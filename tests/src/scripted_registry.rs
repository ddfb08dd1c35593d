//! A registry that answers each path with what a test has set: any status, header fields, type and length, bytes that drip, stop
//! or never end. It keeps every request.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use crate::Outcome;
use crate::push::{Image, digest};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How the bytes of a body are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Whole,
    /// One after the other, with this pause.
    Drip(Duration),
    /// At once, and then silence until the registry is dropped.
    Stall,
    /// Again and again, until nobody reads.
    Endless,
}

/// The answer to requests of one path.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    /// The length that is promised; that of the body if `None`.
    length: Option<u64>,
    pace: Pace,
}

impl Answer {
    /// 200 with this body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            fields: Vec::new(),
            body: body.into(),
            length: None,
            pace: Pace::Whole,
        }
    }

    /// This status, and an empty object.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::ok("{}")
        }
    }

    /// With another header field.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Promises another length than the body has.
    pub fn promising(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// Sent at another pace.
    pub fn at(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    fn send(&self, mut stream: &TcpStream, is_head: bool, end: &AtomicBool) -> Option<()> {
        let mut head = format!("HTTP/1.1 {} X\r\n", self.status);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.pace {
            Pace::Endless => head.push_str("Connection: close\r\n\r\n"),
            _ => {
                let length = self.length.unwrap_or(self.body.len() as u64);
                head.push_str(&format!("Content-Length: {length}\r\n\r\n"));
            }
        }
        stream.write_all(head.as_bytes()).ok()?;
        if is_head {
            return Some(());
        }
        match self.pace {
            Pace::Whole => stream.write_all(&self.body).ok()?,
            Pace::Drip(pause) => {
                for byte in &self.body {
                    std::thread::sleep(pause);
                    stream.write_all(&[*byte]).ok()?;
                }
            }
            Pace::Stall => {
                stream.write_all(&self.body).ok()?;
                while !end.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                return None;
            }
            Pace::Endless => {
                let block = self.body.repeat((64 << 10) / self.body.len().max(1) + 1);
                while !end.load(Ordering::SeqCst) {
                    stream.write_all(&block).ok()?;
                }
                return None;
            }
        }
        // A client that was promised more waits for it in vain.
        (self.length.unwrap_or(self.body.len() as u64) == self.body.len() as u64).then_some(())
    }
}

/// The running server; ends on drop.
#[derive(Debug)]
pub struct ScriptedRegistry {
    host: String,
    script: Arc<Script>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Script {
    end: AtomicBool,
    answers: Mutex<HashMap<String, Answer>>,
    /// What comes once, before those.
    first: Mutex<HashMap<String, Vec<Answer>>>,
    /// Every request with its header fields, oldest first.
    requests: Mutex<Vec<String>>,
}

impl ScriptedRegistry {
    /// Starts one that knows nothing, on a free loopback port. Errors: there is none.
    pub fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        let script = Arc::<Script>::default();
        let own = Arc::clone(&script);
        let thread = spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.end.load(Ordering::SeqCst) {
                    return;
                }
                let script = Arc::clone(&own);
                spawn(move || script.serve(&stream));
            }
        });
        Ok(Self {
            host,
            script,
            thread: Some(thread),
        })
    }

    /// `address:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// From now on `path`, whatever its query, is answered so.
    pub fn on(&self, path: &str, answer: Answer) {
        let mut answers = lock(&self.script.answers);
        answers.insert(path.to_owned(), answer);
    }

    /// The next request of `path` is answered so; after those that are set already.
    pub fn once(&self, path: &str, answer: Answer) {
        let mut first = lock(&self.script.first);
        first.entry(path.to_owned()).or_default().push(answer);
    }

    /// Serves an image, honestly, as `repository:tag`. Gives the digest of its manifest.
    pub fn serve(&self, repository: &str, tag: &str, image: &Image) -> String {
        for blob in image.blobs() {
            let path = format!("/v2/{repository}/blobs/{}", digest(&blob));
            self.on(&path, Answer::ok(blob));
        }
        let manifest = image.manifest();
        let name = digest(&manifest);
        let answer = Answer::ok(manifest).with("Content-Type", OCI_MANIFEST);
        for target in [tag, &name] {
            let path = format!("/v2/{repository}/manifests/{target}");
            self.on(&path, answer.clone());
        }
        name
    }

    /// Every request so far that has this text in its line or its header fields.
    pub fn requests(&self, part: &str) -> Vec<String> {
        let requests = lock(&self.script.requests);
        let with = requests.iter().filter(|request| request.contains(part));
        with.cloned().collect()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.script.end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Script {
    /// Answers the requests of one connection, one after the other.
    fn serve(&self, stream: &TcpStream) {
        let mut lines = BufReader::new(stream);
        while let Some(request) = read_request(&mut lines) {
            let mut fields = request.split(' ');
            let is_head = fields.next() == Some("HEAD");
            let path = fields.next().unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default().to_owned();
            lock(&self.requests).push(request);
            let first = lock(&self.first)
                .get_mut(&path)
                .and_then(|answers| (!answers.is_empty()).then(|| answers.remove(0)));
            let answer = first.or_else(|| lock(&self.answers).get(&path).cloned());
            let answer = answer.unwrap_or_else(|| match path.as_str() {
                "/v2/" => Answer::ok("{}"),
                _ => Answer::status(404),
            });
            if answer.send(stream, is_head, &self.end).is_none() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn read_request(lines: &mut impl BufRead) -> Option<String> {
    let mut request = String::new();
    loop {
        let before = request.len();
        match lines.read_line(&mut request).ok()? {
            0 => return None,
            _ if request[before..].trim().is_empty() => return Some(request),
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
