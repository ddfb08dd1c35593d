//! Pulls: many at once, cancelled ones, failures, and which entry of an index they mean.

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::faulty_registry::{Fault, FaultyRegistry};
use coracle_tests::guests;
use coracle_tests::push::{Image, file, push_index};
use coracle_tests::registry::ClosedPort;
use tonic::Code;

use super::small;
use crate::site::{SOON, daemon, images, refused};

#[tokio::test]
async fn many_pulls_of_one_reference_share_the_work() {
    let daemon = daemon().await;
    let registry = FaultyRegistry::start(small("shared"), Fault::None).unwrap();
    let reference = format!("{}/shared:v1", registry.host());
    let mut pulls = Vec::new();
    for _ in 0..16 {
        let (cri, reference) = (daemon.cri(), reference.clone());
        pulls.push(tokio::spawn(async move { cri.pull(&reference).await }));
    }
    let mut ids = std::collections::BTreeSet::new();
    for pull in pulls {
        ids.insert(pull.await.unwrap().unwrap());
    }
    assert_eq!(ids.len(), 1);
    assert!(
        registry.requests() < 32,
        "16 pulls made {} connections",
        registry.requests()
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_cancelled_pull_ends_and_another_is_not_delayed() {
    let daemon = daemon().await;
    let stalled = FaultyRegistry::start(small("stalled"), Fault::StallMidLayer).unwrap();
    let reference = format!("{}/stalled:v1", stalled.host());
    let (cri, stuck) = (daemon.cri(), reference.clone());
    let pull = tokio::spawn(async move { cri.pull(&stuck).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let pushed = small("lively")
        .push(images().registry.host(), "lively", "v1")
        .unwrap();
    let other = tokio::time::timeout(SOON, async { daemon.cri().pull(&pushed.reference).await });
    other.await.unwrap().unwrap();
    pull.abort();
    assert_eq!(daemon.cri().image(&reference).await.unwrap(), None);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pull_of_what_is_not_there_is_logged_for_people() {
    let daemon = daemon().await;
    let missing = format!("{}/never/pushed:v7", images().registry.host());
    refused(
        daemon.cri().pull(&missing).await,
        Code::NotFound,
        &["never/pushed"],
    );
    let log = daemon.log();
    let is_told = |line: &str| line.contains(" INFO ") && line.contains(&missing);
    assert!(log.lines().any(is_told), "{log}");
    let nobody = ClosedPort::take().unwrap();
    let refusal = daemon
        .cri()
        .pull(&format!("{}/app:v1", nobody.host()))
        .await;
    refused(
        refusal,
        Code::Unknown,
        &[
            "RegistryUnavailable",
            "cannot be reached",
            "Connection refused",
        ],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pull_is_one_line_of_the_log_with_what_it_was_and_what_it_took() {
    let daemon = daemon().await;
    let host = images().registry.host();
    let pushed = small("logged").push(host, "logged", "v1").unwrap();
    let id = daemon.cri().pull(&pushed.reference).await.unwrap();
    let log = daemon.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("image pulled") && line.contains(&pushed.reference))
        .collect();
    let [line] = lines[..] else {
        panic!("{lines:?} in {log}");
    };
    for part in [" INFO ", "reference=", &id, "bytes=", "seconds=", "source="] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    // The source is a host, and this one is the registry of the name.
    let (_, source) = line.split_once("source=").unwrap();
    assert!(source.contains(host), "{line}");
    daemon.finish().await.unwrap();
}

/// What the kubelet sends about an image for pods of `handler`.
fn for_handler(reference: &str, handler: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        runtime_handler: handler.into(),
        ..coracle_tests::client::image(reference)
    }
}

#[tokio::test]
async fn the_handler_decides_which_entry_of_an_index_is_meant() {
    let daemon = daemon().await;
    let mut service = daemon.cri().images.clone();
    let host = images().registry.host();
    let program = guests::linux_pause().unwrap();
    let linux = Image::linux(&[file("pause", 0o755, &program)], &["/pause"]).unwrap();
    let wasm = small("handler");
    let only = push_index(host, "by-handler", "linux", &[("linux", "amd64", &linux)]).unwrap();
    let both = [("linux", "amd64", &linux), ("wasi", "wasm", &wasm)];
    let both = push_index(host, "by-handler", "both", &both).unwrap();
    let mut pull = async |reference: &str, handler: &str| {
        let image = Some(for_handler(reference, handler));
        let request = cri::PullImageRequest {
            image,
            ..Default::default()
        };
        service
            .pull_image(request)
            .await
            .map(|reply| reply.into_inner().image_ref)
    };
    let linux_id = pull(&only.reference, "coracle").await.unwrap();
    let offered = ["no entry for wasi/wasm", "linux/amd64"];
    refused(
        pull(&only.reference, "coracle-wasm").await,
        Code::InvalidArgument,
        &offered,
    );
    refused(
        pull(&only.reference, "kata").await,
        Code::InvalidArgument,
        &["image.runtime_handler", "kata"],
    );
    let wasm_id = pull(&both.reference, "coracle-strict").await.unwrap();
    assert_ne!(linux_id, wasm_id);
    let mut service = daemon.cri().images.clone();
    let mut status = async |reference: &str, handler: &str| {
        let image = Some(for_handler(reference, handler));
        let request = cri::ImageStatusRequest {
            image,
            verbose: false,
        };
        let reply = service.image_status(request).await.unwrap().into_inner();
        reply.image.map(|image| image.id)
    };
    assert_eq!(status(&only.reference, "").await, Some(linux_id));
    assert_eq!(status(&only.reference, "coracle-wasm").await, None);
    assert_eq!(status(&both.reference, "coracle-wasm").await, Some(wasm_id));
    daemon.finish().await.unwrap();
}
