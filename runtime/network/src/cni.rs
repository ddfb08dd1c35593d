//! Networks by CNI plugins: the programs that a cluster's network has installed, executed as the specification says.
//!
//! Called by: the daemon's effects on pods. Source: CNI specification 1.1.0; lists of 0.3.0 and later.
//!
//! ```text
//! plan   -> file in force read, pod's names and ports checked         nothing is executed, nothing is written
//! begin  -> what will be asked is on disk                             from here on DEL is owed
//! add    -> plugins, first to last; result on disk                    a failure leaves DEL owed
//! del    -> plugins, last to first, as they were asked; then forgotten
//! ```
//! Invariants: every ADD is followed by a DEL that succeeded, however pod, daemon, node or configuration end; DEL gets
//! the list, arguments and result of its ADD, not what the directory says by then; pods never wait for each other; no
//! thread waits for a plugin.
//! Not here: which pods there are, their namespaces, resolver files.

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

use tokio::sync::{RwLock, Semaphore};

use self::cache::{Cache, Entry, Report};
use self::exec::Runner;
use self::list::NetworkList;
use self::pod_lock::PodLocks;
use self::readiness::Readiness;
use super::config::NetworkConfig;

pub use self::error::Error;
pub use self::probe::{Probe, probe};
pub use self::verb::Verb;

/// Name of the interface that plugins make in a pod.
const INTERFACE: &str = "eth0";
/// What a pod asks for and does not get if no plugin declares it; that is said in the log.
const EXPECTED: [&str; 4] = ["portMappings", "bandwidth", "ips", "mac"];
/// What statfs(2) says of a namespace that is mounted on a file. Source: linux/magic.h, NSFS_MAGIC.
const NSFS: u64 = 0x6e73_6673;

/// Where plugins and their configuration are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// Directory of network configurations.
    pub conf_dir: PathBuf,
    /// Directories of plugins, the first that has one wins. Absolute, without `:`.
    pub bin_dirs: Vec<PathBuf>,
    /// Where we keep what pods were attached with. Survives a reboot.
    pub entry_dir: PathBuf,
    /// How long one plugin may take.
    pub plugin_limit: Duration,
}

/// The networks of one daemon. Cheap to share; background work holds on to it.
#[derive(Debug)]
pub struct Cni {
    runner: Runner,
    readiness: Arc<Readiness>,
    cache: Cache,
    /// This boot.
    boot: String,
    /// Read by ADD, DEL and CHECK, written by GC, which must run alone. Never waited for by a writer: readers would
    /// wait behind it.
    gate: RwLock<()>,
    /// CHECK and DELs of the same pod follow each other.
    pod_locks: PodLocks,
    /// Pods at whose DEL somebody keeps trying in the background.
    abandoned: Mutex<HashSet<String>>,
    /// Held by each DEL in the background while its plugins run.
    background: Semaphore,
}

/// A pod that is about to be attached.
#[derive(Debug)]
pub struct Plan(Entry);

impl Cni {
    /// Reads what earlier daemons left and ends their plugins that are still at work on an ADD. Blocks, for 2 s at most.
    /// Errors: the directory of entries cannot be used. A missing configuration is none: see [`Cni::problem`].
    pub fn open(config: CniConfig) -> Result<Arc<Self>, Error> {
        let runner = Runner {
            dirs: config.bin_dirs,
            limit: config.plugin_limit,
        };
        let cache = Cache::open(&config.entry_dir)?;
        let mut unfinished = cache.pods();
        unfinished.retain(|pod| !cache.is_added(pod));
        let ended = orphans::kill(&unfinished.into_iter().collect());
        if ended > 0 {
            tracing::warn!(
                processes = ended,
                "network plugins outlived their daemon and were ended"
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

    /// Has `report` called with the path of each file below the entry directory that is written or removed from now on,
    /// and once with those that are there: whoever brings them to the disk. It must not block.
    pub fn report_changes(&self, report: impl Fn(&Path) + Send + Sync + 'static) {
        self.cache.report_changes(Report(Box::new(report)));
    }

    /// Why pods cannot be attached, with the path at fault; `None` if they can. Answers within 100 ms.
    pub async fn problem(&self) -> Option<String> {
        self.readiness.problem().await
    }

    /// What attaching a pod will take, by the configuration as it is now. `netns` is where its namespace will be
    /// pinned. Blocks on the disk; executes nothing.
    /// Errors: there is no network, a plugin is missing, or the pod's names are not fit to be told.
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
                tracing::warn!(pod = %config.pod, network = %list.name, capability = name, "the pod asks for what no plugin of its network can");
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

    /// Notes that the pod is about to be attached; from here on [`Cni::del`] is owed. Blocks on the disk.
    pub fn begin(&self, plan: &Plan) -> Result<(), Error> {
        self.cache.record_request(&plan.0)
    }

    /// Attaches the pod. Gives its addresses, IPv4 first.
    /// Errors: the plugin that failed, with its words; DEL is still owed then, for all of them.
    pub async fn add(self: &Arc<Self>, plan: Plan) -> Result<Vec<IpAddr>, Error> {
        let begun = Instant::now();
        let _gate = self.gate.read().await;
        let entry = plan.0;
        let (result, addresses) = invoke::add(&self.runner, &entry).await?;
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

    /// Detaches a pod, as it was attached. Fine if that has happened before. What is left of another boot is detached
    /// in the background if it takes long or fails: its plugins may need pods that are not up yet.
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

    /// Gives where the pod's namespace was pinned, if it was attached and a record tells.
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
                    "a record of the network is broken and was set aside"
                );
                let id = pod.to_owned();
                let set_aside = self.on_disk(move |cache| cache.set_aside(&id)).await;
                return set_aside.map(|()| None);
            }
            Err(error) => return Err(error),
        };
        invoke::del(&self.runner, &entry, namespace(&entry.netns)).await?;
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
                object: "the records of the network".to_owned(),
                source: std::io::Error::other(error),
            })
        })
    }
}

/// The path of a namespace as DEL gets it: empty if there is none any more.
fn namespace(pin: &Path) -> String {
    let is_namespace =
        rustix::fs::statfs(pin).is_ok_and(|facts| u64::try_from(facts.f_type) == Ok(NSFS));
    match is_namespace {
        true => pin.display().to_string(),
        false => String::new(),
    }
}

/// An error with its causes, as `a: b: c`.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
