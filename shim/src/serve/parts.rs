//! The parts of the daemon that are made of one section of the configuration each: network, image store, seccomp filters.
//!
//! Called by [`super`], once. Invariant: nothing here touches a pod. Must not know: in which order a daemon starts.

use std::error::Error;
use std::sync::Arc;

use coracle_config::{self as config, Config, NetworkMode};
use coracle_control::log_counts::LogCounts;
use coracle_host::DefaultProfile;
use coracle_images::{ImagesConfig, Proxies};
use coracle_lifecycle::Syncer;
use coracle_network::{Builtin, BuiltinConfig, Choice, Cni, CniConfig, Mode, Network, Provider};
use coracle_sandbox::profile::ProfileCache;

use crate::registries;

/// Opens both networks: pods of the one that is not configured are still detached by it.
pub(super) fn network(config: &Config, syncer: &Syncer) -> Result<Network, Box<dyn Error>> {
    let builtin = Builtin::open(BuiltinConfig {
        subnet_v4: config.network.subnet.to_string().parse()?,
        subnet_v6: config
            .network
            .subnet_v6
            .map(|subnet| subnet.to_string().parse())
            .transpose()?,
        lease_dir: config.run.join("leases"),
        interface_prefix: config.network.interface_prefix.clone(),
        masquerade: config.network.masquerade,
        connections_per_pod: config.network.connections_per_pod,
    })?;
    let cni = Cni::open(CniConfig {
        conf_dir: config.network.cni_conf_dir.clone(),
        bin_dirs: config.network.cni_bin_dirs.clone(),
        entry_dir: config.root.join("cni"),
        plugin_limit: config.network.cni_plugin_timeout,
    })?;
    let syncer = syncer.clone();
    cni.report_changes(move |path| syncer.file(path));
    let mode = match config.network.mode {
        NetworkMode::Builtin => Mode::Fixed(Provider::Builtin),
        NetworkMode::Cni => Mode::Fixed(Provider::Cni),
        NetworkMode::Auto => Mode::Auto,
    };
    let choice = Choice::open(mode, &config.root, &config.network.cni_conf_dir)?;
    Ok(Network::new(choice, builtin, cni))
}

/// The page in which keepers count what they write to logs. Without it the daemon has no series of logs.
pub(super) fn log_counts(config: &Config) -> Option<LogCounts> {
    let path = LogCounts::path(&config.run);
    let opened = LogCounts::open(&path);
    let opened = opened.inspect_err(|error| {
        tracing::warn!(path = %path.display(), %error, "what containers log is not counted for metrics");
    });
    opened.ok()
}

/// The cache of seccomp filters; builds the one that nearly every Linux container uses in the background.
pub(super) fn profiles() -> Arc<ProfileCache> {
    let profiles = Arc::new(ProfileCache::default());
    let cache = Arc::clone(&profiles);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = cache.warm(coracle_host::usual_capabilities()) {
            tracing::warn!(
                error = error.chain(),
                "the default seccomp filter is not ready"
            );
        }
    });
    tokio::task::spawn_blocking(load_apparmor);
    profiles
}

/// Loads the default AppArmor profile, so that no container waits for it. Each container that needs it reports a
/// failure.
fn load_apparmor() {
    match coracle_host::load_default_profile() {
        Ok(DefaultProfile::Unsupported) => {}
        Ok(DefaultProfile::Loaded) => tracing::debug!("the default AppArmor profile is loaded"),
        Ok(DefaultProfile::Absent) => tracing::warn!(
            "this kernel has AppArmor, and the node no apparmor_parser to load the default profile with: \
             containers run without one; see `coracle check`"
        ),
        Err(error) => tracing::error!(
            error = error.chain(),
            "the default AppArmor profile is not loaded: containers that need it are refused"
        ),
    }
}

/// The proxies for registries. Errors: a URL of a proxy, or an entry of `no_proxy`, that cannot be used.
fn proxies(config: &config::Images) -> Result<Proxies, coracle_images::Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let proxies = registries::proxies(config, variable)?;
    if config.proxy != config::Proxy::None {
        return Ok(proxies);
    }
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        for name in [name.to_owned(), name.to_lowercase()] {
            if variable(&name).is_some() {
                tracing::warn!(
                    variable = name,
                    "images are pulled without the proxy that the environment names; images.proxy_from_environment uses it"
                );
            }
        }
    }
    Ok(proxies)
}

pub(super) fn images_config(config: &Config) -> Result<ImagesConfig, coracle_images::Error> {
    let mut images = ImagesConfig::new(&config.root);
    images.plain_http.clone_from(&config.images.plain_http);
    images.pinned.clone_from(&config.images.pinned);
    images.registry_config = Some(config.images.registry_config.clone());
    images.pull_idle_timeout = config.images.pull_idle_timeout;
    images.pull_min_bytes_per_s = config.images.pull_min_bytes_per_s;
    images.auth_file.clone_from(&config.images.auth_file);
    let policy = &config.images.signature_policy;
    images.signature_policy.clone_from(policy);
    let namespaces = &config.images.signature_policy_dir;
    images.signature_policy_dir.clone_from(namespaces);
    images.proxies = proxies(&config.images)?;
    images.pull_timeout = config.images.pull_timeout;
    images.preload_timeout = config.images.preload_timeout;
    images.keep_blobs = config.images.keep_blobs;
    images.limits.max_manifest_bytes = config.images.max_manifest_bytes;
    images.limits.max_metadata_bytes = config.images.max_metadata_bytes;
    images.limits.max_layers = config.images.max_layers as u64;
    images.limits.max_layer_bytes = config.images.max_layer_bytes;
    images.limits.max_unpacked_bytes = config.images.max_unpacked_bytes;
    images.limits.max_entries = config.images.max_entries;
    images.limits.max_module_bytes = config.wasm.max_module_bytes;
    Ok(images)
}
