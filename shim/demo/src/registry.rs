//! The demo's registry: Debian's `docker-registry` on a free loopback port, and a push of one Wasm artifact to it.
//!
//! Called by: the demo. Calls: `http`, `process`. The image has the layout that the CNCF published for WebAssembly:
//! config type `application/vnd.wasm.config.v0+json`, and the module itself as the only layer.
//! Must not know: pulling, which is the daemon's part.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::http;
use super::process::Process;

/// The program, by the name in its Debian package.
const PROGRAM: &str = "docker-registry";
/// How long the registry may take to answer.
const START: Duration = Duration::from_secs(10);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MODULE: &str = "application/wasm";

/// A registry that is starting or running.
#[derive(Debug)]
pub struct Registry {
    host: String,
    process: Process,
}

impl Registry {
    /// Starts a registry with its data under `directory`. Errors: `docker-registry` is not installed.
    pub fn start(directory: &Path) -> Result<Registry, Error> {
        let program = find(PROGRAM).ok_or_else(|| {
            Error::new(format!(
                "no {PROGRAM} in PATH or /usr/bin; install it: apt-get install {PROGRAM}"
            ))
        })?;
        let made = std::fs::create_dir(directory);
        made.map_err(|error| Error::file("make directory", directory, error))?;
        let host = free_address()?;
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: \"{host}\"}}\n\
             storage: {{filesystem: {{rootdirectory: {:?}}}}}\n",
            directory.join("data")
        );
        std::fs::write(&config, text).map_err(|error| Error::file("write", &config, error))?;
        let mut command = Command::new(program);
        let process = Process::start(
            PROGRAM,
            command.arg("serve").arg(config),
            &directory.join("log"),
        )?;
        Ok(Registry { host, process })
    }

    /// `address:port`, the first part of every reference to an image of this registry.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The registry's process group.
    pub fn group(&self) -> i32 {
        self.process.group()
    }

    /// The process, to be ended.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Waits until the registry answers. Errors: it ended, or does not answer within ten seconds.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START;
        loop {
            let answer = http::request(&self.host, "GET", "/v2/", None).await;
            if matches!(&answer, Ok(reply) if reply.status == 200) {
                return Ok(());
            }
            self.process.expect_running()?;
            if Instant::now() > deadline {
                return Err(Error::new(format!(
                    "{PROGRAM} on {} does not answer within {START:?}",
                    self.host
                )));
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Packs `module` as an image and pushes it as `repository:tag`. Returns the reference to pull it by.
    ///
    /// Errors: the registry refuses, with its answer.
    pub async fn push(&self, repository: &str, tag: &str, module: &[u8]) -> Result<String, Error> {
        let config = json!({
            "created": "1970-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1",
            "layerDigests": [digest(module)],
        });
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config.as_bytes()), "layers": [descriptor(MODULE, module)],
        });
        self.push_blob(repository, config.as_bytes()).await?;
        self.push_blob(repository, module).await?;
        let path = format!("/v2/{repository}/manifests/{tag}");
        let body = manifest.to_string();
        let reply =
            http::request(&self.host, "PUT", &path, Some((MANIFEST, body.as_bytes()))).await?;
        expect(201, &reply, &format!("the manifest of {repository}:{tag}"))?;
        Ok(format!("{}/{repository}:{tag}", self.host))
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) -> Result<(), Error> {
        let name = digest(blob);
        let uploads = format!("/v2/{repository}/blobs/uploads/");
        let begun = http::request(&self.host, "POST", &uploads, None).await?;
        expect(202, &begun, &format!("an upload of blob {name}"))?;
        let location = begun.header("location").unwrap_or_default();
        let here = format!("http://{}", self.host);
        let path = location.strip_prefix(&here).unwrap_or(location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={name}");
        let content = ("application/octet-stream", blob);
        let reply = http::request(&self.host, "PUT", &path, Some(content)).await?;
        expect(201, &reply, &format!("blob {name}"))
    }
}

fn expect(status: u16, reply: &http::Reply, what: &str) -> Result<(), Error> {
    if reply.status == status {
        return Ok(());
    }
    Err(Error::new(format!(
        "push {what}: the registry answers {}, expected {status}: {}",
        reply.status,
        reply.body.trim()
    )))
}

/// A program's file, from PATH or else /usr/bin.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    directories
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// A loopback address with a port that was free a moment ago.
fn free_address() -> Result<String, Error> {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = bound.map_err(|error| Error::because("find a free port on 127.0.0.1", error))?;
    Ok(address.to_string())
}

fn digest(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    format!("sha256:{hex}")
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}
