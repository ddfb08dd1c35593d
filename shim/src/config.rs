//! The node's configuration: a TOML file and three flags, made into a [`Config`] that cannot be wrong.
//!
//! Place in the flow: the command line asks [`load`] for a [`Config`] before anything else is touched;
//! `serve` hands each part of it to the module that it is about.
//!
//! ```text
//! file --open, trust--> text --keys--> known keys only --serde--> ConfigFile --flags--> --check--> Config
//! ```
//! Invariants: a [`Config`] comes only from [`load`] (or [`Default`]), so every value in it has been
//! checked; flags win over the file; the environment is not read. Whoever can write the file can run
//! code as root through it, so a file that others than root can write is refused unread.
//! Not here: what the values do.

mod check;
mod egress;
mod error;
mod exec;
mod file;
mod handlers;
mod helpers;
mod keys;
mod streaming;
mod subnet;

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::Error;
pub use exec::Exec;
pub use file::{CgroupDriver, Ipv6, LogFormat, LogLevel, NetworkMode, Spawn};
pub use handlers::Handlers;
pub use helpers::Helpers;
pub use streaming::Streaming;
pub use subnet::{Family, Subnet};

use file::{ConfigFile, SOCKET_NAME};
use keys::Document;

/// Where the configuration is looked for when no flag names it.
pub const DEFAULT_PATH: &str = "/etc/coracle/config.toml";
/// The commented default file: what `coracle config default` prints and `make install` installs.
pub const DEFAULT_TEXT: &str = include_str!("../assets/config.toml");

/// A larger configuration file is refused. Bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything an operator can decide, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Images, records and compiled modules; survives a reboot. Absolute.
    pub root: PathBuf,
    /// Sockets, pinned namespaces, process facts; gone after a reboot. Absolute, apart from `root`.
    pub run: PathBuf,
    /// The CRI socket. Absolute, short enough for a socket address.
    pub socket: PathBuf,
    /// What is logged and how.
    pub log: Log,
    /// Cgroups of pods and keepers.
    pub cgroup: Cgroup,
    /// Addresses of pods.
    pub network: Network,
    /// Where images come from and how large they may be.
    pub images: Images,
    /// Host ids of pods.
    pub sandbox: Sandbox,
    /// Limits of the module compiler.
    pub wasm: Wasm,
    /// The processes that unpack and compile.
    pub helpers: Helpers,
    /// What programs that are run in containers may cost.
    pub exec: Exec,
    /// Where clients of exec, attach and port-forward come.
    pub streaming: Streaming,
    /// What each RuntimeClass handler does.
    pub handlers: Handlers,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// The least important line still written.
    pub level: LogLevel,
}

/// Cgroups of pods and keepers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Who makes them.
    pub driver: CgroupDriver,
    /// Parent of a pod for which the kubelet names none: `/a/b` or `name.slice`.
    pub pod_parent: String,
    /// `oom_score_adj` of keepers, -1000 to 1000; the kernel may clamp it.
    pub keeper_oom_score_adj: i32,
}

/// Addresses of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Who connects a pod.
    pub mode: NetworkMode,
    /// IPv4 addresses of pods: /20 or larger, unicast.
    pub subnet: Subnet<Ipv4Addr>,
    /// IPv6 addresses of pods: /116 or larger, unicast.
    pub subnet_v6: Option<Subnet<Ipv6Addr>>,
    /// Whether pods have IPv6 at all; without it there is no `subnet_v6`.
    pub ipv6: Ipv6,
    /// First letters of the node's end of each veth: 3 or 4 of `a-z`.
    pub interface_prefix: String,
    /// Ports of the node that no egress list opens, besides the usual ones: first and last of each range.
    pub denied_node_ports: Vec<(u16, u16)>,
    /// Where pods' network namespaces are mounted. Absolute, of this daemon alone; gone after a reboot.
    pub netns_dir: PathBuf,
    /// Where configurations of CNI networks are. Absolute; it may be absent.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are, the first that has one wins. Absolute, without `:`; at least one.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// How long one CNI plugin may take.
    pub cni_plugin_timeout: Duration,
}

/// Where images come from and how large they may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Registries, `host` or `host:port`, spoken to without TLS besides loopback ones.
    pub plain_http: Vec<String>,
    /// Directory of `hosts.toml` files that name mirrors. Absolute; it may be absent.
    pub registry_config: PathBuf,
    /// A registry that sends nothing for this long fails the pull.
    pub pull_idle_timeout: Duration,
    /// A registry that sends a blob more slowly, taken over `pull_idle_timeout`, fails the pull; 0 for never. Bytes a second.
    pub pull_min_bytes_per_s: u64,
    /// Largest manifest, index or image config.
    pub max_manifest_bytes: u64,
    /// Most layers of an image.
    pub max_layers: usize,
    /// Largest layer as it is sent.
    pub max_layer_bytes: u64,
    /// Largest image once unpacked.
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
    /// A mount's host path that is absent is made, as a directory.
    pub create_host_paths: bool,
    /// What the requests of all sandboxes and containers may hold, as their records write them. Bytes.
    pub all_requests_bytes: u64,
}

/// Limits of the module compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wasm {
    /// A compile that takes longer is killed.
    pub compile_timeout: Duration,
    /// A compile that needs more memory is killed.
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
/// `path` as given on the command line; without it [`DEFAULT_PATH`], whose absence means all defaults.
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

/// Reads a file after making sure, on the open file itself, that only root can have written it.
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

/// What makes a file untrustworthy, if anything.
fn distrust(facts: &std::fs::Metadata) -> Option<String> {
    let mode = facts.mode() & 0o7777;
    let group_writes = mode & 0o020 != 0 && facts.gid() != 0;
    if !facts.is_file() {
        Some("no regular file".to_owned())
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

/// Text to configuration. `path` is only for messages.
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

/// Where a value came from: a flag, a line of the file, or the defaults.
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
    let words = error.message().lines().collect::<Vec<_>>().join("; ");
    let what = match document.and_then(|document| document.key_at(&span)) {
        Some(key) => format!("{key}: {words}"),
        None => words,
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
