//! The node's configuration: a TOML file, its drop-ins and three flags, turned into a checked [`Config`].
//!
//! Called by: the command line, which calls [`load`] before anything else; `serve` passes each part to its module.
//!
//! ```text
//! files --open, trust--> texts --keys, serde--> known keys only --merge--> ConfigFile --flags--> --check--> Config
//! ```
//! Invariants: a [`Config`] comes only from [`load`] (or [`Default`]), so every value in it has been
//! checked; flags win over the files, a later file over an earlier one; the environment is not read. Whoever can write a
//! file can run code as root through it, so a file that others than root can write is refused unread.
//! Must not know: what the values do.

mod cdi;
mod check;
mod egress;
mod error;
mod exec;
mod file;
mod handlers;
mod helpers;
mod http;
mod images;
mod keys;
mod metrics;
mod nri;
mod rlimits;
mod settings;
mod sources;
mod streaming;
mod subnet;
mod tracing;
mod values;
mod wasm;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cdi::Cdi;
pub use error::Error;
pub use exec::Exec;
pub use file::{CgroupDriver, Ipv6, LogFormat, LogLevel, NetworkMode};
pub use handlers::{Handler, Handlers, Spawn};
pub use helpers::Helpers;
pub use images::Proxy;
pub use metrics::Metrics;
pub use nri::{NRI_FIELDS, Nri};
pub use rlimits::Rlimit;
pub use settings::SettingsByKey;
pub use streaming::Streaming;
pub use subnet::{Family, Subnet};
pub use tracing::{TraceCollector, Tracing};
pub use wasm::Wasm;

use coracle_spec::egress::{Cidr, Internal};
use file::{ConfigFile, SOCKET_NAME};
use sources::{Merged, Source};

/// The configuration file when no flag names one.
pub const DEFAULT_PATH: &str = "/etc/coracle/config.toml";
/// The commented default file: what `coracle config default` prints and `make install` installs.
pub const DEFAULT_TEXT: &str = include_str!("../../assets/config.toml");

/// All settings, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Images, records and compiled modules; survives a reboot. Absolute.
    pub root: PathBuf,
    /// Sockets, pinned namespaces, facts about processes; gone after a reboot. Absolute, apart from `root`.
    pub run: PathBuf,
    /// The CRI socket. Absolute, short enough for a socket address.
    pub socket: PathBuf,
    /// The daemon's log.
    pub log: Log,
    /// Cgroups of pods and keepers.
    pub cgroup: Cgroup,
    /// Addresses of pods.
    pub network: Network,
    /// Sources and limits of images.
    pub images: Images,
    /// Host ids of pods.
    pub sandbox: Sandbox,
    /// Limits of the module compiler.
    pub wasm: Wasm,
    /// The processes that unpack and compile.
    pub helpers: Helpers,
    /// Limits for programs that are run in containers.
    pub exec: Exec,
    /// The address and limits of the streaming server.
    pub streaming: Streaming,
    /// The listener for scrapes.
    pub metrics: Metrics,
    /// Devices by name.
    pub cdi: Cdi,
    /// The collector of traces.
    pub tracing: Tracing,
    /// Plugins that follow pods.
    pub nri: Nri,
    /// The RuntimeClass handlers.
    pub handlers: Handlers,
}

/// The daemon's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// The lowest level that is logged.
    pub level: LogLevel,
    /// Levels of the lines of single modules and libraries, by the beginning of the module's path.
    pub targets: BTreeMap<String, LogLevel>,
}

/// Cgroups of pods and keepers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Who creates them.
    pub driver: CgroupDriver,
    /// Parent of a pod for which the kubelet names none: `/a/b` or `name.slice`.
    pub pod_parent: String,
    /// `oom_score_adj` of keepers, -1000 to 1000; the kernel may clamp it.
    pub keeper_oom_score_adj: i32,
}

/// Addresses of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Who connects a pod to the network.
    pub mode: NetworkMode,
    /// IPv4 addresses of pods: /20 or larger, unicast.
    pub subnet: Subnet<Ipv4Addr>,
    /// IPv6 addresses of pods: /116 or larger, unicast.
    pub subnet_v6: Option<Subnet<Ipv6Addr>>,
    /// Whether pods have IPv6 at all; without it there is no `subnet_v6`.
    pub ipv6: Ipv6,
    /// The beginning of the names of the veths on the node: 3 or 4 of `a-z`.
    pub interface_prefix: String,
    /// Whether the built-in network's pods reach other machines under the node's address.
    pub masquerade: bool,
    /// Most connections of one pod of the built-in network in the node's table of them; 0 for any number.
    pub connections_per_pod: u32,
    /// Ports of the node that no egress list opens, in addition to the built-in ones: first and last of each range.
    pub denied_node_ports: Vec<(u16, u16)>,
    /// Name servers of pods that an operator's egress list holds; those of the node if empty.
    pub name_servers: Vec<IpAddr>,
    /// Which addresses a name in an egress list leads to only below certain domains.
    pub internal: Internal,
    /// Prefixes of the site's own NAT64 translators, of a length that RFC 6052 has.
    pub nat64_prefixes: Vec<Cidr>,
    /// The directory in which pods' network namespaces are mounted. Absolute, of this daemon alone; gone after a
    /// reboot.
    pub netns_dir: PathBuf,
    /// The directory of CNI network configurations. Absolute; may be absent.
    pub cni_conf_dir: PathBuf,
    /// The directories of CNI plugins; the first one with a plugin wins. Absolute, without `:`; at least one.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// How long one CNI plugin may take.
    pub cni_plugin_timeout: Duration,
}

/// Sources and limits of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Registries, `host` or `host:port`, that are used without TLS, in addition to loopback ones.
    pub plain_http: Vec<String>,
    /// Directory of `hosts.toml` files, which name mirrors. Absolute; may be absent.
    pub registry_config: PathBuf,
    /// Credentials for pulls that bring none, as `docker login` writes them. Absolute; may be absent.
    pub auth_file: Option<PathBuf>,
    /// The policy that says which images must be signed, and by whom. Absolute; `None` accepts all.
    pub signature_policy: Option<PathBuf>,
    /// Directory of policies for pods of single namespaces. Absolute; may be absent.
    pub signature_policy_dir: Option<PathBuf>,
    /// Where the proxies for registries come from.
    pub proxy: Proxy,
    /// What is reached without a proxy: names, `.suffix`, addresses, networks, `host:port`, or `*`.
    pub no_proxy: Vec<String>,
    /// Directory of archives of images that are imported when the daemon starts. Absolute; may be absent.
    pub preload_dir: PathBuf,
    /// An archive of that directory that is not imported after this long is given up.
    pub preload_timeout: Duration,
    /// Images that the kubelet never collects: references, or beginnings of references and `*`.
    pub pinned: Vec<String>,
    /// Manifests and layers are kept as they came, for exports.
    pub keep_blobs: bool,
    /// A registry that sends nothing for this long fails the pull.
    pub pull_idle_timeout: Duration,
    /// A registry that sends a blob more slowly, measured over `pull_idle_timeout`, fails the pull; 0 for no limit.
    /// Bytes a second.
    pub pull_min_bytes_per_s: u64,
    /// A pull that is not complete after this long fails; `None` for no limit.
    pub pull_timeout: Option<Duration>,
    /// Largest manifest, index or image config.
    pub max_manifest_bytes: u64,
    /// Memory for the texts of all images: configs, annotations, names. Bytes.
    pub max_metadata_bytes: u64,
    /// Most layers of an image.
    pub max_layers: usize,
    /// Largest compressed layer.
    pub max_layer_bytes: u64,
    /// Largest unpacked image.
    pub max_unpacked_bytes: u64,
    /// Most files, directories and links of an image.
    pub max_entries: u64,
}

/// Host ids of pods: pod number N gets `id_base + N * id_count` and the `id_count - 1` ids after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// First host uid and gid of the first pod.
    pub id_base: u32,
    /// Ids each pod gets.
    pub id_count: u32,
    /// Most pods at a time; all of their ids are host ids.
    pub max_pods: u32,
    /// The kubelet's directory of pod logs.
    pub pod_logs_dir: PathBuf,
    /// A missing host path of a mount is created, as a directory.
    pub create_host_paths: bool,
    /// Devices belong to the user and group that a container's security context names.
    pub device_ownership_from_security_context: bool,
    /// Limit of the memory for the requests of all sandboxes and containers, in the size of their records. Bytes.
    pub all_requests_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        check::check(&ConfigFile::default()).expect("a test checks the defaults")
    }
}

/// The flags beside the path of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--run`.
    pub run: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--config-dir`: the directory of drop-ins, which must exist; empty for none. Unless set, `conf.d` beside the
    /// configuration file, which may be absent.
    pub config_dir: Option<PathBuf>,
}

/// Reads, checks and merges the configuration.
///
/// `path` is the one on the command line; without it [`DEFAULT_PATH`], which may be absent: then defaults apply, and drop-ins.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Error> {
    resolve(path, overrides).map(|(_, config)| config)
}

/// The run directory of the daemon, also where the configuration is wrong, so that a command finds a daemon that runs with an
/// earlier one. Errors: a file cannot be read, or others than root can write it.
pub fn run_directory(path: Option<&Path>, overrides: &Overrides) -> Result<PathBuf, Error> {
    if let Some(run) = &overrides.run {
        return Ok(run.clone());
    }
    let sources = sources::read_all(path, overrides)?;
    let file = Merged::new(&sources).and_then(|merged| merged.file());
    Ok(file.map_or_else(|_| sources::run_of(&sources), |file| file.run))
}

/// The configuration in force, as TOML without comments, and without passwords.
pub fn show(path: Option<&Path>, overrides: &Overrides) -> Result<String, Error> {
    let (mut file, _) = resolve(path, overrides)?;
    file.images.proxy = images::without_password(&file.images.proxy);
    Ok(toml::to_string(&file)
        .expect("the file's types are TOML's own: tables, strings and numbers"))
}

/// The files that are read, in the order of reading, after checking them.
pub fn files(path: Option<&Path>, overrides: &Overrides) -> Result<Vec<PathBuf>, Error> {
    let sources = sources::read_all(path, overrides)?;
    check_all(&sources, overrides)?;
    Ok(sources.into_iter().map(|source| source.path).collect())
}

/// The configuration in force, one `KEY = VALUE  # ORIGIN` a line, which is TOML as well. The origin is `FILE:LINE`, the
/// command line, or the defaults. Without passwords.
pub fn show_origins(path: Option<&Path>, overrides: &Overrides) -> Result<String, Error> {
    let sources = sources::read_all(path, overrides)?;
    let (mut file, _) = check_all(&sources, overrides)?;
    file.images.proxy = images::without_password(&file.images.proxy);
    let merged = Merged::new(&sources)?;
    let settings = table_of(&file);
    let line = |key: String| {
        let value = keys::value(&settings, &key).map_or(String::new(), ToString::to_string);
        let origin = origin(&merged, overrides, &key);
        format!("{} = {value}  # {origin}\n", keys::quoted(&key))
    };
    Ok(keys::dotted(&settings, "").into_iter().map(line).collect())
}

fn resolve(path: Option<&Path>, overrides: &Overrides) -> Result<(ConfigFile, Config), Error> {
    check_all(&sources::read_all(path, overrides)?, overrides)
}

/// Merges `sources` and the flags, and checks every value.
fn check_all(sources: &[Source], overrides: &Overrides) -> Result<(ConfigFile, Config), Error> {
    let merged = Merged::new(sources)?;
    let mut file = merged.file()?;
    apply(&mut file, overrides, merged.place_of("socket").is_none());
    let config = check::check(&file).map_err(|invalid| Error::Value {
        origin: origin(&merged, overrides, &invalid.key),
        key: invalid.key.into_owned(),
        why: invalid.why,
    })?;
    Ok((file, config))
}

fn apply(file: &mut ConfigFile, overrides: &Overrides, socket_follows_run: bool) {
    if let Some(root) = &overrides.root {
        file.root.clone_from(root);
    }
    if let Some(run) = &overrides.run {
        file.run.clone_from(run);
    }
    match &overrides.socket {
        Some(socket) => file.socket.clone_from(socket),
        None if socket_follows_run => file.socket = file.run.join(SOCKET_NAME),
        None => {}
    }
}

/// The source of a value: a flag, a line of a file, or the defaults.
fn origin(merged: &Merged<'_>, overrides: &Overrides, key: &str) -> String {
    let is_flag = match key {
        "root" => overrides.root.is_some(),
        "run" => overrides.run.is_some(),
        "socket" => overrides.socket.is_some(),
        _ => false,
    };
    match merged.place_of(key) {
        _ if is_flag => "command line".to_owned(),
        Some(place) => place,
        None => "default value".to_owned(),
    }
}

/// The settings by key.
fn table_of(file: &ConfigFile) -> toml::Table {
    toml::Table::try_from(file)
        .expect("the file's types are TOML's own: tables, strings and numbers")
}

fn known_keys() -> toml::Table {
    table_of(&ConfigFile::default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
