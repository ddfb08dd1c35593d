//! The Node Resource Interface: programs of the operator that follow pods and containers, and may adjust containers.
//!
//! ```text
//! lifecycle --Plugins--> events --> sessions ==ttrpc over a mux==> plugins
//!     ^                    |  adjustments, updates
//!     +-- Pods ------------+
//! ```
//! Called by: the shim's `serve`, which gives an [`Nri`] to the lifecycle and then lets plugins connect.
//! Invariants: without plugins the lifecycle pays one relaxed load for a change; a plugin is root's program, but one
//! that hangs, dies or sends nonsense costs the requests that wait for it, for a limited time, and is closed.
//! Must not know: CRI, how an adjustment is applied, configuration files.

mod adjust;
mod adjusted;
mod convert;
mod counters;
mod event;
mod events;
mod known;
mod listener;
mod owners;
mod plugins;
mod session;
mod subject;
mod sync;
mod updates;
mod wire;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coracle_lifecycle::Pods;

pub use adjust::FIELDS;
pub use counters::all as metrics;
pub use listener::{BindError, Service};

use plugins::Connected;

/// The version of the protocol that plugins are told.
const VERSION: &str = "v0.12.0";

/// What the operator configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that plugins connect to; `None` if they cannot.
    pub socket: Option<PathBuf>,
    /// How long a connection may take to register.
    pub registration_timeout: Duration,
    /// How long a plugin may take for one request.
    pub request_timeout: Duration,
    /// Fields that no plugin may adjust, of [`FIELDS`].
    pub reject: Vec<String>,
    /// Plugins, by name or `NN-NAME`, without which no container is created.
    pub required_plugins: Vec<String>,
    /// The daemon's version.
    pub version: &'static str,
}

/// The plugins of a daemon.
pub struct Nri {
    settings: Settings,
    connected: Connected,
    pods: OnceLock<Pods>,
}

impl Nri {
    /// No plugin is connected before [`Nri::serve`].
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Nri> {
        Arc::new(Nri {
            connected: Connected::new(settings.required_plugins.clone()),
            settings,
            pods: OnceLock::new(),
        })
    }
}
