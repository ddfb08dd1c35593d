//! A real `docker-registry`, and the client that pushes to it.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_images::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::image::Parts;
use super::{Scratch, free_port};

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

async fn answers(host: &str, process: &mut Child) -> bool {
    for _ in 0..2400 {
        if TcpStream::connect(host).await.is_ok() {
            return process.try_wait().unwrap().is_none();
        }
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    false
}
