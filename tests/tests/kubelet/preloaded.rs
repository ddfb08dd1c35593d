//! A node without a registry: its images come from the preload directory, and stay whatever the kubelet collects.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::kubelet::Node;
use coracle_tests::push::{Image, Packing, archive, file};
use serde_json::{Value, json};

use crate::node::{images, pod};

/// The registry is a name that no resolver knows.
const NAME: &str = "registry.invalid/node/tool:v1";

/// A directory with an archive of one image, removed at the end.
struct Preload(PathBuf);

impl Preload {
    fn new() -> Self {
        let path = format!("/tmp/coracle-kubelet-preload-{}", std::process::id());
        let path = PathBuf::from(path);
        fs::create_dir_all(&path).unwrap();
        let tool = guests::tool().unwrap();
        let files = [file("tool.wasm", 0o755, &tool)];
        let image = Image::wasi(&files, Packing::Gzip, &["/tool.wasm"]).unwrap();
        let archive = archive::oci(&[(NAME, &image)]).unwrap();
        fs::write(path.join("tool.tar"), archive).unwrap();
        Self(path)
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a pod of the image until it is ready, and ends it.
async fn live(node: &Node) {
    let container = json!({
        "name": "tool", "image": NAME, "imagePullPolicy": "Never", "args": ["sleep", "1000"],
    });
    node.put(&pod("never", &[container])).unwrap();
    node.ready("never").await.unwrap();
    node.take("never").unwrap();
    node.wait("never", "gone", Value::is_null).await.unwrap();
}

async fn stored(node: &mut Node) -> Vec<String> {
    let images = node.daemon().cri().list_images().await.unwrap();
    images.into_iter().flat_map(|one| one.repo_tags).collect()
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn a_preloaded_image_outlives_a_full_disk_and_a_reboot() {
    let preload = Preload::new();
    let options = Options {
        images: format!("preload_dir = \"{}\"", preload.0.display()),
        ..Options::default()
    };
    let daemon = Daemon::start_with(options).await.unwrap();
    let mut node = Node::start(daemon, &json!({})).await.unwrap();
    live(&node).await;
    // By this one it is seen that the kubelet collects.
    node.daemon().cri().pull(&images().shell).await.unwrap();
    let full = json!({
        "evictionHard": {"imagefs.available": "99%"}, "imageMinimumGCAge": "1s", "evictionPressureTransitionPeriod": "1s",
    });
    node.restart_kubelet(&full).await.unwrap();
    for attempt in 0.. {
        if !stored(&mut node).await.contains(&images().shell) {
            break;
        }
        assert!(attempt < 300, "the kubelet collects no image");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Its next rounds, which come every ten seconds, find one image, and it is pinned.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(stored(&mut node).await, [NAME]);
    node.daemon().boot_anew().await.unwrap();
    node.restart_kubelet(&json!({})).await.unwrap();
    assert_eq!(stored(&mut node).await, [NAME]);
    live(&node).await;
    node.finish().await.unwrap();
}
