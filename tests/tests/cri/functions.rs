//! Components that handle HTTP requests, as whoever calls their pods sees them.

mod doorman;
mod floods;
pub mod idle;
mod limits;
mod modes;
mod neighbours;
mod pods;
mod ports;
mod serving;
mod stopping;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};

use crate::site::{Pod, daemon_with, eventually, images};
use crate::sockets::ip;

/// How long a client waits.
const PATIENCE: &str = "60";

/// A daemon with further tables in its configuration that has pulled the component of `function.c`; the image's
/// reference.
pub async fn functions_with(config: &str) -> (Daemon, String) {
    let options = Options {
        config: config.to_owned(),
        ..Options::default()
    };
    let mut daemon = daemon_with(options).await;
    let image = push("function", |_| ());
    daemon.cri().pull(&image).await.unwrap();
    daemon.rebase();
    (daemon, image)
}

async fn functions() -> (Daemon, String) {
    functions_with("").await
}

/// The reference of an image of the component, with `change` made to its config.
fn push(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let guest = guests::function().unwrap();
    let files = [
        file("function.wasm", 0o755, &guest),
        file("etc/motd", 0o644, b"from the image"),
    ];
    let mut image = Image::wasi(&files, Packing::Gzip, &["/function.wasm"]).unwrap();
    change(&mut image.config);
    let pushed = image.push(images().registry.host(), name, "v1").unwrap();
    pushed.reference
}

/// A pod with these annotations.
fn annotated(daemon: &Daemon, name: &str, annotations: &[(&str, &str)]) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    let annotations = annotations
        .iter()
        .map(|(key, value)| (format!("http.coracle.dev/{key}"), value.to_string()));
    config.annotations.extend(annotations);
    config
}

/// Holds how a container ended to its exit code and reason.
#[track_caller]
fn ended(status: &cri::ContainerStatus, code: i32, reason: &str) {
    let found = (status.exit_code, status.reason.as_str());
    assert_eq!(found, (code, reason), "{status:?}");
}

pub fn variable(name: &str, value: &str) -> cri::KeyValue {
    cri::KeyValue {
        key: name.to_owned(),
        value: value.as_bytes().to_vec(),
    }
}

/// A function that runs, and where.
pub struct Function {
    pub pod: Pod,
    pub id: String,
    pub at: SocketAddr,
}

/// Runs the component of `image` in a pod with these annotations.
async fn run(daemon: &Daemon, image: &str, name: &str, annotations: &[(&str, &str)]) -> Function {
    let pod = Pod::run_config(daemon, annotated(daemon, name, annotations)).await;
    start(pod, &container("function", image, &[]), 8080).await
}

pub async fn start(pod: Pod, container: &cri::ContainerConfig, port: u16) -> Function {
    let id = pod.start(container).await;
    let at = SocketAddr::new(ip(&pod).await, port);
    // Its listener stands a moment after its start: it has instantiated the component once by then.
    eventually("the function listens", || TcpStream::connect(at).is_ok()).await;
    Function { pod, id, at }
}

impl Function {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// Status and body of a GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        curl(&[&self.url(path)])
    }

    /// A GET of which the guest has not heard yet.
    pub fn begin(&self, path: &str) -> Asked {
        Asked(spawn(&[&self.url(path)]))
    }

    /// A GET that the guest works on: its path is one of those that say so.
    pub async fn under_way(&self, daemon: &Daemon, path: &str) -> Asked {
        let begun = || {
            let said = daemon.output(self.name(), "function", "stdout").unwrap();
            let says = |line: &&str| ["sleeping", "spinning"].contains(line);
            said.lines().filter(says).count()
        };
        let before = begun();
        let asked = self.begin(path);
        eventually("the guest has the request", || begun() > before).await;
        asked
    }

    pub fn name(&self) -> &str {
        &self.pod.config.metadata.as_ref().unwrap().name
    }
}

/// A client that waits for its answer.
pub struct Asked(Child);

impl Asked {
    pub fn is_waiting(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub fn answer(self) -> (u16, String) {
        answer(self.0)
    }
}

/// What curl says: the status, 0 without one, and the body.
pub fn curl(words: &[&str]) -> (u16, String) {
    answer(spawn(words))
}

fn spawn(words: &[&str]) -> Child {
    let mut command = Command::new("curl");
    command
        .args(["-s", "-m", PATIENCE, "-w", "\n%{http_code}"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn answer(client: Child) -> (u16, String) {
    let said = client.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// Sends `text` and gives everything that comes until the server closes or `patience` is over, and whether it closed.
fn raw(at: SocketAddr, text: &str, patience: Duration) -> (String, bool) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    let closed = loop {
        match stream.read(&mut some) {
            Ok(0) => break true,
            Ok(count) => all.extend_from_slice(&some[..count]),
            Err(e) => break e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    };
    (String::from_utf8_lossy(&all).into_owned(), closed)
}
