//! The node's configuration: a TOML file and three flags, turned into a checked [`Config`].
//!
//! Called by: the command line, which calls [`load`] before anything else; `serve` passes each part to its module.
//!
//! ```text
//! file --open, trust--> text --keys--> known keys only --serde--> ConfigFile --flags--> --check--> Config
//! ```
//! Invariants: a [`Config`] comes only from [`load`] (or [`Default`]), so every value in it has been
//! checked; flags win over the file; the environment is not read. Whoever can write the file can run
//! code as root through it, so a file that others than root can write is refused unread.
//! Must not know: what the values do.

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
mod settings;
mod streaming;
mod subnet;
mod values;

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::Error;
pub use exec::Exec;
pub use file::{CgroupDriver, Ipv6, LogFormat, LogLevel, NetworkMode};
pub use handlers::{Handlers, Spawn};
pub use helpers::Helpers;
pub use metrics::Metrics;
pub use nri::{NRI_FIELDS, Nri};
pub use settings::SettingsByKey;
pub use streaming::Streaming;
pub use subnet::{Family, Subnet};

use file::{ConfigFile, SOCKET_NAME};
use keys::Document;

/// The configuration file when no flag names one.
pub const DEFAULT_PATH: &str = "/etc/coracle/config.toml";
/// The commented default file: what `coracle config default` prints and `make install` installs.
pub const DEFAULT_TEXT: &str = include_str!("../../assets/config.toml");

/// Largest configuration file. Bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

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
    /// Ports of the node that no egress list opens, in addition to the built-in ones: first and last of each range.
    pub denied_node_ports: Vec<(u16, u16)>,
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
    /// Directory of archives of images that are imported when the daemon starts. Absolute; may be absent.
    pub preload_dir: PathBuf,
    /// An archive of that directory that is not imported after this long is given up.
    pub preload_timeout: Duration,
    /// Images that the kubelet never collects: references, or beginnings of references and `*`.
    pub pinned: Vec<String>,
    /// A registry that sends nothing for this long fails the pull.
    pub pull_idle_timeout: Duration,
    /// A registry that sends a blob more slowly, measured over `pull_idle_timeout`, fails the pull; 0 for no limit.
    /// Bytes a second.
    pub pull_min_bytes_per_s: u64,
    /// A pull that is not complete after this long fails; `None` for no limit.
    pub pull_timeout: Option<Duration>,
    /// Largest manifest, index or image config.
    pub max_manifest_bytes: u64,
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
    /// The kubelet's directory of pod logs.
    pub pod_logs_dir: PathBuf,
    /// A missing host path of a mount is created, as a directory.
    pub create_host_paths: bool,
    /// Limit of the memory for the requests of all sandboxes and containers, in the size of their records. Bytes.
    pub all_requests_bytes: u64,
}

/// Limits of the module compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wasm {
    /// A compilation that takes more CPU time is killed.
    pub compile_timeout: Duration,
    /// A compilation that needs more memory is killed.
    pub compile_memory_bytes: u64,
    /// Largest module or component that is compiled.
    pub max_module_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        check::check(&ConfigFile::default()).expect("a test checks the defaults")
    }
}

/// Flags that win over the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--run`.
    pub run: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
}

/// Reads, checks and merges the configuration.
///
/// `path` is the one on the command line; without it [`DEFAULT_PATH`], which may be absent: then all defaults apply.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Error> {
    resolve(path, overrides).map(|(_, config)| config)
}

/// The configuration in force, as TOML without comments.
pub fn show(path: Option<&Path>, overrides: &Overrides) -> Result<String, Error> {
    let (file, _) = resolve(path, overrides)?;
    Ok(toml::to_string(&file)
        .expect("the file's types are TOML's own: tables, strings and numbers"))
}

fn resolve(path: Option<&Path>, overrides: &Overrides) -> Result<(ConfigFile, Config), Error> {
    match path {
        Some(path) => parse(path, &read(path)?, overrides),
        None => match read(Path::new(DEFAULT_PATH)) {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                parse(Path::new("defaults"), "", overrides)
            }
            text => parse(Path::new(DEFAULT_PATH), &text?, overrides),
        },
    }
}

/// Reads a file after checking, on the open file, that only root can have written it.
fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if let Some(found) = distrust(&facts) {
        return Err(Error::Untrusted {
            path: path.to_owned(),
            found,
        });
    }
    let mut text = String::new();
    let got = file
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if got as u64 > MAX_FILE_BYTES {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: MAX_FILE_BYTES,
        });
    }
    Ok(text)
}

/// Why a file is not trusted, if there is a reason.
fn distrust(facts: &std::fs::Metadata) -> Option<String> {
    let mode = facts.mode() & 0o7777;
    let group_writes = mode & 0o020 != 0 && facts.gid() != 0;
    if !facts.is_file() {
        Some("not a regular file".to_owned())
    } else if facts.uid() != 0 {
        Some(format!("owned by uid {}", facts.uid()))
    } else if mode & 0o002 != 0 || group_writes {
        Some(format!(
            "writable by others (mode {mode:04o}, gid {})",
            facts.gid()
        ))
    } else {
        None
    }
}

/// Parses the text of a configuration. `path` is only for messages.
fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<(ConfigFile, Config), Error> {
    let document = Document::parse(text).map_err(|error| malformed(path, text, None, &error))?;
    if let Some(unknown) = document.first_unknown(&known_keys()) {
        let hint = match unknown.meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => "`coracle config default` lists the settings".to_owned(),
        };
        return Err(Error::UnknownKey {
            path: path.to_owned(),
            line: unknown.line,
            key: unknown.key,
            hint,
        });
    }
    let mut file: ConfigFile =
        toml::from_str(text).map_err(|error| malformed(path, text, Some(&document), &error))?;
    let follows_run = document.line_of("socket").is_none();
    apply(&mut file, overrides, follows_run);
    let config = check::check(&file).map_err(|invalid| {
        let origin = origin(path, &document, overrides, invalid.key);
        Error::Value {
            origin,
            key: invalid.key,
            why: invalid.why,
        }
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

/// The source of a value: a flag, a line of the file, or the defaults.
fn origin(path: &Path, document: &Document<'_>, overrides: &Overrides, key: &str) -> String {
    let flag = match key {
        "root" => overrides.root.is_some(),
        "run" => overrides.run.is_some(),
        "socket" => overrides.socket.is_some(),
        _ => false,
    };
    match document.line_of(key) {
        _ if flag => "command line".to_owned(),
        Some(line) => format!("{}:{line}", path.display()),
        None => format!("{} (default value)", path.display()),
    }
}

fn malformed(
    path: &Path,
    text: &str,
    document: Option<&Document<'_>>,
    error: &toml::de::Error,
) -> Error {
    let span = error.span().unwrap_or(0..0);
    let problem = error.message().lines().collect::<Vec<_>>().join("; ");
    let what = match document.and_then(|document| document.key_at(&span)) {
        Some(key) => format!("{key}: {problem}"),
        None => problem,
    };
    Error::Malformed {
        path: path.to_owned(),
        line: keys::line_at(text, span.start),
        what,
    }
}

fn known_keys() -> toml::Table {
    toml::Table::try_from(ConfigFile::default())
        .expect("the file's types are TOML's own: tables, strings and numbers")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
