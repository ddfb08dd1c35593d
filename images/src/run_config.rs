//! The part of an image config for running its program.
//!
//! Made by: `image_config`. Kept in records, shown by [`crate::Image`]. Pure. Not here: reading a config.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a text takes in memory besides its bytes.
pub(crate) const TEXT_BYTES: u64 = 32;

/// What texts take in memory. Bytes.
pub(crate) fn weight_of<'a>(texts: impl IntoIterator<Item = &'a String>) -> u64 {
    let bytes = texts.into_iter().map(|text| text.len() as u64 + TEXT_BYTES);
    bytes.sum()
}

/// The part of an image config that runtimes use. All empty but `target` for a Wasm artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Argument vector that CRI's `command` replaces.
    pub entrypoint: Vec<String>,
    /// Argument vector that CRI's `args` replaces.
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Absolute path in the image, or empty.
    pub working_dir: String,
    /// `user[:group]`, numbers or names, or empty.
    pub user: String,
    /// `SIGTERM`, `15`, or empty.
    pub stop_signal: String,
    /// Paths in the image that want a volume. Sorted.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// TCP ports that it says it listens at. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<u16>,
    /// The world that its component is made for, such as `wasi:http/proxy@0.2.0`: `component.target` of the CNCF config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl RunConfig {
    /// The program the image itself would start: the first word of the entrypoint, else of cmd.
    pub fn argv0(&self) -> Option<&str> {
        self.entrypoint
            .first()
            .or(self.cmd.first())
            .map(String::as_str)
            .filter(|word| !word.is_empty())
    }

    /// What its texts take in memory. Bytes.
    pub(crate) fn weight(&self) -> u64 {
        let alone = [&self.working_dir, &self.user, &self.stop_signal];
        let lists = [&self.env, &self.entrypoint, &self.cmd, &self.volumes];
        weight_of(lists.into_iter().flatten())
            + weight_of(self.labels.keys().chain(self.labels.values()))
            + alone.iter().map(|text| text.len() as u64).sum::<u64>()
    }
}

/// The absolute form of a program's name in an image: relative names count from its working directory.
pub(crate) fn absolute(working_dir: &str, argv0: &str) -> String {
    if argv0.starts_with('/') {
        argv0.to_owned()
    } else {
        format!("{working_dir}/{argv0}")
    }
}
