//! The part of the configuration that effects on the host need.
//!
//! Called by: `serve`, once. Invariant: nothing is checked here; every value of a [`Config`] has been.
//! Must not know: what effects do with it.

use coracle_config::{self as config, Config, Ipv6};
use coracle_host::{HostConfig, LogRoot};
use coracle_spec::Spawn;

/// That part of `config`. Resolves the links of the directory of logs.
pub fn host_config(config: &Config) -> HostConfig {
    let spawn = |name: &str| match config.handlers.find(name).map(|handler| handler.spawn) {
        Some(config::Spawn::Exec) => Spawn::Exec,
        Some(config::Spawn::Fork) | None => Spawn::Fork,
    };
    let http = |name: &str| {
        let handler = config.handlers.find(name);
        handler
            .map(|handler| handler.http.clone())
            .unwrap_or_default()
    };
    let wasi_p3 = |name: &str| {
        let handler = config.handlers.find(name);
        handler.is_some_and(|handler| handler.wasi_p3)
    };
    HostConfig {
        root: config.root.clone(),
        run: config.run.clone(),
        pins: config.network.netns_dir.clone(),
        pod_parent: config.cgroup.pod_parent.clone(),
        keeper_oom_score_adj: config.cgroup.keeper_oom_score_adj,
        ipv6_off: config.network.ipv6 == Ipv6::Off,
        denied_node_ports: config.network.denied_node_ports.clone(),
        id_base: config.sandbox.id_base,
        id_count: config.sandbox.id_count,
        log_root: LogRoot::resolve(&config.sandbox.pod_logs_dir),
        max_module_bytes: config.wasm.max_module_bytes,
        create_host_paths: config.sandbox.create_host_paths,
        all_requests_bytes: config.sandbox.all_requests_bytes,
        exec_sync_output_bytes: config.exec.sync_output_bytes,
        spawn: spawn("coracle"),
        spawn_wasm: spawn("coracle-wasm"),
        spawn_strict: spawn("coracle-strict"),
        http: ["coracle", "coracle-wasm", "coracle-strict"].map(http),
        wasi_p3: ["coracle", "coracle-wasm", "coracle-strict"].map(wasi_p3),
    }
}
