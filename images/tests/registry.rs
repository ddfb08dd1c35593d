//! The promises of the image store, each against a real registry or one that lies.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::{
    Credentials, Digest, Error, ErrorKind, Image, Images, ImagesConfig, Kind, Limits, PullRequest,
    WasmImage,
};
use serde_json::json;
use support::{
    DOCKER_MANIFEST, Liar, MODULE, OCI_INDEX, Parts, Registry, Reply, Scratch, TAR, Unpackers,
    WASM_CONFIG, free_port, noise, tar,
};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

async fn open(root: &Path) -> Images {
    let mut config = ImagesConfig::new(root);
    config.pull_idle_timeout = Duration::from_secs(5);
    Images::open(config, Arc::new(Unpackers)).await.unwrap()
}

async fn pull(images: &Images, reference: &str) -> Result<Arc<Image>, Error> {
    images.pull(PullRequest::new(reference)).await
}

fn wasm(image: &Image) -> &WasmImage {
    match &image.kind {
        Kind::Wasm(wasm) => wasm,
        Kind::Linux(_) => panic!("{} is no Wasm image", image.id),
    }
}

/// Every file and directory of the store but the database, without its fixed directories.
fn content(root: &Path) -> Vec<PathBuf> {
    let images = root.join("images");
    let in_one = |name: &str| {
        std::fs::read_dir(images.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    ["blobs/sha256", "layers", "tmp"]
        .iter()
        .flat_map(|name| in_one(name))
        .collect()
}

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
    let used = images.fs_info();
    assert_eq!((used.used_bytes, used.inodes_used), (image.size, 2));

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
async fn modules_in_archives_are_found_whatever_the_compression() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    for (index, media_type) in [GZIP, ZSTD, TAR].into_iter().enumerate() {
        let module = [MODULE, &[index as u8]].concat();
        let lower = tar(&[("data/x", b"1"), ("app/main.wasm", b"old")]);
        let upper = tar(&[("app/main.wasm", &module), ("app/other.wasm", MODULE)]);
        let config = json!({"Entrypoint": ["/app/main.wasm"], "Env": ["A=b"], "User": "1000:5", "WorkingDir": "/data"});
        let parts = Parts::archives(
            "wasi",
            "wasm",
            config,
            &[(media_type, lower), (media_type, upper)],
        );
        registry
            .image("demo/files", &index.to_string(), &parts)
            .await;
        let image = pull(&images, &format!("{}/demo/files:{index}", registry.host))
            .await
            .unwrap();
        let wasm = wasm(&image);
        assert_eq!(
            (wasm.guest_path.as_deref(), wasm.layers.len()),
            (Some("/app/main.wasm"), 2)
        );
        assert_eq!(wasm.module, Digest::of(&module));
        assert_eq!(std::fs::read(&wasm.module_path).unwrap(), module);
        assert_eq!(
            (image.config.env.as_slice(), image.user.as_deref()),
            (&["A=b".to_owned()][..], Some("1000:5"))
        );
        let other = wasm.module_for("../app/other.wasm").unwrap().unwrap();
        assert_eq!(std::fs::read(other).unwrap(), MODULE);
        assert_eq!(wasm.module_for("/data/x").unwrap(), None);
    }
    // The lower layer has the same content in all three, but comes from three blobs: what one blob's unpacker has written
    // is never taken for another's. No archive is kept at all.
    let layers = std::fs::read_dir(scratch.0.join("images/layers"))
        .unwrap()
        .count();
    let blobs = std::fs::read_dir(scratch.0.join("images/blobs/sha256"))
        .unwrap()
        .count();
    assert_eq!((layers, blobs), (6, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_runs_is_decided_by_its_content() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let files = |files: &[(&str, &[u8])]| vec![(GZIP, tar(files))];
    let cases = [
        (
            "sh",
            Parts::archives(
                "linux",
                arch,
                json!({"Cmd": ["/bin/sh"]}),
                &files(&[("bin/sh", b"\x7fELF")]),
            ),
            "linux",
        ),
        (
            "none",
            Parts::archives("linux", arch, json!({}), &[]),
            "linux",
        ),
        (
            "smart",
            Parts::archives(
                "linux",
                arch,
                json!({"Cmd": ["/a"]}),
                &files(&[("a", MODULE)]),
            ),
            "/a",
        ),
        (
            "only",
            Parts::archives(
                "wasip1",
                "wasm",
                json!(null),
                &files(&[("x/y.wasm", MODULE)]),
            ),
            "/x/y.wasm",
        ),
        (
            "bare",
            Parts::archives(
                "wasi",
                "wasm32",
                json!({"Cmd": ["y.wasm"]}),
                &files(&[("y.wasm", MODULE)]),
            ),
            "/y.wasm",
        ),
    ];
    for (tag, parts, expected) in &cases {
        registry.image("kinds", tag, parts).await;
        let image = pull(&images, &format!("{}/kinds:{tag}", registry.host))
            .await
            .unwrap();
        match &image.kind {
            Kind::Linux(_) => assert_eq!(*expected, "linux", "{tag}"),
            Kind::Wasm(wasm) => assert_eq!(wasm.guest_path.as_deref(), Some(*expected), "{tag}"),
        }
    }
    let mut two = Parts::artifact(MODULE);
    two.layers.push(two.layers[0].clone());
    let mut none = Parts::artifact(MODULE);
    none.layers.clear();
    let mut lying = Parts::archives("wasi", "wasm", json!({}), &files(&[("a.wasm", MODULE)]));
    lying.config.1 = String::from_utf8(lying.config.1)
        .unwrap()
        .replace("sha256:", "sha256:0")
        .into_bytes();
    let refused = [
        ("two", two, "holds 2 among 2 layers"),
        ("zero", none, "holds 0 among 0 layers"),
        (
            "elf",
            Parts::artifact(b"\x7fELF precompiled"),
            "precompiled modules are refused",
        ),
        (
            "text",
            Parts::artifact(b"(module)"),
            "does not begin with \\0asm",
        ),
        (
            "elf-file",
            Parts::archives(
                "wasi",
                "wasm",
                json!({"Cmd": ["/a"]}),
                &files(&[("a", b"\x7fELF")]),
            ),
            "precompiled",
        ),
        (
            "absent",
            Parts::archives(
                "wasi",
                "wasm",
                json!({"Cmd": ["/b"]}),
                &files(&[("a", MODULE)]),
            ),
            "no such file",
        ),
        (
            "empty",
            Parts::archives("wasi", "wasm", json!({}), &files(&[("a", b"")])),
            "holds no .wasm file",
        ),
        (
            "several",
            Parts::archives(
                "wasi",
                "wasm",
                json!({}),
                &files(&[("a.wasm", MODULE), ("b.wasm", MODULE)]),
            ),
            "holds 2 .wasm files, set one of them: /a.wasm, /b.wasm",
        ),
        (
            "foreign",
            Parts::archives("plan9", "mips", json!({}), &files(&[("a", b"")])),
            "plan9/mips",
        ),
        ("diff", lying, "diff id"),
    ];
    let before = (
        images.list().len(),
        images.fs_info(),
        content(&scratch.0).len(),
    );
    for (tag, parts, says) in &refused {
        registry.image("kinds", tag, parts).await;
        let error = pull(&images, &format!("{}/kinds:{tag}", registry.host))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{tag}: {error}");
        assert!(error.to_string().contains(says), "{tag}: {error}");
        assert_eq!(
            (
                images.list().len(),
                images.fs_info(),
                content(&scratch.0).len()
            ),
            before,
            "{tag}"
        );
    }
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
async fn removal_takes_all_names_and_spares_what_is_leased() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let shared = tar(&[("shared", b"s")]);
    let with = |name: &str| {
        let own = tar(&[(name, MODULE)]);
        Parts::archives(
            "wasi",
            "wasm",
            json!({"Cmd": [format!("/{name}")]}),
            &[(GZIP, shared.clone()), (GZIP, own)],
        )
    };
    let (one, two) = (with("one.wasm"), with("two.wasm"));
    for (repository, tag, parts) in [("a", "x", &one), ("b", "y", &one), ("c", "z", &two)] {
        registry.image(repository, tag, parts).await;
        pull(&images, &format!("{}/{repository}:{tag}", registry.host))
            .await
            .unwrap();
    }
    assert_eq!(images.list().len(), 2);
    let first = images.resolve(&one.id()).unwrap();
    assert_eq!(first.repo_tags.len(), 2);
    images.lease(&first.id, "container-1").unwrap();

    let removed = images
        .remove(&format!("{}/a:x", registry.host))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(removed.id, first.id);
    assert!(
        images.resolve(&format!("{}/b:y", registry.host)).is_none(),
        "all names go"
    );
    assert!(images.resolve(first.id.as_str()).is_none());
    assert_eq!(images.list().len(), 1);
    assert!(
        images
            .remove(&format!("{}/a:x", registry.host))
            .await
            .unwrap()
            .is_none(),
        "removing twice is fine"
    );
    images.collect(Duration::ZERO).await.unwrap();
    assert!(
        wasm(&first).module_path.exists(),
        "a container may still start it"
    );

    // A restart forgets leases, but not what they are needed for, until they had a chance to be declared again.
    drop(images);
    let images = open(&scratch.0).await;
    assert_eq!(images.list().len(), 1);
    images.lease(&first.id, "container-1").unwrap();
    images.collect(Duration::ZERO).await.unwrap();
    assert!(wasm(&first).module_path.exists());
    assert_eq!(images.leased(&first.id).unwrap().kind, first.kind);

    images.release("container-1");
    images.collect(Duration::ZERO).await.unwrap();
    assert!(!wasm(&first).module_path.exists());
    let second = images.resolve(&two.id()).unwrap();
    assert!(
        wasm(&second).layers.iter().all(|layer| layer.is_dir()),
        "a shared layer stays"
    );
    assert_eq!(
        images.lease(&first.id, "late").unwrap_err().kind(),
        ErrorKind::Missing
    );

    images.remove(second.id.as_str()).await.unwrap().unwrap();
    assert_eq!(content(&scratch.0), Vec::<PathBuf>::new());
    assert_eq!(
        (images.fs_info().used_bytes, images.fs_info().inodes_used),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_moves_here_too() {
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
async fn what_is_not_there_is_said_with_its_names() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    registry.image("app", "v1", &Parts::artifact(MODULE)).await;
    for reference in [
        format!("{}/app:v2", registry.host),
        format!("{}/nothing", registry.host),
    ] {
        let missing = pull(&images, &reference).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Missing, "{missing}");
        assert!(missing.to_string().contains(&reference), "{missing}");
    }
    let started = Instant::now();
    let nobody = format!("127.0.0.1:{}", free_port());
    let down = pull(&images, &format!("{nobody}/app:v1"))
        .await
        .unwrap_err();
    assert_eq!(down.kind(), ErrorKind::RegistryUnavailable);
    assert!(
        down.to_string().contains(&nobody) && down.to_string().contains("refused"),
        "{down}"
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(
        pull(&images, "Not A Reference").await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert!(images.list().is_empty() && content(&scratch.0).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_noticed_and_leave_nothing() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let parts = Parts::artifact(MODULE);
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    let reference = format!("{}/app:v1", liar.host);
    let other = [&MODULE[..7], b"\x01"].concat();
    for (name, body) in [
        ("wrong", other.clone()),
        ("short", MODULE[..7].to_vec()),
        ("long", [MODULE, b"x"].concat()),
    ] {
        liar.serve_image("app", "v1", &parts);
        liar.on(&blob, Reply::ok(&body));
        let error = pull(&images, &reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        if name == "wrong" {
            let text = error.to_string();
            assert!(
                text.contains(Digest::of(MODULE).as_str())
                    && text.contains(Digest::of(&other).as_str()),
                "{text}"
            );
        }
        assert!(
            images.list().is_empty() && content(&scratch.0).is_empty(),
            "{name}"
        );
    }
    // A manifest that is not the one asked for by digest.
    let wanted = Digest::of(b"another manifest");
    let manifest = Reply::manifest(&json!({"schemaVersion": 2}));
    liar.on(&format!("/app/manifests/{wanted}"), manifest);
    let error = pull(&images, &format!("{}/app@{wanted}", liar.host))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // A layer whose archive is not the one the config promises.
    let mut swapped = Parts::archives(
        "wasi",
        "wasm",
        json!({}),
        &[(TAR, tar(&[("a.wasm", MODULE)]))],
    );
    swapped.layers[0].1 = tar(&[("b.wasm", MODULE)]);
    liar.serve_image("app", "swapped", &swapped);
    let error = pull(&images, &format!("{}/app:swapped", liar.host))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(images.list().is_empty() && content(&scratch.0).is_empty());
    // The same registry, honest again.
    liar.serve_image("app", "v1", &parts);
    pull(&images, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_dies_in_a_blob_is_asked_again_and_finished_blobs_are_kept() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let layers: Vec<_> = (0..2)
        .map(|seed| (TAR, tar(&[(&format!("{seed}.bin"), &noise(seed, 200_000))])))
        .collect();
    let module = (TAR, tar(&[("a.wasm", MODULE)]));
    let parts = Parts::archives(
        "wasi",
        "wasm",
        json!({}),
        &[module, layers[0].clone(), layers[1].clone()],
    );
    liar.serve_image("app", "v1", &parts);
    let dying = Digest::of(&layers[1].1);
    liar.on(
        &format!("/app/blobs/{dying}"),
        Reply::Dies(layers[1].1.clone(), 50_000),
    );
    let reference = format!("{}/app:v1", liar.host);
    let error = pull(&images, &reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
    assert!(error.to_string().contains(dying.as_str()), "{error}");
    assert_eq!(
        liar.gets(dying.as_str()),
        3,
        "a blob is tried a bounded number of times"
    );
    assert!(images.list().is_empty());
    let kept = Digest::of(&layers[0].1);
    assert!(
        content(&scratch.0)
            .iter()
            .any(|path| path.ends_with(kept.hex())),
        "the finished blob is kept"
    );
    assert!(
        !content(&scratch.0)
            .iter()
            .any(|path| path.ends_with(dying.hex()))
    );

    liar.on(&format!("/app/blobs/{dying}"), Reply::ok(&layers[1].1));
    let image = pull(&images, &reference).await.unwrap();
    assert_eq!(wasm(&image).guest_path.as_deref(), Some("/a.wasm"));
    assert_eq!(
        (liar.gets(kept.as_str()), liar.gets(dying.as_str())),
        (1, 4)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_content_of_a_dead_daemon_is_swept() {
    let scratch = Scratch::new();
    drop(open(&scratch.0).await);
    let images = scratch.0.join("images");
    std::fs::write(images.join("tmp/7"), "half a blob").unwrap();
    std::fs::create_dir_all(images.join("tmp/8/etc")).unwrap();
    std::fs::create_dir(images.join("layers").join(Digest::of(b"chain").hex())).unwrap();
    std::fs::write(
        images.join("blobs/sha256").join(Digest::of(b"blob").hex()),
        "blob",
    )
    .unwrap();
    let store = open(&scratch.0).await;
    assert_eq!(
        content(&scratch.0).len(),
        2,
        "whole content stays until its users had a chance to claim it"
    );
    let kept = store.collect(Duration::from_secs(600)).await.unwrap();
    assert!(kept.left_young);
    assert_eq!(
        content(&scratch.0).len(),
        1,
        "only the young blob stays, for a pull to use"
    );
    assert_eq!(store.fs_info().used_bytes, 4);
    store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(
        (content(&scratch.0).len(), store.fs_info().used_bytes),
        (0, 0)
    );
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(images).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_given_up_and_delays_no_other() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
    let mut config = ImagesConfig::new(&scratch.0);
    config.pull_idle_timeout = Duration::from_secs(3);
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let quick = [MODULE, b"quick"].concat();
    liar.serve_image("slow", "v1", &Parts::artifact(MODULE));
    liar.serve_image("quick", "v1", &Parts::artifact(&quick));
    liar.on(
        &format!("/slow/blobs/{}", Digest::of(MODULE)),
        Reply::Stalls(MODULE.to_vec(), 3),
    );
    let started = Instant::now();
    let slow = tokio::spawn({
        let (images, reference) = (images.clone(), format!("{}/slow:v1", liar.host));
        async move { pull(&images, &reference).await }
    });
    pull(&images, &format!("{}/quick:v1", liar.host))
        .await
        .unwrap();
    assert!(!slow.is_finished());
    let error = slow.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_is_given_up_and_a_slow_one_is_not() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
    let mut config = ImagesConfig::new(&scratch.0);
    config.pull_idle_timeout = Duration::from_secs(1);
    config.pull_min_bytes_per_s = 100;
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let module = [MODULE, &[b'x'; 400]].concat();
    let parts = Parts::artifact(&module);
    let blob = |name: &str| format!("/{name}/blobs/{}", Digest::of(&module));
    // Never silent for long, and done within hours: 50 bytes a second, and one.
    for (name, pause_ms) in [("drips", 20), ("drops", 900)] {
        liar.serve_image(name, "v1", &parts);
        let pause = Duration::from_millis(pause_ms);
        liar.on(&blob(name), Reply::Drips(module.clone(), pause));
        let started = Instant::now();
        let reference = format!("{}/{name}:v1", liar.host);
        let error = pull(&images, &reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
        let text = error.to_string();
        assert!(text.contains("pull_min_bytes_per_s"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(5), "{text}");
    }
    // Slow, for longer than a window, but above the least rate.
    liar.serve_image("slow", "v1", &parts);
    liar.on(
        &blob("slow"),
        Reply::Drips(module.clone(), Duration::from_millis(4)),
    );
    let started = Instant::now();
    let pulled = pull(&images, &format!("{}/slow:v1", liar.host)).await;
    pulled.unwrap();
    assert!(started.elapsed() > Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_are_one_and_the_last_to_leave_ends_it() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
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
        content(&scratch.0)
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
    assert!(!has_temporary(), "nobody waits: it has stopped");
    liar.on(&blob, Reply::ok(MODULE));
    pull(&images, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_what_is_closed_and_are_never_shown() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
    let limits = Limits {
        max_manifest_bytes: 2000,
        max_module_bytes: 7,
        max_layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let config = ImagesConfig {
        limits,
        ..ImagesConfig::new(&scratch.0)
    };
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    liar.serve_image("app", "module", &Parts::artifact(MODULE));
    let many =
        json!({"schemaVersion": 2, "config": {"mediaType": WASM_CONFIG}, "layers": vec![0; 2000]});
    liar.on("/app/manifests/manifest", Reply::manifest(&many));
    let layer = Parts::archives(
        "wasi",
        "wasm",
        json!({}),
        &[(TAR, tar(&[("a.wasm", &noise(1, 2 << 20))]))],
    );
    liar.serve_image("app", "layer", &layer);
    for (tag, limit) in [
        ("module", "max_module_bytes"),
        ("manifest", "max_manifest_bytes"),
        ("layer", "max_layer_bytes"),
    ] {
        let error = pull(&images, &format!("{}/app:{tag}", liar.host))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains(limit), "{error}");
    }
    assert!(content(&scratch.0).is_empty());
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, megabytes: u32) -> Self {
        std::fs::create_dir(&path).unwrap();
        let options = std::ffi::CString::new(format!("size={megabytes}m")).unwrap();
        rustix::mount::mount(
            "tmpfs",
            &path,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_nothing_is_left_on_it() {
    let (liar, scratch) = (Liar::start().await, Scratch::new());
    let disk = SmallDisk::mount(scratch.0.join("disk"), 12);
    let images = open(&disk.0).await;
    let blob = Parts::artifact(&[MODULE, &noise(1, 20 << 20)].concat());
    let zeros = tar(&[("a.wasm", MODULE), ("zeros", &vec![0; 20 << 20])]);
    let unpacked = Parts::archives("wasi", "wasm", json!({}), &[(GZIP, zeros)]);
    let small = Parts::artifact(MODULE);
    for (tag, parts) in [("blob", &blob), ("unpacked", &unpacked), ("small", &small)] {
        liar.serve_image("app", tag, parts);
    }
    for tag in ["blob", "unpacked"] {
        let error = pull(&images, &format!("{}/app:{tag}", liar.host))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{tag}: {error}");
        assert!(
            error.to_string().contains(disk.0.to_str().unwrap()),
            "{error}"
        );
        assert!(
            images.list().is_empty() && content(&disk.0).is_empty(),
            "{tag}: {:?}",
            content(&disk.0)
        );
        assert_eq!(images.fs_info().used_bytes, 0);
    }
    pull(&images, &format!("{}/app:small", liar.host))
        .await
        .unwrap();
}
