//! Images from archives: every format becomes the image that a pull would give, and a hostile archive nothing at all.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use coracle_images::{Digest, Error, ErrorKind, Image, ImageRef, Images, ImportRequest};
use serde_json::json;

use super::{GZIP, ZSTD, content, open};
use crate::support::archive::{Files, docker, named, oci};
use crate::support::{MODULE, Parts, Scratch, TAR, tar};

const NAME: &str = "registry.example/team/app:v1";

fn app(layer_type: &'static str) -> Parts {
    let lower = tar(&[("data/x", b"1")]);
    let upper = tar(&[("app.wasm", MODULE)]);
    let config = json!({"Entrypoint": ["/app.wasm"]});
    Parts::archives(
        "wasi",
        "wasm",
        config,
        &[(layer_type, lower), (layer_type, upper)],
    )
}

fn archive_of(files: &Files) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    tar(&files)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn import(
    images: &Images,
    dir: &Path,
    archive: &[u8],
    request: ImportRequest,
) -> Result<Vec<Arc<Image>>, Error> {
    let path = dir.join("archive");
    std::fs::write(&path, archive).unwrap();
    let name = path.display().to_string();
    let request = ImportRequest { name, ..request };
    images.import(File::open(path).unwrap(), &request).await
}

fn as_named(name: &str) -> ImportRequest {
    let reference = Some(name.to_owned());
    ImportRequest {
        reference,
        ..ImportRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_format_become_images() {
    for layer_type in [GZIP, ZSTD, TAR] {
        let parts = app(layer_type);
        let layout = oci(&[(named(NAME), &parts)]);
        let saved = docker(json!([NAME]), &parts);
        for (files, has_digest) in [(layout, true), (saved, false)] {
            let plain = archive_of(&files);
            for archive in [
                plain.clone(),
                gzip(&plain),
                zstd::encode_all(&*plain, 1).unwrap(),
            ] {
                let scratch = Scratch::new();
                let images = open(&scratch.0).await;
                let imported = import(&images, &scratch.0, &archive, ImportRequest::default())
                    .await
                    .unwrap();
                let image = images.resolve(NAME).unwrap();
                assert_eq!((imported.len(), &imported[0].id), (1, &image.id));
                assert_eq!(
                    (image.id.to_string(), image.repo_tags.as_slice()),
                    (parts.id(), &[NAME.to_owned()][..])
                );
                assert_eq!(image.repo_digests.len(), usize::from(has_digest));
                assert_eq!((image.kind.layers().len(), image.pinned), (2, false));
                // Nothing but the config, the layers and the module's directory stays.
                assert_eq!(content(&scratch.0).len(), 3, "{:?}", content(&scratch.0));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_imported_and_survives_a_reopen() {
    let (scratch, parts) = (Scratch::new(), Parts::artifact(MODULE));
    let archive = archive_of(&oci(&[(named(NAME), &parts)]));
    let pin = ImportRequest {
        pin: true,
        ..ImportRequest::default()
    };
    let images = open(&scratch.0).await;
    import(&images, &scratch.0, &archive, pin).await.unwrap();
    drop(images);
    let images = open(&scratch.0).await;
    let image = images.resolve(NAME).unwrap();
    assert_eq!(super::wasm(&image).module, Digest::of(MODULE));
    assert!(image.pinned);
    // Whoever removes it means it; so do the peers.
    images.remove(NAME).await.unwrap().unwrap();
    assert!(images.resolve(NAME).is_none() && content(&scratch.0).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_named_by_the_archive_or_by_the_request() {
    let (scratch, parts) = (Scratch::new(), app(GZIP));
    let images = open(&scratch.0).await;
    let tag_only = json!({"org.opencontainers.image.ref.name": "latest"});
    let whole = json!({"org.opencontainers.image.ref.name": "localhost/whole:2"});
    let other = Parts::artifact(MODULE);
    let unnamed = archive_of(&oci(&[(tag_only.clone(), &parts)]));
    let refused = import(&images, &scratch.0, &unnamed, ImportRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let given = import(&images, &scratch.0, &unnamed, as_named("docker.io/given"))
        .await
        .unwrap();
    assert_eq!(given[0].repo_tags, ["docker.io/library/given:latest"]);
    // One image by two names, and another beside it.
    let several = oci(&[
        (whole, &parts),
        (named(NAME), &parts),
        (named("r.io/artifact"), &other),
    ]);
    let several = archive_of(&several);
    let refused = import(&images, &scratch.0, &several, as_named("r.io/one"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("several images"), "{refused}");
    let all = import(&images, &scratch.0, &several, ImportRequest::default())
        .await
        .unwrap();
    assert_eq!(all.len(), 2);
    for name in ["localhost/whole:2", NAME, "r.io/artifact:latest"] {
        assert!(images.resolve(name).is_some(), "{name}");
    }
    // As docker writes it today: a layout whose names are in manifest.json.
    let mut both = oci(&[(tag_only, &parts)]);
    both.extend(docker(json!(["r.io/tags:1", "r.io/tags:2"]), &parts));
    import(
        &images,
        &scratch.0,
        &archive_of(&both),
        ImportRequest::default(),
    )
    .await
    .unwrap();
    assert!(images.resolve("r.io/tags:2").is_some());
}

/// Archives that name more than their size justifies, and what there is too much of.
fn boundless() -> Vec<(&'static str, Files)> {
    let parts = app(TAR);
    let names: Vec<String> = (0..300).map(|number| format!("r.io/a:{number}")).collect();
    let entries: Vec<_> = names.iter().map(|name| (named(name), &parts)).collect();
    let repeated = |count: usize, layers: usize| {
        let mut files = docker(json!([NAME]), &parts);
        for (name, bytes) in &mut files {
            if name == "manifest.json" {
                let items: serde_json::Value = serde_json::from_slice(bytes).unwrap();
                let mut item = items[0].clone();
                if layers > 0 {
                    item["Layers"] = json!(vec!["0/layer.tar"; layers]);
                }
                *bytes = json!(vec![item; count]).to_string().into_bytes();
            }
        }
        files
    };
    vec![
        ("300 names", oci(&entries)),
        ("300 names", docker(json!(names), &parts)),
        ("300 images", repeated(300, 0)),
        ("2000 layers", repeated(10, 200)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_names_too_much_is_refused() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    for (what, files) in boundless() {
        let archive = archive_of(&files);
        let refused = import(&images, &scratch.0, &archive, ImportRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Limit, "{refused}");
        assert!(refused.to_string().contains(what), "{refused}");
        assert!(images.list().is_empty(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_is_given_to_no_archive_of_several_images() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    let (parts, other) = (app(GZIP), Parts::artifact(MODULE));
    let tag = |tag: &str| json!({"org.opencontainers.image.ref.name": tag});
    for (first, second) in [
        (tag("v1"), tag("v2")),
        (tag("v1"), json!({})),
        (tag("v1"), named(NAME)),
    ] {
        let archive = archive_of(&oci(&[(first, &parts), (second, &other)]));
        let refused = import(&images, &scratch.0, &archive, as_named("r.io/one:1"))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("several images"), "{refused}");
    }
    assert!(images.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_by_digest_is_given_only_to_that_image() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    let parts = app(GZIP);
    let layout = oci(&[(json!({}), &parts)]);
    let index = layout.iter().find(|(name, _)| name == "index.json");
    let index: serde_json::Value = serde_json::from_slice(&index.unwrap().1).unwrap();
    let right = index["manifests"][0]["digest"].as_str().unwrap();
    let (right, wrong) = (
        format!("r.io/app@{right}"),
        format!("r.io/app@{}", Digest::of(b"another")),
    );
    let saved = docker(json!([NAME]), &parts);
    for (files, name) in [(&layout, &wrong), (&saved, &wrong), (&saved, &right)] {
        let refused = import(&images, &scratch.0, &archive_of(files), as_named(name))
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{name}: {refused}");
        assert!(refused.to_string().contains("r.io/app@"), "{refused}");
    }
    import(&images, &scratch.0, &archive_of(&layout), as_named(&right))
        .await
        .unwrap();
    assert!(images.resolve(&right).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_gets_no_stored_content_that_it_does_not_hold() {
    for parts in [app(GZIP), Parts::artifact(MODULE)] {
        let scratch = Scratch::new();
        let images = open(&scratch.0).await;
        let whole = oci(&[(named(NAME), &parts)]);
        import(
            &images,
            &scratch.0,
            &archive_of(&whole),
            ImportRequest::default(),
        )
        .await
        .unwrap();
        // Of an image of archives its layers are here unpacked, of an artifact its module.
        let mut blobs: Vec<Digest> = vec![Digest::of(&parts.config.1)];
        blobs.extend(parts.layers.iter().map(|(_, bytes)| Digest::of(bytes)));
        let sorted = || {
            let mut paths = content(&scratch.0);
            paths.sort();
            paths
        };
        let before = sorted();
        for blob in blobs {
            let lacking = without(&format!("blobs/sha256/{}", blob.hex()), &whole);
            let request = as_named("registry.example/thief:v1");
            let refused = import(&images, &scratch.0, &archive_of(&lacking), request)
                .await
                .unwrap_err();
            let text = refused.to_string();
            assert!(text.contains(&format!("it lacks blob {blob}")), "{text}");
            assert!(images.resolve("registry.example/thief:v1").is_none());
        }
        assert_eq!(sorted(), before);
        assert!(images.resolve(NAME).is_some());
    }
}

/// A tar of one entry that is no regular file, and of `files`.
fn with_odd(kind: tar::EntryType, path: &str, link: &str, files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_size(0);
    builder.append_link(&mut header, path, link).unwrap();
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder
            .append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn without(name: &str, files: &Files) -> Files {
    files
        .iter()
        .filter(|(there, _)| there != name)
        .cloned()
        .collect()
}

/// What a stranger may send, by name.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let (parts, secret) = (app(TAR), Digest::of(b"secret"));
    let layout = oci(&[(named(NAME), &parts)]);
    let saved = |config: &str, layers: Vec<String>| -> Files {
        let manifest = json!([{"Config": config, "RepoTags": [NAME], "Layers": layers}]);
        vec![
            ("manifest.json".into(), manifest.to_string().into_bytes()),
            ("c".into(), parts.config.1.clone()),
        ]
    };
    let mut swapped = layout.clone();
    for (name, bytes) in &mut swapped {
        if name.contains(Digest::of(&parts.layers[1].1).hex()) {
            bytes[600] ^= 1;
        }
    }
    let layer = format!("blobs/sha256/{}", Digest::of(&parts.layers[0].1).hex());
    let mut other_layer = docker(json!([NAME]), &parts);
    for (name, bytes) in &mut other_layer {
        if name == "0/layer.tar" {
            *bytes = tar(&[("data/x", b"2")]);
        }
    }
    let huge = vec![("index.json".to_owned(), vec![b' '; (4 << 20) + 1])];
    let link = tar::EntryType::Symlink;
    let no_index = without("index.json", &layout);
    let lacks_layer = without(&layer, &layout);
    vec![
        ("nothing", Vec::new()),
        ("no tar", b"\x7fELF and so on".repeat(100)),
        (
            "no images",
            archive_of(&vec![("README".into(), b"hello".to_vec())]),
        ),
        ("a swapped layer", archive_of(&swapped)),
        ("a missing layer", archive_of(&lacks_layer)),
        (
            "another layer than the config says",
            archive_of(&other_layer),
        ),
        ("an index without end", archive_of(&huge)),
        (
            "an index that is a link out",
            with_odd(link, "index.json", "/etc/passwd", &no_index),
        ),
        (
            "an index that is a link up",
            with_odd(link, "index.json", "../../../../../etc/passwd", &no_index),
        ),
        (
            "an index that is a FIFO",
            with_odd(tar::EntryType::Fifo, "index.json", "x", &no_index),
        ),
        (
            "a directory that leads out",
            with_odd(link, "blobs", "/", &Files::new()),
        ),
        (
            "a layer that is a link out",
            with_odd(link, &layer, "/etc/hostname", &lacks_layer),
        ),
        (
            "a config out of the archive",
            archive_of(&saved("/etc/passwd", Vec::new())),
        ),
        (
            "a layer out of the archive",
            archive_of(&saved("c", vec!["../../../../etc/passwd".into()])),
        ),
        (
            "a layer that is nowhere",
            archive_of(&saved("c", vec![secret.hex().into()])),
        ),
        (
            "a layer that is a directory",
            archive_of(&saved("c", vec![".".into()])),
        ),
        (
            "layers without end",
            archive_of(&saved("c", vec!["c".into(); 10_000])),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_archive_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    for (what, archive) in hostile() {
        let importing = import(&images, &scratch.0, &archive, ImportRequest::default());
        let ended = tokio::time::timeout(std::time::Duration::from_secs(120), importing).await;
        let refused = ended
            .unwrap_or_else(|_| panic!("{what}: it hangs"))
            .unwrap_err();
        let kinds = [ErrorKind::Invalid, ErrorKind::Corrupt, ErrorKind::Limit];
        assert!(kinds.contains(&refused.kind()), "{what}: {refused}");
        let text = refused.to_string();
        assert!(
            text.contains("/archive") && !text.contains("root:"),
            "{what}: {text}"
        );
        assert!(images.list().is_empty(), "{what}");
        assert_eq!(content(&scratch.0), [] as [std::path::PathBuf; 0], "{what}");
    }
    let honest = archive_of(&oci(&[(named(NAME), &app(TAR))]));
    import(&images, &scratch.0, &honest, ImportRequest::default())
        .await
        .unwrap();
    assert!(NAME.parse::<ImageRef>().is_ok() && images.resolve(NAME).is_some());
}
