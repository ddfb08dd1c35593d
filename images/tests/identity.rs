//! An image is what it was when it was pulled, whatever anybody else publishes: pairs of images that share a part, pulled
//! in both orders, looked at by every name and over a restart.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use coracle_images::{
    Digest, ErrorKind, Image, Images, ImagesConfig, Kind, PullRequest, RunConfig,
};
use serde_json::json;
use support::{MODULE, Parts, Scratch, ScriptedRegistry, TAR, tar};

const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";

async fn open(root: &Path) -> Images {
    Images::open(
        ImagesConfig::new(root),
        std::sync::Arc::new(support::Unpackers),
    )
    .await
    .unwrap()
}

async fn pull(images: &Images, reference: &str) -> Arc<Image> {
    images.pull(PullRequest::new(reference)).await.unwrap()
}

fn native() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// What a container made of this image would run.
#[derive(Debug, PartialEq)]
struct Content {
    program: Vec<u8>,
    kind: Kind,
    config: RunConfig,
    annotations: Vec<(String, String)>,
}

fn content(image: &Image) -> Content {
    let program = match &image.kind {
        Kind::Wasm(wasm) => std::fs::read(&wasm.module_path).unwrap(),
        Kind::Linux(linux) => std::fs::read(linux.layers[0].join("app")).unwrap(),
        Kind::Artifact(_) => panic!("{} is an artifact", image.id),
    };
    Content {
        program,
        kind: image.kind.clone(),
        config: RunConfig::clone(&image.config),
        annotations: BTreeMap::clone(&image.spec_annotations)
            .into_iter()
            .collect(),
    }
}

fn artifact(module: &[u8], config: &(&'static str, Vec<u8>)) -> Parts {
    Parts {
        config: config.clone(),
        ..Parts::artifact(module)
    }
}

fn linux(program: &[u8]) -> Parts {
    let config = json!({"Cmd": ["/app"], "Env": ["WHO=bank"]});
    Parts::archives(
        "linux",
        native(),
        config,
        &[(TAR, tar(&[("app", program)]))],
    )
}

/// Images of a bank, each with one of a tenant that shares a part of it.
fn pairs() -> Vec<(&'static str, Parts, Parts)> {
    let (own, other) = ([MODULE, b"bank"].concat(), [MODULE, b"tenant"].concat());
    let bank = Parts::artifact(&own);
    let around_config = artifact(&other, &bank.config);
    let empty = (EMPTY_CONFIG, b"{}".to_vec());
    let around_linux = artifact(&other, &linux(b"bank").config);
    let annotated = |mut parts: Parts| {
        parts.annotations = json!({"module.wasm.image/variant": "compat"});
        parts
    };
    vec![
        ("the config of an artifact", bank, around_config),
        (
            "an empty config",
            artifact(&own, &empty),
            artifact(&other, &empty),
        ),
        ("the config of a Linux image", linux(b"bank"), around_linux),
        (
            "all but annotations, Linux",
            linux(b"bank"),
            annotated(linux(b"bank")),
        ),
        (
            "all but annotations, Wasm",
            Parts::artifact(&own),
            annotated(Parts::artifact(&own)),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_changes_no_other_image_whatever_they_share() {
    for (what, bank, tenant) in pairs() {
        for bank_first in [true, false] {
            let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
            let digest = liar.serve_image("bank/app", "v1", &bank);
            liar.serve_image("tenant-b/x", "v1", &tenant);
            let names =
                ["bank/app:v1", "tenant-b/x:v1"].map(|name| format!("{}/{name}", liar.host));
            let mut images = open(&scratch.0).await;
            let (first, second) = if bank_first { (0, 1) } else { (1, 0) };
            let before = pull(&images, &names[first]).await;
            let kept = content(&before);
            let after = pull(&images, &names[second]).await;
            assert_ne!(before.id, after.id, "{what}");
            for _ in 0..2 {
                let by_digest = format!("{}/bank/app@{digest}", liar.host);
                let bank_id = if bank_first { &before.id } else { &after.id };
                let of_bank = if bank_first { &kept } else { &content(&after) };
                for name in [&names[0], &by_digest, &bank_id.to_string()] {
                    let found = images.resolve(name).unwrap();
                    assert_eq!(content(&found), *of_bank, "{what} by {name}");
                    assert_eq!(found.repo_tags, [names[0].clone()], "{what} by {name}");
                }
                assert_eq!(
                    content(&images.resolve(before.id.as_str()).unwrap()),
                    kept,
                    "{what}"
                );
                assert_eq!(images.list().len(), 2, "{what}");
                drop(images);
                images = open(&scratch.0).await;
            }
            // Pulled again, each is the image it was.
            assert_eq!(pull(&images, &names[first]).await.id, before.id, "{what}");
            assert_eq!(pull(&images, &names[second]).await.id, after.id, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_ties_its_layers() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let bank = linux(b"bank");
    liar.serve_image("bank/app", "v1", &bank);
    let mut tenant = linux(b"bank");
    tenant.layers = linux(b"tenant").layers;
    liar.serve_image("tenant-b/x", "v1", &tenant);
    let images = open(&scratch.0).await;
    let image = pull(&images, &format!("{}/bank/app:v1", liar.host)).await;
    assert_eq!(image.id.digest(), &Digest::of(&bank.config.1));
    let before = content(&image);
    let request = PullRequest::new(format!("{}/tenant-b/x:v1", liar.host));
    let refused = images.pull(request).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    let found = images.resolve(image.id.as_str()).unwrap();
    assert_eq!((content(&found), images.list().len()), (before, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_in_two_repositories_is_one() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    for parts in [linux(b"app"), Parts::artifact(MODULE)] {
        let mut ids = Vec::new();
        for repository in ["a/app", "b/app"] {
            liar.serve_image(repository, "v1", &parts);
            ids.push(
                pull(&images, &format!("{}/{repository}:v1", liar.host))
                    .await
                    .id
                    .clone(),
            );
        }
        assert_eq!(ids[0], ids[1]);
        let image = images.resolve(ids[0].as_str()).unwrap();
        assert_eq!((image.repo_tags.len(), image.repo_digests.len()), (2, 2));
    }
}
