//! Annotations that other runtimes use to choose WebAssembly, and imports that no runtime can give.

use std::collections::BTreeMap;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::push::{Image, file};
use tonic::Code;

use crate::site::{Pod, daemon, images, refused};

/// An image for Linux that would run a native program, and has the multi-verb guest as a module beside it.
async fn mixed_image(daemon: &Daemon) -> String {
    let (native, module) = (guests::linux_tool().unwrap(), guests::tool().unwrap());
    let files = [
        file("bin/tool", 0o755, &native),
        file("app/tool.wasm", 0o755, &module),
    ];
    let image = Image::linux(&files, &["/bin/tool"]).unwrap();
    let pushed = image
        .push(images().registry.host(), "variants", "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    pushed.reference
}

/// A container of that image: its command, its verb.
fn config(name: &str, image: &str, command: &str, verb: &[&str]) -> cri::ContainerConfig {
    let mut config = container(name, image, verb);
    config.command = vec![command.to_owned()];
    config
}

fn annotated(daemon: &Daemon, name: &str, key: &str, value: &str) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    config.annotations.insert(key.to_owned(), value.to_owned());
    config
}

#[tokio::test]
async fn annotations_of_other_runtimes_choose_by_program() {
    let daemon = daemon().await;
    let image = mixed_image(&daemon).await;
    let native = config("native", &image, "/bin/tool", &["exit", "7"]);
    let module = config("module", &image, "/app/tool.wasm", &["trap"]);
    let smart = [
        ("module.wasm.image/variant", "compat-smart"),
        ("run.oci.handler", "wasm-smart"),
    ];
    for (number, (key, value)) in smart.into_iter().enumerate() {
        let pod = annotated(&daemon, &format!("smart{number}"), key, value);
        let pod = Pod::run_config(&daemon, pod).await;
        let (status, _) = pod.finish(&daemon, &native).await;
        assert_eq!(status.exit_code, 7, "{key}: {}", status.message);
        let (status, _) = pod.finish(&daemon, &module).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (134, "WasmTrap"),
            "{key}: {}",
            status.message
        );
    }
    let only = [
        ("module.wasm.image/variant", "compat"),
        ("run.oci.handler", "wasm"),
    ];
    for (number, (key, value)) in only.into_iter().enumerate() {
        let pod = annotated(&daemon, &format!("only{number}"), key, value);
        let pod = Pod::run_config(&daemon, pod).await;
        let (status, _) = pod.finish(&daemon, &module).await;
        assert_eq!(status.reason, "WasmTrap", "{key}");
        refused(
            pod.create(&native).await,
            Code::InvalidArgument,
            &["/bin/tool", key, "smart"],
        );
    }
    // The container's own annotation wins over its pod's; without any, the image decides, and the kernel says no.
    let pod = annotated(&daemon, "own", "run.oci.handler", "wasm");
    let pod = Pod::run_config(&daemon, pod).await;
    let mut own = native.clone();
    own.annotations = BTreeMap::from([("run.oci.handler".to_owned(), "wasm-smart".to_owned())]);
    let (status, _) = pod.finish(&daemon, &own).await;
    assert_eq!(status.exit_code, 7);
    let pod = Pod::run(&daemon, "none").await;
    let id = pod.create(&module).await.unwrap();
    let refusal = pod.cri.start(&id).await.unwrap_err();
    for expected in [
        "WebAssembly module",
        "module.wasm.image/variant=compat-smart",
    ] {
        assert!(
            refusal.message().contains(expected),
            "{}",
            refusal.message()
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_missing_import_of_a_component_is_named_and_wasi_0_3_by_its_name() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "imports").await;
    let main = r#"(core module $main (func (export "run") (result i32) (i32.const 0)))
        (core instance $main (instantiate $main))
        (func $run (result (result)) (canon lift (core func $main "run")))
        (instance $cli (export "run" (func $run)))"#;
    let foreign: String = (0..12)
        .map(|number| format!("(import \"acme:shop/part{number}@1.0.0\" (instance))"))
        .collect();
    let newer = r#"(import "wasi:cli/stdout@0.3.0" (instance)) (import "wasi:clocks/system-clock@0.3.0" (instance))"#;
    let cases = [
        (
            "foreign",
            format!(
                r#"(component {foreign} {main} (export "wasi:cli/run@0.2.0" (instance $cli)))"#
            ),
            &[
                "acme:shop/part0@1.0.0",
                "acme:shop/part9@1.0.0",
                "and 2 more",
                "wasi:cli",
            ][..],
        ),
        (
            "newer",
            format!(r#"(component {newer} {main} (export "wasi:cli/run@0.3.0" (instance $cli)))"#),
            &["WASI 0.3", "WASI 0.2", "handlers.coracle.wasi_p3 = true"],
        ),
    ];
    for (name, text, expected) in cases {
        let image = Image::artifact(&guests::module(&text).unwrap());
        let pushed = image.push(images().registry.host(), name, "v1").unwrap();
        daemon.cri().pull(&pushed.reference).await.unwrap();
        refused(
            pod.create(&container(name, &pushed.reference, &[])).await,
            Code::InvalidArgument,
            expected,
        );
    }
    daemon.finish().await.unwrap();
}
