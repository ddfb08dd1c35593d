//! The daemon's own series: what it is, what it has, what it counted.
//!
//! Called by: [`super::Scrapes`]. Calls: snapshots in memory, /proc/self. Invariant: the cost does not depend on what
//! containers do; labels have few values.
//! Must not know: usage of containers.

use std::collections::BTreeMap;

use coracle_images::Images;
use coracle_lifecycle::{ContainerKind, ContainerState, Handler, HostCounts, Pods};
use coracle_metrics::listener::Chunks;
use coracle_metrics::{Family, Format, Kind, Metric, Text, Value};

use super::process;

const BUILD: Family = Family {
    name: "coracle_build_info",
    help: "1, with the build in its labels.",
    kind: Kind::Gauge,
    labels: &["version", "wasmtime"],
};
const SANDBOXES: Family = Family {
    name: "coracle_sandboxes",
    help: "Sandboxes, by state and handler.",
    kind: Kind::Gauge,
    labels: &["state", "handler"],
};
const CONTAINERS: Family = Family {
    name: "coracle_containers",
    help: "Containers, by state and kind.",
    kind: Kind::Gauge,
    labels: &["state", "kind"],
};
const IMAGES: Family = Family {
    name: "coracle_images",
    help: "Images on this node.",
    kind: Kind::Gauge,
    labels: &[],
};
const RECEIVED: Family = Family {
    name: "coracle_image_received_bytes_total",
    help: "Bytes of configs and layers of images that have come from registries and archives.",
    kind: Kind::Counter,
    labels: &["source"],
};
const STORE: Family = Family {
    name: "coracle_store_bytes",
    help: "Disk space of blobs and unpacked layers of images.",
    kind: Kind::Gauge,
    labels: &[],
};
const STORE_FREE: Family = Family {
    name: "coracle_store_free_bytes",
    help: "Free space of the file system that holds images and writable layers.",
    kind: Kind::Gauge,
    labels: &[],
};

const COMPILED: Family = Family {
    name: "coracle_compiled_bytes",
    help: "Disk space of compiled code.",
    kind: Kind::Gauge,
    labels: &[],
};
const CACHE_REQUESTS: Family = Family {
    name: "coracle_compile_cache_requests_total",
    help: "Requests for the compiled code of a module, by whether it was there.",
    kind: Kind::Counter,
    labels: &["result"],
};
const COMPILATIONS: Family = Family {
    name: "coracle_compilations_total",
    help: "Compilations of modules, by result.",
    kind: Kind::Counter,
    labels: &["result"],
};
const SPAWNER_RESTARTS: Family = Family {
    name: "coracle_spawner_restarts_total",
    help: "Spawners that were started in place of one that was gone.",
    kind: Kind::Counter,
    labels: &[],
};
const QUARANTINED: Family = Family {
    name: "coracle_quarantined_records",
    help: "Damaged records that were moved aside and lie there.",
    kind: Kind::Gauge,
    labels: &[],
};

/// The version of this build.
#[derive(Clone, Debug)]
pub struct Build {
    /// The daemon's version.
    pub version: &'static str,
    /// The major version of wasmtime.
    pub wasmtime: &'static str,
}

/// The sources of the daemon's own series.
#[derive(Clone)]
pub struct Daemon {
    /// What runs.
    pub build: Build,
    /// Pods and containers.
    pub pods: Pods,
    /// The image store.
    pub images: Images,
    /// What the crates of the daemon count.
    pub counted: Vec<&'static dyn Metric>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// All series, in one chunk.
    #[must_use]
    pub fn text(&self, format: Format) -> Chunks {
        let daemon = self.clone();
        Box::new(std::iter::once_with(move || daemon.whole_text(format)))
    }

    /// Blocks for a few reads of /proc and a look at the file system.
    fn whole_text(&self, format: Format) -> String {
        let mut text = Text::new(format);
        let build = [self.build.version, self.build.wasmtime];
        text.family(&BUILD);
        text.sample(&BUILD, &build, Value::Whole(1));
        self.write_pods(&mut text);
        for metric in &self.counted {
            metric.write(&mut text);
        }
        write_images(&self.images, &mut text);
        write_host(&self.pods.counts(), &mut text);
        process::write(&mut text);
        text.end();
        text.take()
    }

    fn write_pods(&self, text: &mut Text) {
        let mut sandboxes: BTreeMap<[&str; 2], u64> = BTreeMap::new();
        for handler in Handler::ALL {
            for state in ["ready", "notready"] {
                sandboxes.insert([state, handler.shown()], 0);
            }
        }
        for pod in self.pods.pods() {
            let state = if pod.ready { "ready" } else { "notready" };
            let labels = [state, pod.config.handler.shown()];
            *sandboxes.entry(labels).or_default() += 1;
        }
        write_counts(&SANDBOXES, &sandboxes, text);
        let mut containers: BTreeMap<[&str; 2], u64> = BTreeMap::new();
        for state in ["created", "running", "exited"] {
            for kind in [ContainerKind::Wasm, ContainerKind::Linux] {
                containers.insert([state, kind.name()], 0);
            }
        }
        for container in self.pods.containers() {
            let kind = self.pods.container_kind(&container.id);
            let kind = kind.map_or("unknown", ContainerKind::name);
            let labels = [state_name(container.state), kind];
            *containers.entry(labels).or_default() += 1;
        }
        write_counts(&CONTAINERS, &containers, text);
    }
}

fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "unknown",
    }
}

fn write_counts(family: &Family, counts: &BTreeMap<[&str; 2], u64>, text: &mut Text) {
    text.family(family);
    for (labels, count) in counts {
        text.sample(family, labels, Value::Whole(*count));
    }
}

/// Blocks for a list of one small directory.
fn write_host(counts: &HostCounts, text: &mut Text) {
    let entries = |place: &std::path::PathBuf| std::fs::read_dir(place).map_or(0, Iterator::count);
    let quarantined: usize = counts.quarantines.iter().map(entries).sum();
    for (family, value) in [
        (&COMPILED, counts.compiled_bytes),
        (&SPAWNER_RESTARTS, counts.spawner_restarts),
        (&QUARANTINED, u64::try_from(quarantined).unwrap_or(u64::MAX)),
    ] {
        text.family(family);
        text.sample(family, &[], Value::Whole(value));
    }
    for (family, by_result) in [
        (&CACHE_REQUESTS, &counts.cache_requests[..]),
        (&COMPILATIONS, &counts.compilations[..]),
    ] {
        text.family(family);
        for (result, value) in by_result {
            text.sample(family, &[*result], Value::Whole(*value));
        }
    }
}

/// Blocks for a look at the file system.
fn write_images(images: &Images, text: &mut Text) {
    let facts = images.fs_info();
    let count = u64::try_from(images.list().len()).unwrap_or(u64::MAX);
    let free = rustix::fs::statvfs(&facts.mountpoint).ok();
    let free = free.map(|facts| facts.f_bavail.saturating_mul(facts.f_frsize));
    for (family, value) in [
        (&IMAGES, Some(count)),
        (&STORE, Some(facts.used_bytes)),
        (&STORE_FREE, free),
    ] {
        let Some(value) = value else { continue };
        text.family(family);
        text.sample(family, &[], Value::Whole(value));
    }
    let (registries, archives) = images.received_bytes();
    text.family(&RECEIVED);
    for (source, bytes) in [("registry", registries), ("archive", archives)] {
        text.sample(&RECEIVED, &[source], Value::Whole(bytes));
    }
}
