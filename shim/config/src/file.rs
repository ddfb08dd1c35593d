//! The configuration file as written: one serde struct for each table, every default in one place.
//!
//! Called by: [`super::load`], which deserialises a [`ConfigFile`], and [`super::check`], which turns it into a
//! [`super::Config`]. Nothing else reads these types.
//! Invariants: unknown keys are refused in every table; the unit of a number is the end of its key; every key has a
//! default, so that an empty file is a complete configuration. The serialised default is also the list of known keys
//! from which spelling suggestions are made.
//! Must not know: whether a value is valid. `check` decides that, once.

mod images;

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::values::RUN;
use coracle_spec::egress::Internal;
use serde::{Deserialize, Serialize};

pub use super::cdi::CdiFile;
pub use super::exec::ExecFile;
pub use super::handlers::HandlersFile;
pub use super::helpers::HelpersFile;
pub use super::metrics::MetricsFile;
pub use super::nri::NriFile;
pub use super::streaming::StreamingFile;
pub use super::tracing::TracingFile;
pub use images::ImagesFile;

/// Default of `root`.
pub const ROOT: &str = "/var/lib/coracle";
/// Default of `images.registry_config`.
pub const REGISTRY_CONFIG: &str = "/etc/coracle/certs.d";
/// Default of `images.preload_dir`.
pub const PRELOAD_DIR: &str = "/var/lib/coracle/preload";
/// File name of the socket inside `run` when `socket` is not set.
pub const SOCKET_NAME: &str = "coracle.sock";

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The whole file. `assets/config.toml` explains each key to operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigFile {
    /// Images, records and compiled modules; survives a reboot.
    pub root: PathBuf,
    /// Sockets, pinned namespaces and facts about processes; gone after a reboot.
    pub run: PathBuf,
    /// The CRI socket; `RUN/coracle.sock` unless set.
    pub socket: PathBuf,
    /// `[log]`.
    pub log: LogFile,
    /// `[cgroup]`.
    pub cgroup: CgroupFile,
    /// `[network]`.
    pub network: NetworkFile,
    /// `[images]`.
    pub images: ImagesFile,
    /// `[sandbox]`.
    pub sandbox: SandboxFile,
    /// `[wasm]`.
    pub wasm: WasmFile,
    /// `[helpers]`.
    pub helpers: HelpersFile,
    /// `[exec]`.
    pub exec: ExecFile,
    /// `[streaming]`.
    pub streaming: StreamingFile,
    /// `[metrics]`.
    pub metrics: MetricsFile,
    /// `[cdi]`.
    pub cdi: CdiFile,
    /// `[tracing]`.
    pub tracing: TracingFile,
    /// `[nri]`.
    pub nri: NriFile,
    /// `[handlers.*]`.
    pub handlers: HandlersFile,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
            run: PathBuf::from(RUN),
            socket: PathBuf::from(RUN).join(SOCKET_NAME),
            log: LogFile::default(),
            cgroup: CgroupFile::default(),
            network: NetworkFile::default(),
            images: ImagesFile::default(),
            sandbox: SandboxFile::default(),
            wasm: WasmFile::default(),
            helpers: HelpersFile::default(),
            exec: ExecFile::default(),
            streaming: StreamingFile::default(),
            metrics: MetricsFile::default(),
            cdi: CdiFile::default(),
            tracing: TracingFile::default(),
            nri: NriFile::default(),
            handlers: HandlersFile::default(),
        }
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text, for people and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The lowest level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// A failure of the daemon.
    Error,
    /// The node or a pod is degraded.
    Warn,
    /// A pod, container or image changed its phase.
    #[default]
    Info,
    /// The reason for a decision.
    Debug,
    /// Every step.
    Trace,
}

impl LogLevel {
    /// Every level, the quietest first.
    pub const ALL: [LogLevel; 5] = [
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }

    /// The level of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<LogLevel> {
        LogLevel::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// `[log]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogFile {
    /// Text unless set.
    pub format: LogFormat,
    /// Info unless set.
    pub level: LogLevel,
    /// Levels of the lines of single modules and libraries.
    pub targets: BTreeMap<String, LogLevel>,
}

/// Who creates the cgroups of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where systemd is process 1 and the v2 tree is in use, cgroupfs everywhere else.
    #[default]
    Auto,
    /// The daemon, as directories.
    Cgroupfs,
    /// systemd, as a delegated scope for each pod, requested over D-Bus.
    Systemd,
}

/// `[cgroup]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupFile {
    /// Auto unless set.
    pub driver: CgroupDriver,
    /// Parent of a pod for which the kubelet names none.
    pub pod_parent: String,
    /// `oom_score_adj` of the keepers, -1000 to 1000.
    pub keeper_oom_score_adj: i32,
}

impl Default for CgroupFile {
    fn default() -> Self {
        Self {
            driver: CgroupDriver::Auto,
            pod_parent: "/coracle".to_owned(),
            keeper_oom_score_adj: -999,
        }
    }
}

/// Who connects a pod to the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The daemon, with one routed veth for each pod.
    #[default]
    Builtin,
    /// CNI plugins of the node.
    Cni,
    /// CNI plugins if a configuration is there before the first pod, else the daemon; decided once.
    Auto,
}

/// Whether pods have IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ipv6 {
    /// As the kernel and the network provide it.
    #[default]
    Auto,
    /// No IPv6.
    Off,
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkFile {
    /// Built-in unless set.
    pub mode: NetworkMode,
    /// IPv4 addresses of pods, `A.B.C.D/N`, /20 or larger.
    pub subnet: String,
    /// IPv6 addresses of pods, /116 or larger; empty for none.
    pub subnet_v6: String,
    /// Whether pods have IPv6 at all.
    pub ipv6: Ipv6,
    /// The beginning of the names of the veths on the node.
    pub interface_prefix: String,
    /// Whether the built-in network's pods reach other machines under the node's address.
    pub masquerade: bool,
    /// Most connections of one pod of the built-in network in the node's table of them; 0 for any number.
    pub connections_per_pod: u64,
    /// Ports of the node that no egress list opens, in addition to the built-in ones.
    pub denied_node_ports: Vec<u16>,
    /// Name servers of pods that an egress list of this configuration holds; those of the node if empty.
    pub name_servers: Vec<String>,
    /// Domains whose names in egress lists may resolve to internal addresses.
    pub internal_domains: Vec<String>,
    /// Networks that are internal besides the private ones, `ADDRESS/BITS`.
    pub internal_networks: Vec<String>,
    /// Prefixes of the site's own NAT64 translators, `ADDRESS/BITS`.
    pub nat64_prefixes: Vec<String>,
    /// Directory in which pods' network namespaces are mounted; below `run` if empty.
    pub netns_dir: PathBuf,
    /// Directory of CNI network configurations.
    pub cni_conf_dir: PathBuf,
    /// Directories of CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// How long one CNI plugin may take. Seconds.
    pub cni_plugin_timeout_s: u64,
}

impl Default for NetworkFile {
    fn default() -> Self {
        Self {
            mode: NetworkMode::Builtin,
            subnet: "10.88.0.0/16".to_owned(),
            subnet_v6: String::new(),
            ipv6: Ipv6::Auto,
            interface_prefix: "cor".to_owned(),
            masquerade: false,
            connections_per_pod: 16_384,
            denied_node_ports: Vec::new(),
            name_servers: Vec::new(),
            internal_domains: Internal::default().domains,
            internal_networks: Vec::new(),
            nat64_prefixes: Vec::new(),
            netns_dir: PathBuf::new(),
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_plugin_timeout_s: 60,
        }
    }
}

/// `[sandbox]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxFile {
    /// First host uid and gid that pods are mapped to.
    pub id_base: u64,
    /// How many uids and gids each pod gets.
    pub id_count: u64,
    /// Most pods at a time.
    pub max_pods: u64,
    /// The kubelet's `podLogsDir`; symbolic links in this path are followed.
    pub pod_logs_dir: PathBuf,
    /// Whether a missing host path of a mount is created, as a directory.
    pub create_host_paths: bool,
    /// Whether devices belong to the user and group that a container's security context names.
    pub device_ownership_from_security_context: bool,
    /// Limit of the memory for the requests of all sandboxes and containers. Bytes.
    pub all_requests_bytes: u64,
}

impl Default for SandboxFile {
    fn default() -> Self {
        Self {
            id_base: 1_879_048_192,
            id_count: 65_536,
            max_pods: 5_000,
            pod_logs_dir: "/var/log/pods".into(),
            create_host_paths: true,
            device_ownership_from_security_context: false,
            all_requests_bytes: 256 * MIB,
        }
    }
}

/// `[wasm]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WasmFile {
    /// A compilation that takes more CPU time is killed. Seconds.
    pub compile_timeout_s: u64,
    /// A compilation that needs more memory is killed.
    pub compile_memory_bytes: u64,
    /// Largest module or component that is compiled.
    pub max_module_bytes: u64,
    /// Compiled code that is kept. Bytes.
    pub cache_bytes: u64,
}

impl Default for WasmFile {
    fn default() -> Self {
        Self {
            compile_timeout_s: 60,
            compile_memory_bytes: 2 * GIB,
            max_module_bytes: 128 * MIB,
            cache_bytes: 4 * GIB,
        }
    }
}
