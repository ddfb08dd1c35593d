//! Images: files that are no modules, imports that are missing, entrypoints that are unclear.

use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::push::{Image, Pushed, file};
use tonic::{Code, Status};

use super::{pushed, with_files};
use crate::linux::shell::resources;
use crate::site::{Pod, daemon, refused};

/// Pulls an image and runs a container of it, up to the first refusal.
async fn first_refusal(daemon: &Daemon, pod: &Pod, pushed: &Pushed) -> Result<String, Status> {
    daemon.cri().pull(&pushed.reference).await?;
    let id = pod.create(&container("c", &pushed.reference, &[])).await?;
    match daemon.cri().start(&id).await {
        Ok(()) => Ok(id),
        Err(refusal) => {
            daemon.cri().remove(&id).await?;
            Err(refusal)
        }
    }
}

#[tokio::test]
async fn files_that_are_no_modules_are_refused_with_their_digest() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "bad").await;
    let whole = guests::tool().unwrap();
    let truncated = &whole[..whole.len() / 2];
    let precompiled = b"\x7fELF\x02\x01\x01\xc8 not ours to run";
    for (name, bytes) in [
        ("text", &b"(module)"[..]),
        ("empty", b""),
        ("truncated", truncated),
        ("elf", precompiled),
    ] {
        for image in [
            Image::artifact(bytes),
            with_files(&[("m.wasm", bytes)], &["/m.wasm"]),
        ] {
            let pushed = pushed(&format!("not-a-module-{name}"), &image);
            let refusal = first_refusal(&daemon, &pod, &pushed).await;
            refused(refusal, Code::InvalidArgument, &["module"]);
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_missing_import_is_named_beside_what_there_is() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "bad").await;
    let pushed = pushed(
        "import",
        &Image::artifact(&guests::wat("missing-import").unwrap()),
    );
    let expected = ["env", "launch_rockets", "wasi_snapshot_preview1"];
    refused(
        first_refusal(&daemon, &pod, &pushed).await,
        Code::InvalidArgument,
        &expected,
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_image_must_say_which_module_runs() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "bad").await;
    let module = guests::nothing("two").unwrap();
    let mut two_layers = Image::artifact(&module);
    two_layers.layers.push(two_layers.layers[0].clone());
    let mut no_layer = Image::artifact(&module);
    no_layer.layers.clear();
    let cases = [
        ("two-layers", two_layers),
        ("no-layer", no_layer),
        (
            "two-files",
            with_files(&[("a.wasm", &module), ("b.wasm", &module)], &[]),
        ),
        ("no-file", with_files(&[("readme", b"hello")], &[])),
        (
            "absent-file",
            with_files(&[("a.wasm", &module)], &["/b.wasm"]),
        ),
    ];
    for (name, image) in cases {
        let pushed = pushed(name, &image);
        let refusal = first_refusal(&daemon, &pod, &pushed).await.expect_err(name);
        assert_eq!(
            refusal.code(),
            Code::InvalidArgument,
            "{name}: {}",
            refusal.message()
        );
        assert!(
            refusal.message().to_lowercase().contains("wasm"),
            "{name}: {refusal}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_limit_below_the_modules_first_memory_is_refused_before_it_runs() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "bad").await;
    let pushed = pushed(
        "memory",
        &Image::artifact(&guests::wat("big-memory").unwrap()),
    );
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let mut config = container("c", &pushed.reference, &[]);
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let refusal = match pod.create(&config).await {
        Ok(id) => daemon.cri().start(&id).await.map(|()| id),
        Err(refusal) => Err(refusal),
    };
    refused(refusal, Code::InvalidArgument, &["67108864", "33554432"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_handler_for_wasm_refuses_linux() {
    let daemon = daemon().await;
    let linux = Image::linux(
        &[file("x", 0o755, &guests::linux_workload().unwrap())],
        &["/x"],
    )
    .unwrap();
    let pushed = pushed("linux", &linux);
    let config = daemon.pod("strict");
    let cri = daemon.cri();
    let id = cri.run_pod_with(&config, "coracle-wasm").await.unwrap();
    let refusal = match cri.pull(&pushed.reference).await {
        Ok(_) => {
            cri.create(&id, &container("c", &pushed.reference, &[]), &config)
                .await
        }
        Err(refusal) => Err(refusal),
    };
    let refusal = refusal.unwrap_err();
    assert!(
        matches!(
            refusal.code(),
            Code::InvalidArgument | Code::FailedPrecondition
        ),
        "{refusal}"
    );
    assert!(
        refusal.message().to_lowercase().contains("linux"),
        "{refusal}"
    );
    daemon.finish().await.unwrap();
}
