//! The spec of a container: the daemon writes it into a memfd, and only the container process reads it. The
//! container process is forked by the pod's keeper, builds the jail and becomes the payload.
//!
//! Written at StartContainer; the keeper passes the descriptor on unread, and the container process reads it after
//! its fork, so that no container's memory holds the environment of another.
//! Invariant: every value was checked when the container was created; the container process applies it unchanged.
//! Not here: CRI messages, images, building a jail.

mod diagnosis;
mod exit;
mod floor;
mod hooks;
mod http;
mod payload;
mod scheduling;
mod wakes;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, PodId};

pub use diagnosis::Diagnosis;
pub use exit::{Cause, Exit, MAX_CAUSE_BYTES, MAX_MESSAGE_BYTES};
pub use floor::Floor;
pub use hooks::{Hook, Hooks, NodeHooks};
pub use http::{HttpLimits, HttpServer};
pub use payload::{ProcessRow, Tool, Toolbox, WasmNetwork};
pub use scheduling::{CpuPolicy, IoPriority, MemoryPolicy, Scheduling};
pub use wakes::Wakes;

/// The version of [`ContainerSpec`] that this build writes; a keeper of an older build reads older ones.
pub const SPEC_VERSION: u32 = 1;
/// Most processes and threads of a Linux container, unless its handler says otherwise and as far as the node has them.
pub const PIDS_LIMIT: u64 = 32_768;

/// Everything that one container process needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// [`SPEC_VERSION`] of the writer.
    pub version: u32,
    /// The pod it belongs to.
    pub pod: PodId,
    /// Its own id.
    pub id: ContainerId,
    /// What runs in the jail.
    pub workload: Workload,
    /// The root filesystem.
    pub root: Root,
    /// CRI mounts, in order (parents first).
    pub mounts: Vec<Mount>,
    /// User and groups of the payload, inside and on the host.
    pub identity: Identity,
    /// Files to which the container process writes `0` to join the cgroups in which it was not created.
    pub cgroup_procs: Vec<PathBuf>,
    /// The container's memory limit in bytes; also the limit of linear memory.
    pub memory_limit_bytes: Option<u64>,
    /// OOM killer adjustment, -1000 to 1000; negative values are clamped to what the node allows.
    pub oom_score_adj: i32,
    /// How the container process is created.
    pub spawn: Spawn,
    /// A directory of the node over which the keepers of earlier builds have a root built.
    pub staging: PathBuf,
}

/// The payload of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Workload {
    /// Instantiate and run compiled WebAssembly.
    Wasm(Box<WasmSpec>),
    /// Execute a program of a Linux image.
    Linux(Box<LinuxSpec>),
}

impl Workload {
    /// Whether standard input is piped.
    pub fn stdin(&self) -> bool {
        match self {
            Self::Wasm(wasm) => wasm.stdin,
            Self::Linux(linux) => linux.stdin,
        }
    }
}

/// A Linux payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinuxSpec {
    /// Arguments; the first is the program: a path, or a name that is searched in the environment's `PATH`.
    pub args: Vec<String>,
    /// Environment in the order given, names distinct.
    pub env: Vec<(String, String)>,
    /// Absolute path inside the root; made if it is missing.
    pub working_dir: String,
    /// Whether standard input is piped; closed (reads as end of file) when not.
    pub stdin: bool,
    /// Its confinement.
    pub jail: LinuxJail,
    /// Flags of seccomp(2) with which its filter is installed.
    pub filter_flags: u32,
    /// Whether it runs in its pod's user namespace.
    pub userns: bool,
    /// The cgroup hierarchies of the node, as they are mounted below `/sys/fs/cgroup`.
    pub cgroups: Vec<CgroupMount>,
    /// The host directory of the pod's `/dev/shm`, for kernels where it cannot be passed as a descriptor.
    pub shm: PathBuf,
    /// Programs of the node that run before it.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
}

/// One cgroup hierarchy inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMount {
    /// Directory below `/sys/fs/cgroup`; empty for that directory itself.
    pub directory: String,
    /// Controllers, or `name=systemd`; none for the unified hierarchy.
    pub controllers: Vec<String>,
}

/// The confinement of a Linux payload beyond that of every sandbox; the same for a container's first process and
/// each exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxJail {
    /// Whether a terminal is its standard input, output and error.
    pub tty: bool,
    /// Its pid namespace.
    pub pid: PidNamespaceMode,
    /// `/sys` and the cgroup tree are writable, and the cgroup namespace is the node's.
    pub privileged: bool,
    /// Capabilities as bit masks (bit 0 is CAP_CHOWN).
    pub capabilities: Capabilities,
    /// Whether executed programs cannot gain privileges.
    pub no_new_privs: bool,
    /// Absolute paths that read as empty; absent ones are ignored.
    pub masked_paths: Vec<String>,
    /// Absolute paths that are read-only; absent ones are ignored.
    pub readonly_paths: Vec<String>,
    /// Device nodes beside the six that every container has.
    pub devices: Vec<Device>,
    /// Limits of the process; others keep the kernel's default for a new process.
    pub rlimits: Vec<ResourceLimit>,
    /// File mode creation mask.
    pub umask: u32,
    /// AppArmor profile to change to on exec; loaded already.
    pub apparmor: Option<String>,
    /// SELinux label of the process.
    pub selinux: Option<String>,
    /// SELinux label of its mounts.
    pub mount_label: Option<String>,
    /// Directories of the image that are writable even in a read-only root (`VOLUME`).
    pub volumes: Vec<String>,
    /// Limit of the pod's `/dev/shm`, bytes.
    pub shm_bytes: u64,
    /// SELinux label of the pod's `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_label: Option<String>,
    /// How it is scheduled, where that differs from the usual.
    #[serde(default, skip_serializing_if = "Scheduling::is_usual")]
    pub scheduling: Scheduling,
}

/// The pid namespace of a container. Source: cri-api `NamespaceMode` of `pid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespaceMode {
    /// Its own; its first process is pid 1.
    Own,
    /// The pod's (`shareProcessNamespace`).
    Pod,
    /// The node's (hostPID).
    Node,
    /// That of another container of the same pod.
    Target(ContainerId),
}

/// Capability sets of a Linux payload; the effective set equals the permitted one, the inheritable one the ambient one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The bounding set.
    pub bounding: u64,
    /// The permitted set.
    pub permitted: u64,
    /// The ambient set, kept over execve as another user than root.
    pub ambient: u64,
}

/// A device node inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path inside the container.
    pub path: String,
    /// The node on the host, which is bind-mounted where mknod is not possible (user namespaces).
    pub source: PathBuf,
    /// Character or block.
    pub kind: DeviceKind,
    /// Device number, upper part.
    pub major: u32,
    /// Device number, lower part.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the container sees it.
    pub uid: u32,
    /// Group, as the container sees it.
    pub gid: u32,
}

/// The two kinds of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// One resource limit. Source: getrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// Number of the resource (`RLIMIT_NOFILE` is 7).
    pub resource: u32,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none. Clamped to what the node's own processes may have.
    pub hard: u64,
}

/// A WebAssembly payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WasmSpec {
    /// Core module or component.
    pub kind: WasmKind,
    /// Arguments, the program's own name first.
    pub args: Vec<String>,
    /// Environment in the order given; a later name wins.
    pub env: Vec<(String, String)>,
    /// Absolute path inside the root.
    pub working_dir: String,
    /// Whether standard input is piped; closed (reads as end of file) when not.
    pub stdin: bool,
    /// Whether a terminal is its standard input, output and error, and controls its session.
    #[serde(default)]
    pub tty: bool,
    /// Its access to the pod's network.
    #[serde(default)]
    pub network: WasmNetwork,
    /// Text of resolv.conf(5) that replaces the files in its root: where access is granted by name, no file that the
    /// container could write may decide how names are resolved.
    #[serde(default)]
    pub resolver: Option<String>,
    /// A built-in program that runs instead of compiled code.
    #[serde(default)]
    pub toolbox: Option<Toolbox>,
    /// It handles requests instead of running once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<HttpServer>,
    /// The files that it writes for whoever looks for a bug.
    #[serde(default, skip_serializing_if = "Diagnosis::is_empty")]
    pub diagnosis: Diagnosis,
    /// Limits of its process, below the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<ResourceLimit>,
    /// It may use WASI 0.3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wasi_p3: bool,
}

impl WasmSpec {
    /// The server that its process is, if it is one: a tool that runs in its place serves nothing.
    pub fn serves(&self) -> Option<&HttpServer> {
        self.server.as_ref().filter(|_| self.toolbox.is_none())
    }
}

/// The two kinds of WebAssembly programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WasmKind {
    /// A core module for WASI preview 1.
    Module,
    /// A component that exports `wasi:cli/run` or `wasi:http/incoming-handler` (WASI 0.2).
    Component,
}

/// A container's root filesystem.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Root {
    /// Unpacked image layers on the host, lowest first; empty for an artifact.
    pub layers: Vec<PathBuf>,
    /// The container's own writable directory (overlay `upperdir`).
    pub upper: PathBuf,
    /// Overlay `workdir`, on the same filesystem as `upper`.
    pub work: PathBuf,
    /// Whether everything but mounts is read-only.
    pub readonly: bool,
}

/// One mount into the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute host path of a directory or a file; must exist. Empty for an image or a tmpfs.
    pub source: PathBuf,
    /// Absolute path inside the container.
    pub target: String,
    /// Read-only, in the kernel and in WASI.
    pub readonly: bool,
    /// What is mounted.
    #[serde(default)]
    pub kind: MountKind,
    /// Read-only with everything mounted below it.
    #[serde(default)]
    pub recursive_readonly: bool,
    /// Its mount propagation; Linux payloads only.
    #[serde(default)]
    pub propagation: MountPropagation,
    /// Set-id bits have no effect on it.
    #[serde(default)]
    pub nosuid: bool,
    /// No device nodes work on it.
    #[serde(default)]
    pub nodev: bool,
    /// Nothing on it can be executed.
    #[serde(default)]
    pub noexec: bool,
}

/// What a [`Mount`] mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// The host path `source`.
    #[default]
    Bind,
    /// The unpacked layers of an image, lowest first, always read-only; `sub_path` is relative to its root, empty for
    /// all.
    Image {
        /// Layers on the host.
        layers: Vec<PathBuf>,
        /// Directory or file inside the image.
        sub_path: String,
    },
    /// An empty tmpfs.
    Tmpfs {
        /// Its limit in bytes.
        bytes: u64,
        /// Permission bits of its root.
        mode: u32,
    },
}

/// Mount propagation. Source: mount_namespaces(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountPropagation {
    /// Neither way (`rprivate`).
    #[default]
    Private,
    /// From the host into the container (`rslave`).
    Slave,
    /// Both ways (`rshared`).
    Shared,
}

/// The user and groups of the payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user id in the container.
    pub uid: u32,
    /// The primary group id in the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The pod's own host ids.
    pub range: IdRange,
}

/// A block of host ids that belongs to one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First host id; never 0.
    pub base: u32,
    /// Number of ids: [`IdRange::SIZE`], or the kubelet's value for a pod with a user namespace.
    pub size: u32,
}

impl IdRange {
    /// Ids of one pod: container ids 0 to 65,535.
    pub const SIZE: u32 = 65_536;
}

/// How a container process is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spawn {
    /// A fork of the keeper: fastest, shares the spawner's address-space layout.
    #[default]
    Fork,
    /// The container process executes our own binary again inside the half-built jail: own layout, about 3 ms more.
    Exec,
}
