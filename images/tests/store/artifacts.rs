//! OCI artifacts that are no images: their files, by title, as one layer to mount.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use coracle_images::{Digest, ErrorKind, Image, Kind};
use serde_json::{Value, json};

use super::{content, linux, open, pull};
use crate::support::{Reply, Scratch, ScriptedRegistry, noise};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const FILE: &str = "application/octet-stream";
const TITLE: &str = "org.opencontainers.image.title";

/// Titles and contents.
type Files<'a> = &'a [(Option<&'a str>, &'a [u8])];

/// Serves an artifact of these files; a file without a title is named by its digest.
fn serve(registry: &ScriptedRegistry, tag: &str, files: Files<'_>) -> Digest {
    let layers = files.iter().map(|(title, bytes)| {
        let digest = Digest::of(bytes);
        registry.on(&format!("/data/blobs/{digest}"), Reply::ok(bytes));
        let annotations = title.map(|title| json!({ TITLE: title }));
        json!({"mediaType": FILE, "digest": digest.as_str(), "size": bytes.len(), "annotations": annotations})
    });
    let layers: Vec<Value> = layers.collect();
    registry.on(
        &format!("/data/blobs/{}", Digest::of(b"{}")),
        Reply::ok(b"{}"),
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.model",
        "config": {"mediaType": EMPTY, "digest": Digest::of(b"{}").as_str(), "size": 2}, "layers": layers,
    });
    registry.on(
        &format!("/data/manifests/{tag}"),
        Reply::manifest(&manifest),
    );
    Digest::of(manifest.to_string().as_bytes())
}

fn layer_of(image: &Image) -> PathBuf {
    let Kind::Artifact(artifact) = &image.kind else {
        panic!("{} is no artifact", image.id);
    };
    let [only] = artifact.layers.as_slice() else {
        panic!("{} layers", artifact.layers.len());
    };
    only.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_lie_under_their_titles_once_on_disk_and_are_fetched_once() {
    let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let model = noise(1, 100_000);
    let untitled = Digest::of(b"untitled");
    let files: [(Option<&str>, &[u8]); 4] = [
        (Some("model/weights.bin"), &model),
        (Some("model/deep/er/same.bin"), &model),
        (Some("config.json"), b"{\"layers\":2}"),
        (None, b"untitled"),
    ];
    let digest = serve(&registry, "v1", &files);
    let name = format!("{}/data:v1", registry.host);
    let image = pull(&images, &name).await.unwrap();
    assert_eq!(image.id.digest(), &digest, "nothing else ties the files");
    let layer = layer_of(&image);
    for (title, bytes) in files {
        let path = layer.join(title.unwrap_or(untitled.hex()));
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{title:?}");
        let facts = std::fs::symlink_metadata(&path).unwrap();
        assert!(
            facts.is_file() && facts.nlink() > 1,
            "{title:?} takes its room twice"
        );
        assert_eq!(facts.permissions().mode() & 0o7777, 0o444, "{title:?}");
    }
    let deep = std::fs::metadata(layer.join("model/deep")).unwrap();
    assert_eq!(deep.permissions().mode() & 0o7777, 0o755);
    // The files once, and the manifest, for an export.
    let used = images.fs_info().used_bytes;
    let files = (model.len() + 12 + 8 + 2) as u64;
    assert!((files..files + 4096).contains(&used), "{used}, {files}");

    registry.forget();
    assert_eq!(pull(&images, &name).await.unwrap().id, image.id);
    assert_eq!(
        registry.gets(Digest::of(&model).as_str()),
        0,
        "the model was fetched again"
    );
    drop(images);
    let images = open(&scratch.0).await;
    assert_eq!(layer_of(&images.resolve(&name).unwrap()), layer);

    images.remove(&name).await.unwrap();
    images.collect(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(content(&scratch.0), Vec::<PathBuf>::new());
    assert_eq!(images.fs_info().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_of_the_same_files_under_other_names_are_two() {
    let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    serve(&registry, "a", &[(Some("a"), b"one"), (Some("b"), b"two")]);
    serve(&registry, "b", &[(Some("b"), b"one"), (Some("a"), b"two")]);
    let one = pull(&images, &format!("{}/data:a", registry.host))
        .await
        .unwrap();
    let other = pull(&images, &format!("{}/data:b", registry.host))
        .await
        .unwrap();
    assert_ne!(one.id, other.id);
    assert_eq!(std::fs::read(layer_of(&one).join("a")).unwrap(), b"one");
    assert_eq!(std::fs::read(layer_of(&other).join("a")).unwrap(), b"two");
    images.remove(one.id.as_str()).await.unwrap();
    images.collect(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(std::fs::read(layer_of(&other).join("b")).unwrap(), b"one");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_artifacts_are_refused_before_a_file_is_fetched() {
    let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let many: Vec<String> = (0..1_000).map(|number| format!("f{number}")).collect();
    let many: Vec<(Option<&str>, &[u8])> = many
        .iter()
        .map(|name| (Some(name.as_str()), &b"x"[..]))
        .collect();
    let cases: [(Files<'_>, &str); 8] = [
        (&[(Some("../../../../tmp/out"), b"x")], "`..`"),
        (&[(Some("/etc/cron.d/x"), b"x")], "absolute"),
        (&[(Some("a\0b"), b"x")], "control characters"),
        (&[(Some(""), b"x")], "names no file"),
        (
            &[(Some("a"), b"x"), (Some("a"), b"y")],
            "two layers want the path",
        ),
        (
            &[(Some("a"), b"x"), (Some("a/b"), b"y")],
            "two layers want the path",
        ),
        (&many, "max_layers"),
        (&[], "without files"),
    ];
    for (files, says) in cases {
        serve(&registry, "bad", files);
        registry.forget();
        let refused = pull(&images, &format!("{}/data:bad", registry.host))
            .await
            .unwrap_err();
        assert!(
            matches!(refused.kind(), ErrorKind::Invalid | ErrorKind::Limit),
            "{refused}"
        );
        assert!(
            refused.to_string().contains(says),
            "{refused} does not say {says}"
        );
        assert_eq!(registry.gets(Digest::of(b"x").as_str()), 0, "{says}");
        assert!(
            images.list().is_empty() && content(&scratch.0).is_empty(),
            "{says}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_layers_have_titles_is_still_an_image() {
    let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    registry.serve_image("app", "v1", &linux("titled"));
    let image = pull(&images, &format!("{}/app:v1", registry.host))
        .await
        .unwrap();
    assert!(matches!(image.kind, Kind::Linux(_)), "{:?}", image.kind);
}
