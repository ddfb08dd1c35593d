//! Requests, images, registries and configurations that are wrong: a precise refusal that names the object, and
//! nothing left behind (`finish` looks).

use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{self, container};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::faulty::{Fault, FaultyRegistry};
use coracle_tests::guests;
use coracle_tests::http;
use coracle_tests::push::{Image, Packing, Pushed, digest, file};
use coracle_tests::registry::free_port;
use tonic::{Code, Status};

use crate::site::{Pod, daemon, daemon_with, images, refused, tool};

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

/// Pushes an image under a name of its own.
fn pushed(name: &str, image: &Image) -> Pushed {
    image
        .push(images().registry.host(), &format!("bad/{name}"), "v1")
        .unwrap()
}

fn with_files(files: &[(&str, &[u8])], entrypoint: &[&str]) -> Image {
    let files: Vec<_> = files
        .iter()
        .map(|(path, bytes)| file(path, 0o644, bytes))
        .collect();
    Image::wasi(&files, Packing::Gzip, entrypoint).unwrap()
}

#[tokio::test]
async fn what_is_no_module_is_refused_with_its_digest() {
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
    let words = ["env", "launch_rockets", "wasi_snapshot_preview1"];
    refused(
        first_refusal(&daemon, &pod, &pushed).await,
        Code::InvalidArgument,
        &words,
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
    config
        .linux
        .as_mut()
        .unwrap()
        .resources
        .as_mut()
        .unwrap()
        .memory_limit_in_bytes = 32 << 20;
    let refusal = match pod.create(&config).await {
        Ok(id) => daemon.cri().start(&id).await.map(|()| id),
        Err(refusal) => Err(refusal),
    };
    refused(refusal, Code::InvalidArgument, &["67108864", "33554432"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_registry_that_lies_or_dies_leaves_no_image() {
    let daemon = daemon_with(Options {
        images: "pull_idle_timeout_s = 1".into(),
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
    for (fault, name, code, word) in cases {
        let registry = FaultyRegistry::start(image.clone(), fault).unwrap();
        let reference = format!("{}/liar{name}", registry.host());
        let pull = tokio::time::timeout(Duration::from_secs(20), async {
            daemon.cri().pull(&reference).await
        });
        let refusal = pull.await.unwrap().expect_err(&format!("{fault:?}"));
        assert_eq!(refusal.code(), code, "{fault:?}: {}", refusal.message());
        assert!(
            refusal.message().contains(word),
            "{fault:?}: {}",
            refusal.message()
        );
        if word == "RegistryUnavailable" {
            assert!(
                refusal.message().starts_with(word),
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
async fn a_registry_that_is_down_and_what_it_does_not_have_are_told_apart() {
    let daemon = daemon().await;
    let cri = daemon.cri();
    let nowhere = format!("127.0.0.1:{}/app:v1", free_port().unwrap());
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

#[tokio::test]
async fn unknown_objects_are_named() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "known").await;
    let refusal = daemon.cri().run_pod_with(&daemon.pod("h"), "kata").await;
    refused(
        refusal,
        Code::InvalidArgument,
        &["kata", "coracle-wasm", "coracle-strict"],
    );
    let config = container("c", "localhost:1/no/such:v1", &[]);
    refused(
        pod.create(&config).await,
        Code::NotFound,
        &["localhost:1/no/such:v1"],
    );
    let absent = "0".repeat(64);
    let create = pod
        .cri
        .create(&absent, &container("c", tool(), &[]), &pod.config)
        .await;
    refused(create, Code::NotFound, &[&absent]);
    pod.cri.stop_pod(&pod.id).await.unwrap();
    refused(
        pod.create(&container("c", tool(), &[])).await,
        Code::FailedPrecondition,
        &[&pod.id],
    );
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

#[tokio::test]
async fn bad_mounts_are_named_and_earlier_ones_undone() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "mounts").await;
    let good = daemon.scratch().dir().join("good");
    std::fs::create_dir(&good).unwrap();
    let good = good.display().to_string();
    // A source that is absent is made, but nothing is made behind a link.
    let dangling = daemon.scratch().dir().join("dangling");
    std::os::unix::fs::symlink("/no/such/source", &dangling).unwrap();
    let dangling = dangling.display().to_string();
    let cases = [
        (dangling.as_str(), "/x", dangling.as_str()),
        ("relative", "/x", "relative"),
        (good.as_str(), "relative", "relative"),
        (good.as_str(), "", "container path"),
        ("", "/x", "host path"),
        (good.as_str(), "/a/../../b", "/a/../../b"),
        (good.as_str(), "/", "/"),
    ];
    for (host, guest, word) in cases {
        let mount = |host: &str, guest: &str| cri::Mount {
            host_path: host.into(),
            container_path: guest.into(),
            ..Default::default()
        };
        let mut config = container("c", tool(), &["show"]);
        config.mounts = vec![mount(&good, "/good"), mount(host, guest)];
        refused(pod.create(&config).await, Code::InvalidArgument, &[word]);
        assert_eq!(pod.cri.list(None).await.unwrap().len(), 0);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_rpc_says_which_field_is_missing() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "fields").await;
    let (mut runtime, mut image) = (pod.cri.runtime.clone(), pod.cri.images.clone());
    macro_rules! missing {
        ($client:ident.$call:ident($request:expr), $word:literal) => {
            refused(
                $client.$call($request).await,
                Code::InvalidArgument,
                &[$word],
            )
        };
    }
    missing!(
        runtime.run_pod_sandbox(cri::RunPodSandboxRequest::default()),
        "config"
    );
    for (strip, word) in [
        (
            (|m| *m = None) as fn(&mut Option<cri::PodSandboxMetadata>),
            "metadata",
        ),
        (|m| m.as_mut().unwrap().name.clear(), "name"),
        (|m| m.as_mut().unwrap().namespace.clear(), "namespace"),
        (|m| m.as_mut().unwrap().uid.clear(), "uid"),
    ] {
        let mut config = daemon.pod("stripped");
        strip(&mut config.metadata);
        refused(
            pod.cri.run_pod(&config).await,
            Code::InvalidArgument,
            &[word],
        );
    }
    missing!(
        runtime.stop_pod_sandbox(cri::StopPodSandboxRequest::default()),
        "pod_sandbox_id"
    );
    missing!(
        runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest::default()),
        "pod_sandbox_id"
    );
    missing!(
        runtime.pod_sandbox_status(cri::PodSandboxStatusRequest::default()),
        "pod_sandbox_id"
    );
    missing!(
        runtime.create_container(cri::CreateContainerRequest::default()),
        "pod_sandbox_id"
    );
    let config = container("c", tool(), &[]);
    let without_config = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    missing!(runtime.create_container(without_config), "config");
    for (strip, word) in [
        (
            (|c| c.metadata = None) as fn(&mut cri::ContainerConfig),
            "metadata",
        ),
        (|c| c.metadata.as_mut().unwrap().name.clear(), "name"),
        (|c| c.image = None, "image"),
        (|c| c.image.as_mut().unwrap().image.clear(), "image"),
    ] {
        let mut config = config.clone();
        strip(&mut config);
        refused(pod.create(&config).await, Code::InvalidArgument, &[word]);
    }
    missing!(
        runtime.start_container(cri::StartContainerRequest::default()),
        "container_id"
    );
    missing!(
        runtime.stop_container(cri::StopContainerRequest::default()),
        "container_id"
    );
    missing!(
        runtime.remove_container(cri::RemoveContainerRequest::default()),
        "container_id"
    );
    missing!(
        runtime.container_status(cri::ContainerStatusRequest::default()),
        "container_id"
    );
    missing!(
        runtime.reopen_container_log(cri::ReopenContainerLogRequest::default()),
        "container_id"
    );
    missing!(
        image.image_status(cri::ImageStatusRequest::default()),
        "image"
    );
    missing!(image.pull_image(cri::PullImageRequest::default()), "image");
    missing!(
        image.remove_image(cri::RemoveImageRequest::default()),
        "image"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_is_not_built_says_so_by_name() {
    let daemon = daemon().await;
    let mut runtime = daemon.cri().runtime.clone();
    macro_rules! unbuilt {
        ($call:ident, $request:ident, $name:literal) => {
            refused(
                runtime.$call(cri::$request::default()).await,
                Code::Unimplemented,
                &[$name],
            )
        };
    }
    unbuilt!(
        checkpoint_container,
        CheckpointContainerRequest,
        "CheckpointContainer"
    );
    unbuilt!(checkpoint_pod, CheckpointPodRequest, "CheckpointPod");
    unbuilt!(restore_pod, RestorePodRequest, "RestorePod");
    unbuilt!(
        list_metric_descriptors,
        ListMetricDescriptorsRequest,
        "ListMetricDescriptors"
    );
    unbuilt!(
        list_pod_sandbox_metrics,
        ListPodSandboxMetricsRequest,
        "ListPodSandboxMetrics"
    );
    unbuilt!(
        stream_pod_sandbox_metrics,
        StreamPodSandboxMetricsRequest,
        "StreamPodSandboxMetrics"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn odd_numbers_are_refused_before_anything_starts() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "numbers").await;
    let with = |change: fn(&mut cri::LinuxContainerResources)| {
        let mut config = container("c", tool(), &["show"]);
        change(config.linux.as_mut().unwrap().resources.as_mut().unwrap());
        config
    };
    type Change = fn(&mut cri::LinuxContainerResources);
    let cases: [(Change, &str); 3] = [
        (|r| r.memory_limit_in_bytes = -5, "memory_limit_in_bytes"),
        (|r| r.cpuset_cpus = "999".into(), "cpuset"),
        (|r| r.cpu_period = -1, "cpu_period"),
    ];
    for (change, word) in cases {
        let refusal = match pod.create(&with(change)).await {
            Ok(id) => pod.cri.start(&id).await,
            Err(refusal) => Err(refusal),
        };
        refused(refusal, Code::InvalidArgument, &[word]);
    }
    let mut group_only = container("c", tool(), &["show"]);
    let context = group_only
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    context.run_as_group = Some(cri::Int64Value { value: 5 });
    refused(
        pod.create(&group_only).await,
        Code::InvalidArgument,
        &["run_as_group"],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_speak_the_protocol_harms_nobody() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let daemon = daemon().await;
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nand more nonsense")
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let silent = UnixStream::connect(daemon.socket()).unwrap();
    // 17 MiB of annotations are more than a message may hold.
    let mut config = daemon.pod("huge");
    config.annotations.insert("a".into(), "x".repeat(17 << 20));
    let refusal = daemon.cri().run_pod(&config).await.unwrap_err();
    assert!(
        matches!(
            refusal.code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::Internal
        ),
        "{refusal}"
    );
    assert_eq!(daemon.cri().list_pods(None).await.unwrap(), []);
    drop(silent);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_image_name_is_no_path_and_a_pod_name_no_command() {
    let daemon = daemon().await;
    for name in ["../../etc", "a/b", "x\ny", "$(touch /tmp/x)"] {
        let mut config = daemon.pod("plain");
        config.metadata.as_mut().unwrap().name = name.into();
        // Whether such a name is taken or refused, it must come back as it was and lead nowhere.
        if let Ok(id) = daemon.cri().run_pod(&config).await {
            let status = daemon.cri().pod_status(&id).await.unwrap();
            assert_eq!(status.metadata.unwrap().name, name);
        }
    }
    let log = client::container("c", tool(), &["show"]);
    let pod = Pod::run(&daemon, "paths").await;
    let escaping = cri::ContainerConfig {
        log_path: "../../../../escaped.log".into(),
        ..log
    };
    refused(
        pod.create(&escaping).await,
        Code::InvalidArgument,
        &["log_path"],
    );
    assert_eq!(
        http::request(images().registry.host(), "GET", "/v2/", None)
            .unwrap()
            .status,
        200
    );
    daemon.finish().await.unwrap();
}
