//! Networks by CNI plugins, executed as the CNI specification says.
//!
//! Called by: the daemon's effects on pods. Source: CNI specification 1.1.0; lists of 0.3.0 and later.
//!
//! ```text
//! plan   -> read the configuration, check the pod's names and ports   executes nothing, writes nothing
//! begin  -> write the request to the cache                            from here on DEL is owed
//! add    -> ADD, first plugin to last; write the result to the cache  DEL is still owed after a failure
//! del    -> DEL, last plugin to first, by the cache; then remove it from the cache
//! ```
//! Invariants: every ADD is followed by a DEL that succeeds, however pod, daemon, node or configuration end; DEL gets
//! the list, arguments and result of its ADD, not those in the directory by then; pods never wait for each other; no
//! thread blocks on a plugin.
//! Not here: which pods exist, their namespaces, resolver files.

mod args;
mod background;
mod cache;
mod directory;
mod error;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod invoke;
mod list;
mod orphans;
mod pod_lock;
mod probe;
mod readiness;
mod result;
mod verb;

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_spec::error::chain;
use tokio::sync::{RwLock, Semaphore};

use self::cache::{Cache, Entry, Report};
use self::exec::Runner;
use self::list::NetworkList;
use self::pod_lock::PodLocks;
use self::readiness::Readiness;
use super::config::NetworkConfig;

pub use self::directory::first_configuration;
pub use self::error::Error;
pub use self::exec::Observer;
pub use self::list::Version;
pub use self::probe::{Probe, probe};
pub use self::verb::Verb;

/// Name of the interface that plugins make in a pod.
const INTERFACE: &str = "eth0";
/// Capabilities whose absence is logged when a pod's configuration needs them.
const EXPECTED: [&str; 4] = ["portMappings", "bandwidth", "ips", "mac"];
/// `f_type` of statfs(2) for a pinned namespace. Source: linux/magic.h, NSFS_MAGIC.
const NSFS: u64 = 0x6e73_6673;

/// Settings of CNI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// Directory of network configurations.
    pub conf_dir: PathBuf,
    /// Directories of plugins, searched in order. Absolute, without `:`.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory of the cache. Survives a reboot.
    pub entry_dir: PathBuf,
    /// Time limit of one plugin.
    pub plugin_limit: Duration,
}

/// The CNI networks of one daemon. Cheap to share; background work holds a reference.
#[derive(Debug)]
pub struct Cni {
    runner: Runner,
    readiness: Arc<Readiness>,
    cache: Cache,
    /// The id of this boot.
    boot: String,
    /// Held for reading by ADD, DEL and CHECK, for writing by GC, which must run alone. A writer only tries to lock
    /// it: readers would queue behind a waiting writer.
    gate: RwLock<()>,
    /// Serializes CHECK and DELs of the same pod.
    pod_locks: PodLocks,
    /// Pods whose DEL is retried in the background.
    abandoned: Mutex<HashSet<String>>,
    /// Held by each DEL in the background while its plugins run.
    background: Semaphore,
}

/// A pod that is about to be attached.
#[derive(Debug)]
pub struct Plan(Entry);

impl Cni {
    /// Reads the cache and kills plugins of earlier daemons that still execute an ADD. Blocks for 3 s at most.
    /// Errors: the cache directory cannot be used. A missing configuration is no error: see [`Cni::problem`].
    pub fn open(config: CniConfig) -> Result<Arc<Self>, Error> {
        let runner = Runner {
            dirs: config.bin_dirs,
            limit: config.plugin_limit,
            observer: Arc::default(),
        };
        let cache = Cache::open(&config.entry_dir)?;
        let ended = orphans::kill(cache.unfinished());
        if ended > 0 {
            tracing::warn!(
                processes = ended,
                "killed network plugins that outlived their daemon"
            );
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Arc::new(Self {
            readiness: Arc::new(Readiness::new(&config.conf_dir, runner.clone())),
            runner,
            cache,
            boot: boot.trim().to_owned(),
            gate: RwLock::new(()),
            pod_locks: PodLocks::default(),
            abandoned: Mutex::default(),
            background: Semaphore::new(background::AT_ONCE),
        }))
    }

    /// Calls `report` with the path of each cache file that exists, and from now on of each that is written or removed,
    /// so that it can be synced to disk. `report` must not block.
    pub fn report_changes(&self, report: impl Fn(&Path) + Send + Sync + 'static) {
        self.cache.report_changes(Report(Box::new(report)));
    }

    /// Tells `observer` of each operation from now on, once.
    pub fn observe(&self, observer: Observer) {
        let _ = self.runner.observer.set(observer);
    }

    /// Pods for which DEL is owed.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.cache.len()
    }

    /// Why pods cannot be attached, with the path at fault; `None` if they can. Returns within 100 ms.
    pub async fn problem(&self) -> Option<String> {
        self.readiness.problem().await
    }

    /// Prepares an attachment by the present configuration. `netns` is the path at which the pod's namespace will be
    /// pinned. Blocks on the disk; executes nothing.
    /// Errors: there is no network, a plugin is missing, or the pod's names are unsafe.
    pub fn plan(&self, config: &NetworkConfig, netns: &Path) -> Result<Plan, Error> {
        let args = args::args(config)?;
        let list = self.readiness.network()?;
        let capabilities = args::capabilities(config);
        for name in EXPECTED
            .iter()
            .filter(|name| capabilities.contains_key(**name))
        {
            let mut plugins = list.plugins.iter();
            if !plugins.any(|plugin| plugin.capabilities.iter().any(|known| known == name)) {
                tracing::warn!(pod = %config.pod, network = %list.name, capability = name, "the pod needs a capability that no plugin of its network has");
            }
        }
        Ok(Plan(Entry {
            pod: config.pod.clone(),
            boot: self.boot.clone(),
            netns: netns.to_owned(),
            interface: INTERFACE.to_owned(),
            args,
            capabilities,
            list: NetworkList::clone(&list),
            result: None,
        }))
    }

    /// Records that the pod is about to be attached; from here on [`Cni::del`] is owed. Blocks on the disk.
    pub fn begin(&self, plan: &Plan) -> Result<(), Error> {
        self.cache.record_request(&plan.0)
    }

    /// Attaches the pod. Returns its addresses, IPv4 first.
    /// Errors: the plugin that failed, with its message; DEL is still owed then, for all plugins.
    pub async fn add(self: &Arc<Self>, plan: Plan) -> Result<Vec<IpAddr>, Error> {
        let begun = Instant::now();
        let _gate = self.gate.read().await;
        let entry = plan.0;
        let added = invoke::add(&self.runner, &entry);
        let (result, addresses) = self.runner.observed(Verb::Add, added).await?;
        let (network, pod) = (entry.list.name, entry.pod.clone());
        self.on_disk(move |cache| cache.record_result(&entry.pod, &result))
            .await?;
        tracing::info!(
            pod,
            network,
            took_ms = begun.elapsed().as_millis(),
            "pod attached"
        );
        Ok(addresses)
    }

    /// Whether DEL is owed for a pod.
    pub fn is_owed(&self, pod: &str) -> bool {
        self.cache.contains(pod)
    }

    /// Detaches a pod, by the cache. It may be repeated. A pod of another boot is detached in the background if that
    /// takes long or fails: its plugins may need pods that are not running yet.
    /// Errors: the first plugin that failed; DEL is still owed then.
    pub async fn del(self: &Arc<Self>, pod: &str) -> Result<(), Error> {
        if !self.is_owed(pod) {
            return Ok(());
        }
        let id = pod.to_owned();
        let entry = self.on_disk(move |cache| cache.read(&id)).await;
        if entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.boot != self.boot)) {
            self.del_soon(pod).await;
            return Ok(());
        }
        self.del_now(pod).await.map(drop)
    }

    /// Returns the path at which the pod's namespace was pinned, if the cache has the pod.
    async fn del_now(self: &Arc<Self>, pod: &str) -> Result<Option<PathBuf>, Error> {
        let _pod_lock = self.pod_locks.acquire(pod).await;
        let _gate = self.gate.read().await;
        let begun = Instant::now();
        let id = pod.to_owned();
        let entry = match self.on_disk(move |cache| cache.read(&id)).await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(None),
            Err(error @ Error::Entry { .. }) => {
                tracing::error!(
                    pod,
                    error = chain(&error),
                    "a cache entry of the network is broken and was set aside"
                );
                let id = pod.to_owned();
                let set_aside = self.on_disk(move |cache| cache.set_aside(&id)).await;
                return set_aside.map(|()| None);
            }
            Err(error) => return Err(error),
        };
        let deleted = invoke::del(&self.runner, &entry, namespace(&entry.netns));
        self.runner.observed(Verb::Del, deleted).await?;
        let id = pod.to_owned();
        self.on_disk(move |cache| cache.remove(&id)).await?;
        tracing::info!(
            pod,
            network = entry.list.name,
            took_ms = begun.elapsed().as_millis(),
            "pod detached"
        );
        Ok(Some(entry.netns))
    }

    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Cache) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let network = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&network.cache)).await;
        done.unwrap_or_else(|error| {
            Err(Error::Io {
                operation: "work on",
                object: "the cache of the network".to_owned(),
                source: std::io::Error::other(error),
            })
        })
    }
}

/// The `CNI_NETNS` of a DEL: empty if the namespace is gone.
fn namespace(pin: &Path) -> String {
    let is_namespace =
        rustix::fs::statfs(pin).is_ok_and(|facts| u64::try_from(facts.f_type) == Ok(NSFS));
    match is_namespace {
        true => pin.display().to_string(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests;
