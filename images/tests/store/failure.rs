//! Registries that lie, die, stall or drip, and content that is too large for the limits or the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::{Digest, ErrorKind, Images, ImagesConfig, Limits};
use serde_json::json;

use super::{GZIP, content, open, pull, wasm};
use crate::support::{
    MODULE, OCI_INDEX, Parts, Registry, Reply, Scratch, ScriptedRegistry, TAR, Unpackers,
    WASM_CONFIG, closed_port, noise, tar,
};

#[tokio::test(flavor = "multi_thread")]
async fn errors_for_missing_images_name_them() {
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
    let nobody = format!("127.0.0.1:{}", closed_port());
    let down = pull(&images, &format!("{nobody}/app:v1"))
        .await
        .unwrap_err();
    assert_eq!(down.kind(), ErrorKind::RegistryUnavailable);
    assert!(
        down.to_string().contains(&nobody) && down.to_string().contains("refused"),
        "{down}"
    );
    assert_eq!(
        pull(&images, "Not A Reference").await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert!(images.list().is_empty() && content(&scratch.0).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_detected_and_leaves_nothing() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
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
    // A manifest that does not have the requested digest.
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
async fn a_pull_from_a_registry_that_dies_in_a_blob_is_retried_and_keeps_finished_layers() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
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
        Reply::Dies(vec![], layers[1].1.clone(), 50_000),
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
    let left = content(&scratch.0);
    let unpacked = left.iter().filter(|path| path.join("0.bin").exists());
    assert_eq!(unpacked.count(), 1, "the finished layer is kept: {left:?}");
    assert!(!left.iter().any(|path| path.ends_with(dying.hex())));

    liar.on(&format!("/app/blobs/{dying}"), Reply::ok(&layers[1].1));
    let image = pull(&images, &reference).await.unwrap();
    assert_eq!(wasm(&image).guest_path.as_deref(), Some("/a.wasm"));
    assert_eq!(
        (liar.gets(kept.as_str()), liar.gets(dying.as_str())),
        (1, 4)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_given_up_and_delays_no_other() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let mut config = ImagesConfig::new(&scratch.0);
    config.pull_idle_timeout = Duration::from_secs(6);
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let quick = [MODULE, b"quick"].concat();
    liar.serve_image("slow", "v1", &Parts::artifact(MODULE));
    liar.serve_image("quick", "v1", &Parts::artifact(&quick));
    liar.on(
        &format!("/slow/blobs/{}", Digest::of(MODULE)),
        Reply::Stalls(MODULE.to_vec(), 3),
    );
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
    assert!(error.to_string().contains("sent nothing of"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_is_given_up_and_a_slow_one_is_not() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    let mut config = ImagesConfig::new(&scratch.0);
    config.pull_idle_timeout = Duration::from_secs(2);
    config.pull_min_bytes_per_s = 20;
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    let module = [MODULE, &[b'x'; 600]].concat();
    let parts = Parts::artifact(&module);
    let blob = |name: &str| format!("/{name}/blobs/{}", Digest::of(&module));
    // Never silent for long, and done within minutes: five bytes a second, and one.
    for (name, pause_ms) in [("drips", 200), ("drops", 900)] {
        liar.serve_image(name, "v1", &parts);
        let pause = Duration::from_millis(pause_ms);
        liar.on(&blob(name), Reply::Drips(module.clone(), pause));
        let reference = format!("{}/{name}:v1", liar.host);
        let error = pull(&images, &reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
        let text = error.to_string();
        assert!(text.contains("pull_min_bytes_per_s"), "{text}");
    }
    // Slow, for longer than a window, but far above the least rate.
    liar.serve_image("slow", "v1", &parts);
    liar.on(
        &blob("slow"),
        Reply::Drips(module.clone(), Duration::from_millis(4)),
    );
    let started = Instant::now();
    let pulled = pull(&images, &format!("{}/slow:v1", liar.host)).await;
    pulled.unwrap();
    assert!(started.elapsed() > Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
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
    // A hundred indexes: each names the one before it.
    let mut named = Digest::of(b"never asked for");
    for _ in 0..100 {
        let entry = json!({"mediaType": OCI_INDEX, "digest": named.as_str(), "size": 100});
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        let index = index.to_string().into_bytes();
        named = Digest::of(&index);
        let fields = vec![("Content-Type", OCI_INDEX.to_owned())];
        let path = format!("/app/manifests/{named}");
        liar.on(&path, Reply::Full(200, fields, index));
        liar.alias(&path, "/app/manifests/nested");
    }
    for (tag, limit) in [
        ("module", "max_module_bytes"),
        ("manifest", "max_manifest_bytes"),
        ("layer", "max_layer_bytes"),
        ("nested", "max_index_depth"),
    ] {
        let error = pull(&images, &format!("{}/app:{tag}", liar.host))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains(limit), "{error}");
    }
    assert_eq!(liar.requests("/manifests/sha256:"), 4);
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
async fn a_full_disk_is_reported_and_nothing_is_left_on_it() {
    let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
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
