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

mod directory;
mod entries;
mod error;
mod exec;
mod invoke;
mod leftovers;
mod list;
mod outcome;
mod readiness;
mod sight;
mod told;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::entries::{Entries, Entry};
use self::exec::Runner;
use self::list::NetworkList;
use self::readiness::Readiness;
use super::wish::NetworkWish;

pub use self::error::Error;
pub use self::exec::Verb;
pub use self::sight::{Sight, look};

/// Name of the interface that plugins make in a pod.
const INTERFACE: &str = "eth0";
/// How long a DEL may delay the daemon's start before it goes on in the background.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// Pauses between attempts at a DEL that nobody asks for again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long one plugin may take to collect garbage; pods that are attached or detached wait meanwhile.
const GC_LIMIT: Duration = Duration::from_secs(10);
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
    entries: Entries,
    /// This boot.
    boot: String,
    /// Read by ADD, DEL and CHECK, written by GC, which must run alone.
    gate: tokio::sync::RwLock<()>,
    /// One turn a pod: CHECK and DELs of the same pod follow each other.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Pods at whose DEL somebody keeps trying in the background.
    abandoned: Mutex<HashSet<String>>,
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
        let entries = Entries::open(&config.entry_dir)?;
        let mut unfinished = entries.pods();
        unfinished.retain(|pod| !entries.is_added(pod));
        let ended = leftovers::end(&unfinished.into_iter().collect());
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
            entries,
            boot: boot.trim().to_owned(),
            gate: tokio::sync::RwLock::new(()),
            turns: Mutex::default(),
            abandoned: Mutex::default(),
        }))
    }

    /// Why pods cannot be attached, with the path at fault; `None` if they can. Answers within 100 ms.
    pub async fn problem(&self) -> Option<String> {
        self.readiness.problem().await
    }

    /// What attaching a pod will take, by the configuration as it is now. `netns` is where its namespace will be
    /// pinned. Blocks on the disk; executes nothing.
    /// Errors: there is no network, a plugin is missing, or the pod's names are not fit to be told.
    pub fn plan(&self, wish: &NetworkWish, netns: &Path) -> Result<Plan, Error> {
        let args = told::args(wish)?;
        let list = self.readiness.network()?;
        let capabilities = told::capabilities(wish);
        for name in EXPECTED
            .iter()
            .filter(|name| capabilities.contains_key(**name))
        {
            let mut plugins = list.plugins.iter();
            if !plugins.any(|plugin| plugin.capabilities.iter().any(|known| known == name)) {
                tracing::warn!(pod = %wish.pod, network = %list.name, capability = name, "the pod asks for what no plugin of its network can");
            }
        }
        Ok(Plan(Entry {
            pod: wish.pod.clone(),
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
        self.entries.ask(&plan.0)
    }

    /// Attaches the pod. Gives its addresses, IPv4 first.
    /// Errors: the plugin that failed, with its words; DEL is still owed then, for all of them.
    pub async fn add(self: &Arc<Self>, plan: Plan) -> Result<Vec<IpAddr>, Error> {
        let begun = Instant::now();
        let _gate = self.gate.read().await;
        let entry = plan.0;
        let (result, addresses) = invoke::add(&self.runner, &entry).await?;
        let (network, pod) = (entry.list.name, entry.pod.clone());
        self.on_disk(move |entries| entries.add(&entry.pod, &result))
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
        self.entries.holds(pod)
    }

    /// Detaches a pod, as it was attached. Fine if that has happened before. What is left of another boot is detached
    /// in the background if it takes long or fails: its plugins may need pods that are not up yet.
    /// Errors: the first plugin that failed; DEL is still owed then.
    pub async fn del(self: &Arc<Self>, pod: &str) -> Result<(), Error> {
        if !self.is_owed(pod) {
            return Ok(());
        }
        let id = pod.to_owned();
        let entry = self.on_disk(move |entries| entries.read(&id)).await;
        if entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.boot != self.boot)) {
            self.del_soon(pod).await;
            return Ok(());
        }
        self.del_now(pod).await
    }

    /// The same, at the daemon's start: after 2 s, or a failure, it goes on in the background until it succeeds.
    pub async fn del_soon(self: &Arc<Self>, pod: &str) {
        let (network, pod) = (Arc::clone(self), pod.to_owned());
        let attempts = tokio::spawn(async move { network.del_until_done(&pod).await });
        let _ = tokio::time::timeout(START_PATIENCE, attempts).await;
    }

    /// Nobody will ask again for this pod: what is still owed goes on in the background. To be called in a runtime.
    pub fn abandon(self: &Arc<Self>, pod: &str) {
        if self.is_owed(pod) {
            let (network, pod) = (Arc::clone(self), pod.to_owned());
            tokio::spawn(async move { network.del_until_done(&pod).await });
        }
    }

    async fn del_until_done(self: &Arc<Self>, pod: &str) {
        if !self.lock_abandoned().insert(pod.to_owned()) {
            return;
        }
        let (mut pause, longest) = RETRY;
        while let Err(error) = self.del_now(pod).await {
            tracing::warn!(
                pod,
                error = chain(&error),
                again_in_s = pause.as_secs(),
                "a pod that is gone was not detached"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
        self.lock_abandoned().remove(pod);
    }

    fn lock_abandoned(&self) -> MutexGuard<'_, HashSet<String>> {
        // No use of it leaves the set half changed.
        self.abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn del_now(self: &Arc<Self>, pod: &str) -> Result<(), Error> {
        let turn = self.turn(pod);
        let _turn = turn.lock().await;
        let _gate = self.gate.read().await;
        let begun = Instant::now();
        let id = pod.to_owned();
        let entry = match self.on_disk(move |entries| entries.read(&id)).await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            Err(error @ Error::Entry { .. }) => {
                tracing::error!(
                    pod,
                    error = chain(&error),
                    "a record of the network is broken and was set aside"
                );
                let id = pod.to_owned();
                return self.on_disk(move |entries| entries.set_aside(&id)).await;
            }
            Err(error) => return Err(error),
        };
        invoke::del(&self.runner, &entry, namespace(&entry.netns)).await?;
        let id = pod.to_owned();
        self.on_disk(move |entries| entries.forget(&id)).await?;
        self.lock_turns().remove(pod);
        tracing::info!(
            pod,
            network = entry.list.name,
            took_ms = begun.elapsed().as_millis(),
            "pod detached"
        );
        Ok(())
    }

    /// To be called once in a runtime, when it is known which pods live: detaches all others, compares what pods have
    /// with what they were given, and, if new pods are attached here, has plugins drop what nobody owns. All of it in
    /// the background; failures are logged.
    pub fn resume(self: &Arc<Self>, live: &HashSet<String>, is_in_use: bool) {
        let (kept, gone): (Vec<String>, Vec<String>) = self
            .entries
            .pods()
            .into_iter()
            .partition(|pod| live.contains(pod));
        for pod in gone {
            tracing::info!(pod, "an attachment without a pod is given back");
            self.abandon(&pod);
        }
        let network = Arc::clone(self);
        tokio::spawn(async move {
            if is_in_use {
                network.collect_garbage().await;
            }
            network.check(kept).await;
        });
    }

    async fn collect_garbage(self: &Arc<Self>) {
        let readiness = Arc::clone(&self.readiness);
        let list = tokio::task::spawn_blocking(move || readiness.network()).await;
        let Ok(Ok(list)) = list else { return };
        if !invoke::has_gc(&list) {
            return;
        }
        let mut runner = self.runner.clone();
        runner.limit = runner.limit.min(GC_LIMIT);
        // The list of what is valid must be made while nobody is being attached.
        let _alone = self.gate.write().await;
        let attachments = self.entries.pods().into_iter();
        let valid: Vec<Value> = attachments
            .map(|pod| json!({"containerID": pod, "ifname": INTERFACE}))
            .collect();
        if let Err(error) = invoke::gc(&runner, &list, &Value::Array(valid)).await {
            tracing::warn!(network = %list.name, error = chain(&error), "garbage of the network was not collected");
        }
    }

    async fn check(self: &Arc<Self>, pods: Vec<String>) {
        for pod in pods {
            let turn = self.turn(&pod);
            let _turn = turn.lock().await;
            let _gate = self.gate.read().await;
            let id = pod.clone();
            let Ok(Some(entry)) = self.on_disk(move |entries| entries.read(&id)).await else {
                continue;
            };
            if let Err(error) = invoke::check(&self.runner, &entry).await {
                tracing::warn!(
                    pod,
                    error = chain(&error),
                    "a pod's network is not as it was made"
                );
            }
        }
    }

    fn turn(&self, pod: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.lock_turns();
        Arc::clone(turns.entry(pod.to_owned()).or_default())
    }

    fn lock_turns(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        // No use of it leaves the map half changed.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Entries) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let network = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&network.entries)).await;
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
