//! What the tests of this crate stand on: a real `docker-registry`, a server that lies, a client that pushes,
//! and builders for images. Invariant: everything started or mounted here ends with the value that owns it.
#![allow(dead_code, reason = "each file of tests uses its part of this")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_images::{Cause, Digest, RunningUnpacker, Unpacker, UnpackerLauncher};
use futures_util::future::{BoxFuture, FutureExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// The smallest module there is: magic and version.
pub const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A directory of this test alone, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "images-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A real registry on a free port of loopback.
pub struct Registry {
    pub host: String,
    process: Child,
    _scratch: Scratch,
}

impl Registry {
    pub async fn start() -> Self {
        let scratch = Scratch::new();
        for _ in 0..5 {
            let port = free_port();
            let config = scratch.0.join("config.yml");
            let storage = scratch.0.join("storage");
            std::fs::write(&config, registry_config(&storage, port)).unwrap();
            let mut process = Command::new("docker-registry")
                .args(["serve".as_ref(), config.as_os_str()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry (Debian package of that name) starts");
            let host = format!("127.0.0.1:{port}");
            if answers(&host, &mut process).await {
                return Self {
                    host,
                    process,
                    _scratch: scratch,
                };
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("docker-registry did not come up");
    }

    /// Uploads a blob and gives its descriptor.
    pub async fn blob(&self, repository: &str, media_type: &str, data: &[u8]) -> Value {
        let digest = Digest::of(data);
        let start = format!("/v2/{repository}/blobs/uploads/");
        let (status, headers) = self.send("POST", &start, "text/plain", b"").await;
        assert_eq!(status, 202);
        let location = headers["location"]
            .split_once(&self.host)
            .unwrap()
            .1
            .to_owned();
        let finish = format!("{location}&digest={digest}");
        let (status, _) = self
            .send("PUT", &finish, "application/octet-stream", data)
            .await;
        assert_eq!(status, 201);
        json!({"mediaType": media_type, "digest": digest.as_str(), "size": data.len()})
    }

    /// Uploads a manifest or index under a tag and gives its descriptor.
    pub async fn manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        body: &Value,
    ) -> Value {
        let bytes = body.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        for name in [tag, digest.as_str()] {
            let path = format!("/v2/{repository}/manifests/{name}");
            assert_eq!(self.send("PUT", &path, media_type, &bytes).await.0, 201);
        }
        json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()})
    }

    /// Uploads an image of parts that are uploaded here, too.
    pub async fn image(&self, repository: &str, tag: &str, image: &Parts) -> Value {
        let config = self.blob(repository, image.config.0, &image.config.1).await;
        let mut layers = Vec::new();
        for (media_type, data) in &image.layers {
            layers.push(self.blob(repository, media_type, data).await);
        }
        self.manifest(
            repository,
            tag,
            image.media_type,
            &image.manifest(config, layers),
        )
        .await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> (u16, HashMap<String, String>) {
        let mut stream = TcpStream::connect(&self.host).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let mut lines = answer.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": "));
        (
            status,
            headers
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
        )
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn registry_config(storage: &Path, port: u16) -> String {
    format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n",
        storage.display()
    )
}

/// A port that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

async fn answers(host: &str, process: &mut Child) -> bool {
    for _ in 0..400 {
        if TcpStream::connect(host).await.is_ok() {
            return process.try_wait().unwrap().is_none();
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    false
}

/// The parts of one image.
pub struct Parts {
    pub media_type: &'static str,
    pub config: (&'static str, Vec<u8>),
    pub layers: Vec<(&'static str, Vec<u8>)>,
    pub annotations: Value,
}

impl Parts {
    /// A CNCF artifact: the module is the layer.
    pub fn artifact(module: &[u8]) -> Self {
        let config = json!({"architecture": "wasm", "os": "wasip1", "layerDigests": [Digest::of(module).as_str()]});
        Self {
            media_type: OCI_MANIFEST,
            config: (WASM_CONFIG, config.to_string().into_bytes()),
            layers: vec![("application/wasm", module.to_vec())],
            annotations: json!({"org.example.note": "kept"}),
        }
    }

    /// An image of archives; `config` is the `config` object of the image config.
    pub fn archives(
        os: &str,
        architecture: &str,
        config: Value,
        tars: &[(&'static str, Vec<u8>)],
    ) -> Self {
        let diff_ids: Vec<String> = tars
            .iter()
            .map(|(_, tar)| Digest::of(tar).to_string())
            .collect();
        let config = json!({
            "os": os, "architecture": architecture, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let layers = tars
            .iter()
            .map(|(media_type, tar)| (*media_type, packed(media_type, tar)))
            .collect();
        Self {
            media_type: OCI_MANIFEST,
            config: (IMAGE_CONFIG, config.to_string().into_bytes()),
            layers,
            annotations: json!({"org.example.note": "kept"}),
        }
    }

    /// The manifest, when its descriptors are known.
    pub fn manifest(&self, config: Value, layers: Vec<Value>) -> Value {
        json!({"schemaVersion": 2, "mediaType": self.media_type, "config": config, "layers": layers,
               "annotations": self.annotations})
    }

    /// The digest of the config: the id of an image of archives.
    pub fn id(&self) -> String {
        Digest::of(&self.config.1).to_string()
    }
}

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn packed(media_type: &str, tar: &[u8]) -> Vec<u8> {
    if media_type.ends_with("gzip") {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        return encoder.finish().unwrap();
    }
    if media_type.ends_with("zstd") {
        return zstd::encode_all(tar, 1).unwrap();
    }
    tar.to_vec()
}

/// Bytes that do not compress and differ by seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Lines that a server has noted.
type Log = Arc<Mutex<Vec<String>>>;

/// What the lying server does with one request.
#[derive(Clone)]
pub enum Reply {
    /// This status, these headers, this body.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Promises the whole body, sends this many bytes, hangs up.
    Dies(Vec<u8>, usize),
    /// Promises the whole body, sends this many bytes, says nothing more.
    Stalls(Vec<u8>, usize),
    /// Sends the body byte by byte with this pause between them.
    Drips(Vec<u8>, Duration),
    /// This status and these headers, then bytes without end and without a word on how many.
    Endless(u16, Vec<(&'static str, String)>),
}

impl Reply {
    pub fn ok(body: &[u8]) -> Self {
        Self::Full(200, vec![], body.to_vec())
    }

    pub fn manifest(body: &Value) -> Self {
        Self::Full(
            200,
            vec![("Content-Type", OCI_MANIFEST.into())],
            body.to_string().into_bytes(),
        )
    }
}

/// A registry that answers what a test tells it to, and remembers what it was asked.
pub struct Liar {
    pub host: String,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Liar {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let replies: Arc<Mutex<HashMap<String, Reply>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (heads, sent): (Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) = Default::default();
        let (known, log) = (
            replies.clone(),
            (asked.clone(), heads.clone(), sent.clone()),
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
            asked,
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

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        self.asked.lock().unwrap().clear();
        self.heads.lock().unwrap().clear();
    }

    /// Everything that was asked, with all header fields.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Bytes of endless bodies that were taken from it.
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

    /// How often a `GET` of something that ends so was asked.
    pub fn gets(&self, end: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.starts_with("GET ") && line.ends_with(end))
            .count()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    (asked, heads, sent_endless): (Log, Log, Arc<AtomicUsize>),
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    asked.lock().unwrap().push(format!("{method} {path}"));
    heads.lock().unwrap().push(head.clone());
    let fallback = if path == "/v2/" {
        Reply::ok(b"{}")
    } else {
        Reply::Full(404, vec![], b"{}".to_vec())
    };
    let reply = {
        let known = replies.lock().unwrap();
        let found = known.get(&format!("{method} {path}"));
        found.or(known.get(path)).cloned().unwrap_or(fallback)
    };
    if let Reply::Endless(status, headers) = reply {
        return endless(stream, status, &headers, &sent_endless).await;
    }
    let (status, headers, body, sent, stays) = match reply {
        Reply::Full(status, headers, body) => (status, headers, body.clone(), body.len(), false),
        Reply::Dies(body, sent) => (200, vec![], body, sent, false),
        Reply::Stalls(body, sent) => (200, vec![], body, sent, true),
        Reply::Drips(body, pause) => {
            let head = head_of(200, &[], body.len());
            let _ = stream.write_all(head.as_bytes()).await;
            for byte in body {
                tokio::time::sleep(pause).await;
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
            return;
        }
        Reply::Endless(..) => return,
    };
    let head = head_of(status, &headers, body.len());
    let _ = stream.write_all(head.as_bytes()).await;
    if method != "HEAD" {
        let _ = stream.write_all(&body[..sent]).await;
        let _ = stream.flush().await;
        if stays {
            tokio::time::sleep(Duration::from_secs(3600)).await;
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

async fn endless(
    mut stream: TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    sent: &AtomicUsize,
) {
    let extra: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{extra}\r\n");
    let _ = stream.write_all(head.as_bytes()).await;
    let block = [b' '; 64 << 10];
    while stream.write_all(&block).await.is_ok() {
        sent.fetch_add(block.len(), Ordering::Relaxed);
    }
}

/// Unpacks in this process, without a jail: the daemon's own tests have that.
pub struct Unpackers;

struct Unpacking(std::thread::JoinHandle<std::io::Result<()>>);

impl UnpackerLauncher for Unpackers {
    fn start(
        &self,
        unpacker: Unpacker,
    ) -> BoxFuture<'static, Result<Box<dyn RunningUnpacker>, Cause>> {
        let run = move || {
            let Unpacker {
                socket,
                blob,
                directory,
                ..
            } = unpacker;
            coracle_unpack::serve(&socket, blob, directory)
        };
        let running: Box<dyn RunningUnpacker> = Box::new(Unpacking(std::thread::spawn(run)));
        async { Ok(running) }.boxed()
    }
}

impl RunningUnpacker for Unpacking {
    fn end(self: Box<Self>) -> BoxFuture<'static, Result<(), Cause>> {
        let ended = self.0.join().unwrap();
        async { Ok(ended?) }.boxed()
    }
}
