//! The usage of pods and containers: CPU and memory from their cgroups, disk from their writable layers, traffic from
//! their network namespaces.
//!
//! Called by: `lifecycle::usage`, on the blocking pool. Calls: cgroups, `details`, `layer`, `network`, `parallel`.
//! Invariants: an object that has just ended has no numbers, which is not an error; no keeper and no driver is
//! involved; no lock is held while a file is read; nothing is sampled without a request; what has not run since the last
//! request costs two small files.
//! Must not know: CRI messages, which objects a request means.

mod details;
mod layer;
mod network;
mod parallel;
mod rate;
mod samples;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_cgroup::{Cgroup, Stats, SwapStats};
use coracle_lifecycle::{
    ContainerState, ContainerUsage, ContainerView, Interface, LayerUsage, Measured, NamespaceMode,
    PodUsage, PodView, Usage,
};
use coracle_spec::id::{ContainerId, PodId};

use super::{Host, linux};
use layer::{Budget, Layers};
use rate::{Rates, Sum};
use samples::Samples;

/// How many more objects than exist are cached before those that are gone are dropped.
const SLACK: usize = 256;

/// State that is cached between two requests.
#[derive(Default)]
pub struct Meter {
    rates: Mutex<Rates>,
    sums: Mutex<HashMap<PodId, Sum>>,
    layers: Layers,
    samples: Samples,
}

impl Meter {
    /// The bytes of all writable layers, each as it was measured last.
    pub(super) fn written_bytes(&self) -> u64 {
        self.layers.bytes()
    }

    /// A container and its writable layer are gone.
    pub(super) fn forget_layer(&self, id: &ContainerId) {
        self.layers.forget(id);
    }

    /// The limits of the cgroup `path` have changed: its numbers are read anew.
    pub(super) fn limits_changed(&self, path: &str) {
        self.samples.forget(path);
    }

    fn rate(&self, name: &str, count: u64, age: Option<Duration>) -> Option<u64> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.sample(name, count, age)
    }
}

impl Host {
    /// The usage of each of `containers`, in their order. Blocks.
    pub fn measure(&self, containers: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage> {
        parallel::map(containers, |part, parts| {
            let mut budget = Budget::of_one_in(parts);
            let one = |view| self.measure_one(view, &mut budget);
            part.into_iter().map(one).collect()
        })
    }

    /// The usage of each of `pods`, in their order. Blocks.
    pub fn measure_pods(&self, pods: Vec<Measured>) -> Vec<PodUsage> {
        parallel::map(pods, |part, parts| self.measure_part(part, parts))
    }

    /// The usage of each of `pods`, which are one of the `parts` of a request.
    fn measure_part(&self, pods: Vec<Measured>, parts: usize) -> Vec<PodUsage> {
        let mut budget = Budget::of_one_in(parts);
        let pin = |pod: &Measured| {
            let own = pod.view.config.namespaces.network != NamespaceMode::Node;
            own.then(|| self.pin(&pod.view.id))
        };
        let pins: Vec<_> = pods.iter().map(pin).collect();
        let (network_at, interfaces) = (now(), network::read(&pins));
        let one = |(pod, interfaces): (Measured, Option<Vec<Interface>>)| {
            let containers = pod.containers.iter().map(Arc::clone);
            let containers: Vec<_> = containers
                .map(|view| self.measure_one(view, &mut budget))
                .collect();
            let keeper = format!(
                "{}/{}",
                pod.view.cgroup_parent.trim_end_matches('/'),
                pod.view.id
            );
            let (usage, processes) = if pod.owns_parent {
                self.whole(&pod.view)
            } else {
                self.sum_of_parts(&pod.view, &keeper, &containers)
            };
            PodUsage {
                view: pod.view,
                usage,
                processes,
                network_at,
                interfaces,
                containers,
            }
        };
        pods.into_iter().zip(interfaces).map(one).collect()
    }

    /// Drops cached measurements of containers and pods that are gone, once there are many. `containers` and `pods` are
    /// all that exist.
    pub fn forget_measures(&self, containers: &[Arc<ContainerView>], pods: &[Arc<PodView>]) {
        let meter = &self.meter;
        if meter.layers.len() > containers.len() + SLACK {
            let exist: HashSet<_> = containers.iter().map(|view| &view.id).collect();
            meter.layers.retain(|id| exist.contains(id));
        }
        let limit = containers.len() + pods.len() + SLACK;
        meter.samples.prune(limit + pods.len());
        let mut sums = meter.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.len() > pods.len() + SLACK {
            let exist: HashSet<_> = pods.iter().map(|view| &view.id).collect();
            sums.retain(|id, _| exist.contains(id));
        }
        drop(sums);
        let mut rates = meter.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() > limit {
            let containers = containers.iter().map(|view| view.cgroup.clone());
            let pods = pods.iter().map(|view| pod_name(view));
            let exist: HashSet<String> = containers.chain(pods).collect();
            rates.retain(|name| exist.contains(name));
        }
    }

    fn measure_one(&self, view: Arc<ContainerView>, budget: &mut Budget) -> ContainerUsage {
        let usage = (view.state != ContainerState::Exited)
            .then(|| self.usage_of(&view))
            .flatten();
        let mut measure = || {
            let directory = self.layout.container_directory(&view.pod, &view.id);
            let upper = directory.join("upper");
            let layer = self.meter.layers.usage(&view.id, &upper, budget)?;
            let files = linux::files::usage(&self.pod_files(&view.pod, &view.id));
            let bytes = layer.bytes + files;
            Some(LayerUsage { bytes, ..layer })
        };
        let layer = match usage {
            Some(_) => self.meter.samples.layer(&view.cgroup, measure),
            None => measure(),
        };
        ContainerUsage { view, usage, layer }
    }

    fn usage_of(&self, view: &ContainerView) -> Option<Usage> {
        let stats = self.meter.samples.stats(&self.cgroup(&view.cgroup)?)?;
        let age = (view.started_at > 0).then(|| since(view.started_at));
        Some(Usage {
            at: now(),
            nano_cores: self.meter.rate(&view.cgroup, stats.cpu_usage_ns, age),
            stats,
        })
    }

    /// A pod whose parent cgroup is its own, as the kubelet makes them.
    fn whole(&self, view: &PodView) -> (Option<Usage>, u64) {
        let Some(parent) = self.cgroup(&view.cgroup_parent) else {
            return (None, 0);
        };
        let stats = self.meter.samples.stats(&parent);
        let usage = stats.map(|stats| self.pod_usage(view, stats));
        (usage, self.meter.samples.processes(&parent))
    }

    /// A pod that shares its parent cgroup: the sum of its own cgroups there.
    fn sum_of_parts(
        &self,
        view: &PodView,
        keeper: &str,
        containers: &[ContainerUsage],
    ) -> (Option<Usage>, u64) {
        let (all, processes) = self.parts(keeper, containers);
        let cpu = all
            .iter()
            .map(|(path, stats)| (path.clone(), stats.cpu_usage_ns))
            .collect();
        let total = all
            .iter()
            .fold(Stats::default(), |total, (_, part)| added(total, part));
        let mut sums = self
            .meter
            .sums
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let cpu_usage_ns = sums.entry(view.id.clone()).or_default().of(cpu);
        drop(sums);
        let total = Stats {
            cpu_usage_ns,
            ..total
        };
        (Some(self.pod_usage(view, total)), processes)
    }

    /// The usage of keeper and containers, by cgroup, and the number of their processes.
    fn parts(&self, keeper: &str, containers: &[ContainerUsage]) -> (Vec<(String, Stats)>, u64) {
        let mut all = Vec::new();
        let mut processes = 0;
        if let Some(cgroup) = self.cgroup(keeper) {
            let stats = self.meter.samples.stats(&cgroup);
            processes += self.meter.samples.processes(&cgroup);
            all.extend(stats.map(|stats| (keeper.to_owned(), stats)));
        }
        for container in containers {
            let Some(usage) = &container.usage else {
                continue;
            };
            let path = &container.view.cgroup;
            processes += self
                .cgroup(path)
                .map_or(0, |cgroup| self.meter.samples.processes(&cgroup));
            all.push((path.clone(), usage.stats));
        }
        (all, processes)
    }

    fn pod_usage(&self, view: &PodView, stats: Stats) -> Usage {
        let age = Some(since(view.created_at));
        Usage {
            at: now(),
            nano_cores: self.meter.rate(&pod_name(view), stats.cpu_usage_ns, age),
            stats,
        }
    }

    fn cgroup(&self, path: &str) -> Option<Cgroup> {
        self.parts.cgroups.open(path).ok()
    }
}

/// The key of a pod's rate in the cache; no cgroup has this name.
fn pod_name(view: &PodView) -> String {
    format!("pod {}", view.id)
}

/// The sum of two cgroups, for values that add up: without limits, pressure and peaks.
fn added(total: Stats, part: &Stats) -> Stats {
    let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    let swap = SwapStats {
        usage_bytes: [total.swap, part.swap]
            .iter()
            .flatten()
            .map(|swap| swap.usage_bytes)
            .sum(),
        limit_bytes: None,
    };
    Stats {
        cpu_usage_ns: total.cpu_usage_ns + part.cpu_usage_ns,
        cpu_user_ns: both(total.cpu_user_ns, part.cpu_user_ns),
        cpu_system_ns: both(total.cpu_system_ns, part.cpu_system_ns),
        memory_usage_bytes: total.memory_usage_bytes + part.memory_usage_bytes,
        inactive_file_bytes: total.inactive_file_bytes + part.inactive_file_bytes,
        cache_bytes: total.cache_bytes + part.cache_bytes,
        rss_bytes: total.rss_bytes + part.rss_bytes,
        mapped_file_bytes: total.mapped_file_bytes + part.mapped_file_bytes,
        page_faults: total.page_faults + part.page_faults,
        major_page_faults: total.major_page_faults + part.major_page_faults,
        swap: total.swap.or(part.swap).map(|_| swap),
        pids: total.pids + part.pids,
        ..Stats::default()
    }
}

/// The time since `wall`, which is in nanoseconds since 1970 UTC.
fn since(wall: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now().saturating_sub(wall)).unwrap_or(0))
}

/// Nanoseconds since 1970 UTC.
fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
