//! A disk of images that does not answer: pulls wait for it, and nobody else does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::fuse::StallingDir;
use coracle_tests::guests;
use coracle_tests::push::Image;
use coracle_tests::scripted_registry::ScriptedRegistry;
use tokio::task::JoinHandle;

use super::shares::pull_for;
use crate::linux::shell::on_peer;
use crate::site::{Pod, SOON, daemon_with};

/// More than the daemon has threads that answer.
const ROUNDS: usize = 8;

/// Pulls that are under way; they end with this.
struct Pulls(Vec<JoinHandle<()>>);

impl Pulls {
    /// One for each of `references`, 16 a namespace.
    fn begin(daemon: &Daemon, references: impl Iterator<Item = String>) -> Self {
        let begin = |(number, reference): (usize, String)| {
            let (cri, namespace) = (daemon.cri(), format!("tenant{}", number / 16));
            tokio::spawn(async move {
                let _ = pull_for(&cri, &reference, &namespace).await;
            })
        };
        Self(references.enumerate().map(begin).collect())
    }
}

impl Drop for Pulls {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Waits until so many requests hang, and no more come.
async fn hang(disk: &StallingDir, fewest: usize) {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = disk.unanswered();
        if now >= fewest && now == before {
            return;
        }
        before = now;
    }
}

async fn answers(daemon: &Daemon, when: &str) {
    for _ in 0..ROUNDS {
        let mut cri = daemon.cri().runtime.clone();
        let version = cri.version(cri::VersionRequest::default());
        let version = tokio::time::timeout(SOON, version).await;
        version
            .unwrap_or_else(|_| panic!("it does not answer {when}"))
            .unwrap();
    }
}

async fn runs_a_pod(daemon: &Daemon, name: &str) {
    let pod = tokio::time::timeout(SOON, Pod::run(daemon, name)).await;
    let pod = pod.unwrap_or_else(|_| panic!("no pod runs: {name}"));
    pod.cri.remove_pod(&pod.id).await.unwrap();
}

/// As many pulls as run at a time, for many namespaces and from some registries, each with two blobs that it writes at a time:
/// more than the daemon has threads.
#[tokio::test]
async fn pulls_to_a_disk_that_does_not_answer_hold_up_no_pod_and_no_answer() {
    if on_peer() {
        return; // It makes no such promise.
    }
    let daemon = daemon_with(Options::default()).await;
    let registries: Vec<_> = (0..4).map(|_| ScriptedRegistry::start().unwrap()).collect();
    let image = Image::artifact(&guests::nothing("dead disk").unwrap());
    let references: Arc<[String]> = (0..128)
        .map(|number| {
            let (registry, repository) = (&registries[number % 4], format!("app{number}"));
            registry.serve(&repository, "v1", &image);
            format!("{}/{repository}:v1", registry.host())
        })
        .collect();
    let images = daemon.scratch().dir().join("root/images");
    let mount = |name: &str| StallingDir::mount(&images.join(Path::new(name))).unwrap();

    let blobs = mount("blobs/sha256");
    blobs.die();
    let pulls = Pulls::begin(&daemon, references.iter().take(16).cloned());
    // The kernel asks for one name of a directory at a time, and all others wait for that.
    hang(&blobs, 1).await;
    answers(&daemon, "while pulls look for blobs").await;
    drop(pulls);
    answers(&daemon, "when such pulls are cancelled").await;
    runs_a_pod(&daemon, "looking").await;
    drop(blobs);

    let temporary = mount("tmp");
    temporary.stall();
    let pulls = Pulls::begin(&daemon, references.iter().cloned());
    hang(&temporary, 16).await;
    runs_a_pod(&daemon, "writing").await;
    answers(&daemon, "while pulls write").await;
    temporary.die();
    drop(pulls);
    tokio::time::sleep(Duration::from_secs(1)).await;
    answers(&daemon, "when pulls that write are cancelled").await;
    runs_a_pod(&daemon, "removing").await;
    drop(temporary);
    daemon.finish().await.unwrap();
}
