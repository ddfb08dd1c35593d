//! `coracle serve`: builds the daemon from its configuration, recovers, serves, waits for a signal, drains.
//!
//! Called by `main`. Calls everything else once. The order matters: resources are claimed first, so that a second
//! daemon stops before it touches any state; then the socket is bound, which answers only after recovery.
//! Invariant: the daemon owns no pod: when it ends, keepers continue and the next daemon finds them.
//! Must not know: RPCs, phases.

mod disks;
mod parts;

use std::error::Error;
use std::sync::Arc;

use coracle_cgroup::systemd::{Driver, Scopes};
use coracle_cgroup::{Cgroups, Version};
use coracle_config::{CgroupDriver, Config, SettingsByKey};
use coracle_control::log_counts::LogCounts;
use coracle_control::spawner::Spawner;
use coracle_cri::{self as cri, Node, Socket};
use coracle_host::{Host, LiveConfig, Parts};
use coracle_images::Images;
use coracle_lifecycle::{Pods, Syncer};
use coracle_metrics::listener::Listener;
use coracle_nri::Nri;
use coracle_runtime::unpacker::MEMORY_BYTES as UNPACKER_MEMORY_BYTES;
use coracle_sandbox::Filters;
use coracle_sandbox::helper::Permits;
use coracle_spec::live::Live;
use coracle_streaming::{Identity, Limits, Server, Settings};
use coracle_wasm::CompileCache;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin;
use crate::claims::Claims;
use crate::cli::ConfigArgs;
use crate::host_config::{host_config, live_config};
use crate::logging;
use crate::metrics::{self, Metrics};
use crate::notify::{self, notify};
use crate::reload::{self, Held, Reloads, Targets};
use crate::tasks;
use crate::unpackers::Unpackers;
use crate::watchdog;
use disks::Disks;

/// Threads that answer RPCs; the daemon waits more than it computes.
const MAX_WORKERS: usize = 4;
/// Threads for work that blocks: log files on slow disks, unpacking, namespaces. Images, what reads them for containers, and
/// changes of limits have bounds of their own, 68 together: a disk that does not answer leaves the rest to pods.
const MAX_BLOCKING: usize = 96;
/// How long such a thread waits for more to do: less than it takes until memory.rs returns memory, as each keeps a stack.
const BLOCKING_KEPT: std::time::Duration = std::time::Duration::from_secs(2);
/// Stack of each thread, bytes; only touched pages count.
const THREAD_STACK: usize = 1 << 20;
/// Heaps of the allocator. With one a thread, each keeps a hundred KiB of pages after its work; a second one, half a MiB.
const ARENAS: u8 = 1;
/// How long work under way may take after the signal.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// Errors: why it cannot start, with the name of the object; a running daemon ends only by a signal.
pub fn main(arguments: &ConfigArgs) -> Result<(), Box<dyn Error>> {
    let (config, settings) = arguments.load_settings()?;
    let config = &config;
    let traces = logging::init(&config.log, &config.tracing)?;
    if let Err(error) = crate::memory::execute_without_thread_caches() {
        tracing::warn!(%error, "the daemon runs with caches for each thread and needs more memory");
    }
    #[cfg(feature = "failpoints")]
    coracle_images::set_failpoints(coracle_spec::failpoint::hit);
    coracle_runtime::isolate_daemon()?;
    coracle_runtime::memory::limit_arenas(ARENAS);
    if let Err(error) = logging::write_in_background() {
        tracing::warn!(%error, "the log has no thread of its own: whoever reads it slowly slows the daemon down");
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(MAX_WORKERS))
        .max_blocking_threads(MAX_BLOCKING)
        .thread_keep_alive(BLOCKING_KEPT)
        .thread_stack_size(THREAD_STACK)
        .thread_name("coracle")
        .enable_all()
        .build()?;
    if let Some(traces) = traces {
        runtime.spawn(traces.run());
    }
    let ended = runtime.block_on(run(config, settings, arguments));
    // What is left is an import that the signal has stopped: it may read a large archive for long.
    runtime.shutdown_timeout(DRAIN);
    ended
}

async fn run(
    config: &Config,
    settings: SettingsByKey,
    arguments: &ConfigArgs,
) -> Result<(), Box<dyn Error>> {
    let term = signal(SignalKind::terminate())?;
    let mut terminated = Box::pin(terminated(term, signal(SignalKind::interrupt())?));
    // From here on neither of them ends the daemon; they are answered once it is ready.
    let hangup = signal(SignalKind::hangup())?;
    let list_tasks = signal(SignalKind::user_defined1())?;
    private_directory(&config.root)?;
    private_directory(&config.run)?;
    let claims = Claims::take(config)?;
    let socket = Socket::bind(&config.socket)?;
    let nri = nri(config);
    let (parts, metrics, targets) = build(config, claims.category_share(), &nri).await?;
    let (pods, images) = (parts.pods.clone(), parts.images.clone());
    let plugins = nri.serve(&pods)?;
    let (reloads, requests) = Reloads::new();
    let facts = admin::facts(config, about(&parts.node, metrics.listener.as_ref())?);
    let _admin = admin::serve(config, facts, &metrics.daemon, reloads)?;
    tokio::select! {
        biased;
        // Archives may take longer than the system waits for the daemon's end.
        () = &mut terminated => return end(&pods, plugins, claims).await,
        () = preload(config, &images, &pods) => {}
    }
    crate::memory::release_startup_memory();
    tracing::info!(socket = %config.socket.display(), pods = pods.pods().len(), version = env!("CARGO_PKG_VERSION"), "ready");
    notify(notify::READY);
    let held = Held {
        arguments: arguments.clone(),
        settings,
        targets,
    };
    let _tasks = [
        reload::start(hangup, requests, held),
        tasks::log_on(list_tasks, &pods),
        watchdog::start(&pods, &config.socket),
    ];
    cri::serve(socket, parts, terminated).await?;
    end(&pods, plugins, claims).await
}

/// Builds the daemon, which recovers meanwhile: the parts that answer the kubelet, its metrics, and what a reload changes.
async fn build(
    config: &Config,
    category_share: Option<u32>,
    nri: &Arc<Nri>,
) -> Result<(cri::Parts, Metrics, Targets), Box<dyn Error>> {
    let cgroups = Cgroups::detect()?;
    let node = node(config, &cgroups)?;
    let live = Arc::new(Live::new(live_config(config)));
    let (host, images, compiler) = host(config, cgroups, category_share, Arc::clone(&live)).await?;
    let engine = host.own_engine().hash;
    let pods = Pods::open(Arc::new(host), nri.clone()).await?;
    let (streaming, sessions) = streaming(config).await?;
    let facts = admin::facts(config, about(&node, None)?);
    let metrics = metrics::start(config, &pods, &images, (engine, facts)).await?;
    let policies = Arc::new(Live::new(config.handlers.policies()));
    let targets = Targets {
        host: live,
        policies: Arc::clone(&policies),
        compiler,
        sessions,
        collector: Arc::clone(&metrics.containers),
    };
    let parts = cri::Parts {
        streaming,
        pods,
        images,
        node,
        policies,
        metrics: Arc::clone(&metrics.containers),
        on_call: crate::memory::settle_soon,
    };
    Ok((parts, metrics, targets))
}

/// Completes the work under way, and gives the resources of this daemon back.
async fn end(
    pods: &Pods,
    plugins: coracle_nri::Service,
    claims: Claims,
) -> Result<(), Box<dyn Error>> {
    pods.drain(DRAIN).await;
    plugins.shut_down().await;
    pods.flush(DRAIN).await;
    claims.release();
    Ok(())
}

/// The plugins that follow pods; none can connect yet.
fn nri(config: &Config) -> Arc<Nri> {
    let nri = config.nri.clone();
    Nri::new(coracle_nri::Settings {
        socket: nri.socket,
        registration_timeout: nri.registration_timeout,
        request_timeout: nri.request_timeout,
        reject: nri.reject,
        required_plugins: nri.required_plugins,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// What the admin service says of the node.
fn about(node: &Node, listener: Option<&Listener>) -> Result<admin::Node, Box<dyn Error>> {
    let version = Cgroups::detect()?.version();
    Ok(admin::Node {
        cgroup_driver: node.cgroup_driver.name(),
        cgroup_version: if version == Version::V1 { 1 } else { 2 },
        metrics_address: listener.map_or(String::new(), |listener| listener.address.to_string()),
    })
}

/// Waits for SIGTERM or SIGINT, and announces the end.
async fn terminated(mut term: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down; pods keep running");
    notify(notify::STOPPING);
}

/// Imports new archives of the preload directory and compiles their modules, before anybody can need them.
async fn preload(config: &Config, images: &Images, pods: &Pods) {
    for image in images.preload(&config.images.preload_dir).await {
        if let Err(problem) = pods.prepare_image(&image, "").await {
            tracing::warn!(
                digest = %image.id, failure = problem.chain(),
                "the image was preloaded, but its module did not compile: its containers will be refused"
            );
        }
    }
}

async fn streaming(config: &Config) -> Result<(Server, Arc<Limits>), Box<dyn Error>> {
    let config = &config.streaming;
    let identity = config.identity.clone();
    let limits = Arc::new(Limits::new(config.idle_timeout, &config.allowed_origins));
    let settings = Settings {
        address: config.address,
        identity: identity.map(|(certificate, key)| Identity { certificate, key }),
        limits: Arc::clone(&limits),
    };
    Ok((Server::bind(settings).await?, limits))
}

fn private_directory(path: &std::path::Path) -> Result<(), Box<dyn Error>> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    let private =
        made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)));
    private.map_err(|e| format!("make directory {}: {e}", path.display()).into())
}

fn node(config: &Config, cgroups: &Cgroups) -> Result<Node, Box<dyn Error>> {
    if let Some(first) = cgroups.missing().first() {
        return Err(
            format!("the cgroup controller {first} is missing; see `coracle check`").into(),
        );
    }
    let cgroup_driver = match driver(config, cgroups) {
        Driver::Systemd => cri::CgroupDriver::Systemd,
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
    };
    if cgroups.version() == Version::V1 {
        tracing::info!("this node has cgroup v1; kubelet 1.35 and later need failCgroupV1: false");
    }
    let disks = Disks::of(&config.root);
    Ok(Node {
        root_dir: config.root.clone(),
        layers_dir: disks.layers,
        splits_images: disks.are_split,
        state_dir: config.run.clone(),
        cgroup_driver,
        maps_users: crate::check::maps_users(),
    })
}

/// The cgroup driver for new pods.
fn driver(config: &Config, cgroups: &Cgroups) -> Driver {
    match config.cgroup.driver {
        CgroupDriver::Auto => Driver::detect(cgroups),
        CgroupDriver::Systemd => Driver::Systemd,
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
    }
}

async fn host(
    config: &Config,
    cgroups: Cgroups,
    category_share: Option<u32>,
    live: Arc<Live<LiveConfig>>,
) -> Result<(Host, Images, Arc<CompileCache>), Box<dyn Error>> {
    crate::check::log_signature_policies(config);
    let helpers = Permits::new(config.helpers.processes, config.helpers.memory_bytes);
    let (unpacker, compiler) = (UNPACKER_MEMORY_BYTES, config.wasm.compile_memory_bytes);
    let unpackers = Arc::new(Unpackers(helpers.of_a_kind(compiler)));
    let compilers = helpers.of_a_kind(unpacker);
    let images = Images::open(parts::images_config(config)?, unpackers).await?;
    let limits = reload::compile_limits(config);
    let compiler = CompileCache::open(&config.root.join("compiled"), limits, compilers)?;
    let compiler = Arc::new(compiler);
    let syncer = Syncer::start(&config.root)?;
    let log_counts = parts::log_counts(config);
    let parts = Parts {
        images: images.clone(),
        cgroup_driver: driver(config, &cgroups),
        scopes: Scopes::default(),
        cgroups,
        network: parts::network(config, &syncer)?,
        spawner: Spawner::start(log_counts.map(|_| LogCounts::path(&config.run))).await?,
        log_counts,
        compiler: Arc::clone(&compiler),
        filters: Filters::build()?,
        profiles: parts::profiles(),
        syncer,
        category_share,
    };
    Ok((
        Host::new(host_config(config, live), parts)?,
        images,
        compiler,
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_can_be_refused_to_plugins_is_what_the_configuration_knows() {
        assert_eq!(coracle_config::NRI_FIELDS, coracle_nri::FIELDS);
    }
}
