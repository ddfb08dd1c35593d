//! WebAssembly beside Linux in one index: which image a name means, for whom.

use coracle_images::PlatformPreference::{Linux, Wasm, WasmThenLinux};
use coracle_images::{Images, PlatformPreference, PullRequest};
use serde_json::json;

use super::{linux, native, open};
use crate::support::{MODULE, OCI_INDEX, Parts, Registry, Scratch};

/// Pushes an index of both kinds under `tag`.
async fn push(registry: &Registry, tag: &str, salt: &str) {
    let mut wasm = registry
        .image(
            "both",
            "wasm",
            &Parts::artifact(&[MODULE, salt.as_bytes()].concat()),
        )
        .await;
    let mut linux = registry.image("both", "linux", &linux(salt)).await;
    wasm["platform"] = json!({"os": "wasi", "architecture": "wasm"});
    linux["platform"] = json!({"os": "linux", "architecture": native()});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [linux, wasm]});
    registry.manifest("both", tag, OCI_INDEX, &index).await;
}

async fn pull_for(images: &Images, reference: &str, platform: PlatformPreference) -> String {
    let request = PullRequest {
        platform,
        ..PullRequest::new(reference)
    };
    images.pull(request).await.unwrap().id.to_string()
}

fn id(images: &Images, name: &str, platform: PlatformPreference) -> Option<String> {
    images
        .resolve_for(name, platform)
        .map(|image| image.id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_means_the_image_for_the_platform() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let name = format!("{}/both:v1", registry.host);
    push(&registry, "v1", "one").await;
    let images = open(&scratch.0).await;
    let for_linux = pull_for(&images, &name, Linux).await;
    assert_eq!(
        (id(&images, &name, Wasm), id(&images, &name, WasmThenLinux)),
        (None, Some(for_linux.clone()))
    );
    let for_wasm = pull_for(&images, &name, Wasm).await;
    let each = |images: &Images| {
        [Wasm, Linux, WasmThenLinux].map(|platform| id(images, &name, platform).unwrap())
    };
    let expected = [for_wasm.clone(), for_linux.clone(), for_wasm.clone()];
    assert_eq!(each(&images), expected);
    drop(images);
    let images = open(&scratch.0).await;
    assert_eq!(each(&images), expected, "after a restart");
    // The tag moves to another index: both of the old one lose it.
    push(&registry, "v1", "two").await;
    let next = pull_for(&images, &name, Wasm).await;
    assert_eq!(
        (id(&images, &name, WasmThenLinux), id(&images, &name, Linux)),
        (Some(next), None)
    );
    assert!(images.resolve(&for_linux).unwrap().repo_tags.is_empty());
    pull_for(&images, &name, Linux).await;
    images.remove(&name).await.unwrap().unwrap();
    assert!(
        images.resolve(&name).is_none() && images.list().len() == 2,
        "both have gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_index_is_for_every_platform() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    registry.image("plain", "v1", &linux("plain")).await;
    let name = format!("{}/plain:v1", registry.host);
    let images = open(&scratch.0).await;
    let pulled = pull_for(&images, &name, Wasm).await;
    for platform in [Wasm, Linux, WasmThenLinux] {
        assert_eq!(id(&images, &name, platform), Some(pulled.clone()));
    }
}
