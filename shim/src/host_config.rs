//! The part of the configuration that effects on the host need.
//!
//! Called by: `serve`, once, and the reload. Invariant: nothing is checked here; every value of a [`Config`] has been.
//! Must not know: what effects do with it.

use std::net::Ipv6Addr;
use std::sync::Arc;

use coracle_config::{self as config, Config, Ipv6};
use coracle_host::{DeviceSettings, HostConfig, LiveConfig, LogRoot};
use coracle_lifecycle::HandlerSettings;
use coracle_spec::egress::{Cidr, Internal};
use coracle_spec::live::Live;
use coracle_spec::{ResourceLimit, Spawn};

/// That part of `config`, with `live` for what a reload changes. Resolves the links of the directory of logs.
pub fn host_config(config: &Config, live: Arc<Live<LiveConfig>>) -> HostConfig {
    HostConfig {
        root: config.root.clone(),
        run: config.run.clone(),
        pins: config.network.netns_dir.clone(),
        pod_parent: config.cgroup.pod_parent.clone(),
        keeper_oom_score_adj: config.cgroup.keeper_oom_score_adj,
        ipv6_off: config.network.ipv6 == Ipv6::Off,
        id_base: config.sandbox.id_base,
        id_count: config.sandbox.id_count,
        max_pods: config.sandbox.max_pods,
        log_root: LogRoot::resolve(&config.sandbox.pod_logs_dir),
        max_module_bytes: config.wasm.max_module_bytes,
        all_requests_bytes: config.sandbox.all_requests_bytes,
        exec_sync_output_bytes: config.exec.sync_output_bytes,
        live,
    }
}

/// What a reload changes.
pub fn live_config(config: &Config) -> LiveConfig {
    let handlers = config.handlers.all().iter();
    LiveConfig {
        denied_node_ports: config.network.denied_node_ports.clone(),
        name_servers: config.network.name_servers.clone(),
        internal: internal(&config.network),
        nat64_prefixes: config.network.nat64_prefixes.clone(),
        create_host_paths: config.sandbox.create_host_paths,
        devices: DeviceSettings {
            cdi_spec_dirs: config.cdi.spec_dirs.clone(),
            cdi_hooks: config.cdi.hooks.clone(),
            cdi_node_hooks: config.cdi.node_hooks.clone(),
            owned_by_user: config.sandbox.device_ownership_from_security_context,
        },
        handlers: handlers
            .flat_map(|handler| {
                let names = handler.names().map(str::to_owned);
                names.map(|name| (name, handler_config(handler)))
            })
            .collect(),
    }
}

/// The addresses of the built-in network's pods are internal, whatever they are.
fn internal(network: &config::Network) -> Internal {
    let mut internal = network.internal.clone();
    let v4 = Cidr::new(network.subnet.base.into(), network.subnet.prefix);
    let v6 = |subnet: config::Subnet<Ipv6Addr>| Cidr::new(subnet.base.into(), subnet.prefix);
    internal.networks.extend(v4);
    internal.networks.extend(network.subnet_v6.and_then(v6));
    internal
}

fn handler_config(handler: &config::Handler) -> HandlerSettings {
    let rlimits = handler.rlimits.iter();
    HandlerSettings {
        name: handler.name.clone(),
        spawn: match handler.spawn {
            config::Spawn::Exec => Spawn::Exec,
            config::Spawn::Fork => Spawn::Fork,
        },
        http: handler.http.clone(),
        wasi_p3: handler.wasi_p3,
        pids_limit: Some(handler.pids_limit),
        no_user_namespaces: !handler.user_namespaces,
        apparmor_profiles: handler.apparmor_profiles.clone(),
        rlimits: rlimits
            .map(|limit| ResourceLimit {
                resource: limit.resource,
                soft: limit.soft,
                hard: limit.hard,
            })
            .collect(),
    }
}
