//! Pulls that succeed: tags, digests, indexes, equal pulls at the same time.

use std::time::{Duration, Instant};

use coracle_images::{Credentials, Digest, ErrorKind, PullRequest};
use serde_json::json;

use super::{GZIP, content_now, open, pull, wasm};
use crate::support::{
    DOCKER_MANIFEST, MODULE, OCI_INDEX, Parts, Registry, Reply, Scratch, ScriptedRegistry, tar,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_pulled_by_tag_and_by_digest_and_survives_a_restart() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let parts = Parts::artifact(MODULE);
    let manifest = registry.image("demo/hello", "v1", &parts).await;
    let digest = manifest["digest"].as_str().unwrap();
    let (name, images) = (
        format!("{}/demo/hello", registry.host),
        open(&scratch.0).await,
    );

    let image = pull(&images, &format!("{name}:v1")).await.unwrap();
    assert_eq!(image.id.as_str(), digest, "nothing else ties the module");
    assert_eq!(image.repo_tags, [format!("{name}:v1")]);
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);
    assert_eq!(image.size, (parts.config.1.len() + MODULE.len()) as u64);
    assert_eq!(image.spec_annotations["org.example.note"], "kept");
    assert_eq!(wasm(&image).module, Digest::of(MODULE));
    assert_eq!(std::fs::read(&wasm(&image).module_path).unwrap(), MODULE);
    assert!(wasm(&image).layers.is_empty() && wasm(&image).guest_path.is_none());

    for known in [
        image.id.as_str(),
        image.id.digest().hex(),
        &format!("{name}:v1"),
        &format!("{name}@{digest}"),
    ] {
        assert_eq!(images.resolve(known).unwrap().id, image.id, "{known}");
    }
    assert!(images.resolve(&name).is_none(), "latest was never pulled");
    // Config and module, and the manifest for exports.
    let (used, config, module) = (images.fs_info(), parts.config.1.len(), MODULE.len());
    let manifest = used.used_bytes - (config + module) as u64;
    assert!(used.inodes_used == 3 && manifest > 200, "{used:?}");

    drop(images);
    let images = open(&scratch.0).await;
    assert_eq!(images.list().len(), 1);
    assert_eq!(
        images.resolve(&format!("{name}:v1")).unwrap().kind,
        image.kind
    );
    assert_eq!(images.fs_info(), used);

    // By digest, into another store: no tag, and a tag beside the digest is dropped.
    let other = Scratch::new();
    let images = open(&other.0).await;
    let image = pull(&images, &format!("{name}:ignored@{digest}"))
        .await
        .unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_entry_of_an_index_is_taken() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let linux = |architecture: &str| {
        let mut parts = Parts::archives(
            "linux",
            architecture,
            json!({"Cmd": ["/a"]}),
            &[(GZIP, tar(&[("a", b"x")]))],
        );
        parts.media_type = DOCKER_MANIFEST;
        parts
    };
    let (foreign, native, wasm_parts) = (linux("s390x"), linux("amd64"), Parts::artifact(MODULE));
    let mut entries = Vec::new();
    for (tag, parts, os, architecture) in [
        ("f", &foreign, "linux", "s390x"),
        ("n", &native, "linux", "amd64"),
        ("w", &wasm_parts, "wasi", "wasm"),
    ] {
        let mut entry = registry.image("multi", tag, parts).await;
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    let index = |entries: &[serde_json::Value]| json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let inner = registry
        .manifest("multi", "all", OCI_INDEX, &index(&entries))
        .await;
    registry
        .manifest("multi", "linux", OCI_INDEX, &index(&entries[..2]))
        .await;
    registry
        .manifest("multi", "foreign", OCI_INDEX, &index(&entries[..1]))
        .await;
    let nested = registry
        .manifest(
            "multi",
            "nested",
            OCI_INDEX,
            &index(std::slice::from_ref(&inner)),
        )
        .await;

    let name = format!("{}/multi", registry.host);
    let image = pull(&images, &format!("{name}:all")).await.unwrap();
    assert_eq!(image.id.as_str(), entries[2]["digest"].as_str().unwrap());
    assert_eq!(
        image.repo_digests,
        [format!("{name}@{}", inner["digest"].as_str().unwrap())]
    );
    assert_eq!(
        pull(&images, &format!("{name}:nested")).await.unwrap().id,
        image.id
    );
    if cfg!(target_arch = "x86_64") {
        assert_eq!(
            pull(&images, &format!("{name}:linux"))
                .await
                .unwrap()
                .id
                .as_str(),
            native.id()
        );
    }
    let refused = pull(&images, &format!("{name}:foreign")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains("[linux/s390x]"), "{refused}");
    let mut deep = nested;
    for level in 0..4 {
        deep = registry
            .manifest("multi", &format!("deep{level}"), OCI_INDEX, &index(&[deep]))
            .await;
    }
    assert_eq!(
        pull(&images, &format!("{name}:deep3"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Limit
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_in_the_registry_moves_in_the_store() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let reference = format!("{}/app:latest", registry.host);
    registry
        .image("app", "latest", &Parts::artifact(MODULE))
        .await;
    let old = pull(&images, &reference).await.unwrap();
    registry
        .image("app", "latest", &Parts::artifact(&[MODULE, b"\0"].concat()))
        .await;
    let new = pull(&images, &format!("{}/app", registry.host))
        .await
        .unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(images.resolve(&reference).unwrap().id, new.id);
    let old = images.resolve(old.id.as_str()).unwrap();
    assert_eq!((old.repo_tags.len(), old.repo_digests.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_are_one_and_the_last_to_leave_ends_it() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let parts = Parts::artifact(MODULE);
    liar.serve_image("app", "v1", &parts);
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    liar.on(&blob, Reply::Stalls(MODULE.to_vec(), 3));
    let reference = format!("{}/app:v1", liar.host);
    let start = || {
        let (images, reference) = (images.clone(), reference.clone());
        tokio::spawn(async move { pull(&images, &reference).await })
    };
    let (one, two) = (start(), start());
    let has_temporary = || {
        content_now(&scratch.0)
            .iter()
            .any(|path| path.parent().unwrap().ends_with("tmp"))
    };
    while !has_temporary() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    one.abort();
    assert!(one.await.unwrap_err().is_cancelled());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        has_temporary() && !two.is_finished(),
        "the other still waits"
    );
    assert_eq!((liar.gets("/manifests/v1"), liar.gets(&blob)), (1, 1));
    two.abort();
    assert!(two.await.unwrap_err().is_cancelled());
    // Nobody waits: it has stopped, and what it had is removed behind it.
    let end = Instant::now() + Duration::from_secs(60);
    while has_temporary() {
        assert!(
            Instant::now() < end,
            "the pull that nobody waits for goes on"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    liar.on(&blob, Reply::ok(MODULE));
    pull(&images, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_private_images_and_are_never_shown() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let realm = format!(
        "Bearer realm=\"http://{}/v2/token\",service=\"s\"",
        liar.host
    );
    liar.on(
        "/",
        Reply::Full(401, vec![("WWW-Authenticate", realm)], b"{}".to_vec()),
    );
    let scope = "/token?scope=repository%3Aapp%3Apull&service=s";
    liar.on(scope, Reply::Full(401, vec![], b"canary-body".to_vec()));
    let mut request = PullRequest::new(format!("{}/app:v1", liar.host));
    request.auth = Some(Credentials::Basic {
        username: "me".into(),
        password: "canary-secret".into(),
    });
    let error = images.pull(request.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(
        error.to_string().contains("the given credentials"),
        "{error}"
    );
    assert!(
        !format!("{error} {error:?} {request:?}").contains("canary"),
        "{error:?}"
    );
    liar.on(scope, Reply::ok(br#"{"token": "t"}"#));
    liar.serve_image("app", "v1", &Parts::artifact(MODULE));
    images.pull(request).await.unwrap();
    // The image is here, but it is not for everybody who knows its name.
    let blob = "/app/manifests/v1";
    liar.on(blob, Reply::Full(401, vec![], b"{}".to_vec()));
    let error = pull(&images, &format!("{}/app:v1", liar.host))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
}
