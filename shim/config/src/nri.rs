//! `[nri]`: programs of the operator that follow pods and may adjust containers.
//!
//! Called by: [`super::file`] and [`super::check`], for this table. Invariant: a field that is to be refused exists.
//! Must not know: whether the socket can be bound, what a field is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::{Invalid, RUN, invalid};

/// What `nri.reject` can name; a test of the shim holds it against what the `nri` crate knows.
pub const NRI_FIELDS: [&str; 20] = [
    "annotations",
    "args",
    "cdi_devices",
    "cgroups_path",
    "devices",
    "env",
    "hooks",
    "io_priority",
    "memory_policy",
    "mounts",
    "namespaces",
    "net_devices",
    "oom_score_adj",
    "rdt",
    "resources",
    "rlimits",
    "scheduler",
    "seccomp",
    "sysctl",
    "updates",
];

/// `[nri]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NriFile {
    /// Plugins can connect.
    pub enabled: bool,
    /// The socket that they connect to; empty for the usual one, or one below `run` if that is not the usual one.
    pub socket: PathBuf,
    /// How long a connection may take to register. Seconds.
    pub registration_timeout_s: u64,
    /// How long a plugin may take for one request. Seconds.
    pub request_timeout_s: u64,
    /// What no plugin may adjust.
    pub reject: Vec<String>,
    /// Plugins, by name or `NN-NAME`, without which no container is created.
    pub required_plugins: Vec<String>,
}

impl Default for NriFile {
    fn default() -> Self {
        Self {
            enabled: false,
            socket: PathBuf::new(),
            registration_timeout_s: 5,
            request_timeout_s: 2,
            reject: ["hooks", "namespaces", "seccomp"]
                .map(str::to_owned)
                .to_vec(),
            required_plugins: Vec::new(),
        }
    }
}

/// Plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nri {
    /// The socket that they connect to; `None` if they cannot. Absolute, short enough for a socket address.
    pub socket: Option<PathBuf>,
    /// How long a connection may take to register.
    pub registration_timeout: Duration,
    /// How long a plugin may take for one request.
    pub request_timeout: Duration,
    /// What no plugin may adjust, of [`NRI_FIELDS`].
    pub reject: Vec<String>,
    /// Plugins, by name or `NN-NAME`, without which no container is created.
    pub required_plugins: Vec<String>,
}

/// The socket that plugins look for.
const USUAL_SOCKET: &str = "/var/run/nri/nri.sock";

/// Checks the table of a daemon with the run directory `run`. Plugins of the node find one daemon, the one with the usual
/// directory: a second one on trial does not take its socket.
pub(super) fn check(file: &NriFile, run: &Path) -> Result<Nri, Invalid> {
    let socket = match file.socket.as_os_str().is_empty() {
        false => file.socket.clone(),
        true if run == Path::new(RUN) => PathBuf::from(USUAL_SOCKET),
        true => run.join("nri.sock"),
    };
    if !socket.is_absolute() || socket.as_os_str().len() > 107 {
        return invalid(
            "nri.socket",
            format!("is {socket:?}, must be an absolute path of at most 107 bytes"),
        );
    }
    let is_known = |field: &&String| NRI_FIELDS.contains(&field.as_str());
    if let Some(unknown) = file.reject.iter().find(|field| !is_known(field)) {
        return invalid(
            "nri.reject",
            format!("has {unknown:?}, must be of {}", NRI_FIELDS.join(", ")),
        );
    }
    if !file.enabled && !file.required_plugins.is_empty() {
        return invalid(
            "nri.required_plugins",
            "names plugins, but nri.enabled is false: no container could be created".to_owned(),
        );
    }
    Ok(Nri {
        socket: file.enabled.then_some(socket),
        registration_timeout: seconds("nri.registration_timeout_s", file.registration_timeout_s)?,
        request_timeout: seconds("nri.request_timeout_s", file.request_timeout_s)?,
        reject: file.reject.clone(),
        required_plugins: file.required_plugins.clone(),
    })
}

fn seconds(key: &'static str, value: u64) -> Result<Duration, Invalid> {
    match value {
        1..=600 => Ok(Duration::from_secs(value)),
        _ => invalid(key, format!("is {value}, must be 1 to 600")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let check = |file: &NriFile| super::check(file, Path::new(RUN));
        let on = NriFile {
            enabled: true,
            ..NriFile::default()
        };
        let socket = |run: &str| super::check(&on, Path::new(run)).unwrap().socket;
        assert_eq!(socket(RUN), Some(USUAL_SOCKET.into()));
        assert_eq!(socket("/run/second"), Some("/run/second/nri.sock".into()));
        assert_eq!(check(&NriFile::default()).unwrap().socket, None);
        let with = |change: fn(&mut NriFile)| {
            let mut file = NriFile::default();
            change(&mut file);
            check(&file).unwrap_err().key
        };
        for (key, refused) in [
            ("nri.socket", with(|file| file.socket = "nri.sock".into())),
            ("nri.reject", with(|file| file.reject = vec!["hook".into()])),
            (
                "nri.request_timeout_s",
                with(|file| file.request_timeout_s = 0),
            ),
            (
                "nri.registration_timeout_s",
                with(|file| file.registration_timeout_s = 601),
            ),
            (
                "nri.required_plugins",
                with(|file| (file.enabled, file.required_plugins) = (false, vec!["a".into()])),
            ),
        ] {
            assert_eq!(key, refused);
        }
    }
}
