//! What the tests share: one registry with the images of all guests, a daemon that has pulled, a pod, and the
//! helpers with which tests state what they expect.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{self, Cri};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, Pushed, file};
use coracle_tests::registry::Registry;
use tonic::{Code, Status};

/// More than anything takes that waits for nobody, on a machine whose processors have other things to do, too; less than
/// whatever the tests have it not wait for.
pub const SOON: Duration = Duration::from_secs(30);

/// The registry of this test process and what is in it.
pub struct Images {
    pub registry: Registry,
    /// The multi-verb p1 guest as a `wasi/wasm` image, with `/etc/motd` in it; entrypoint `/tool.wasm`.
    pub tool: Pushed,
    /// Prints "hello" and sleeps: p1.
    pub hello: Pushed,
    /// Prints a line: a component.
    pub component_hello: Pushed,
    /// The sandbox image of the peer, when the tests run against containerd (`CORACLE_TEST_PEER=containerd`): then
    /// the multi-verb guest is the same program built for Linux.
    pub pause: Option<String>,
}

/// Everything is pushed once a process; the registry ends with it.
pub fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let registry = Registry::start().unwrap();
        let push = |name: &str, image: Image| image.push(registry.host(), name, "v1").unwrap();
        let on_peer = std::env::var_os("CORACLE_TEST_PEER").is_some();
        let motd = file("etc/motd", 0o644, b"from the image");
        let tool = if on_peer {
            guests::linux_tool()
        } else {
            guests::tool()
        }
        .unwrap();
        let files = [file("tool.wasm", 0o755, &tool), motd];
        let tool = if on_peer {
            Image::linux(&files, &["/tool.wasm"])
        } else {
            Image::wasi(&files, Packing::Gzip, &["/tool.wasm"])
        };
        let pause = guests::linux_pause().unwrap();
        let pause = Image::linux(&[file("pause", 0o755, &pause)], &["/pause"]).unwrap();
        Images {
            tool: push("tool", tool.unwrap()),
            pause: on_peer.then(|| push("pause", pause).reference),
            hello: push("hello", Image::artifact(&guests::wat("hello").unwrap())),
            component_hello: push(
                "component",
                Image::artifact(&guests::wat("component-hello").unwrap()),
            ),
            registry,
        }
    })
}

/// The reference of the multi-verb guest.
pub fn tool() -> &'static str {
    &images().tool.reference
}

/// A daemon that has pulled the multi-verb guest.
pub async fn daemon() -> Daemon {
    daemon_with(Options::default()).await
}

/// The same, started in another way.
pub async fn daemon_with(mut options: Options) -> Daemon {
    options.peer_sandbox_image = images().pause.clone();
    let mut daemon = Daemon::start_with(options).await.unwrap();
    daemon.cri().pull(tool()).await.unwrap();
    daemon.rebase();
    daemon
}

/// A daemon of the failpoint build, with no failpoint armed yet, that has pulled the multi-verb guest.
pub async fn failing_daemon() -> Daemon {
    let mut daemon = Daemon::start_failing("").await.unwrap();
    daemon.cri().pull(tool()).await.unwrap();
    daemon.rebase();
    daemon
}

/// A sandbox and what it was made of.
pub struct Pod {
    pub cri: Cri,
    pub config: cri::PodSandboxConfig,
    pub id: String,
}

impl Pod {
    /// Runs the smallest pod of this name.
    pub async fn run(daemon: &Daemon, name: &str) -> Pod {
        Self::run_config(daemon, daemon.pod(name)).await
    }

    /// Runs a pod.
    pub async fn run_config(daemon: &Daemon, config: cri::PodSandboxConfig) -> Pod {
        let cri = daemon.cri();
        let id = cri.run_pod(&config).await.unwrap();
        Pod { cri, config, id }
    }

    /// CreateContainer in this pod.
    pub async fn create(&self, container: &cri::ContainerConfig) -> Result<String, Status> {
        self.cri.create(&self.id, container, &self.config).await
    }

    /// Creates and starts a container.
    pub async fn start(&self, container: &cri::ContainerConfig) -> String {
        let id = self.create(container).await.unwrap();
        self.cri.start(&id).await.unwrap();
        id
    }

    /// Creates and starts the multi-verb guest, named after its verb.
    pub async fn tool(&self, args: &[&str]) -> String {
        self.start(&client::container(args[0], tool(), args)).await
    }

    /// Runs a container to its end; gives its status and what it wrote to stdout.
    pub async fn finish(
        &self,
        daemon: &Daemon,
        container: &cri::ContainerConfig,
    ) -> (cri::ContainerStatus, String) {
        let id = self.start(container).await;
        let status = self.cri.wait_exit(&id).await.unwrap();
        let pod = &self.config.metadata.as_ref().unwrap().name;
        let name = &container.metadata.as_ref().unwrap().name;
        (status, daemon.output(pod, name, "stdout").unwrap())
    }

    /// Waits until the container's log holds `text`.
    pub async fn wait_log(&self, daemon: &Daemon, container: &str, text: &str) {
        let log = daemon.container_log(&self.config.metadata.as_ref().unwrap().name, container);
        let found = coracle_tests::log::wait_for(&log, text, client::TIMEOUT).await;
        assert!(found, "{} never held {text:?}", log.display());
    }
}

/// Holds a refusal to its code and to words that its message must have.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T, Status>, code: Code, words: &[&str]) {
    let refusal = result.expect_err("this call should have been refused");
    assert_eq!(refusal.code(), code, "{}", refusal.message());
    for word in words {
        assert!(
            refusal.message().contains(word),
            "no {word:?} in: {}",
            refusal.message()
        );
    }
}

/// Runs `check` every few milliseconds until it says yes; panics with `what` after a minute.
pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + client::TIMEOUT;
    while !check() {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Holds what began then to having waited for nobody.
#[track_caller]
pub fn ended_soon(begun: Instant) {
    let took = begun.elapsed();
    assert!(took < SOON, "it took {took:?}");
}
