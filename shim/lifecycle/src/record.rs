//! The records of pods and containers on disk, and the snapshots made from them.
//!
//! Written by: drivers through [`super::store`]. Read by: recovery. Shown by: [`super::view::StateCache`].
//! Invariants: a record holds everything that a later daemon needs to continue; fields are only added, with a default.
//! Must not know: handles of processes and sockets.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_cgroup::{Exposure, Limits};
use coracle_spec::id::{ContainerId, PodId};
use coracle_spec::{
    Diagnosis, Floor, Hook, HttpServer, IdRange, Identity, LinuxJail, Mount, NodeHooks,
    ResourceLimit, Spawn, WasmKind, WasmNetwork,
};
use serde::{Deserialize, Serialize};

use super::config::{ContainerConfig, HandlerSettings, NamespaceMode, SandboxConfig};
use super::error::{Error, Kind};
use super::state::{ContainerPhase, Ended, PodPhase};
use super::view::{ContainerKind, ContainerState, ContainerView, PodView, UNREADABLE_REASON};

/// A pod on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: PodId,
    /// The request.
    #[serde(with = "shared")]
    pub config: Arc<SandboxConfig>,
    /// Nanoseconds since 1970 UTC.
    pub created_at: i64,
    /// The boot that it was created in, from `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Parent of its cgroups: the kubelet's, else the configured one.
    pub cgroup_parent: String,
    /// Its host ids.
    pub range: IdRange,
    /// SELinux level of its containers: the kubelet's, or one with a pair of categories that no other pod has. `None`
    /// on a kernel without SELinux, and for pods of builds without levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux_level: Option<String>,
    /// The settings of its handler when it was created, for the time when the configuration has no such handler any more.
    /// `None` for a built-in handler, which it always has, and for pods of builds that recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler_settings: Option<Box<HandlerSettings>>,
    /// Its phase.
    pub phase: PodPhase,
}

/// A container on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// The request.
    #[serde(with = "shared")]
    pub config: Arc<ContainerConfig>,
    /// The request as it came, if plugins changed it: what a retry is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<Box<ContainerConfig>>,
    /// The config resolved against image and node.
    #[serde(with = "shared")]
    pub plan: Arc<Plan>,
    /// Nanoseconds since 1970 UTC.
    pub created_at: i64,
    /// Its phase.
    pub phase: ContainerPhase,
}

/// A container config resolved against image and node: everything that a start needs, decided once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `Image.id`.
    pub image_id: String,
    /// `Image.id` of the images that it mounts, in the order of the config's mounts; each is leased to it, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<String>,
    /// Unpacked image layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Arguments, the program's own name first.
    pub args: Vec<String>,
    /// Environment: the image's, then the config's.
    pub env: Vec<(String, String)>,
    /// Absolute path in the container.
    pub working_dir: String,
    /// Mounts, parents first.
    pub mounts: Vec<Mount>,
    /// The user and groups that it runs as.
    pub identity: Identity,
    /// Number of its stop signal.
    pub stop_signal: i32,
    /// Absolute path of its log; empty discards output.
    pub log_path: String,
    /// Its cgroup.
    pub cgroup: String,
    /// Memory limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// How its process is created.
    pub spawn: Spawn,
    /// The part that only one kind of container has.
    #[serde(flatten)]
    pub payload: Payload,
}

/// The two kinds of containers. Serialized without a tag: the fields of a record tell the kind, so that records of
/// builds that knew only Wasm are read as Wasm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Payload {
    /// WebAssembly.
    Wasm(WasmPlan),
    /// A program of a Linux image.
    Linux(LinuxPlan),
}

impl From<&Payload> for ContainerKind {
    fn from(payload: &Payload) -> ContainerKind {
        match payload {
            Payload::Wasm(_) => ContainerKind::Wasm,
            Payload::Linux(_) => ContainerKind::Linux,
        }
    }
}

/// The part of a [`Plan`] that only WebAssembly has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WasmPlan {
    /// The module on disk, owned by the image store.
    pub module: PathBuf,
    /// SHA-256 of the module, lowercase hexadecimal digits.
    pub module_digest: String,
    /// Core module or component.
    pub kind: WasmKind,
    /// How it may use the pod's network.
    #[serde(default)]
    pub network: WasmNetwork,
    /// The resolver for names, where names decide what it may reach.
    #[serde(default)]
    pub resolver: Option<String>,
    /// An exec of a program that is not in the image may run one of the toolbox.
    #[serde(default)]
    pub toolbox: bool,
    /// The server that it is, if it handles HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<HttpServer>,
    /// The files that it writes for whoever looks for a bug.
    #[serde(default, skip_serializing_if = "Diagnosis::is_empty")]
    pub diagnosis: Diagnosis,
    /// It uses WASI 0.3, which its handler had on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wasi_p3: bool,
    /// Limits of its process, below the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<ResourceLimit>,
}

/// The part of a [`Plan`] that only a Linux program has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinuxPlan {
    /// Its jail.
    pub jail: Box<LinuxJail>,
    /// Its system call filter.
    pub seccomp: SeccompPlan,
    /// What is refused in front of it; builds before it was known refused nothing.
    #[serde(default)]
    pub floor: Floor,
    /// The limits of its cgroup.
    pub limits: Limits,
    /// What its processes can do to that cgroup; builds before it was known made none an inner one.
    #[serde(default)]
    pub exposure: Exposure,
    /// Programs of the node that run before it, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Programs of the node that run beside it.
    #[serde(default, skip_serializing_if = "NodeHooks::is_empty")]
    pub node_hooks: NodeHooks,
    /// Network devices of the node that its pod gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
}

/// A network device that moves into a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// Its name on the node.
    pub on_node: String,
    /// Its name in the pod.
    pub in_pod: String,
}

impl NetDevice {
    /// A device by both names. Errors: one of them is no name of a device.
    pub fn new(on_node: &str, in_pod: &str) -> Result<Self, String> {
        // As the kernel's dev_valid_name().
        let is_name = |name: &str| {
            let is_plain = |b: u8| b.is_ascii_graphic() && !b"/:".contains(&b);
            let is_special = matches!(name, "" | "." | ".." | "lo");
            name.bytes().all(is_plain) && !is_special && name.len() < 16
        };
        match [on_node, in_pod].into_iter().find(|name| !is_name(name)) {
            Some(odd) => Err(format!(
                "network device {on_node:?} as {in_pod:?}: {odd:?} is no name of a device"
            )),
            None => Ok(Self {
                on_node: on_node.to_owned(),
                in_pod: in_pod.to_owned(),
            }),
        }
    }
}

impl LinuxPlan {
    /// Whether `pod` can be given the network devices. Errors: it has the node's network.
    pub fn can_move_devices(&self, pod: &PodRecord) -> Result<(), Error> {
        match self.net_devices.first() {
            Some(device) if pod.config.namespaces.network == NamespaceMode::Node => {
                Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "the network device {:?} is to move into the pod, which has the node's network (hostNetwork)",
                        device.on_node
                    ),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// A Linux payload's system call filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompPlan {
    /// No filter.
    Unconfined,
    /// The built-in list (`RuntimeDefault`).
    Default,
    /// A profile of the node, read when the container was created.
    Localhost {
        /// JSON in Docker's format, at most 1 MiB.
        profile: String,
    },
}

impl Plan {
    /// What its processes can do to its cgroup.
    #[must_use]
    pub fn exposure(&self) -> Exposure {
        match &self.payload {
            Payload::Wasm(_) => Exposure::Hidden,
            Payload::Linux(linux) => linux.exposure,
        }
    }
}

impl PodRecord {
    /// The snapshot that CRI shows.
    pub fn view(&self) -> PodView {
        let ips = self
            .phase
            .live()
            .and_then(|live| live.attachment.as_ref())
            .map(|at| at.addresses.clone());
        PodView {
            id: self.id.clone(),
            config: Arc::clone(&self.config),
            ready: matches!(self.phase, PodPhase::Ready(_)),
            created_at: self.created_at,
            ips: ips.unwrap_or_default(),
            cgroup_parent: self.cgroup_parent.clone(),
        }
    }
}

impl ContainerRecord {
    /// The snapshot that CRI shows; a container is running until its exit is known.
    pub fn view(&self, pod: &PodId) -> ContainerView {
        let (state, ended) = shown(&self.phase);
        let started_at = self.phase.run().map(|run| run.started_at);
        let unreadable = match &self.phase {
            ContainerPhase::Unreadable(why) => Some(why),
            _ => None,
        };
        ContainerView {
            id: self.id.clone(),
            pod: pod.clone(),
            config: Arc::clone(&self.config),
            image_id: self.plan.image_id.clone(),
            state,
            created_at: self.created_at,
            started_at: ended
                .map(|ended| ended.started_at)
                .or(started_at)
                .unwrap_or(0),
            finished_at: ended.map_or(0, |ended| ended.finished_at),
            exit_code: ended.map_or(0, |ended| ended.code),
            reason: match (ended, unreadable) {
                (Some(ended), _) => ended.reason.name().to_owned(),
                (None, Some(_)) => UNREADABLE_REASON.to_owned(),
                (None, None) => String::new(),
            },
            message: ended
                .map(|ended| ended.message.clone())
                .or_else(|| unreadable.cloned())
                .unwrap_or_default(),
            log_path: self.plan.log_path.clone(),
            uid: self.plan.identity.uid,
            gid: self.plan.identity.gid,
            groups: self.plan.identity.groups.clone(),
            image_volumes: self.plan.image_volumes.clone(),
            stop_signal: self.plan.stop_signal,
            cgroup: self.plan.cgroup.clone(),
        }
    }
}

impl ContainerRecord {
    /// The pid of its first process while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.phase.run().map(|run| run.process.pid)
    }
}

/// The state that CRI shows for a phase, and the end that belongs to it.
fn shown(phase: &ContainerPhase) -> (ContainerState, Option<&Ended>) {
    match phase {
        ContainerPhase::Creating(_) | ContainerPhase::Created | ContainerPhase::Starting(_) => {
            (ContainerState::Created, None)
        }
        ContainerPhase::Running(_) | ContainerPhase::Stopping(..) => {
            (ContainerState::Running, None)
        }
        ContainerPhase::Exited(ended) | ContainerPhase::Removing(Some(ended)) => {
            (ContainerState::Exited, Some(ended))
        }
        ContainerPhase::Removing(None) | ContainerPhase::Gone => (ContainerState::Created, None),
        ContainerPhase::Unreadable(_) => (ContainerState::Unknown, None),
    }
}

/// Serializes the contents of an `Arc`.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use coracle_spec::{Capabilities, PidNamespaceMode, Scheduling};
    use serde_json::json;

    use super::*;
    use crate::state::{Stage, Stop, Then};

    fn common() -> serde_json::Value {
        json!({
            "image_id": "sha256:00", "layers": ["/l/1"], "args": ["/a.wasm"], "env": [["A", "1"]],
            "working_dir": "/", "mounts": [{"source": "/s", "target": "/t", "readonly": true}],
            "identity": {"uid": 1, "gid": 2, "groups": [3], "range": {"base": 65536, "size": 65536}},
            "stop_signal": 15, "log_path": "", "cgroup": "/c/x", "memory_limit_bytes": null, "spawn": "fork",
        })
    }

    fn linux() -> LinuxPlan {
        let jail = LinuxJail {
            tty: true,
            pid: PidNamespaceMode::Target("ab".repeat(32).parse().unwrap()),
            privileged: false,
            capabilities: Capabilities {
                bounding: u64::MAX,
                ..Capabilities::default()
            },
            no_new_privs: true,
            masked_paths: vec!["/proc/kcore".to_owned()],
            readonly_paths: Vec::new(),
            devices: Vec::new(),
            rlimits: vec![ResourceLimit {
                resource: 7,
                soft: u64::MAX,
                hard: u64::MAX,
            }],
            umask: 0o22,
            apparmor: None,
            selinux: None,
            mount_label: None,
            volumes: vec!["/data".to_owned()],
            shm_bytes: 64 << 20,
            shm_label: None,
            scheduling: Scheduling::default(),
        };
        LinuxPlan {
            jail: Box::new(jail),
            seccomp: SeccompPlan::Localhost {
                profile: "{}".to_owned(),
            },
            floor: Floor {
                no_user_namespaces: true,
                only_governed_sockets: true,
            },
            limits: Limits {
                cpu_quota: Some(-1),
                unified: [("memory.high".to_owned(), "1".to_owned())].into(),
                ..Limits::default()
            },
            exposure: Exposure::Inner,
            hooks: vec![Hook::default()],
            node_hooks: NodeHooks {
                started: vec![Hook::default()],
                stopped: vec![Hook::default()],
            },
            net_devices: vec![NetDevice::default()],
        }
    }

    #[test]
    fn a_record_of_a_build_without_linux_containers_is_read_as_wasm() {
        let mut old = common();
        old["module"] = json!("/m.wasm");
        old["module_digest"] = json!("00ff");
        old["kind"] = json!("component");
        let plan: Plan = serde_json::from_value(old).unwrap();
        let wasm = WasmPlan {
            module: "/m.wasm".into(),
            module_digest: "00ff".to_owned(),
            kind: WasmKind::Component,
            network: WasmNetwork::Off,
            resolver: None,
            toolbox: false,
            server: None,
            diagnosis: Default::default(),
            wasi_p3: false,
            rlimits: Vec::new(),
        };
        assert_eq!(plan.payload, Payload::Wasm(wasm));
        assert_eq!(plan.mounts[0].target, "/t");
        let again = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&again).unwrap(), plan);
    }

    #[test]
    fn a_linux_plan_survives_the_disk_unchanged() {
        let mut record = common();
        record["module"] = json!("");
        record["module_digest"] = json!("");
        record["kind"] = json!("module");
        let mut plan: Plan = serde_json::from_value(record).unwrap();
        plan.payload = Payload::Linux(linux());
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn renamed_fields_and_variants_keep_their_names_on_disk() {
        let stop = Stop {
            kill_at: 5,
            stage: Stage::Requested,
            then: Then::Keep,
        };
        let phase = ContainerPhase::Starting(Some(stop));
        let written = json!({"Starting": {"kill_at": 5, "stage": "Asked", "then": "Rest"}});
        assert_eq!(serde_json::to_value(&phase).unwrap(), written);
        let phase = serde_json::from_value::<ContainerPhase>(written).unwrap();
        assert_eq!(phase, ContainerPhase::Starting(Some(stop)));
    }

    #[test]
    fn a_pod_whose_handler_has_a_key_of_a_newer_build_is_read() {
        let pod = include_str!("../fuzz/pod-record/p-818");
        let mut pod = serde_json::from_str::<serde_json::Value>(pod).unwrap();
        let http = json!({"deadline_s": 5, "a_key_of_tomorrow": [1]});
        pod["handler_settings"] = json!({"name": "tight", "spawn": "exec", "http": http});
        let read = serde_json::from_value::<PodRecord>(pod).unwrap();
        let settings = read.handler_settings.unwrap();
        assert_eq!((settings.http.deadline_s, settings.spawn), (5, Spawn::Exec));
        let written = serde_json::to_value(&settings).unwrap();
        assert_eq!(written["http"]["deadline_s"], 5);
        let again = serde_json::from_value::<HandlerSettings>(written).unwrap();
        assert_eq!(again, *settings);
    }

    #[test]
    fn a_plan_without_a_payload_is_refused() {
        assert!(serde_json::from_value::<Plan>(common()).is_err());
    }
}
