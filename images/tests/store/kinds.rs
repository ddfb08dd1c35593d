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
