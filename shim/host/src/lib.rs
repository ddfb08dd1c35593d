//! The effects of drivers on the host: one method each, which calls images and runtime.
//!
//! Called by: drivers and recovery, through the lifecycle's trait; the binary creates the [`Host`]. Calls:
//! coracle-images, coracle-runtime.
//! Invariants: every effect can be repeated and succeeds when the object is already absent; work that blocks runs on
//! the blocking pool; whatever waits for another process has a deadline.
//! Must not know: phases, who sent a request, gRPC, the configuration file.

mod attach;
mod categories;
mod channel;
mod collector;
mod config;
mod container;
mod counters;
mod counts;
mod effects;
mod egress;
mod ending;
mod engine;
mod errors;
mod exec;
mod forward;
mod http;
mod ids;
mod image_files;
mod image_volumes;
mod linux;
mod log;
mod modules;
mod mounts;
mod node_hooks;
mod paths;
mod plan;
mod pod;
mod process_args;
mod program;
mod propagation;
mod refusals;
mod relabel;
#[cfg(test)]
#[path = "../../src/scratch.rs"]
mod scratch;
mod signatures;
mod start;
mod stats;
mod sweep;
mod unreadable;
mod update;
mod user;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cgroup::Cgroups;
use coracle_cgroup::systemd::{Driver, Scopes};
use coracle_control::log_counts::LogCounts;
use coracle_control::spawner::Spawner;
use coracle_images::Images;
use coracle_lifecycle::{Error, Kind, Layout, Syncer};
use coracle_network::Network;
use coracle_sandbox::Filters;
use coracle_sandbox::profile::ProfileCache;
use coracle_spec::id::{ContainerId, PodId};
use coracle_tree::Trash;
use coracle_wasm::CompileCache;

pub use categories::CATEGORY_SHARES;
use categories::Categories;
pub use config::{DeviceSettings, HostConfig, LiveConfig};
pub use coracle_lifecycle::{blocking, io_error, make_private, pass, runtime_error};
pub use counters::all as metrics;
use ids::Ids;
pub use linux::cdi::{CdiDevice, CdiListing, cdi_devices};
pub use linux::{
    DefaultProfile, default_profile, load_default_profile, node_pids, pids_limit,
    usual_capabilities,
};
pub use log::LogRoot;

/// The parts that effects call. Each is cheap to clone or shared.
pub struct Parts {
    /// The image store.
    pub images: Images,
    /// The node's cgroups.
    pub cgroups: Cgroups,
    /// The driver that creates the cgroups of new pods.
    pub cgroup_driver: Driver,
    /// The scopes of pods that systemd creates.
    pub scopes: Scopes,
    /// The network that pods are attached to.
    pub network: Network,
    /// What keepers count of the logs that they write.
    pub log_counts: Option<LogCounts>,
    /// The spawner that forks keepers.
    pub spawner: Spawner,
    /// Compiled modules.
    pub compiler: Arc<CompileCache>,
    /// Compiled seccomp filters of Wasm instances.
    pub filters: Filters,
    /// Compiled seccomp filters of Linux programs, by profile.
    pub profiles: Arc<ProfileCache>,
    /// Syncs records to the disk.
    pub syncer: Syncer,
    /// The share of the node's SELinux categories that this daemon hands out.
    pub category_share: Option<u32>,
}

/// The effects, and their state.
pub struct Host {
    config: HostConfig,
    layout: Layout,
    parts: Parts,
    ids: Ids,
    categories: Categories,
    relabels: relabel::Relabels,
    meter: stats::Meter,
    refusals: refusals::Refusals,
    orphaned_leaves: exec::OrphanedLeaves,
    module_digests: modules::Modules,
    /// Deletes records and writable layers in the background.
    trash: Trash,
    modules: collector::NamedModules,
    /// Threads for paths that may hang.
    paths: paths::Paths,
    /// Memory for the output of ExecSync calls.
    exec_budget: coracle_streaming::Budget,
}

impl Host {
    /// Creates the directories that effects expect. Errors: the disk's.
    pub fn new(config: HostConfig, parts: Parts) -> Result<Host, Error> {
        let ids = Ids::new(config.id_base, config.id_count, config.max_pods);
        let trash = config.root.join("trash");
        let exec_budget =
            coracle_streaming::Budget::new(config.exec_sync_output_bytes, exec::FREE_BYTES);
        parts.compiler.observe(counters::compiled);
        parts.network.cni().observe(counters::cni);
        let host = Host {
            trash: Trash::open(&trash)
                .map_err(|error| io_error(format!("open {}", trash.display()), error))?,
            layout: Layout::new(config.root.clone()),
            config,
            ids,
            categories: Categories::new(parts.category_share),
            relabels: relabel::Relabels::default(),
            parts,
            meter: stats::Meter::default(),
            refusals: refusals::Refusals::default(),
            orphaned_leaves: exec::OrphanedLeaves::default(),
            modules: collector::NamedModules::default(),
            module_digests: modules::Modules::default(),
            paths: paths::Paths::default(),
            exec_budget,
        };
        if let Some(parent) = host.config.pins.parent() {
            // It may be the node's own directory of namespaces, which other programs read.
            std::fs::create_dir_all(parent)
                .map_err(|error| io_error(format!("make directory {}", parent.display()), error))?;
        }
        for directory in [
            host.layout.pods_directory(),
            host.run_directory(),
            host.pins_directory(),
            host.staging(),
        ] {
            make_private(&directory)?;
        }
        Ok(host)
    }

    /// The thread that syncs records.
    pub fn syncer(&self) -> &Syncer {
        &self.parts.syncer
    }

    /// The leases of host ids.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Parent of a pod's cgroups: below the kubelet's, else below the configured one.
    /// Errors: Invalid when the path has the form of the other cgroup driver.
    pub fn cgroup_parent(&self, requested: &str, pod: &PodId) -> Result<String, Error> {
        let placed = self
            .parts
            .cgroup_driver
            .pod_path(requested, &self.config.pod_parent, pod);
        placed.map_err(|error| {
            Error::because(
                Kind::Invalid,
                format!("place the cgroups of sandbox {pod}"),
                error,
            )
        })
    }

    /// The parent of the cgroups of pods for which the kubelet names none, as a path.
    pub fn default_cgroup_parent(&self) -> String {
        format!("/{}", self.config.pod_parent.trim_matches('/'))
    }

    /// The mount point of a pod's shared memory, on kernels that cannot pass it as a descriptor.
    pub fn shared_memory(&self, pod: &PodId) -> PathBuf {
        self.layout.pod_directory(pod).join("shm")
    }

    /// Removes files that a container may have written: renames them away at once, deletes a large tree in the
    /// background.
    fn discard_tree(&self, directory: &Path) -> Result<(), Error> {
        let discarded = self.trash.remove(directory);
        discarded.map_err(|error| io_error(format!("discard {}", directory.display()), error))
    }

    /// Control sockets of all keepers, by pod.
    pub fn run_directory(&self) -> PathBuf {
        self.config.run.join("pods")
    }

    /// Pinned network namespaces, by pod.
    pub fn pins_directory(&self) -> PathBuf {
        self.config.pins.clone()
    }

    /// The copies of the pod's `/etc` files for one container.
    fn pod_files(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.layout
            .container_directory(pod, container)
            .join("files")
    }

    fn control_socket(&self, pod: &PodId) -> PathBuf {
        self.run_directory().join(pod.as_str()).join("control.sock")
    }

    fn pin(&self, pod: &PodId) -> PathBuf {
        self.pins_directory().join(pod.as_str())
    }

    /// The directory over which container processes build their roots, each in its own mount namespace.
    fn staging(&self) -> PathBuf {
        self.config.run.join("staging")
    }
}

/// Removes a small directory with its contents. An absent one is fine.
pub fn remove_tree(directory: &Path) -> Result<(), Error> {
    coracle_tree::remove(directory)
        .map_err(|error| io_error(format!("remove directory {}", directory.display()), error))
}
