//! Registries: wrong bytes, lost connections, no answer, content that the disk has no room for.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::Options;
use coracle_tests::faulty_registry::{Fault, FaultyRegistry};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, digest, file};
use coracle_tests::registry::ClosedPort;
use tonic::Code;

use super::{pushed, with_files};
use crate::site::{Pod, daemon, daemon_with, images, refused};

#[tokio::test]
async fn a_registry_that_sends_wrong_bytes_or_dies_leaves_no_image() {
    let daemon = daemon_with(Options {
        images: "pull_idle_timeout_s = 5".into(),
        ..Options::default()
    })
    .await;
    let image = with_files(
        &[
            ("m.wasm", &guests::nothing("liar").unwrap()),
            ("pad", &[7; 65536]),
        ],
        &["/m.wasm"],
    );
    let layer = digest(&image.layers[0].1);
    let by_digest = format!("@{}", digest(&image.manifest()));
    let cases = [
        (Fault::WrongLayer, ":v1", Code::DataLoss, layer.as_str()),
        (
            Fault::WrongManifest,
            by_digest.as_str(),
            Code::DataLoss,
            "sha256:",
        ),
        (
            Fault::DieMidLayer,
            ":v1",
            Code::Unknown,
            "RegistryUnavailable",
        ),
        (
            Fault::StallMidLayer,
            ":v1",
            Code::Unknown,
            "RegistryUnavailable",
        ),
        (
            Fault::ServerError,
            ":v1",
            Code::Unknown,
            "RegistryUnavailable",
        ),
        (Fault::Unauthorized, ":v1", Code::Unauthenticated, "liar"),
    ];
    for (fault, name, code, expected) in cases {
        let registry = FaultyRegistry::start(image.clone(), fault).unwrap();
        let reference = format!("{}/liar{name}", registry.host());
        let pull = tokio::time::timeout(TIMEOUT, async { daemon.cri().pull(&reference).await });
        let refusal = pull.await.unwrap().expect_err(&format!("{fault:?}"));
        assert_eq!(refusal.code(), code, "{fault:?}: {}", refusal.message());
        assert!(
            refusal.message().contains(expected),
            "{fault:?}: {}",
            refusal.message()
        );
        if expected == "RegistryUnavailable" {
            assert!(
                refusal.message().starts_with(expected),
                "kubelet wants it first: {}",
                refusal.message()
            );
        }
        assert_eq!(
            daemon.cri().image(&reference).await.unwrap(),
            None,
            "{fault:?}"
        );
    }
    // An honest registry with the same content is believed afterwards.
    let honest = FaultyRegistry::start(image, Fault::None).unwrap();
    daemon
        .cri()
        .pull(&format!("{}/liar:v1", honest.host()))
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_down_and_a_missing_image_are_different_errors() {
    let daemon = daemon().await;
    let cri = daemon.cri();
    let nobody = ClosedPort::take().unwrap();
    let nowhere = format!("{}/app:v1", nobody.host());
    let refusal = cri.pull(&nowhere).await.expect_err("nobody is there");
    assert!(
        refusal.message().starts_with("RegistryUnavailable"),
        "{refusal}"
    );
    assert!(refusal.message().contains(&nowhere), "{refusal}");
    let unknown = format!("{}/never/pushed:v1", images().registry.host());
    refused(cri.pull(&unknown).await, Code::NotFound, &["never/pushed"]);
    for odd in [
        "",
        "docker.io/UPPER:v1",
        "a b",
        "host/name:bad tag",
        "x@sha256:short",
    ] {
        assert_eq!(
            cri.pull(odd).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{odd:?}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_layer_larger_than_the_disk_is_refused_and_the_space_comes_back() {
    let options = Options {
        root_bytes: Some(32 << 20),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let pod = Pod::run(&daemon, "alive").await;
    let sleeper = pod.tool(&["sleep"]).await;
    let noise: Vec<u8> = (0..48_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let module = guests::nothing("full").unwrap();
    let files = [file("noise", 0o644, &noise), file("m.wasm", 0o644, &module)];
    let image = Image::wasi(&files, Packing::Plain, &["/m.wasm"]).unwrap();
    let registry = FaultyRegistry::start(image, Fault::None).unwrap();
    let reference = format!("{}/full:v1", registry.host());
    refused(
        daemon.cri().pull(&reference).await,
        Code::ResourceExhausted,
        &["full:v1"],
    );
    assert_eq!(daemon.cri().image(&reference).await.unwrap(), None);
    // The pod lives, and there is room again for a small image.
    assert_eq!(
        pod.cri.status(&sleeper).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    let small = pushed(
        "small",
        &with_files(
            &[("m.wasm", &guests::nothing("small").unwrap())],
            &["/m.wasm"],
        ),
    );
    daemon.cri().pull(&small.reference).await.unwrap();
    daemon.finish().await.unwrap();
}
