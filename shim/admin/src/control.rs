//! What the daemon does for an operator beside answering: the port that the shim implements.
//!
//! Called by: [`super::server`]. Must not know: messages.

use std::time::Duration;

use futures_util::future::BoxFuture;

/// The daemon, for an operator.
pub trait Control: Send + Sync + 'static {
    /// Reads the configuration again. Returns when it holds, or is refused.
    fn reload(&self) -> BoxFuture<'static, Reloaded>;

    /// Changes which lines are logged; returns the levels that hold then, by target. Errors: what is wrong with the change.
    fn set_log_level(&self, change: LogChange) -> Result<Vec<(String, String)>, String>;

    /// What a bug report needs beside the answers of the service. Blocks for a few reads of files.
    fn internals(&self) -> Internals;

    /// The path of the log `path` where the operator's own links lead, so that no other has to be followed. Looks at no file.
    fn log_file(&self, path: &str) -> String;
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Why nothing was applied, with file and line; empty when the configuration is good.
    pub error: String,
    /// The changed settings that hold from now on.
    pub applied: Vec<String>,
    /// The changed settings that wait for a restart of the daemon.
    pub waiting: Vec<String>,
}

/// A change of what is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChange {
    /// The name of a level; empty for what the configuration says.
    pub level: String,
    /// The beginning of a module's path, or the name of a library; empty for all of the daemon's own lines.
    pub target: String,
    /// How long it holds; `None` until the daemon ends.
    pub duration: Option<Duration>,
}

/// What a bug report needs. It has no secrets of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Internals {
    /// The last lines of the log.
    pub log: String,
    /// The daemon's own metrics, in the text of Prometheus.
    pub metrics: String,
}
