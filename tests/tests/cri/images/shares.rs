//! One tenant among others: slow pulls, dead name servers and images in use leave room for the next namespace.

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::push::{Image, digest};
use coracle_tests::scripted_registry::{Answer, Pace, ScriptedRegistry};
use tonic::{Code, Status};

use super::small;
use crate::site::{Pod, SOON, daemon_with, images};

/// PullImage for a pod of this namespace.
pub(super) async fn pull_for(
    cri: &client::Cri,
    reference: &str,
    namespace: &str,
) -> Result<String, Status> {
    let metadata = cri::PodSandboxMetadata {
        namespace: namespace.into(),
        ..Default::default()
    };
    let request = cri::PullImageRequest {
        image: Some(client::image(reference)),
        sandbox_config: Some(cri::PodSandboxConfig {
            metadata: Some(metadata),
            ..Default::default()
        }),
        ..Default::default()
    };
    let reply = cri.images.clone().pull_image(request).await?;
    Ok(reply.into_inner().image_ref)
}

#[tokio::test]
async fn many_slow_registries_of_a_namespace_hold_up_no_other_one() {
    let daemon = daemon_with(Options::default()).await;
    let host = images().registry.host();
    let honest = small("honest").push(host, "honest", "v1").unwrap();
    let image = small("slow");
    let slow: Vec<_> = (0..6).map(|_| ScriptedRegistry::start().unwrap()).collect();
    let mut pulls = Vec::new();
    let mut begin = |reference: String| {
        let cri = daemon.cri();
        pulls.push(tokio::spawn(async move {
            pull_for(&cri, &reference, "evil").await
        }));
    };
    for registry in &slow {
        for number in 0..16 {
            let repository = format!("app{number}");
            registry.serve(&repository, "v1", &image);
            let layer = &image.layers[0].1;
            let length = layer.len() as u64;
            let blob = format!("/v2/{repository}/blobs/{}", digest(layer));
            registry.on(&blob, Answer::ok("").promising(length).at(Pace::Stall));
            begin(format!("{}/{repository}:v1", registry.host()));
        }
    }
    let asked = || slow.iter().map(|registry| registry.requests("GET").len());
    while asked().sum::<usize>() < 16 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The image that another namespace wants waits in the queue of this one, too.
    begin(honest.reference.clone());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cri = daemon.cri();
    let pulled = pull_for(&cri, &honest.reference, "honest");
    let pulled = tokio::time::timeout(SOON, pulled).await;
    pulled.expect("it waits for another namespace").unwrap();
    // Who waited for the same image has it, as well.
    let joined = pulls.pop().unwrap();
    let joined = tokio::time::timeout(SOON, joined).await;
    joined.expect("it still waits").unwrap().unwrap();
    pulls.iter().for_each(tokio::task::JoinHandle::abort);
    daemon.finish().await.unwrap();
}

/// An image with labels of `bytes`.
fn labelled(salt: &str, bytes: usize) -> Image {
    let mut image = small(salt);
    image.config["config"]["Labels"] = serde_json::json!({"a": "x".repeat(bytes)});
    image
}

async fn run(daemon: &Daemon, pod: &Pod, name: &str, reference: &str) {
    let id = pod
        .create(&client::container(name, reference, &[]))
        .await
        .unwrap();
    daemon.cri().start(&id).await.unwrap();
}

#[tokio::test]
async fn images_that_one_namespace_uses_do_not_end_the_pulls_of_another() {
    let daemon = daemon_with(Options {
        images: "max_metadata_bytes = 2097152".into(),
        ..Options::default()
    })
    .await;
    let host = images().registry.host();
    let pod = Pod::run(&daemon, "evil").await;
    let mut count = 0;
    let refusal = loop {
        let name = format!("share{count}");
        let image = labelled(&name, 200 << 10).push(host, &name, "v1").unwrap();
        match pull_for(&daemon.cri(), &image.reference, "evil").await {
            Ok(_) => run(&daemon, &pod, &name, &image.reference).await,
            Err(refusal) => break refusal,
        }
        count += 1;
        assert!(count < 20);
    };
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    for says in ["images.max_metadata_bytes", "namespace evil"] {
        assert!(refusal.message().contains(says), "{}", refusal.message());
    }
    // Half of it, and what is here can be had again.
    assert!((4..6).contains(&count), "{count}");
    let again = format!("{host}/share0:v1");
    pull_for(&daemon.cri(), &again, "evil").await.unwrap();
    let other = labelled("other", 200 << 10);
    let other = other.push(host, "other", "v1").unwrap();
    pull_for(&daemon.cri(), &other.reference, "honest")
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}
