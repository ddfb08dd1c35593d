//! Measures containers and pods and makes samples of it.
//!
//! Called by: the CRI services and [`super::Scrapes`]. Calls: the lifecycle's usage, on the blocking pool.
//! Invariants: one measurement at a time, which `shared` sees to; a value that the kernel does not report has no sample,
//! except for those that dashboards add up; the samples of each object are in the order of the series.
//! Must not know: text, CRI messages.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_cgroup::{Pressure, Stats};
use coracle_lifecycle::{
    ContainerView, Details, Error, Interface, LayerUsage, PodDetails, Pods, Traffic, Usage,
    blocking,
};
use coracle_metrics::Value::{Nanoseconds, Whole};

use super::device::{FileSystem, Names};
use super::series::{self, Series};
use super::shared::Shared;
use super::snapshot::{Object, PodSamples, Snapshot};

/// Measures, and shares what it measured.
pub struct Collector {
    pods: Pods,
    root: PathBuf,
    open_files: AtomicBool,
    shared: Shared<Snapshot>,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl Collector {
    /// Measures `pods`, whose writable layers are below `root`; with `open_files` also what their processes have open.
    #[must_use]
    pub fn new(pods: Pods, root: PathBuf, open_files: bool) -> Collector {
        Collector {
            pods,
            root,
            open_files: AtomicBool::new(open_files),
            shared: Shared::new(),
        }
    }

    /// Every series that this collector has samples for.
    pub fn series(&self) -> impl Iterator<Item = &'static Series> {
        Series::all(self.open_files.load(Ordering::Relaxed))
    }

    /// From the next measurement on, what processes have open is counted or not.
    pub fn set_open_files(&self, open_files: bool) {
        self.open_files.store(open_files, Ordering::Relaxed);
    }

    /// The samples that [`Collector::snapshot`] would give without a measurement, if there are some.
    pub(crate) async fn recent(&self) -> Option<Arc<Snapshot>> {
        self.shared.recent().await
    }

    /// The samples of all ready sandboxes, at most a second old.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, Error> {
        let (pods, root) = (self.pods.clone(), self.root.clone());
        let open_files = self.open_files.load(Ordering::Relaxed);
        let measure = async move {
            let measured = pods.detailed_usage(open_files).await?;
            blocking("making samples", move || Ok(samples(measured, &root))).await
        };
        self.shared.get(measure).await
    }
}

fn samples(measured: Vec<PodDetails>, root: &std::path::Path) -> Snapshot {
    let mut names = Names::default();
    let disk = FileSystem::of(root, &mut names).unwrap_or_default();
    let pods = measured.into_iter();
    Snapshot {
        pods: pods
            .map(|pod| pod_samples(&pod, &disk, &mut names))
            .collect(),
    }
}

fn pod_samples(pod: &PodDetails, disk: &FileSystem, names: &mut Names) -> PodSamples {
    let usage = &pod.usage;
    let mut own = Object::pod(&usage.view);
    for interface in usage.interfaces.iter().flatten() {
        add_network(&mut own, interface);
    }
    own.sort();
    let mut containers = Vec::new();
    for (container, details) in usage.containers.iter().zip(&pod.containers) {
        let (Some(measured), Some(details)) = (&container.usage, details) else {
            continue;
        };
        let mut object = Object::container(&container.view, &usage.view);
        add_cpu(&mut object, &measured.stats);
        add_memory(&mut object, &measured.stats, details.oom_kills);
        add_disk_space(&mut object, container.layer.as_ref(), disk);
        add_devices(&mut object, details, names);
        add_processes(&mut object, &measured.stats, details);
        add_pressure(&mut object, &measured.stats);
        add_spec(&mut object, &container.view);
        add_times(&mut object, &container.view, measured);
        add_wakes(&mut object, details);
        object.sort();
        containers.push(object);
    }
    PodSamples { own, containers }
}

fn add_network(to: &mut Object, interface: &Interface) {
    let name = &[interface.name.as_str()];
    let mut add = |traffic: &Traffic, series: [&'static Series; 4]| {
        let values = [
            traffic.bytes,
            traffic.packets,
            traffic.dropped,
            traffic.errors,
        ];
        for (series, value) in series.into_iter().zip(values) {
            to.add_labelled(series, name, Whole(value));
        }
    };
    add(
        &interface.received,
        [
            &series::NETWORK_RECEIVE_BYTES,
            &series::NETWORK_RECEIVE_PACKETS,
            &series::NETWORK_RECEIVE_DROPPED,
            &series::NETWORK_RECEIVE_ERRORS,
        ],
    );
    add(
        &interface.sent,
        [
            &series::NETWORK_TRANSMIT_BYTES,
            &series::NETWORK_TRANSMIT_PACKETS,
            &series::NETWORK_TRANSMIT_DROPPED,
            &series::NETWORK_TRANSMIT_ERRORS,
        ],
    );
}

fn add_cpu(to: &mut Object, stats: &Stats) {
    to.add_labelled(
        &series::CPU_USAGE,
        &["total"],
        Nanoseconds(stats.cpu_usage_ns),
    );
    to.add_known(&series::CPU_USER, stats.cpu_user_ns.map(Nanoseconds));
    to.add_known(&series::CPU_SYSTEM, stats.cpu_system_ns.map(Nanoseconds));
    // Without a quota nothing was ever throttled.
    let throttling = stats.throttling.unwrap_or_default();
    to.add(&series::CFS_PERIODS, Whole(throttling.periods));
    to.add(
        &series::CFS_THROTTLED_PERIODS,
        Whole(throttling.throttled_periods),
    );
    to.add(&series::CFS_THROTTLED, Nanoseconds(throttling.throttled_ns));
}

fn add_memory(to: &mut Object, stats: &Stats, oom_kills: u64) {
    let swap = stats.swap.map_or(0, |swap| swap.usage_bytes);
    for (series, value) in [
        (&series::MEMORY_USAGE, stats.memory_usage_bytes),
        (&series::MEMORY_WORKING_SET, stats.working_set_bytes()),
        (&series::MEMORY_RSS, stats.rss_bytes),
        (&series::MEMORY_CACHE, stats.cache_bytes),
        (&series::MEMORY_MAPPED_FILE, stats.mapped_file_bytes),
        (&series::MEMORY_SWAP, swap),
        (&series::MEMORY_KERNEL, stats.kernel_bytes.unwrap_or(0)),
        (
            &series::MEMORY_FAILCNT,
            stats.memory_limit_hits.unwrap_or(0),
        ),
        (&series::MEMORY_ACTIVE_FILE, stats.active_file_bytes),
        (&series::MEMORY_INACTIVE_FILE, stats.inactive_file_bytes),
        (&series::OOM_EVENTS, oom_kills),
    ] {
        to.add(series, Whole(value));
    }
    let max = stats.memory_max_usage_bytes.map(Whole);
    to.add_known(&series::MEMORY_MAX_USAGE, max);
    for scope in ["container", "hierarchy"] {
        for (kind, value) in [
            ("pgfault", stats.page_faults),
            ("pgmajfault", stats.major_page_faults),
        ] {
            to.add_labelled(&series::MEMORY_FAILURES, &[kind, scope], Whole(value));
        }
    }
}

fn add_disk_space(to: &mut Object, layer: Option<&LayerUsage>, disk: &FileSystem) {
    // A large layer is not measured yet when a container has just begun.
    let used = layer.map_or(0, |layer| layer.bytes);
    for (series, value) in [
        (&series::FS_USAGE, used),
        (&series::FS_LIMIT, disk.bytes),
        (&series::FS_INODES_FREE, disk.free_inodes),
        (&series::FS_INODES_TOTAL, disk.inodes),
    ] {
        to.add_labelled(series, &[&disk.device], Whole(value));
    }
}

fn add_devices(to: &mut Object, details: &Details, names: &mut Names) {
    for device in &details.devices {
        let (name, io) = (names.of(device.major, device.minor), &device.io);
        for (series, value) in [
            (&series::FS_READS_BYTES, io.read_bytes),
            (&series::FS_READS, io.reads),
            (&series::FS_WRITES_BYTES, io.write_bytes),
            (&series::FS_WRITES, io.writes),
        ] {
            to.add_labelled(series, &[&name], Whole(value));
        }
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        for (operation, value) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
            let labels = [name.as_str(), &major, &minor, operation];
            to.add_labelled(&series::BLKIO_USAGE, &labels, Whole(value));
        }
    }
    for pages in &details.hugepages {
        let value = Whole(pages.usage_bytes);
        to.add_labelled(&series::HUGETLB_USAGE, &[&pages.page_size], value);
    }
}

fn add_processes(to: &mut Object, stats: &Stats, details: &Details) {
    to.add(&series::PROCESSES, Whole(details.processes));
    to.add(&series::THREADS, Whole(stats.pids));
    to.add(&series::THREADS_MAX, Whole(stats.pids_limit.unwrap_or(0)));
    let Some(files) = &details.open_files else {
        return;
    };
    to.add(&series::FILE_DESCRIPTORS, Whole(files.descriptors));
    to.add(&series::SOCKETS, Whole(files.sockets));
    if let Some(limit) = files.limit {
        to.add_labelled(&series::ULIMITS, &["max_open_files"], Whole(limit));
    }
}

fn add_pressure(to: &mut Object, stats: &Stats) {
    let mut add = |pressure: Option<Pressure>, waiting, stalled| {
        if let Some(pressure) = pressure {
            to.add(waiting, Nanoseconds(pressure.some.total_ns));
            to.add(stalled, Nanoseconds(pressure.full.total_ns));
        }
    };
    add(
        stats.cpu_pressure,
        &series::PRESSURE_CPU_WAITING,
        &series::PRESSURE_CPU_STALLED,
    );
    add(
        stats.io_pressure,
        &series::PRESSURE_IO_WAITING,
        &series::PRESSURE_IO_STALLED,
    );
    add(
        stats.memory_pressure,
        &series::PRESSURE_MEMORY_WAITING,
        &series::PRESSURE_MEMORY_STALLED,
    );
}

fn add_spec(to: &mut Object, view: &ContainerView) {
    let requested = &view.config.resources;
    let reserved = requested.unified.get("memory.min");
    let reserved = reserved.and_then(|value| value.parse().ok()).unwrap_or(0);
    let quota = u64::try_from(requested.cpu_quota).ok();
    let quota = quota.filter(|quota| *quota > 0);
    // What is negative or 0 asks for no limit.
    let given = |value: i64| Whole(u64::try_from(value).unwrap_or(0));
    to.add(&series::SPEC_CPU_PERIOD, given(requested.cpu_period));
    to.add_known(&series::SPEC_CPU_QUOTA, quota.map(Whole));
    to.add(&series::SPEC_CPU_SHARES, given(requested.cpu_shares));
    to.add(
        &series::SPEC_MEMORY_LIMIT,
        given(requested.memory_limit_bytes),
    );
    to.add(
        &series::SPEC_MEMORY_SWAP_LIMIT,
        given(requested.memory_swap_limit_bytes),
    );
    to.add(&series::SPEC_MEMORY_RESERVATION, Whole(reserved));
}

fn add_wakes(to: &mut Object, details: &Details) {
    if let Some(wakes) = details.wakes {
        let took = u64::try_from(wakes.took.as_nanos()).unwrap_or(u64::MAX);
        to.add(&series::FUNCTION_WAKES, Whole(wakes.count));
        to.add(&series::FUNCTION_WAKE_TIME, Nanoseconds(took));
    }
}

fn add_times(to: &mut Object, view: &ContainerView, usage: &Usage) {
    for (series, at) in [
        (&series::START_TIME, view.started_at),
        (&series::LAST_SEEN, usage.at),
    ] {
        to.add(series, Nanoseconds(u64::try_from(at).unwrap_or(0)));
    }
}
