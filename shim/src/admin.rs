//! The admin service of the daemon, and the commands for it: where its socket is, what it shows, what it changes.
//!
//! Called by `serve` and `main`. Invariants: the socket lies in the run directory, which the daemon has claimed; a configuration
//! that is wrong does not keep a command from the daemon.
//! Must not know: messages.

use std::path::Path;
use std::sync::Arc;

use coracle_admin::SOCKET_NAME;
use coracle_admin::client::{self, Command};
use coracle_admin::control::{Control, Internals, LogChange, Reloaded};
use coracle_admin::dump::Item;
use coracle_admin::server::{self, Facts, Parts, Service, View};
use coracle_config::{self as config, Config, LogLevel, Overrides};
use coracle_host::LogRoot;
use coracle_metrics::Format;
use coracle_spec::error::chain;
use coracle_telemetry::Daemon;
use futures_util::future::BoxFuture;

use crate::reload::Reloads;
use crate::version::WASMTIME;
use crate::{Outcome, logging};

/// Runs a command; returns its exit code.
pub fn main(command: Command) -> Outcome {
    let place = command.place();
    let overrides = Overrides {
        run: place.run.clone(),
        config_dir: place.config_dir.clone(),
        ..Overrides::default()
    };
    let path = place.config.clone();
    let run = config::run_directory(path.as_deref(), &overrides)?;
    let local = move || local_items(path.as_deref(), &overrides);
    Ok(client::main(command, &run.join(SOCKET_NAME), &local))
}

/// What a dump has of this node beside the daemon's answers.
fn local_items(path: Option<&Path>, overrides: &Overrides) -> Vec<Item> {
    let item = |name, text| Item { name, text };
    let shown = config::show_origins(path, overrides);
    let shown = shown.unwrap_or_else(|error| format!("# {}\n", chain(&error)));
    let mut items = vec![item("config.toml", shown)];
    if let Ok(config) = config::load(path, overrides) {
        let mut report = Vec::new();
        let printed = crate::check::examine(&config).print_text(&mut report);
        let report = match printed {
            Ok(()) => String::from_utf8_lossy(&report).into_owned(),
            Err(error) => error.to_string(),
        };
        items.push(item("check.txt", report));
    }
    let version = format!(
        "coracle {} (wasmtime {WASMTIME})\n",
        env!("CARGO_PKG_VERSION")
    );
    items.push(item("version.txt", version));
    items
}

/// What the daemon does for an operator.
struct Controls {
    reloads: Reloads,
    daemon: Daemon,
    logs: LogRoot,
}

impl Control for Controls {
    fn reload(&self) -> BoxFuture<'static, Reloaded> {
        Box::pin(self.reloads.clone().reload())
    }

    fn set_log_level(&self, change: LogChange) -> Result<Vec<(String, String)>, String> {
        let level = match change.level.as_str() {
            "" => None,
            name => Some(LogLevel::parse(name).ok_or_else(|| {
                let names = LogLevel::ALL.map(LogLevel::name).join(", ");
                format!("{name:?} is no level; there are {names}")
            })?),
        };
        tracing::info!(
            level = change.level,
            of = change.target,
            seconds = change.duration.map(|duration| duration.as_secs()),
            "an operator changes the level of the log"
        );
        let levels = logging::set(&logging::Change {
            target: change.target,
            level,
            duration: change.duration,
        });
        let levels = levels.into_iter();
        Ok(levels
            .map(|(target, level)| (target, level.name().to_owned()))
            .collect())
    }

    fn internals(&self) -> Internals {
        Internals {
            log: logging::recent_lines(),
            metrics: self.daemon.text(Format::Prometheus).collect(),
        }
    }

    fn log_file(&self, path: &str) -> String {
        let place = self.logs.place(Path::new(path));
        place.to_string_lossy().into_owned()
    }
}

/// What the daemon knows of itself and its node.
pub struct Node {
    /// Who creates cgroups.
    pub cgroup_driver: &'static str,
    /// 1 or 2.
    pub cgroup_version: u32,
    /// The address of the listener for metrics; empty for none.
    pub metrics_address: String,
}

/// The facts that an operator is shown.
pub fn facts(config: &Config, node: Node) -> Facts {
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        wasmtime: WASMTIME.to_owned(),
        root: config.root.clone(),
        run: config.run.clone(),
        socket: config.socket.clone(),
        metrics_address: node.metrics_address,
        cgroup_driver: node.cgroup_driver.to_owned(),
        cgroup_version: node.cgroup_version,
        warnings: unused_cni(config),
    }
}

/// Starts the service. Errors: the socket cannot be bound.
pub fn serve(
    config: &Config,
    facts: Facts,
    daemon: &Daemon,
    reloads: Reloads,
) -> Result<Service, server::BindError> {
    for warning in &facts.warnings {
        tracing::warn!("{warning}");
    }
    let parts = Parts {
        view: View {
            facts,
            pods: daemon.pods.clone(),
            images: daemon.images.clone(),
        },
        control: Arc::new(Controls {
            reloads,
            daemon: daemon.clone(),
            logs: LogRoot::resolve(&config.sandbox.pod_logs_dir),
        }),
    };
    server::serve(&config.run.join(SOCKET_NAME), parts)
}

/// Warns that pods are not connected by the network that the cluster has put on this node.
fn unused_cni(config: &Config) -> Vec<String> {
    let unused = crate::check::unused_cni(config);
    unused
        .map(|(found, remedy)| format!("{found}; {remedy}"))
        .into_iter()
        .collect()
}
