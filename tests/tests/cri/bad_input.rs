//! Requests, images, registries and configurations that are wrong: a precise refusal that names the object, and
//! nothing left behind (`finish` looks).

mod broken_images;
mod failing_disks;
mod images;
mod lying_registries;
mod registries;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{self, TIMEOUT, container};
use coracle_tests::http;
use coracle_tests::push::{Image, Packing, Pushed, file};
use tonic::Code;

use crate::site::{Pod, daemon, images, refused, tool};

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
    for (host, guest, expected) in cases {
        let mount = |host: &str, guest: &str| cri::Mount {
            host_path: host.into(),
            container_path: guest.into(),
            ..Default::default()
        };
        let mut config = container("c", tool(), &["show"]);
        config.mounts = vec![mount(&good, "/good"), mount(host, guest)];
        refused(
            pod.create(&config).await,
            Code::InvalidArgument,
            &[expected],
        );
        assert_eq!(pod.cri.list(None).await.unwrap().len(), 0);
    }
    daemon.finish().await.unwrap();
}

/// Makes an empty call, which is refused with the name of the field that it lacks.
macro_rules! missing {
    ($client:ident.$call:ident($request:ident), $field:literal) => {
        refused(
            $client.$call(cri::$request::default()).await,
            Code::InvalidArgument,
            &[$field],
        )
    };
}

#[tokio::test]
async fn every_rpc_names_the_missing_field() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "fields").await;
    let (mut runtime, mut image) = (pod.cri.runtime.clone(), pod.cri.images.clone());
    missing!(runtime.run_pod_sandbox(RunPodSandboxRequest), "config");
    missing!(
        runtime.stop_pod_sandbox(StopPodSandboxRequest),
        "pod_sandbox_id"
    );
    missing!(
        runtime.remove_pod_sandbox(RemovePodSandboxRequest),
        "pod_sandbox_id"
    );
    missing!(
        runtime.pod_sandbox_status(PodSandboxStatusRequest),
        "pod_sandbox_id"
    );
    missing!(
        runtime.create_container(CreateContainerRequest),
        "pod_sandbox_id"
    );
    missing!(
        runtime.start_container(StartContainerRequest),
        "container_id"
    );
    missing!(runtime.stop_container(StopContainerRequest), "container_id");
    missing!(
        runtime.remove_container(RemoveContainerRequest),
        "container_id"
    );
    missing!(
        runtime.container_status(ContainerStatusRequest),
        "container_id"
    );
    missing!(
        runtime.reopen_container_log(ReopenContainerLogRequest),
        "container_id"
    );
    missing!(image.image_status(ImageStatusRequest), "image");
    missing!(image.pull_image(PullImageRequest), "image");
    missing!(image.remove_image(RemoveImageRequest), "image");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_config_that_lacks_a_field_is_refused_with_its_name() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "fields").await;
    for (strip, field) in [
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
        let outcome = pod.cri.run_pod(&config).await;
        refused(outcome, Code::InvalidArgument, &[field]);
    }
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let outcome = pod.cri.runtime.clone().create_container(request).await;
    refused(outcome, Code::InvalidArgument, &["config"]);
    for (strip, field) in [
        (
            (|c| c.metadata = None) as fn(&mut cri::ContainerConfig),
            "metadata",
        ),
        (|c| c.metadata.as_mut().unwrap().name.clear(), "name"),
        (|c| c.image = None, "image"),
        (|c| c.image.as_mut().unwrap().image.clear(), "image"),
    ] {
        let mut config = container("c", tool(), &[]);
        strip(&mut config);
        let outcome = pod.create(&config).await;
        refused(outcome, Code::InvalidArgument, &[field]);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn unimplemented_rpcs_name_themselves() {
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
    for (change, expected) in cases {
        let refusal = match pod.create(&with(change)).await {
            Ok(id) => pod.cri.start(&id).await,
            Err(refusal) => Err(refusal),
        };
        refused(refusal, Code::InvalidArgument, &[expected]);
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
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
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
