//! The admin service of the daemon, and the commands that ask it: where its socket is, and what it is told.
//!
//! Called by `serve` and `main`. Invariant: the socket lies in the run directory, which the daemon has claimed.
//! Must not know: requests.

use std::path::Path;

use coracle_admin::SOCKET_NAME;
use coracle_admin::client::{self, Command};
use coracle_admin::server::{self, Facts, Parts, Service};
use coracle_config::{self as config, Config, NetworkMode, Overrides};
use coracle_images::Images;
use coracle_lifecycle::Pods;

use crate::Outcome;
use crate::version::WASMTIME;

/// Runs a command; returns its exit code.
pub fn main(command: Command) -> Outcome {
    let place = command.place();
    let overrides = Overrides {
        run: place.run.clone(),
        ..Overrides::default()
    };
    let run = config::load(place.config.as_deref(), &overrides)?.run;
    Ok(client::main(command, &run.join(SOCKET_NAME)))
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

/// Starts the service. Errors: the socket cannot be bound.
pub fn serve(
    config: &Config,
    node: Node,
    pods: &Pods,
    images: &Images,
) -> Result<Service, server::BindError> {
    let warnings = unused_cni(config);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        wasmtime: WASMTIME.to_owned(),
        root: config.root.clone(),
        run: config.run.clone(),
        socket: config.socket.clone(),
        metrics_address: node.metrics_address,
        cgroup_driver: node.cgroup_driver.to_owned(),
        cgroup_version: node.cgroup_version,
        network_mode: match config.network.mode {
            NetworkMode::Builtin => "builtin",
            NetworkMode::Cni => "cni",
        }
        .to_owned(),
        warnings,
    };
    let parts = Parts {
        facts,
        pods: pods.clone(),
        images: images.clone(),
    };
    server::serve(&config.run.join(SOCKET_NAME), parts)
}

/// Warns that pods are not connected by the network that the cluster has put on this node.
fn unused_cni(config: &Config) -> Vec<String> {
    let directory = &config.network.cni_conf_dir;
    let is_used = config.network.mode == NetworkMode::Cni;
    match first_configuration(directory) {
        Some(file) if !is_used => vec![format!(
            "{} has a CNI configuration ({file}), but pods use the built-in network, which other nodes do not know; in a \
             cluster set network.mode = \"cni\"",
            directory.display()
        )],
        _ => Vec::new(),
    }
}

/// The first file of a network configuration in `directory`.
fn first_configuration(directory: &Path) -> Option<String> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_one = |name: &String| {
        let kinds = [".conf", ".conflist", ".json"];
        kinds.iter().any(|kind| name.ends_with(kind))
    };
    names.filter(is_one).min()
}
