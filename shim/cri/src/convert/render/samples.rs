//! Snapshots for tests of this module and its neighbours, made from the requests that lead to them.

use std::sync::Arc;

use super::super::{container_config, sandbox_config};
use super::*;
use crate::policy::tests::usual;
use coracle_lifecycle::Grants;

/// A ready sandbox whose id is 64 times `digit`.
pub(in crate::convert) fn pod(digit: char) -> PodView {
    let metadata = cri::PodSandboxMetadata {
        name: "web".into(),
        uid: "u1".into(),
        namespace: "default".into(),
        attempt: 3,
    };
    let config = cri::PodSandboxConfig {
        metadata: Some(metadata),
        labels: [("app".to_owned(), "web ü\n".to_owned())].into(),
        ..Default::default()
    };
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: "coracle".into(),
    };
    PodView {
        id: digit.to_string().repeat(64).parse().unwrap(),
        config: Arc::new(sandbox_config(request, &usual()).unwrap()),
        ready: true,
        created_at: 1_700_000_000_000_000_001,
        ips: vec!["10.88.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        cgroup_parent: "/kubepods".into(),
    }
}

/// A deletion of the sandbox of [`pod`] at `at`.
pub(crate) fn event(at: i64) -> Arc<Event> {
    let pod = pod('1');
    let (container, containers) = (pod.id.to_string(), vec![container('a', '1').into()]);
    Arc::new(Event {
        kind: EventKind::Deleted,
        container,
        at,
        pod: pod.into(),
        containers,
    })
}

/// The request that [`container`] was made from.
fn sample_config() -> cri::ContainerConfig {
    let limits = cri::LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        ..Default::default()
    };
    let image = cri::ImageSpec {
        image: "sha256:00".into(),
        user_specified_image: "hello:1".into(),
        ..Default::default()
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: "c".into(),
            attempt: 1,
        }),
        image: Some(image),
        envs: vec![cri::KeyValue {
            key: "TOKEN".into(),
            value: b"s3cret".to_vec(),
        }],
        mounts: sample_mounts(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(limits),
            security_context: None,
        }),
        ..Default::default()
    }
}

/// A mount of an image, all of it.
pub(in crate::convert) fn image_mount() -> cri::Mount {
    cri::Mount {
        container_path: "/models".into(),
        readonly: true,
        image: Some(cri::ImageSpec {
            image: "files:1".into(),
            user_specified_image: "files".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A mount of a file on the host, and one of an image.
fn sample_mounts() -> Vec<cri::Mount> {
    let file = cri::Mount {
        container_path: "/dev/termination-log".into(),
        host_path: "/var/lib/kubelet/x".into(),
        propagation: 1,
        ..Default::default()
    };
    let image = cri::Mount {
        image_sub_path: "small".into(),
        ..image_mount()
    };
    vec![file, image]
}

/// An exited container of sandbox `pod` whose id is 64 times `digit`.
pub(in crate::convert) fn container(digit: char, pod: char) -> ContainerView {
    let config = Some(sample_config());
    let request = cri::CreateContainerRequest {
        config,
        ..Default::default()
    };
    ContainerView {
        id: digit.to_string().repeat(64).parse().unwrap(),
        pod: pod.to_string().repeat(64).parse().unwrap(),
        config: Arc::new(container_config(request, &Grants::default(), "").unwrap()),
        image_id: "sha256:00".into(),
        state: ContainerState::Exited,
        created_at: 10,
        started_at: 20,
        finished_at: 30,
        exit_code: 137,
        reason: "OOMKilled".into(),
        message: String::new(),
        log_path: "/var/log/pods/x/c/0.log".into(),
        uid: 1000,
        gid: 2000,
        groups: vec![3000],
        image_volumes: vec!["sha256:11".into()],
        stop_signal: libc::SIGTERM,
        cgroup: "/kubepods/x".into(),
    }
}
