//! What an image runs: WebAssembly or Linux, which module, and what is refused.

use coracle_images::{Digest, ErrorKind, Kind};
use serde_json::json;

use super::{GZIP, ZSTD, content, open, pull, wasm};
use crate::support::{MODULE, Parts, Registry, Scratch, TAR, tar};

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
    let arch = match cfg!(target_arch = "aarch64") {
        true => "arm64",
        false => "amd64",
    };
    let (cmd, none) = (|program: &str| json!({"Cmd": [program]}), json!({}));
    let shell = files(&[("bin/sh", b"\x7fELF")]);
    let (a, x, y) = (one("a"), one("x/y.wasm"), one("y.wasm"));
    for (tag, (os, arch), config, layers, expected) in [
        ("sh", ("linux", arch), cmd("/bin/sh"), shell, "linux"),
        ("none", ("linux", arch), none, vec![], "linux"),
        ("smart", ("linux", arch), cmd("/a"), a, "/a"),
        ("only", ("wasip1", "wasm"), json!(null), x, "/x/y.wasm"),
        ("bare", ("wasi", "wasm32"), cmd("y.wasm"), y, "/y.wasm"),
    ] {
        let parts = Parts::archives(os, arch, config, &layers);
        registry.image("kinds", tag, &parts).await;
        let name = format!("{}/kinds:{tag}", registry.host);
        let image = pull(&images, &name).await.unwrap();
        match &image.kind {
            Kind::Linux(_) => assert_eq!(expected, "linux", "{tag}"),
            Kind::Artifact(_) => panic!("{tag} is an artifact"),
            Kind::Wasm(wasm) => assert_eq!(wasm.guest_path.as_deref(), Some(expected), "{tag}"),
        }
    }
}

/// A layer of these files.
fn files(files: &[(&str, &[u8])]) -> Vec<(&'static str, Vec<u8>)> {
    vec![(GZIP, tar(files))]
}

/// A layer of one module.
fn one(path: &str) -> Vec<(&'static str, Vec<u8>)> {
    files(&[(path, MODULE)])
}

/// Images of which it is not clear what runs, or that do not run here, and a part of the reason.
fn refused() -> Vec<(&'static str, Parts, &'static str)> {
    let wasi = |config, layers: &[(&'static str, Vec<u8>)]| {
        Parts::archives("wasi", "wasm", config, layers)
    };
    let artifact = |layers: usize| {
        let mut parts = Parts::artifact(MODULE);
        parts.layers = vec![parts.layers[0].clone(); layers];
        parts
    };
    let mut lying = wasi(json!({}), &one("a.wasm"));
    let config = String::from_utf8(lying.config.1).unwrap();
    lying.config.1 = config.replace("sha256:", "sha256:0").into_bytes();
    let elf = wasi(json!({"Cmd": ["/a"]}), &files(&[("a", b"\x7fELF")]));
    let absent = wasi(json!({"Cmd": ["/b"]}), &one("a"));
    let empty = wasi(json!({}), &files(&[("a", b"")]));
    let several = wasi(json!({}), &files(&[("a.wasm", MODULE), ("b.wasm", MODULE)]));
    let foreign = Parts::archives("plan9", "mips", json!({}), &files(&[("a", b"")]));
    let precompiled = Parts::artifact(b"\x7fELF precompiled");
    vec![
        ("two", artifact(2), "with `coracle pack --plug`"),
        ("zero", artifact(0), "holds 0 among 0 layers"),
        ("elf", precompiled, "precompiled modules are refused"),
        (
            "text",
            Parts::artifact(b"(module)"),
            "does not begin with \\0asm",
        ),
        ("elf-file", elf, "precompiled"),
        ("absent", absent, "no such file"),
        ("empty", empty, "holds no .wasm file"),
        (
            "several",
            several,
            "holds 2 .wasm files, set one of them: /a.wasm, /b.wasm",
        ),
        ("foreign", foreign, "plan9/mips"),
        ("diff", lying, "diff id"),
    ]
}

#[tokio::test]
async fn an_image_that_does_not_say_what_runs_is_refused_and_leaves_nothing() {
    let (registry, scratch) = (Registry::start().await, Scratch::new());
    let images = open(&scratch.0).await;
    let good = Parts::archives("wasi", "wasm", json!({}), &one("good.wasm"));
    registry.image("kinds", "good", &good).await;
    let name = |tag| format!("{}/kinds:{tag}", registry.host);
    pull(&images, &name("good")).await.unwrap();
    let state = || {
        (
            images.list().len(),
            images.fs_info(),
            content(&scratch.0).len(),
        )
    };
    let before = state();
    for (tag, parts, expected) in refused() {
        registry.image("kinds", tag, &parts).await;
        let error = pull(&images, &name(tag)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{tag}: {error}");
        assert!(error.to_string().contains(expected), "{tag}: {error}");
        assert_eq!(state(), before, "{tag}");
    }
}
