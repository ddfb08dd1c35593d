//! What a Linux container may request of its pod, and what it gets.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use coracle_cgroup::DeviceRule;
use coracle_images::{Digest, ImageId, Kind as ImageKind, LinuxImage, RunConfig};
use coracle_lifecycle::{CapabilityConfig, Kind, SecurityContext, SecurityProfile};
use coracle_spec::IdRange;
use coracle_spec::id::PodId;
use serde_json::json;

use super::*;

#[path = "tests/floor.rs"]
mod floor;

struct Fixture {
    root: PathBuf,
    pod: PodRecord,
    id: ContainerId,
    image: Image,
    guards_limits: bool,
    handler: HandlerSettings,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

impl Fixture {
    fn new(name: &str) -> Fixture {
        let root =
            std::env::temp_dir().join(format!("coracle-linux-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("containers")).unwrap();
        let config = json!({
            "name": {"name": "p", "namespace": "n", "uid": "u", "attempt": 0},
            "hostname": "web-0", "log_directory": "", "dns": {"servers": [], "searches": [], "options": []},
            "labels": {}, "annotations": {}, "handler": "default", "cgroup_parent": "",
            "namespaces": {"network": "pod", "pid": "container", "ipc": "pod"},
        });
        let pod = json!({
            "id": PodId::random().unwrap().as_str(), "config": config, "created_at": 1, "boot": "b",
            "cgroup_parent": "/c", "range": {"base": 65536, "size": IdRange::SIZE}, "phase": "Starting",
        });
        Fixture {
            root,
            pod: serde_json::from_value(pod).unwrap(),
            id: ContainerId::random().unwrap(),
            image: image(),
            guards_limits: false,
            handler: HandlerSettings {
                pids_limit: Some(1000),
                ..HandlerSettings::default()
            },
        }
    }

    fn plan(&self, config: &ContainerConfig) -> Result<(LinuxPlan, Vec<Mount>), Error> {
        let mut mounts = Vec::new();
        let hardware = super::super::paths::with_lookup(|lookup| {
            Hardware::find(config, &DeviceSettings::default(), lookup)
        })?;
        let subject = Subject {
            handler: self.handler.clone(),
            guards_limits: self.guards_limits,
            pod: &self.pod,
            id: &self.id,
            config,
            image: &self.image,
            containers: &self.root.join("containers"),
            files: &self.root.join("files"),
        };
        plan(&subject, &hardware, &mut mounts).map(|plan| (plan, mounts))
    }

    fn secured(&self, security: SecurityContext) -> Result<LinuxPlan, Error> {
        self.plan(&requested(security)).map(|(plan, _)| plan)
    }

    fn change(&mut self, change: impl FnOnce(&mut coracle_lifecycle::SandboxConfig)) {
        change(Arc::make_mut(&mut self.pod.config));
    }
}

fn image() -> Image {
    Image {
        id: ImageId::new(Digest::of(b"config")),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size: 1,
        user: None,
        config: RunConfig {
            volumes: vec!["/data".to_owned()],
            ..RunConfig::default()
        }
        .into(),
        kind: ImageKind::Linux(LinuxImage { layers: Vec::new() }),
        pinned: false,
        spec_annotations: Default::default(),
    }
}

fn requested(security: SecurityContext) -> ContainerConfig {
    let config = json!({
        "name": {"name": "c", "attempt": 0}, "image": "i", "user_specified_image": "", "command": [], "args": [],
        "working_dir": "", "env": [], "mounts": [], "labels": {}, "annotations": {}, "log_path": "",
        "stdin": false, "stdin_once": false, "tty": false, "resources": {
            "cpu_period": 0, "cpu_quota": 0, "cpu_shares": 0, "memory_limit_bytes": 0, "oom_score_adj": 0,
            "cpuset_cpus": "", "cpuset_mems": "", "unified": {}, "memory_swap_limit_bytes": 0,
        },
        "user": {"uid": null, "username": "", "gid": null, "groups": []},
        "readonly_rootfs": false, "stop_signal": null,
    });
    let config: ContainerConfig = serde_json::from_value(config).unwrap();
    ContainerConfig { security, ..config }
}

#[test]
fn a_plain_container_gets_the_usual_jail_and_its_pods_files() {
    let fixture = Fixture::new("plain");
    let (plan, mounts) = fixture
        .plan(&requested(SecurityContext::default()))
        .unwrap();
    assert_eq!(plan.seccomp, SeccompPlan::Unconfined);
    assert_eq!(plan.jail.pid, PidNamespaceMode::Own);
    assert_eq!(plan.jail.volumes, ["/data"]);
    assert_eq!(plan.limits.devices, Some(DeviceRule::defaults()));
    assert_eq!(plan.limits.pids, Some(1000));
    assert_eq!(plan.jail.umask, 0o022);
    assert!(!plan.jail.privileged && !plan.jail.no_new_privs && !plan.jail.tty);
    let targets: Vec<_> = mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]);
    assert!(mounts.iter().all(|mount| !mount.readonly));
    let own = files::PodFiles {
        pod: &fixture.pod,
        directory: &fixture.root.join("files"),
    };
    own.write(&mounts[..2], None).unwrap();
    let name = std::fs::read_to_string(&mounts[0].source).unwrap();
    assert!(
        !mounts[2].source.exists(),
        "a file that is not mounted was made"
    );
    assert_eq!(name, "web-0\n");
    let readonly = ContainerConfig {
        readonly_rootfs: true,
        ..requested(SecurityContext::default())
    };
    assert!(
        fixture
            .plan(&readonly)
            .unwrap()
            .1
            .iter()
            .all(|mount| mount.readonly)
    );
}

#[test]
fn a_container_that_could_write_its_own_limits_is_kept_below_them() {
    let mut fixture = Fixture::new("exposure");
    let exposure = |fixture: &Fixture, seccomp: &SecurityProfile, added: &[&str]| {
        let security = SecurityContext {
            seccomp: seccomp.clone(),
            capabilities: CapabilityConfig {
                add: added.iter().map(|name| (*name).to_owned()).collect(),
                ..CapabilityConfig::default()
            },
            ..SecurityContext::default()
        };
        fixture.secured(security).unwrap().exposure
    };
    let (open, shut) = (SecurityProfile::Unset, SecurityProfile::Default);
    assert_eq!(exposure(&fixture, &open, &[]), Exposure::Inner);
    assert_eq!(
        exposure(&fixture, &SecurityProfile::Unconfined, &[]),
        Exposure::Inner
    );
    assert_eq!(exposure(&fixture, &shut, &[]), Exposure::Guarded);
    assert_eq!(exposure(&fixture, &shut, &["SYS_ADMIN"]), Exposure::Inner);
    fixture.handler.no_user_namespaces = true;
    assert_eq!(exposure(&fixture, &open, &[]), Exposure::Guarded);
    assert_eq!(exposure(&fixture, &open, &["SYS_ADMIN"]), Exposure::Inner);
    fixture.handler.no_user_namespaces = false;
    fixture.guards_limits = true;
    assert_eq!(exposure(&fixture, &open, &[]), Exposure::Guarded);
    fixture.guards_limits = false;
    let ids = |outside| json!({"inside": 0, "outside": outside, "count": 65_536});
    let userns = json!({"uid": ids(1 << 20), "gid": ids(1 << 20)});
    fixture.change(|config| config.userns = Some(serde_json::from_value(userns.clone()).unwrap()));
    assert_eq!(exposure(&fixture, &open, &[]), Exposure::Guarded);
    fixture.change(|config| config.privileged = true);
    let security = SecurityContext {
        privileged: true,
        ..SecurityContext::default()
    };
    assert_eq!(
        fixture.secured(security).unwrap().exposure,
        Exposure::Privileged
    );
}

#[test]
fn privileged_needs_a_privileged_pod_and_lifts_confinement() {
    let mut fixture = Fixture::new("privileged");
    let security = SecurityContext {
        privileged: true,
        seccomp: coracle_lifecycle::SecurityProfile::Default,
        masked_paths: vec!["/proc/kcore".to_owned()],
        readonly_paths: vec!["/proc/sys".to_owned()],
        ..SecurityContext::default()
    };
    let error = fixture.secured(security.clone()).unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.to_string().contains("privileged"));
    let confined = SecurityContext {
        privileged: false,
        ..security.clone()
    };
    let plan = fixture.secured(confined).unwrap();
    assert_eq!(plan.jail.masked_paths, ["/proc/kcore"]);
    assert_eq!(plan.jail.readonly_paths, ["/proc/sys"]);
    assert_eq!(plan.seccomp, SeccompPlan::Default);
    fixture.change(|pod| pod.privileged = true);
    let plan = fixture.secured(security).unwrap();
    assert!(plan.jail.privileged && !plan.jail.devices.is_empty());
    assert_eq!(plan.limits.devices, Some(DeviceRule::everything()));
    assert!(plan.jail.masked_paths.is_empty() && plan.jail.readonly_paths.is_empty());
    assert_eq!(plan.seccomp, SeccompPlan::Unconfined);
}

#[test]
fn pod_and_container_decide_which_processes_are_visible() {
    let mut fixture = Fixture::new("pid");
    let space = |fixture: &Fixture, pid| {
        let security = SecurityContext {
            pid,
            ..SecurityContext::default()
        };
        fixture.secured(security).map(|plan| plan.jail.pid)
    };
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Unset).unwrap(),
        PidNamespaceMode::Own
    );
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Container).unwrap(),
        PidNamespaceMode::Own
    );
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Pod).unwrap(),
        PidNamespaceMode::Pod
    );
    assert!(space(&fixture, PidNamespaceConfig::Node).is_err());
    let other = ContainerId::random().unwrap();
    let target = || PidNamespaceConfig::Target(other.to_string());
    let error = space(&fixture, target()).unwrap_err();
    assert!(error.to_string().contains(other.as_str()), "{error}");
    std::fs::create_dir_all(fixture.root.join("containers").join(other.as_str())).unwrap();
    assert_eq!(
        space(&fixture, target()).unwrap(),
        PidNamespaceMode::Target(other.clone())
    );
    for odd in ["", "..", "../containers", fixture.id.as_str()] {
        assert!(
            space(&fixture, PidNamespaceConfig::Target(odd.to_owned())).is_err(),
            "{odd:?}"
        );
    }
    fixture.change(|pod| pod.namespaces.pid = NamespaceMode::Node);
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Node).unwrap(),
        PidNamespaceMode::Node
    );
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Pod).unwrap(),
        PidNamespaceMode::Node
    );
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Unset).unwrap(),
        PidNamespaceMode::Node
    );
    assert_eq!(
        space(&fixture, PidNamespaceConfig::Container).unwrap(),
        PidNamespaceMode::Own
    );
}

#[test]
fn a_container_has_no_more_of_the_node_than_its_pod() {
    let mut fixture = Fixture::new("node");
    let network = SecurityContext {
        node_network: true,
        ..SecurityContext::default()
    };
    let ipc = SecurityContext {
        node_ipc: true,
        ..SecurityContext::default()
    };
    for (security, name) in [(network.clone(), "network"), (ipc, "ipc")] {
        let error = fixture.secured(security).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    fixture.change(|pod| pod.namespaces.network = NamespaceMode::Node);
    assert!(fixture.secured(network).is_ok());
}

#[test]
fn a_container_has_its_pods_users() {
    let mut fixture = Fixture::new("users");
    let map = |outside| coracle_lifecycle::IdMapping {
        inside: 0,
        outside,
        count: 65_536,
    };
    let users = |outside| UserNamespaceConfig {
        uid: map(outside),
        gid: map(outside),
    };
    let with = |userns| SecurityContext {
        userns,
        ..SecurityContext::default()
    };
    assert!(fixture.secured(with(Some(None))).is_ok());
    let error = fixture
        .secured(with(Some(Some(users(70_000)))))
        .unwrap_err();
    assert!(error.to_string().contains("70000"), "{error}");
    fixture.change(|pod| pod.userns = Some(users(70_000)));
    assert!(fixture.secured(with(Some(Some(users(70_000))))).is_ok());
    assert!(fixture.secured(with(None)).is_ok());
    assert!(fixture.secured(with(Some(None))).is_err());
    assert!(fixture.secured(with(Some(Some(users(80_000))))).is_err());
}

#[test]
fn an_id_outside_the_pods_map_is_refused() {
    let mut fixture = Fixture::new("ids");
    let who = |uid, gid, groups: &[u32]| Identity {
        uid,
        gid,
        groups: groups.to_vec(),
        range: fixture.pod.range,
    };
    let (inside, user) = (who(99, 99, &[0]), who(100, 0, &[]));
    let (group, added) = (who(0, 100, &[]), who(0, 0, &[5, 100]));
    assert!(has_ids(&fixture.pod, &user).is_ok());
    let map = coracle_lifecycle::IdMapping {
        inside: 0,
        outside: 70_000,
        count: 100,
    };
    fixture.change(|pod| pod.userns = Some(UserNamespaceConfig { uid: map, gid: map }));
    assert!(has_ids(&fixture.pod, &inside).is_ok());
    for (who, expected) in [
        (user, "user id 100"),
        (group, "group id 100"),
        (added, "group id 100"),
    ] {
        let text = has_ids(&fixture.pod, &who).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}
