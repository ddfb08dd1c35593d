//! The kubelet's requests as checked configuration: checked once by `cri/convert`, stored in records, compared on a
//! retry.
//!
//! Made by: `cri/convert`. Read by: the driver and the host. Stored whole, so that a status returns it byte for byte.
//! Invariant: two configs are equal exactly when the kubelet sent the same request twice and the configuration of the
//! daemon has not changed in between.
//! Must not know: CRI messages, what became of a config.

mod annotations;
mod handler;
mod http;
mod linux;
mod streaming;
mod variant;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use coracle_network::{Bandwidth, HostPort};
use coracle_spec::Diagnosis;
use coracle_spec::egress::{Egress, List};
use serde::{Deserialize, Serialize};

pub use annotations::{Annotations, Grants};
pub use handler::{Handler, HandlerSettings};
pub use http::HttpConfig;
pub use linux::{
    CapabilityConfig, DeviceConfig, GroupsPolicy, IdMapping, ImageVolume, PidNamespaceConfig,
    SecurityContext, SecurityProfile, SelinuxOptions, UserNamespaceConfig,
};
pub use streaming::{AttachConfig, ExecConfig, PortForwardConfig};
pub use variant::WasmVariant;

/// The identity of a sandbox; a second request with the same four values is a retry of the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.attempt`.
    pub attempt: u32,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} (uid {}, attempt {})",
            self.namespace, self.name, self.uid, self.attempt
        )
    }
}

/// The identity of a container within its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerName {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.attempt`.
    pub attempt: u32,
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (attempt {})", self.name, self.attempt)
    }
}

/// Whose namespace is used. Source: cri-api `NamespaceMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// `POD`.
    Pod,
    /// `CONTAINER`.
    Container,
    /// `NODE`: the host's.
    Node,
    /// `TARGET`: another container's.
    Target,
}

/// The requested namespaces of a pod or a container; shown in its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network namespace: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// Pid namespace.
    pub pid: NamespaceMode,
    /// Ipc namespace: `Pod` or `Node`.
    pub ipc: NamespaceMode,
}

/// Resolver settings of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// RunPodSandbox, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Its name; no part but `attempt` is empty.
    pub name: PodName,
    /// Host name; empty keeps the host's.
    pub hostname: String,
    /// Absolute directory of container logs; empty when the kubelet gave none.
    pub log_directory: String,
    /// Resolver settings.
    pub dns: Dns,
    /// Labels, byte for byte.
    pub labels: BTreeMap<String, String>,
    /// Annotations, byte for byte.
    pub annotations: Annotations,
    /// The annotations, its own and its containers', that are honoured although they grant something.
    #[serde(default)]
    pub grants: Grants,
    /// The built-in handler that runs it, or that the one of the operator's that runs it is like.
    pub handler: Handler,
    /// The name in the request, if it is not that of a built-in handler: one of the operator's, or an alias.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub handler_name: String,
    /// Parent cgroup as the kubelet gave it; empty means the configured default.
    pub cgroup_parent: String,
    /// The requested namespaces.
    pub namespaces: Namespaces,
    /// Its own user namespace, if it has one.
    #[serde(default)]
    pub userns: Option<UserNamespaceConfig>,
    /// Values by path below `/proc/sys`, as `net/ipv4/ip_forward`; only parameters of namespaces that the pod owns.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// It may contain privileged containers.
    #[serde(default)]
    pub privileged: bool,
    /// Ports of the node that lead to it; none in the node's network.
    #[serde(default)]
    pub ports: Vec<HostPort>,
    /// TCP ports that its containers declare.
    #[serde(default)]
    pub container_ports: Vec<u16>,
    /// How its containers' programs are chosen, unless they say, from annotations.
    #[serde(default)]
    pub wasm_variant: WasmVariant,
    /// Limits of its traffic.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// Addresses with prefix lengths that network plugins are to assign.
    #[serde(default)]
    pub ips: Vec<String>,
    /// The hardware address that network plugins are to assign.
    #[serde(default)]
    pub mac: Option<String>,
    /// SELinux label of its containers that have none of their own.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    /// The destinations that it may reach, decided from configuration and annotation when it was created. `None` allows
    /// all, except in a record that an older build wrote for `coracle-strict`, where it allows none.
    #[serde(default)]
    pub egress: Option<List>,
    /// Its WebAssembly instances cannot create sockets.
    #[serde(default)]
    pub is_offline: bool,
    /// `egress` is the operator's list, at most narrowed by the pod, so that the pod does not choose who says what its names
    /// mean.
    #[serde(default)]
    pub is_egress_imposed: bool,
    /// What its annotations say of its HTTP servers.
    #[serde(default, skip_serializing_if = "HttpConfig::is_empty")]
    pub http: HttpConfig,
    /// What its annotations say of files for whoever looks for a bug.
    #[serde(default, skip_serializing_if = "Diagnosis::is_empty")]
    pub diagnosis: Diagnosis,
}

impl SandboxConfig {
    /// The handler's name in the request.
    pub fn handler_name(&self) -> &str {
        match self.handler_name.as_str() {
            "" => self.handler.as_str(),
            name => name,
        }
    }

    /// The handler's name for people: the default handler is `coracle` without its name.
    pub fn shown_handler(&self) -> &str {
        match self.handler_name.as_str() {
            "" => self.handler.shown(),
            name => name,
        }
    }

    /// The destinations that the pod may reach.
    pub fn reach(&self) -> Egress {
        match (&self.egress, self.handler) {
            (Some(list), _) => Egress::Listed(list.clone()),
            (None, Handler::Strict) => Egress::Listed(List::default()),
            (None, _) => Egress::Open,
        }
    }

    /// Whether its WebAssembly instances can create no sockets at all, not even listening ones.
    pub fn is_offline(&self) -> bool {
        self.is_offline || (self.egress.is_none() && self.handler == Handler::Strict)
    }

    /// Whether `other` is the same request, sent again. Decisions from the configuration are not compared: it may have
    /// changed since, and the pod keeps the first decision.
    pub fn is_repeated_by(&self, other: &SandboxConfig) -> bool {
        let decided_alike = SandboxConfig {
            egress: self.egress.clone(),
            is_offline: self.is_offline,
            is_egress_imposed: self.is_egress_imposed,
            grants: self.grants.clone(),
            ..other.clone()
        };
        *self == decided_alike
    }
}

/// One CRI mount of a host path or of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountConfig {
    /// Path on the host, empty for an image; `create_container` checks it, not the converter.
    pub host_path: PathBuf,
    /// Path in the container; `create_container` checks it, not the converter.
    pub container_path: String,
    /// Read-only.
    pub readonly: bool,
    /// Propagation, shown in the status. Wasm containers refuse `Bidirectional`.
    pub propagation: Propagation,
    /// The files of the host path get the SELinux label of the container's mounts.
    pub selinux_relabel: bool,
    /// The mount is to be recursively read-only; it is then `readonly` and its propagation `Private`.
    pub recursive_read_only: bool,
    /// The image that is mounted instead of a host path.
    #[serde(default)]
    pub image: Option<ImageVolume>,
    /// Requested mount options by name; each is one of [`MountConfig::OPTIONS`].
    #[serde(default)]
    pub options: Vec<String>,
    /// Users of the source, shown in the status; the pod's own map or none.
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    /// Groups of the source, likewise.
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
}

impl MountConfig {
    /// The mount options that can be requested.
    pub const OPTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];

    /// Whether the option of that name was requested.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }

    /// Whether it is read-only, by any of the ways to request that.
    pub fn is_readonly(&self) -> bool {
        self.readonly || self.has_option("ro")
    }
}

/// Mount propagation. Source: cri-api `MountPropagation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// `PROPAGATION_PRIVATE`.
    Private,
    /// `PROPAGATION_HOST_TO_CONTAINER`.
    HostToContainer,
    /// `PROPAGATION_BIDIRECTIONAL`.
    Bidirectional,
}

/// Linux resources in CRI's terms; 0 or empty means "not set". Shown in the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds; negative is unlimited.
    pub cpu_quota: i64,
    /// Relative CPU weight as shares.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit_bytes: i64,
    /// OOM killer adjustment.
    pub oom_score_adj: i64,
    /// CPUs allowed.
    pub cpuset_cpus: String,
    /// Memory nodes allowed.
    pub cpuset_mems: String,
    /// cgroup v2 settings by file name.
    pub unified: BTreeMap<String, String>,
    /// Memory plus swap limit in bytes.
    pub memory_swap_limit_bytes: i64,
    /// Bytes of huge pages by page size as the kernel names it (`2MB`), 0 included, in the order given.
    #[serde(default)]
    pub hugepages: Vec<(String, u64)>,
}

/// The user that the payload runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserConfig {
    /// `run_as_user`.
    pub uid: Option<i64>,
    /// `run_as_username`; empty when not given.
    pub username: String,
    /// `run_as_group`.
    pub gid: Option<i64>,
    /// `supplemental_groups`.
    pub groups: Vec<i64>,
    /// `supplemental_groups_policy`.
    #[serde(default)]
    pub policy: GroupsPolicy,
}

/// CreateContainer, converted; `create_container` checks what depends on the node (image, mounts, user). The default
/// requests nothing, and has no name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its name within the pod; `name` is not empty.
    pub name: ContainerName,
    /// `image.image`: an id, tag or digest.
    pub image: String,
    /// `image.user_specified_image`, shown in the status.
    pub user_specified_image: String,
    /// `command`: replaces the image's entrypoint.
    pub command: Vec<String>,
    /// `args`: replaces the image's cmd.
    pub args: Vec<String>,
    /// `working_dir`; empty means the image's.
    pub working_dir: String,
    /// Environment in the order given.
    pub env: Vec<(String, String)>,
    /// Mounts in the order given.
    pub mounts: Vec<MountConfig>,
    /// Labels, byte for byte.
    pub labels: BTreeMap<String, String>,
    /// Annotations, byte for byte.
    pub annotations: Annotations,
    /// Log path relative to the pod's log directory; empty discards output.
    pub log_path: String,
    /// Standard input stays open for attach.
    pub stdin: bool,
    /// Standard input closes when the first attach ends.
    pub stdin_once: bool,
    /// The container gets a terminal.
    pub tty: bool,
    /// Resource limits.
    pub resources: Resources,
    /// The user that it runs as.
    pub user: UserConfig,
    /// The root file system is read-only.
    pub readonly_rootfs: bool,
    /// Number of the stop signal, from `stop_signal`; `None` means the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// The security context.
    #[serde(default)]
    pub security: SecurityContext,
    /// Devices in the order given.
    #[serde(default)]
    pub devices: Vec<DeviceConfig>,
    /// Names of CDI devices, from field and annotations, distinct.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// How its program is chosen, from annotations.
    #[serde(default)]
    pub wasm_variant: WasmVariant,
}
